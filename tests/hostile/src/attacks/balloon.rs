//! Attacks on balloons (virtio 1.3, 5.5.6).

use super::Passed;
use crate::machine::{DEVICES, DMA, ram_end, read, write};
use crate::virtio::*;

const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const REPORTING: u32 = 2;

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
