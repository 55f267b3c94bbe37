//! The block device with many requests at once, honest ones and others.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_blk::*;
use vm_memory::GuestAddress;

use super::MAX_REQUEST_BYTES;
use super::tests::{Bench, DATA, HEADER, IOERR, OK, SECTORS, STATUS, UNTOUCHED, content, for_each_engine};
use crate::config::DriveEngine;
use crate::devices::virtio::net::driver::{Driver, INDIRECT, NEXT, WRITE};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::{Activation, QueuePosition, VirtioDevice};
use crate::jail::Jail;

/// As many requests as the queue takes, each in an indirect table.
const REQUESTS: u16 = 256;
/// Where the parts of such a request are: a header, a table, the status; and its data.
const PARTS: u64 = 0x20_0000;
const PART_BYTES: u64 = 0x80;
const BUFFERS: u64 = 0x40_0000;
const BUFFER_BYTES: u64 = 0x1_0000;

for_each_engine!(
    as_many_requests_as_the_queue_takes_are_each_given_their_own,
    a_reset_waits_for_what_was_begun_and_begins_nothing,
    a_broken_queue_is_left_alone_only_when_nothing_is_under_way,
    more_bytes_than_may_be_under_way_are_moved_one_after_the_other,
    the_same_request_offered_over_and_over_is_served_each_time,
    descriptors_that_change_meanwhile_hurt_nobody,
    a_file_that_has_become_shorter_is_an_error_of_the_host,
    a_file_that_cannot_be_written_is_an_error_of_the_host,
    requests_without_data_are_done,
    a_flush_covers_the_writes_that_the_driver_knows_of,
    a_confined_thread_serves_every_kind,
);

fn part(request: u16) -> u64 {
    PARTS + PART_BYTES * u64::from(request)
}

fn status(request: u16) -> u64 {
    part(request) + 16
}

fn buffer(request: u16) -> u64 {
    BUFFERS + BUFFER_BYTES * u64::from(request)
}

impl Bench {
    /// Prepares a request at the head of its own number; its data, of `len` bytes, at its own buffer.
    fn prepare(&self, request: u16, kind: u32, sector: u64, len: u32) {
        let mut header = [0; 17];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header[16] = UNTOUCHED;
        self.driver.write(part(request), &header);
        let table = GuestAddress(part(request) + 32);
        let data = if kind == VIRTIO_BLK_T_IN { WRITE } else { 0 };
        self.driver.describe_at(table, 0, (part(request), 16, NEXT, 1));
        self.driver
            .describe_at(table, 1, (buffer(request), len, NEXT | data, 2));
        self.driver.describe_at(table, 2, (status(request), 1, WRITE, 0));
        self.driver.describe(request, (table.0, 48, INDIRECT, 0));
    }

    fn offer_all(&mut self, requests: impl IntoIterator<Item = u16>) {
        for request in requests {
            self.driver.offer_head(request);
        }
    }

    /// Waits until so many requests are used.
    fn wait_for_any(&mut self, count: usize) -> Vec<(u16, u32)> {
        (0..count)
            .map(|_| self.driver.wait_used(&self.interrupt))
            .collect()
    }

    /// Has the device go on in its queue, as a restored one.
    fn go_on(&mut self, position: QueuePosition) {
        let activation = Activation {
            memory: self.driver.memory.clone(),
            queues: vec![self.driver.continued(position)],
            interrupt: self.interrupt.clone(),
            features: 0,
            restored: true,
        };
        self.block.activate(activation).unwrap();
    }
}

fn on(file: File, engine: DriveEngine) -> Bench {
    Bench::on(file, engine, false, Throttle::open(), Jail::NONE)
}

fn as_many_requests_as_the_queue_takes_are_each_given_their_own(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    for request in 0..REQUESTS {
        bench.prepare(request, VIRTIO_BLK_T_IN, u64::from(request) % SECTORS, 512);
    }
    for _ in 0..4 {
        bench.offer_all(0..REQUESTS);
        let used = bench.wait_for_any(REQUESTS.into());
        let heads: HashSet<u16> = used.iter().map(|(head, _)| *head).collect();
        assert_eq!(heads.len(), usize::from(REQUESTS));
        assert!(used.iter().all(|(_, len)| *len == 513));
        for request in 0..REQUESTS {
            assert_eq!(bench.byte(status(request)), OK);
            let expected = vec![(u64::from(request) % SECTORS) as u8; 512];
            assert!(
                bench.driver.read(buffer(request), 512) == expected,
                "request {request}"
            );
            bench.driver.write(buffer(request), &[0; 512]);
            bench.driver.write(status(request), &[UNTOUCHED]);
        }
    }
    let metrics = bench.counters.snapshot();
    assert_eq!(metrics.block_read_ops, 4 * u64::from(REQUESTS));
    // One for each would be as many.
    assert!(bench.interrupt.count() < 4 * u64::from(REQUESTS));
}

/// What a driver puts into its memory once it is its own again; it must not be found in the file.
const AFTERWARDS: u8 = 0xee;
/// A file as long as all requests are.
const ALL_BYTES: u64 = BUFFER_BYTES * REQUESTS as u64;

impl Bench {
    /// Prepares requests that fill their buffers, reads and writes, and offers them.
    fn offer_long_ones(&mut self) {
        for request in 0..REQUESTS {
            let kind = if request % 8 == 7 {
                VIRTIO_BLK_T_IN
            } else {
                VIRTIO_BLK_T_OUT
            };
            let sector = BUFFER_BYTES / 512 * u64::from(request);
            self.prepare(request, kind, sector, BUFFER_BYTES as u32);
            self.driver.write(buffer(request), &[0x11; BUFFER_BYTES as usize]);
        }
        self.offer_all(0..REQUESTS);
    }

    /// Does with the memory what a driver may do once the device has let go of it, and sees that the device does nothing more
    /// to it or with it.
    fn assert_let_go(&self, file: &File) {
        for request in 0..REQUESTS {
            self.driver
                .write(buffer(request), &[AFTERWARDS; BUFFER_BYTES as usize]);
            self.driver.write(status(request), &[UNTOUCHED]);
        }
        let mut content = vec![0; ALL_BYTES as usize];
        for _ in 0..2 {
            fence(Ordering::SeqCst);
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(!content.contains(&AFTERWARDS), "guest memory was read");
            for request in 0..REQUESTS {
                assert_eq!(self.byte(status(request)), UNTOUCHED);
                let ends = [buffer(request), buffer(request) + BUFFER_BYTES - 1];
                assert_eq!(ends.map(|address| self.byte(address)), [AFTERWARDS; 2]);
            }
        }
    }
}

fn a_reset_waits_for_what_was_begun_and_begins_nothing(engine: DriveEngine) {
    let file = content();
    file.set_len(ALL_BYTES).unwrap();
    let mut bench = on(file.try_clone().unwrap(), engine);
    for _ in 0..8 {
        bench.offer_long_ones();
        // It is at work.
        let mut used = bench.wait_for_any(1);
        let positions = bench.block.stop();
        assert_eq!(positions[0].next_avail, positions[0].next_used);
        used.extend(std::iter::from_fn(|| bench.driver.take_used()));
        for (head, _) in &used {
            assert_eq!(bench.byte(status(*head)), OK);
        }
        bench.assert_let_go(&file);
        // What was not begun is there for the next device, with what the driver has put there meanwhile.
        let left = usize::from(REQUESTS) - used.len();
        bench.go_on(positions[0]);
        assert_eq!(bench.wait_for_any(left).len(), left);
        file.set_len(0).unwrap();
        file.set_len(ALL_BYTES).unwrap();
    }
}

fn a_broken_queue_is_left_alone_only_when_nothing_is_under_way(engine: DriveEngine) {
    for _ in 0..8 {
        let file = content();
        file.set_len(ALL_BYTES).unwrap();
        let mut bench = on(file.try_clone().unwrap(), engine);
        bench.offer_long_ones();
        bench.wait_for_any(1);
        bench.driver.set_available(60_000);
        bench.driver.kick();
        bench.interrupt.wait_until_failed();
        bench.assert_let_go(&file);
        assert!(bench.block.stop().is_empty());
        let memory = bench.driver.memory.clone();
        let (driver, queue) = Driver::new(&memory, 0x10_0000, 256);
        bench.driver = driver;
        let interrupt = bench.interrupt.clone();
        bench
            .block
            .activate(Activation {
                memory,
                queues: vec![queue],
                interrupt,
                features: 0,
                restored: false,
            })
            .unwrap();
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
    }
}

fn more_bytes_than_may_be_under_way_are_moved_one_after_the_other(engine: DriveEngine) {
    let file = content();
    file.set_len(16 << 20).unwrap();
    let mut bench = on(file, engine);
    const EACH: u32 = 8 << 20;
    let requests = 2 * (MAX_REQUEST_BYTES / u64::from(EACH)) as u16;
    for request in 0..requests {
        bench.prepare(request, VIRTIO_BLK_T_IN, 0, EACH);
    }
    bench.offer_all(0..requests);
    for (_, len) in bench.wait_for_any(requests.into()) {
        assert_eq!(len, EACH + 1);
    }
    for request in 0..requests {
        assert_eq!(bench.byte(status(request)), OK);
    }
}

fn the_same_request_offered_over_and_over_is_served_each_time(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.prepare(7, VIRTIO_BLK_T_OUT, 0, 512);
    bench.prepare(8, VIRTIO_BLK_T_FLUSH, 0, 0);
    for _ in 0..8 {
        bench.offer_all((0..REQUESTS).map(|index| if index % 64 == 63 { 8 } else { 7 }));
        let used = bench.wait_for_any(REQUESTS.into());
        assert!(used.iter().all(|(head, len)| matches!(head, 7 | 8) && *len == 1));
    }
    assert_eq!(bench.errors(), 0);
}

fn descriptors_that_change_meanwhile_hurt_nobody(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    let hostile = [
        (u64::MAX, u32::MAX, NEXT | WRITE, 1),
        (0x1000, 0, INDIRECT | NEXT, 0xffff),
        (buffer(0), 1 << 24, WRITE, 3),
        (0, 16, NEXT, 0),
    ];
    for round in 0..200u16 {
        for request in 0..32 {
            let kind = u32::from((request + round) % 2);
            bench.prepare(request, kind, u64::from(request), 4096);
        }
        bench.offer_all(0..32);
        for request in 0..32u16 {
            let bad = hostile[usize::from(request + round) % hostile.len()];
            bench
                .driver
                .describe_at(GuestAddress(part(request) + 32), request % 3, bad);
            bench
                .driver
                .write(part(request), &[0xff; 16][..usize::from(round % 17)]);
        }
        assert_eq!(bench.wait_for_any(32).len(), 32);
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, SECTORS - 1, 512, true).0, OK);
}

fn a_file_that_has_become_shorter_is_an_error_of_the_host(engine: DriveEngine) {
    let file = content();
    let mut bench = on(file.try_clone().unwrap(), engine);
    // The end is in the middle of the first request, and before the second.
    file.set_len(10 * 512 + 100).unwrap();
    for sector in [8, 20] {
        assert_eq!(
            bench.request(VIRTIO_BLK_T_IN, sector, 8 * 512, true),
            (IOERR, 1),
            "{sector}"
        );
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 2, 8 * 512, true).0, OK);
    // It was not the guest that broke a rule.
    assert_eq!(bench.errors(), 0);
}

fn a_file_that_cannot_be_written_is_an_error_of_the_host(engine: DriveEngine) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    let mut bench = on(File::open(file.path()).unwrap(), engine);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 512, false), (IOERR, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true), (OK, 513));
    assert_eq!(bench.errors(), 0);
}

fn requests_without_data_are_done(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 0, true), (OK, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 3, 0, false), (OK, 1));
    // Empty descriptors before, between and after.
    bench.put_header(VIRTIO_BLK_T_IN, 5);
    let data = [(DATA, 0), (DATA, 256), (DATA, 0), (DATA + 256, 256), (DATA, 0)];
    bench.driver.describe(0, (HEADER, 16, NEXT, 1));
    for (index, (address, len)) in (1..).zip(data) {
        bench
            .driver
            .describe(index, (address, len, NEXT | WRITE, index + 1));
    }
    bench.driver.describe(6, (STATUS, 1, WRITE, 0));
    bench.driver.offer_head(0);
    assert_eq!(bench.wait_for_any(1), [(0, 513)]);
    assert_eq!((bench.byte(STATUS), bench.byte(DATA + 511)), (OK, 5));
}

fn a_flush_covers_the_writes_that_the_driver_knows_of(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    for round in 0..16u8 {
        for request in 0..16 {
            bench.prepare(request, VIRTIO_BLK_T_OUT, u64::from(request), 512);
            bench.driver.write(buffer(request), &[round; 512]);
        }
        bench.offer_all(0..16);
        bench.wait_for_any(16);
        bench.prepare(16, VIRTIO_BLK_T_FLUSH, 0, 0);
        bench.offer_all([16]);
        assert_eq!(bench.wait_for_any(1), [(16, 1)]);
        assert_eq!(bench.byte(status(16)), OK);
        for sector in 0..16 {
            assert_eq!(bench.sector(sector), [round; 512]);
        }
    }
    let metrics = bench.counters.snapshot();
    assert_eq!((metrics.block_write_ops, metrics.block_flush_ops), (256, 16));
}

fn a_confined_thread_serves_every_kind(engine: DriveEngine) {
    let mut bench = Bench::with(engine, false, Throttle::open(), Jail::FILTERS_ALONE);
    for _ in 0..3 {
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 1, 512, false).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 20, true).0, OK);
        let range: Vec<u8> = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
        bench.driver.write(DATA, &range);
        assert_eq!(bench.request(VIRTIO_BLK_T_DISCARD, 0, 16, false).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false).0, OK);
        for request in 0..64 {
            bench.prepare(request, VIRTIO_BLK_T_IN, 0, 512);
        }
        bench.offer_all(0..64);
        bench.wait_for_any(64);
        let positions = bench.block.stop();
        bench.go_on(positions[0]);
    }
}
