//! The thread of a vsock device: moves packets between the queues and the table of connections.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::handle::Shared;
use super::packet::{HEADER_BYTES, Header, MAX_DATA_BYTES, Room};
use super::table::{Key, Table};
use crate::devices::virtio::net::buffers::{ChainBuffers, Direction};
use crate::devices::virtio::worker::Stop;
use crate::devices::virtio::{Interrupt, QueuePosition};
use crate::metrics::{Counters, count};

// Tokens with the host port that no connection has.
const OWN: u64 = 0xffff_ffff << 32;
const STOP: u64 = OWN;
const WAKE: u64 = OWN | 1;
const RECEIVE_KICK: u64 = OWN | 2;
const TRANSMIT_KICK: u64 = OWN | 3;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3, 5.10.6.7): all connections are gone, and the context id may be another.
const TRANSPORT_RESET: u32 = 0;
/// Packets per queue and run, after which the other queue has its turn and the driver its interrupt.
const PACKETS_PER_RUN: usize = 64;
/// Bytes to the guest, likewise: so that it works on them while the next are read.
const BYTES_PER_RUN: usize = MAX_DATA_BYTES;

/// Packets that one read of a socket may fill: with the buffers of Linux's driver, of 4 KiB, as much as one packet may hold.
const MAX_BURST: usize = 16;

/// What wakes the thread, besides the sockets of connections.
pub(super) struct Events {
    pub(super) wake: EventFd,
    pub(super) receive_kick: EventFd,
    pub(super) transmit_kick: EventFd,
}

impl Events {
    pub(super) fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        for (event, token) in [
            (&self.wake, WAKE),
            (&self.receive_kick, RECEIVE_KICK),
            (&self.transmit_kick, TRANSMIT_KICK),
        ] {
            epoll.ctl(
                ControlOperation::Add,
                event.as_raw_fd(),
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        Ok(())
    }
}

/// The queues, each until its ring turns out to be broken.
pub(super) struct Service {
    pub(super) receive: Option<Queue>,
    pub(super) transmit: Option<Queue>,
    pub(super) event: Queue,
    /// How many packets the next read of a socket may fill: one, and twice as many each time that all were filled.
    pub(super) burst: usize,
    /// The guest has connections from before that lead nowhere, and does not know it.
    pub(super) restored: bool,
    pub(super) memory: GuestMemoryMmap,
    pub(super) table: Table,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
}

/// What a run of a queue leaves to do.
#[derive(Default)]
struct Progress {
    more: bool,
    signal: bool,
}

impl Service {
    /// Serves the device until told to stop, and returns how far it came. A broken queue is left alone from then on, and
    /// the driver is told.
    pub(super) fn run(
        mut self,
        stop: &Stop,
        epoll: &Epoll,
        events: &Events,
        interrupt: &dyn Interrupt,
    ) -> Vec<QueuePosition> {
        let failed = || {
            interrupt.fail_device();
            Vec::new()
        };
        let stop_event = EpollEvent::new(EventSet::IN, STOP);
        if epoll
            .ctl(ControlOperation::Add, stop.event().as_raw_fd(), stop_event)
            .is_err()
        {
            return failed();
        }
        if self.restored {
            match self.reset_transport() {
                Ok(true) => interrupt.signal_queue(),
                Ok(false) => {}
                Err(_) => return failed(),
            }
        }
        let mut ready = vec![EpollEvent::default(); 64];
        // There may be work from before the thread started.
        let (mut transmit_more, mut receive_more) = (true, false);
        loop {
            let timeout = if transmit_more || receive_more {
                0
            } else {
                self.milliseconds_to_deadline()
            };
            let ready_count = match epoll.wait(timeout, &mut ready) {
                Ok(ready_count) => ready_count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return failed(),
            };
            for event in ready.iter().take(ready_count) {
                match event.data() {
                    STOP => return self.positions(),
                    WAKE => {
                        let _ = events.wake.read();
                        self.serve_handles();
                    }
                    RECEIVE_KICK => {
                        let _ = events.receive_kick.read();
                    }
                    TRANSMIT_KICK => {
                        let _ = events.transmit_kick.read();
                        transmit_more = true;
                    }
                    token => {
                        if let Some(key) = Key::from_token(token) {
                            self.table
                                .on_socket(key, EventSet::from_bits_truncate(event.events()));
                        }
                    }
                }
            }
            self.table.expire(Instant::now());
            let mut signal = false;
            if std::mem::take(&mut transmit_more) {
                let result = self.run_transmit();
                transmit_more = self.settle(result, |service| &mut service.transmit, &mut signal, interrupt);
            }
            let result = self.run_receive();
            receive_more = self.settle(result, |service| &mut service.receive, &mut signal, interrupt);
            if signal {
                interrupt.signal_queue();
            }
        }
    }

    fn positions(&self) -> Vec<QueuePosition> {
        match (&self.receive, &self.transmit) {
            (Some(receive), Some(transmit)) => [receive, transmit, &self.event].map(QueuePosition::of).into(),
            _ => Vec::new(),
        }
    }

    /// Tells the guest that its connections are gone. Returns whether it wants to be interrupted for it.
    fn reset_transport(&mut self) -> Result<bool, QueueError> {
        let Some(chain) = self.event.iter(&self.memory)?.next() else {
            // A driver that offers no buffers does not want to know.
            return Ok(false);
        };
        let head = chain.head_index();
        let buffers = ChainBuffers::new(&self.memory, chain, Direction::DeviceToDriver, usize::MAX);
        let event = TRANSPORT_RESET.to_le_bytes();
        let written = match buffers {
            Ok(buffers) if buffers.len() >= event.len() => {
                buffers.write(&event);
                event.len()
            }
            _ => 0,
        };
        self.event.add_used(&self.memory, head, written as u32)?;
        self.event.needs_notification(&self.memory)
    }

    fn milliseconds_to_deadline(&self) -> i32 {
        let Some(deadline) = self.table.next_deadline() else {
            return -1;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // One more than the rounded-down time, so as not to wake just before it.
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
    }

    fn settle(
        &mut self,
        result: Result<Progress, QueueError>,
        queue: impl Fn(&mut Self) -> &mut Option<Queue>,
        signal: &mut bool,
        interrupt: &dyn Interrupt,
    ) -> bool {
        match result {
            Ok(progress) => {
                *signal |= progress.signal;
                progress.more
            }
            Err(_) => {
                *queue(self) = None;
                count(&self.counters.device_errors, 1);
                interrupt.fail_device();
                false
            }
        }
    }

    fn serve_handles(&mut self) {
        if let Some(listener) = self.shared.listener() {
            self.table.offer_waiting(&listener);
        }
        let now = Instant::now();
        for (port, caller) in self.shared.take_connects() {
            self.table.connect(port, caller, now);
        }
    }

    /// Packets from the guest.
    fn run_transmit(&mut self) -> Result<Progress, QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok(Progress::default());
        };
        let listener = self.shared.listener();
        let listener = listener.as_deref();
        queue.disable_notification(&self.memory)?;
        let mut used = false;
        for _ in 0..PACKETS_PER_RUN {
            let Some(chain) = queue.iter(&self.memory)?.next() else {
                if queue.enable_notification(&self.memory)? {
                    continue;
                }
                let signal = used && queue.needs_notification(&self.memory)?;
                return Ok(Progress { more: false, signal });
            };
            let head = chain.head_index();
            let limit = HEADER_BYTES + MAX_DATA_BYTES;
            match ChainBuffers::new(&self.memory, chain, Direction::DriverToDevice, limit) {
                Ok(buffers) if buffers.len() >= HEADER_BYTES => {
                    let (front, data) = buffers.split_at(HEADER_BYTES);
                    // Read once: the guest can change it at any time.
                    let mut header = [0; HEADER_BYTES];
                    front.read(&mut header);
                    self.table.on_packet(&Header::decode(&header), data, listener);
                }
                _ => count(&self.counters.device_errors, 1),
            }
            queue.add_used(&self.memory, head, 0)?;
            used = true;
        }
        Ok(Progress {
            more: true,
            signal: queue.needs_notification(&self.memory)?,
        })
    }

    /// Packets to the guest.
    fn run_receive(&mut self) -> Result<Progress, QueueError> {
        let Some(queue) = &mut self.receive else {
            return Ok(Progress::default());
        };
        let now = Instant::now();
        let mut used = false;
        let mut more = false;
        // Chains that were taken and are still to be filled.
        let (mut heads, mut rooms) = (Vec::new(), Vec::new());
        let mut steps = 0;
        let mut bytes = 0;
        while self.table.has_outgoing() {
            if bytes >= BYTES_PER_RUN {
                more = true;
                break;
            }
            while rooms.len() < self.burst && steps < PACKETS_PER_RUN {
                steps += 1;
                let Some(chain) = queue.iter(&self.memory)?.next() else {
                    if rooms.is_empty() && queue.enable_notification(&self.memory)? {
                        continue;
                    }
                    break;
                };
                let head = chain.head_index();
                let buffers =
                    ChainBuffers::new(&self.memory, chain, Direction::DeviceToDriver, usize::MAX).ok();
                if let Some(room) = buffers.and_then(Room::new) {
                    heads.push(head);
                    rooms.push(room);
                } else if !rooms.is_empty() {
                    // Its turn comes when those before it are filled, or were given back.
                    queue.go_to_previous_position();
                    break;
                } else {
                    count(&self.counters.device_errors, 1);
                    queue.add_used(&self.memory, head, 0)?;
                    used = true;
                }
            }
            if rooms.is_empty() {
                more = steps >= PACKETS_PER_RUN;
                break;
            }
            let lengths = self.table.next_outgoing(&rooms, now);
            let filled = lengths.len();
            self.burst = if filled == rooms.len() {
                (2 * self.burst).min(MAX_BURST)
            } else {
                1
            };
            if filled == 0 {
                break;
            }
            rooms.drain(..filled);
            for (head, length) in heads.drain(..filled).zip(lengths) {
                queue.add_used(&self.memory, head, length)?;
                bytes += length as usize;
            }
            used = true;
        }
        for _ in rooms {
            queue.go_to_previous_position();
        }
        Ok(Progress {
            more,
            signal: used && queue.needs_notification(&self.memory)?,
        })
    }
}
