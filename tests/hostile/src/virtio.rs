//! A virtio device behind its registers (virtio 1.3, 4.2.2), and its queues, for whoever keeps to no rule of theirs.

use crate::machine::{DEVICES, DMA, fill, read, wait, write};

pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_SIZE_MAX: u64 = 0x034;
pub const QUEUE_SIZE: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC: u64 = 0x080;
pub const QUEUE_DRIVER: u64 = 0x090;
pub const QUEUE_DEVICE: u64 = 0x0a0;
pub const CONFIG: u64 = 0x100;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Feature bits.
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_BLK_F_RO`.
pub const READ_ONLY: u64 = 1 << 5;

const PAGE: u64 = 0x1000;
const MAGIC: u32 = 0x7472_6976;
/// The size of the queues of a driver that means no harm, and of most others here.
pub const SIZE: u32 = 16;
/// Rings of each queue have so much room.
const QUEUE_ROOM: u64 = 0x1_0000;
/// Where buffers are, after the rings.
pub const BUFFERS: u64 = 16 << 20;
/// Longer than any device takes for anything that it does at all, in cycles.
pub const PATIENCE: u64 = 60 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Net,
    Block,
    Entropy,
    Balloon,
    Vsock,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Entropy => "entropy",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
        }
    }

    fn of(device_id: u32) -> Option<Self> {
        Some(match device_id {
            1 => Self::Net,
            2 => Self::Block,
            4 => Self::Entropy,
            5 => Self::Balloon,
            19 => Self::Vsock,
            _ => return None,
        })
    }

    /// A queue that the device looks at as soon as it is kicked, whatever happens elsewhere.
    pub fn busy_queue(self) -> u32 {
        match self {
            Self::Net | Self::Vsock => 1,
            _ => 0,
        }
    }
}

pub struct Device {
    pub base: u64,
    pub kind: Kind,
    pub queues: u32,
}

impl Device {
    /// The device whose registers are at `base`.
    fn at(base: u64) -> Option<Self> {
        let kind = Kind::of(read(base + 8)).filter(|_| read::<u32>(base) == MAGIC)?;
        let mut device = Self {
            base,
            kind,
            queues: 0,
        };
        device.queues = (0..8)
            .take_while(|queue| {
                device.write(QUEUE_SEL, *queue);
                device.read(QUEUE_SIZE_MAX) != 0
            })
            .count() as u32;
        Some(device)
    }

    /// All devices.
    pub fn all() -> impl Iterator<Item = Self> {
        DEVICES.step_by(PAGE as usize).filter_map(Self::at)
    }

    pub fn read(&self, register: u64) -> u32 {
        read(self.base + register)
    }

    pub fn write(&self, register: u64, value: u32) {
        write(self.base + register, value);
    }

    /// The largest size that a queue may have.
    pub fn read_size_max(&self, queue: u32) -> u32 {
        self.write(QUEUE_SEL, queue);
        self.read(QUEUE_SIZE_MAX)
    }

    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    /// Returns when the device has stopped.
    pub fn reset(&self) {
        self.write(STATUS, 0);
    }

    pub fn features(&self) -> u64 {
        self.write(DEVICE_FEATURES_SEL, 0);
        let low = self.read(DEVICE_FEATURES);
        self.write(DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(DEVICE_FEATURES)) << 32
    }

    pub fn accept(&self, features: u64) {
        self.write(DRIVER_FEATURES_SEL, 0);
        self.write(DRIVER_FEATURES, features as u32);
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// From a reset to where queues are set up.
    pub fn negotiate(&self, features: u64) {
        self.reset();
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Without event indexes, with which a device need not look at a queue that it is told of.
    pub fn usual_features(&self) -> u64 {
        self.features() & !EVENT_IDX
    }

    fn write_address(&self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// Sets a queue up and says that it is ready.
    pub fn set_up(&self, queue: u32, rings: &Rings) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_READY, 0);
        self.write(QUEUE_SIZE, rings.size);
        self.write_address(QUEUE_DESC, rings.descriptors);
        self.write_address(QUEUE_DRIVER, rings.available);
        self.write_address(QUEUE_DEVICE, rings.used);
        self.write(QUEUE_READY, 1);
    }

    pub fn driver_ok(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// A device at work, as a driver that means no harm has it.
    pub fn start(&self, features: u64) {
        self.start_with(features, Rings::usual);
    }

    /// The same with rings as `rings` says for each queue.
    pub fn start_with(&self, features: u64, rings: impl Fn(u32) -> Rings) {
        self.negotiate(features);
        for queue in 0..self.queues {
            Rings::usual(queue).clear();
            self.set_up(queue, &rings(queue));
        }
        self.driver_ok();
    }

    pub fn failed(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// Whether the device notices that it was broken.
    pub fn fails(&self) -> bool {
        wait(PATIENCE, || self.failed())
    }

    pub fn kick(&self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    /// A queue of a device that was started in the usual way.
    pub fn queue(&self, index: u32) -> Queue<'_> {
        self.queue_of(index, Rings::usual(index))
    }

    pub fn queue_of(&self, index: u32, rings: Rings) -> Queue<'_> {
        Queue {
            device: self,
            index,
            rings,
            offered: 0,
        }
    }
}

/// Where a queue is, and how large it claims to be.
#[derive(Clone, Copy)]
pub struct Rings {
    pub size: u32,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

impl Rings {
    pub fn usual(queue: u32) -> Self {
        let base = DMA.start + u64::from(queue) * QUEUE_ROOM;
        Self {
            size: SIZE,
            descriptors: base,
            available: base + 0x4000,
            used: base + 0x8000,
        }
    }

    /// Makes all of the queue's room zero.
    fn clear(&self) {
        fill(self.descriptors, QUEUE_ROOM as usize, 0);
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn new(address: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            address,
            len,
            flags,
            next,
        }
    }

    pub fn put(self, address: u64) {
        write(address, self);
    }
}

/// A queue, seen by its driver.
pub struct Queue<'a> {
    pub device: &'a Device,
    pub index: u32,
    pub rings: Rings,
    pub offered: u16,
}

impl Queue<'_> {
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        descriptor.put(self.rings.descriptors + 16 * u64::from(index));
    }

    /// Puts a head on the available ring; tells nobody.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(u32::from(self.offered) % self.rings.size.max(1));
        write(self.rings.available + 4 + 2 * slot, head);
        self.set_available(self.offered.wrapping_add(1));
    }

    pub fn set_available(&mut self, index: u16) {
        self.offered = index;
        write(self.rings.available + 2, index);
    }

    pub fn kick(&self) {
        self.device.kick(self.index);
    }

    pub fn used(&self) -> u16 {
        read(self.rings.used + 2)
    }

    /// The length that the device said of the chain used last.
    pub fn used_len(&self) -> u32 {
        let slot = u64::from(u32::from(self.used().wrapping_sub(1)) % self.rings.size);
        read(self.rings.used + 4 + 8 * slot + 4)
    }

    /// Waits until everything offered is used, or the device has failed. Returns which.
    pub fn settle(&self) -> Settled {
        let settled = || self.used() == self.offered || self.device.failed();
        if !wait(PATIENCE, settled) {
            Settled::Silent
        } else if self.device.failed() {
            Settled::Failed
        } else {
            Settled::Used
        }
    }

    /// Offers one chain, and waits for what becomes of it.
    pub fn run(&mut self, head: u16) -> Settled {
        self.offer(head);
        self.kick();
        self.settle()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Used,
    Failed,
    Silent,
}
