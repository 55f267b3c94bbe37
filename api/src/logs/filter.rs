//! FilterLogEvents: the events of many streams of a group as one sequence, ordered by time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use berth_runtime::LogMatcher;
use berth_runtime::model::Timestamp;
use berth_runtime::model::log::{LogEvent, LogQuery, LogStream, LogStreamStats};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::pattern::Pattern;
use super::shapes;
use super::{MAX_EVENT_BYTES, MAX_EVENTS, MAX_SCANNED_BYTES, group, invalid_token, limit, refusal, time};
use crate::app::App;
use crate::ecs::values::put;
use crate::error::ApiError;
use crate::page;

/// Most streams that a request can name.
const MAX_NAMED_STREAMS: usize = 100;
const MAX_TEST_MESSAGES: usize = 50;
/// What is found in a stream, and looked at, at a time.
const CHUNK_EVENTS: usize = 1000;
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNK_SCANNED_BYTES: u64 = 8 * 1024 * 1024;

/// The place of an event in the sequence: its order, its stream and its position there.
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
    stream: LogStream,
    query: LogQuery,
    /// What was found and not given yet.
    found: VecDeque<LogEvent>,
    /// No later event comes before this in the order of events.
    reached: Timestamp,
    at_end: bool,
}

impl Cursor {
    /// The place of the next event that was found, or the earliest that one can have; none at the end.
    fn place(&self) -> Option<Place> {
        let (time, position) = match self.found.front() {
            Some(event) => (event.order, event.position),
            None if self.at_end => return None,
            None => (self.reached, self.query.position.unwrap_or(0)),
        };
        Some(Place {
            time,
            stream: self.stream.name.clone(),
            position,
        })
    }
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
    let is_wanted = matcher(pattern)?;
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
    let kept_since = app.runtime.log_group(group).await.map_err(refusal)?;
    let kept_since = kept_since.kept_since(app.runtime.now());
    let query = LogQuery {
        position: None,
        forward: true,
        start: time("startTime", input.start_time)?.max(kept_since),
        // Unlike that of GetLogEvents, this end is inclusive.
        end: time("endTime", input.end_time)?.map(|end| end.plus_millis(1)),
        from_order: None,
        limit: CHUNK_EVENTS,
        max_bytes: CHUNK_BYTES,
        max_scanned_bytes: CHUNK_SCANNED_BYTES,
    };
    let known = app.runtime.log_streams(group).await.map_err(refusal)?;
    let streams = chosen(
        known,
        input.log_stream_names.as_deref(),
        input.log_stream_name_prefix.as_deref(),
    )?;
    let mut cursors: Vec<Cursor> = streams
        .into_iter()
        .filter_map(|(stream, stats)| cursor(stream, &stats, query, resume.as_ref()))
        .collect();
    // A stream is not opened until the sequence is where it begins.
    let mut heap: BinaryHeap<_> = cursors
        .iter()
        .enumerate()
        .filter_map(|(index, cursor)| Some(Reverse((cursor.place()?, index))))
        .collect();
    let mut found = Vec::new();
    let (mut found_bytes, mut scanned) = (0, 0);
    while let Some(Reverse((place, index))) = heap.pop() {
        let full = found.len() >= limit || found_bytes >= MAX_EVENT_BYTES;
        if full || scanned >= MAX_SCANNED_BYTES {
            return Ok(answer(found, Some(page::write(&question, &place.text()))));
        }
        let cursor = &mut cursors[index];
        match cursor.found.pop_front() {
            Some(event) => {
                found_bytes += event.bytes.len();
                found.push((place, event));
            }
            None => scanned += fill(app, cursor, &is_wanted).await?,
        }
        heap.extend(cursor.place().map(|place| Reverse((place, index))));
    }
    Ok(answer(found, None))
}

/// What tells whether a message is wanted.
pub(super) fn matcher(pattern: &str) -> Result<LogMatcher, ApiError> {
    let pattern = Pattern::parse(pattern).map_err(|error| ApiError::InvalidParameter(error.to_string()))?;
    Ok(Arc::new(move |bytes: &[u8]| {
        pattern.matches(&String::from_utf8_lossy(bytes))
    }))
}

/// TestMetricFilter: which of some messages a pattern matches.
pub(super) fn test(input: shapes::TestMetricFilter) -> Result<Value, ApiError> {
    let messages = input.log_event_messages.unwrap_or_default();
    if !(1..=MAX_TEST_MESSAGES).contains(&messages.len()) {
        return Err(ApiError::InvalidParameter(format!(
            "logEventMessages must have 1 to {MAX_TEST_MESSAGES} items."
        )));
    }
    let is_wanted = matcher(input.filter_pattern.as_deref().unwrap_or_default())?;
    let matches = messages
        .iter()
        .enumerate()
        .filter(|(_, message)| is_wanted(message.as_bytes()))
        .map(|(number, message)| {
            json!({ "eventNumber": number + 1, "eventMessage": message, "extractedValues": {} })
        });
    Ok(json!({ "matches": matches.collect::<Vec<_>>() }))
}

/// None for a stream in which nothing can be found.
fn cursor(
    stream: LogStream,
    stats: &LogStreamStats,
    mut query: LogQuery,
    resume: Option<&Place>,
) -> Option<Cursor> {
    let (first, last) = (stats.first_event_at?, stats.last_event_at?);
    let earliest = Timestamp(first.0.saturating_sub(stats.disorder_ms));
    if query.start.is_some_and(|start| last < start) || query.end.is_some_and(|end| earliest >= end) {
        return None;
    }
    if let Some(resume) = resume {
        // What comes before that place was given or looked at.
        let all_of_its_time = stream.name < resume.stream;
        query.from_order = Some(resume.time.plus_millis(all_of_its_time.into()));
        query.position = Some(resume.position).filter(|at| *at > 0 && stream.name == resume.stream);
    }
    Some(Cursor {
        stream,
        query,
        found: VecDeque::new(),
        reached: Some(first).max(query.from_order).unwrap_or(first),
        at_end: false,
    })
}

fn answer(mut found: Vec<(Place, LogEvent)>, next: Option<String>) -> Value {
    // Clients may put events in any order.
    found.sort_by_key(|(_, event)| event.timestamp);
    let events = found.iter().map(|(place, event)| {
        json!({
            "logStreamName": place.stream,
            "timestamp": event.timestamp.0,
            "message": String::from_utf8_lossy(&event.bytes),
            "ingestionTime": event.ingested_at.0,
            "eventId": event_id(place),
        })
    });
    let mut answer = Map::new();
    put(&mut answer, "events", Some(events.collect::<Vec<_>>()));
    put(&mut answer, "searchedLogStreams", Some(Vec::<Value>::new()));
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

/// Looks at the next part of a stream; gives how many bytes of it.
async fn fill(app: &App, cursor: &mut Cursor, is_wanted: &LogMatcher) -> Result<u64, ApiError> {
    let search = app
        .runtime
        .search_log(&cursor.stream, cursor.query, Arc::clone(is_wanted));
    let page = search.await.map_err(refusal)?;
    // A page that leads nowhere is the last.
    cursor.at_end = page.at_end || cursor.query.position == Some(page.next_forward);
    cursor.query.position = Some(page.next_forward);
    cursor.reached = page.last_order.unwrap_or(cursor.reached).max(cursor.reached);
    cursor.found = page.events.into();
    Ok(page.bytes_read)
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
