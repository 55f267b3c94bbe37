//! The ACPI tables (ACPI 6.5): hardware-reduced, so there is no SCI, no PM timer and no legacy interrupt controller.
//! Sleeping and resetting go through [`crate::devices::power`].

use acpi_tables::aml::{
    AmlStr, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use crate::devices::power;

const OEM_ID: [u8; 6] = *b"BERTH ";
const OEM_TABLE_ID: [u8; 8] = *b"BERTHVMM";
const OEM_REVISION: u32 = 1;

const GENERATION_DEVICE: &str = "\\_SB_.VGEN";

/// `IAPC_BOOT_ARCH` (ACPI 6.5, 5.2.9.3): no VGA, no CMOS clock. That the bits for legacy devices and for a keyboard
/// controller are clear spares the guest looking for them.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("the acpi tables need {0} bytes, more than there is room for")]
    TooLarge(usize),
    #[error("cannot write the acpi tables: {0}")]
    Write(#[from] GuestMemoryError),
}

/// What the tables tell the guest about.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    pub vcpus: u8,
    pub virtio_devices: usize,
    pub serial: bool,
}

/// Writes the tables for `hardware` and returns the address of the RSDP.
pub fn write_tables(memory: &GuestMemoryMmap, hardware: Hardware) -> Result<u64, AcpiError> {
    let base = layout::ACPI_TABLES.start;
    let tables = build_tables(base, hardware);
    let room = (layout::ACPI_TABLES.end - base) as usize;
    if tables.len() > room {
        return Err(AcpiError::TooLarge(tables.len()));
    }
    memory.write_slice(&tables, GuestAddress(base))?;
    Ok(base)
}

/// The tables as they lie in memory from `base` on, the RSDP first.
fn build_tables(base: u64, hardware: Hardware) -> Vec<u8> {
    let mut tables = Tables {
        base,
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = tables.append(&dsdt(hardware));
    let fadt = tables.append(&fadt(dsdt));
    let madt = tables.append(&madt(hardware.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    tables.bytes
}

struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends a table at the next 16-byte boundary and returns its address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |port| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.sleep_control_reg = register(layout::POWER_PORT + power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::POWER_PORT + power::SLEEP_STATUS);
    fadt.reset_reg = register(layout::POWER_PORT + power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt(hardware: Hardware) -> Sdt {
    let mut aml = Vec::new();
    let s5 = power::SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    let mut system_bus = Vec::new();
    for vcpu in 0..hardware.vcpus {
        processor(&mut system_bus, vcpu);
    }
    if hardware.serial {
        serial_port(&mut system_bus);
    }
    for index in 0..hardware.virtio_devices {
        virtio_device(&mut system_bus, index);
    }
    generation_id(&mut system_bus);
    event_device(&mut system_bus);
    aml.extend(Scope::raw("\\_SB_".into(), system_bus));

    // A DSDT of revision 2 has 64-bit integers.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

fn processor(sink: &mut dyn AmlSink, vcpu: u8) {
    Device::new(
        Path::new(&format!("C{vcpu:03}")),
        vec![
            &Name::new("_HID".into(), &AmlStr::from("ACPI0007")),
            &Name::new("_UID".into(), &vcpu),
        ],
    )
    .to_aml_bytes(sink);
}

fn serial_port(sink: &mut dyn AmlSink) {
    let ports = IO::new(
        layout::SERIAL_PORT,
        layout::SERIAL_PORT,
        1,
        layout::SERIAL_PORTS as u8,
    );
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &edge_interrupt(layout::SERIAL_GSI)]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn virtio_device(sink: &mut dyn AmlSink, index: usize) {
    // The gap lies below 4 GiB, so an address in it has 32 bits.
    let base = layout::virtio_mmio_base(index) as u32;
    let registers = Memory32Fixed::new(true, base, layout::VIRTIO_MMIO_BYTES as u32);
    Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new("_HID".into(), &AmlStr::from("LNRO0005")),
            &Name::new("_UID".into(), &index),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &edge_interrupt(layout::virtio_gsi(index))]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// Where the generation id is ("Virtual Machine Generation ID", Microsoft, 2012).
fn generation_id(sink: &mut dyn AmlSink) {
    // Below 4 GiB, so the upper half is zero.
    let address = layout::GENERATION_ID as u32;
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &AmlStr::from("BRTH0001")),
            &Name::new("_CID".into(), &AmlStr::from("VM_Gen_Counter")),
            &Name::new("_DDN".into(), &AmlStr::from("VM_Gen_Counter")),
            &Name::new("ADDR".into(), &Package::new(vec![&address, &ZERO])),
        ],
    )
    .to_aml_bytes(sink);
}

/// The device that stands for the general purpose events that a hardware-reduced machine does not have (ACPI 6.5, 5.6.9):
/// its one event is another generation id.
fn event_device(sink: &mut dyn AmlSink) {
    const CHANGED: u8 = 0x80;
    let generation = Path::new(GENERATION_DEVICE);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &AmlStr::from("ACPI0013")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&edge_interrupt(layout::ACPI_GSI)]),
            ),
            &Method::new("_EVT".into(), 1, true, vec![&Notify::new(&generation, &CHANGED)]),
        ],
    )
    .to_aml_bytes(sink);
}

fn edge_interrupt(line: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Hardware = Hardware {
        vcpus: 32,
        virtio_devices: layout::MAX_VIRTIO_DEVICES,
        serial: true,
    };

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(tables: &[u8], base: u64, address: u64) -> &[u8] {
        let start = (address - base) as usize;
        &tables[start..start + u32_at(tables, start + 4) as usize]
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    #[test]
    fn every_table_is_reachable_and_has_a_right_checksum() {
        let base = layout::ACPI_TABLES.start;
        let tables = build_tables(base, ALL);
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert!(sums_to_zero(&tables[..20]) && sums_to_zero(&tables[..36]));
        let xsdt = table(&tables, base, u64_at(&tables, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        assert!(sums_to_zero(xsdt));
        let found: Vec<&[u8]> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(&tables, base, u64_at(entry, 0)))
            .collect();
        assert_eq!(
            found.iter().map(|table| &table[..4]).collect::<Vec<_>>(),
            [b"FACP", b"APIC"]
        );
        assert!(found.iter().all(|table| sums_to_zero(table)));
        let dsdt = table(&tables, base, u64_at(found[0], 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(sums_to_zero(dsdt));
    }

    #[test]
    fn the_largest_machine_fits() {
        let tables = build_tables(layout::ACPI_TABLES.start, ALL);
        assert!(tables.len() as u64 <= layout::ACPI_TABLES.end - layout::ACPI_TABLES.start);
    }

    #[test]
    fn the_guest_learns_of_each_processor_and_device_once() {
        let hardware = Hardware {
            vcpus: 3,
            virtio_devices: 2,
            serial: false,
        };
        let tables = build_tables(layout::ACPI_TABLES.start, hardware);
        let count = |name: &[u8]| {
            tables
                .windows(name.len())
                .filter(|window| *window == name)
                .count()
        };
        assert_eq!(count(b"ACPI0007"), 3);
        assert_eq!(count(b"LNRO0005"), 2);
        assert_eq!(count(b"COM1"), 0);
        let base = build_tables(
            layout::ACPI_TABLES.start,
            Hardware {
                serial: true,
                ..hardware
            },
        );
        assert_eq!(base.windows(4).filter(|window| window == b"COM1").count(), 1);
    }
}
