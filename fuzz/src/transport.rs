//! Whole devices, with their threads, behind a virtio-mmio transport, and a driver at its registers.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use berth_vmm::bus::Bus;
use berth_vmm::config::DriveEngine;
use berth_vmm::devices::virtio::VirtioDevice;
use berth_vmm::devices::virtio::balloon::{Backing, Balloon};
use berth_vmm::devices::virtio::block::{Block, Disk};
use berth_vmm::devices::virtio::mmio::{MmioTransport, PAGE_BYTES, RegisterPages};
use berth_vmm::devices::virtio::net::{Net, NetThrottles};
use berth_vmm::devices::virtio::rng::Rng;
use berth_vmm::devices::virtio::throttle::Throttle;
use berth_vmm::devices::virtio::vsock::Vsock;
use berth_vmm::devices::virtio::worker::Worker;
use berth_vmm::jail::{Jail, Thread};
use berth_vmm::metrics::Counters;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

use crate::{Guest, Rings};

const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
/// Descriptors, driver area, device area; low halves, each with its high half four bytes after.
const AREAS: [u64; 3] = [0x80, 0x90, 0xa0];

/// Size of a disk.
pub const DISK_BYTES: u64 = 16 << 10;

/// A disk of [`DISK_BYTES`].
pub fn disk() -> File {
    let file =
        File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).expect("a file in memory can be made"));
    file.set_len(DISK_BYTES).expect("a file in memory can grow");
    file
}

/// No limits.
fn throttle() -> Arc<Throttle> {
    let throttle = Throttle::new(None, Arc::default(), |counters| &counters.block_throttled);
    Arc::new(throttle.expect("a timer can be made"))
}

/// Where the registers begin.
const BASE: u64 = 0xd000_0000;

/// A transport on a bus, and what a driver has of it.
pub struct Transport {
    pub transport: Arc<MmioTransport>,
    bus: Bus,
    kicks: Vec<EventFd>,
    queues: u64,
}

impl Transport {
    /// One of five devices.
    pub fn new(kind: u8, guest: &Guest) -> Self {
        let counters = Arc::new(Counters::default());
        let worker = || Worker::new("device", Jail::NONE, Thread::Main).expect("a thread can be made");
        let device: Box<dyn VirtioDevice> = match kind % 5 {
            0 => Box::new(Rng::new(counters.clone(), throttle(), worker())),
            1 => {
                let disk = Disk::new(disk(), "fuzz", false, counters.clone(), throttle())
                    .expect("a disk has sectors");
                // A file in memory has no ring but where it is asked for.
                let block = Block::new(disk, DriveEngine::IoUring, Jail::NONE);
                Box::new(block.expect("a thread can be made"))
            }
            2 => Box::new(Vsock::new(3, counters.clone(), worker()).0),
            4 => {
                let made = Balloon::new(Backing::Anonymous, 128, counters.clone(), worker());
                Box::new(made.expect("an event can be made").0)
            }
            _ => {
                // Not a tap, so the device refuses to go to work.
                let (near, _) = UnixDatagram::pair().expect("a socket pair can be made");
                let tap = OwnedFd::from(near);
                Box::new(Net::new(
                    tap,
                    [2, 0, 0, 0, 0, 1],
                    Some(1500),
                    counters.clone(),
                    NetThrottles {
                        receive: throttle(),
                        transmit: throttle(),
                    },
                    worker(),
                ))
            }
        };
        let queues = device.queue_sizes().len() as u64;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).expect("an event can be made");
        let pages = (RegisterPages::new(1), 0);
        let transport = MmioTransport::new(device, pages, guest.memory.clone(), interrupt, counters)
            .expect("a transport's events can be made");
        let mut kicks = Vec::new();
        transport
            .for_each_kick(|_, kick| kick.try_clone().map(|kick| kicks.push(kick)))
            .expect("an event can be cloned");
        let transport = Arc::new(transport);
        let mut bus = Bus::default();
        bus.insert(BASE..BASE + PAGE_BYTES as u64, transport.clone())
            .expect("the bus is empty");
        Self {
            transport,
            bus,
            kicks,
            queues,
        }
    }

    pub fn kick(&self, queue: u8) {
        let queue = usize::from(queue) % self.kicks.len();
        let _ = self.kicks[queue].write(1);
    }

    /// An access by a vcpu; whatever is not wholly in the registers does not come to the transport.
    pub fn access(&self, offset: u64, write: bool, data: &mut [u8]) {
        let address = BASE.wrapping_add(offset);
        if write {
            self.bus.write(address, data);
        } else {
            self.bus.read(address, data);
        }
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.access(offset, true, &mut value.to_le_bytes());
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.access(offset, false, &mut value);
        u32::from_le_bytes(value)
    }

    /// Does what a sound driver does to set the device up, but for one write if `skipped` is not zero, and without the
    /// features `left_out`. Returns the rings.
    pub fn set_up(&self, skipped: u8, left_out: u64, size: u16) -> Vec<Rings> {
        let mut written = 0;
        let mut put = |offset: u64, value: u32| {
            written += 1;
            if written != skipped {
                self.write(offset, value);
            }
        };
        put(STATUS, 0);
        put(STATUS, 1);
        put(STATUS, 3);
        for half in 0..2 {
            put(DEVICE_FEATURES_SEL, half);
            put(DRIVER_FEATURES_SEL, half);
            let features = self.read(DEVICE_FEATURES) & !((left_out >> (32 * half)) as u32);
            put(DRIVER_FEATURES, features);
        }
        put(STATUS, 11);
        let rings: Vec<_> = (0..self.queues).map(|index| Rings::sized(index, size)).collect();
        for (index, rings) in (0..).zip(&rings) {
            put(QUEUE_SEL, index);
            put(QUEUE_SIZE, size.into());
            for (register, area) in AREAS.into_iter().zip(rings.areas()) {
                put(register, area as u32);
                put(register + 4, 0);
            }
            put(QUEUE_READY, 1);
        }
        put(STATUS, 15);
        rings
    }
}
