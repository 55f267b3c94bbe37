//! Log groups, streams, events, and a container's output whether or not it has a stream.

use std::path::PathBuf;
use std::time::Duration;

use super::{Runtime, RuntimeError};
use crate::logs::{self, LogError};
use crate::model::log::{LogEvent, LogGroup, LogPage, LogQuery, LogStream, LogStreamStats};
use crate::model::task::{ContainerStatus, Task, TaskId, TaskStatus};
use crate::state::keys;
use crate::store::Record;

/// Most events of one answer: a guest may write empty lines, which have no bytes to count.
const MAX_OUTPUT_EVENTS: usize = 10_000;

impl Runtime {
    /// By name.
    pub async fn log_groups(&self) -> Result<Vec<LogGroup>, RuntimeError> {
        let records = self.shared.context.records.list(keys::LOG_GROUPS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    /// By name.
    pub async fn log_streams(&self, group: &str) -> Result<Vec<(LogStream, LogStreamStats)>, RuntimeError> {
        let records = &self.shared.context.records;
        if records.get::<LogGroup>(&keys::log_group(group)).await?.is_none() {
            return Err(RuntimeError::LogGroupNotFound(group.to_owned()));
        }
        let streams = records.list::<LogStream>(&keys::log_streams_of(group)).await?;
        let streams: Vec<_> = streams
            .into_iter()
            .map(|record| {
                let path = self
                    .shared
                    .context
                    .outputs
                    .path(&record.value.task, &record.value.container);
                (record.value, path)
            })
            .collect();
        blocking(move || {
            streams
                .into_iter()
                .map(|(stream, path)| Ok((stream, logs::stats(&path)?)))
                .collect::<Result<_, _>>()
        })
        .await
    }

    pub async fn log_events(
        &self,
        group: &str,
        stream: &str,
        query: LogQuery,
    ) -> Result<LogPage, RuntimeError> {
        let records = &self.shared.context.records;
        if records.get::<LogGroup>(&keys::log_group(group)).await?.is_none() {
            return Err(RuntimeError::LogGroupNotFound(group.to_owned()));
        }
        let stream_record: Option<Record<LogStream>> = records.get(&keys::log_stream(group, stream)).await?;
        let Some(stream) = stream_record.map(|record| record.value) else {
            return Err(RuntimeError::LogStreamNotFound(stream.to_owned()));
        };
        let path = self.shared.context.outputs.path(&stream.task, &stream.container);
        blocking(move || logs::read(&path, &query)).await
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
            limit: MAX_OUTPUT_EVENTS,
            max_bytes,
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
    blocking(move || logs::read(&path, &query)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| RuntimeError::Internal(format!("reading a log broke off: {error}")))??)
}
