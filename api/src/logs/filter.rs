//! FilterLogEvents: the events of many streams of a group as one sequence, ordered by time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use berth_runtime::model::Timestamp;
use berth_runtime::model::log::{LogEvent, LogQuery, LogStream, LogStreamStats};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::pattern::Pattern;
use super::shapes;
use super::{MAX_EVENT_BYTES, MAX_EVENTS, group, invalid_token, limit, refusal, time};
use crate::app::App;
use crate::ecs::values::put;
use crate::error::ApiError;
use crate::page;

/// Most streams that a request can name.
const MAX_NAMED_STREAMS: usize = 100;
/// Events and bytes that one request looks at, whether or not they match; after that a token leads on.
const MAX_SCANNED_EVENTS: usize = 50_000;
const MAX_SCANNED_BYTES: usize = 16 * 1024 * 1024;
/// What is read of a stream at a time.
const CHUNK_EVENTS: usize = 1000;
const CHUNK_BYTES: usize = 64 * 1024;

/// The place of an event in the sequence: its time, its stream and its position there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    time: Timestamp,
    stream: String,
    position: u64,
}

impl Place {
    fn text(&self) -> String {
        format!("{} {} {}", self.time.0, self.position, self.stream)
    }

    fn parse(text: &str) -> Option<Place> {
        let mut parts = text.splitn(3, ' ');
        let time = Timestamp(parts.next()?.parse().ok()?);
        let position = parts.next()?.parse().ok()?;
        Some(Place {
            time,
            position,
            stream: parts.next()?.to_owned(),
        })
    }
}

/// A stream that is being read.
struct Cursor {
    stream: String,
    buffer: VecDeque<LogEvent>,
    next: Option<u64>,
    at_end: bool,
}

pub(super) async fn filter(app: &App, input: shapes::FilterLogEvents) -> Result<Value, ApiError> {
    let group = group(
        app,
        input.log_group_name.as_deref(),
        input.log_group_identifier.as_deref(),
    )?;
    let pattern = input.filter_pattern.as_deref().unwrap_or_default();
    let question = format!(
        "FilterLogEvents {group:?} {:?} {:?} {:?} {:?} {pattern:?}",
        input.log_stream_names, input.log_stream_name_prefix, input.start_time, input.end_time
    );
    let pattern = Pattern::parse(pattern).map_err(|error| ApiError::InvalidParameter(error.to_string()))?;
    let limit = limit("limit", input.limit, MAX_EVENTS, MAX_EVENTS)?;
    let resume = match input.next_token.as_deref() {
        None => None,
        Some(token) => {
            let place = page::read(&question, token)
                .ok()
                .and_then(|key| Place::parse(&key));
            Some(place.ok_or_else(invalid_token)?)
        }
    };
    let start = time("startTime", input.start_time)?.max(resume.as_ref().map(|place| place.time));
    // Unlike that of GetLogEvents, this end is inclusive.
    let end = time("endTime", input.end_time)?.map(|end| end.plus_millis(1));
    let known = app.runtime.log_streams(group).await.map_err(refusal)?;
    let streams = chosen(
        known,
        input.log_stream_names.as_deref(),
        input.log_stream_name_prefix.as_deref(),
    )?;

    let mut cursors = Vec::new();
    let mut heap = BinaryHeap::new();
    for (stream, stats) in streams {
        let (Some(first), Some(last)) = (stats.first_event_at, stats.last_event_at) else {
            continue;
        };
        if start.is_some_and(|start| last < start) || end.is_some_and(|end| first >= end) {
            continue;
        }
        // No event of it comes before this, so it is not opened until the sequence is there.
        let earliest = Place {
            time: Some(first).max(start).unwrap_or(first),
            stream: stream.name,
            position: 0,
        };
        let cursor = Cursor {
            stream: earliest.stream.clone(),
            buffer: VecDeque::new(),
            next: None,
            at_end: false,
        };
        heap.push(Reverse((earliest, cursors.len())));
        cursors.push(cursor);
    }

    let mut found = Vec::new();
    let (mut found_bytes, mut scanned, mut scanned_bytes) = (0, 0, 0);
    let mut last: Option<Place> = None;
    while let Some(Reverse((_, index))) = heap.pop() {
        let full = found.len() >= limit || found_bytes >= MAX_EVENT_BYTES;
        if full || scanned >= MAX_SCANNED_EVENTS || scanned_bytes >= MAX_SCANNED_BYTES {
            let next = last.as_ref().map(|place| page::write(&question, &place.text()));
            return Ok(answer(found, next));
        }
        let cursor = &mut cursors[index];
        if let Some(event) = cursor.buffer.pop_front() {
            let place = Place {
                time: event.timestamp,
                stream: cursor.stream.clone(),
                position: event.position,
            };
            // Of the millisecond at which the last answer ended, some events were given already.
            if resume.as_ref().is_none_or(|resume| place > *resume) {
                scanned += 1;
                scanned_bytes += event.bytes.len();
                let message = String::from_utf8_lossy(&event.bytes);
                if pattern.matches(&message) {
                    found_bytes += message.len();
                    found.push(json!({
                        "logStreamName": cursor.stream,
                        "timestamp": event.timestamp.0,
                        "message": message,
                        "ingestionTime": event.ingested_at.0,
                        "eventId": event_id(&place),
                    }));
                }
                last = Some(place);
            }
        }
        if cursor.buffer.is_empty() {
            fill(app, group, cursor, start, end).await?;
        }
        if let Some(event) = cursor.buffer.front() {
            let place = Place {
                time: event.timestamp,
                stream: cursor.stream.clone(),
                position: event.position,
            };
            heap.push(Reverse((place, index)));
        }
    }
    Ok(answer(found, None))
}

fn answer(events: Vec<Value>, next: Option<String>) -> Value {
    let mut answer = Map::new();
    put(&mut answer, "events", Some(events));
    put(&mut answer, "searchedLogStreams", Some(json!([])));
    put(&mut answer, "nextToken", next);
    Value::Object(answer)
}

/// The streams that a request is about.
fn chosen(
    known: Vec<(LogStream, LogStreamStats)>,
    names: Option<&[String]>,
    prefix: Option<&str>,
) -> Result<Vec<(LogStream, LogStreamStats)>, ApiError> {
    let refuse = |text: &str| Err(ApiError::InvalidParameter(text.to_owned()));
    let Some(names) = names else {
        let prefix = prefix.unwrap_or_default();
        return Ok(known
            .into_iter()
            .filter(|(stream, _)| stream.name.starts_with(prefix))
            .collect());
    };
    if prefix.is_some() {
        return refuse("logStreamNames and logStreamNamePrefix are mutually exclusive parameters.");
    }
    if names.is_empty() || names.len() > MAX_NAMED_STREAMS {
        return refuse("logStreamNames must have 1 to 100 items.");
    }
    if names
        .iter()
        .any(|name| !known.iter().any(|(stream, _)| stream.name == *name))
    {
        return Err(ApiError::ResourceNotFound(
            "The specified log stream does not exist.".to_owned(),
        ));
    }
    Ok(known
        .into_iter()
        .filter(|(stream, _)| names.contains(&stream.name))
        .collect())
}

/// Reads the next events of a stream, unless there are none.
async fn fill(
    app: &App,
    group: &str,
    cursor: &mut Cursor,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
) -> Result<(), ApiError> {
    while cursor.buffer.is_empty() && !cursor.at_end {
        let query = LogQuery {
            position: cursor.next,
            forward: true,
            start,
            end,
            limit: CHUNK_EVENTS,
            max_bytes: CHUNK_BYTES,
        };
        let page = app
            .runtime
            .log_events(group, &cursor.stream, query)
            .await
            .map_err(refusal)?;
        // A page that leads nowhere is the last.
        cursor.at_end = page.at_end || cursor.next == Some(page.next_forward);
        cursor.next = Some(page.next_forward);
        cursor.buffer = page.events.into();
    }
    Ok(())
}

/// 56 digits, the same at every reading, in the order of time.
fn event_id(place: &Place) -> String {
    let digest = Sha256::digest(place.stream.as_bytes());
    let stream = digest
        .iter()
        .take(7)
        .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    format!(
        "{:020}{:016}{:020}",
        place.time.0,
        stream % 10_000_000_000_000_000,
        place.position
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_reads_back_as_it_was_written(time: u64, position: u64, stream in "[^:*]{1,40}") {
            let place = Place { time: Timestamp(time), stream, position };
            prop_assert_eq!(Place::parse(&place.text()), Some(place));
        }
    }

    #[test]
    fn event_ids_tell_events_apart() {
        let place = |time, stream: &str, position| Place {
            time: Timestamp(time),
            stream: stream.to_owned(),
            position,
        };
        let id = event_id(&place(u64::MAX, "a", u64::MAX));
        assert_eq!(id.len(), 56);
        assert_ne!(event_id(&place(1, "a", 1)), event_id(&place(1, "b", 1)));
        assert_ne!(event_id(&place(1, "a", 1)), event_id(&place(1, "a", 2)));
        assert!(event_id(&place(1, "z", 9)) < event_id(&place(2, "a", 0)));
    }

    #[test]
    fn a_stream_that_does_not_exist_is_refused_by_name_and_ignored_by_prefix() {
        assert!(chosen(Vec::new(), None, Some("x")).unwrap().is_empty());
        let error = chosen(Vec::new(), Some(&["x".to_owned()]), None).unwrap_err();
        assert_eq!(error.to_string(), "The specified log stream does not exist.");
        assert!(chosen(Vec::new(), Some(&["x".to_owned()]), Some("x")).is_err());
    }
}
