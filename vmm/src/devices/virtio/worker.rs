//! A device's own thread, and the loop of a device that serves its queues one request at a time.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::throttle::Throttle;
use super::{ActivateError, ActiveQueue, Interrupt, QueuePosition};
use crate::jail::{Jail, Thread};

/// Most requests that are served before the driver is told of them.
pub(super) const BATCH: usize = 32;

/// Tells a device thread to return.
pub struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            asked: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Cheap enough to look at between any two requests.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Readable from the moment on at which the thread was asked to return.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // The counter of an event that is written once cannot overflow.
        let _ = self.event.write(1);
    }

    /// Nobody has asked yet: for the next service.
    fn forget(&self) {
        self.asked.store(false, Ordering::Release);
        // It fails where nobody had asked.
        let _ = self.event.read();
    }
}

/// What a thread does from one activation of its device to the stop that ends it: returns how far it came in its queues.
type Service<T> = Box<dyn FnOnce(&Stop, &mut T) -> Vec<QueuePosition> + Send>;

/// A device's thread. It is there, and confined, before the guest runs, since a confined machine makes no threads; it
/// serves one activation of the device after the other. `T` is what the thread has made for itself before it was confined.
pub struct Worker<T = ()> {
    services: Option<mpsc::Sender<Service<T>>>,
    done: mpsc::Receiver<Vec<QueuePosition>>,
    stop: Arc<Stop>,
    serving: bool,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A thread for a test of the device, with no jail around it.
    #[cfg(test)]
    pub(crate) fn unconfined() -> Self {
        Self::new("device", Jail::NONE, Thread::Main).unwrap()
    }

    /// A thread for a test of the device, behind the filter of its kind.
    #[cfg(test)]
    pub(crate) fn confined(kind: Thread) -> Self {
        Self::new("device", Jail::FILTERS_ALONE, kind).unwrap()
    }

    /// Starts a thread that waits for its device's driver.
    pub fn new(name: &str, jail: Jail, kind: Thread) -> io::Result<Self> {
        Self::prepared(name, jail, kind, || ())
    }

    /// Has the thread run `service`, as [`Worker::serve_with`] does.
    pub fn serve(
        &mut self,
        service: impl FnOnce(&Stop) -> Vec<QueuePosition> + Send + 'static,
    ) -> Result<(), ActivateError> {
        self.serve_with(move |stop, ()| service(stop))
    }
}

impl<T: 'static> Worker<T> {
    /// Starts a thread that makes what its filter will not let it make later, then waits for its device's driver.
    pub fn prepared(
        name: &str,
        jail: Jail,
        kind: Thread,
        prepare: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::new()?);
        let (services, orders) = mpsc::channel::<Service<T>>();
        let (ended, done) = mpsc::channel();
        let seen_by_thread = stop.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut made = prepare();
            jail.confine_or_abort(kind);
            for service in orders {
                if ended.send(service(&seen_by_thread, &mut made)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            services: Some(services),
            done,
            stop,
            serving: false,
            thread: Some(thread),
        })
    }

    /// Has the thread run `service`, which must return when it is asked to stop. One at a time: a service that runs
    /// already is ended first.
    pub fn serve_with(
        &mut self,
        service: impl FnOnce(&Stop, &mut T) -> Vec<QueuePosition> + Send + 'static,
    ) -> Result<(), ActivateError> {
        self.stop();
        self.stop.forget();
        let gone = || ActivateError::Thread(io::ErrorKind::BrokenPipe.into());
        let services = self.services.as_ref().ok_or_else(gone)?;
        services.send(Box::new(service)).map_err(|_| gone())?;
        self.serving = true;
        Ok(())
    }
}

impl<T> Worker<T> {
    /// Asks the service to return, and waits until it has. Returns what it returned.
    pub fn stop(&mut self) -> Vec<QueuePosition> {
        if !std::mem::take(&mut self.serving) {
            return Vec::new();
        }
        self.stop.ask();
        // A thread that panicked has returned as well.
        self.done.recv().unwrap_or_default()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop();
        // The thread waits for its next service, and now there is none to come.
        self.services = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done, and so many bytes were written to its chain.
    Done(u32),
    /// The [`Throttle`] refused it. It is served when the throttle says so.
    Throttled,
}

/// Queues, and what is needed to serve them until the device stops.
pub struct QueueService {
    pub(super) queues: Vec<ActiveQueue>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    epoll: Epoll,
}

impl QueueService {
    pub fn new(
        queues: Vec<ActiveQueue>,
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, ActivateError> {
        let epoll = Epoll::new().map_err(ActivateError::Events)?;
        Ok(Self {
            queues,
            memory,
            interrupt,
            epoll,
        })
    }

    /// Serves the requests of each queue in order until `stop`, and returns how far it came. `serve` gets the number of the
    /// queue and a request, and asks `throttle` before it carries that out. A broken queue fails the device and ends the
    /// service.
    pub fn run(
        mut self,
        stop: &Stop,
        throttle: &Throttle,
        mut serve: impl FnMut(usize, &GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> Served,
    ) -> Vec<QueuePosition> {
        let watched = self.watch(stop, throttle, None);
        let served = watched.and_then(|()| {
            while self.wait(stop, throttle)? {
                self.drain(stop, &mut serve)?;
            }
            Ok(())
        });
        self.positions(served)
    }

    /// How far the queues were served, or that they are broken.
    pub(super) fn positions(&self, served: Result<(), QueueError>) -> Vec<QueuePosition> {
        if served.is_err() {
            self.interrupt.fail_device();
            return Vec::new();
        }
        let positions = self.queues.iter().map(|queue| QueuePosition::of(&queue.queue));
        positions.collect()
    }

    /// Has [`QueueService::wait`] wait for these, and for `other`.
    pub(super) fn watch(
        &self,
        stop: &Stop,
        throttle: &Throttle,
        other: Option<RawFd>,
    ) -> Result<(), QueueError> {
        let kicks = self.queues.iter().map(|queue| queue.kick.as_raw_fd());
        let events = [stop.event().as_raw_fd(), throttle.timer()];
        for fd in kicks.chain(events).chain(other) {
            let readable = EpollEvent::new(EventSet::IN, fd as u64);
            let added = self.epoll.ctl(ControlOperation::Add, fd, readable);
            added.map_err(QueueError::Wait)?;
        }
        Ok(())
    }

    /// Waits for a kick, for the throttle, or for what else is watched; false means stop.
    pub(super) fn wait(&self, stop: &Stop, throttle: &Throttle) -> Result<bool, QueueError> {
        let mut events = [EpollEvent::default(); 4];
        loop {
            match self.epoll.wait(-1, &mut events) {
                Ok(count) => {
                    let is_ready = |fd: RawFd| {
                        let mut ready = events.iter().take(count);
                        ready.any(|event| event.data() == fd as u64)
                    };
                    if is_ready(throttle.timer()) {
                        throttle.acknowledge();
                    }
                    for queue in &self.queues {
                        if is_ready(queue.kick.as_raw_fd()) {
                            // It is readable, and nobody else reads it.
                            let _ = queue.kick.read();
                        }
                    }
                    return Ok(!stop.asked());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(QueueError::Wait(error)),
            }
        }
    }

    /// Serves what is in the queues, as far as the limits go. Between requests the device can be stopped, however many there
    /// are and however dear they are.
    fn drain(
        &mut self,
        stop: &Stop,
        serve: &mut impl FnMut(usize, &GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> Served,
    ) -> Result<(), QueueError> {
        let Self {
            queues,
            memory,
            interrupt,
            ..
        } = self;
        for (index, queue) in queues.iter_mut().enumerate() {
            drain(&mut queue.queue, memory, &**interrupt, stop, |memory, chain| {
                serve(index, memory, chain)
            })?;
        }
        Ok(())
    }
}

/// Serves what is in one queue, until `stop`.
pub(super) fn drain(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    stop: &Stop,
    mut serve: impl FnMut(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> Served,
) -> Result<(), QueueError> {
    loop {
        queue.disable_notification(memory)?;
        let mut served = 0;
        let mut throttled = false;
        while served < BATCH && !stop.asked() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            match serve(memory, chain) {
                Served::Done(written) => queue.add_used(memory, head, written)?,
                Served::Throttled => {
                    queue.go_to_previous_position();
                    throttled = true;
                    break;
                }
            }
            served += 1;
        }
        if served > 0 && queue.needs_notification(memory)? {
            interrupt.signal_queue();
        }
        // What is left in the queue needs no kick: the timer wakes this thread.
        if throttled || stop.asked() {
            return Ok(());
        }
        if served < BATCH && !queue.enable_notification(memory)? {
            return Ok(());
        }
    }
}

/// Why a queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("the driver broke the queue: {0}")]
    Broken(#[from] virtio_queue::Error),
    #[error("cannot wait for the driver: {0}")]
    Wait(io::Error),
}

#[cfg(feature = "fuzzing")]
impl QueueService {
    /// Serves what is in the queue on this thread, and stops when `most` requests were served. False for a broken queue.
    pub(crate) fn serve_now(
        &mut self,
        most: usize,
        mut serve: impl FnMut(usize, &GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> Served,
    ) -> io::Result<bool> {
        let stop = Stop::new()?;
        let mut served = 0;
        let drained = self.drain(&stop, &mut |queue, memory, chain| {
            served += 1;
            if served >= most {
                stop.ask();
            }
            serve(queue, memory, chain)
        });
        Ok(drained.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::net::driver::{Driver, TestInterrupt, memory};

    #[test]
    fn a_device_that_is_to_stop_does_not_begin_another_request() {
        let memory = memory();
        let (mut driver, mut queue) = Driver::new(&memory, 0x1_0000, 16);
        for _ in 0..8 {
            driver.offer(&[(0x10_0000, 16)], false);
        }
        let (stop, interrupt) = (Stop::new().unwrap(), TestInterrupt::default());
        let mut served = 0;
        let drained = drain(&mut queue.queue, &memory, &interrupt, &stop, |_, _| {
            served += 1;
            stop.ask();
            Served::Done(0)
        });
        assert!(drained.is_ok());
        let position = QueuePosition::of(&queue.queue);
        assert_eq!((served, position.next_avail, position.next_used), (1, 1, 1));
        // The driver hears of what was served.
        assert_eq!(interrupt.count(), 1);
    }
}
