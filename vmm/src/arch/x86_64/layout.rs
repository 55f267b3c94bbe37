//! Where things are in the guest's physical address space and its port space.
//!
//! ```text
//! 0x0000_0000  RAM: the PVH structures and the command line; the rest is the guest's
//! 0x000a_0000  nothing
//! 0x000e_0000  ACPI tables, and the generation id in the last page
//! 0x0010_0000  RAM: kernel, … , initrd at its end
//! 0xc000_0000  the gap: devices, no RAM
//! 0x1_0000_0000 RAM: what did not fit below the gap
//! ```

use std::ops::Range;

/// Where the PVH start-info structure is (one page with the module list).
pub const START_INFO: u64 = 0x6000;
/// Where the list of boot modules is.
pub const MODULE_LIST: u64 = 0x6100;
/// Where the memory map handed to the kernel is.
pub const MEMORY_MAP: u64 = 0x7000;
/// Where the kernel command line is.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, without its terminating zero (`COMMAND_LINE_SIZE` of x86 Linux).
pub const MAX_CMDLINE_BYTES: usize = 2047;
/// End of the RAM below 1 MiB that the guest may use.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..GENERATION_ID;
/// The virtual machine generation id, in a page of its own.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Its size.
pub const GENERATION_ID_BYTES: usize = 16;
/// Where RAM goes on after the legacy hole, and where kernels are linked to start at the earliest.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The gap below 4 GiB in which devices are.
pub const GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// The first virtio-mmio device; each has [`VIRTIO_MMIO_BYTES`].
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Address space of one virtio-mmio device.
pub const VIRTIO_MMIO_BYTES: u64 = 0x1000;
/// The I/O APIC (in KVM).
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs (in KVM).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for the identity map of real mode on Intel, then three for the task state segment.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: usize = 0xfffb_d000;

/// The interrupt line on which ACPI is told of events.
pub const ACPI_GSI: u32 = 3;
/// First of the interrupt lines of virtio devices. Line 4 is the serial port's.
pub const VIRTIO_GSI_BASE: u32 = 5;
/// Interrupt lines of the one I/O APIC.
pub const IOAPIC_LINES: u32 = 24;
/// As many virtio devices as there are interrupt lines for.
pub const MAX_VIRTIO_DEVICES: usize = (IOAPIC_LINES - VIRTIO_GSI_BASE) as usize;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its number of ports.
pub const SERIAL_PORTS: u16 = 8;
/// Its interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// The ACPI sleep control register, with the sleep status and the reset register after it.
pub const POWER_PORT: u16 = 0x600;
/// Number of ports of [`POWER_PORT`].
pub const POWER_PORTS: u16 = 3;

/// The guest-physical ranges of `bytes` of RAM: below the gap and, if that is not enough, above it.
pub fn ram_ranges(bytes: u64) -> Vec<Range<u64>> {
    let below = bytes.min(GAP.start);
    let above = GAP.end..GAP.end + (bytes - below);
    [0..below, above]
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect()
}

/// The registers of the virtio device `index`.
pub fn virtio_mmio_base(index: usize) -> u64 {
    VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_BYTES
}

/// The interrupt line of the virtio device `index`.
pub fn virtio_gsi(index: usize) -> u32 {
    debug_assert!(index < MAX_VIRTIO_DEVICES);
    VIRTIO_GSI_BASE + index as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::MAX_MEMORY_MIB;

    fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
        a.start < b.end && b.start < a.end
    }

    proptest! {
        #[test]
        fn ram_has_the_size_asked_for_and_overlaps_nothing(mib in 32..=MAX_MEMORY_MIB) {
            let bytes = u64::from(mib) << 20;
            let ranges = ram_ranges(bytes);
            prop_assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), bytes);
            prop_assert_eq!(ranges[0].start, 0);
            for (index, range) in ranges.iter().enumerate() {
                prop_assert!(range.start < range.end);
                prop_assert!(!overlap(range, &GAP));
                prop_assert!(ranges[..index].iter().all(|other| !overlap(range, other)));
            }
            prop_assert!(ranges[0].end > ACPI_TABLES.end);
        }
    }

    #[test]
    fn devices_lie_in_the_gap_beside_one_another() {
        let mut ranges: Vec<Range<u64>> = (0..MAX_VIRTIO_DEVICES)
            .map(|index| virtio_mmio_base(index)..virtio_mmio_base(index) + VIRTIO_MMIO_BYTES)
            .collect();
        ranges.push(u64::from(IOAPIC)..u64::from(IOAPIC) + 0x1000);
        ranges.push(u64::from(LOCAL_APIC)..u64::from(LOCAL_APIC) + 0x1000);
        ranges.push(KVM_IDENTITY_MAP..KVM_IDENTITY_MAP + 0x1000);
        ranges.push(KVM_TSS as u64..KVM_TSS as u64 + 0x3000);
        for (index, range) in ranges.iter().enumerate() {
            assert!(GAP.start <= range.start && range.end <= GAP.end, "{range:x?}");
            assert!(
                ranges[..index].iter().all(|other| !overlap(range, other)),
                "{range:x?}"
            );
        }
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let ranges = [
            START_INFO..MODULE_LIST,
            MODULE_LIST..MODULE_LIST + 0x100,
            MEMORY_MAP..MEMORY_MAP + 0x1000,
            CMDLINE..CMDLINE + MAX_CMDLINE_BYTES as u64 + 1,
            ACPI_TABLES,
        ];
        for (index, range) in ranges.iter().enumerate() {
            assert!(
                ranges[..index].iter().all(|other| !overlap(range, other)),
                "{range:x?}"
            );
        }
    }

    #[test]
    fn every_device_has_a_line_of_its_own() {
        let lines: Vec<u32> = (0..MAX_VIRTIO_DEVICES).map(virtio_gsi).collect();
        assert_eq!(lines.first(), Some(&5));
        assert_eq!(lines.last(), Some(&23));
        assert!(!lines.contains(&SERIAL_GSI));
    }
}
