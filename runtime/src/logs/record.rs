//! The layout of one record of a log file, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | magic `0xb7` |
//! | 1 | flags: 1 = stderr, 2 = a newline followed, 4 = an event that a client put |
//! | 2 | zero |
//! | 4 | length of the text |
//! | 8 | order: milliseconds since the Unix epoch, never less than that of the record before |
//! | 8 | output: bytes of stdout stored up to and with this record; event: its own time |
//! | 8 | output: the same of stderr; event: by how much any event up to this one is earlier than its order |
//! | n | text; that of an event begins with the time when it was put, in 8 bytes |
//! | 4 | CRC-32 of all the above |
//! | 4 | length of the whole record, for reading backward |
//!
//! The order of output is the time when it arrived. The order of an event is the latest time of all events up to it, so a
//! client may put events in any order of time, and the log can still be searched by time.

use crate::logs::{MAX_EVENT_BYTES, MAX_PUT_EVENT_BYTES};
use crate::model::Timestamp;
use crate::model::log::OutputStream;

const MAGIC: u8 = 0xb7;
const STDERR: u8 = 1;
const NEWLINE: u8 = 2;
const EVENT: u8 = 4;
pub const HEADER: usize = 32;
pub const TRAILER: usize = 8;
/// Bytes at the beginning of an event's text that say when it was put.
pub const PUT_AT: usize = 8;
/// The longest record.
pub const MAX_RECORD: usize = HEADER + PUT_AT + MAX_PUT_EVENT_BYTES + TRAILER;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub text_len: usize,
    pub order: Timestamp,
    pub origin: Origin,
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Output {
        stream: OutputStream,
        newline: bool,
        stdout_end: u64,
        stderr_end: u64,
    },
    Event {
        timestamp: Timestamp,
        /// No event up to this one is earlier than its order by more milliseconds.
        disorder_ms: u64,
    },
}

impl Header {
    /// Length of the whole record.
    pub fn record_len(&self) -> u64 {
        (HEADER + self.text_len + TRAILER) as u64
    }

    pub fn timestamp(&self) -> Timestamp {
        match self.origin {
            Origin::Output { .. } => self.order,
            Origin::Event { timestamp, .. } => timestamp,
        }
    }

    pub fn disorder_ms(&self) -> u64 {
        match self.origin {
            Origin::Output { .. } => 0,
            Origin::Event { disorder_ms, .. } => disorder_ms,
        }
    }
}

/// Appends the record to `out`; its text is made of the given pieces.
pub fn encode(header: &Header, text: &[&[u8]], out: &mut Vec<u8>) {
    debug_assert_eq!(
        header.text_len,
        text.iter().map(|piece| piece.len()).sum::<usize>()
    );
    let start = out.len();
    let (flags, first, second) = match header.origin {
        Origin::Output {
            stream,
            newline,
            stdout_end,
            stderr_end,
        } => {
            let stderr = if stream == OutputStream::Stderr { STDERR } else { 0 };
            let newline = if newline { NEWLINE } else { 0 };
            (stderr | newline, stdout_end, stderr_end)
        }
        Origin::Event {
            timestamp,
            disorder_ms,
        } => (EVENT, timestamp.0, disorder_ms),
    };
    out.extend([MAGIC, flags, 0, 0]);
    out.extend((header.text_len as u32).to_le_bytes());
    out.extend(header.order.0.to_le_bytes());
    out.extend(first.to_le_bytes());
    out.extend(second.to_le_bytes());
    for piece in text {
        out.extend(*piece);
    }
    let crc = crc32fast::hash(&out[start..]);
    out.extend(crc.to_le_bytes());
    out.extend((header.record_len() as u32).to_le_bytes());
}

/// None unless these bytes begin with a possible header.
pub fn decode_header(bytes: &[u8]) -> Option<Header> {
    let bytes: &[u8; HEADER] = bytes.first_chunk()?;
    let text_len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    if bytes[0] != MAGIC || bytes[2..4] != [0, 0] {
        return None;
    }
    let order = Timestamp(word(bytes, 8));
    let origin = match bytes[1] {
        EVENT if (PUT_AT..=PUT_AT + MAX_PUT_EVENT_BYTES).contains(&text_len) => Origin::Event {
            timestamp: Timestamp(word(bytes, 16)),
            disorder_ms: word(bytes, 24),
        },
        flags if flags & !(STDERR | NEWLINE) == 0 && text_len <= MAX_EVENT_BYTES => Origin::Output {
            stream: if flags & STDERR == 0 {
                OutputStream::Stdout
            } else {
                OutputStream::Stderr
            },
            newline: flags & NEWLINE != 0,
            stdout_end: word(bytes, 16),
            stderr_end: word(bytes, 24),
        },
        _ => return None,
    };
    Some(Header {
        text_len,
        order,
        origin,
    })
}

/// Whether the trailer (CRC and length) of these bytes, a whole record, fits what comes before it.
pub fn trailer_fits(record: &[u8]) -> bool {
    let Some((body, trailer)) = record.split_last_chunk::<TRAILER>() else {
        return false;
    };
    let [a, b, c, d, e, f, g, h] = *trailer;
    u32::from_le_bytes([a, b, c, d]) == crc32fast::hash(body)
        && u32::from_le_bytes([e, f, g, h]) as usize == record.len()
}

/// The eight bytes at `at`; zero if they are not there.
pub fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    word.map_or(0, |word| u64::from_le_bytes(*word))
}
