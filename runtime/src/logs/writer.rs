//! Writing a log file: two byte streams become lines, each line one record.
//!
//! A line is written when its newline arrives, when it grows longer than an event may be, or when the container ends.
//! What is written is acknowledged to the guest; what is not yet written is sent again by it after a crash.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::reader::LogFile;
use super::record::{self, Header};
use super::{LogError, MAX_EVENT_BYTES, MAX_LOG_BYTES};
use crate::model::Timestamp;
use crate::model::log::OutputStream;

/// One stream: how far it is stored, and the beginning of a line that is not.
#[derive(Debug, Default)]
struct Pending {
    stored: u64,
    text: Vec<u8>,
}

/// The one writer of a container's log.
#[derive(Debug)]
pub struct OutputWriter {
    file: File,
    path: PathBuf,
    len: u64,
    last: Timestamp,
    stdout: Pending,
    stderr: Pending,
    full: bool,
    length: watch::Sender<u64>,
}

impl OutputWriter {
    pub(super) fn open(path: &Path, length: watch::Sender<u64>) -> Result<OutputWriter, LogError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path)
            .map_err(super::io_error("open", path))?;
        let log = LogFile::of(file.try_clone().map_err(super::io_error("open", path))?, path)?;
        let len = log.end_of_whole_records()?;
        if len != log.len {
            file.set_len(len).map_err(super::io_error("mend", path))?;
        }
        let last = match log.start_of_record_before(len)? {
            Some(start) => log.record_at(start)?.map(|(header, _)| header),
            None => None,
        };
        length.send_replace(len);
        Ok(OutputWriter {
            file,
            path: path.to_owned(),
            len,
            last: last.map_or(Timestamp(0), |header| header.timestamp),
            stdout: Pending {
                stored: last.map_or(0, |header| header.stdout_end),
                text: Vec::new(),
            },
            stderr: Pending {
                stored: last.map_or(0, |header| header.stderr_end),
                text: Vec::new(),
            },
            full: len >= MAX_LOG_BYTES,
            length,
        })
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
    /// the log goes on without them.
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
            return Ok(());
        }
        if offset > expected {
            self.write(stream, now, true)?;
            self.pending(stream).stored = offset;
        }
        self.pending(stream).text.extend_from_slice(&bytes[known..]);
        self.write(stream, now, false)
    }

    /// The container has ended: what is left is written though no newline came.
    pub fn finish(&mut self, now: Timestamp) -> Result<(), LogError> {
        self.write(OutputStream::Stdout, now, true)?;
        self.write(OutputStream::Stderr, now, true)
    }

    /// Writes the whole lines of a stream, and with `all` what follows them too.
    fn write(&mut self, stream: OutputStream, now: Timestamp, all: bool) -> Result<(), LogError> {
        let timestamp = now.max(self.last);
        let text = std::mem::take(&mut self.pending(stream).text);
        let (mut stdout_end, mut stderr_end) = (self.stdout.stored, self.stderr.stored);
        let mut records = Vec::new();
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
            let header = Header {
                stream,
                newline,
                text_len: line.len(),
                timestamp,
                stdout_end,
                stderr_end,
            };
            if !self.full {
                record::encode(&header, line, &mut records);
            }
        }
        if !self.full && self.len + records.len() as u64 > MAX_LOG_BYTES {
            self.full = true;
            records.clear();
            let text = format!("berth: the log has reached {MAX_LOG_BYTES} bytes; what follows is dropped");
            let header = Header {
                stream,
                newline: true,
                text_len: text.len(),
                timestamp,
                stdout_end,
                stderr_end,
            };
            record::encode(&header, text.as_bytes(), &mut records);
        }
        if !records.is_empty() {
            if let Err(cause) = self.file.write_all(&records) {
                // The lines stay pending and unacknowledged; a piece of a record must not stay.
                self.pending(stream).text = text;
                self.file
                    .set_len(self.len)
                    .map_err(super::io_error("mend", &self.path))?;
                return Err(super::io_error("write", &self.path)(cause));
            }
            self.len += records.len() as u64;
        }
        let rest = rest.to_vec();
        self.last = timestamp;
        self.stdout.stored = stdout_end;
        self.stderr.stored = stderr_end;
        self.pending(stream).text = rest;
        self.length.send_replace(self.len);
        Ok(())
    }
}
