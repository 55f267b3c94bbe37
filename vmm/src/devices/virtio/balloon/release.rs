//! Giving memory of the guest back to the host. What the guest finds there afterwards is zero: that, or what was there
//! before, is all that a driver has to reckon with (virtio 1.3, 5.5.6.7).

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes of a page of the host.
const PAGE_BYTES: u64 = 4096;

/// What the guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory of the process alone.
    Anonymous,
    /// Copies of a file's pages, made as the guest writes to them.
    PrivateFile,
    /// The pages of a file.
    SharedFile,
}

/// Gives the whole pages from `start` on back, as far as the host lets go of them. Returns how many bytes that were; none
/// if it is not memory of the guest.
pub(super) fn release(memory: &GuestMemoryMmap, start: u64, len: u64, backing: Backing) -> Option<u64> {
    let end = start.checked_add(len)?;
    let region = memory.find_region(GuestAddress(start))?;
    let region_start = region.start_addr().raw_value();
    if end - region_start > region.len() {
        return None;
    }
    let (start, end) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
    if start >= end {
        return Some(0);
    }
    // SAFETY: `start` lies within the region, at less than its length.
    let host = unsafe { region.as_ptr().add((start - region_start) as usize) };
    let len = (end - start) as usize;
    let released = match backing {
        // SAFETY: the range lies within the region, which nobody but the guest expects anything of; its pages become zero.
        Backing::Anonymous => unsafe { libc::madvise(host.cast(), len, libc::MADV_DONTNEED) == 0 },
        // SAFETY: as above; the file gets a hole.
        Backing::SharedFile => unsafe { libc::madvise(host.cast(), len, libc::MADV_REMOVE) == 0 },
        // Without its copy a page would be the file's again. So there is other memory in its place.
        // SAFETY: as above; the new mapping has the access of the old one and is unmapped with the region.
        Backing::PrivateFile => unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            libc::mmap(host.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) != libc::MAP_FAILED
        },
    };
    Some(if released { end - start } else { 0 })
}
