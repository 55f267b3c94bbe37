//! The order of a data channel: what was sent and is not acknowledged, what came too early, and when to send something again.
//! Pure; the time is given.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message::{Message, MessageType, PayloadType};
use super::payload;

/// Messages that may wait for being acknowledged before more are made.
pub(crate) const WINDOW: usize = 256;
/// Messages, and bytes of them, that are kept until those before them are there.
const MAX_EARLY: usize = 256;
const MAX_EARLY_BYTES: usize = 256 * 1024;

const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);
const FIRST_RESEND: Duration = Duration::from_millis(200);
const LATEST_RESEND: Duration = Duration::from_secs(1);
const GRANULARITY: Duration = Duration::from_millis(10);

/// `Flags`: the first of a stream, the only one of its kind.
const FIRST: u64 = 1;
const ALONE: u64 = 3;

#[derive(Debug)]
struct Sent {
    sequence: i64,
    bytes: Bytes,
    first: Instant,
    last: Instant,
}

/// This side of a data channel.
#[derive(Debug)]
pub(crate) struct Channel {
    next: i64,
    sent: VecDeque<Sent>,
    expected: i64,
    early: BTreeMap<i64, Message>,
    early_bytes: usize,
    round_trip: Duration,
    variation: Duration,
    resend_after: Duration,
    /// The other side wants nothing now.
    paused: bool,
}

/// What comes of a message of the stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Received {
    /// To be sent.
    pub(crate) acknowledge: Option<Bytes>,
    /// In order, each once.
    pub(crate) ready: Vec<Message>,
}

impl Default for Channel {
    fn default() -> Channel {
        Channel {
            next: 0,
            sent: VecDeque::new(),
            expected: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            round_trip: FIRST_ROUND_TRIP,
            variation: Duration::ZERO,
            resend_after: FIRST_RESEND,
            paused: false,
        }
    }
}

impl Channel {
    /// Whether more may be made: the other side follows, and wants it.
    pub(crate) fn has_room(&self) -> bool {
        !self.paused && self.sent.len() < WINDOW
    }

    /// Whether all that was sent is acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        self.sent.is_empty()
    }

    /// A message of the stream; it is kept until it is acknowledged.
    pub(crate) fn stream(&mut self, payload_type: PayloadType, payload: Bytes, now: Instant) -> Bytes {
        let flags = if self.next == 0 { FIRST } else { 0 };
        let output = MessageType::OutputStreamData;
        let bytes = Message::new(output, self.next, flags, payload_type, payload).encode();
        self.sent.push_back(Sent {
            sequence: self.next,
            bytes: bytes.clone(),
            first: now,
            last: now,
        });
        self.next += 1;
        bytes
    }

    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(crate) fn acknowledged(&mut self, sequence: i64, now: Instant) {
        self.paused = false;
        // They are in order, but for those taken out: never after its own number.
        let Ok(index) = self.sent.binary_search_by_key(&sequence, |sent| sent.sequence) else {
            return;
        };
        let Some(sent) = self.sent.remove(index) else {
            return;
        };
        // Of one that was sent twice nobody knows which is meant.
        if sent.first == sent.last {
            self.measured(now.saturating_duration_since(sent.last));
        }
    }

    fn measured(&mut self, round_trip: Duration) {
        let difference = self.round_trip.abs_diff(round_trip);
        self.variation = self.variation * 3 / 4 + difference / 4;
        self.round_trip = self.round_trip * 7 / 8 + round_trip / 8;
        let after = self.round_trip + GRANULARITY.max(self.variation * 4);
        self.resend_after = after.min(LATEST_RESEND);
    }

    /// When [`Channel::resend`] is to be asked.
    pub(crate) fn resend_at(&self) -> Option<Instant> {
        let oldest = self.sent.front().filter(|_| !self.paused);
        oldest.map(|oldest| oldest.last + self.resend_after)
    }

    /// The oldest message that is not acknowledged, if it is time to send it again.
    pub(crate) fn resend(&mut self, now: Instant) -> Option<Bytes> {
        let due = self.resend_at().is_some_and(|at| at <= now);
        let oldest = self.sent.front_mut().filter(|_| due)?;
        oldest.last = now;
        Some(oldest.bytes.clone())
    }

    /// Since when the oldest message waits for being acknowledged.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        self.sent.front().map(|oldest| oldest.first)
    }

    /// Takes a message of the stream. With no room for what it carries it is as if it had not come: its sender sends it again.
    pub(crate) fn receive(&mut self, message: Message, room: bool) -> Received {
        self.paused = false;
        let mut received = Received::default();
        if message.sequence < self.expected {
            received.acknowledge = Some(acknowledge(&message));
            return received;
        }
        if !room {
            return received;
        }
        if message.sequence > self.expected {
            let bytes = self.early_bytes + message.payload.len();
            let known = self.early.contains_key(&message.sequence);
            if known || self.early.len() < MAX_EARLY && bytes <= MAX_EARLY_BYTES {
                received.acknowledge = Some(acknowledge(&message));
            }
            if !known && received.acknowledge.is_some() {
                self.early_bytes = bytes;
                self.early.insert(message.sequence, message);
            }
            return received;
        }
        received.acknowledge = Some(acknowledge(&message));
        let mut next = Some(message);
        while let Some(message) = next {
            received.ready.push(message);
            self.expected = self.expected.saturating_add(1);
            next = self.early.remove(&self.expected);
            self.early_bytes -= next.as_ref().map_or(0, |message| message.payload.len());
        }
        received
    }
}

/// An acknowledgement is in no stream.
fn acknowledge(message: &Message) -> Bytes {
    alone(MessageType::Acknowledge, payload::acknowledge(message))
}

/// A message that is in no stream.
pub(crate) fn alone(message_type: MessageType, payload: Bytes) -> Bytes {
    Message::new(message_type, 0, ALONE, PayloadType::NONE, payload).encode()
}

/// How many bytes of output are whole characters: one whose end has not come yet is left for later. What is no text is whole
/// as it is.
pub(crate) fn whole_characters(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let begun = tail.iter().rposition(|byte| byte & 0b1100_0000 == 0b1100_0000);
    let missing = begun.is_some_and(|at| {
        let length = match tail[at] {
            0xf0..=0xf7 => 4,
            0xe0..=0xef => 3,
            0xc0..=0xdf => 2,
            _ => 1,
        };
        let rest = &tail[at + 1..];
        rest.len() + 1 < length && rest.iter().all(|byte| byte & 0b1100_0000 == 0b1000_0000)
    });
    match begun {
        Some(at) if missing => bytes.len() - (tail.len() - at),
        _ => bytes.len(),
    }
}
