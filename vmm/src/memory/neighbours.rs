//! Whoever reads a page of a mapped file gets its neighbours mapped as well (fault-around: aligned groups of sixteen), within
//! one area of the address space. So an area of its own keeps pages apart from the others. A property makes one that means
//! nothing else here, where nothing is ever dumped. Whatever fails costs memory, or what was to be learned, and nothing else.

use vm_memory::MmapRegion;

const PAGE_BYTES: usize = 4096;
/// Beyond, a process would come too near to the most areas that it may have (`vm.max_map_count`, 65,530 by default).
const MOST_AREAS: usize = 48 * 1024;

/// Makes these pages areas of their own. They are the caller's, and mapped.
pub(super) fn keep_apart(start: *mut u8, bytes: usize) {
    // SAFETY: it changes no content and no access, and fails where nothing is mapped.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTDUMP) };
}

/// Each page of the extents of a file by itself, where `extents` are (offset, length) in the region.
pub(super) fn keep_every_page_apart(region: &MmapRegion, extents: &[(usize, usize)]) {
    let pages: usize = extents.iter().map(|(_, bytes)| bytes / PAGE_BYTES).sum();
    if pages > MOST_AREAS {
        return;
    }
    for (start, bytes) in extents {
        for offset in (*start..start + bytes).step_by(2 * PAGE_BYTES) {
            // Every other one is enough. The address is within the region, as its extents are.
            keep_apart(region.as_ptr().wrapping_add(offset), PAGE_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Which pages of the region the process has (proc_pid_pagemap(5): bit 63).
    fn present(region: &MmapRegion, pages: usize) -> Vec<usize> {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut entries = vec![0; pages * 8];
        let first = region.as_ptr() as u64 / PAGE_BYTES as u64;
        pagemap.read_exact_at(&mut entries, first * 8).unwrap();
        let (entries, _) = entries.as_chunks();
        let there = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) >> 63 == 1;
        (0..pages).filter(|page| there(&entries[*page])).collect()
    }

    fn mapped(file: &File, pages: usize) -> MmapRegion {
        let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        MmapRegion::build(Some(offset), pages * PAGE_BYTES, access, libc::MAP_PRIVATE).unwrap()
    }

    #[test]
    fn a_page_that_is_read_comes_alone() {
        const PAGES: usize = 64;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; PAGES * PAGE_BYTES], 0).unwrap();
        let read = |region: &MmapRegion, page: usize| {
            // SAFETY: within the region.
            unsafe { region.as_ptr().add(page * PAGE_BYTES).read_volatile() }
        };
        let plain = mapped(&file, PAGES);
        read(&plain, 20);
        if present(&plain, PAGES).len() == 1 {
            eprintln!("SKIPPED: this kernel maps no neighbours, so there is nothing to keep apart");
            return;
        }
        let apart = mapped(&file, PAGES);
        keep_every_page_apart(&apart, &[(0, PAGES * PAGE_BYTES)]);
        read(&apart, 20);
        read(&apart, 33);
        assert_eq!(present(&apart, PAGES), [20, 33]);
        let run = mapped(&file, PAGES);
        keep_apart(run.as_ptr().wrapping_add(20 * PAGE_BYTES), 3 * PAGE_BYTES);
        read(&run, 21);
        // Neighbours come if the kernel has them at hand; from outside none does.
        let found = present(&run, PAGES);
        assert!(
            found.contains(&21) && found.iter().all(|page| (20..=22).contains(page)),
            "{found:?}"
        );
    }
}
