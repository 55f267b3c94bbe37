//! The frame layout: encoding into a byte vector, and an incremental decoder. No I/O, and no meaning of messages.
//!
//! A frame is a `u32` (little endian) length of its body, 1 to [`MAX_FRAME_BYTES`], and the body: one byte of kind
//! and what belongs to it.
//!
//! | kind | rest of the body |
//! |---|---|
//! | 0 | a control message as JSON |
//! | 1 | output: `u8` length of the container's name, the name (UTF-8), `u8` stream (0 stdout, 1 stderr), `u64` (little endian) offset of the first byte, then at most [`MAX_OUTPUT_BYTES`] bytes |
//! | 2 | data of a command ([`crate::exec`]): `u8` stream (0 stdin, 1 stdout, 2 stderr), then 1 to [`MAX_OUTPUT_BYTES`] bytes |

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exec::{FromCommand, STDERR, ToCommand};
use crate::message::{Stream, ToGuest, ToHost};
use crate::{MAX_FRAME_BYTES, MAX_OUTPUT_BYTES};

const KIND_MESSAGE: u8 = 0;
const KIND_OUTPUT: u8 = 1;
const KIND_DATA: u8 = 2;
const LENGTH_BYTES: usize = 4;
/// Room that the decoder keeps between frames; what one large frame took is given back.
const KEPT_CAPACITY: usize = 2 * MAX_OUTPUT_BYTES;

/// What one frame carries: a control message of the sender's kind, or a piece of a container's output.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame<M> {
    Message(M),
    Output(OutputFrame),
    Data(DataFrame),
}

/// Bytes of one stream of a command ([`crate::exec`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFrame {
    /// [`crate::exec::STDIN`] to [`crate::exec::STDERR`].
    pub stream: u8,
    /// 1 to [`MAX_OUTPUT_BYTES`].
    pub bytes: Vec<u8>,
}

/// A piece of one output stream of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFrame {
    pub container: String,
    pub stream: Stream,
    /// Position of the first byte in the stream.
    pub offset: u64,
    /// At most [`MAX_OUTPUT_BYTES`].
    pub bytes: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame body of {0} bytes is not within 1 to {MAX_FRAME_BYTES}")]
    Length(usize),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("malformed control message: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a data frame of stream {stream} with {length} bytes is not of a command")]
    Data { stream: u8, length: usize },
    #[error("an output frame ends within its header")]
    OutputHeader,
    #[error("the container name of an output frame is not UTF-8")]
    OutputName,
    #[error("a container name of {0} bytes does not fit an output frame")]
    OutputNameLength(usize),
    #[error("unknown output stream {0}")]
    OutputStream(u8),
    #[error("{0} bytes of output are more than {MAX_OUTPUT_BYTES}")]
    OutputLength(usize),
    #[error("output at offset {offset} with {length} bytes overflows the stream")]
    OutputOffset { offset: u64, length: usize },
    #[error("an earlier frame of this stream was malformed")]
    Broken,
}

impl Stream {
    fn code(self) -> u8 {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        match code {
            0 => Ok(Stream::Stdout),
            1 => Ok(Stream::Stderr),
            other => Err(FrameError::OutputStream(other)),
        }
    }
}

impl<M: Serialize> Frame<M> {
    /// Appends the encoded frame to `out`; on an error `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Frame::Message(message) => encode_message(message, out),
            Frame::Output(output) => encode_output(
                &output.container,
                output.stream,
                output.offset,
                &output.bytes,
                out,
            ),
            Frame::Data(data) => encode_data(data.stream, &data.bytes, out),
        }
    }
}

/// Appends a control message to `out`; on an error `out` is as it was.
pub fn encode_message<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(KIND_MESSAGE);
    let written = serde_json::to_writer(&mut *out, message);
    let body_length = out.len() - start - LENGTH_BYTES;
    let length = match (written, u32::try_from(body_length)) {
        (Err(error), _) => Err(FrameError::Json(error)),
        (Ok(()), Ok(length)) if body_length <= MAX_FRAME_BYTES => Ok(length),
        (Ok(()), _) => Err(FrameError::Length(body_length)),
    };
    match length {
        Ok(length) => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Appends a piece of output to `out` without an [`OutputFrame`] in between; on an error `out` is as it was.
pub fn encode_output(
    container: &str,
    stream: Stream,
    offset: u64,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let name_length =
        u8::try_from(container.len()).map_err(|_| FrameError::OutputNameLength(container.len()))?;
    check_output(offset, bytes.len())?;
    let body_length = 1 + 1 + container.len() + 1 + 8 + bytes.len();
    let length = u32::try_from(body_length).map_err(|_| FrameError::Length(body_length))?;
    out.reserve(LENGTH_BYTES + body_length);
    out.extend_from_slice(&length.to_le_bytes());
    out.push(KIND_OUTPUT);
    out.push(name_length);
    out.extend_from_slice(container.as_bytes());
    out.push(stream.code());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Appends bytes of a command's stream to `out`; on an error `out` is as it was.
pub fn encode_data(stream: u8, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    check_data(stream, bytes.len())?;
    let body_length = 1 + 1 + bytes.len();
    let length = u32::try_from(body_length).map_err(|_| FrameError::Length(body_length))?;
    out.reserve(LENGTH_BYTES + body_length);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[KIND_DATA, stream]);
    out.extend_from_slice(bytes);
    Ok(())
}

fn check_data(stream: u8, length: usize) -> Result<(), FrameError> {
    if stream > STDERR || !(1..=MAX_OUTPUT_BYTES).contains(&length) {
        return Err(FrameError::Data { stream, length });
    }
    Ok(())
}

fn check_output(offset: u64, length: usize) -> Result<(), FrameError> {
    if length > MAX_OUTPUT_BYTES {
        return Err(FrameError::OutputLength(length));
    }
    match offset.checked_add(length as u64) {
        Some(_) => Ok(()),
        None => Err(FrameError::OutputOffset { offset, length }),
    }
}

/// Takes bytes as they come and gives frames. One decoder per connection.
///
/// Whoever pushes takes all frames out before pushing again; then the decoder never holds more than one frame and
/// one pushed slice. After an error the stream has lost its frame borders: every further call fails, and pushed
/// bytes are dropped.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    consumed: usize,
    broken: bool,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes read from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        if self.buffer.is_empty() {
            self.buffer.shrink_to(KEPT_CAPACITY);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or none until more bytes are pushed.
    #[expect(
        clippy::should_implement_trait,
        reason = "the kind of message is chosen at each call"
    )]
    pub fn next<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        if self.broken {
            return Err(FrameError::Broken);
        }
        let frame = self
            .next_body()
            .and_then(|body| body.map(decode_body).transpose());
        if frame.is_err() {
            self.broken = true;
            self.buffer = Vec::new();
            self.consumed = 0;
        }
        frame
    }

    /// Bytes held for a frame that is not complete, or not yet taken.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    fn next_body(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some((prefix, rest)) = self.buffer[self.consumed..].split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if !(1..=MAX_FRAME_BYTES).contains(&length) {
            return Err(FrameError::Length(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.consumed += LENGTH_BYTES + length;
        Ok(Some(&rest[..length]))
    }
}

fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<Frame<M>, FrameError> {
    match body.split_first() {
        Some((&KIND_MESSAGE, json)) => Ok(Frame::Message(serde_json::from_slice(json)?)),
        Some((&KIND_OUTPUT, rest)) => decode_output(rest).map(Frame::Output),
        Some((&KIND_DATA, rest)) => decode_data(rest).map(Frame::Data),
        Some((&kind, _)) => Err(FrameError::Kind(kind)),
        None => Err(FrameError::Length(0)),
    }
}

fn decode_output(rest: &[u8]) -> Result<OutputFrame, FrameError> {
    let (&name_length, rest) = rest.split_first().ok_or(FrameError::OutputHeader)?;
    let (name, rest) = rest
        .split_at_checked(usize::from(name_length))
        .ok_or(FrameError::OutputHeader)?;
    let name = std::str::from_utf8(name).map_err(|_| FrameError::OutputName)?;
    let (&stream, rest) = rest.split_first().ok_or(FrameError::OutputHeader)?;
    let (offset, bytes) = rest.split_first_chunk::<8>().ok_or(FrameError::OutputHeader)?;
    let offset = u64::from_le_bytes(*offset);
    check_output(offset, bytes.len())?;
    Ok(OutputFrame {
        container: name.to_owned(),
        stream: Stream::from_code(stream)?,
        offset,
        bytes: bytes.to_vec(),
    })
}

fn decode_data(rest: &[u8]) -> Result<DataFrame, FrameError> {
    let (&stream, bytes) = rest.split_first().ok_or(FrameError::Data {
        stream: u8::MAX,
        length: 0,
    })?;
    check_data(stream, bytes.len())?;
    Ok(DataFrame {
        stream,
        bytes: bytes.to_vec(),
    })
}

/// Decodes a whole byte string in all directions and throws the result away: the entry for fuzzers.
pub fn decode_all(bytes: &[u8]) {
    fn drain<M: DeserializeOwned>(bytes: &[u8]) {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        while let Ok(Some(_)) = decoder.next::<M>() {}
    }
    drain::<ToGuest>(bytes);
    drain::<ToHost>(bytes);
    drain::<ToCommand>(bytes);
    drain::<FromCommand>(bytes);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
