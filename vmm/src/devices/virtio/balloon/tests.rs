//! The balloon as its driver sees it, and the host.

use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::devices::virtio::net::driver::{Driver, TestInterrupt};
use crate::jail::Thread;
use crate::memory::{MemoryFile, allocate};

const MIB: u32 = 32;
const RANGE: u64 = 2 << 20;

struct Guest {
    balloon: Balloon,
    queues: [Driver; 3],
    interrupt: Arc<TestInterrupt>,
    counters: Arc<Counters>,
    memory: GuestMemoryMmap,
}

fn start(backing: Backing) -> Guest {
    let file = (backing != Backing::Anonymous).then(|| {
        let file = File::from(memfd_create("memory", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(u64::from(MIB) << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xee; 16 << 20], 16 << 20).unwrap();
        let shared = backing == Backing::SharedFile;
        MemoryFile {
            file,
            shared,
            page_by_page: false,
        }
    });
    let memory = allocate(MIB, file).unwrap();
    let counters = Arc::new(Counters::default());
    let worker = Worker::confined(Thread::Balloon);
    let mut balloon = Balloon::new(backing, counters.clone(), worker).unwrap();
    let interrupt = Arc::new(TestInterrupt::default());
    let (drivers, queues): (Vec<_>, Vec<_>) = [0x10_0000, 0x20_0000, 0x30_0000]
        .map(|address| Driver::new(&memory, address, 32))
        .into_iter()
        .unzip();
    balloon
        .activate(Activation {
            memory: memory.clone(),
            queues,
            interrupt: interrupt.clone(),
            features: balloon.features(),
            restored: false,
        })
        .unwrap();
    Guest {
        balloon,
        queues: drivers
            .try_into()
            .unwrap_or_else(|_| unreachable!("there are three")),
        interrupt,
        counters,
        memory,
    }
}

impl Guest {
    fn fill(&self, start: u64, len: u64) {
        let bytes = vec![0x55; len as usize];
        self.memory.write_slice(&bytes, GuestAddress(start)).unwrap();
    }

    fn report(&mut self, buffers: &[(u64, u32)]) {
        self.queues[REPORTING].offer(buffers, true);
        self.queues[REPORTING].wait_used(&self.interrupt);
    }

    fn byte(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Whether the host holds the page (mincore(2)), which for a file means that the file does.
    fn resident(&self, at: u64) -> bool {
        let host = self.memory.get_host_address(GuestAddress(at)).unwrap();
        let mut there = 0u8;
        // SAFETY: asks about one page of the guest's memory, and gets one byte.
        assert_eq!(unsafe { libc::mincore(host.cast(), 4096, &raw mut there) }, 0);
        there & 1 == 1
    }

    fn released(&self) -> u64 {
        self.counters.snapshot().balloon_released_bytes
    }
}

#[test]
fn what_the_guest_reports_as_free_is_the_hosts_again_and_reads_as_zero() {
    for backing in [Backing::Anonymous, Backing::PrivateFile, Backing::SharedFile] {
        let mut guest = start(backing);
        let free = 20 << 20;
        guest.fill(free - 4096, RANGE + 8192);
        guest.report(&[(free, RANGE as u32)]);
        assert_eq!(guest.released(), RANGE, "{backing:?}");
        assert!(!guest.resident(free + 4096), "{backing:?}");
        assert_eq!(
            (guest.byte(free), guest.byte(free + RANGE - 1)),
            (0, 0),
            "{backing:?}"
        );
        // The neighbours stay, and what was given back can be used again.
        assert_eq!(
            (guest.byte(free - 1), guest.byte(free + RANGE)),
            (0x55, 0x55),
            "{backing:?}"
        );
        guest.fill(free, RANGE);
        assert_eq!(guest.byte(free + 7), 0x55, "{backing:?}");
        guest.balloon.stop();
    }
}

#[test]
fn pages_that_the_driver_puts_into_the_balloon_are_given_back() {
    let mut guest = start(Backing::Anonymous);
    guest.fill(8 << 20, 16384);
    let numbers: Vec<u8> = [0x801u32, 0x802, 0x803]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    guest.memory.write_slice(&numbers, GuestAddress(0x1000)).unwrap();
    guest.queues[INFLATE].offer(&[(0x1000, 12)], false);
    guest.queues[INFLATE].wait_used(&guest.interrupt);
    assert_eq!(guest.released(), 3 * PAGE_BYTES);
    assert_eq!((guest.byte(8 << 20), guest.byte(0x80_1000)), (0x55, 0));
    // And taken back without a word of the host.
    guest.queues[1].offer(&[(0x1000, 12)], false);
    guest.queues[1].wait_used(&guest.interrupt);
    assert_eq!(guest.counters.snapshot().device_errors, 0);
}

#[test]
fn page_numbers_that_cannot_be_read_are_counted() {
    let mut guest = start(Backing::Anonymous);
    guest.queues[INFLATE].offer(&[(u64::from(MIB) << 20, 12)], false);
    guest.queues[INFLATE].wait_used(&guest.interrupt);
    assert_eq!(
        (guest.released(), guest.counters.snapshot().device_errors),
        (0, 1)
    );
}

#[test]
fn what_is_not_memory_of_the_guest_is_refused_and_counted() {
    let mut guest = start(Backing::Anonymous);
    let end = u64::from(MIB) << 20;
    guest.fill(end - 4096, 4096);
    guest.report(&[
        (end, 4096),
        (end - 4096, 8192),
        (u64::MAX - 4095, 4096),
        (0xd000_0000, 4096),
    ]);
    assert_eq!(guest.counters.snapshot().device_errors, 4);
    assert_eq!((guest.released(), guest.byte(end - 1)), (0, 0x55));
    // Half pages are kept: somebody else's may be the other half.
    guest.report(&[(0x5010, 4096), (end - 4096, 100)]);
    assert_eq!((guest.released(), guest.byte(end - 1)), (0, 0x55));
    assert_eq!(guest.memory.iter().map(|region| region.len()).sum::<u64>(), end);
}
