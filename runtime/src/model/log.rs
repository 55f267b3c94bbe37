//! Log groups, streams and events, as seen by a reader.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::task::TaskId;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogGroup {
    pub name: String,
    pub created_at: Timestamp,
}

/// A stream of the awslogs driver: a view of one container's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStream {
    pub group: String,
    pub name: String,
    pub created_at: Timestamp,
    pub task: TaskId,
    pub container: String,
}

/// What is known of a stream's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStreamStats {
    pub first_event_at: Option<Timestamp>,
    pub last_event_at: Option<Timestamp>,
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
    pub limit: usize,
    /// Stop once this many bytes of text are gathered.
    pub max_bytes: usize,
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
}
