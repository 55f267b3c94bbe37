//! States that nobody wrote: any bytes as the file, a right header before any content, and devices that take up what was
//! decoded, or the state of a sound device with some bytes changed.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use berth_fuzz::driver::RING_STEPS;
use berth_fuzz::transport::Transport;
use berth_fuzz::{Guest, Input};
use berth_vmm::devices::virtio::mmio::TransportState;
use berth_vmm::snapshot::{self, MachineState, STATE_VERSION, SnapshotError};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => drop(read(input.rest())),
        1 => {
            let Ok(state) = read(&sealed(input.rest())) else {
                return;
            };
            let guest = Guest::default();
            for (kind, state) in (0..4).zip(&state.devices) {
                take_up(kind, state, &guest);
            }
        }
        2 => {
            let kind = input.u8();
            if let Ok(state) = postcard::from_bytes(input.rest()) {
                take_up(kind, &state, &Guest::default());
            }
        }
        _ => changed(&mut input),
    }
});

/// The content behind the header that belongs to it.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut file = b"BERTHVMS".to_vec();
    file.extend(STATE_VERSION.to_le_bytes());
    file.extend(crc32fast::hash(content).to_le_bytes());
    file.extend(content);
    file
}

fn read(bytes: &[u8]) -> Result<MachineState, SnapshotError> {
    let file = memfd_create(c"state", MFdFlags::MFD_CLOEXEC).expect("a file in memory can be made");
    let file = File::from(file);
    file.write_all_at(bytes, 0)
        .expect("a file in memory can be written");
    snapshot::read(&file)
}

/// A device that cannot go on says so; one that does can be stopped, whatever it was told of its queues.
fn take_up(kind: u8, state: &TransportState, guest: &Guest) {
    let device = Transport::new(kind, guest);
    if device.transport.take_up(state).is_ok() {
        device.kick(0);
        let _ = device.transport.leave();
    }
    device.transport.reset();
}

fn changed(input: &mut Input) {
    let guest = Guest::default();
    let kind = input.u8();
    let device = Transport::new(kind, &guest);
    let mut rings = device.set_up(0, 0, 2 << (input.u8() % 8));
    for _ in 0..input.u8() % 8 {
        let which = usize::from(input.u8()) % rings.len();
        rings[which].step(input.u8() % RING_STEPS, &guest, input);
    }
    let Ok(state) = device.transport.leave() else {
        return;
    };
    let mut bytes = postcard::to_allocvec(&state).expect("a state can be encoded");
    while let Some(at) = input.step() {
        let at = usize::from(at) % bytes.len();
        bytes[at] ^= input.u8();
    }
    if let Ok(state) = postcard::from_bytes(&bytes) {
        take_up(kind, &state, &guest);
    }
}
