//! The guest's memory: where it is in this process. Where it is in the guest is `arch`'s layout.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::arch::layout;
use crate::config::HugePages;

mod aligned;
mod neighbours;
mod working_set;

pub use working_set::Prefetch;

/// Pieces of a file that are mapped or left out: a huge page, so that what is left out can have some.
const CHUNK_BYTES: u64 = 2 << 20;

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
    #[error("cannot have huge pages: {0}")]
    HugePages(io::Error),
}

/// A file that holds the guest's memory.
pub struct MemoryFile {
    pub file: File,
    /// Whether the guest writes to the file, or to copies that the process keeps for itself.
    pub shared: bool,
    /// See [`crate::config::MemoryConfig::page_by_page`].
    pub page_by_page: bool,
}

/// Maps guest memory, from a file or from nothing, of pages as the host has it. A page costs nothing before the guest
/// touches it.
pub fn allocate(mib: u32, file: Option<MemoryFile>) -> Result<GuestMemoryMmap, MemoryError> {
    allocate_of(HugePages::Host, mib, file)
}

/// As [`allocate`], of such pages. Where there are to be huge ones, the memory lies as they do, here and in the guest,
/// and stays mapped for as long as the process lives.
pub fn allocate_of(
    huge_pages: HugePages,
    mib: u32,
    file: Option<MemoryFile>,
) -> Result<GuestMemoryMmap, MemoryError> {
    let aligned = huge_pages == HugePages::Always;
    let ranges = layout::ram_ranges(u64::from(mib) << 20)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize));
    let memory = match file {
        None if !aligned => {
            let ranges: Vec<_> = ranges.collect();
            GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError::Map { mib, source })
        }
        None => map_aligned(ranges),
        Some(file) => map_file(mib, file, ranges, aligned),
    }?;
    advise(&memory, huge_pages).map_err(MemoryError::HugePages)?;
    Ok(memory)
}

/// Tells the kernel of what pages the memory is to be.
fn advise(memory: &GuestMemoryMmap, huge_pages: HugePages) -> io::Result<()> {
    let Some(advice) = huge_pages.advice() else {
        return Ok(());
    };
    for region in memory.iter() {
        // SAFETY: the region is mapped, and the advice changes nothing of its content.
        let advised = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) } == 0;
        // Where there are no huge pages at all, there is nothing to be forbidden.
        if !advised && huge_pages == HugePages::Always {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn map_aligned(ranges: impl Iterator<Item = (GuestAddress, usize)>) -> Result<GuestMemoryMmap, MemoryError> {
    let failed = |error| MemoryError::HugePages(io::Error::other(error));
    let mut regions = Vec::new();
    for (start, len) in ranges {
        let region = aligned::map(len, None).map_err(MemoryError::HugePages)?;
        let region = GuestRegionMmap::new(region, start).ok_or("a region is beyond all addresses");
        regions.push(region.map_err(|error| MemoryError::HugePages(io::Error::other(error)))?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(failed)
}

fn map_file(
    mib: u32,
    MemoryFile {
        file,
        shared,
        page_by_page,
    }: MemoryFile,
    ranges: impl Iterator<Item = (GuestAddress, usize)>,
    aligned: bool,
) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes = file.metadata().map_err(MemoryError::FileSize)?.len();
    if bytes != u64::from(mib) << 20 {
        return Err(MemoryError::OtherSize { bytes, mib });
    }
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges {
        let region = match (shared, aligned) {
            (true, true) => aligned::map(len, Some((&file, offset))).map_err(MemoryError::File)?,
            (true, false) => {
                let file = file.try_clone().map_err(MemoryError::File)?;
                let from = FileOffset::new(file, offset);
                let flags = libc::MAP_NORESERVE | libc::MAP_SHARED;
                MmapRegion::build(Some(from), len, libc::PROT_READ | libc::PROT_WRITE, flags)
                    .map_err(|error| MemoryError::File(io::Error::other(error)))?
            }
            (false, _) => map_copy(&file, offset, len, aligned, page_by_page)?,
        };
        offset += len as u64;
        let region = GuestRegionMmap::new(region, start);
        regions.push(region.ok_or(MemoryError::OtherSize { bytes, mib })?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::File(io::Error::other(error)))
}

/// Maps a part of a file so that what is written stays here. Where the file has nothing, neither has the mapping: a page
/// there comes from nowhere, as in a machine that boots, and not from a page of zeroes that the file is given first.
fn map_copy(
    file: &File,
    offset: u64,
    len: usize,
    aligned: bool,
    page_by_page: bool,
) -> Result<MmapRegion, MemoryError> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_NORESERVE | libc::MAP_PRIVATE;
    let region = if aligned {
        aligned::map(len, None).map_err(MemoryError::File)?
    } else {
        MmapRegion::build(None, len, access, flags | libc::MAP_ANONYMOUS)
            .map_err(|error| MemoryError::File(io::Error::other(error)))?
    };
    let mut of_file = Vec::new();
    for extent in extents(file, offset..offset + len as u64).map_err(MemoryError::File)? {
        let start = (extent.start - offset) as usize;
        let extent_len = (extent.end - extent.start) as usize;
        // SAFETY: the extent lies within the region, which is this function's own and which nothing points into yet; it is
        // replaced by a mapping of the same access that the region unmaps with the rest of it.
        let mapped = unsafe {
            libc::mmap(
                region.as_ptr().add(start).cast(),
                extent_len,
                access,
                flags | libc::MAP_FIXED,
                file.as_raw_fd(),
                extent.start as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(MemoryError::File(io::Error::last_os_error()));
        }
        of_file.push((start, extent_len));
    }
    if page_by_page {
        neighbours::keep_every_page_apart(&region, &of_file);
    }
    Ok(region)
}

/// Where in `range` the file has data, in chunks of [`CHUNK_BYTES`]; neighbours are one extent.
fn extents(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = match lseek(file, at as libc::off_t, Whence::SeekData) {
            Ok(data) => data as u64,
            // No data from here on.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        if data >= range.end {
            break;
        }
        let hole = lseek(file, data as libc::off_t, Whence::SeekHole)? as u64;
        let start = (data & !(CHUNK_BYTES - 1)).max(range.start);
        let end = hole.next_multiple_of(CHUNK_BYTES).min(range.end);
        match extents.last_mut().filter(|last| last.end >= start) {
            Some(last) => last.end = end,
            None => extents.push(start..end),
        }
        at = end;
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    const MIB: u32 = 32;

    fn memory_file(bytes: u64) -> File {
        let file = File::from(memfd_create("memory", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    fn memory_file_of(file: File, shared: bool) -> MemoryFile {
        MemoryFile {
            file,
            shared,
            page_by_page: false,
        }
    }

    fn map(file: &File, shared: bool) -> GuestMemoryMmap {
        let file = file.try_clone().unwrap();
        allocate(MIB, Some(memory_file_of(file, shared))).unwrap()
    }

    #[test]
    fn what_a_guest_writes_goes_into_a_shared_file_and_stays_out_of_any_other() {
        let file = memory_file(u64::from(MIB) << 20);
        let at = GuestAddress(5 << 20);
        map(&file, true).write_obj(1u8, at).unwrap();
        let copies = [map(&file, false), map(&file, false)];
        for (copy, value) in copies.iter().zip([2u8, 3]) {
            assert_eq!(copy.read_obj::<u8>(at).unwrap(), 1);
            copy.write_obj(value, at).unwrap();
            // Where the file has nothing.
            copy.write_obj(value, GuestAddress(20 << 20)).unwrap();
        }
        for (copy, value) in copies.iter().zip([2u8, 3]) {
            assert_eq!(copy.read_obj::<u8>(at).unwrap(), value);
            assert_eq!(copy.read_obj::<u8>(GuestAddress(20 << 20)).unwrap(), value);
        }
        assert_eq!(map(&file, true).read_obj::<u8>(at).unwrap(), 1);
        let found = extents(&file, 0..32 << 20).unwrap();
        assert_eq!(
            found,
            vec![Range {
                start: 4 << 20,
                end: 6 << 20
            }]
        );
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let file = memory_file(1 << 20);
        let refused = allocate(MIB, Some(memory_file_of(file, false)));
        assert!(matches!(
            refused,
            Err(MemoryError::OtherSize {
                bytes: 0x10_0000,
                mib: MIB
            })
        ));
    }

    /// Kibibytes of huge pages under an address (proc_pid_smaps(5)), and whether they are asked for or forbidden there.
    fn huge_pages_at(address: *const u8) -> (u64, Vec<String>) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut inside, mut kib) = (false, 0);
        for line in smaps.lines() {
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some((start, end)) = first.split_once('-') {
                let bound = |text| u64::from_str_radix(text, 16).unwrap();
                inside = (bound(start)..bound(end)).contains(&(address as u64));
            } else if inside && matches!(first, "AnonHugePages:" | "ShmemPmdMapped:") {
                kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            } else if inside && first == "VmFlags:" {
                let flags = rest.split_whitespace().map(str::to_owned);
                return (
                    kib,
                    flags
                        .filter(|flag| ["hg", "nh"].contains(&flag.as_str()))
                        .collect(),
                );
            }
        }
        panic!("nothing is mapped at {address:p}");
    }

    #[test]
    fn memory_is_of_the_pages_that_were_asked_for() {
        let bytes = u64::from(MIB) << 20;
        let files: [fn(u64) -> Option<MemoryFile>; 3] = [
            |_| None,
            |bytes| {
                let (file, shared) = (memory_file(bytes), true);
                Some(memory_file_of(file, shared))
            },
            |bytes| {
                let (file, shared) = (memory_file(bytes), false);
                Some(memory_file_of(file, shared))
            },
        ];
        for (number, file) in files.into_iter().enumerate() {
            for (huge_pages, flags) in [
                (HugePages::Host, &[][..]),
                (HugePages::Never, &["nh"]),
                (HugePages::Always, &["hg"]),
            ] {
                let memory = allocate_of(huge_pages, MIB, file(bytes)).unwrap();
                let at = GuestAddress(8 << 20);
                memory.write_obj(7u8, at).unwrap();
                let host = memory.get_host_address(at).unwrap();
                let (kib, found) = huge_pages_at(host);
                assert_eq!(found, flags, "file {number}, {huge_pages:?}");
                if huge_pages == HugePages::Always {
                    assert_eq!(host as u64 % CHUNK_BYTES, 0);
                }
                if huge_pages == HugePages::Never {
                    assert_eq!(kib, 0);
                }
                memory.write_obj(9u8, GuestAddress(bytes - 1)).unwrap();
                assert_eq!(memory.read_obj::<u8>(at).unwrap(), 7);
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_of_a_file_is_in_its_copy(offsets in proptest::collection::vec(0u64..32 << 20, 0..8)) {
            let file = memory_file(u64::from(MIB) << 20);
            for offset in &offsets {
                file.write_all_at(&[7], *offset).unwrap();
            }
            let copy = map(&file, false);
            for offset in &offsets {
                prop_assert_eq!(copy.read_obj::<u8>(GuestAddress(*offset)).unwrap(), 7);
            }
            let found = extents(&file, 0..32 << 20).unwrap();
            for pair in found.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }
    }
}
