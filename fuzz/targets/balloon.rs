//! Memory that a hostile driver gives back, or says that it does, and what it says of it when it is asked.
#![no_main]

use berth_fuzz::driver::{RING_STEPS, silent};
use berth_fuzz::{Guest, Input, Rings};
use berth_vmm::fuzzing::BalloonQueues;
use libfuzzer_sys::fuzz_target;

/// A driver can give the pages of its own rings, and the device finds its request there again, empty or not.
const MOST_REQUESTS: usize = 512;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let event_idx = input.flag();
    let mut rings = [0, 1, 2, 3].map(|index| Rings::new(index, &mut input));
    let queues = rings.each_mut().map(|rings| rings.active(&guest, event_idx));
    let mut device =
        BalloonQueues::new(guest.memory.clone(), queues, silent()).expect("the queues' events can be made");
    while let Some(step) = input.step() {
        match step % 16 {
            0..=3 => {
                if !device.kick(MOST_REQUESTS).expect("an event can be made") {
                    break;
                }
            }
            4 => device.ask(),
            step => {
                let index = usize::from(input.step().unwrap_or_default()) % rings.len();
                rings[index].step(step % RING_STEPS, &guest, &mut input);
            }
        }
    }
    device.end();
});
