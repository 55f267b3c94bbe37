//! A log file as records: one at a position, the one before a position, read in pieces that grow as reading goes on.
//!
//! Where retention has freed the beginning of a log, its first bytes are a mark that says where the log starts now:
//! magic `0xb8`, three zeros, CRC-32 of the rest, the start in eight bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::{self, HEADER, Header, MAX_RECORD, Origin, PUT_AT, TRAILER};
use super::{LogError, io_error};
use crate::model::Timestamp;
use crate::model::log::{LogEvent, OutputStream};

const MARK_MAGIC: [u8; 4] = [0xb8, 0, 0, 0];
const MARK: usize = 16;
/// What is read at once: this first, and then ever more.
const FIRST_READ: usize = 4 * 1024;
const LONGEST_READ: usize = 256 * 1024;

/// An open log, as long as it was when it was opened.
pub(super) struct LogFile {
    file: File,
    path: PathBuf,
    pub(super) start: u64,
    pub(super) len: u64,
    /// The bytes of the file from `window_at` on.
    window: Vec<u8>,
    window_at: u64,
    next_read: usize,
    /// How much was read of the file.
    pub(super) bytes_read: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// A record that lies in the window.
pub(super) struct Located<'a> {
    pub(super) position: u64,
    pub(super) header: Header,
    text: &'a [u8],
}

impl Located<'_> {
    pub(super) fn end(&self) -> u64 {
        self.position + self.header.record_len()
    }

    /// What was written: a line, or an event's message.
    pub(super) fn message(&self) -> &[u8] {
        match self.header.origin {
            Origin::Output { .. } => self.text,
            Origin::Event { .. } => &self.text[PUT_AT..],
        }
    }

    pub(super) fn to_event(&self) -> LogEvent {
        let (stream, newline, ingested_at) = match self.header.origin {
            Origin::Output { stream, newline, .. } => (stream, newline, self.header.order),
            Origin::Event { .. } => (OutputStream::Stdout, true, Timestamp(record::word(self.text, 0))),
        };
        LogEvent {
            position: self.position,
            next_position: self.end(),
            order: self.header.order,
            timestamp: self.header.timestamp(),
            ingested_at,
            stream,
            bytes: self.message().to_vec(),
            newline,
        }
    }
}

impl LogFile {
    /// None if there is no such file yet.
    pub(super) fn open(path: &Path) -> Result<Option<LogFile>, LogError> {
        match File::open(path) {
            Ok(file) => LogFile::of(file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open", path)(error)),
        }
    }

    pub(super) fn of(file: File, path: &Path) -> Result<LogFile, LogError> {
        let len = file.metadata().map_err(io_error("read", path))?.len();
        let start = start_of(&file).map_err(io_error("read", path))?;
        Ok(LogFile {
            file,
            path: path.to_owned(),
            start: start.min(len),
            len,
            window: Vec::new(),
            window_at: 0,
            next_read: FIRST_READ,
            bytes_read: 0,
        })
    }

    /// Has the bytes in the window; none if the file, as it was, does not have them.
    fn bytes(&mut self, at: u64, length: usize, direction: Direction) -> Result<Option<&[u8]>, LogError> {
        let Some(end) = at.checked_add(length as u64).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        let held = at >= self.window_at && end <= self.window_at + self.window.len() as u64;
        if !held {
            let wanted = self.next_read.max(length) as u64;
            self.next_read = (self.next_read * 2).min(LONGEST_READ);
            let (from, to) = match direction {
                Direction::Forward => (at, at.saturating_add(wanted).min(self.len)),
                Direction::Backward => (end.saturating_sub(wanted), end),
            };
            self.window.resize(usize::try_from(to - from).unwrap_or(0), 0);
            self.window_at = from;
            if let Err(error) = self.file.read_exact_at(&mut self.window, from) {
                self.window.clear();
                return Err(io_error("read", &self.path)(error));
            }
            self.bytes_read += to - from;
        }
        let index = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(index..).and_then(|rest| rest.get(..length)))
    }

    /// The record at `position`; none at the end or where a record is incomplete or damaged.
    pub(super) fn record_at(&mut self, position: u64) -> Result<Option<Located<'_>>, LogError> {
        self.record(position, Direction::Forward)
    }

    fn record(&mut self, position: u64, direction: Direction) -> Result<Option<Located<'_>>, LogError> {
        if position < self.start {
            return Ok(None);
        }
        let Some(header) = self
            .bytes(position, HEADER, direction)?
            .and_then(record::decode_header)
        else {
            return Ok(None);
        };
        let length = HEADER + header.text_len + TRAILER;
        let bytes = self.bytes(position, length, direction)?;
        Ok(bytes
            .filter(|bytes| record::trailer_fits(bytes))
            .map(|bytes| Located {
                position,
                header,
                text: &bytes[HEADER..HEADER + header.text_len],
            }))
    }

    /// The record that ends at `position`.
    pub(super) fn record_before(&mut self, position: u64) -> Result<Option<Located<'_>>, LogError> {
        let smallest = (HEADER + TRAILER) as u64;
        if position > self.len || position.saturating_sub(self.start) < smallest {
            return Ok(None);
        }
        let Some(bytes) = self.bytes(position - 4, 4, Direction::Backward)? else {
            return Ok(None);
        };
        let length = u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if !(smallest..=MAX_RECORD as u64).contains(&length) || length > position - self.start {
            return Ok(None);
        }
        // The whole of it at once, so that its header does not drive its end out of the window.
        let at = position - length;
        self.bytes(at, usize::try_from(length).unwrap_or(0), Direction::Backward)?;
        let found = self.record(at, Direction::Backward)?;
        Ok(found.filter(|record| record.end() == position))
    }

    /// Where the last whole record ends: the end of the file, unless its last write was cut short. `known` is where some
    /// record is known to begin. From there on, since a record that was cut short may end in text that looks like a whole one.
    pub(super) fn end_of_whole_records(&mut self, known: u64) -> Result<u64, LogError> {
        let mut end = known.max(self.start);
        while let Some(record) = self.record_at(end)? {
            end = record.end();
        }
        Ok(end)
    }
}

/// Where a log starts.
pub(super) fn start_of(file: &File) -> io::Result<u64> {
    let mut mark = [0; MARK];
    match file.read_exact_at(&mut mark, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        Err(error) => return Err(error),
    }
    let crc = u32::from_le_bytes([mark[4], mark[5], mark[6], mark[7]]);
    let is_mark = mark[..4] == MARK_MAGIC && crc == crc32fast::hash(&mark[8..]);
    Ok(if is_mark { record::word(&mark, 8) } else { 0 })
}

/// The mark of a log that starts at `start`.
pub(super) fn mark(start: u64) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark[..4].copy_from_slice(&MARK_MAGIC);
    mark[8..].copy_from_slice(&start.to_le_bytes());
    let crc = crc32fast::hash(&mark[8..]);
    mark[4..8].copy_from_slice(&crc.to_le_bytes());
    mark
}
