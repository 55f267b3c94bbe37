//! Freeing the oldest part of a log. Positions stay what they are: the file gets a mark that says where it starts now
//! ([`super::file`]), and the blocks before that are given back to the file system.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::file::{self, LogFile};
use super::index::{self, ENTRY};
use super::{LogError, io_error, reader};
use crate::model::Timestamp;

/// What file systems free at least; the first of them stays, with the mark.
const PAGE: u64 = 4096;

/// Frees what is older than `time`, in blocks of the index; gives the bytes freed. The last record always stays: it says how
/// far the output is stored.
pub fn trim(path: &Path, time: Timestamp) -> Result<u64, LogError> {
    let Some(mut log) = LogFile::open(path)? else {
        return Ok(0);
    };
    let end = reader::end_of(path, &mut log)?;
    let Some((last, order)) = log.record_before(end)?.map(|it| (it.position, it.header.order)) else {
        return Ok(0);
    };
    let start = match order < time {
        true => last,
        false => index::before(path, &mut log, time)?,
    };
    free(path, start)
}

/// Frees at least `bytes` of the oldest records.
pub(super) fn trim_bytes(path: &Path, bytes: u64) -> Result<u64, LogError> {
    let Some(mut log) = LogFile::open(path)? else {
        return Ok(0);
    };
    let wanted = log.start.saturating_add(bytes);
    let start = index::after(path, &mut log, wanted)?;
    free(path, start)
}

/// Frees what is before `start`, unless that is free already.
pub(super) fn free(path: &Path, start: u64) -> Result<u64, LogError> {
    // Not opened to append: the mark goes to the front.
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let file = open(path).map_err(io_error("open", path))?;
    // The writer of a log that is full, and retention, free independently. The one who comes later may have looked earlier:
    // its mark would point into what is gone.
    file.lock().map_err(io_error("lock", path))?;
    let old = file::start_of(&file).map_err(io_error("read", path))?;
    if start <= old {
        return Ok(0);
    }
    file.write_all_at(&file::mark(start), 0)
        .and_then(|()| file.sync_data())
        .map_err(io_error("mark", path))?;
    punch(&file, PAGE, start).map_err(io_error("free the beginning of", path))?;
    // Entries that are gone read as zeros, which come before everything; what entries stay too long does no harm.
    let index_path = index::path_of(path);
    if let Ok(file) = open(&index_path) {
        let kept = index::first_at(path, start)?;
        drop(punch(&file, 0, kept * ENTRY));
    }
    Ok(start - old)
}

/// Gives back the whole pages between.
fn punch(file: &File, from: u64, to: u64) -> std::io::Result<()> {
    let to = to & !(PAGE - 1);
    let offset = |value: u64| i64::try_from(value).map_err(std::io::Error::other);
    if to > from {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file.as_fd(), flags, offset(from)?, offset(to - from)?)?;
    }
    Ok(())
}
