//! Reading and writing at offsets of a file, straight from and to guest memory. The file's own position is never used:
//! the descriptor may be shared with other processes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::{Error as VolatileMemoryError, PtrGuardMut};
use vm_memory::{ReadVolatile, VolatileSlice};

/// Most slices that one vectored call takes (`IOV_MAX`).
pub const MAX_SLICES: usize = 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file to guest memory.
    Read,
    /// From guest memory to the file.
    Write,
}

/// Moves bytes between the file from `offset` on and all of `slices`. The end of the file before the slices are full is
/// an error. `slices` are consumed front to back.
pub fn transfer(
    file: &File,
    direction: Direction,
    slices: &mut [VolatileSlice<'_>],
    offset: u64,
) -> io::Result<()> {
    let mut offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut next = 0;
    let mut vectors = Vec::with_capacity(slices.len().min(MAX_SLICES));
    while next < slices.len() {
        let batch = &slices[next..slices.len().min(next + MAX_SLICES)];
        let guards: Vec<_> = batch.iter().map(VolatileSlice::ptr_guard_mut).collect();
        vectors.clear();
        vectors.extend(guards.iter().map(vector));
        let count = vectors.len() as libc::c_int;
        // SAFETY: each vector is a live `VolatileSlice` (its guard is held across the call), so its memory is mapped
        // for reading and writing; guest memory is only ever accessed as raw bytes.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset),
                Direction::Write => libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset),
            }
        };
        drop(guards);
        if moved < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        offset = offset
            .checked_add(moved as i64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let advanced = advance(&mut slices[next..], moved as usize)?;
        if moved == 0 && advanced == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        next += advanced;
    }
    Ok(())
}

/// A slice as system calls have it.
pub fn vector(guard: &PtrGuardMut) -> libc::iovec {
    libc::iovec {
        iov_base: guard.as_ptr().cast(),
        iov_len: guard.len(),
    }
}

/// Cuts `bytes` from the front; returns how many slices are spent.
pub fn advance(slices: &mut [VolatileSlice<'_>], mut bytes: usize) -> io::Result<usize> {
    for (spent, slice) in slices.iter_mut().enumerate() {
        if bytes < slice.len() {
            *slice = slice.offset(bytes).map_err(io::Error::other)?;
            return Ok(spent);
        }
        bytes -= slice.len();
    }
    Ok(slices.len())
}

/// A file with a position of its own.
#[derive(Debug)]
pub struct PositionedFile<'a> {
    file: &'a File,
    position: u64,
}

impl<'a> PositionedFile<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, position: 0 }
    }
}

impl Read for PositionedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for PositionedFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for PositionedFile<'_> {
    /// Large slices are read by several threads at once. From the page cache by two: most of the time goes into the pages
    /// that are touched first. From elsewhere by more: a disk, or a file server, has the answer to the next request ready by
    /// the time the first one's has been taken.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = slice.ptr_guard_mut();
        let pieces = if is_cached(self.file, self.position) {
            OF_CACHE
        } else {
            OF_DISK
        };
        // SAFETY: the guard keeps `len` bytes from its pointer on valid for writing until the end of this function; guest
        // memory is only ever accessed as raw bytes.
        let read = unsafe { read_in_pieces(self.file, guard.as_ptr(), guard.len(), self.position, &pieces) };
        let read = read.map_err(VolatileMemoryError::IOError)?;
        slice.bitmap().mark_dirty(0, read);
        self.position += read as u64;
        Ok(read)
    }
}

/// How a slice is read.
struct Pieces {
    /// Each by one call.
    bytes: usize,
    most_readers: usize,
}

/// Of huge pages, so that no two readers make the same one.
const OF_CACHE: Pieces = Pieces {
    bytes: 4 << 20,
    most_readers: 2,
};
const OF_DISK: Pieces = Pieces {
    bytes: 512 << 10,
    most_readers: 8,
};

/// Whether this part of the file is in the page cache, as far as its file system can tell.
fn is_cached(file: &File, position: u64) -> bool {
    let mut byte = 0_u8;
    let vector = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: the vector is of one byte that outlives the call.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &vector,
            1,
            position.cast_signed(),
            libc::RWF_NOWAIT,
        )
    };
    read == 1
}

/// Reads up to `len` bytes to `start`, the pieces by several threads; returns how many there are without a gap.
///
/// # Safety
/// `len` bytes from `start` on must be valid for writing, as raw bytes, during the call.
unsafe fn read_in_pieces(
    file: &File,
    start: *mut u8,
    len: usize,
    position: u64,
    pieces: &Pieces,
) -> io::Result<usize> {
    // A number, since a pointer does not go to another thread.
    let address = start as usize;
    let next = AtomicUsize::new(0);
    // Where the first piece ended that was not read whole, and why.
    let short = Mutex::new((len, Ok(())));
    let reader = || {
        loop {
            let from = next.fetch_add(pieces.bytes, Ordering::Relaxed);
            if from >= len {
                return;
            }
            let want = pieces.bytes.min(len - from);
            // SAFETY: what the caller promises; the piece is within it.
            let read = unsafe { read_at(file, address + from, want, position + from as u64) };
            let (end, error) = match read {
                Ok(read) if read == want => continue,
                Ok(read) => (from + read, Ok(())),
                Err(error) => (from, Err(error)),
            };
            let mut short = short.lock().unwrap_or_else(PoisonError::into_inner);
            if end < short.0 {
                *short = (end, error);
            }
            return;
        }
    };
    thread::scope(|scope| {
        for _ in 1..len.div_ceil(pieces.bytes).min(pieces.most_readers) {
            scope.spawn(reader);
        }
        reader();
    });
    match short.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // The caller asks again for what comes after a short read, and so meets its error.
        (0, Err(error)) => Err(error),
        (read, _) => Ok(read),
    }
}

/// Reads once; may read less than `len`.
///
/// # Safety
/// `len` bytes from `address` on must be valid for writing, as raw bytes, during the call.
unsafe fn read_at(file: &File, address: usize, len: usize, offset: u64) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: what the caller promises.
    let read = unsafe { libc::pread(file.as_raw_fd(), address as *mut libc::c_void, len, offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::VolatileMemory;

    use super::*;

    fn slices(memory: &mut [u8], lengths: &[usize]) -> Vec<Vec<u8>> {
        let mut rest = memory;
        let mut all = Vec::new();
        for length in lengths {
            let (head, tail) = rest.split_at_mut(*length);
            all.push(head.to_vec());
            rest = tail;
        }
        all
    }

    #[test]
    fn a_transfer_fills_every_slice_in_order_and_leaves_the_position() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut parts = slices(&mut [0; 6], &[1, 3, 2]);
        let mut volatile: Vec<_> = parts
            .iter_mut()
            .map(|part| VolatileSlice::from(&mut part[..]))
            .collect();
        transfer(&file, Direction::Read, &mut volatile, 2).unwrap();
        drop(volatile);
        assert_eq!(parts, [b"2".to_vec(), b"345".to_vec(), b"67".to_vec()]);
        assert_eq!(file.stream_position().unwrap(), 10);
    }

    #[test]
    fn a_transfer_past_the_end_fails() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        let mut buffer = [0; 6];
        let mut volatile = [VolatileSlice::from(&mut buffer[..])];
        let error = transfer(&file, Direction::Read, &mut volatile, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_large_read_is_whole_and_a_short_one_ends_where_the_file_does() {
        const ROOM: usize = 2 * OF_CACHE.bytes + 1;
        let ends = [OF_CACHE, OF_DISK].map(|pieces| pieces.bytes);
        let ends = ends
            .into_iter()
            .flat_map(|end| [end - 1, end, end + 5, 2 * end, 2 * end + 9]);
        for file_bytes in ends.chain([0, ROOM, ROOM + 1]) {
            let content: Vec<u8> = (0..file_bytes).map(|index| (index / 7) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            for pieces in [OF_CACHE, OF_DISK] {
                let mut buffer = vec![0xee; ROOM];
                // SAFETY: the buffer is of this many bytes.
                let read = unsafe { read_in_pieces(&file, buffer.as_mut_ptr(), ROOM, 0, &pieces) };
                let read = read.unwrap();
                assert_eq!(read, file_bytes.min(ROOM), "a file of {file_bytes} bytes");
                assert!(buffer[..read] == content[..read], "a file of {file_bytes} bytes");
            }
            let mut buffer = vec![0xee; ROOM];
            let mut positioned = PositionedFile::new(&file);
            let mut slice = VolatileSlice::from(&mut buffer[..]);
            let read = positioned.read_volatile(&mut slice).unwrap();
            assert_eq!(read, file_bytes.min(ROOM), "a file of {file_bytes} bytes");
            assert_eq!(positioned.position, read as u64);
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        let write_only = File::options()
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap();
        let mut buffer = vec![0; 2 * OF_DISK.bytes];
        let mut slice = VolatileSlice::from(&mut buffer[..]);
        assert!(
            PositionedFile::new(&write_only)
                .read_volatile(&mut slice)
                .is_err()
        );
    }

    #[test]
    fn advancing_cuts_slices_and_skips_empty_ones() {
        let mut memory = [0u8; 8];
        let whole = VolatileSlice::from(&mut memory[..]);
        let cut = |from, len| whole.get_slice(from, len).unwrap();
        let mut slices = [cut(0, 3), cut(3, 0), cut(3, 5)];
        assert_eq!(advance(&mut slices, 2).unwrap(), 0);
        assert_eq!(slices[0].len(), 1);
        assert_eq!(advance(&mut slices, 1).unwrap(), 2);
        assert_eq!(advance(&mut slices[2..], 5).unwrap(), 1);
    }
}
