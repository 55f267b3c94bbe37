//! What a clone has touched of its memory, seen from outside: the pages that the next ones will need first.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use berth_vmm::arch::layout;
use berth_vmm::config::{PAGE_BYTES, PageRange, WorkingSet};

/// An entry of a page in `/proc/PID/pagemap` (proc_pid_pagemap(5)).
const ENTRY_BYTES: usize = 8;
const ENTRIES_AT_ONCE: usize = 16 * 1024;
const PRESENT: u64 = 1 << 63;
/// The page is the file's, and not a copy that was written to.
const OF_FILE: u64 = 1 << 61;

/// Where a part of the file is in a process. In pages.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    process: Range<u64>,
    file: u64,
}

/// The pages of its guest that the process, a clone of `memory`, has found so far: those of the file, and those that came from
/// nowhere where the file has nothing.
pub(super) fn of_clone(pid: u32, memory: &File) -> io::Result<WorkingSet> {
    let memory = memory.metadata()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mappings: Vec<Mapping> = mappings(&maps, memory.ino()).collect();
    let mut set = WorkingSet::default();
    let mut first = 0;
    for range in layout::ram_ranges(memory.len()) {
        let pages = first..first + (range.end - range.start) / PAGE_BYTES;
        first = pages.end;
        let inside = |mapping: &&Mapping| pages.contains(&mapping.file);
        // Where the file has nothing in the whole range, nobody knows where it is.
        let Some(mapping) = mappings.iter().find(inside) else {
            continue;
        };
        let before = mapping.file - pages.start;
        let start = mapping.process.start.checked_sub(before);
        let start = start.ok_or_else(|| io::Error::other("a mapping begins before its region"))?;
        append_present(&mut set, &pagemap, start, pages)?;
    }
    Ok(set)
}

/// Adds those of `pages` that the process has; the first of them is at its page `start`.
fn append_present(set: &mut WorkingSet, pagemap: &File, start: u64, pages: Range<u64>) -> io::Result<()> {
    let mut entries = vec![0; ENTRIES_AT_ONCE * ENTRY_BYTES];
    let mut page = pages.start;
    while page < pages.end {
        let count = (pages.end - page).min(ENTRIES_AT_ONCE as u64) as usize;
        let entries = &mut entries[..count * ENTRY_BYTES];
        let at = start + (page - pages.start);
        pagemap.read_exact_at(entries, at * ENTRY_BYTES as u64)?;
        let (entries, _) = entries.as_chunks();
        for entry in entries {
            let entry = u64::from_ne_bytes(*entry);
            match (entry & PRESENT != 0, entry & OF_FILE != 0) {
                (true, true) => append(&mut set.read, page),
                (true, false) => append(&mut set.written, page),
                (false, _) => {}
            }
            page += 1;
        }
    }
    Ok(())
}

/// The mappings of the file with this inode number, out of `/proc/PID/maps` (proc_pid_maps(5)).
fn mappings(maps: &str, inode: u64) -> impl Iterator<Item = Mapping> {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (addresses, _access, offset, _device, found) = (
            words.next()?,
            words.next()?,
            words.next()?,
            words.next()?,
            words.next()?,
        );
        if found.parse() != Ok(inode) {
            return None;
        }
        let pages = |text| u64::from_str_radix(text, 16).ok().map(|bytes| bytes / PAGE_BYTES);
        let (start, end) = addresses.split_once('-')?;
        Some(Mapping {
            process: pages(start)?..pages(end)?,
            file: pages(offset)?,
        })
    })
}

/// Adds a page behind the ones that are there.
fn append(ranges: &mut Vec<PageRange>, page: u64) {
    match ranges.last_mut() {
        Some(last) if last.first + last.count == page => last.count += 1,
        _ => ranges.push(PageRange {
            first: page,
            count: 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    const PAGES: usize = 8;

    #[test]
    fn read_and_written_pages_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; PAGES * PAGE_BYTES as usize], 0).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice, of the whole file, checked below.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        let page = |number: usize| mapped.cast::<u8>().wrapping_add(number * PAGE_BYTES as usize);
        for written in [2, 3, 6] {
            // SAFETY: within the mapping.
            unsafe { page(written).write_volatile(7) };
        }
        // SAFETY: within the mapping.
        assert_eq!(unsafe { page(4).read_volatile() }, 1);
        let set = of_clone(std::process::id(), &file).unwrap();
        // SAFETY: it is this test's own, and used no more.
        unsafe { libc::munmap(mapped, PAGES * PAGE_BYTES as usize) };
        let range = |first, count| PageRange { first, count };
        assert_eq!(set.written, [range(2, 2), range(6, 1)]);
        // The kernel may map the neighbours of a page that is read as well.
        let read: Vec<u64> = set
            .read
            .iter()
            .flat_map(|range| range.first..range.first + range.count)
            .collect();
        assert!(read.contains(&4), "{set:?}");
        assert!([2, 3, 6].iter().all(|written| !read.contains(written)), "{set:?}");
    }

    #[test]
    fn only_the_mappings_of_the_file_count() {
        let maps = "7f0000000000-7f0000200000 rw-p 00000000 00:01 77 /memfd:memory (deleted)\n\
                    7f0000200000-7f0000400000 rw-p 00000000 00:00 0 \n\
                    7f0000400000-7f0000600000 rw-p 00400000 00:01 77 /memfd:memory (deleted)\n\
                    7f0000600000-7f0000800000 rw-p 00400000 00:01 78 /other\n";
        let found: Vec<_> = mappings(maps, 77).collect();
        let mapping = |process: Range<u64>, file| Mapping { process, file };
        assert_eq!(
            found,
            [
                mapping(0x7_f000_0000..0x7_f000_0200, 0),
                mapping(0x7_f000_0400..0x7_f000_0600, 0x400)
            ]
        );
    }
}
