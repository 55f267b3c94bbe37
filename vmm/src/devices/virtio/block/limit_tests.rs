//! The block device under limits. Where a test must not depend on the clock, the rate is so low that nothing flows in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::*;

use super::tests::{Bench, DATA, HEADER, IOERR, OK, SECTORS, STATUS, for_each_engine};
use crate::config::{DriveEngine, LimitsConfig};
use crate::devices::virtio::net::driver::{NEXT, WRITE};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::jail::Jail;

fn throttle(limits: LimitsConfig) -> Arc<Throttle> {
    Arc::new(Throttle::new(Some(limits), Arc::default(), |counters| &counters.block_throttled).unwrap())
}

fn limited(engine: DriveEngine, limits: LimitsConfig) -> (Bench, Arc<Throttle>) {
    let throttle = throttle(limits);
    (Bench::with(engine, false, throttle.clone(), Jail::NONE), throttle)
}

impl Bench {
    /// Offers `count` reads of one sector each.
    fn offer_reads(&mut self, count: u16) {
        self.put_header(VIRTIO_BLK_T_IN, 1);
        for head in (0..count).map(|read| 3 * read) {
            self.driver.describe(head, (HEADER, 16, NEXT, head + 1));
            self.driver
                .describe(head + 1, (DATA, 512, NEXT | WRITE, head + 2));
            self.driver.describe(head + 2, (STATUS, 1, WRITE, 0));
            self.driver.offer_head(head);
        }
    }

    /// Waits until the next `reads` are done, in order.
    fn wait_for_reads(&mut self, reads: std::ops::Range<u16>) {
        for read in reads {
            assert_eq!(self.driver.wait_used(&self.interrupt), (3 * read, 513));
        }
    }

    fn activation(&mut self, next: u16) -> Activation {
        let position = crate::devices::virtio::QueuePosition {
            next_avail: next,
            next_used: next,
        };
        Activation {
            memory: self.driver.memory.clone(),
            queues: vec![self.driver.continued(position)],
            interrupt: self.interrupt.clone(),
            features: 0,
            restored: true,
        }
    }
}

for_each_engine!(
    a_drive_gives_its_burst_tells_the_driver_and_waits_until_its_limits_change,
    requests_are_no_faster_than_the_rate,
    a_request_larger_than_the_burst_is_served_and_the_next_waits_for_the_rest,
    only_bytes_that_are_moved_count,
    a_drive_that_waits_stops_at_once_and_another_goes_on_where_it_was,
    a_confined_thread_can_wait,
);

fn a_drive_gives_its_burst_tells_the_driver_and_waits_until_its_limits_change(engine: DriveEngine) {
    let (mut bench, throttle) = limited(engine, LimitsConfig::bytes(1, 2048));
    bench.offer_reads(10);
    // Each of them needs the interrupt for what was done before the wait.
    bench.wait_for_reads(0..4);
    throttle.wait_until_throttled(1);
    assert_eq!(bench.driver.take_used(), None);
    assert_eq!(bench.counters.snapshot().block_read_bytes, 2048);
    // Another limit of the same kind holds what is used, and says when to go on.
    throttle.change(Some(LimitsConfig::bytes(100_000, 512)));
    bench.wait_for_reads(4..9);
    throttle.change(None);
    bench.wait_for_reads(9..10);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 2, 512, true), (OK, 513));
}

fn requests_are_no_faster_than_the_rate(engine: DriveEngine) {
    const PER_SECOND: u64 = 100;
    let start = Instant::now();
    let (mut bench, _throttle) = limited(engine, LimitsConfig::ops(PER_SECOND, 2));
    bench.offer_reads(12);
    bench.wait_for_reads(0..12);
    assert!(start.elapsed() >= Duration::from_secs(1) * (12 - 2) / PER_SECOND as u32);
}

fn a_request_larger_than_the_burst_is_served_and_the_next_waits_for_the_rest(engine: DriveEngine) {
    let (mut bench, throttle) = limited(engine, LimitsConfig::bytes(1, 512));
    let bytes = SECTORS as u32 * 512;
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, bytes, true), (OK, bytes + 1));
    bench.offer_reads(1);
    throttle.wait_until_throttled(1);
    assert_eq!(bench.driver.take_used(), None);
    throttle.change(Some(LimitsConfig::bytes(1_000_000, 512)));
    bench.wait_for_reads(0..1);
}

fn only_bytes_that_are_moved_count(engine: DriveEngine) {
    let (mut bench, throttle) = limited(engine, LimitsConfig::bytes(1, 1024));
    for _ in 0..10 {
        let outside = bench.request(VIRTIO_BLK_T_IN, SECTORS, 1024, true);
        assert_eq!(outside, (IOERR, 1));
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), (OK, 1));
    }
    assert_eq!(bench.errors(), 10);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 1024, false), (OK, 1));
    bench.offer_reads(1);
    throttle.wait_until_throttled(1);
}

fn a_drive_that_waits_stops_at_once_and_another_goes_on_where_it_was(engine: DriveEngine) {
    let (mut bench, throttle) = limited(engine, LimitsConfig::bytes(1, 2048));
    bench.offer_reads(10);
    bench.wait_for_reads(0..4);
    throttle.wait_until_throttled(1);
    let start = Instant::now();
    let positions = bench.block.stop();
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the wait is 512 seconds"
    );
    assert_eq!((positions[0].next_avail, positions[0].next_used), (4, 4));

    // What is used stays used when the driver sets the device up anew.
    let activation = bench.activation(4);
    bench.block.activate(activation).unwrap();
    bench.driver.kick();
    throttle.change(Some(LimitsConfig::bytes(1, 2048)));
    throttle.wait_until_throttled(2);
    assert_eq!(bench.driver.take_used(), None);
    bench.block.stop();
    throttle.change(None);
    let activation = bench.activation(4);
    bench.block.activate(activation).unwrap();
    bench.wait_for_reads(4..10);
}

fn a_confined_thread_can_wait(engine: DriveEngine) {
    let throttle = throttle(LimitsConfig::ops(100, 1));
    let mut bench = Bench::with(engine, false, throttle, Jail::FILTERS_ALONE);
    bench.offer_reads(4);
    bench.wait_for_reads(0..4);
}
