//! Attacks by descriptor chains: each queue gets each of them, to read and to write.

use super::Passed;
use crate::machine::{DEVICES, DMA, fill, ram_end, write};
use crate::virtio::*;

/// Where indirect tables are.
const TABLE: u64 = BUFFERS + 0x10_0000;

/// Offers to each queue of the device chains that `prepare` makes for both directions, of which the first descriptor is 0,
/// and waits until it has looked at them where it looks by itself.
fn each(device: &Device, shapes: u16, prepare: impl Fn(&Queue<'_>, u16, u16)) -> Result<(), Passed> {
    fill(BUFFERS, 0x8000, 0);
    for index in 0..device.queues {
        for flags in [0, WRITE] {
            device.start(device.usual_features());
            let mut queue = device.queue(index);
            for shape in 0..shapes {
                prepare(&queue, shape, flags);
                if index != device.kind.busy_queue() {
                    queue.offer(0);
                    queue.kick();
                    continue;
                }
                match queue.run(0) {
                    Settled::Used => {}
                    Settled::Failed => {
                        device.start(device.usual_features());
                        queue = device.queue(index);
                    }
                    Settled::Silent => return Err("a chain that it neither uses nor refuses"),
                }
            }
        }
    }
    Ok(())
}

pub fn looping(device: &Device) -> Result<(), Passed> {
    each(device, 4, |queue, shape, flags| {
        let describe = |index: u16, len, next| {
            queue.describe(index, Descriptor::new(BUFFERS, len, flags | NEXT, next));
        };
        match shape {
            // To itself; to and fro; around; around with buffers as long as may be.
            0 => describe(0, 16, 0),
            1 => [(0, 1), (1, 0)]
                .into_iter()
                .for_each(|(from, to)| describe(from, 16, to)),
            2 => (0..SIZE as u16).for_each(|index| describe(index, 1, (index + 1) % SIZE as u16)),
            _ => (0..SIZE as u16).for_each(|index| describe(index, 8 << 20, (index + 1) % SIZE as u16)),
        }
    })
}

/// All heads at once, of chains that are each other's ends, with buffers that are each other's.
pub fn overlapping(device: &Device) -> Result<(), Passed> {
    for index in 0..device.queues {
        for flags in [0, WRITE] {
            device.start(device.usual_features());
            let mut queue = device.queue(index);
            for head in 0..SIZE as u16 {
                let last = head == SIZE as u16 - 1;
                let next = if last { 0 } else { NEXT };
                let address = BUFFERS + 7 * u64::from(head);
                queue.describe(head, Descriptor::new(address, 4096, flags | next, head + 1));
            }
            (0..SIZE as u16).for_each(|head| queue.offer(head));
            queue.kick();
            if index == device.kind.busy_queue() && queue.settle() == Settled::Silent {
                return Err("chains that it neither uses nor refuses");
            }
        }
    }
    Ok(())
}

pub fn outside_the_table(device: &Device) -> Result<(), Passed> {
    each(device, 3, |queue, shape, flags| {
        let next = [SIZE as u16, 0x8000, u16::MAX][usize::from(shape)];
        queue.describe(0, Descriptor::new(BUFFERS, 16, flags | NEXT, next));
    })?;
    // Heads that are no descriptors: there is nothing that could be used.
    for head in [SIZE as u16, 255, 256, u16::MAX] {
        device.start(device.usual_features());
        let mut queue = device.queue(device.kind.busy_queue());
        queue.offer(head);
        queue.kick();
        if !device.fails() {
            return Err("a head outside of the table");
        }
    }
    Ok(())
}

pub fn huge_lengths(device: &Device) -> Result<(), Passed> {
    each(device, 6, |queue, shape, flags| {
        let (address, len, more) = match shape {
            0 => (BUFFERS, u32::MAX, false),
            1 => (0, u32::MAX, true),
            2 => (BUFFERS, (DMA.end - BUFFERS) as u32, true),
            3 => (!0, u32::MAX, true),
            4 => (BUFFERS, 0, true),
            _ => (BUFFERS, 0x8000_0000, true),
        };
        let next = if more { NEXT } else { 0 };
        queue.describe(0, Descriptor::new(address, len, flags | next, 1));
        queue.describe(1, Descriptor::new(address, len, flags | next, 2));
        queue.describe(2, Descriptor::new(address, len, flags, 0));
    })
}

pub fn buffers_outside_ram(device: &Device) -> Result<(), Passed> {
    each(device, 7, |queue, shape, flags| {
        let address = [
            ram_end(),
            ram_end() - 8,
            DEVICES.start,
            DEVICES.start + QUEUE_NOTIFY,
            0xfee0_0000,
            1 << 63,
            !0 - 15,
        ][usize::from(shape)];
        // After a good header, and as one.
        queue.describe(0, Descriptor::new(BUFFERS, 44, flags | NEXT, 1));
        queue.describe(1, Descriptor::new(address, 512, flags, 0));
        queue.describe(2, Descriptor::new(address, 512, flags, 0));
    })
}

pub fn indirect_tables(device: &Device) -> Result<(), Passed> {
    // As many entries as there can be, each of one byte; they end nowhere.
    for entry in 0..u64::from(u16::MAX) {
        Descriptor::new(BUFFERS, 1, NEXT, entry as u16 + 1).put(TABLE + 16 * entry);
    }
    let whole = 16 * u32::from(u16::MAX);
    each(device, 9, |queue, shape, flags| {
        let long = flags | NEXT;
        let (address, len) = match shape {
            0 => (TABLE, whole),
            1 => (TABLE, 0),
            2 => (TABLE, 17),
            3 => (TABLE, 0xffff_fff0),
            4 => (ram_end() - 32, 64),
            5 => (!0 - 31, 64),
            // A table in a table; a table that is its own; one that goes on in circles.
            6 => {
                Descriptor::new(TABLE, 64, INDIRECT, 0).put(BUFFERS);
                (BUFFERS, 16)
            }
            7 => {
                let itself = BUFFERS + 64;
                Descriptor::new(itself, 16, INDIRECT | flags, 0).put(itself);
                (itself, 16)
            }
            _ => {
                let circle = BUFFERS + 128;
                Descriptor::new(BUFFERS, 16, long, 1).put(circle);
                Descriptor::new(BUFFERS, 16, long, 0).put(circle + 16);
                (circle, 32)
            }
        };
        queue.describe(0, Descriptor::new(address, len, INDIRECT | flags, 0));
    })?;
    // From a driver that has not asked for them, and with a successor beside the table.
    device.start(device.usual_features() & !INDIRECT_DESC);
    let mut queue = device.queue(device.kind.busy_queue());
    queue.describe(0, Descriptor::new(TABLE, 64, INDIRECT | NEXT, 1));
    queue.describe(1, Descriptor::new(BUFFERS, 64, WRITE, 0));
    match queue.run(0) {
        Settled::Silent => Err("a table that it neither uses nor refuses"),
        _ => Ok(()),
    }
}

pub fn wrong_directions(device: &Device) -> Result<(), Passed> {
    each(device, 4, |queue, shape, flags| {
        write(BUFFERS, [0_u64; 2]);
        let other = flags ^ WRITE;
        let directions = match shape {
            0 => [flags; 3],
            1 => [flags, other, flags],
            2 => [other, flags, other],
            _ => [flags, flags, other],
        };
        for (index, direction) in (0..).zip(directions) {
            let next = if index < 2 { NEXT } else { 0 };
            let descriptor =
                Descriptor::new(BUFFERS + 64 * u64::from(index), 64, direction | next, index + 1);
            queue.describe(index, descriptor);
        }
    })
}
