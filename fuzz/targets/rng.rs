//! Requests of a hostile driver for random bytes.
#![no_main]

use berth_fuzz::driver::{RING_STEPS, silent};
use berth_fuzz::{Guest, Input, Rings};
use berth_vmm::fuzzing::RngQueue;
use libfuzzer_sys::fuzz_target;

/// A driver that has random bytes written into its own rings can keep the device busy for long.
const MOST_REQUESTS: usize = 512;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let event_idx = input.flag();
    let mut rings = Rings::new(0, &mut input);
    let queue = rings.active(&guest, event_idx);
    let mut device =
        RngQueue::new(guest.memory.clone(), queue, silent()).expect("the queue's events can be made");
    while let Some(step) = input.step() {
        match step % 16 {
            0..=3 => {
                if !device.kick(MOST_REQUESTS).expect("an event can be made") {
                    break;
                }
            }
            step => rings.step(step % RING_STEPS, &guest, &mut input),
        }
    }
});
