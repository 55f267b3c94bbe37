//! The entropy device as its driver sees it.

use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::driver::{Driver, TestInterrupt, memory};

fn start() -> (Rng, Driver, Arc<TestInterrupt>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let mut rng = Rng::new(counters.clone(), Throttle::open(), Worker::unconfined());
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
