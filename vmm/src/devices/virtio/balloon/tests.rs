//! The balloon as its driver sees it, and the host.

use std::fs::File;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::*;
use crate::config::HugePages;
use crate::control::BalloonReport;
use crate::devices::virtio::net::driver::{Driver, TestInterrupt};
use crate::jail::Thread;
use crate::memory::{MemoryFile, allocate};

const MIB: u32 = 128;
const RANGE: u64 = 2 << 20;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Guest {
    balloon: Balloon,
    handle: BalloonHandle,
    queues: [Driver; 4],
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
    let (mut balloon, handle) = Balloon::new(backing, MIB, counters.clone(), worker).unwrap();
    let interrupt = Arc::new(TestInterrupt::default());
    let (drivers, queues): (Vec<_>, Vec<_>) = [0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000]
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
        handle,
        queues: drivers
            .try_into()
            .unwrap_or_else(|_| unreachable!("there are four")),
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

    /// Puts pages into the balloon, or takes them out.
    fn list(&mut self, queue: usize, pages: &[u32]) {
        let numbers: Vec<u8> = pages.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.memory.write_slice(&numbers, GuestAddress(0x1000)).unwrap();
        self.queues[queue].offer(&[(0x1000, numbers.len() as u32)], false);
        self.queues[queue].wait_used(&self.interrupt);
    }

    /// Offers a buffer that says how much memory is free.
    fn offer_statistics(&mut self, free: u64) {
        let bytes = [&4u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
        self.memory.write_slice(&bytes, GuestAddress(0x8000)).unwrap();
        self.queues[STATISTICS].offer(&[(0x8000, 4), (0x8004, 6)], false);
    }

    /// Has the host ask; the answer comes by the channel.
    fn ask(&self, wait: Duration) -> mpsc::Receiver<Box<BalloonReport>> {
        ask(&self.handle, wait)
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
    for backing in [
        Backing::Anonymous,
        Backing::PrivateFile(HugePages::Always),
        Backing::SharedFile,
    ] {
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

fn ask(handle: &BalloonHandle, wait: Duration) -> mpsc::Receiver<Box<BalloonReport>> {
    let (answer, answered) = mpsc::channel();
    let done = move |report: Result<BalloonReport, String>| answer.send(Box::new(report.unwrap())).unwrap();
    handle.report(wait, Box::new(done));
    answered
}

fn free_bytes(report: &BalloonReport) -> Option<u64> {
    report
        .statistics
        .as_ref()
        .and_then(|statistics| statistics.free_bytes)
}

#[test]
fn pages_that_the_driver_puts_into_the_balloon_are_given_back() {
    for backing in [
        Backing::Anonymous,
        Backing::PrivateFile(HugePages::Always),
        Backing::SharedFile,
    ] {
        let mut guest = start(backing);
        guest.fill(8 << 20, 0x5000);
        // In any order, as allocators give them out.
        guest.list(INFLATE, &[0x803, 0x802, 0x801]);
        assert_eq!(guest.released(), 3 * PAGE_BYTES, "{backing:?}");
        assert_eq!((guest.byte(8 << 20), guest.byte(0x80_4000)), (0x55, 0x55));
        assert!(!guest.resident(0x80_2000), "{backing:?}");
        assert_eq!(guest.byte(0x80_2000), 0, "{backing:?}");
        // And taken back without a word of the host.
        guest.list(DEFLATE, &[0x801, 0x802, 0x803]);
        guest.fill(0x80_1000, 0x3000);
        assert_eq!(guest.byte(0x80_2000), 0x55, "{backing:?}");
        assert_eq!(guest.counters.snapshot().device_errors, 0);
    }
}

#[test]
fn pages_one_by_one_cost_no_mapping_each() {
    let mut guest = start(Backing::PrivateFile(HugePages::Always));
    let mappings = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let before = mappings();
    // Of a part that the file has, every other one.
    for first in (0x1000..0x2000).step_by(512) {
        let pages: Vec<u32> = (first..first + 512).step_by(2).collect();
        guest.list(INFLATE, &pages);
    }
    assert_eq!(guest.released(), 2048 * PAGE_BYTES);
    // Other tests are under way in this process.
    assert!(
        mappings() < before + 512,
        "{before} mappings became {}",
        mappings()
    );
}

#[test]
fn the_same_page_many_times_and_pages_that_are_not_there_do_nothing_more() {
    let mut guest = start(Backing::Anonymous);
    guest.fill(8 << 20, 0x2000);
    guest.list(INFLATE, &[0x800; 256]);
    assert_eq!((guest.byte(8 << 20), guest.byte(0x80_1000)), (0, 0x55));
    let end = MIB << 8;
    guest.list(INFLATE, &[end, u32::MAX, 0xd_0000, end + 7]);
    guest.list(DEFLATE, &[end, u32::MAX]);
    assert_eq!(guest.counters.snapshot().device_errors, 4);
    assert_eq!(guest.byte(0x80_1000), 0x55);
}

#[test]
fn of_a_list_without_end_the_beginning_counts() {
    let mut guest = start(Backing::Anonymous);
    let pages: Vec<u8> = (0x4000u32..0x5000).flat_map(u32::to_le_bytes).collect();
    guest.memory.write_slice(&pages, GuestAddress(0x50_0000)).unwrap();
    let buffers: Vec<_> = (0..8).map(|part| (0x50_0000 + 2048 * part, 2048)).collect();
    guest.queues[INFLATE].offer(&buffers, false);
    guest.queues[INFLATE].wait_used(&guest.interrupt);
    assert_eq!(guest.released(), 1024 * PAGE_BYTES);
}

#[test]
fn the_driver_reads_the_target_and_says_how_far_it_is() {
    let mut guest = start(Backing::Anonymous);
    let config = |balloon: &Balloon| {
        let mut config = [0xee; 12];
        balloon.read_config(0, &mut config);
        config
    };
    assert_eq!(config(&guest.balloon)[..8], [0; 8]);
    guest.handle.set_target(64).unwrap();
    assert_eq!(config(&guest.balloon)[..8], [0, 0x40, 0, 0, 0, 0, 0, 0]);
    guest.balloon.write_config(4, &0x3000u32.to_le_bytes());
    // The target is not the driver's to write, and there is nothing beyond.
    guest.balloon.write_config(0, &[0xff; 4]);
    guest.balloon.write_config(8, &[0xff; 64]);
    guest.balloon.write_config(u64::MAX - 1, &[0xff; 4]);
    let now = config(&guest.balloon);
    assert_eq!(now[..8], [0, 0x40, 0, 0, 0, 0x30, 0, 0]);
    let report = guest.ask(Duration::ZERO).recv().unwrap();
    assert_eq!((report.target_bytes, report.actual_bytes), (64 << 20, 48 << 20));
    // No guest has more in it than it has.
    guest.balloon.write_config(4, &[0xff; 4]);
    let report = guest.ask(Duration::ZERO).recv().unwrap();
    assert_eq!(report.actual_bytes, u64::from(MIB) << 20);
}

#[test]
fn a_guest_keeps_what_it_needs_to_live() {
    let guest = start(Backing::Anonymous);
    let too_much = guest.handle.set_target(MIB - FLOOR_MIB + 1).unwrap_err();
    assert_eq!(
        too_much.to_string(),
        "65 MiB is too much for the balloon: of 128 MiB the guest keeps 64"
    );
    guest.handle.set_target(u32::MAX).unwrap_err();
    assert_eq!(guest.ask(Duration::ZERO).recv().unwrap().target_bytes, 0);
    guest.handle.set_target(MIB - FLOOR_MIB).unwrap();
    guest.handle.set_target(0).unwrap();
}

#[test]
fn who_asks_gets_what_the_guest_says_then() {
    let mut guest = start(Backing::Anonymous);
    // What the driver offers at first is from before the question.
    guest.offer_statistics(1);
    for free in [2, 3] {
        let answered = [guest.ask(PATIENCE), guest.ask(PATIENCE)];
        guest.queues[STATISTICS].wait_used(&guest.interrupt);
        guest.offer_statistics(free);
        for answer in answered {
            let report = answer.recv_timeout(PATIENCE).unwrap();
            assert_eq!(free_bytes(&report), Some(free));
            assert!(report.statistics_age_ms.is_some());
        }
    }
    assert_eq!(guest.counters.snapshot().device_errors, 0);
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut guest = start(Backing::Anonymous);
    let soon = Duration::from_millis(20);
    // It has offered nothing; then it keeps what it was given.
    let report = guest.ask(soon).recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.statistics, report.statistics_age_ms), (None, None));
    guest.offer_statistics(1);
    let report = guest.ask(soon).recv_timeout(PATIENCE).unwrap();
    assert_eq!(report.statistics, None);
    guest.queues[STATISTICS].wait_used(&guest.interrupt);
    // What it says late is what it has said last.
    guest.offer_statistics(5);
    let deadline = Instant::now() + PATIENCE;
    while free_bytes(&guest.ask(Duration::ZERO).recv().unwrap()) != Some(5) {
        assert!(Instant::now() < deadline, "what it says late is not heard");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Questions beyond are answered at once, and all of them when the device ends.
    let answers: Vec<_> = (0..70).map(|_| guest.ask(PATIENCE)).collect();
    guest.balloon.stop();
    for answer in answers {
        assert_eq!(free_bytes(&answer.recv_timeout(PATIENCE).unwrap()), Some(5));
    }
    guest.ask(PATIENCE).recv_timeout(soon).unwrap();
}

#[test]
fn statistics_that_cannot_be_read_are_counted() {
    let mut guest = start(Backing::Anonymous);
    guest.offer_statistics(1);
    let answer = guest.ask(PATIENCE);
    guest.queues[STATISTICS].wait_used(&guest.interrupt);
    guest.queues[STATISTICS].offer(&[(u64::from(MIB) << 20, 10)], false);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap().statistics, None);
    assert_eq!(guest.counters.snapshot().device_errors, 1);
    // A buffer as long as memory is read as far as anybody could say anything.
    let answer = guest.ask(PATIENCE);
    guest.queues[STATISTICS].wait_used(&guest.interrupt);
    guest.queues[STATISTICS].offer(&[(0, MIB << 20), (0, u32::MAX)], false);
    assert!(answer.recv_timeout(PATIENCE).unwrap().statistics.is_some());
}

#[test]
fn another_device_goes_on_with_the_buffer_the_target_and_what_is_in_the_balloon() {
    let mut guest = start(Backing::Anonymous);
    guest.handle.set_target(16).unwrap();
    guest.balloon.write_config(4, &0x1000u32.to_le_bytes());
    guest.offer_statistics(1);
    let answer = guest.ask(PATIENCE);
    guest.queues[STATISTICS].wait_used(&guest.interrupt);
    guest.offer_statistics(2);
    answer.recv_timeout(PATIENCE).unwrap();
    let positions = guest.balloon.stop();
    // The buffer that the device kept is one that it has not seen.
    let position = |next_avail, next_used| QueuePosition {
        next_avail,
        next_used,
    };
    assert_eq!(positions[STATISTICS], position(1, 1));
    let state = guest.balloon.state();

    let worker = Worker::confined(Thread::Balloon);
    let (mut other, handle) = Balloon::new(Backing::Anonymous, MIB, Arc::default(), worker).unwrap();
    assert!(!other.restore(DeviceState::Nothing));
    assert!(!other.restore(DeviceState::Balloon {
        target_pages: (MIB - FLOOR_MIB) << 8 | 1,
        actual_pages: 0
    }));
    assert!(other.restore(state));
    let queues = guest.queues.iter().zip(positions);
    other
        .activate(Activation {
            memory: guest.memory.clone(),
            queues: queues
                .map(|(queue, position)| queue.continued(position))
                .collect(),
            interrupt: guest.interrupt.clone(),
            features: other.features(),
            restored: true,
        })
        .unwrap();
    let answer = ask(&handle, PATIENCE);
    guest.queues[STATISTICS].wait_used(&guest.interrupt);
    guest.offer_statistics(3);
    let report = answer.recv_timeout(PATIENCE).unwrap();
    assert_eq!(free_bytes(&report), Some(3));
    assert_eq!((report.target_bytes, report.actual_bytes), (16 << 20, 16 << 20));
}

#[test]
fn a_driver_without_statistics_has_one_queue_less() {
    let worker = Worker::confined(Thread::Balloon);
    let (mut balloon, handle) = Balloon::new(Backing::Anonymous, MIB, Arc::default(), worker).unwrap();
    let all = balloon.features();
    let features = all & !(1 << VIRTIO_BALLOON_F_STATS_VQ);
    assert_eq!((balloon.queues_with(all), balloon.queues_with(features)), (4, 3));
    assert_eq!(balloon.queues_with(0), 2);
    let memory = allocate(MIB, None).unwrap();
    let interrupt = Arc::new(TestInterrupt::default());
    let (mut drivers, queues): (Vec<_>, Vec<_>) = [0x10_0000, 0x20_0000, 0x30_0000]
        .map(|address| Driver::new(&memory, address, 32))
        .into_iter()
        .unzip();
    let activation = Activation {
        memory: memory.clone(),
        queues,
        interrupt: interrupt.clone(),
        features,
        restored: false,
    };
    balloon.activate(activation).unwrap();
    memory.write_slice(&[0x55], GuestAddress(8 << 20)).unwrap();
    // The third is that of reports now.
    drivers[2].offer(&[(8 << 20, RANGE as u32)], true);
    drivers[2].wait_used(&interrupt);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(8 << 20)).unwrap(), 0);
    ask(&handle, PATIENCE)
        .recv_timeout(Duration::from_millis(1))
        .unwrap();
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
