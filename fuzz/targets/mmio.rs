//! A driver at the registers of a whole device: any access, set-up in part or in full, kicks, resets, and the device
//! written down and taken up by another.
#![no_main]

use berth_fuzz::driver::RING_STEPS;
use berth_fuzz::transport::Transport;
use berth_fuzz::{Guest, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let kind = input.u8();
    let mut device = Transport::new(kind, &guest);
    let mut rings = Vec::new();
    let mut successors = 0;
    while let Some(step) = input.step() {
        match step % 16 {
            0 | 1 => device.write(u64::from(input.u8()) * 4, input.u32()),
            2 => device.write(u64::from(input.u8() % 64) * 4, input.u8().into()),
            3 | 4 => {
                let (offset, write) = (input.number(), input.flag());
                let mut data = input.some_bytes().to_vec();
                device.access(offset, write, &mut data);
            }
            5 => {
                let (skipped, left_out) = match input.u8() % 8 {
                    0..=4 => (0, 0),
                    5 => (0, input.u64()),
                    _ => (input.u8() % 64, 0),
                };
                rings = device.set_up(skipped, left_out, 2 << (input.u8() % 8));
            }
            6 => device.transport.reset(),
            7 if successors < 4 => {
                let Ok(state) = device.transport.leave() else {
                    continue;
                };
                successors += 1;
                let successor = Transport::new(kind, &guest);
                // It may fail, as the guest can have broken its queues meanwhile; then the new device is as it was.
                let _ = successor.transport.take_up(&state);
                device = successor;
            }
            8..=10 => device.kick(input.u8()),
            _ => {
                let which = usize::from(input.u8());
                let count = rings.len().max(1);
                if let Some(rings) = rings.get_mut(which % count) {
                    rings.step(input.u8() % RING_STEPS, &guest, &mut input);
                }
            }
        }
    }
    // The device's thread ends while the guest's memory is there, as a machine sees to it.
    device.transport.reset();
});
