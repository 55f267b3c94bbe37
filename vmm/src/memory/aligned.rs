//! Memory where huge pages fit: at an address that is a multiple of one, as the guest's is. The kernel looks for such a place by
//! itself only if the length is one too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use vm_memory::MmapRegion;

use super::CHUNK_BYTES;

const HUGE: usize = CHUNK_BYTES as usize;

/// Maps a part of a file, shared with whoever else has it, or memory of the process alone. It stays mapped: the region does not
/// own it.
pub(super) fn map(len: usize, file: Option<(&File, u64)>) -> io::Result<MmapRegion> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let reserved = len.checked_add(HUGE).ok_or(io::ErrorKind::InvalidInput)?;
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, nothing, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = base.addr().next_multiple_of(HUGE) - base.addr();
    let start = base.cast::<u8>().wrapping_add(before);
    let (flags, fd, offset) = match file {
        Some((file, offset)) => (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd(), offset),
        None => (nothing, -1, 0),
    };
    // SAFETY: what is mapped, replaced or given up lies within the mapping that was just made and that nobody else knows of.
    unsafe {
        let offset = offset as libc::off_t;
        let mapped = libc::mmap(start.cast(), len, access, flags | libc::MAP_FIXED, fd, offset);
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(base, reserved);
            return Err(error);
        }
        if before > 0 {
            libc::munmap(base, before);
        }
        let after = start.wrapping_add(len.next_multiple_of(4096));
        libc::munmap(after.cast(), reserved - before - len.next_multiple_of(4096));
        MmapRegion::build_raw(start, len, access, flags).map_err(io::Error::other)
    }
}
