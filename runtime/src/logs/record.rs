//! The layout of one record of a log file, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | magic `0xb7` |
//! | 1 | flags: 1 = stderr, 2 = a newline followed |
//! | 2 | zero |
//! | 4 | length of the text |
//! | 8 | time of arrival, milliseconds since the Unix epoch |
//! | 8 | bytes of stdout stored up to and with this record |
//! | 8 | the same of stderr |
//! | n | text |
//! | 4 | CRC-32 of all the above |
//! | 4 | length of the whole record, for reading backward |

use crate::logs::MAX_EVENT_BYTES;
use crate::model::Timestamp;
use crate::model::log::OutputStream;

const MAGIC: u8 = 0xb7;
const STDERR: u8 = 1;
const NEWLINE: u8 = 2;
pub const HEADER: usize = 32;
pub const TRAILER: usize = 8;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub stream: OutputStream,
    pub newline: bool,
    pub text_len: usize,
    pub timestamp: Timestamp,
    pub stdout_end: u64,
    pub stderr_end: u64,
}

impl Header {
    /// Length of the whole record.
    pub fn record_len(&self) -> u64 {
        (HEADER + self.text_len + TRAILER) as u64
    }
}

/// Appends the record to `out`.
pub fn encode(header: &Header, text: &[u8], out: &mut Vec<u8>) {
    debug_assert_eq!(header.text_len, text.len());
    let start = out.len();
    let stderr = if header.stream == OutputStream::Stderr {
        STDERR
    } else {
        0
    };
    let newline = if header.newline { NEWLINE } else { 0 };
    out.extend([MAGIC, stderr | newline, 0, 0]);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(header.timestamp.0.to_le_bytes());
    out.extend(header.stdout_end.to_le_bytes());
    out.extend(header.stderr_end.to_le_bytes());
    out.extend(text);
    let crc = crc32fast::hash(&out[start..]);
    out.extend(crc.to_le_bytes());
    out.extend((header.record_len() as u32).to_le_bytes());
}

/// None unless these bytes are a possible header.
pub fn decode_header(bytes: &[u8; HEADER]) -> Option<Header> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let text_len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    let well_formed = bytes[0] == MAGIC
        && bytes[1] & !(STDERR | NEWLINE) == 0
        && bytes[2..4] == [0, 0]
        && text_len <= MAX_EVENT_BYTES;
    well_formed.then(|| Header {
        stream: if bytes[1] & STDERR == 0 {
            OutputStream::Stdout
        } else {
            OutputStream::Stderr
        },
        newline: bytes[1] & NEWLINE != 0,
        text_len,
        timestamp: Timestamp(word(8)),
        stdout_end: word(16),
        stderr_end: word(24),
    })
}

/// Whether the trailer (CRC and length) fits header and text.
pub fn trailer_fits(header: &[u8; HEADER], text: &[u8], trailer: [u8; TRAILER]) -> bool {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(text);
    let [a, b, c, d, e, f, g, h] = trailer;
    let length = (HEADER + text.len() + TRAILER) as u32;
    u32::from_le_bytes([a, b, c, d]) == crc.finalize() && u32::from_le_bytes([e, f, g, h]) == length
}
