//! The guest's memory: where it is in this process. Where it is in the guest is `arch`'s layout.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::arch::layout;

#[derive(Debug, thiserror::Error)]
#[error("cannot map {mib} MiB of guest memory: {source}")]
pub struct MemoryError {
    mib: u32,
    source: vm_memory::mmap::FromRangesError,
}

/// Maps guest memory: private, anonymous, not reserved, so that a page costs nothing before the guest touches it.
pub fn allocate(mib: u32) -> Result<GuestMemoryMmap, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> = layout::ram_ranges(u64::from(mib) << 20)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError { mib, source })
}
