//! Attacks by the rings themselves.

use super::Passed;
use crate::machine::{DMA, Random, fill, now, ram_end, write};
use crate::virtio::*;

/// An index that says that more is offered than there is room for.
pub fn available_index(device: &Device) -> Result<(), Passed> {
    for index in [SIZE as u16 + 1, 256, 0x8000, u16::MAX] {
        device.start(device.usual_features());
        for queue in 0..device.queues {
            let mut queue = device.queue(queue);
            queue.set_available(index);
            queue.kick();
        }
        if !device.fails() {
            return Err("more chains than there is room for");
        }
    }
    // Backwards.
    device.start(device.usual_features());
    let mut queue = device.queue(device.kind.busy_queue());
    queue.describe(0, Descriptor::new(BUFFERS, 16, 0, 0));
    for _ in 0..4 {
        if queue.run(0) != Settled::Used {
            return Err("nothing of what was offered");
        }
    }
    queue.set_available(2);
    queue.kick();
    device.fails().then_some(()).ok_or("an index that goes backwards")
}

/// The used ring is written around several times, and its index beyond its last value, while the driver never looks at
/// it.
pub fn used_overrun(device: &Device) -> Result<(), Passed> {
    const ROUNDS: u32 = 0x1_0000 / 256 + 3;
    let size = device.read_size_max(device.kind.busy_queue());
    let rings = |queue| Rings {
        size: if queue == device.kind.busy_queue() {
            size
        } else {
            SIZE
        },
        ..Rings::usual(queue)
    };
    device.start_with(device.usual_features(), rings);
    let index = device.kind.busy_queue();
    let mut queue = device.queue_of(index, rings(index));
    queue.describe(0, Descriptor::new(BUFFERS, 1, 0, 0));
    for _ in 0..ROUNDS * 256 / size {
        (0..size).for_each(|_| queue.offer(0));
        queue.kick();
        if queue.settle() != Settled::Used {
            return Err("nothing of what was offered");
        }
    }
    Ok(())
}

/// Rings in the place of one another.
pub fn rings_on_rings(device: &Device) -> Result<(), Passed> {
    for (available, used) in [
        (0, 0),
        (0, 0x8000),
        (0x4000, 0x4000),
        (0x4000, 0),
        (0x10, 0x14),
        (0x4002, 0x4000),
    ] {
        for flags in [0, WRITE] {
            let rings = |queue| {
                let usual = Rings::usual(queue);
                Rings {
                    available: usual.descriptors + available,
                    used: usual.descriptors + used,
                    ..usual
                }
            };
            device.start_with(device.usual_features(), rings);
            for index in 0..device.queues {
                let mut queue = device.queue_of(index, rings(index));
                for round in 0..8 {
                    queue.describe(round, Descriptor::new(BUFFERS, 64, flags, 0));
                    queue.offer(round);
                    queue.kick();
                }
            }
            pause();
        }
    }
    Ok(())
}

/// Has the device write over its own rings, as far as it writes at all.
pub fn dma_onto_rings(device: &Device) -> Result<(), Passed> {
    for area in 0..4 {
        device.start(device.usual_features());
        for index in 0..device.queues {
            let mut queue = device.queue(index);
            let rings = queue.rings;
            let target = [rings.descriptors, rings.available, rings.used, rings.used + 4][area];
            // For a block device a read of the first sectors; for a balloon the numbers of the rings' own pages.
            write(BUFFERS, [0_u64; 2]);
            write(BUFFERS + 64, (DMA.start / 4096) as u32);
            write(BUFFERS + 68, ((DMA.start + 0x4000) / 4096) as u32);
            for head in 0..4 {
                let header = 4 * head + 1;
                match device.kind {
                    Kind::Block => {
                        queue.describe(4 * head, Descriptor::new(BUFFERS, 16, NEXT, header));
                        queue.describe(header, Descriptor::new(target, 1024, NEXT | WRITE, header + 1));
                        queue.describe(header + 1, Descriptor::new(target + 2, 1, WRITE, 0));
                    }
                    Kind::Balloon if index == 0 => {
                        queue.describe(4 * head, Descriptor::new(BUFFERS + 64, 8, 0, 0));
                    }
                    _ => queue.describe(4 * head, Descriptor::new(target, 0x5000, WRITE, 0)),
                }
                queue.offer(4 * head);
            }
            queue.kick();
        }
        if device.kind == Kind::Vsock {
            super::vsock::ask_for_answers(device, 4);
        }
        pause();
    }
    Ok(())
}

/// Numbers drawn by lot, mostly ones that mean something, in descriptors, rings and registers.
pub fn noise(device: &Device) -> Result<(), Passed> {
    let mut random = Random::new(device.base);
    for _ in 0..60 {
        let features = if random.below(2) == 0 {
            device.features()
        } else {
            device.usual_features()
        };
        device.start(features);
        for _ in 0..24 {
            let index = random.below(u64::from(device.queues)) as u32;
            let mut queue = device.queue(index);
            for entry in 0..SIZE as u16 {
                queue.describe(entry, descriptor(&mut random));
            }
            for slot in 0..u64::from(SIZE) {
                let head = random.one_of([0, 1, 2, 3, 5, 8, 13, 16, u16::MAX]);
                // Mostly heads that are there.
                let head = if random.below(16) == 0 {
                    head
                } else {
                    head % SIZE as u16
                };
                write(queue.rings.available + 4 + 2 * slot, head);
            }
            let random_bytes = random.next();
            write(BUFFERS + random.below(0x1000), random_bytes);
            queue.set_available(random.below(u64::from(SIZE) + 2) as u16);
            queue.kick();
            if random.below(8) == 0 {
                write(device.base + random.below(0x200), random.next() as u32);
            }
        }
    }
    Ok(())
}

/// A descriptor drawn by lot.
pub fn descriptor(random: &mut Random) -> Descriptor {
    let end = ram_end();
    let near = BUFFERS + random.below(0x1_0000);
    let rings = DMA.start + random.one_of([0, 0x4000, 0x8000]);
    let odd = random.one_of([0, rings, rings, end - 1, end, 0xd000_0000, !0 - 100]);
    Descriptor {
        address: if random.below(4) == 0 { odd } else { near },
        len: random.one_of([
            0,
            1,
            4,
            12,
            16,
            44,
            64,
            512,
            513,
            4096,
            65536,
            1 << 20,
            0x8000_0000,
            u32::MAX,
        ]),
        flags: random.one_of([
            0,
            NEXT,
            NEXT,
            NEXT,
            WRITE,
            NEXT | WRITE,
            NEXT | WRITE,
            INDIRECT,
            !0,
        ]),
        next: random.below(u64::from(SIZE) + 1) as u16,
    }
}

/// Long enough for a device to begin.
fn pause() {
    let start = now();
    while now().wrapping_sub(start) < 4 << 20 {
        core::hint::spin_loop();
    }
    fill(BUFFERS, 64, 0);
}
