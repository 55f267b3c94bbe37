//! The transmit queue: frames from the driver to the tap, written straight from guest memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::buffers::{ChainBuffers, Direction};
use super::header::{self, HEADER_BYTES};
use super::{FRAMES_PER_RUN, MAX_FRAME_BYTES, Progress, tap};
use crate::devices::virtio::QueuePosition;
use crate::devices::virtio::throttle::Throttle;
use crate::metrics::{Counters, count};

/// Destination, source and type: no frame is shorter.
const ETHERNET_HEADER_BYTES: usize = 14;

pub(super) struct Transmit {
    queue: Queue,
    memory: GuestMemoryMmap,
    features: u64,
    counters: Arc<Counters>,
    throttle: Arc<Throttle>,
    /// Kept between frames to save its allocation; empty in between, so it never outlives what it points to.
    iovecs: Vec<libc::iovec>,
}

impl Transmit {
    pub(super) fn new(
        queue: Queue,
        memory: GuestMemoryMmap,
        features: u64,
        counters: Arc<Counters>,
        throttle: Arc<Throttle>,
    ) -> Self {
        Self {
            queue,
            memory,
            features,
            counters,
            throttle,
            iovecs: Vec::new(),
        }
    }

    pub(super) fn position(&self) -> QueuePosition {
        QueuePosition::of(&self.queue)
    }

    /// Sends what the driver has offered, as far as the limits go, at most [`FRAMES_PER_RUN`] frames. An error is a broken
    /// ring.
    pub(super) fn run(&mut self, tap: &OwnedFd) -> Result<Progress, QueueError> {
        self.queue.disable_notification(&self.memory)?;
        let mut progress = Progress::default();
        for _ in 0..FRAMES_PER_RUN {
            let Some(chain) = self.queue.iter(&self.memory)?.next() else {
                if self.queue.enable_notification(&self.memory)? {
                    continue;
                }
                progress.signal |= self.queue.needs_notification(&self.memory)?;
                return Ok(progress);
            };
            let head = chain.head_index();
            let buffers = ChainBuffers::new(
                &self.memory,
                chain,
                Direction::DriverToDevice,
                HEADER_BYTES + MAX_FRAME_BYTES,
            );
            let frame_bytes = buffers
                .as_ref()
                .map_or(0, |buffers| buffers.len().saturating_sub(HEADER_BYTES));
            if !self.throttle.allows(frame_bytes as u64) {
                // The throttle's timer makes the next run, not a kick.
                self.queue.go_to_previous_position();
                progress.signal |= self.queue.needs_notification(&self.memory)?;
                return Ok(progress);
            }
            let sent = match buffers {
                Ok(buffers) => send(tap, buffers, self.features, &self.counters, &mut self.iovecs),
                Err(_) => {
                    count(&self.counters.device_errors, 1);
                    0
                }
            };
            self.throttle.charge(1, sent);
            self.queue.add_used(&self.memory, head, 0)?;
        }
        progress.signal |= self.queue.needs_notification(&self.memory)?;
        progress.more = true;
        Ok(progress)
    }
}

/// Sends one frame; returns how many bytes have left, without the header. A frame that the tap does not take is lost, as
/// on any wire.
fn send(
    tap: &OwnedFd,
    buffers: ChainBuffers<'_>,
    features: u64,
    counters: &Counters,
    iovecs: &mut Vec<libc::iovec>,
) -> u64 {
    if buffers.len() < HEADER_BYTES + ETHERNET_HEADER_BYTES {
        count(&counters.device_errors, 1);
        return 0;
    }
    let (front, frame) = buffers.split_at(HEADER_BYTES);
    let mut header = [0; HEADER_BYTES];
    front.read(&mut header);
    // The header is checked and sent from this copy, so the driver cannot change it in between.
    let Some(mut header) = header::accepted(header, features) else {
        count(&counters.device_errors, 1);
        return 0;
    };
    iovecs.clear();
    iovecs.push(libc::iovec {
        iov_base: header.as_mut_ptr().cast(),
        iov_len: HEADER_BYTES,
    });
    iovecs.extend_from_slice(frame.iovecs());
    // SAFETY: the first iovec is the local header, the others are guest memory borrowed by `frame`; both outlive
    // the call.
    let sent = unsafe { tap::write_frame(tap, iovecs) };
    iovecs.clear();
    match sent {
        Ok(_) => {
            count(&counters.net_tx_packets, 1);
            count(&counters.net_tx_bytes, frame.len() as u64);
            frame.len() as u64
        }
        // The kernel refuses what contradicts itself (offsets outside the frame, lengths).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            count(&counters.device_errors, 1);
            0
        }
        // The interface is down, gone or full.
        Err(_) => 0,
    }
}
