//! Reading events of log streams, and a container's output whether or not it has a stream.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Runtime, RuntimeError};
use crate::logs::{self, LogError};
use crate::model::log::{LogEvent, LogPage, LogQuery, LogStream, LogStreamStats};
use crate::model::task::{ContainerStatus, Task, TaskId, TaskStatus};
use crate::state::keys;

/// Most events of one answer: a guest may write empty lines, which have no bytes to count.
const MAX_OUTPUT_EVENTS: usize = 10_000;

/// Whether the text of an event is wanted.
pub type LogMatcher = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

impl Runtime {
    /// By name.
    pub async fn log_streams(&self, group: &str) -> Result<Vec<(LogStream, LogStreamStats)>, RuntimeError> {
        let context = &self.shared.context;
        self.log_group(group).await?;
        let streams = context
            .records
            .list::<LogStream>(&keys::log_streams_of(group))
            .await?;
        let outputs = Arc::clone(&context.outputs);
        blocking(move || {
            streams
                .into_iter()
                .map(|record| {
                    let stats = logs::stats(&outputs.source_path(&record.value.source))?;
                    Ok((record.value, stats))
                })
                .collect::<Result<_, _>>()
        })
        .await
    }

    /// Events of a stream, as far as its group's retention keeps them.
    pub async fn log_events(
        &self,
        group: &str,
        stream: &str,
        mut query: LogQuery,
    ) -> Result<LogPage, RuntimeError> {
        let context = &self.shared.context;
        let group = self.log_group(group).await?;
        let stream = self.log_stream(&group.name, stream).await?;
        query.start = query.start.max(group.kept_since(context.clock.now()));
        let path = context.outputs.source_path(&stream.source);
        read(path, query).await
    }

    /// A page of the events of a stream whose text `is_wanted`.
    pub async fn search_log(
        &self,
        stream: &LogStream,
        query: LogQuery,
        is_wanted: LogMatcher,
    ) -> Result<LogPage, RuntimeError> {
        let path = self.shared.context.outputs.source_path(&stream.source);
        blocking(move || logs::read(&path, &query, is_wanted.as_ref())).await
    }

    /// Where the log of each of these streams ends now.
    pub async fn log_ends(&self, streams: &[LogStream]) -> Result<Vec<u64>, RuntimeError> {
        let outputs = &self.shared.context.outputs;
        let paths: Vec<_> = streams
            .iter()
            .map(|stream| outputs.source_path(&stream.source))
            .collect();
        blocking(move || paths.iter().map(|path| logs::end(path)).collect()).await
    }

    /// Changes whenever any log grows.
    pub fn log_growth(&self) -> watch::Receiver<u64> {
        self.shared.context.outputs.any_growth()
    }

    /// A container's output from `position` on (0 is the start), whether or not it has a log stream. Waits up to `wait`
    /// for more if there is none yet. The flag says that the container has ended and this is the last of it.
    pub async fn output(
        &self,
        task: &TaskId,
        container: &str,
        position: u64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<(Vec<LogEvent>, bool), RuntimeError> {
        let context = &self.shared.context;
        let deadline = tokio::time::Instant::now() + wait;
        let path = context.outputs.path(task, container);
        let query = LogQuery {
            position: Some(position),
            forward: true,
            start: None,
            end: None,
            from_order: None,
            limit: MAX_OUTPUT_EVENTS,
            max_bytes,
            max_scanned_bytes: u64::MAX,
        };
        loop {
            let revision = context.records.store().revision().await?;
            let mut changes = context.records.store().watch(&keys::task(task), revision).await?;
            let mut growth = context.outputs.follow(task, container);
            // Whether it has ended is asked before the log is read, so that nothing comes between.
            let ended = has_ended(&self.task(task).await?, container)?;
            let page = read(path.clone(), query).await?;
            if !page.events.is_empty() || ended || tokio::time::Instant::now() >= deadline {
                return Ok((page.events, ended && page.at_end));
            }
            let grows = async {
                match &mut growth {
                    Some(growth) => growth.changed().await.is_ok(),
                    None => false,
                }
            };
            tokio::select! {
                grown = grows => if !grown {
                    // Not written yet, or no longer: the task's next change tells.
                    drop(tokio::time::timeout_at(deadline, changes.recv()).await);
                },
                _ = changes.recv() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}

fn has_ended(task: &Task, container: &str) -> Result<bool, RuntimeError> {
    let found = task.containers.iter().find(|one| one.name == container);
    let found = found.ok_or_else(|| RuntimeError::ContainerNotFound(container.to_owned()))?;
    Ok(found.status == ContainerStatus::Stopped || task.status == TaskStatus::Stopped)
}

async fn read(path: PathBuf, query: LogQuery) -> Result<LogPage, RuntimeError> {
    blocking(move || logs::read(&path, &query, &|_| true)).await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| RuntimeError::Internal(format!("work on a log broke off: {error}")))??)
}
