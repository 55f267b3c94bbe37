//! Loading a kernel and its initrd, and telling the kernel about the machine (the PVH boot protocol,
//! `xen/include/public/arch-x86/hvm/start_info.h`).

use std::fs::File;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_ACPI, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::acpi::{self, AcpiError, Hardware};
use super::layout;
use crate::positioned::PositionedFile;

const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot load the kernel: {0}")]
    Kernel(#[from] loader::Error),
    #[error("the kernel has no pvh entry point")]
    NoPvhEntry,
    #[error("the kernel's entry point {0:#x} is not in the guest's memory")]
    Entry(u64),
    #[error("cannot find the size of the initrd: {0}")]
    InitrdSize(std::io::Error),
    #[error("the initrd has {bytes} bytes, and only {room} are free after the kernel")]
    InitrdTooLarge { bytes: u64, room: u64 },
    #[error("cannot load the initrd: {0}")]
    Initrd(GuestMemoryError),
    #[error("cannot write the boot structures: {0}")]
    Write(#[from] GuestMemoryError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
}

/// Where the first vCPU starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The 32-bit entry point.
    pub address: u64,
    /// What goes into `ebx`.
    pub start_info: u64,
}

/// What to boot.
#[derive(Debug)]
pub struct Payload<'a> {
    pub kernel: &'a File,
    pub initrd: Option<&'a File>,
    /// Validated: printable and at most [`layout::MAX_CMDLINE_BYTES`] long.
    pub cmdline: &'a str,
}

/// Puts everything into the guest's memory.
pub fn load(memory: &GuestMemoryMmap, payload: &Payload, hardware: Hardware) -> Result<Entry, BootError> {
    let low_ram_end = low_ram_end(memory);
    let mut kernel = PositionedFile::new(payload.kernel);
    let loaded = Elf::load(
        memory,
        None,
        &mut kernel,
        Some(GuestAddress(layout::HIGH_RAM_START)),
    )?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry);
    };
    if !(layout::HIGH_RAM_START..low_ram_end).contains(&entry.raw_value()) {
        return Err(BootError::Entry(entry.raw_value()));
    }
    let initrd = match payload.initrd {
        Some(initrd) => Some(load_initrd(memory, initrd, loaded.kernel_end, low_ram_end)?),
        None => None,
    };
    let mut cmdline = payload.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    memory.write_slice(&cmdline, GuestAddress(layout::CMDLINE))?;
    let rsdp = acpi::write_tables(memory, hardware)?;
    write_start_info(memory, initrd, rsdp)?;
    Ok(Entry {
        address: entry.raw_value(),
        start_info: layout::START_INFO,
    })
}

fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    (memory.last_addr().raw_value() + 1).min(layout::GAP.start)
}

/// Loads the initrd at the end of the RAM below the gap, and returns its address and size.
fn load_initrd(
    memory: &GuestMemoryMmap,
    initrd: &File,
    kernel_end: u64,
    low_ram_end: u64,
) -> Result<(u64, u64), BootError> {
    let bytes = initrd.metadata().map_err(BootError::InitrdSize)?.len();
    let room = low_ram_end.saturating_sub(kernel_end.next_multiple_of(PAGE));
    if bytes > room {
        return Err(BootError::InitrdTooLarge { bytes, room });
    }
    let start = (low_ram_end - bytes) & !(PAGE - 1);
    memory
        .read_exact_volatile_from(
            GuestAddress(start),
            &mut PositionedFile::new(initrd),
            bytes as usize,
        )
        .map_err(BootError::Initrd)?;
    Ok((start, bytes))
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<(), BootError> {
    let map = memory_map(memory);
    for (index, entry) in map.iter().enumerate() {
        let offset = (index * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(*entry, GuestAddress(layout::MEMORY_MAP + offset))?;
    }
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(layout::MODULE_LIST))?;
    }
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { layout::MODULE_LIST } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(start_info, GuestAddress(layout::START_INFO))?;
    Ok(())
}

/// The memory map that the kernel gets.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<hvm_memmap_table_entry> {
    let entry = |range: std::ops::Range<u64>, type_| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_,
        reserved: 0,
    };
    let mut map = vec![
        entry(0..layout::LOW_RAM_END, XEN_HVM_MEMMAP_TYPE_RAM),
        entry(layout::ACPI_TABLES, XEN_HVM_MEMMAP_TYPE_ACPI),
    ];
    let total: u64 = memory.iter().map(vm_memory::GuestMemoryRegion::len).sum();
    for range in layout::ram_ranges(total) {
        let start = range.start.max(if range.start == 0 {
            layout::HIGH_RAM_START
        } else {
            0
        });
        map.push(entry(start..range.end, XEN_HVM_MEMMAP_TYPE_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory;

    const HARDWARE: Hardware = Hardware {
        vcpus: 1,
        virtio_devices: 0,
        serial: false,
    };

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn memory_map_covers_ram_and_skips_the_legacy_hole() {
        let memory = memory::allocate(64, None).unwrap();
        let map = memory_map(&memory);
        let ram: u64 = map
            .iter()
            .filter(|e| e.type_ == XEN_HVM_MEMMAP_TYPE_RAM)
            .map(|e| e.size)
            .sum();
        assert_eq!(ram, (64 << 20) - (layout::HIGH_RAM_START - layout::LOW_RAM_END));
        let mut end = 0;
        for entry in map {
            assert!(entry.addr >= end);
            end = entry.addr + entry.size;
        }
    }

    #[test]
    fn an_initrd_lies_page_aligned_at_the_end_of_ram() {
        let memory = memory::allocate(32, None).unwrap();
        let (start, bytes) = load_initrd(&memory, &file(&[7; 5000]), 1 << 20, 32 << 20).unwrap();
        assert_eq!((start, bytes), ((32 << 20) - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(start + 4999)).unwrap(), 7);
    }

    #[test]
    fn an_initrd_that_would_reach_the_kernel_is_refused() {
        let memory = memory::allocate(32, None).unwrap();
        let kernel_end = (32 << 20) - 4096;
        let error = load_initrd(&memory, &file(&[7; 4097]), kernel_end, 32 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the initrd has 4097 bytes, and only 4096 are free after the kernel"
        );
    }

    #[test]
    fn what_is_not_an_elf_kernel_is_refused() {
        let memory = memory::allocate(32, None).unwrap();
        let kernel = file(&[0; 4096]);
        let payload = Payload {
            kernel: &kernel,
            initrd: None,
            cmdline: "",
        };
        assert!(matches!(
            load(&memory, &payload, HARDWARE),
            Err(BootError::Kernel(_))
        ));
    }
}
