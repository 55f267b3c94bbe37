//! One output stream of a container: the bytes that the host has not stored yet, and the pipe they come from.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use berth_protocol::OUTPUT_WINDOW_BYTES;
use nix::errno::Errno;

/// What an empty window keeps allocated.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Bytes of a stream from the first that the host has not stored; at most [`OUTPUT_WINDOW_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Window {
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

impl Window {
    /// Position after the last byte that was read.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(crate) fn room(&self) -> usize {
        OUTPUT_WINDOW_BYTES.saturating_sub(self.bytes.len())
    }

    /// Appends at most [`Self::room`] bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
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
    /// What comes next comes out of this pipe; an earlier one has ended.
    pub(crate) fn attach(&mut self, pipe: OwnedFd) {
        self.pipe = Some(pipe);
    }

    /// The pipe, if it has not ended and there is room for what comes out of it.
    pub(crate) fn wanted_pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref().filter(|_| self.window.room() > 0)
    }

    pub(crate) fn ended(&self) -> bool {
        self.pipe.is_none()
    }

    /// Reads once into `buffer` and the window.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Reading {
        let Some(pipe) = &self.pipe else {
            return Reading::Ended;
        };
        let limit = buffer.len().min(self.window.room());
        if limit == 0 {
            return Reading::Full;
        }
        match nix::unistd::read(pipe, &mut buffer[..limit]) {
            Err(Errno::EAGAIN | Errno::EINTR) => Reading::Dry,
            // Reading a pipe fails for no reason that waiting would mend.
            Ok(0) | Err(_) => {
                self.pipe = None;
                Reading::Ended
            }
            Ok(count) => {
                self.window.push(&buffer[..count]);
                if self.window.room() == 0 {
                    Reading::Full
                } else {
                    Reading::Dry
                }
            }
        }
    }

    /// Reads what dead writers left. Nobody who belongs to the container can write any more, so an empty pipe has
    /// ended, even if something holds its writing end (a descriptor passed to another container).
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) {
        while !self.ended() {
            let before = self.window.end();
            match self.read(buffer) {
                Reading::Full => return,
                Reading::Dry if self.window.end() == before => self.pipe = None,
                Reading::Dry | Reading::Ended => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
