//! Container output: one append-only file per container, and readers of it.
//!
//! What is here: the record layout (`record`), the writer that turns byte streams into lines (`writer`), pages of
//! events (`reader`) and where the files are ([`Outputs`]). What is not: names of log groups and streams, which are
//! records of the store that point at a task's container.

mod reader;
mod record;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

pub use reader::{read, stats};
pub use writer::OutputWriter;

use crate::model::task::TaskId;

/// Longest text of one event in bytes (the limit of the awslogs driver, less its overhead of 26).
pub const MAX_EVENT_BYTES: usize = 256 * 1024 - 26;
/// Most bytes kept of one container's output; what comes after is dropped, and the log says so.
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

type Key = (TaskId, String);

/// All containers' output under one directory.
pub struct Outputs {
    dir: PathBuf,
    /// Length of each log that is being written, for those who wait for more.
    live: Mutex<HashMap<Key, watch::Sender<u64>>>,
}

impl Outputs {
    pub fn open(dir: &Path) -> Result<Outputs, LogError> {
        std::fs::create_dir_all(dir).map_err(io_error("make", dir))?;
        Ok(Outputs {
            dir: dir.to_owned(),
            live: Mutex::new(HashMap::new()),
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
        OutputWriter::open(&path, length)
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
