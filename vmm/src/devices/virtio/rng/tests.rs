//! The entropy device as its driver sees it.

use std::time::{Duration, Instant};

use super::*;
use crate::config::LimitsConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::driver::{Driver, TestInterrupt, memory};
use crate::jail::Thread;

fn start() -> (Rng, Driver, Arc<TestInterrupt>, Arc<Counters>) {
    start_with(Throttle::open(), Worker::unconfined())
}

fn start_with(throttle: Arc<Throttle>, worker: Worker) -> (Rng, Driver, Arc<TestInterrupt>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let mut rng = Rng::new(counters.clone(), throttle, worker);
    let memory = memory();
    let (driver, queue) = Driver::new(&memory, 0x10_0000, 64);
    let interrupt = Arc::new(TestInterrupt::default());
    let features = rng.features();
    rng.activate(Activation {
        memory,
        queues: vec![queue],
        interrupt: interrupt.clone(),
        features,
        restored: false,
    })
    .unwrap();
    (rng, driver, interrupt, counters)
}

#[test]
fn buffers_are_filled_with_random_bytes() {
    let (mut rng, mut driver, interrupt, counters) = start();
    driver.offer(&[(0x1000, 32), (0x2000, 32)], true);
    let (_, written) = driver.wait_used(&interrupt);
    assert_eq!(written, 64);
    let mut bytes = [0u8; 32];
    for address in [0x1000, 0x2000] {
        driver
            .memory
            .read_slice(&mut bytes, vm_memory::GuestAddress(address))
            .unwrap();
        assert!(bytes.iter().any(|byte| *byte != 0));
    }
    rng.stop();
    assert_eq!(counters.snapshot().entropy_bytes, 64);
}

#[test]
fn a_large_buffer_is_filled_only_as_far_as_one_request_goes() {
    let (mut rng, mut driver, interrupt, _) = start();
    driver.offer(&[(0x1000, 1 << 20)], true);
    assert_eq!(driver.wait_used(&interrupt).1, MAX_BYTES as u32);
    rng.stop();
}

#[test]
fn buffers_that_cannot_be_written_are_returned_empty_and_counted() {
    let (mut rng, mut driver, interrupt, counters) = start();
    for (address, writable) in [(0x1000, false), (0xd000_0000, true), (u64::MAX - 8, true)] {
        driver.offer(&[(address, 64)], writable);
        assert_eq!(driver.wait_used(&interrupt).1, 0, "{address:#x}");
    }
    rng.stop();
    assert_eq!(counters.snapshot().device_errors, 3);
}

fn throttle(limits: LimitsConfig) -> Arc<Throttle> {
    Arc::new(
        Throttle::new(Some(limits), Arc::default(), |counters| {
            &counters.entropy_throttled
        })
        .unwrap(),
    )
}

#[test]
fn a_limited_device_gives_its_burst_and_waits_until_its_limits_change() {
    // 64 seconds for the next buffer.
    let throttle = throttle(LimitsConfig::bytes(1, 128));
    let (mut rng, mut driver, interrupt, counters) = start_with(throttle.clone(), Worker::unconfined());
    for _ in 0..5 {
        driver.offer(&[(0x1000, 64)], true);
    }
    for _ in 0..2 {
        assert_eq!(driver.wait_used(&interrupt).1, 64);
    }
    throttle.wait_until_throttled(1);
    assert_eq!(driver.take_used(), None);
    assert_eq!(counters.snapshot().entropy_bytes, 128);
    throttle.change(None);
    for _ in 0..3 {
        assert_eq!(driver.wait_used(&interrupt).1, 64);
    }
    rng.stop();
}

#[test]
fn a_buffer_larger_than_a_request_counts_as_what_it_gets() {
    let throttle = throttle(LimitsConfig::bytes(1, 3 * MAX_BYTES as u64));
    let (mut rng, mut driver, interrupt, _) = start_with(throttle.clone(), Worker::unconfined());
    for _ in 0..4 {
        driver.offer(&[(0x1000, 1 << 20)], true);
    }
    for _ in 0..3 {
        assert_eq!(driver.wait_used(&interrupt).1, MAX_BYTES as u32);
    }
    throttle.wait_until_throttled(1);
    rng.stop();
}

#[test]
fn a_device_that_waits_stops_at_once() {
    let throttle = throttle(LimitsConfig::bytes(1, 128));
    let (mut rng, mut driver, interrupt, _) = start_with(throttle.clone(), Worker::unconfined());
    for _ in 0..3 {
        driver.offer(&[(0x1000, 128)], true);
    }
    driver.wait_used(&interrupt);
    throttle.wait_until_throttled(1);
    let start = Instant::now();
    let positions = rng.stop();
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the wait is 128 seconds"
    );
    assert_eq!(positions[0].next_avail, 1);
}

#[test]
fn a_confined_thread_can_wait_and_is_no_faster_than_the_rate() {
    let start = Instant::now();
    let throttle = throttle(LimitsConfig::ops(100, 1));
    let (mut rng, mut driver, interrupt, _) = start_with(throttle, Worker::confined(Thread::Rng));
    for _ in 0..5 {
        driver.offer(&[(0x1000, 64)], true);
    }
    for _ in 0..5 {
        driver.wait_used(&interrupt);
    }
    assert!(start.elapsed() >= Duration::from_millis(40));
    rng.stop();
}
