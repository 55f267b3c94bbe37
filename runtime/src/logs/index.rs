//! The index beside a log: for every [`BLOCK`] of it one entry, the position of a record and its order, 8 bytes each.
//!
//! It only says where to begin. What it says is checked against the log wherever that is used, so an index that is
//! missing, cut short or wrong costs time and nothing else; and then it is made anew. Entries before the log's start may be
//! zeros.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::file::LogFile;
use super::record::{self, MAX_RECORD};
use super::{LogError, io_error};
use crate::model::Timestamp;

/// How much of the log lies between two entries.
pub(super) const BLOCK: u64 = if cfg!(test) { 512 } else { 64 * 1024 };
pub(super) const ENTRY: u64 = 16;
/// Between two entries of a whole index lies no more.
const WIDEST: u64 = BLOCK + MAX_RECORD as u64;

pub(super) fn path_of(log: &Path) -> PathBuf {
    log.with_extension("idx")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: u64,
    pub(super) order: Timestamp,
}

/// Which entries the records that are being written need.
#[derive(Debug, Default)]
pub(super) struct Indexer {
    /// Position of the last entry.
    last: Option<u64>,
    /// That of the last entry that was flushed.
    flushed: Option<u64>,
    pending: Vec<u8>,
}

impl Indexer {
    pub(super) fn after(last: Option<u64>) -> Indexer {
        Indexer {
            last,
            flushed: last,
            pending: Vec::new(),
        }
    }

    /// A record begins here.
    pub(super) fn record(&mut self, position: u64, order: Timestamp) {
        if self.last.is_none_or(|last| position >= last + BLOCK) {
            self.last = Some(position);
            self.pending.extend(position.to_le_bytes());
            self.pending.extend(order.0.to_le_bytes());
        }
    }

    /// The records that were told of since the last flush are not written.
    pub(super) fn forget(&mut self) {
        self.last = self.flushed;
        self.pending.clear();
    }

    /// Writes the entries of records that are written.
    pub(super) fn flush(&mut self, log: &Path) {
        if self.pending.is_empty() {
            return;
        }
        let path = path_of(log);
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&self.pending));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "the index of a log lacks an entry");
        }
        self.flushed = self.last;
        self.pending.clear();
    }
}

pub(super) fn remove(log: &Path) {
    // What cannot be removed is checked again by whoever reads it.
    drop(std::fs::remove_file(path_of(log)));
}

/// An index that is being read. It need not be right.
pub(super) struct Index {
    file: File,
    path: PathBuf,
    entries: u64,
    pub(super) bytes_read: u64,
}

impl Index {
    /// None for a log that is too short to need one. A broken index is made anew first.
    pub(super) fn open(log_path: &Path, log: &mut LogFile) -> Result<Option<Index>, LogError> {
        if log.len - log.start <= BLOCK {
            return Ok(None);
        }
        match Index::open_as_it_is(log_path)? {
            Some(index) => match index.spanning(log)? {
                Some(index) => Ok(Some(index)),
                None => Index::rebuild(log_path, log).map(Some),
            },
            None => Index::rebuild(log_path, log).map(Some),
        }
    }

    fn open_as_it_is(log_path: &Path) -> Result<Option<Index>, LogError> {
        let path = path_of(log_path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        Ok(length.is_multiple_of(ENTRY).then_some(Index {
            file,
            path,
            entries: length / ENTRY,
            bytes_read: 0,
        }))
    }

    /// Itself, if it begins and ends where the log does.
    fn spanning(mut self, log: &LogFile) -> Result<Option<Index>, LogError> {
        let (Some(first), Some(last)) = (self.entry(0)?, self.last()?) else {
            return Ok(None);
        };
        let begins = first.position <= log.start.saturating_add(WIDEST);
        // Entries of records that were written after the log was opened are beyond its end.
        let ends = last.position >= log.len || log.len - last.position <= 2 * WIDEST;
        Ok((begins && ends).then_some(self))
    }

    pub(super) fn rebuild(log_path: &Path, log: &mut LogFile) -> Result<Index, LogError> {
        let path = path_of(log_path);
        tracing::info!(path = %path.display(), "making the index of a log anew");
        let mut indexer = Indexer::default();
        let mut at = log.start;
        while let Some(record) = log.record_at(at)? {
            indexer.record(record.position, record.header.order);
            at = record.end();
        }
        // Under a name of its own, as two readers may do this at once.
        let made = path.with_extension(format!("idx-{:016x}", rand::random::<u64>()));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.create_new(true).write(true).mode(0o600).open(&made)?;
            file.write_all(&indexer.pending)?;
            std::fs::rename(&made, &path)
        };
        write().map_err(io_error("write", &path))?;
        let file = File::open(&path).map_err(io_error("open", &path))?;
        Ok(Index {
            file,
            path,
            entries: indexer.pending.len() as u64 / ENTRY,
            bytes_read: 0,
        })
    }

    pub(super) fn entry(&mut self, number: u64) -> Result<Option<Entry>, LogError> {
        if number >= self.entries {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY as usize];
        self.file
            .read_exact_at(&mut bytes, number * ENTRY)
            .map_err(io_error("read", &self.path))?;
        self.bytes_read += ENTRY;
        Ok(Some(Entry {
            position: record::word(&bytes, 0),
            order: Timestamp(record::word(&bytes, 8)),
        }))
    }

    pub(super) fn last(&mut self) -> Result<Option<Entry>, LogError> {
        match self.entries.checked_sub(1) {
            Some(number) => self.entry(number),
            None => Ok(None),
        }
    }

    /// The number of the first entry at or beyond which `is_beyond` holds; it has to hold for all after one for which it
    /// holds.
    pub(super) fn first(&mut self, is_beyond: impl Fn(Entry) -> bool) -> Result<u64, LogError> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.is_none_or(&is_beyond) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }
}

/// The last position, found in the index, before which nothing has an order of `time` or later; the log's start if none
/// is known.
pub(super) fn before(log_path: &Path, log: &mut LogFile, time: Timestamp) -> Result<u64, LogError> {
    sought(log_path, log, |index, log| {
        let beyond = index.first(|entry| entry.order >= time)?;
        let Some(entry) = entry_before(index, beyond)?.filter(|entry| entry.position > log.start) else {
            return Ok(Some(log.start));
        };
        let record = log.record_at(entry.position)?;
        Ok(record
            .filter(|record| record.header.order < time)
            .map(|_| entry.position))
    })
    .map(|found| found.unwrap_or(log.start))
}

/// The first position, found in the index, from which on everything has an order of `time` or later; none if none is known.
pub(super) fn beyond(log_path: &Path, log: &mut LogFile, time: Timestamp) -> Result<Option<u64>, LogError> {
    sought(log_path, log, |index, log| {
        let beyond = index.first(|entry| entry.order >= time)?;
        let Some(entry) = index.entry(beyond)?.filter(|entry| entry.position < log.len) else {
            return Ok(Some(u64::MAX));
        };
        if entry.position < log.start {
            return Ok(Some(log.start));
        }
        let record = log.record_at(entry.position)?;
        Ok(record
            .filter(|record| record.header.order >= time)
            .map(|_| entry.position))
    })
    .map(|found| found.filter(|position| *position < log.len))
}

/// The first position, found in the index, that is not before `position`; the log's start if none is known.
pub(super) fn after(log_path: &Path, log: &mut LogFile, position: u64) -> Result<u64, LogError> {
    sought(log_path, log, |index, log| {
        let number = index.first(|entry| entry.position >= position)?;
        let Some(entry) = index.entry(number)?.filter(|entry| entry.position < log.len) else {
            return Ok(Some(log.start));
        };
        Ok(log.record_at(entry.position)?.map(|record| record.position))
    })
    .map(|found| found.unwrap_or(log.start))
}

/// Number of the first entry that is not before `position`.
pub(super) fn first_at(log_path: &Path, position: u64) -> Result<u64, LogError> {
    match Index::open_as_it_is(log_path)? {
        Some(mut index) => index.first(|entry| entry.position >= position),
        None => Ok(0),
    }
}

/// Where a record begins, close to the end of the log.
pub(super) fn near_end(log_path: &Path, log: &mut LogFile) -> Result<u64, LogError> {
    sought(log_path, log, |index, log| {
        let beyond = index.first(|entry| entry.position >= log.len)?;
        let Some(entry) = entry_before(index, beyond)?.filter(|entry| entry.position > log.start) else {
            return Ok(Some(log.start));
        };
        // The last entry may be of a record of which only a part was written.
        if log.record_at(entry.position)?.is_some() {
            return Ok(Some(entry.position));
        }
        let Some(entry) = entry_before(index, beyond.saturating_sub(1))? else {
            return Ok(Some(log.start));
        };
        Ok(log.record_at(entry.position)?.map(|record| record.position))
    })
    .map(|found| found.unwrap_or(log.start))
}

fn entry_before(index: &mut Index, number: u64) -> Result<Option<Entry>, LogError> {
    match number.checked_sub(1) {
        Some(number) => index.entry(number),
        None => Ok(None),
    }
}

/// What `seek` finds in the index; if that does not fit the log, what it finds in a new one.
fn sought(
    log_path: &Path,
    log: &mut LogFile,
    mut seek: impl FnMut(&mut Index, &mut LogFile) -> Result<Option<u64>, LogError>,
) -> Result<Option<u64>, LogError> {
    let Some(mut index) = Index::open(log_path, log)? else {
        return Ok(None);
    };
    let mut found = seek(&mut index, log)?;
    log.bytes_read += index.bytes_read;
    if found.is_none() {
        let mut index = Index::rebuild(log_path, log)?;
        found = seek(&mut index, log)?;
    }
    Ok(found)
}
