//! The block device as its driver sees it, and as one that lies sees it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

use super::ring::{Ring, Takes};
use super::*;
use crate::config::DriveEngine;
use crate::devices::virtio::net::driver::{Driver, INDIRECT, NEXT, TestInterrupt, WRITE, memory};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::jail::Jail;
use crate::metrics::Counters;

pub(super) const SECTORS: u64 = 64;
pub(super) const HEADER: u64 = 0x1000;
pub(super) const DATA: u64 = 0x10_000;
pub(super) const STATUS: u64 = 0x2000;
pub(super) const OK: u8 = VIRTIO_BLK_S_OK as u8;
pub(super) const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What the status byte holds before the device writes it.
pub(super) const UNTOUCHED: u8 = 0xaa;

/// Makes tests of functions of an engine, one for each.
macro_rules! for_each_engine {
    ($($test:ident),* $(,)?) => {
        mod in_order {
            $(#[test] fn $test() { super::$test(crate::config::DriveEngine::InOrder) })*
        }
        mod auto {
            $(#[test] fn $test() { super::$test(crate::config::DriveEngine::Auto) })*
        }
        mod io_uring {
            $(#[test] fn $test() {
                if crate::devices::virtio::block::tests::has_ring() {
                    super::$test(crate::config::DriveEngine::IoUring)
                }
            })*
        }
    };
}
pub(super) use for_each_engine;

/// Whether this host has what the tests of the ring need.
pub(super) fn has_ring() -> bool {
    match Ring::new(&content(), Takes::ReadsAndFlushes) {
        Ok(_) => true,
        Err(error) => {
            // Not by `eprintln`, which the test harness hides.
            let _ = writeln!(std::io::stderr(), "SKIPPED a test of io_uring: {error}");
            false
        }
    }
}

/// A file of [`SECTORS`] sectors, each of which holds its number.
pub(super) fn content() -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&[sector as u8; 512], sector * 512).unwrap();
    }
    file
}

pub(super) struct Bench {
    pub(super) block: Block,
    pub(super) driver: Driver,
    pub(super) interrupt: Arc<TestInterrupt>,
    pub(super) counters: Arc<Counters>,
    file: File,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.block.stop();
    }
}

impl Bench {
    pub(super) fn new(engine: DriveEngine, read_only: bool) -> Self {
        Self::with(engine, read_only, Throttle::open(), Jail::NONE)
    }

    pub(super) fn with(engine: DriveEngine, read_only: bool, throttle: Arc<Throttle>, jail: Jail) -> Self {
        Self::on(content(), engine, read_only, throttle, jail)
    }

    pub(super) fn on(
        file: File,
        engine: DriveEngine,
        read_only: bool,
        throttle: Arc<Throttle>,
        jail: Jail,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let shared = file.try_clone().unwrap();
        let disk = Disk::new(shared, "disk0", read_only, counters.clone(), throttle).unwrap();
        let mut block = Block::new(disk, engine, jail).unwrap();
        let memory = memory();
        let (driver, queue) = Driver::new(&memory, 0x10_0000, 256);
        let interrupt = Arc::new(TestInterrupt::default());
        let features = block.features();
        let activation = Activation {
            memory,
            queues: vec![queue],
            interrupt: interrupt.clone(),
            features,
            restored: false,
        };
        block.activate(activation).unwrap();
        Self {
            block,
            driver,
            interrupt,
            counters,
            file,
        }
    }

    pub(super) fn put_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.write(HEADER, &header);
        self.driver.write(STATUS, &[UNTOUCHED]);
    }

    /// One request with a data buffer at `DATA`; returns the status byte and the length used.
    pub(super) fn request(&mut self, kind: u32, sector: u64, len: u32, device_writes: bool) -> (u8, u32) {
        self.put_header(kind, sector);
        let data_flags = if device_writes { NEXT | WRITE } else { NEXT };
        self.driver.describe(0, (HEADER, 16, NEXT, 1));
        self.driver.describe(1, (DATA, len, data_flags, 2));
        self.driver.describe(2, (STATUS, 1, WRITE, 0));
        self.offer_first()
    }

    fn offer_first(&mut self) -> (u8, u32) {
        self.driver.offer_head(0);
        let (head, used) = self.driver.wait_used(&self.interrupt);
        assert_eq!(head, 0);
        (self.byte(STATUS), used)
    }

    pub(super) fn byte(&self, address: u64) -> u8 {
        self.driver.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(super) fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    pub(super) fn errors(&self) -> u64 {
        self.counters.snapshot().device_errors
    }
}

for_each_engine!(
    reads_come_from_the_file,
    writes_reach_the_file_and_a_flush_is_carried_out,
    a_read_only_disk_is_never_written,
    requests_that_leave_the_disk_are_refused,
    a_request_larger_than_the_bound_is_refused,
    the_serial_number_is_the_drives,
    unknown_requests_are_unsupported,
    zeroes_are_written_in_the_ranges_named,
    one_request_writes_no_more_zeroes_than_any_other_may_write_data,
    discards_stay_within_the_disk,
    a_request_may_be_cut_into_descriptors_anyhow,
    a_request_may_be_in_an_indirect_table,
    malformed_chains_are_returned_and_counted_and_the_next_is_served,
    a_broken_available_index_fails_the_device_and_a_reset_mends_it,
    another_device_goes_on_in_the_same_queue,
    configuration_tells_the_capacity_and_reads_as_zero_past_its_end,
);

fn reads_come_from_the_file(engine: DriveEngine) {
    let mut bench = Bench::new(engine, true);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 1024, true), (OK, 1025));
    assert_eq!(
        (bench.byte(DATA), bench.byte(DATA + 512), bench.byte(DATA + 1023)),
        (3, 4, 4)
    );
    let metrics = bench.counters.snapshot();
    assert_eq!((metrics.block_read_ops, metrics.block_read_bytes), (1, 1024));
}

fn writes_reach_the_file_and_a_flush_is_carried_out(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.driver.write(DATA, &[0x77; 512]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 63, 512, false), (OK, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), (OK, 1));
    assert_eq!(bench.sector(63), [0x77; 512]);
    assert_eq!(bench.sector(62), [62; 512]);
    let metrics = bench.counters.snapshot();
    assert_eq!(
        (
            metrics.block_write_ops,
            metrics.block_write_bytes,
            metrics.block_flush_ops
        ),
        (1, 512, 1)
    );
}

fn a_read_only_disk_is_never_written(engine: DriveEngine) {
    let mut bench = Bench::new(engine, true);
    bench.driver.write(DATA, &[0; 512]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 1, 512, false).0, IOERR);
    for kind in [
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
        VIRTIO_BLK_T_FLUSH,
    ] {
        assert_eq!(bench.request(kind, 1, 16, false).0, UNSUPP);
    }
    assert_eq!(bench.sector(1), [1; 512]);
    let features = bench.block.features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        features & (1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD),
        0
    );
}

fn requests_that_leave_the_disk_are_refused(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    let refused = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (0, 511),
        (0, 513),
    ];
    for (sector, len) in refused {
        assert_eq!(
            bench.request(VIRTIO_BLK_T_IN, sector, len, true).0,
            IOERR,
            "{sector} {len}"
        );
        assert_eq!(
            bench.request(VIRTIO_BLK_T_OUT, sector, len, false).0,
            IOERR,
            "{sector} {len}"
        );
    }
    assert_eq!(bench.errors(), 2 * refused.len() as u64);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, SECTORS - 1, 512, true).0, OK);
}

fn a_request_larger_than_the_bound_is_refused(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.put_header(VIRTIO_BLK_T_IN, 0);
    bench.driver.describe(0, (HEADER, 16, NEXT, 1));
    for index in 1..=3 {
        bench
            .driver
            .describe(index, (0, 30 << 20, NEXT | WRITE, index + 1));
    }
    bench.driver.describe(4, (STATUS, 1, WRITE, 0));
    assert_eq!(bench.offer_first().0, IOERR);
}

fn the_serial_number_is_the_drives(engine: DriveEngine) {
    let mut bench = Bench::new(engine, true);
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 20, true), (OK, 21));
    let mut id = [0; 20];
    bench
        .driver
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id, b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

fn unknown_requests_are_unsupported(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    assert_eq!(bench.request(77, 0, 512, true).0, UNSUPP);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

fn zeroes_are_written_in_the_ranges_named(engine: DriveEngine) {
    for flags in [0, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP] {
        let mut bench = Bench::new(engine, false);
        bench
            .driver
            .write(DATA, &[range(2, 3, flags), range(10, 1, flags)].concat());
        assert_eq!(bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 32, false).0, OK);
        for sector in 0..SECTORS {
            let cleared = (2..5).contains(&sector) || sector == 10;
            assert_eq!(
                bench.sector(sector),
                [if cleared { 0 } else { sector as u8 }; 512]
            );
        }
    }
}

fn one_request_writes_no_more_zeroes_than_any_other_may_write_data(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    for (ranges, status) in [(4, OK), (5, IOERR)] {
        bench.driver.write(DATA, &range(0, 1, 0).repeat(ranges));
        let bytes = 16 * ranges as u32;
        assert_eq!(
            bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, bytes, false).0,
            status
        );
    }
    let mut most = [0; 4];
    bench.block.read_config(52, &mut most);
    assert_eq!(u32::from_le_bytes(most), 4);
}

fn discards_stay_within_the_disk(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.driver.write(DATA, &range(8, 8, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_DISCARD, 0, 16, false).0, OK);
    assert_eq!(bench.sector(7), [7; 512]);
    assert_eq!(bench.sector(16), [16; 512]);
    for (bytes, status) in [
        (range(SECTORS - 1, 2, 0), IOERR),
        (range(u64::MAX, 2, 0), IOERR),
        (range(0, 0, 0), IOERR),
        (range(0, u32::MAX, 0), IOERR),
        (range(0, 1, 1), UNSUPP),
        (vec![0; 15], IOERR),
        (vec![0; 16 * 33], IOERR),
    ] {
        bench.driver.write(DATA, &bytes);
        assert_eq!(
            bench
                .request(VIRTIO_BLK_T_DISCARD, 0, bytes.len() as u32, false)
                .0,
            status,
            "{bytes:?}"
        );
    }
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
}

fn a_request_may_be_cut_into_descriptors_anyhow(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.put_header(VIRTIO_BLK_T_IN, 5);
    bench.driver.describe(0, (HEADER, 7, NEXT, 1));
    bench.driver.describe(1, (HEADER + 7, 9, NEXT, 2));
    bench.driver.describe(2, (DATA, 500, NEXT | WRITE, 3));
    // The last twelve bytes of data and the status in one.
    bench.driver.describe(3, (STATUS - 12, 13, WRITE, 0));
    assert_eq!(bench.offer_first(), (OK, 513));
    assert_eq!(
        (
            bench.byte(DATA + 499),
            bench.byte(STATUS - 12),
            bench.byte(STATUS - 1)
        ),
        (5, 5, 5)
    );
}

fn a_request_may_be_in_an_indirect_table(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.put_header(VIRTIO_BLK_T_IN, 6);
    let table = GuestAddress(0x5000);
    bench.driver.describe_at(table, 0, (HEADER, 16, NEXT, 1));
    bench.driver.describe_at(table, 1, (DATA, 512, NEXT | WRITE, 2));
    bench.driver.describe_at(table, 2, (STATUS, 1, WRITE, 0));
    bench.driver.describe(0, (table.0, 48, INDIRECT, 0));
    assert_eq!(bench.offer_first(), (OK, 513));
    assert_eq!(bench.byte(DATA), 6);
}

fn malformed_chains_are_returned_and_counted_and_the_next_is_served(engine: DriveEngine) {
    let chains: [&[(u64, u32, u16, u16)]; 6] = [
        // No status, no header, header too short, nothing at all.
        &[(HEADER, 16, 0, 0)],
        &[(STATUS, 1, WRITE, 0)],
        &[(HEADER, 15, NEXT, 1), (STATUS, 1, WRITE, 0)],
        &[(HEADER, 0, 0, 0)],
        // Readable after writable; outside memory.
        &[
            (HEADER, 16, NEXT, 1),
            (STATUS, 1, WRITE | NEXT, 2),
            (HEADER, 16, 0, 0),
        ],
        &[
            (HEADER, 16, NEXT, 1),
            (0xd000_0000, 512, WRITE | NEXT, 2),
            (STATUS, 1, WRITE, 0),
        ],
    ];
    let mut bench = Bench::new(engine, false);
    for chain in chains {
        bench.put_header(VIRTIO_BLK_T_IN, 0);
        for (index, descriptor) in (0..).zip(chain) {
            bench.driver.describe(index, *descriptor);
        }
        assert_eq!(bench.offer_first(), (UNTOUCHED, 0), "{chain:x?}");
    }
    assert_eq!(bench.errors(), chains.len() as u64);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
}

fn a_broken_available_index_fails_the_device_and_a_reset_mends_it(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    bench.driver.set_available(300);
    bench.driver.kick();
    // The thread has ended by itself; the device can still be reset and used again.
    bench.block.stop();
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

fn another_device_goes_on_in_the_same_queue(engine: DriveEngine) {
    let mut bench = Bench::new(engine, false);
    for _ in 0..3 {
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
        let positions = bench.block.stop();
        assert_eq!(positions.len(), 1);
        let activation = Activation {
            memory: bench.driver.memory.clone(),
            queues: vec![bench.driver.continued(positions[0])],
            interrupt: bench.interrupt.clone(),
            features: 0,
            restored: true,
        };
        bench.block.activate(activation).unwrap();
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 512, true).0, OK);
}

fn configuration_tells_the_capacity_and_reads_as_zero_past_its_end(engine: DriveEngine) {
    let bench = Bench::new(engine, false);
    let mut capacity = [0xee; 8];
    bench.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    for offset in [57, 60, 1 << 40, u64::MAX] {
        let mut bytes = [0; 8];
        bench.block.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 8], "{offset}");
    }
}

#[test]
fn a_file_without_a_sector_is_no_disk() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(
        Disk::new(file, "x", true, Arc::default(), Throttle::open()),
        Err(DiskError::Empty(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn random_descriptors_never_hurt_the_file_outside_its_size(
        in_order in any::<bool>(),
        descriptors in proptest::collection::vec((0u64..0x20_000, 0u32..2048, 0u16..4, 0u16..8), 8),
        kind in 0u32..16,
        sector in 0u64..80,
    ) {
        let engine = if in_order { DriveEngine::InOrder } else { DriveEngine::IoUring };
        let mut bench = Bench::new(engine, false);
        bench.put_header(kind, sector);
        for (index, descriptor) in (0..).zip(&descriptors) {
            bench.driver.describe(index, *descriptor);
        }
        bench.driver.describe(0, (HEADER, 16, NEXT, 1));
        bench.offer_first();
        prop_assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
        prop_assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true).0, OK);
    }
}
