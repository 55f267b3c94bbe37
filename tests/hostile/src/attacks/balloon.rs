//! Attacks on balloons (virtio 1.3, 5.5.6).

use super::Passed;
use crate::machine::{DEVICES, DMA, Random, ram_end, read, wait, write};
use crate::virtio::*;

const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const STATISTICS: u32 = 2;
const REPORTING: u32 = 3;

fn run(queue: &mut Queue<'_>, address: u64, len: u32, flags: u16) -> Result<(), Passed> {
    queue.describe(0, Descriptor::new(address, len, flags, 0));
    match queue.run(0) {
        Settled::Used => Ok(()),
        _ => Err("a request that it does not use"),
    }
}

/// Numbers of pages that are not the guest's, lists that are too long or cut off, reports of what is no memory.
pub fn pages_that_are_not(device: &Device) -> Result<(), Passed> {
    device.start(device.usual_features());
    let mut inflate = device.queue(INFLATE);
    let registers = (DEVICES.start / 4096) as u32;
    for page in [
        u32::MAX,
        (ram_end() / 4096) as u32,
        registers,
        0x10_0000,
        0x8000_0000,
    ] {
        (0..4096).for_each(|at| write(BUFFERS + 4 * at, page));
        for bytes in [1, 3, 4, 5, 4096, 16384] {
            run(&mut inflate, BUFFERS, bytes, 0)?;
        }
    }
    run(&mut inflate, BUFFERS, (ram_end() - BUFFERS) as u32, 0)?;
    let mut deflate = device.queue(DEFLATE);
    run(&mut deflate, BUFFERS, 16384, 0)?;
    let mut reporting = device.queue(REPORTING);
    for (address, len) in [
        (ram_end() - 4096, 8192),
        (ram_end(), 4096),
        (DEVICES.start, 0x3000),
        (0xfee0_0000, 4096),
        (!0 - 4095, 4096),
        (BUFFERS, u32::MAX),
        (BUFFERS + 1, 4095),
        (BUFFERS, 0),
    ] {
        run(&mut reporting, address, len, WRITE)?;
    }
    let unchanged = device.read(8) == 5;
    unchanged.then_some(()).ok_or("its own registers as memory")
}

/// Pages that the guest can spare, one by one so that none has its neighbour, and then all of them at once.
pub fn all_memory(device: &Device) -> Result<(), Passed> {
    const PAGES: u64 = 4096;
    device.start(device.usual_features());
    let from = BUFFERS + 0x10_0000;
    (0..PAGES).for_each(|page| write(from + 4096 * page, !0_u64));
    let mut inflate = device.queue(INFLATE);
    for half in 0..2 {
        for index in 0..PAGES / 2 {
            let number = from / 4096 + 2 * index + half;
            write(BUFFERS + 4 * (index % 1024), number as u32);
            if index % 1024 == 1023 {
                run(&mut inflate, BUFFERS, 4096, 0)?;
            }
        }
    }
    if (0..PAGES).any(|page| read::<u64>(from + 4096 * page) != 0) {
        return Err("nothing of what it is given");
    }
    let mut reporting = device.queue(REPORTING);
    (0..20).try_for_each(|_| run(&mut reporting, from, (DMA.end - from) as u32, WRITE))
}

/// The same pages over and over, in one list and in chains as long as a queue.
pub fn the_same_pages(device: &Device) -> Result<(), Passed> {
    device.start(device.usual_features());
    let page = BUFFERS + 0x10_0000;
    (0..1024).for_each(|at| write(BUFFERS + 4 * at, (page / 4096) as u32));
    for index in [INFLATE, DEFLATE] {
        let mut queue = device.queue(index);
        for round in 0..SIZE as u16 {
            let (flags, next) = if round + 1 < SIZE as u16 {
                (NEXT, round + 1)
            } else {
                (0, 0)
            };
            queue.describe(round, Descriptor::new(BUFFERS, 4096, flags, next));
        }
        for _ in 0..50 {
            if queue.run(0) != Settled::Used {
                return Err("a long request that it does not use");
            }
            write(page, !0_u64);
        }
    }
    Ok(())
}

/// Statistics that nobody has asked for, of things that there are not, too long, and in more buffers than there should be; as
/// far as the host asks, all are answers. And a balloon that is larger than memory.
pub fn forged_statistics(device: &Device) -> Result<(), Passed> {
    /// Cycles in which the host may ask.
    const WHILE: u64 = 1 << 28;
    let mut random = Random::new(7);
    for round in 0..40 {
        device.start(device.usual_features());
        write(device.base + CONFIG + 4, random.one_of([0, 1, 0x1000, u32::MAX]));
        let mut queue = device.queue(STATISTICS);
        for head in 0..SIZE as u16 {
            (0..200).for_each(|at| write(BUFFERS + 10 * at, random.below(20) as u16));
            let address = random.one_of([
                BUFFERS,
                BUFFERS + 1,
                ram_end() - 4,
                ram_end(),
                DEVICES.start,
                !0 - 3,
            ]);
            let len = random.one_of([0, 1, 10, 160, 4096, u32::MAX]);
            let flags = random.one_of([0, 0, 0, NEXT, WRITE, NEXT | WRITE]);
            queue.describe(
                head,
                Descriptor::new(address, len, flags, (head + 1) % SIZE as u16),
            );
            queue.offer(head);
            queue.kick();
        }
        if round % 2 == 0 {
            wait(WHILE, || device.failed());
        }
        // What is outside of memory may be an answer, and no reason to stop.
        if device.failed() {
            return Err("statistics that it gives up for");
        }
    }
    Ok(())
}
