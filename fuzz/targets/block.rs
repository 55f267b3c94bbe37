//! Requests of a hostile driver to a small disk, which must not change its size, nor its content if it is read-only.
#![no_main]

use std::os::unix::fs::FileExt;

use berth_fuzz::driver::{RING_STEPS, silent};
use berth_fuzz::transport::{DISK_BYTES, disk};
use berth_fuzz::{Guest, Input, Rings};
use berth_vmm::fuzzing::BlockQueue;
use libfuzzer_sys::fuzz_target;

/// A driver that writes into its own rings can keep the device busy for ever.
const MOST_REQUESTS: usize = 512;
/// Reading, writing, flushing, the serial number, discarding, writing zeroes (virtio 1.3, 5.2.6).
const KINDS: [u32; 6] = [0, 1, 4, 8, 11, 13];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let flags = input.u8();
    let (read_only, event_idx, by_ring) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let mut rings = Rings::new(0, &mut input);
    let file = disk();
    file.write_all_at(b"first sector", 0)
        .expect("the disk can be written");
    let seen = file.try_clone().expect("a descriptor can be cloned");
    let queue = rings.active(&guest, event_idx);
    let mut device = BlockQueue::new(file, read_only, by_ring, guest.memory.clone(), queue, silent())
        .expect("the disk has sectors")
        .expect("the queue's events can be made");
    while let Some(step) = input.step() {
        match step % 16 {
            0..=3 => {
                if !device.kick(MOST_REQUESTS).expect("an event can be made") {
                    break;
                }
            }
            4..=7 => request(&mut rings, &guest, &mut input),
            step => rings.step(step % RING_STEPS, &guest, &mut input),
        }
    }
    let bytes = seen.metadata().expect("the disk has a size").len();
    assert_eq!(bytes, DISK_BYTES, "the disk has another size");
    if read_only {
        let mut content = [0; DISK_BYTES as usize];
        seen.read_exact_at(&mut content, 0).expect("the disk can be read");
        assert!(
            content.starts_with(b"first sector\0"),
            "a read-only disk was written"
        );
        assert!(
            content[12..].iter().all(|byte| *byte == 0),
            "a read-only disk was written"
        );
    }
});

/// Offers a request that is sound in its form.
fn request(rings: &mut Rings, guest: &Guest, input: &mut Input) {
    let kind = match input.u8() {
        known @ 0..0xe0 => KINDS[usize::from(known) % KINDS.len()],
        _ => input.u32(),
    };
    let sector = near_the_end(input);
    let mut content = Vec::from(kind.to_le_bytes());
    content.extend([0; 4]);
    content.extend(sector.to_le_bytes());
    let mut buffers = vec![(Guest::address(input), 16, false)];
    if matches!(kind, 11 | 13) {
        // Ranges to discard or to make zero.
        let ranges = input.u8() % 4;
        for _ in 0..ranges {
            content.extend(near_the_end(input).to_le_bytes());
            content.extend((input.number() as u32).to_le_bytes());
            content.extend(u32::from(input.u8()).to_le_bytes());
        }
        buffers.push((Guest::address(input), 16 * u32::from(ranges), false));
    } else {
        let writable = kind != 1;
        for _ in 0..input.u8() % 8 {
            let length = match input.u8() {
                sectors @ 0..0xe0 => u32::from(sectors % 4) * 512,
                _ => Guest::length(input),
            };
            buffers.push((Guest::address(input), length, writable));
        }
    }
    buffers.push((Guest::address(input), 1, true));
    rings.offer(guest, &content, &buffers);
}

/// Mostly on the disk or just behind its end.
fn near_the_end(input: &mut Input) -> u64 {
    match input.u8() {
        near @ 0..0xf0 => u64::from(near) % (DISK_BYTES / 512 + 3),
        _ => input.u64(),
    }
}
