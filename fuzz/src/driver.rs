//! A driver that keeps no rules: guest memory of three pieces, and the rings of its queues, written as the input says.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_vmm::devices::virtio::{ActiveQueue, Interrupt};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::Input;

/// Where buffers begin; the rings of up to three queues are before; those of a fourth are among them.
const BUFFERS: u64 = 0x6000;
/// Two pieces meet here.
const SEAM: u64 = 0x8000;
/// Behind this there is a hole, and after it the last piece.
const HOLE: u64 = 0x1_0000;
const LAST_PIECE: u64 = 0x2_0000;
const LAST_PIECE_BYTES: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes that the rings of one queue take.
const RINGS_BYTES: u64 = 0x2000;
/// How many different steps [`Rings::step`] knows.
pub const RING_STEPS: u8 = 7;

/// Does nothing.
pub struct Silent;

impl Interrupt for Silent {
    fn signal_queue(&self) {}
    fn signal_config(&self) {}
}

pub fn silent() -> Arc<dyn Interrupt> {
    Arc::new(Silent)
}

/// The memory of a guest, new for each input, so that what is kept of an old one is found unmapped.
pub struct Guest {
    pub memory: GuestMemoryMmap,
}

impl Default for Guest {
    fn default() -> Self {
        let pieces = [
            (GuestAddress(0), SEAM as usize),
            (GuestAddress(SEAM), (HOLE - SEAM) as usize),
            (GuestAddress(LAST_PIECE), LAST_PIECE_BYTES as usize),
        ];
        let memory = GuestMemoryMmap::from_ranges(&pieces).expect("a little memory can be mapped");
        Self { memory }
    }
}

impl Guest {
    /// Writes as far as there is memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// An address: mostly of a buffer, at times in the rings, across a seam or anywhere.
    pub fn address(input: &mut Input) -> u64 {
        match input.u8() % 8 {
            0..=3 => BUFFERS + u64::from(input.u16()) % (HOLE - BUFFERS),
            4 => LAST_PIECE + u64::from(input.u16()) % LAST_PIECE_BYTES,
            5 => input.u16().into(),
            6 => SEAM - u64::from(input.u8()),
            _ => input.u64(),
        }
    }

    pub fn length(input: &mut Input) -> u32 {
        match input.u8() % 4 {
            0 => input.u8().into(),
            1 => input.u16().into(),
            2 => u32::from(input.u8()) * 512,
            _ => input.u32(),
        }
    }
}

/// The rings of one queue.
pub struct Rings {
    base: u64,
    size: u16,
    /// The descriptor that the next well-formed chain begins with.
    descriptor: u16,
    available: u16,
}

impl Rings {
    /// Rings in the place of queue `index`, of 2 to 256 entries.
    pub fn new(index: u64, input: &mut Input) -> Self {
        Self::sized(index, 2 << (input.u8() % 8))
    }

    pub fn sized(index: u64, size: u16) -> Self {
        Self {
            base: index * RINGS_BYTES,
            size,
            descriptor: 0,
            available: 0,
        }
    }

    /// Addresses of the descriptors, the available ring and the used ring.
    pub fn areas(&self) -> [u64; 3] {
        [self.base, self.base + 0x1000, self.base + 0x1400]
    }

    /// The device's side.
    pub fn queue(&self, guest: &Guest, event_idx: bool) -> Queue {
        let [descriptors, available, used] = self.areas().map(|area| Some(area as u32));
        let mut queue = Queue::new(256).expect("256 is a power of two");
        queue.set_size(self.size);
        queue.set_desc_table_address(descriptors, Some(0));
        queue.set_avail_ring_address(available, Some(0));
        queue.set_used_ring_address(used, Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&guest.memory));
        queue
    }

    pub fn active(&self, guest: &Guest, event_idx: bool) -> ActiveQueue {
        ActiveQueue {
            queue: self.queue(guest, event_idx),
            kick: EventFd::new(libc::EFD_NONBLOCK).expect("an event can be made"),
        }
    }

    /// One step of a driver, sound or not; `step` is below [`RING_STEPS`].
    pub fn step(&mut self, step: u8, guest: &Guest, input: &mut Input) {
        match step {
            0 => {
                let content = input.some_bytes();
                let buffers = buffers(input);
                self.offer(guest, content, &buffers);
            }
            1 => {
                let index = input.u8().into();
                let (address, length) = (Guest::address(input), Guest::length(input));
                let (flags, next) = (input.u8().into(), input.u8().into());
                describe(guest, self.base, index, (address, length, flags, next));
            }
            2 => self.offer_head(guest, input.number() as u16),
            3 => guest.write(Guest::address(input), input.some_bytes()),
            4 => self.set_available(guest, input.u16()),
            5 => {
                let table = Guest::address(input);
                let buffers = buffers(input);
                link(guest, table, 0, u16::MAX, &buffers);
                let length = match input.u8() {
                    0 => input.u32(),
                    _ => 16 * buffers.len() as u32,
                };
                let head = self.take(1);
                describe(guest, self.base, head, (table, length, INDIRECT, 0));
                self.offer_head(guest, head);
            }
            // Whether the driver wants interrupts: the flags, and the used event.
            _ => {
                let available = self.areas()[1];
                guest.write(available, &input.u16().to_le_bytes());
                let event = available + 4 + 2 * u64::from(self.size);
                guest.write(event, &input.u16().to_le_bytes());
            }
        }
    }

    /// Offers a chain of buffers whose first ones hold `content`.
    pub fn offer(&mut self, guest: &Guest, content: &[u8], buffers: &[(u64, u32, bool)]) {
        let mut left = content;
        for &(address, length, _) in buffers {
            let (now, later) = left.split_at(left.len().min(length as usize));
            guest.write(address, now);
            left = later;
        }
        let head = self.take(buffers.len());
        link(guest, self.base, head, self.size, buffers);
        self.offer_head(guest, head);
    }

    fn take(&mut self, count: usize) -> u16 {
        let first = self.descriptor;
        self.descriptor = (first + count as u16) % self.size;
        first
    }

    fn offer_head(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.available % self.size);
        guest.write(self.areas()[1] + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available(guest, self.available.wrapping_add(1));
    }

    fn set_available(&mut self, guest: &Guest, index: u16) {
        self.available = index;
        let at = GuestAddress(self.areas()[1] + 2);
        let _ = guest.memory.store(index.to_le(), at, Ordering::Release);
    }
}

/// Up to eight buffers: address, length, and whether the device may write.
fn buffers(input: &mut Input) -> Vec<(u64, u32, bool)> {
    let count = input.u8() % 8 + 1;
    (0..count)
        .map(|_| {
            let writable = input.flag();
            (Guest::address(input), Guest::length(input), writable)
        })
        .collect()
}

/// Writes a chain of descriptors, one after the other in a table of `size`.
fn link(guest: &Guest, table: u64, head: u16, size: u16, buffers: &[(u64, u32, bool)]) {
    for (position, &(address, length, writable)) in (0u16..).zip(buffers) {
        let last = usize::from(position) + 1 == buffers.len();
        let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
        let at = |position: u16| (head + position) % size;
        let descriptor = (address, length, flags, at(position + 1));
        describe(guest, table, at(position), descriptor);
    }
}

fn describe(guest: &Guest, table: u64, index: u16, (address, length, flags, next): (u64, u32, u16, u16)) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&length.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    guest.write(table.wrapping_add(16 * u64::from(index)), &raw);
}
