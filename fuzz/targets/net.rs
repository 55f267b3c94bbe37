//! A hostile driver's frames to the tap, frames of any length from the tap to its buffers, and the device leaving its
//! queues. A socket pair is the tap.
#![no_main]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use berth_fuzz::driver::RING_STEPS;
use berth_fuzz::{Guest, Input, Rings};
use berth_vmm::fuzzing::NetQueues;
use libfuzzer_sys::fuzz_target;

/// A driver that has frames written into its own rings can keep the device busy for long.
const MOST_RUNS: usize = 8;
/// More than the longest frame with its header.
const LARGE: usize = 70_000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let event_idx = input.flag();
    let features = u64::from(input.u16());
    let mut rings = [Rings::new(0, &mut input), Rings::new(1, &mut input)];
    let [receive, transmit] = [&rings[0], &rings[1]].map(|rings| rings.queue(&guest, event_idx));
    let (tap, wire) = UnixDatagram::pair().expect("a socket pair can be made");
    for end in [&tap, &wire] {
        end.set_nonblocking(true).expect("a socket need not block");
    }
    let tap = OwnedFd::from(tap);
    let mut device =
        NetQueues::new(guest.memory.clone(), receive, transmit, features).expect("a timer can be made");
    let mut frame = vec![0; LARGE];
    while let Some(step) = input.step() {
        let sound = match step % 16 {
            0 | 1 => run(|| device.receive(&tap)),
            2 | 3 => {
                let sound = run(|| device.transmit(&tap));
                while wire.recv(&mut frame).is_ok_and(|len| len > 0) {}
                sound
            }
            4 | 5 => {
                let len = Guest::length(&mut input) as usize % LARGE;
                let content = input.some_bytes();
                frame.fill(0);
                frame[..content.len()].copy_from_slice(content);
                let _ = wire.send(&frame[..len]);
                true
            }
            // A sound frame: header, Ethernet header, and a buffer that lies anywhere.
            6 | 7 => {
                let content = input.bytes(26);
                let buffers = [
                    (Guest::address(&mut input), 26, false),
                    (Guest::address(&mut input), Guest::length(&mut input), false),
                ];
                rings[1].offer(&guest, content, &buffers);
                true
            }
            8 | 9 => {
                let buffer = (Guest::address(&mut input), Guest::length(&mut input), true);
                rings[0].offer(&guest, &[], &[buffer]);
                true
            }
            _ => {
                let which = usize::from(input.flag());
                rings[which].step(input.u8() % RING_STEPS, &guest, &mut input);
                true
            }
        };
        if !sound {
            return;
        }
    }
    device.leave();
});

/// Runs a queue until it rests; false for a broken one.
fn run(mut queue: impl FnMut() -> Option<bool>) -> bool {
    for _ in 0..MOST_RUNS {
        match queue() {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
    }
    true
}
