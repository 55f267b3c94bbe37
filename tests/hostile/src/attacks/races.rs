//! Attacks by two processors at once: one drives a device, the other changes what the first has just said.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::Passed;
use super::rings::descriptor;
use crate::machine::{Random, now, start_second_processor, wait, write};
use crate::virtio::*;

/// The registers of the device that the second processor disturbs; 0 has it stop.
static DEVICE: AtomicU64 = AtomicU64::new(0);
static QUEUES: AtomicU32 = AtomicU32::new(0);
/// What it disturbs: the device's registers, or what is in its queues.
static REGISTERS: AtomicBool = AtomicBool::new(false);
/// How often it has.
static CHANGES: AtomicU64 = AtomicU64::new(0);
static STOPPED: AtomicBool = AtomicBool::new(true);

/// Indexes of the rings stay below it. A device that takes a ring for a table of descriptors writes to where they say, in units
/// of 64 KiB, and the program itself is at 48 MiB.
const MOST_OFFERED: u16 = 0x200;

const NO_SECOND: Passed = "nothing: there is no second processor";

/// What the second processor does: changes, as fast as it can, until it is told to stop.
pub fn second_processor() {
    let mut random = Random::new(now());
    loop {
        let base = DEVICE.load(Ordering::SeqCst);
        if base == 0 {
            break;
        }
        if REGISTERS.load(Ordering::Relaxed) {
            change_registers(base, &mut random);
        } else {
            change_queues(&mut random);
        }
        CHANGES.fetch_add(1, Ordering::SeqCst);
    }
    STOPPED.store(true, Ordering::SeqCst);
}

fn change_queues(random: &mut Random) {
    let queues = u64::from(QUEUES.load(Ordering::Relaxed));
    let rings = Rings::usual(random.below(queues) as u32);
    let entry = random.below(u64::from(SIZE));
    match random.below(8) {
        // The header of a request, or its data.
        0 => write(
            BUFFERS + 4 * random.below(16),
            random.one_of([0_u32, 1, 8, 13, u32::MAX]),
        ),
        // A head, and the index at which the device has just looked.
        1 => write(
            rings.available + 4 + 2 * entry,
            random.below(u64::from(SIZE)) as u16,
        ),
        2 => write(rings.used + 2, random.below(u64::from(MOST_OFFERED)) as u16),
        3 => good(random).put(rings.descriptors + 16 * entry),
        // Half of a descriptor: the address of one with the length of another.
        4 => write(rings.descriptors + 16 * entry, descriptor(random).address),
        5 => write(rings.descriptors + 16 * entry + 8, descriptor(random).len),
        6 => write(rings.descriptors + 16 * entry + 12, descriptor(random).flags),
        _ => descriptor(random).put(rings.descriptors + 16 * entry),
    }
}

fn good(random: &mut Random) -> Descriptor {
    let flags = random.one_of([0, NEXT, WRITE, NEXT | WRITE]);
    let next = random.below(u64::from(SIZE)) as u16;
    Descriptor::new(BUFFERS + random.below(0x1000), 16, flags, next)
}

fn change_registers(base: u64, random: &mut Random) {
    let register = random.one_of([
        STATUS,
        STATUS,
        QUEUE_SEL,
        QUEUE_SIZE,
        QUEUE_READY,
        QUEUE_NOTIFY,
        QUEUE_DESC,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
        DRIVER_FEATURES,
        INTERRUPT_ACK,
        CONFIG,
    ]);
    write(
        base + register,
        random.one_of([0_u32, 1, 2, 3, 7, 8, 11, 15, 16, 0x80_0000, u32::MAX]),
    );
}

/// Has the second processor disturb a device while `drive` drives it, so many times.
fn disturbed(device: &Device, registers: bool, rounds: u32, mut drive: impl FnMut()) -> Result<(), Passed> {
    QUEUES.store(device.queues, Ordering::SeqCst);
    REGISTERS.store(registers, Ordering::SeqCst);
    DEVICE.store(device.base, Ordering::SeqCst);
    STOPPED.store(false, Ordering::SeqCst);
    let before = CHANGES.load(Ordering::SeqCst);
    start_second_processor();
    if !wait(PATIENCE, || CHANGES.load(Ordering::SeqCst) != before) {
        return Err(NO_SECOND);
    }
    (0..rounds).for_each(|_| drive());
    DEVICE.store(0, Ordering::SeqCst);
    let stopped = wait(PATIENCE, || STOPPED.load(Ordering::SeqCst));
    stopped.then_some(()).ok_or(NO_SECOND)
}

/// Descriptors, rings and headers change while the device reads them.
pub fn changes_under_way(device: &Device) -> Result<(), Passed> {
    device.start(device.usual_features());
    let mut offered = 0;
    disturbed(device, false, 200, || {
        if device.failed() || offered >= MOST_OFFERED {
            device.start(device.usual_features());
            offered = 0;
        }
        for index in 0..device.queues {
            let mut queue = device.queue(index);
            queue.offered = offered;
            (0..SIZE as u16 / 2).for_each(|head| queue.offer(head));
            queue.kick();
        }
        offered += SIZE as u16 / 2;
        // Time for the device to be at it.
        let start = now();
        while now().wrapping_sub(start) < 1 << 18 {}
    })
}

/// Two drivers set one device up, use it and reset it, and know nothing of each other.
pub fn two_drivers(device: &Device) -> Result<(), Passed> {
    disturbed(device, true, 40, || {
        device.start(device.usual_features());
        for index in 0..device.queues {
            let mut queue = device.queue(index);
            queue.describe(0, Descriptor::new(BUFFERS, 64, 0, 0));
            queue.describe(1, Descriptor::new(BUFFERS, 64, WRITE, 0));
            queue.offer(0);
            queue.offer(1);
            queue.kick();
        }
        device.reset();
    })
}
