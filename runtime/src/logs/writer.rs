//! Writing a container's log: two byte streams become lines, each line one record.
//!
//! A line is written when its newline arrives, when it grows longer than an event may be, or when the container ends.
//! What is written is acknowledged to the guest; what is not yet written is sent again by it after a crash. A file system
//! that takes no more holds the guest back.

use std::path::Path;

use tokio::sync::watch;

use super::record::{Header, Origin};
use super::tail::Tail;
use super::{LogError, MAX_EVENT_BYTES, MAX_LOG_BYTES};
use crate::model::Timestamp;
use crate::model::log::OutputStream;

/// One stream: how far it is stored, and the beginning of a line that is not.
#[derive(Debug, Default)]
struct Pending {
    stored: u64,
    text: Vec<u8>,
    /// There are whole lines in it, which could not be written.
    refused: bool,
}

/// The one writer of a container's log.
#[derive(Debug)]
pub struct OutputWriter {
    tail: Tail,
    max_bytes: u64,
    last: Timestamp,
    stdout: Pending,
    stderr: Pending,
    length: watch::Sender<u64>,
    grown: watch::Sender<u64>,
}

impl OutputWriter {
    pub(super) fn open(
        path: &Path,
        length: watch::Sender<u64>,
        grown: watch::Sender<u64>,
    ) -> Result<OutputWriter, LogError> {
        let (tail, last) = Tail::open(path)?;
        length.send_replace(tail.len);
        let (stdout, stderr) = match last.map(|header| header.origin) {
            Some(Origin::Output {
                stdout_end,
                stderr_end,
                ..
            }) => (stdout_end, stderr_end),
            _ => (0, 0),
        };
        let pending = |stored| Pending {
            stored,
            text: Vec::new(),
            refused: false,
        };
        Ok(OutputWriter {
            tail,
            max_bytes: MAX_LOG_BYTES,
            last: last.map_or(Timestamp(0), |header| header.order),
            stdout: pending(stdout),
            stderr: pending(stderr),
            length,
            grown,
        })
    }

    #[cfg(test)]
    pub(super) fn holding(mut self, max_bytes: u64) -> OutputWriter {
        self.max_bytes = max_bytes;
        self
    }

    /// Up to which byte this stream is stored.
    pub fn stored(&self, stream: OutputStream) -> u64 {
        match stream {
            OutputStream::Stdout => self.stdout.stored,
            OutputStream::Stderr => self.stderr.stored,
        }
    }

    /// Up to which byte this stream has arrived, stored or not.
    pub fn received(&self, stream: OutputStream) -> u64 {
        let pending = match stream {
            OutputStream::Stdout => &self.stdout,
            OutputStream::Stderr => &self.stderr,
        };
        pending.stored.saturating_add(pending.text.len() as u64)
    }

    fn pending(&mut self, stream: OutputStream) -> &mut Pending {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }

    /// Takes bytes that start at `offset` of the stream. What is known already is skipped; if bytes between were lost,
    /// the log goes on without them. After an error the same bytes may be given again, until they are written.
    pub fn append(
        &mut self,
        stream: OutputStream,
        offset: u64,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<(), LogError> {
        let pending = self.pending(stream);
        let expected = pending.stored.saturating_add(pending.text.len() as u64);
        let known = usize::try_from(expected.saturating_sub(offset)).unwrap_or(usize::MAX);
        if known >= bytes.len() {
            return match pending.refused {
                true => self.write(stream, now, false),
                false => Ok(()),
            };
        }
        if offset > expected {
            self.write(stream, now, true)?;
            self.pending(stream).stored = offset;
        }
        let new = &bytes[known..];
        let pending = self.pending(stream);
        pending.text.extend_from_slice(new);
        // No line has ended, and what waits was looked through when it came.
        if !new.contains(&b'\n') && pending.text.len() < MAX_EVENT_BYTES {
            return Ok(());
        }
        self.write(stream, now, false)
    }

    /// The container has ended: what is left is written though no newline came.
    pub fn finish(&mut self, now: Timestamp) -> Result<(), LogError> {
        self.write(OutputStream::Stdout, now, true)?;
        self.write(OutputStream::Stderr, now, true)
    }

    /// A log that is full loses its oldest lines, and says so.
    fn make_room(&mut self, stream: OutputStream, now: Timestamp) -> Result<(), LogError> {
        if self.tail.len - self.tail.start < self.max_bytes || self.tail.held_bytes()? < self.max_bytes {
            return Ok(());
        }
        let freed = self.tail.free(self.max_bytes / 8)?;
        if freed == 0 {
            return Ok(());
        }
        let max_bytes = self.max_bytes;
        let note =
            format!("berth: the log reached {max_bytes} bytes, and its oldest {freed} bytes were dropped");
        let origin = Origin::Output {
            stream,
            newline: true,
            stdout_end: self.stdout.stored,
            stderr_end: self.stderr.stored,
        };
        let header = Header {
            text_len: note.len(),
            order: now.max(self.last),
            origin,
        };
        self.tail.push(&header, &[note.as_bytes()]);
        Ok(())
    }

    /// Writes the whole lines of a stream, and with `all` what follows them too.
    fn write(&mut self, stream: OutputStream, now: Timestamp, all: bool) -> Result<(), LogError> {
        self.make_room(stream, now)?;
        let order = now.max(self.last);
        let text = std::mem::take(&mut self.pending(stream).text);
        let (mut stdout_end, mut stderr_end) = (self.stdout.stored, self.stderr.stored);
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let line_end = rest
                .iter()
                .take(MAX_EVENT_BYTES + 1)
                .position(|byte| *byte == b'\n');
            let (line, newline) = match line_end {
                Some(end) => (&rest[..end], true),
                None if rest.len() >= MAX_EVENT_BYTES => (&rest[..MAX_EVENT_BYTES], false),
                None if all => (rest, false),
                None => break,
            };
            let taken = line.len() + usize::from(newline);
            rest = &rest[taken..];
            match stream {
                OutputStream::Stdout => stdout_end += taken as u64,
                OutputStream::Stderr => stderr_end += taken as u64,
            }
            let origin = Origin::Output {
                stream,
                newline,
                stdout_end,
                stderr_end,
            };
            let header = Header {
                text_len: line.len(),
                order,
                origin,
            };
            self.tail.push(&header, &[line]);
        }
        if let Err(error) = self.tail.write() {
            // The lines stay pending and unacknowledged.
            let pending = self.pending(stream);
            pending.text = text;
            pending.refused = true;
            return Err(error);
        }
        let rest = rest.to_vec();
        self.last = order;
        self.stdout.stored = stdout_end;
        self.stderr.stored = stderr_end;
        let pending = self.pending(stream);
        pending.text = rest;
        pending.refused = false;
        if self.length.send_replace(self.tail.len) != self.tail.len {
            self.grown.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }
}
