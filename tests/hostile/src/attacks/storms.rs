//! Attacks by how often and when.

use super::Passed;
use crate::machine::{fill, now, read, write};
use crate::virtio::*;

/// Kicks of empty queues, of full ones, and of a device that has none yet.
pub fn kicks(device: &Device) -> Result<(), Passed> {
    const KICKS: u32 = 3000;
    device.negotiate(device.usual_features());
    (0..KICKS).for_each(|kick| device.kick(kick % device.queues));
    device.start(device.usual_features());
    (0..KICKS).for_each(|kick| device.kick(kick % device.queues));
    let index = device.kind.busy_queue();
    let mut queue = device.queue(index);
    queue.describe(0, Descriptor::new(BUFFERS, 16, 0, 0));
    for _ in 0..KICKS / 100 {
        (0..SIZE).for_each(|_| queue.offer(0));
        (0..100).for_each(|_| queue.kick());
        if queue.settle() != Settled::Used {
            return Err("nothing of what was offered");
        }
    }
    // Of a device that has failed.
    queue.set_available(queue.offered.wrapping_add(SIZE as u16 + 1));
    queue.kick();
    if !device.fails() {
        return Err("more chains than there is room for");
    }
    (0..KICKS).for_each(|kick| device.kick(kick % device.queues));
    Ok(())
}

/// A device that was reset touches no memory any more, whatever it was at.
pub fn reset_mid_flight(device: &Device) -> Result<(), Passed> {
    const DATA: u32 = 1 << 20;
    for round in 0..20_u64 {
        device.start(device.usual_features());
        // For a block device, a read of as much as there is.
        write(BUFFERS, [0_u64; 2]);
        for index in 0..device.queues {
            let mut queue = device.queue(index);
            for head in (0..SIZE as u16).step_by(4) {
                let data = BUFFERS + 0x10_0000;
                if device.kind == Kind::Block {
                    queue.describe(head, Descriptor::new(BUFFERS, 16, NEXT, head + 1));
                    queue.describe(head + 1, Descriptor::new(data, DATA, NEXT | WRITE, head + 2));
                    queue.describe(head + 2, Descriptor::new(data + u64::from(DATA), 1, WRITE, 0));
                } else {
                    let flags = if index == device.kind.busy_queue() && device.kind != Kind::Entropy {
                        0
                    } else {
                        WRITE
                    };
                    queue.describe(head, Descriptor::new(data, 4096, flags, 0));
                }
                queue.offer(head);
            }
            queue.kick();
        }
        // Each time a little later.
        let start = now();
        while now().wrapping_sub(start) < round << 16 {}
        device.reset();
        let used = Rings::usual(device.kind.busy_queue()).used;
        fill(used, 256, 0);
        fill(BUFFERS + 0x10_0000, 4096, 0);
        let start = now();
        while now().wrapping_sub(start) < 1 << 20 {}
        if read::<[u64; 8]>(used) != [0; 8] || read::<[u64; 8]>(BUFFERS + 0x10_0000) != [0; 8] {
            return Err("memory that it writes to after a reset");
        }
    }
    Ok(())
}
