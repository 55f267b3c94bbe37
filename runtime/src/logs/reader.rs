//! Reading a log file: pages of events, forward and backward, and what is known of the whole.

use std::path::Path;

use super::LogError;
use super::file::LogFile;
use super::index;
use crate::model::log::{LogEvent, LogPage, LogQuery, LogStreamStats};

/// A page of the log at `path`: the events whose text `is_wanted`. A log that does not exist yet is empty.
pub fn read(path: &Path, query: &LogQuery, is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<LogPage, LogError> {
    let Some(mut log) = LogFile::open(path)? else {
        return Ok(Page::at(0).done(true));
    };
    let mut page = if query.forward {
        forward(path, &mut log, query, is_wanted)?
    } else {
        backward(path, &mut log, query, is_wanted)?
    };
    page.bytes_read = log.bytes_read;
    Ok(page)
}

/// First and last event and size of the log at `path`.
pub fn stats(path: &Path) -> Result<LogStreamStats, LogError> {
    let Some(mut log) = LogFile::open(path)? else {
        return Ok(LogStreamStats::default());
    };
    let end = end_of(path, &mut log)?;
    let first = log.record_at(log.start)?.map(|record| record.header.timestamp());
    let last = log
        .record_before(end)?
        .map(|record| (record.header, record.to_event().ingested_at));
    Ok(LogStreamStats {
        first_event_at: first,
        last_event_at: last.map(|(header, _)| header.order),
        last_ingested_at: last.map(|(_, at)| at),
        disorder_ms: last.map_or(0, |(header, _)| header.disorder_ms()),
        stored_bytes: log.len - log.start,
    })
}

/// Where the log at `path` ends.
pub fn end(path: &Path) -> Result<u64, LogError> {
    match LogFile::open(path)? {
        Some(mut log) => end_of(path, &mut log),
        None => Ok(0),
    }
}

/// Where the last whole record ends.
pub(super) fn end_of(path: &Path, log: &mut LogFile) -> Result<u64, LogError> {
    let known = index::near_end(path, log)?;
    log.end_of_whole_records(known)
}

/// A page that is being gathered.
struct Page {
    page: LogPage,
    text_bytes: usize,
}

impl Page {
    fn at(position: u64) -> Page {
        Page {
            page: LogPage {
                events: Vec::new(),
                next_forward: position,
                next_backward: position,
                at_end: false,
                last_order: None,
                bytes_read: 0,
            },
            text_bytes: 0,
        }
    }

    /// Whether this event was taken; there may be no room.
    fn take(&mut self, event: LogEvent, query: &LogQuery) -> bool {
        let bytes = self.text_bytes + event.bytes.len();
        let full = self.page.events.len() >= query.limit || bytes > query.max_bytes;
        if full && !self.page.events.is_empty() {
            return false;
        }
        self.text_bytes = bytes;
        self.page.events.push(event);
        true
    }

    fn done(mut self, at_end: bool) -> LogPage {
        self.page.at_end = at_end;
        self.page
    }
}

fn in_range(event: &super::record::Header, query: &LogQuery) -> bool {
    query.start.is_none_or(|start| event.timestamp() >= start)
        && query.end.is_none_or(|end| event.timestamp() < end)
        && query.from_order.is_none_or(|from| event.order >= from)
}

fn forward(
    path: &Path,
    log: &mut LogFile,
    query: &LogQuery,
    is_wanted: &dyn Fn(&[u8]) -> bool,
) -> Result<LogPage, LogError> {
    let asked = query.position.unwrap_or(0);
    let mut at = asked.max(log.start);
    // An event is no later than its order.
    if let Some(start) = query.start.max(query.from_order) {
        at = at.max(index::before(path, log, start)?);
    }
    // From this order on, no event is as early as the end.
    let past_end = match query.end {
        Some(end) => Some(end.plus_millis(disorder_of(path, log)?)),
        None => None,
    };
    let mut page = Page::at(at);
    let began = at;
    let at_end = loop {
        let at = page.page.next_forward;
        let Some(record) = log.record_at(at)? else {
            // A live log may end in a record that is being written; anything else is not a position of this log.
            let unknown = at == asked && at > log.start && at != log.len;
            if unknown && log.record_before(at)?.is_none() {
                return Err(LogError::Position(at));
            }
            break true;
        };
        if past_end.is_some_and(|past_end| record.header.order >= past_end) {
            break true;
        }
        if record.position - began >= query.max_scanned_bytes {
            break false;
        }
        let end = record.end();
        let order = record.header.order;
        if in_range(&record.header, query)
            && is_wanted(record.message())
            && !page.take(record.to_event(), query)
        {
            break false;
        }
        page.page.next_forward = end;
        page.page.last_order = Some(order);
    };
    let first = page.page.events.first().map(|event| event.position);
    page.page.next_backward = first.unwrap_or(page.page.next_forward);
    Ok(page.done(at_end))
}

fn backward(
    path: &Path,
    log: &mut LogFile,
    query: &LogQuery,
    is_wanted: &dyn Fn(&[u8]) -> bool,
) -> Result<LogPage, LogError> {
    let asked = match query.position {
        Some(position) => position,
        None => end_of(path, log)?,
    };
    if asked < log.start {
        return Ok(Page::at(log.start).done(true));
    }
    let mut at = asked;
    if let Some(end) = query.end {
        let past_end = end.plus_millis(disorder_of(path, log)?);
        at = at.min(index::beyond(path, log, past_end)?.unwrap_or(at));
    }
    let began = at;
    let mut page = Page::at(at);
    let at_end = loop {
        let at = page.page.next_backward;
        let Some(record) = log.record_before(at)? else {
            if at == asked && at > log.start {
                return Err(LogError::Position(at));
            }
            break true;
        };
        let earliest = query.start.max(query.from_order);
        if earliest.is_some_and(|earliest| record.header.order < earliest) {
            break true;
        }
        if began - record.end() >= query.max_scanned_bytes {
            break false;
        }
        let (position, order) = (record.position, record.header.order);
        if in_range(&record.header, query)
            && is_wanted(record.message())
            && !page.take(record.to_event(), query)
        {
            break false;
        }
        page.page.next_backward = position;
        page.page.last_order = Some(order);
    };
    page.page.events.reverse();
    let last = page.page.events.last().map(|event| event.next_position);
    page.page.next_forward = last.unwrap_or(page.page.next_backward);
    Ok(page.done(at_end))
}

/// By how much an event of this log may be earlier than its order.
fn disorder_of(path: &Path, log: &mut LogFile) -> Result<u64, LogError> {
    let end = end_of(path, log)?;
    let last = log.record_before(end)?;
    Ok(last.map_or(0, |record| record.header.disorder_ms()))
}
