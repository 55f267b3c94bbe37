//! What files take of a disk together. On file systems where files share bytes (XFS, Btrfs), a copy and what it is a copy of
//! each count them as their own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};

/// `st_blocks` of stat(2) counts these, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;
/// `FS_IOC_FIEMAP` of `<linux/fiemap.h>`, and its flags of an extent.
const FIEMAP: libc::Ioctl = 0xc020_660b;
const LAST: u32 = 0x0001;
const ENCODED: u32 = 0x0008;
const SHARED: u32 = 0x2000;
const EXTENTS_AT_ONCE: usize = 256;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, with room for the extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS_AT_ONCE],
}

/// Bytes on disk of files of one file system, each byte once. Files that go meanwhile take nothing.
pub(super) fn taken_bytes(files: impl IntoIterator<Item = PathBuf>) -> u64 {
    let mut bytes = 0_u64;
    let mut shared = Vec::new();
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        // Files of ext4 share nothing, and need not be looked through.
        if fstatfs(&file).is_ok_and(|found| found.filesystem_type() != EXT4_SUPER_MAGIC) {
            // Where nobody can say what is shared, nothing is.
            drop(add_shared(&file, &mut shared));
        }
    }
    bytes.saturating_sub(counted_again(shared))
}

/// Adds the places on disk that the file has together with another, and their lengths.
fn add_shared(file: &File, shared: &mut Vec<(u64, u64)>) -> io::Result<()> {
    let mut start = 0;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS_AT_ONCE as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS_AT_ONCE],
        };
        // SAFETY: the descriptor is open, and the structure is as large as its `extent_count` says.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut map) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut found = map.extents.iter().take(map.mapped_extents as usize);
        // What is compressed is longer in its file than on disk.
        let of_others = found.clone().filter(|it| it.flags & (SHARED | ENCODED) == SHARED);
        shared.extend(of_others.map(|extent| (extent.physical, extent.length)));
        match found.next_back() {
            Some(last) if last.flags & LAST == 0 => start = last.logical.saturating_add(last.length),
            _ => return Ok(()),
        }
    }
}

/// How many bytes are in these ranges more than once, for each time but one.
fn counted_again(mut ranges: Vec<(u64, u64)>) -> u64 {
    ranges.sort_unstable();
    let (mut again, mut end) = (0, 0);
    for (start, length) in ranges {
        let stop = start.saturating_add(length);
        again += stop.min(end).saturating_sub(start);
        end = end.max(stop);
    }
    again
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn taken(dir: &Path) -> u64 {
        taken_bytes(dir.read_dir().unwrap().map(|entry| entry.unwrap().path()))
    }

    #[test]
    fn what_several_have_together_counts_once() {
        assert_eq!(counted_again(vec![]), 0);
        assert_eq!(counted_again(vec![(0, 10), (10, 10), (40, 5)]), 0);
        // Three have the same, two of them a piece more, and one lies within another.
        assert_eq!(counted_again(vec![(5, 15), (5, 10), (5, 10)]), 20);
        assert_eq!(counted_again(vec![(0, 100), (20, 10), (25, 10), (95, 10)]), 25);
    }

    #[test]
    fn files_that_share_nothing_take_what_each_takes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let path = dir.path().join(name);
            fs::write(&path, vec![1; 3 << 20]).unwrap();
            File::open(&path).unwrap().sync_all().unwrap();
        }
        let taken = taken(dir.path());
        assert!((6 << 20..7 << 20).contains(&taken), "{taken}");
    }

    /// Where the temporary folder's file system can (`TMPDIR`).
    #[test]
    fn a_copy_that_shares_its_bytes_takes_none_until_it_is_written_to() {
        use std::os::unix::fs::FileExt;

        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true);
            options.truncate(true).open(dir.path().join(name)).unwrap()
        };
        let (file, copy) = (open("a"), open("b"));
        // In many extents.
        for index in 0..1000 {
            file.write_all_at(&[1; 4096], index * 8192).unwrap();
        }
        file.sync_all().unwrap();
        // SAFETY: both descriptors are open; no memory is passed.
        if unsafe { libc::ioctl(copy.as_raw_fd(), libc::FICLONE as libc::Ioctl, file.as_raw_fd()) } < 0 {
            eprintln!("SKIPPED: files share nothing here");
            return;
        }
        copy.sync_all().unwrap();
        let taken = || taken(dir.path());
        let (alone, together) = (file.metadata().unwrap().blocks() * BLOCK_BYTES, taken());
        // Each has a list of its extents.
        assert!(together - alone < 64 << 10, "{together} {alone}");
        copy.write_all_at(&[2; 1 << 20], 0).unwrap();
        copy.sync_all().unwrap();
        let more = taken() - together;
        assert!((512 << 10..1088 << 10).contains(&more), "{more}");
    }
}
