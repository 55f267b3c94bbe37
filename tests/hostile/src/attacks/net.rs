//! Attacks on network devices (virtio 1.3, 5.1.6).

use super::Passed;
use crate::machine::{Random, fill, now, write};
use crate::virtio::*;

const HEADER_BYTES: u32 = 12;

/// Frames that are too short, too long, in too many pieces, and with headers that ask for what cannot be.
pub fn bad_frames(device: &Device) -> Result<(), Passed> {
    device.start(device.usual_features());
    let mut queue = device.queue(1);
    fill(BUFFERS, 0x2_0000, 0xff);
    for len in [0, 1, 11, 12, 13, 25, 26, 65_535, 65_566, 65_567, 1 << 20] {
        fill(BUFFERS, 12, 0);
        queue.describe(0, Descriptor::new(BUFFERS, len, 0, 0));
        if queue.run(0) != Settled::Used {
            return Err("a frame that it does not use");
        }
    }
    let mut random = Random::new(1);
    for _ in 0..300 {
        // Flags, kind of segmentation, length of headers, size of segments, where the checksum is, how many buffers.
        let flags = random.one_of([0, 1, 2, 3, 0xff]);
        let gso = random.one_of([0, 1, 3, 4, 5, 0x80, 0x81, 0xff]);
        write(BUFFERS, [flags, gso]);
        for field in (2..12).step_by(2) {
            write(
                BUFFERS + field,
                random.one_of([0, 1, 14, 34, 1448, 0x7fff, u16::MAX]),
            );
        }
        let ethertype = random.one_of([0x0008, 0xdd86, 0x0081, 0xffff_u16]);
        write(BUFFERS + 24, ethertype);
        let len = random.one_of([14, 15, 34, 60, 1514, 9000, 65_535, 65_554]);
        queue.describe(0, Descriptor::new(BUFFERS, HEADER_BYTES + len, 0, 0));
        if queue.run(0) != Settled::Used {
            return Err("a frame that it does not use");
        }
    }
    // A byte a piece, by a table of its own.
    let table = BUFFERS + 0x10_0000;
    for pieces in [63, 64, 65, 1000_u64] {
        for piece in 0..pieces {
            let next = if piece + 1 < pieces { NEXT } else { 0 };
            Descriptor::new(BUFFERS + piece, 1, next, piece as u16 + 1).put(table + 16 * piece);
        }
        queue.describe(0, Descriptor::new(table, 16 * pieces as u32, INDIRECT, 0));
        if queue.run(0) != Settled::Used {
            return Err("a frame that it does not use");
        }
    }
    Ok(())
}

/// Room for frames of the host's, but not enough, or in odd pieces; the host sends all the while.
pub fn few_receive_buffers(device: &Device) -> Result<(), Passed> {
    const MERGEABLE: u64 = 1 << 15;
    for features in [device.usual_features(), device.usual_features() & !MERGEABLE] {
        for len in [0, 1, 11, 12, 13, 70, 1600, 1 << 20, u32::MAX] {
            device.start(features);
            let mut queue = device.queue(0);
            for head in 0..SIZE as u16 {
                queue.describe(head, Descriptor::new(BUFFERS + u64::from(head), len, WRITE, 0));
                queue.offer(head);
            }
            queue.kick();
            let start = now();
            while now().wrapping_sub(start) < 48 << 20 {}
        }
    }
    Ok(())
}
