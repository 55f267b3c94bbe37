//! Attacks through the registers alone.

use super::Passed;
use crate::machine::{DEVICES, DMA, move_string, out_wide, port_string, ram_end, read, write};
use crate::virtio::*;

/// Sizes that no queue may have: none, no power of two, too large, and too large for the number that they end up in.
pub fn queue_sizes(device: &Device) -> Result<(), Passed> {
    let too_large = [512, 0x8000, 0xffff, 0x1_0000, 0x1_0010, 0x8000_0010, u32::MAX];
    for queue in 0..device.queues {
        for size in [0, 3, 15, 24].into_iter().chain(too_large) {
            device.negotiate(device.usual_features());
            let rings = Rings::usual(queue);
            device.set_up(queue, &Rings { size, ..rings });
            if !device.failed() {
                return Err("a size of a queue");
            }
            device.driver_ok();
            if device.status() & DRIVER_OK != 0 {
                return Err("a driver that is ready with a broken queue");
            }
        }
    }
    Ok(())
}

pub fn rings_outside_ram(device: &Device) -> Result<(), Passed> {
    let queue = device.queues - 1;
    let end = ram_end();
    let outside = [
        0,
        end,
        end - 16,
        0xa_0000_0000,
        DEVICES.start,
        0xfee0_0000,
        1 << 52,
        !0xf,
        !0,
        // In RAM, and not aligned.
        DMA.start + 1,
    ];
    for address in outside {
        for area in 0..3 {
            let mut rings = Rings::usual(queue);
            match area {
                0 => rings.descriptors = address,
                1 => rings.available = address,
                _ => rings.used = address,
            }
            // The table is RAM at address zero as well, and the rings are short enough to fit before the end.
            let fits = address == 0 && area != 1 || address == end - 16 && area == 1;
            device.negotiate(device.usual_features());
            rings.size = if fits { continue } else { 32 };
            device.set_up(queue, &rings);
            if !device.failed() {
                return Err("a ring outside of memory");
            }
        }
    }
    Ok(())
}

pub fn features_not_offered(device: &Device) -> Result<(), Passed> {
    let offered = device.features();
    for features in [
        !0,
        !offered,
        0,
        offered & !VERSION_1,
        offered | 1 << 63,
        offered | 1 << 33,
    ] {
        device.negotiate(features);
        if device.status() & FEATURES_OK != 0 {
            return Err("features that it does not offer");
        }
    }
    for select in [2, 3, u32::MAX] {
        device.reset();
        device.write(STATUS, ACKNOWLEDGE);
        device.write(STATUS, ACKNOWLEDGE | DRIVER);
        device.write(DEVICE_FEATURES_SEL, select);
        if device.read(DEVICE_FEATURES) != 0 {
            return Err("features beyond the last");
        }
        device.write(DRIVER_FEATURES_SEL, select);
        device.write(DRIVER_FEATURES, u32::MAX);
        if !device.failed() {
            return Err("features beyond the last");
        }
    }
    Ok(())
}

pub fn status_out_of_order(device: &Device) -> Result<(), Passed> {
    for status in [DRIVER_OK, FEATURES_OK, DRIVER_OK | DRIVER, 0x30, 0x100, u32::MAX] {
        device.reset();
        device.write(STATUS, status);
        if device.status() & DRIVER_OK != 0 {
            return Err("a driver that is ready before it is known");
        }
    }
    // Ready, with no queue set up, or not all.
    for queues in 0..device.queues {
        device.negotiate(device.usual_features());
        (0..queues).for_each(|queue| device.set_up(queue, &Rings::usual(queue)));
        device.driver_ok();
        if !device.failed() {
            return Err("a driver that is ready without queues");
        }
    }
    // Again and again what is said once.
    device.start(device.usual_features());
    for round in 0..50 {
        device.write(STATUS, round);
        device.driver_ok();
        device.set_up(0, &Rings::usual(round % 4));
        device.accept(u64::from(round));
    }
    Ok(())
}

pub fn absent_queues(device: &Device) -> Result<(), Passed> {
    let absent = [device.queues, 8, 0xff, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX];
    device.negotiate(device.usual_features());
    for queue in absent {
        device.set_up(queue, &Rings::usual(0));
        if device.read(QUEUE_SIZE_MAX) != 0 || device.read(QUEUE_READY) != 0 {
            return Err("a queue that is not there");
        }
    }
    for started in [false, true] {
        if started {
            device.start(device.usual_features());
        }
        for _ in 0..20 {
            absent.iter().for_each(|queue| device.kick(*queue));
            // Queues that are there, told of in widths that no driver uses.
            write(device.base + QUEUE_NOTIFY, 0_u8);
            write(device.base + QUEUE_NOTIFY, 0_u16);
            write(device.base + QUEUE_NOTIFY, 0_u64);
            write(device.base + QUEUE_NOTIFY + 1, 0_u32);
        }
        if device.failed() {
            return Err("a kick of a queue that is not there, as if it were one");
        }
    }
    Ok(())
}

/// Writes to the configuration, before and after there is a driver: every width, every alignment, across the end.
pub fn config_writes(device: &Device) -> Result<(), Passed> {
    let id = device.read(8);
    for status in [0, ACKNOWLEDGE | DRIVER, u32::MAX] {
        if status == u32::MAX {
            device.start(device.usual_features());
        } else {
            device.write(STATUS, status);
        }
        for offset in (0..80).chain([0xe00, 0xef0, 0xeff]) {
            let address = device.base + CONFIG + offset;
            write(address, 0xff_u8);
            write(address, 0xffff_u16);
            write(address, !0_u32);
            write(address, !0_u64);
            write(address, [!0_u64; 2]);
        }
        // Across the end of this device, into the next one or nothing.
        if device.base + 0x1010 < DEVICES.end {
            write(device.base + 0xffc, !0_u64);
        }
        // From registers into memory and back, by string instructions.
        move_string(device.base + CONFIG, BUFFERS, 256);
        move_string(BUFFERS, device.base + CONFIG, 64);
    }
    // Ports, in widths and numbers that no driver uses.
    for port in [0x60, 0x61, 0x3f7, 0x3ff, 0x601, 0x603, 0xcf8, 0xffff] {
        out_wide(port, 0);
    }
    port_string(0x3ff, BUFFERS, 4096);
    (device.read(8) == id)
        .then_some(())
        .ok_or("a write to a register that cannot be written")
}

pub fn registers_of_every_width(device: &Device) -> Result<(), Passed> {
    let fixed = [0, 4, 8, 12];
    let before = fixed.map(|register| device.read(register));
    for started in [false, true] {
        if started {
            device.start(device.usual_features());
        }
        for offset in 0..CONFIG {
            let address = device.base + offset;
            write(address, 0x5a_u8);
            write(address, 0x5a5a_u16);
            write(address, !0_u64);
            // What is written to the status register otherwise ends what these writes are about.
            if !(STATUS - 3..STATUS + 4).contains(&offset) {
                write(address, 0x5a5a_5a5a_u32);
            }
            read::<u8>(address);
        }
    }
    device.write(INTERRUPT_ACK, u32::MAX);
    (fixed.map(|register| device.read(register)) == before)
        .then_some(())
        .ok_or("a write to a register that cannot be written")
}
