//! One output stream of a container: the bytes that the host has not stored yet, and the pipe they come from.
//!
//! When the host does not keep up, either the container waits, or lines are dropped: whole lines, of which the stream tells
//! the number as soon as there is room again.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use berth_protocol::OUTPUT_WINDOW_BYTES;
use berth_protocol::message::ContainerSpec;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// What an empty window keeps allocated.
const KEPT_CAPACITY: usize = 64 * 1024;
/// A line that was begun is taken so far beyond what a window may hold.
const LINE_SLACK: usize = 64 * 1024;

/// What all containers may have kept together, in bytes; beyond, each gets a part of what it asks for. A guest has memory
/// for twice that, as each has two streams.
const POOL_BYTES: u64 = 10 << 20;
const LEAST_BUFFER_BYTES: u64 = 4096;
/// More than a terminal keeps of what nobody has read.
const TERMINAL_BYTES: usize = 128 * 1024;

/// How many bytes of each stream of each container are kept; none where it waits for the host.
pub(crate) fn buffers(containers: &[ContainerSpec]) -> Vec<Option<usize>> {
    let wanted = |spec: &ContainerSpec| spec.output_buffer_bytes.map(|bytes| bytes.min(POOL_BYTES));
    let sum: u64 = containers.iter().filter_map(wanted).sum();
    let share = |bytes: u64| match sum > POOL_BYTES {
        true => bytes * POOL_BYTES / sum,
        false => bytes,
    };
    let buffer = |bytes| usize::try_from(share(bytes).max(LEAST_BUFFER_BYTES)).unwrap_or(OUTPUT_WINDOW_BYTES);
    containers.iter().map(|spec| wanted(spec).map(buffer)).collect()
}

/// Bytes of a stream from the first that the host has not stored; at most as many as it may hold.
#[derive(Debug)]
pub(crate) struct Window {
    most: usize,
    /// Position of the first kept byte in the stream.
    base: u64,
    /// Position up to which bytes were sent on this connection; within the kept ones.
    sent: u64,
    bytes: VecDeque<u8>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum WindowError {
    #[error("offset {offset} is not within the kept bytes {base} to {end}")]
    OutOfRange { offset: u64, base: u64, end: u64 },
}

impl Default for Window {
    fn default() -> Self {
        Self::holding(OUTPUT_WINDOW_BYTES)
    }
}

impl Window {
    pub(crate) fn holding(most: usize) -> Self {
        Self {
            most,
            base: 0,
            sent: 0,
            bytes: VecDeque::new(),
        }
    }

    /// Position after the last byte that was read.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(crate) fn room(&self) -> usize {
        self.most.saturating_sub(self.bytes.len())
    }

    /// Appends at most [`Self::room`] bytes, or a little more to end a line.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let length = self.bytes.len() + bytes.len();
        if length > self.bytes.capacity() {
            // Never much more than it may hold, which doubling would.
            let wanted = (self.bytes.capacity() * 2)
                .min(self.most + 2 * LINE_SLACK)
                .max(length);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend(bytes);
    }

    /// The host stored everything below `offset`.
    pub(crate) fn acknowledge(&mut self, offset: u64) -> Result<(), WindowError> {
        let count = self.index(offset)?;
        self.bytes.drain(..count);
        self.base = offset;
        self.sent = self.sent.max(offset);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_CAPACITY);
        }
        Ok(())
    }

    /// A new connection begins, on which the host wants the bytes from `offset`. An offset of which nothing is kept
    /// is an error, and sending goes on with what is.
    pub(crate) fn resume(&mut self, offset: u64) -> Result<(), WindowError> {
        self.sent = self.base;
        self.acknowledge(offset)
    }

    /// The next bytes to send with their position, at most `limit`; [`Self::mark_sent`] goes past them.
    pub(crate) fn unsent(&self, limit: usize) -> Option<(u64, &[u8])> {
        // `sent` lies between `base` and `end`, so this is at most the number of kept bytes.
        let skip = self.index(self.sent).ok()?;
        let (front, back) = self.bytes.as_slices();
        let rest = front.get(skip..).filter(|rest| !rest.is_empty());
        let rest = rest.or_else(|| back.get(skip.saturating_sub(front.len())..))?;
        let piece = &rest[..rest.len().min(limit)];
        (!piece.is_empty()).then_some((self.sent, piece))
    }

    pub(crate) fn mark_sent(&mut self, count: usize) {
        self.sent = self.end().min(self.sent + count as u64);
    }

    fn index(&self, offset: u64) -> Result<usize, WindowError> {
        let (base, end) = (self.base, self.end());
        let distance = offset.checked_sub(base).filter(|_| offset <= end);
        let index = distance.and_then(|distance| usize::try_from(distance).ok());
        index.ok_or(WindowError::OutOfRange { offset, base, end })
    }
}

/// A stream: its window, and its pipe until that ends.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) window: Window,
    pipe: Option<OwnedFd>,
    /// Bytes that came out of pipes.
    read: u64,
    /// Bytes that are still to come out of the pipe, once nobody of the container can write any more.
    left: Option<usize>,
    /// None where the container waits for the host.
    drops: Option<Drops>,
}

/// What was dropped, and since when.
#[derive(Debug)]
struct Drops {
    /// Of those that the stream does not tell of yet.
    lines: u64,
    bytes: u64,
    line: Line,
}

/// Where in a line what comes next is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Start,
    /// Its beginning was taken.
    Taken,
    /// Its beginning was dropped.
    Dropped,
}

/// What reading a pipe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing more for now.
    Dry,
    /// The window has no room.
    Full,
    Ended,
}

impl Output {
    /// Keeps so many bytes for a host that does not keep up, and drops lines beyond.
    pub(crate) fn dropping_beyond(buffer_bytes: usize) -> Self {
        Self {
            window: Window::holding(buffer_bytes),
            pipe: None,
            read: 0,
            left: None,
            drops: Some(Drops {
                lines: 0,
                bytes: 0,
                line: Line::Start,
            }),
        }
    }

    /// The host stored everything below `offset`.
    pub(crate) fn acknowledge(&mut self, offset: u64) -> Result<(), WindowError> {
        self.window.acknowledge(offset)?;
        self.tell_drops(false);
        Ok(())
    }

    /// Puts the number of dropped lines into the stream: once there is much room, so that it does not come to this for every
    /// line, or when the stream ends.
    fn tell_drops(&mut self, at_end: bool) {
        let Some(drops) = &mut self.drops else { return };
        let has_room = self.window.room() >= self.window.most / 4;
        if drops.lines == 0 || !(at_end || has_room) {
            return;
        }
        let note = format!(
            "berth: {} lines ({} bytes) were dropped here: the log buffer of {} bytes was full\n",
            drops.lines, drops.bytes, self.window.most
        );
        self.window.push(note.as_bytes());
        (drops.lines, drops.bytes) = (0, 0);
    }

    /// Takes what was read as far as there is room, and drops whole lines.
    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.tell_drops(false);
            let Some(drops) = &mut self.drops else {
                return self.window.push(bytes);
            };
            let fits = match drops.line {
                // Once a line was dropped, all are until the stream tells of it.
                Line::Start => drops.lines == 0 && piece.len() <= self.window.room(),
                Line::Taken => self.window.bytes.len() + piece.len() <= self.window.most + LINE_SLACK,
                Line::Dropped => false,
            };
            let ends = piece.ends_with(b"\n");
            if fits {
                self.window.push(piece);
            } else {
                if drops.line == Line::Taken {
                    // What is there of it stays, as a line of its own.
                    self.window.push(b"\n");
                }
                drops.lines += u64::from(drops.line != Line::Dropped);
                drops.bytes += piece.len() as u64;
            }
            drops.line = match (ends, fits) {
                (true, _) => Line::Start,
                (false, true) => Line::Taken,
                (false, false) => Line::Dropped,
            };
        }
    }

    /// What comes next comes out of this pipe; an earlier one has ended.
    pub(crate) fn attach(&mut self, pipe: OwnedFd) {
        self.pipe = Some(pipe);
        self.left = None;
    }

    /// Whoever belonged to the container is dead, or about to be: what is in the pipe now is the last of it. Others may hold
    /// the writing end, and go on writing.
    pub(crate) fn writers_ended(&mut self) {
        self.left = self.pipe.as_ref().map(in_pipe);
    }

    /// The pipe, if it has not ended and there is room for what comes out of it.
    pub(crate) fn wanted_pipe(&self) -> Option<&OwnedFd> {
        self.pipe
            .as_ref()
            .filter(|_| self.drops.is_some() || self.window.room() > 0)
    }

    pub(crate) fn ended(&self) -> bool {
        self.pipe.is_none()
    }

    /// Reads once into `buffer` and the window.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Reading {
        let Some(pipe) = &self.pipe else {
            return Reading::Ended;
        };
        if self.left == Some(0) {
            self.end();
            return Reading::Ended;
        }
        let limit = match self.drops {
            Some(_) => buffer.len(),
            None => buffer.len().min(self.window.room()),
        };
        let limit = limit.min(self.left.unwrap_or(limit));
        if limit == 0 {
            return Reading::Full;
        }
        match nix::unistd::read(pipe, &mut buffer[..limit]) {
            Err(Errno::EAGAIN | Errno::EINTR) => Reading::Dry,
            // Reading a pipe fails for no reason that waiting would mend.
            Ok(0) | Err(_) => {
                self.end();
                Reading::Ended
            }
            Ok(count) => {
                self.read += count as u64;
                self.left = self.left.map(|left| left.saturating_sub(count));
                self.take(&buffer[..count]);
                if self.drops.is_none() && self.window.room() == 0 {
                    Reading::Full
                } else {
                    Reading::Dry
                }
            }
        }
    }

    fn end(&mut self) {
        self.pipe = None;
        self.tell_drops(true);
    }

    /// Reads what dead writers left. Nobody who belongs to the container can write any more, so a pipe has ended once that is
    /// read, even if something holds its writing end (a descriptor passed to another container).
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) {
        while !self.ended() {
            let before = self.read;
            match self.read(buffer) {
                Reading::Full => return,
                Reading::Dry if self.read == before => self.end(),
                Reading::Dry | Reading::Ended => {}
            }
        }
    }
}

/// How much can be read without anybody writing any more: of a pipe what is in it, of a terminal all that one can hold.
fn in_pipe(pipe: &OwnedFd) -> usize {
    if fcntl(pipe, FcntlArg::F_GETPIPE_SZ).is_err() {
        return TERMINAL_BYTES;
    }
    let mut count: libc::c_int = 0;
    // SAFETY: this call writes one integer, which lives.
    match unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) } {
        0 => usize::try_from(count).unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
