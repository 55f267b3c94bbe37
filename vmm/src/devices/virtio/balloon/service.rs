//! The device's thread: takes what the driver gives, and passes questions on to the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::handle::{Asking, Shared};
use super::release::{Backing, Content, release};
use super::{PAGE_BYTES, Role, statistics};
use crate::devices::virtio::worker::{QueueError, Served, Stop, drain};
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt, QueuePosition};
use crate::metrics::{Counters, count};

/// Most page numbers that one request is read for; Linux sends 256.
const MAX_PAGES: usize = 1024;

/// What one activation of the device needs.
pub(super) struct Service {
    queues: Vec<(Role, ActiveQueue)>,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    epoll: Epoll,
    backing: Backing,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    question: Question,
}

/// How it stands with the driver's one buffer for statistics: the device keeps it until somebody wants to know, and the
/// driver gives it back filled.
#[derive(Default)]
struct Question {
    /// The head of the chain, while the device has it.
    kept: Option<u16>,
    /// The next buffer is an answer. Any other has what the driver wrote of itself, at some time.
    asked: bool,
}

impl Service {
    pub(super) fn new(
        queues: Vec<(Role, ActiveQueue)>,
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
        (backing, counters, shared): (Backing, Arc<Counters>, Arc<Shared>),
    ) -> Result<Self, ActivateError> {
        Ok(Self {
            queues,
            memory,
            interrupt,
            epoll: Epoll::new().map_err(ActivateError::Events)?,
            backing,
            counters,
            shared,
            question: Question::default(),
        })
    }

    /// Serves until `stop`, and returns how far it came in each queue. A broken queue fails the device and ends the service.
    pub(super) fn run(mut self, stop: &Stop, asking: Asking) -> Vec<QueuePosition> {
        let served = self.serve(stop);
        drop(asking);
        if served.is_err() {
            self.interrupt.fail_device();
            return Vec::new();
        }
        self.give_up_buffer();
        self.positions()
    }

    /// How far it came in each queue.
    fn positions(&self) -> Vec<QueuePosition> {
        let queues = self.queues.iter();
        queues.map(|(_, queue)| QueuePosition::of(&queue.queue)).collect()
    }

    /// As if the buffer that is kept had never been taken: whoever goes on here takes it.
    fn give_up_buffer(&mut self) {
        if self.question.kept.take().is_some()
            && let Some(queue) = statistics_queue(&mut self.queues)
        {
            queue.queue.go_to_previous_position();
        }
    }

    fn serve(&mut self, stop: &Stop) -> Result<(), QueueError> {
        self.watch(stop).map_err(QueueError::Wait)?;
        loop {
            self.wait()?;
            if stop.asked() {
                return Ok(());
            }
            self.turn(stop, &mut || ())?;
        }
    }

    fn watch(&self, stop: &Stop) -> io::Result<()> {
        let kicks = self.queues.iter().map(|(_, queue)| queue.kick.as_raw_fd());
        for fd in kicks.chain([stop.event().as_raw_fd(), self.shared.asked.as_raw_fd()]) {
            let event = EpollEvent::new(EventSet::IN, fd as u64);
            self.epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(())
    }

    /// Waits for a kick, a question or the stop, or until somebody has waited long enough.
    fn wait(&self) -> Result<(), QueueError> {
        let milliseconds = self.shared.first_deadline().map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            i32::try_from(left + 1).unwrap_or(i32::MAX)
        });
        match self.epoll.wait(milliseconds, &mut [EpollEvent::default(); 3]) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(QueueError::Wait(error)),
            _ => {}
        }
        // They fail when the event was another.
        for (_, queue) in &self.queues {
            let _ = queue.kick.read();
        }
        let _ = self.shared.asked.read();
        Ok(())
    }

    /// Does what there is to do. `served` comes after each request; a driver may have requests without end.
    pub(super) fn turn(&mut self, stop: &Stop, served: &mut dyn FnMut()) -> Result<(), QueueError> {
        let Self {
            queues,
            memory,
            interrupt,
            backing,
            counters,
            shared,
            ..
        } = self;
        for (role, queue) in queues.iter_mut().filter(|(role, _)| *role != Role::Statistics) {
            drain(&mut queue.queue, memory, &**interrupt, stop, |memory, chain| {
                take(*role, memory, chain, *backing, counters);
                shared.answer_late();
                served();
                Served::Done(0)
            })?;
        }
        self.take_buffer()?;
        self.ask()?;
        self.shared.answer_late();
        Ok(())
    }

    /// Gives the guest its buffer, if somebody wants to know and it has not been asked yet.
    fn ask(&mut self) -> Result<(), QueueError> {
        let Some(queue) = statistics_queue(&mut self.queues) else {
            return Ok(());
        };
        if !self.shared.anybody_waits() || self.question.asked {
            return Ok(());
        }
        let Some(head) = self.question.kept.take() else {
            return Ok(());
        };
        queue.queue.add_used(&self.memory, head, 0)?;
        self.question.asked = true;
        if queue.queue.needs_notification(&self.memory)? {
            self.interrupt.signal_queue();
        }
        self.take_buffer()
    }

    /// Takes the driver's buffer if it is there; others, of which a driver should have none, stay where they are.
    fn take_buffer(&mut self) -> Result<(), QueueError> {
        let Some(queue) = statistics_queue(&mut self.queues) else {
            return Ok(());
        };
        // Twice, as one may come before the driver knows that it is to tell of it.
        for _ in 0..2 {
            if self.question.kept.is_some() {
                break;
            }
            let Some(chain) = queue.queue.iter(&self.memory)?.next() else {
                queue.queue.enable_notification(&self.memory)?;
                continue;
            };
            self.question.kept = Some(chain.head_index());
            if std::mem::take(&mut self.question.asked) {
                let found = statistics::of_chain(&self.memory, chain);
                count(&self.counters.device_errors, found.is_none().into());
                self.shared.answered(found);
            }
        }
        Ok(())
    }
}

fn statistics_queue(queues: &mut [(Role, ActiveQueue)]) -> Option<&mut ActiveQueue> {
    let mut queues = queues.iter_mut();
    queues.find_map(|(role, queue)| (*role == Role::Statistics).then_some(queue))
}

/// Takes the memory that is in a request.
fn take(
    role: Role,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    backing: Backing,
    counters: &Counters,
) {
    let release = |start: u64, len: u64, content| match release(memory, start, len, backing, content) {
        Some(bytes) => count(&counters.balloon_released_bytes, bytes),
        None => count(&counters.device_errors, 1),
    };
    match role {
        Role::Inflate => {
            let (ranges, whole) = inflated(memory, chain);
            for (start, len) in ranges {
                release(start, len, Content::Any);
            }
            if !whole {
                count(&counters.device_errors, 1);
            }
        }
        Role::Reporting => {
            for buffer in chain.writable() {
                release(buffer.addr().0, u64::from(buffer.len()), Content::Zero);
            }
        }
        // The guest takes pages back by touching them; statistics are no memory.
        Role::Deflate | Role::Statistics => {}
    }
}

/// Addresses and lengths of the pages whose numbers are in the chain, neighbours as one, and whether all of it could be read.
fn inflated(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> (Vec<(u64, u64)>, bool) {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut left = MAX_PAGES;
    for buffer in chain.readable() {
        let numbers = (buffer.len() as usize / size_of::<u32>()).min(left);
        left -= numbers;
        let mut bytes = vec![0; numbers * size_of::<u32>()];
        if memory
            .read_slice(&mut bytes, GuestAddress(buffer.addr().0))
            .is_err()
        {
            return (ranges, false);
        }
        let (numbers, _) = bytes.as_chunks();
        for number in numbers {
            let start = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES;
            match ranges.last_mut() {
                Some((first, len)) if *first + *len == start => *len += PAGE_BYTES,
                Some((first, len)) if start + PAGE_BYTES == *first => {
                    *first = start;
                    *len += PAGE_BYTES;
                }
                _ => ranges.push((start, PAGE_BYTES)),
            }
        }
    }
    (ranges, true)
}
