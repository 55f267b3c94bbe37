//! Logs: one append-only file per container, and per stream that clients put events into, and readers of them.
//!
//! What is here: the record layout (`record`), a file of records (`file`), its end that grows (`tail`), the writer that turns
//! byte streams into lines (`writer`), events that clients put (`events`), pages of events (`reader`), the index that
//! tells where a page begins (`index`), freeing what is old (`trim`), and where the files are ([`Outputs`]). What is not:
//! names of log groups and streams, which are records of the store that point at a file.

mod events;
mod file;
mod index;
#[cfg(test)]
mod index_tests;
mod reader;
mod record;
mod tail;
#[cfg(test)]
mod tests;
mod trim;
mod writer;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

pub use reader::{end, read, stats};
pub use trim::trim;
pub use writer::OutputWriter;

use crate::model::Timestamp;
use crate::model::log::LogSource;
use crate::model::task::TaskId;

/// Longest text of one event in bytes (the limit of the awslogs driver, less its overhead of 26).
pub const MAX_EVENT_BYTES: usize = 256 * 1024 - 26;
/// Longest message of an event that a client puts, in bytes.
pub const MAX_PUT_EVENT_BYTES: usize = 1024 * 1024;
/// Most bytes kept of one container's output; beyond, the oldest are dropped, and the log says so.
pub const MAX_LOG_BYTES: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {what} {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("there is no event at position {0}")]
    Position(u64),
}

/// No task's name.
const PUT_DIR: &str = "put";
const PUT_LOCKS: usize = 16;

type Key = (TaskId, String);

/// All containers' output under one directory.
pub struct Outputs {
    dir: PathBuf,
    /// Length of each log that is being written, for those who wait for more.
    live: Mutex<HashMap<Key, watch::Sender<u64>>>,
    /// Changes whenever any log grows.
    grown: watch::Sender<u64>,
    /// Whoever puts events into a file holds the one of these that its name leads to.
    putting: [Mutex<()>; PUT_LOCKS],
}

impl Outputs {
    pub fn open(dir: &Path) -> Result<Outputs, LogError> {
        let put = dir.join(PUT_DIR);
        std::fs::create_dir_all(&put).map_err(io_error("make", &put))?;
        Ok(Outputs {
            dir: dir.to_owned(),
            live: Mutex::new(HashMap::new()),
            grown: watch::Sender::new(0),
            putting: Default::default(),
        })
    }

    pub fn path(&self, task: &TaskId, container: &str) -> PathBuf {
        // A container's name may be longer than a file's.
        let name = hex::encode(&Sha256::digest(container.as_bytes())[..12]);
        self.dir.join(task.as_str()).join(format!("{name}.log"))
    }

    /// Goes on writing a container's log where it ends.
    pub fn writer(&self, task: &TaskId, container: &str) -> Result<OutputWriter, LogError> {
        let path = self.path(task, container);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io_error("make", parent))?;
        }
        let key = (task.clone(), container.to_owned());
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let length = live.entry(key).or_insert_with(|| watch::Sender::new(0)).clone();
        drop(live);
        OutputWriter::open(&path, length, self.grown.clone())
    }

    /// The file of a stream that clients put events into.
    pub fn put_path(&self, file: &str) -> PathBuf {
        self.dir.join(PUT_DIR).join(format!("{file}.log"))
    }

    /// Appends events that a client brings to such a file, all or none.
    pub fn put(&self, file: &str, events: &[(Timestamp, &str)], now: Timestamp) -> Result<(), LogError> {
        let path = self.put_path(file);
        let lock = file
            .bytes()
            .fold(0, |sum: usize, byte| sum.wrapping_mul(31) + usize::from(byte));
        let lock = self.putting.get(lock % PUT_LOCKS).map(Mutex::lock);
        events::put(&path, events, now)?;
        drop(lock);
        self.grown.send_modify(|count| *count = count.wrapping_add(1));
        Ok(())
    }

    /// The files that clients put events into.
    pub fn put_files(&self) -> Result<Vec<String>, LogError> {
        let dir = self.dir.join(PUT_DIR);
        let listing = std::fs::read_dir(&dir).map_err(io_error("list", &dir))?;
        let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let logs = names.filter_map(|name| name.strip_suffix(".log").map(str::to_owned));
        Ok(logs.collect())
    }

    /// Where a stream is.
    pub fn source_path(&self, source: &LogSource) -> PathBuf {
        match source {
            LogSource::Container { task, container } => self.path(task, container),
            LogSource::Clients { file } => self.put_path(file),
        }
    }

    /// Removes such a file.
    pub fn remove_put(&self, file: &str) -> Result<(), LogError> {
        let path = self.put_path(file);
        index::remove(&path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Changes whenever any log grows.
    pub fn any_growth(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Changes whenever the log grows; none if nobody writes it now.
    pub fn follow(&self, task: &TaskId, container: &str) -> Option<watch::Receiver<u64>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&(task.clone(), container.to_owned()))
            .map(watch::Sender::subscribe)
    }

    /// Nothing more will be written for this task.
    pub fn close(&self, task: &TaskId) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|(of, _), _| of != task);
    }

    pub fn remove(&self, task: &TaskId) -> Result<(), LogError> {
        self.close(task);
        let dir = self.dir.join(task.as_str());
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &dir)(error)),
            _ => Ok(()),
        }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    move |cause| LogError::Io {
        what,
        path: path.to_owned(),
        cause,
    }
}
