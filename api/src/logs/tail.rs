//! StartLiveTail: new events of some streams, as they come, in a stream of messages. At most [`MAX_PER_SECOND`] events are
//! sent in a second; where there are more, the rest is left out, and the update says that it is a sample.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::model::log::{LogEvent, LogQuery, LogStream};
use berth_runtime::{LogMatcher, Runtime, RuntimeError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::filter::matcher;
use super::shapes;
use super::{MAX_SCANNED_BYTES, is_group_name, is_stream_name, refusal};
use crate::app::App;
use crate::decode::shape;
use crate::error::ApiError;
use crate::eventstream::{event, exception};
use crate::reply::uuid_text;

pub(crate) const START_LIVE_TAIL: &str = "StartLiveTail";
/// At once.
pub(crate) const MAX_LIVE_TAILS: usize = 15;

const MAX_GROUPS: usize = 10;
const MAX_STREAMS: usize = 100;
const MAX_PER_SECOND: usize = 500;
const MAX_EVENT_BYTES: usize = 1024 * 1024;
const LONGEST: Duration = Duration::from_secs(3 * 60 * 60);
/// An update comes at least so often, and new streams are looked for.
const SECOND: Duration = Duration::from_secs(1);
/// Between two updates; events that come meanwhile are in one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Updates that the caller has not taken yet.
const BACKLOG: usize = 4;

/// Which streams are followed.
struct Chosen {
    groups: Vec<String>,
    names: Option<Vec<String>>,
    prefixes: Option<Vec<String>>,
}

impl Chosen {
    fn has(&self, stream: &LogStream) -> bool {
        let named = |names: &Vec<String>| names.contains(&stream.name);
        let begins = |all: &Vec<String>| all.iter().any(|prefix| stream.name.starts_with(prefix));
        self.names.as_ref().is_none_or(named) && self.prefixes.as_ref().is_none_or(begins)
    }
}

/// The messages of a session that has begun.
pub(crate) async fn start(app: &App, body: &[u8]) -> Result<mpsc::Receiver<Bytes>, ApiError> {
    let input: shapes::StartLiveTail = shape(body)?;
    let pattern = input.log_event_filter_pattern.as_deref().unwrap_or_default();
    let is_wanted = matcher(pattern)?;
    let chosen = chosen(app, &input)?;
    for group in &chosen.groups {
        app.runtime.log_group(group).await.map_err(refusal)?;
    }
    let place = Arc::clone(&app.live_tails).try_acquire_owned().map_err(|_| {
        ApiError::of_service(
            "LimitExceededException",
            format!("There are {MAX_LIVE_TAILS} live tails already."),
        )
    })?;
    let arns: Vec<String> = chosen
        .groups
        .iter()
        .map(|group| app.owner.log_group(group))
        .collect();
    let begin = json!({
        "requestId": uuid_text(rand::random()),
        "sessionId": uuid_text(rand::random()),
        "logGroupIdentifiers": arns,
        "logStreamNames": input.log_stream_names.unwrap_or_default(),
        "logStreamNamePrefixes": input.log_stream_name_prefixes.unwrap_or_default(),
        "logEventFilterPattern": pattern,
    });
    let mut session = Session {
        runtime: app.runtime.clone(),
        groups: chosen.groups.iter().cloned().zip(arns).collect(),
        chosen,
        is_wanted,
        streams: Vec::new(),
        ends: HashMap::new(),
        _place: place,
    };
    // What is there now is not new.
    session.find_streams(true).await.map_err(refusal)?;
    let (pieces, receiver) = mpsc::channel(BACKLOG);
    // There is room for both.
    drop(pieces.try_send(Bytes::from(event("initial-response", &json!({})))));
    drop(pieces.try_send(Bytes::from(event("sessionStart", &begin))));
    tokio::spawn(async move { session.serve(pieces).await });
    Ok(receiver)
}

fn chosen(app: &App, input: &shapes::StartLiveTail) -> Result<Chosen, ApiError> {
    let refuse = |text: &str| Err(ApiError::InvalidParameter(text.to_owned()));
    let identifiers = input.log_group_identifiers.as_deref().unwrap_or_default();
    if !(1..=MAX_GROUPS).contains(&identifiers.len()) {
        return refuse("logGroupIdentifiers must have 1 to 10 items.");
    }
    let mut groups: Vec<String> = Vec::new();
    for identifier in identifiers {
        let name = app.owner.parse_log_group(identifier)?;
        if !is_group_name(name) {
            return refuse("The specified log group name is not valid.");
        }
        groups.push(name.to_owned());
    }
    groups.sort_unstable();
    groups.dedup();
    let given = |names: &Option<Vec<String>>| names.clone().filter(|names| !names.is_empty());
    let (names, prefixes) = (
        given(&input.log_stream_names),
        given(&input.log_stream_name_prefixes),
    );
    if names.is_some() && prefixes.is_some() {
        return refuse("logStreamNames and logStreamNamePrefixes are mutually exclusive parameters.");
    }
    if let Some(list) = names.as_ref().or(prefixes.as_ref()) {
        if groups.len() > 1 {
            return refuse("Log streams can be named for one log group only.");
        }
        if list.len() > MAX_STREAMS || !list.iter().all(|name| is_stream_name(name)) {
            return refuse("The specified log stream name is not valid.");
        }
    }
    Ok(Chosen {
        groups,
        names,
        prefixes,
    })
}

struct Session {
    runtime: Runtime,
    /// Name and ARN.
    groups: HashMap<String, String>,
    chosen: Chosen,
    is_wanted: LogMatcher,
    streams: Vec<LogStream>,
    /// Up to where each stream was read, by group and name.
    ends: HashMap<(String, String), u64>,
    _place: OwnedSemaphorePermit,
}

impl Session {
    async fn serve(&mut self, pieces: mpsc::Sender<Bytes>) {
        let until = Instant::now() + LONGEST;
        let mut growth = self.runtime.log_growth();
        let mut second = Instant::now();
        let mut left = MAX_PER_SECOND;
        loop {
            tokio::select! {
                grown = growth.changed() => if grown.is_err() { return },
                () = tokio::time::sleep_until(second + SECOND) => {}
                () = pieces.closed() => return,
            }
            let tick = second.elapsed() >= SECOND;
            if tick {
                (second, left) = (Instant::now(), MAX_PER_SECOND);
            }
            let began = Instant::now();
            let update = match self.update(tick, &mut left).await {
                Ok(update) => update,
                Err(error) => {
                    tracing::error!(%error, "a live tail breaks off");
                    let end = exception("SessionStreamingException", "The live tail broke off.");
                    return drop(pieces.send(Bytes::from(end)).await);
                }
            };
            if let Some(update) = update.or_else(|| tick.then(|| update_of(Vec::new(), false)))
                && pieces
                    .send(Bytes::from(event("sessionUpdate", &update)))
                    .await
                    .is_err()
            {
                return;
            }
            if Instant::now() >= until {
                let end = exception(
                    "SessionTimeoutException",
                    "The live tail has lasted for three hours.",
                );
                return drop(pieces.send(Bytes::from(end)).await);
            }
            // Where there are many streams, looking at all of them takes a while.
            tokio::time::sleep(SHORTEST_PAUSE.max(began.elapsed() * 4).min(SECOND)).await;
        }
    }

    /// What is new, if anything is.
    async fn update(&mut self, tick: bool, left: &mut usize) -> Result<Option<Value>, RuntimeError> {
        if tick {
            self.find_streams(false).await?;
        }
        let mut events: Vec<(usize, LogEvent)> = Vec::new();
        let mut sampled = false;
        let ends = self.runtime.log_ends(&self.streams).await?;
        for (index, (stream, end)) in self.streams.iter().zip(ends).enumerate() {
            let key = (stream.group.clone(), stream.name.clone());
            let read = self.ends.entry(key).or_insert(0);
            if end <= *read {
                continue;
            }
            let query = LogQuery {
                position: Some(*read),
                forward: true,
                start: None,
                end: None,
                from_order: None,
                limit: (*left).max(1),
                max_bytes: MAX_EVENT_BYTES,
                max_scanned_bytes: MAX_SCANNED_BYTES,
            };
            let search = self
                .runtime
                .search_log(stream, query, Arc::clone(&self.is_wanted));
            let page = match search.await {
                Ok(page) => page,
                // It was deleted and made anew.
                Err(RuntimeError::InvalidPosition(_)) => {
                    *read = 0;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut found = page.events;
            sampled |= !page.at_end || found.len() > *left;
            found.truncate(*left);
            *left -= found.len();
            // What there was no room for is left out.
            *read = if page.at_end { page.next_forward } else { end };
            events.extend(found.into_iter().map(|event| (index, event)));
        }
        if events.is_empty() && !sampled {
            return Ok(None);
        }
        events.sort_by_key(|(_, event)| event.timestamp);
        let results = events.iter().filter_map(|(index, event)| {
            let stream = self.streams.get(*index)?;
            Some(json!({
                "logStreamName": stream.name,
                "logGroupIdentifier": self.groups.get(&stream.group),
                "message": String::from_utf8_lossy(&event.bytes),
                "timestamp": event.timestamp.0,
                "ingestionTime": event.ingested_at.0,
            }))
        });
        Ok(Some(update_of(results.collect(), sampled)))
    }

    /// Looks for streams; of those that are there at the beginning, only what comes is new.
    async fn find_streams(&mut self, at_the_beginning: bool) -> Result<(), RuntimeError> {
        self.streams.clear();
        for group in &self.chosen.groups {
            let found = self.runtime.log_stream_names(group).await?;
            self.streams
                .extend(found.into_iter().filter(|stream| self.chosen.has(stream)));
        }
        if at_the_beginning {
            let ends = self.runtime.log_ends(&self.streams).await?;
            for (stream, end) in self.streams.iter().zip(ends) {
                self.ends.insert((stream.group.clone(), stream.name.clone()), end);
            }
        }
        Ok(())
    }
}

fn update_of(results: Vec<Value>, sampled: bool) -> Value {
    json!({ "sessionMetadata": { "sampled": sampled }, "sessionResults": results })
}
