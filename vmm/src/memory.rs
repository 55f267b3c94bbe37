//! The guest's memory: where it is in this process. Where it is in the guest is `arch`'s layout.

use std::fs::File;
use std::io;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::arch::layout;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot map {mib} MiB of guest memory: {source}")]
    Map {
        mib: u32,
        source: vm_memory::mmap::FromRangesError,
    },
    #[error("cannot find the size of the memory's file: {0}")]
    FileSize(io::Error),
    #[error("the memory's file has {bytes} bytes, not the {mib} MiB of the guest")]
    OtherSize { bytes: u64, mib: u32 },
    #[error("cannot use the memory's file: {0}")]
    File(io::Error),
}

/// A file that holds the guest's memory.
pub struct MemoryFile {
    pub file: File,
    /// Whether the guest writes to the file, or to copies that the process keeps for itself.
    pub shared: bool,
}

/// Maps guest memory, from a file or from nothing. A page costs nothing before the guest touches it.
pub fn allocate(mib: u32, file: Option<MemoryFile>) -> Result<GuestMemoryMmap, MemoryError> {
    let ranges = layout::ram_ranges(u64::from(mib) << 20)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize));
    match file {
        None => {
            let ranges: Vec<_> = ranges.collect();
            GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError::Map { mib, source })
        }
        Some(file) => map_file(mib, file, ranges),
    }
}

fn map_file(
    mib: u32,
    MemoryFile { file, shared }: MemoryFile,
    ranges: impl Iterator<Item = (GuestAddress, usize)>,
) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes = file.metadata().map_err(MemoryError::FileSize)?.len();
    if bytes != u64::from(mib) << 20 {
        return Err(MemoryError::OtherSize { bytes, mib });
    }
    let kind = if shared {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE
    };
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges {
        let file = file.try_clone().map_err(MemoryError::File)?;
        let region = MmapRegion::build(
            Some(FileOffset::new(file, offset)),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_NORESERVE | kind,
        )
        .map_err(|error| MemoryError::File(io::Error::other(error)))?;
        offset += len as u64;
        let region = GuestRegionMmap::new(region, start);
        regions.push(region.ok_or(MemoryError::OtherSize { bytes, mib })?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::File(io::Error::other(error)))
}
