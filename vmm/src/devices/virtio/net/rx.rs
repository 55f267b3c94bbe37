//! The receive queue: frames from the tap to the driver.
//!
//! Buffers that the driver has offered are parsed once and kept until used, so that a frame costs one `readv` into
//! guest memory. The tap cannot say how long its next frame is; while the buffers at hand might be too few for the
//! longest, the device's own buffer stands behind them, and what of a frame lands there waits for more of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::buffers::{Direction, MAX_DESCRIPTORS, append_chain, copy_into};
use super::header::{HEADER_BYTES, NUM_BUFFERS_OFFSET};
use super::{BYTES_PER_RUN, FRAMES_PER_RUN, MAX_FRAME_BYTES, Progress, tap};
use crate::devices::virtio::QueuePosition;
use crate::devices::virtio::throttle::Throttle;
use crate::metrics::{Counters, count};

/// The longest frame with its header.
const MAX_READ_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;
/// `readv` takes 1024 iovecs; one more chain must always fit.
const MAX_IOVECS: usize = 1024 - MAX_DESCRIPTORS;

/// A chain of the driver that waits to be filled; its iovecs are the next in [`Receive::iovecs`].
struct Offered {
    head: u16,
    iovecs: usize,
    len: usize,
}

/// What became of a frame whose end waits in the device's buffer.
enum Held {
    None,
    Waiting,
    Gone,
}

pub(super) struct Receive {
    queue: Queue,
    /// Keeps the memory behind `iovecs` mapped.
    memory: GuestMemoryMmap,
    counters: Arc<Counters>,
    throttle: Arc<Throttle>,
    /// Whether a frame may span several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    mergeable: bool,
    offered: VecDeque<Offered>,
    iovecs: Vec<libc::iovec>,
    /// Bytes that all offered chains hold.
    capacity: usize,
    /// The end of a frame whose start is in the first buffers that are offered.
    held: Box<[u8; MAX_READ_BYTES]>,
    /// How much of it there is; 0 for none.
    held_len: usize,
    /// How much of the frame is in those buffers.
    held_from: usize,
    /// Bytes of frames that the driver has got.
    received: usize,
    /// The used index when the driver was last considered for an interrupt.
    signalled: u16,
    /// Kept between frames to save its allocation.
    used: Vec<(u16, u32)>,
    /// Whether the tap may have a frame: set by its event, cleared when it is empty.
    tap_ready: bool,
}

impl Receive {
    pub(super) fn new(
        queue: Queue,
        memory: GuestMemoryMmap,
        features: u64,
        counters: Arc<Counters>,
        throttle: Arc<Throttle>,
    ) -> Self {
        let signalled = queue.next_used();
        Self {
            queue,
            memory,
            counters,
            throttle,
            mergeable: features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
            offered: VecDeque::new(),
            iovecs: Vec::new(),
            capacity: 0,
            held: Box::new([0; MAX_READ_BYTES]),
            held_len: 0,
            held_from: 0,
            received: 0,
            signalled,
            used: Vec::new(),
            tap_ready: true,
        }
    }

    /// Leaves the queue as if the chains that are still to be filled had never been looked at. A frame that waits for
    /// more of them is lost.
    pub(super) fn leave(mut self) -> QueuePosition {
        for _ in &self.offered {
            self.queue.go_to_previous_position();
        }
        QueuePosition::of(&self.queue)
    }

    /// The tap has a frame.
    pub(super) fn tap_is_ready(&mut self) {
        self.tap_ready = true;
    }

    /// Receives until the tap is empty, the driver has no buffers or the limits are reached, at most [`FRAMES_PER_RUN`]
    /// frames. An error is a broken ring.
    pub(super) fn run(&mut self, tap: &OwnedFd) -> Result<Progress, QueueError> {
        let mut progress = Progress {
            more: true,
            ..Progress::default()
        };
        let start = self.received;
        for _ in 0..FRAMES_PER_RUN {
            if !self.receive(tap)? {
                progress.more = false;
                break;
            }
            if self.received.wrapping_sub(start) >= BYTES_PER_RUN {
                break;
            }
        }
        progress.signal = self.needs_interrupt()?;
        Ok(progress)
    }

    /// One step. False when there is nothing to do until the tap, the driver or the throttle says so.
    fn receive(&mut self, tap: &OwnedFd) -> Result<bool, QueueError> {
        if self.held_len == 0 && !self.tap_ready {
            return Ok(false);
        }
        self.take_offered()?;
        match self.deliver_held()? {
            Held::None => {}
            Held::Gone => return Ok(true),
            Held::Waiting => return self.queue.enable_notification(&self.memory),
        }
        let Some(first) = self.offered.front() else {
            return self.queue.enable_notification(&self.memory);
        };
        // How long the next frame is, only reading it tells. It leaves a debt where it is longer than the limits allow.
        if !self.throttle.allows(1) {
            return Ok(false);
        }
        let (space, iovecs) = if self.mergeable {
            (self.capacity, self.iovecs.len())
        } else {
            (first.len, first.iovecs)
        };
        let read = if space >= MAX_READ_BYTES {
            // SAFETY: the iovecs are guest memory, which `self.memory` keeps mapped.
            unsafe { tap::read_frame(tap, self.iovecs.get(..iovecs).unwrap_or_default()) }
        } else {
            let own = libc::iovec {
                iov_base: self.held.as_mut_ptr().cast(),
                iov_len: MAX_READ_BYTES - space,
            };
            let mut all = Vec::with_capacity(iovecs + 1);
            all.extend_from_slice(self.iovecs.get(..iovecs).unwrap_or_default());
            all.push(own);
            // SAFETY: as above, and the last iovec is the device's own buffer, exclusively borrowed.
            unsafe { tap::read_frame(tap, &all) }
        };
        if let Ok(len) = read {
            self.throttle.charge(1, len.saturating_sub(HEADER_BYTES) as u64);
        }
        match read {
            Ok(len) if len <= HEADER_BYTES => {}
            Ok(len) if len <= space => self.complete(len)?,
            Ok(len) => (self.held_from, self.held_len) = (space, len - space),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Empty, or gone for good; either way only an event can change it.
            Err(_) => self.tap_ready = false,
        }
        Ok(true)
    }

    /// Parses new chains of the driver until they hold the longest frame.
    fn take_offered(&mut self) -> Result<(), QueueError> {
        let mut refused = 0;
        while self.capacity < MAX_READ_BYTES && self.iovecs.len() < MAX_IOVECS && refused < self.queue.size()
        {
            let Some(chain) = self.queue.iter(&self.memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let before = self.iovecs.len();
            match append_chain(
                &self.memory,
                chain,
                Direction::DeviceToDriver,
                usize::MAX,
                &mut self.iovecs,
            ) {
                Ok(len) if len >= HEADER_BYTES => {
                    self.capacity = self.capacity.saturating_add(len);
                    self.offered.push_back(Offered {
                        head,
                        iovecs: self.iovecs.len() - before,
                        len,
                    });
                }
                _ => {
                    self.iovecs.truncate(before);
                    refused += 1;
                    count(&self.counters.device_errors, 1);
                    self.queue.add_used(&self.memory, head, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Copies the end of a frame from the device's buffer to the driver, if there is one and it fits.
    fn deliver_held(&mut self) -> Result<Held, QueueError> {
        if self.held_len == 0 {
            return Ok(Held::None);
        }
        let space = if self.mergeable {
            self.capacity
        } else {
            self.offered.front().map_or(0, |o| o.len)
        };
        if space < self.held_from + self.held_len {
            // More buffers help only a mergeable driver that has not offered all it can.
            let all_offered = self.offered.len() >= usize::from(self.queue.size());
            let no_use = !self.mergeable && !self.offered.is_empty();
            if all_offered || no_use || self.iovecs.len() >= MAX_IOVECS {
                self.held_len = 0;
                count(&self.counters.net_rx_dropped, 1);
                return Ok(Held::Gone);
            }
            return Ok(Held::Waiting);
        }
        let len = std::mem::take(&mut self.held_len);
        let end = self.held.get(..len).unwrap_or_default();
        // SAFETY: the iovecs are guest memory, which `self.memory` keeps mapped.
        unsafe { copy_into(&self.iovecs, self.held_from, end) };
        self.complete(self.held_from + len)?;
        Ok(Held::Gone)
    }

    /// Gives the driver the chains that a frame of `len` bytes (header included) has filled.
    fn complete(&mut self, len: usize) -> Result<(), QueueError> {
        let mut used = std::mem::take(&mut self.used);
        used.clear();
        let mut iovecs = 0;
        let mut left = len;
        while left > 0 {
            let Some(chain) = self.offered.pop_front() else {
                break;
            };
            let filled = left.min(chain.len);
            left -= filled;
            iovecs += chain.iovecs;
            self.capacity = self.capacity.saturating_sub(chain.len);
            used.push((chain.head, filled as u32));
        }
        // At most `MAX_IOVECS` chains are ever offered.
        let num_buffers = (used.len() as u16).to_le_bytes();
        // SAFETY: the iovecs are guest memory, which `self.memory` keeps mapped. The first chain holds the header.
        unsafe { copy_into(&self.iovecs, NUM_BUFFERS_OFFSET, &num_buffers) };
        self.iovecs.drain(..iovecs.min(self.iovecs.len()));
        self.received = self.received.wrapping_add(len);
        count(&self.counters.net_rx_packets, 1);
        count(&self.counters.net_rx_bytes, (len - HEADER_BYTES) as u64);
        let published = self.publish(&used);
        self.used = used;
        published
    }

    /// Moves the used index past all chains of a frame at once: a driver that sees the first expects the others.
    fn publish(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(last_head, last_len), earlier)) = used.split_last() else {
            return Ok(());
        };
        let size = self.queue.size();
        for &(head, len) in earlier {
            if head >= size {
                return Err(QueueError::InvalidDescriptorIndex);
            }
            let next_used = self.queue.next_used();
            let address = self
                .queue
                .used_ring()
                .checked_add(4 + 8 * u64::from(next_used % size))
                .ok_or(QueueError::AddressOverflow)?;
            let element = u64::from(head) | u64::from(len) << 32;
            self.memory
                .write_obj(element.to_le(), GuestAddress(address))
                .map_err(QueueError::GuestMemory)?;
            self.queue.set_next_used(next_used.wrapping_add(1));
        }
        self.queue.add_used(&self.memory, last_head, last_len)
    }

    /// Whether the driver wants to hear of the chains used since the last call (virtio 1.3, 2.7.7). The queue's own
    /// answer does not count the chains that [`Self::publish`] adds before the last.
    fn needs_interrupt(&mut self) -> Result<bool, QueueError> {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let load = |offset: u64| -> Result<u16, QueueError> {
            let address = self
                .queue
                .avail_ring()
                .checked_add(offset)
                .ok_or(QueueError::AddressOverflow)?;
            self.memory
                .load::<u16>(GuestAddress(address), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(QueueError::GuestMemory)
        };
        if self.queue.event_idx_enabled() {
            let event = load(4 + 2 * u64::from(self.queue.size()))?;
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }
}
