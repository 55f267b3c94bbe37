//! Reading a log file: pages of events, forward and backward, and what is known of the whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::{self, HEADER, Header, TRAILER};
use super::{LogError, MAX_EVENT_BYTES};
use crate::model::log::{LogEvent, LogPage, LogQuery, LogStreamStats};

/// A page of the log at `path`. A log that does not exist yet is empty.
pub fn read(path: &Path, query: &LogQuery) -> Result<LogPage, LogError> {
    match LogFile::open(path)? {
        Some(log) if query.forward => log.forward(query),
        Some(log) => log.backward(query),
        None => Ok(LogPage {
            events: Vec::new(),
            next_forward: 0,
            next_backward: 0,
            at_end: true,
        }),
    }
}

/// First and last event and size of the log at `path`.
pub fn stats(path: &Path) -> Result<LogStreamStats, LogError> {
    let Some(log) = LogFile::open(path)? else {
        return Ok(LogStreamStats::default());
    };
    let first = log.event_at(0)?;
    let last = log.event_before(log.len)?;
    Ok(LogStreamStats {
        first_event_at: first.map(|event| event.timestamp),
        last_event_at: last.map(|event| event.timestamp),
        stored_bytes: log.len,
    })
}

pub(super) struct LogFile {
    file: File,
    path: PathBuf,
    pub(super) len: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> Result<Option<LogFile>, LogError> {
        match File::open(path) {
            Ok(file) => LogFile::of(file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(super::io_error("open", path)(error)),
        }
    }

    pub(super) fn of(file: File, path: &Path) -> Result<LogFile, LogError> {
        let len = file.metadata().map_err(super::io_error("read", path))?.len();
        Ok(LogFile {
            file,
            path: path.to_owned(),
            len,
        })
    }

    fn exact(&self, buffer: &mut [u8], at: u64) -> Result<(), LogError> {
        self.file
            .read_exact_at(buffer, at)
            .map_err(super::io_error("read", &self.path))
    }

    /// The header and text at `position`; none at the end or where a record is incomplete or damaged.
    pub(super) fn record_at(&self, position: u64) -> Result<Option<(Header, Vec<u8>)>, LogError> {
        let smallest = (HEADER + TRAILER) as u64;
        if self.len.saturating_sub(position) < smallest {
            return Ok(None);
        }
        let mut header_bytes = [0; HEADER];
        self.exact(&mut header_bytes, position)?;
        let Some(header) = record::decode_header(&header_bytes) else {
            return Ok(None);
        };
        if header.record_len() > self.len - position {
            return Ok(None);
        }
        let mut rest = vec![0; header.text_len + TRAILER];
        self.exact(&mut rest, position + HEADER as u64)?;
        let mut trailer = [0; TRAILER];
        trailer.copy_from_slice(&rest[header.text_len..]);
        rest.truncate(header.text_len);
        Ok(record::trailer_fits(&header_bytes, &rest, trailer).then_some((header, rest)))
    }

    fn event_at(&self, position: u64) -> Result<Option<LogEvent>, LogError> {
        Ok(self.record_at(position)?.map(|(header, bytes)| LogEvent {
            position,
            next_position: position + header.record_len(),
            timestamp: header.timestamp,
            ingested_at: header.timestamp,
            stream: header.stream,
            bytes,
            newline: header.newline,
        }))
    }

    /// Start of the record that ends at `position`.
    pub(super) fn start_of_record_before(&self, position: u64) -> Result<Option<u64>, LogError> {
        if position < (HEADER + TRAILER) as u64 || position > self.len {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.exact(&mut length, position - 4)?;
        let length = u64::from(u32::from_le_bytes(length));
        let possible = length <= (HEADER + MAX_EVENT_BYTES + TRAILER) as u64;
        Ok(position.checked_sub(length).filter(|_| possible))
    }

    fn event_before(&self, position: u64) -> Result<Option<LogEvent>, LogError> {
        let Some(start) = self.start_of_record_before(position)? else {
            return Ok(None);
        };
        Ok(self
            .event_at(start)?
            .filter(|event| event.next_position == position))
    }

    fn forward(&self, query: &LogQuery) -> Result<LogPage, LogError> {
        let start = query.position.unwrap_or(0);
        let mut page = LogPage {
            events: Vec::new(),
            next_forward: start,
            next_backward: start,
            at_end: false,
        };
        let mut bytes = 0;
        loop {
            let Some(event) = self.event_at(page.next_forward)? else {
                // A live log may end in a record that is being written; anything else is not a position of this log.
                if page.next_forward == start
                    && start > 0
                    && start != self.len
                    && self.event_before(start)?.is_none()
                {
                    return Err(LogError::Position(start));
                }
                page.at_end = true;
                break;
            };
            if query.end.is_some_and(|end| event.timestamp >= end) {
                page.at_end = true;
                break;
            }
            if query.start.is_none_or(|earliest| event.timestamp >= earliest) {
                let full = page.events.len() >= query.limit || bytes + event.bytes.len() > query.max_bytes;
                if full && !page.events.is_empty() {
                    break;
                }
                bytes += event.bytes.len();
                page.next_forward = event.next_position;
                page.events.push(event);
            } else {
                page.next_forward = event.next_position;
            }
        }
        page.next_backward = page
            .events
            .first()
            .map_or(page.next_forward, |event| event.position);
        Ok(page)
    }

    fn backward(&self, query: &LogQuery) -> Result<LogPage, LogError> {
        let start = match query.position {
            Some(position) => position,
            None => self.end_of_whole_records()?,
        };
        let mut page = LogPage {
            events: Vec::new(),
            next_forward: start,
            next_backward: start,
            at_end: false,
        };
        let mut bytes = 0;
        loop {
            let Some(event) = self.event_before(page.next_backward)? else {
                if page.next_backward == start && start > 0 {
                    return Err(LogError::Position(start));
                }
                page.at_end = true;
                break;
            };
            if query.start.is_some_and(|earliest| event.timestamp < earliest) {
                page.at_end = true;
                break;
            }
            if query.end.is_none_or(|end| event.timestamp < end) {
                let full = page.events.len() >= query.limit || bytes + event.bytes.len() > query.max_bytes;
                if full && !page.events.is_empty() {
                    break;
                }
                bytes += event.bytes.len();
                page.next_backward = event.position;
                page.events.push(event);
            } else {
                page.next_backward = event.position;
            }
        }
        page.events.reverse();
        page.next_forward = page
            .events
            .last()
            .map_or(page.next_backward, |event| event.next_position);
        Ok(page)
    }

    /// Where the last whole record ends: the end of the file, unless its last write was cut short.
    pub(super) fn end_of_whole_records(&self) -> Result<u64, LogError> {
        if self.len == 0 || self.event_before(self.len)?.is_some() {
            return Ok(self.len);
        }
        let mut end = 0;
        while let Some(event) = self.event_at(end)? {
            end = event.next_position;
        }
        Ok(end)
    }
}
