//! Giving memory of the guest back to the host.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::config::HugePages;

/// Bytes of a page of the host.
const PAGE_BYTES: u64 = 4096;

/// What the guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory of the process alone.
    Anonymous,
    /// Copies of a file's pages, made as the guest writes to them, and such pages where the file has none.
    PrivateFile(HugePages),
    /// The pages of a file.
    SharedFile,
}

/// What a guest may find afterwards where it gave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes: those, or what was there before, are all that a driver has to reckon with where it reported free memory
    /// (virtio 1.3, 5.5.6.7).
    Zero,
    /// Anything: what is in the balloon has no content (5.5.6.1).
    Any,
}

/// Gives the whole pages from `start` on back, as far as the host lets go of them. Returns how many bytes that were; none
/// if it is not memory of the guest.
pub(super) fn release(
    memory: &GuestMemoryMmap,
    start: u64,
    len: u64,
    backing: Backing,
    content: Content,
) -> Option<u64> {
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
    let released = match (backing, content) {
        // Of a private file the guest finds what the file has there. A mapping for each page, as balloons have them, is more
        // than a process may have.
        // SAFETY: the range lies within the region, which nobody but the guest expects anything of; its pages go.
        (Backing::Anonymous, _) | (Backing::PrivateFile(_), Content::Any) => unsafe {
            libc::madvise(host.cast(), len, libc::MADV_DONTNEED) == 0
        },
        // SAFETY: as above; the file gets a hole.
        (Backing::SharedFile, _) => unsafe { libc::madvise(host.cast(), len, libc::MADV_REMOVE) == 0 },
        // Without its copy a page would be the file's again. So there is other memory in its place.
        // SAFETY: as above; the new mapping has the access of the old one and is unmapped with the region.
        (Backing::PrivateFile(huge_pages), Content::Zero) => unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let mapped = libc::mmap(host.cast(), len, access, flags, -1, 0) != libc::MAP_FAILED;
            // It knows nothing of what was said of the old one. Advice that is not taken costs nothing but time.
            if let Some(advice) = huge_pages.advice().filter(|_| mapped) {
                libc::madvise(host.cast(), len, advice);
            }
            mapped
        },
    };
    Some(if released { end - start } else { 0 })
}
