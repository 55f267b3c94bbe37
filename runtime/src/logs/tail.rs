//! The growing end of a log file: whole records are put behind whole records, and the index follows.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::file::LogFile;
use super::index::{self, Indexer};
use super::record::{self, Header};
use super::{LogError, io_error, reader, trim};
use crate::faults::{self, Point};

#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    path: PathBuf,
    pub(super) start: u64,
    pub(super) len: u64,
    indexer: Indexer,
    records: Vec<u8>,
}

impl Tail {
    /// Opens a log to write, mended if its last write was cut short, and gives the header of its last record.
    pub(super) fn open(path: &Path) -> Result<(Tail, Option<Header>), LogError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("open", path))?;
        let mut log = LogFile::of(file.try_clone().map_err(io_error("open", path))?, path)?;
        let len = reader::end_of(path, &mut log)?;
        if len != log.len {
            file.set_len(len).map_err(io_error("mend", path))?;
            log.len = len;
        }
        let last = log.record_before(len)?.map(|record| record.header);
        let (mut at, mut indexer) = if len - log.start > index::BLOCK {
            let at = index::near_end(path, &mut log)?;
            (at, Indexer::after(Some(at)))
        } else {
            // Nobody looks at the index of a short log; whatever it was, it begins anew.
            index::remove(path);
            (log.start, Indexer::default())
        };
        // From the last entry on, what a crash kept out of the index is put into it.
        while let Some(record) = log.record_at(at)? {
            indexer.record(record.position, record.header.order);
            at = record.end();
        }
        indexer.flush(path);
        let tail = Tail {
            file,
            path: path.to_owned(),
            start: log.start,
            len,
            indexer,
            records: Vec::new(),
        };
        Ok((tail, last))
    }

    /// Adds a record to what [`Self::write`] writes.
    pub(super) fn push(&mut self, header: &Header, text: &[&[u8]]) {
        let position = self.len + self.records.len() as u64;
        self.indexer.record(position, header.order);
        record::encode(header, text, &mut self.records);
    }

    /// Frees at least so many bytes of the oldest records; gives how many.
    pub(super) fn free(&mut self, bytes: u64) -> Result<u64, LogError> {
        let freed = trim::trim_bytes(&self.path, bytes)?;
        self.start += freed;
        Ok(freed)
    }

    /// Forgets what was pushed.
    fn clear(&mut self) {
        self.records.clear();
        self.indexer.forget();
    }

    /// Writes what was pushed: all of it, or on an error nothing.
    pub(super) fn write(&mut self) -> Result<(), LogError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let written = faults::write(Point::LinesArrived).and_then(|()| self.file.write_all(&self.records));
        if let Err(cause) = written {
            self.clear();
            // A piece of a record must not stay.
            self.file
                .set_len(self.len)
                .map_err(io_error("mend", &self.path))?;
            return Err(io_error("write", &self.path)(cause));
        }
        faults::pass(Point::LinesWritten);
        self.len += self.records.len() as u64;
        self.records.clear();
        self.indexer.flush(&self.path);
        Ok(())
    }

    /// How much the log holds, after retention has freed some of it.
    pub(super) fn held_bytes(&mut self) -> Result<u64, LogError> {
        let copy = self.file.try_clone().map_err(io_error("open", &self.path))?;
        self.start = LogFile::of(copy, &self.path)?.start;
        Ok(self.len - self.start)
    }
}
