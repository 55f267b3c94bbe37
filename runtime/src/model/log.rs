//! Log groups, streams and events, as seen by a reader.

use serde::{Deserialize, Serialize};

use super::task::TaskId;
use super::{Tag, Timestamp};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogGroup {
    pub name: String,
    pub created_at: Timestamp,
    /// None means forever.
    #[serde(default)]
    pub retention_days: Option<u32>,
    #[serde(default)]
    pub tags: Vec<Tag>,
}

impl LogGroup {
    pub fn new(name: &str, now: Timestamp) -> LogGroup {
        LogGroup {
            name: name.to_owned(),
            created_at: now,
            retention_days: None,
            tags: Vec::new(),
        }
    }

    /// What is older is not kept.
    pub fn kept_since(&self, now: Timestamp) -> Option<Timestamp> {
        let kept_ms = u64::from(self.retention_days?) * DAY_MS;
        Some(Timestamp(now.0.saturating_sub(kept_ms)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStream {
    pub group: String,
    pub name: String,
    pub created_at: Timestamp,
    #[serde(flatten)]
    pub source: LogSource,
}

/// Who writes a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogSource {
    /// The awslogs driver: the stream is a view of one container's output.
    Container { task: TaskId, container: String },
    /// Whoever puts events; they are in a file of this name.
    Clients { file: String },
}

/// What is known of a stream's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStreamStats {
    pub first_event_at: Option<Timestamp>,
    pub last_event_at: Option<Timestamp>,
    pub last_ingested_at: Option<Timestamp>,
    /// By how much some event is earlier than one before it.
    pub disorder_ms: u64,
    pub stored_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// One line of output, or a piece of a line longer than an event may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Position of this event in its container's log; grows, and never changes.
    pub position: u64,
    /// Position just after it.
    pub next_position: u64,
    /// Never less than that of the event before; no less than `timestamp`, and equal to it unless a client put events out
    /// of order.
    pub order: Timestamp,
    pub timestamp: Timestamp,
    pub ingested_at: Timestamp,
    pub stream: OutputStream,
    /// Without the newline.
    pub bytes: Vec<u8>,
    /// Whether a newline followed.
    pub newline: bool,
}

/// Which events of one stream to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Where to start; none means the start (forward) or the end (backward) of the log.
    pub position: Option<u64>,
    pub forward: bool,
    /// Inclusive.
    pub start: Option<Timestamp>,
    /// Exclusive.
    pub end: Option<Timestamp>,
    /// Leave out what comes before in the order of events.
    pub from_order: Option<Timestamp>,
    pub limit: usize,
    /// Stop once this many bytes of text are gathered.
    pub max_bytes: usize,
    /// Stop once this many bytes of the log are looked at, whether or not they hold what is asked for.
    pub max_scanned_bytes: u64,
}

/// A page of events, oldest first, and where to go on from either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    pub events: Vec<LogEvent>,
    /// Read forward from here for what comes later.
    pub next_forward: u64,
    /// Read backward from here for what came earlier.
    pub next_backward: u64,
    /// The log had no more events in that direction when this was read.
    pub at_end: bool,
    /// Order of the last event that was looked at, if any was.
    pub last_order: Option<Timestamp>,
    /// How much of the log and its index was read for this.
    pub bytes_read: u64,
}
