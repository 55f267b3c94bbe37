//! The driver's side of a virtqueue, for tests. It keeps to the notification rules (virtio 1.3, 2.7.7 and 2.7.10), so
//! a device that gets them wrong makes its tests hang.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::{ActiveQueue, Interrupt, QueuePosition};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const MEMORY_BYTES: usize = 32 << 20;

pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()
}

/// Counts interrupts and wakes whoever waits for one.
#[derive(Default)]
pub(crate) struct TestInterrupt {
    count: Mutex<u64>,
    raised: Condvar,
    failed: AtomicBool,
}

impl TestInterrupt {
    pub(crate) fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }

    /// Whether the device said that it needs a reset.
    pub(crate) fn device_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Waits until the device has said so; panics after ten seconds.
    pub(crate) fn wait_until_failed(&self) {
        let guard = self.count.lock().unwrap();
        let (_guard, timeout) = self
            .raised
            .wait_timeout_while(guard, Duration::from_secs(10), |_| !self.device_failed())
            .unwrap();
        assert!(!timeout.timed_out(), "the device goes on");
    }

    /// Waits until more than `seen` interrupts were raised; panics after ten seconds.
    pub(crate) fn wait(&self, seen: u64) {
        let guard = self.count.lock().unwrap();
        let (_guard, timeout) = self
            .raised
            .wait_timeout_while(guard, Duration::from_secs(10), |count| *count <= seen)
            .unwrap();
        assert!(!timeout.timed_out(), "no interrupt");
    }
}

impl Interrupt for TestInterrupt {
    fn signal_queue(&self) {
        *self.count.lock().unwrap() += 1;
        self.raised.notify_all();
    }

    fn signal_config(&self) {}

    fn fail_device(&self) {
        // Whoever waits has looked before, or is told.
        let _guard = self.count.lock().unwrap();
        self.failed.store(true, Ordering::SeqCst);
        self.raised.notify_all();
    }
}

/// One descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    offered: u16,
    used: u16,
    kick: EventFd,
    free: VecDeque<u16>,
    chains: Vec<Vec<u16>>,
}

fn queue(memory: &GuestMemoryMmap, base: u64, size: u16) -> Queue {
    let mut queue = Queue::new(256).unwrap();
    queue.set_size(size);
    queue.set_desc_table_address(Some(base as u32), Some(0));
    queue.set_avail_ring_address(Some(base as u32 + 0x1000), Some(0));
    queue.set_used_ring_address(Some(base as u32 + 0x2000), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    queue
}

impl Driver {
    /// A queue of `size` (at most 256) entries, its rings in the 16 KiB at `base`, `VIRTIO_F_EVENT_IDX` on.
    pub(crate) fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> (Self, ActiveQueue) {
        assert!(size <= 256);
        let queue = queue(memory, base, size);
        memory.write_slice(&[0; 0x4000], GuestAddress(base)).unwrap();
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let active = ActiveQueue {
            queue,
            kick: kick.try_clone().unwrap(),
        };
        let driver = Self {
            memory: memory.clone(),
            base,
            size,
            offered: 0,
            used: 0,
            kick,
            free: (0..size).collect(),
            chains: vec![Vec::new(); usize::from(size)],
        };
        (driver, active)
    }

    /// The queue for a device that goes on from `position`.
    pub(crate) fn continued(&self, position: QueuePosition) -> ActiveQueue {
        let mut queue = queue(&self.memory, self.base, self.size);
        queue.set_next_avail(position.next_avail);
        queue.set_next_used(position.next_used);
        let kick = self.kick.try_clone().unwrap();
        kick.write(1).unwrap();
        ActiveQueue { queue, kick }
    }

    /// Descriptors that no offered chain uses.
    pub(crate) fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Writes one descriptor as it is, well formed or not.
    pub(crate) fn describe(&self, index: u16, (address, len, flags, next): Descriptor) {
        self.describe_at(GuestAddress(self.base), index, (address, len, flags, next));
    }

    /// Writes one descriptor of a table elsewhere.
    pub(crate) fn describe_at(
        &self,
        table: GuestAddress,
        index: u16,
        (address, len, flags, next): Descriptor,
    ) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table.0 + 16 * u64::from(index));
        self.memory.write_slice(&raw, at).unwrap();
    }

    /// Puts a chain head on the available ring, and kicks if the device asked for it.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        let ring = GuestAddress(self.base + 0x1000 + 4 + 2 * slot);
        self.memory.write_obj(head.to_le(), ring).unwrap();
        let old = self.offered;
        self.set_available(old.wrapping_add(1));
        fence(Ordering::SeqCst);
        let event = GuestAddress(self.base + 0x2000 + 4 + 8 * u64::from(self.size));
        let event = u16::from_le(self.memory.load(event, Ordering::Relaxed).unwrap());
        if self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(old) {
            self.kick();
        }
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Sets the available index, whatever the ring holds.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.offered = index;
        self.memory
            .store(
                index.to_le(),
                GuestAddress(self.base + 0x1000 + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// Offers a chain of buffers, all of one direction.
    pub(crate) fn offer(&mut self, buffers: &[(u64, u32)], writable: bool) -> u16 {
        let indexes: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (position, (&index, &(address, len))) in indexes.iter().zip(buffers).enumerate() {
            let next = indexes.get(position + 1).copied();
            let flags = if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.describe(index, (address, len, flags, next.unwrap_or(0)));
        }
        let head = indexes[0];
        self.chains[usize::from(head)] = indexes;
        self.offer_head(head);
        head
    }

    /// The next used chain, its descriptors free again. Asks for an interrupt for whatever comes after it.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index = || -> u16 {
            let at = GuestAddress(self.base + 0x2000 + 2);
            u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
        };
        if index() == self.used {
            let event = GuestAddress(self.base + 0x1000 + 4 + 2 * u64::from(self.size));
            self.memory
                .store(self.used.to_le(), event, Ordering::Relaxed)
                .unwrap();
            fence(Ordering::SeqCst);
            if index() == self.used {
                return None;
            }
        }
        let slot = u64::from(self.used % self.size);
        let element: u64 = self
            .memory
            .read_obj(GuestAddress(self.base + 0x2000 + 4 + 8 * slot))
            .unwrap();
        self.used = self.used.wrapping_add(1);
        let (head, len) = (element as u16, (element >> 32) as u32);
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(chain);
        Some((head, len))
    }

    /// The next used chain, waiting for an interrupt where there is none yet.
    pub(crate) fn wait_used(&mut self, interrupt: &Arc<TestInterrupt>) -> (u16, u32) {
        loop {
            let seen = interrupt.count();
            if let Some(used) = self.take_used() {
                return used;
            }
            interrupt.wait(seen);
        }
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
