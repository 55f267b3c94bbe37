//! Attacks on block devices (virtio 1.3, 5.2.6).

use super::Passed;
use crate::machine::{read, write};
use crate::virtio::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x10_0000;
const STATUS_BYTE: u64 = BUFFERS + 0x8000;
const NOT_ANSWERED: u8 = 0xee;

/// What the device answers to a request with so many bytes to read or to write.
fn answer(device: &Device, kind: u32, sector: u64, bytes: u32, flags: u16) -> Option<u8> {
    device.start(device.usual_features());
    write(HEADER, [u64::from(kind), sector]);
    write(STATUS_BYTE, NOT_ANSWERED);
    let mut queue = device.queue(0);
    queue.describe(0, Descriptor::new(HEADER, 16, NEXT, 1));
    queue.describe(1, Descriptor::new(DATA, bytes, NEXT | flags, 2));
    queue.describe(2, Descriptor::new(STATUS_BYTE, 1, WRITE, 0));
    (queue.run(0) == Settled::Used).then(|| read(STATUS_BYTE))
}

/// Whether a request was refused, with an answer.
fn refused(status: Option<u8>) -> bool {
    matches!(status, Some(1 | 2))
}

pub fn bad_requests(device: &Device) -> Result<(), Passed> {
    let sectors: u64 = read(device.base + CONFIG);
    let outside = [
        sectors,
        sectors - 1,
        u64::MAX,
        u64::MAX - 1,
        u64::MAX / 512,
        1 << 55,
    ];
    for sector in outside {
        if !refused(answer(device, IN, sector, 1024, WRITE)) || !refused(answer(device, OUT, sector, 1024, 0))
        {
            return Err("sectors outside of the disk");
        }
    }
    for bytes in [1, 511, 513, 1025] {
        if !refused(answer(device, IN, 0, bytes, WRITE)) || !refused(answer(device, OUT, 0, bytes, 0)) {
            return Err("parts of a sector");
        }
    }
    for kind in [2, 3, 5, 7, 9, 99, u32::MAX] {
        if !refused(answer(device, kind, 0, 512, WRITE)) {
            return Err("a request of no kind");
        }
    }
    if device.features() & READ_ONLY != 0 {
        for kind in [OUT, FLUSH, DISCARD, WRITE_ZEROES] {
            if !refused(answer(device, kind, 0, 512, 0)) {
                return Err("a write to a disk that is read only");
            }
        }
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        // Sector, number of sectors, flags; then how many bytes of it are said to be there.
        let ranges: [(u64, u32, u32, u32); 8] = [
            (sectors, 8, 0, 16),
            (u64::MAX, 8, 0, 16),
            (0, u32::MAX, 0, 16),
            (0, 0, 0, 16),
            (0, 8, !1, 16),
            (0, 8, 0, 15),
            (0, 8, 0, 0),
            (0, 8, 0, 16 * 1000),
        ];
        for (sector, count, flags, bytes) in ranges {
            write(DATA, [sector, u64::from(count) | u64::from(flags) << 32]);
            if !refused(answer(device, kind, 0, bytes, 0)) {
                return Err("ranges that are none");
            }
        }
    }
    // No header, no place for an answer, an answer within the header.
    let shapes: [&[(u64, u32, u16)]; 5] = [
        &[(HEADER, 15, 0), (STATUS_BYTE, 1, WRITE)],
        &[(HEADER, 16, 0)],
        &[(HEADER, 16, 0), (STATUS_BYTE, 0, WRITE)],
        &[(HEADER, 16, 0), (HEADER, 1, WRITE)],
        &[(HEADER, 16, WRITE), (STATUS_BYTE, 1, WRITE)],
    ];
    for shape in shapes {
        device.start(device.usual_features());
        let mut queue = device.queue(0);
        for (index, (address, len, flags)) in (0..).zip(shape) {
            let next = if usize::from(index) + 1 < shape.len() {
                NEXT
            } else {
                0
            };
            queue.describe(index, Descriptor::new(*address, *len, flags | next, index + 1));
        }
        if queue.run(0) == Settled::Silent {
            return Err("a request that it neither uses nor refuses");
        }
    }
    Ok(())
}

/// A queue full of the dearest requests there are: a reset does not wait until they are all done.
pub fn endless_work(device: &Device) -> Result<(), Passed> {
    const SECTORS: u64 = 1 << 15;
    // As many ranges as the device takes, of 16 MiB each.
    let ranges = u64::from(device.read(CONFIG + 52));
    if device.features() & READ_ONLY != 0 {
        return Ok(());
    }
    let rings = |queue| Rings {
        size: 256,
        ..Rings::usual(queue)
    };
    device.start_with(device.usual_features(), rings);
    write(HEADER, [u64::from(WRITE_ZEROES), 0]);
    (0..ranges).for_each(|range| write(DATA + 16 * range, [0, SECTORS]));
    let mut queue = device.queue_of(0, rings(0));
    queue.describe(0, Descriptor::new(HEADER, 16, NEXT, 1));
    queue.describe(1, Descriptor::new(DATA, 16 * ranges as u32, NEXT, 2));
    queue.describe(2, Descriptor::new(STATUS_BYTE, 1, WRITE, 0));
    (0..256).for_each(|_| queue.offer(0));
    queue.kick();
    // Until it has begun.
    while queue.used() == 0 && !device.failed() {}
    device.reset();
    (queue.used() < 8)
        .then_some(())
        .ok_or("as much work before a reset as there is")
}
