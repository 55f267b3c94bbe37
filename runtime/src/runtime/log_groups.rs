//! Log groups and streams, events that clients put, and carrying out retention.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::logs::blocking;
use super::{Runtime, RuntimeError};
use crate::logs;
use crate::model::log::{LogGroup, LogSource, LogStream};
use crate::model::task::{Task, TaskId};
use crate::model::{Tag, Timestamp};
use crate::state::keys;
use crate::store::{Record, StoreError, Transaction};

impl Runtime {
    /// By name.
    pub async fn log_groups(&self) -> Result<Vec<LogGroup>, RuntimeError> {
        let records = self.shared.context.records.list(keys::LOG_GROUPS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn log_group(&self, name: &str) -> Result<LogGroup, RuntimeError> {
        Ok(self.log_group_record(name).await?.value)
    }

    async fn log_group_record(&self, name: &str) -> Result<Record<LogGroup>, RuntimeError> {
        let found = self.shared.context.records.get(&keys::log_group(name)).await?;
        found.ok_or_else(|| RuntimeError::LogGroupNotFound(name.to_owned()))
    }

    pub async fn create_log_group(&self, name: &str, tags: Vec<Tag>) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let group = LogGroup {
            tags,
            ..LogGroup::new(name, context.clock.now())
        };
        let transaction = Transaction::default().create(keys::log_group(name), &group)?;
        match context.records.commit(transaction).await {
            Err(StoreError::Conflict { .. }) => Err(RuntimeError::LogGroupExists(name.to_owned())),
            done => Ok(done.map(drop)?),
        }
    }

    /// Changes a group, whatever else changes it meanwhile.
    pub async fn change_log_group(
        &self,
        name: &str,
        change: impl Fn(&mut LogGroup),
    ) -> Result<(), RuntimeError> {
        let records = &self.shared.context.records;
        loop {
            let Record { mut value, revision } = self.log_group_record(name).await?;
            change(&mut value);
            let transaction = Transaction::default().replace(keys::log_group(name), revision, &value)?;
            match records.commit(transaction).await {
                Err(StoreError::Conflict { .. }) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }

    /// With its streams and what they hold.
    pub async fn delete_log_group(&self, name: &str) -> Result<(), RuntimeError> {
        let records = &self.shared.context.records;
        self.log_group(name).await?;
        let streams = records.list::<LogStream>(&keys::log_streams_of(name)).await?;
        let mut transaction = Transaction::default().delete(keys::log_group(name));
        for stream in &streams {
            transaction = transaction.delete(keys::log_stream(name, &stream.value.name));
        }
        records.commit(transaction).await?;
        for stream in streams {
            self.remove_source(&stream.value.source).await?;
        }
        Ok(())
    }

    pub async fn log_stream(&self, group: &str, name: &str) -> Result<LogStream, RuntimeError> {
        let records = &self.shared.context.records;
        let found: Option<Record<LogStream>> = records.get(&keys::log_stream(group, name)).await?;
        let found = found.map(|record| record.value);
        found.ok_or_else(|| RuntimeError::LogStreamNotFound(name.to_owned()))
    }

    /// Streams of a group, by name, without what they hold.
    pub async fn log_stream_names(&self, group: &str) -> Result<Vec<LogStream>, RuntimeError> {
        let records = &self.shared.context.records;
        let streams = records.list::<LogStream>(&keys::log_streams_of(group)).await?;
        Ok(streams.into_iter().map(|record| record.value).collect())
    }

    /// A stream that clients put events into.
    pub async fn create_log_stream(&self, group: &str, name: &str) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let of = self.log_group_record(group).await?;
        let stream = LogStream {
            group: group.to_owned(),
            name: name.to_owned(),
            created_at: context.clock.now(),
            source: LogSource::Clients {
                file: format!("{:032x}", rand::random::<u128>()),
            },
        };
        let transaction = Transaction::default()
            .create(keys::log_stream(group, name), &stream)?
            // The group must not go meanwhile.
            .replace(keys::log_group(group), of.revision, &of.value)?;
        match context.records.commit(transaction).await {
            Err(StoreError::Conflict { .. }) => {
                self.log_group(group).await?;
                Err(RuntimeError::LogStreamExists(name.to_owned()))
            }
            done => Ok(done.map(drop)?),
        }
    }

    pub async fn delete_log_stream(&self, group: &str, name: &str) -> Result<(), RuntimeError> {
        self.log_group(group).await?;
        let stream = self.log_stream(group, name).await?;
        let transaction = Transaction::default().delete(keys::log_stream(group, name));
        self.shared.context.records.commit(transaction).await?;
        self.remove_source(&stream.source).await
    }

    /// Appends events, which are in the order of their times.
    pub async fn put_log_events(
        &self,
        group: &str,
        stream: &str,
        events: Vec<(Timestamp, String)>,
    ) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let LogSource::Clients { file } = self.log_stream(group, stream).await?.source else {
            return Err(RuntimeError::LogStreamOfContainer(stream.to_owned()));
        };
        let (outputs, now) = (Arc::clone(&context.outputs), context.clock.now());
        blocking(move || {
            let events: Vec<_> = events.iter().map(|(at, text)| (*at, text.as_str())).collect();
            outputs.put(&file, &events, now)
        })
        .await
    }

    /// Frees what no stream leads to any more. A container's output stays as long as its task can be described.
    async fn remove_source(&self, source: &LogSource) -> Result<(), RuntimeError> {
        let outputs = &self.shared.context.outputs;
        match source {
            LogSource::Clients { file } => outputs.remove_put(file)?,
            LogSource::Container { task, .. } => match self.task(task).await {
                Err(RuntimeError::TaskNotFound(_)) => self.remove_output_without_stream(task).await?,
                found => drop(found?),
            },
        }
        Ok(())
    }

    async fn remove_output_without_stream(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let streams = context.records.list::<LogStream>(keys::LOG_STREAMS).await?;
        let leads_to = |stream: &LogStream| match &stream.source {
            LogSource::Container { task: of, .. } => of == task,
            LogSource::Clients { .. } => false,
        };
        if !streams.iter().any(|stream| leads_to(&stream.value)) {
            context.outputs.remove(task)?;
        }
        Ok(())
    }

    /// Whether some stream leads to the output of this task.
    pub(super) async fn has_log_streams(&self, task: &Task) -> Result<bool, RuntimeError> {
        for log in task
            .containers
            .iter()
            .filter_map(|container| container.log.as_ref())
        {
            match self.log_stream(&log.group, &log.stream).await {
                Ok(_) => return Ok(true),
                Err(RuntimeError::LogStreamNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Frees what the groups' retention does not keep, and files that no stream leads to.
    pub(super) async fn sweep_logs(&self) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let now = context.clock.now();
        // Before the streams are listed: every file there is has, or had, a stream.
        let files = context.outputs.put_files()?;
        let streams = context.records.list::<LogStream>(keys::LOG_STREAMS).await?;
        let known: BTreeSet<&str> = streams
            .iter()
            .filter_map(|stream| match &stream.value.source {
                LogSource::Clients { file } => Some(file.as_str()),
                LogSource::Container { .. } => None,
            })
            .collect();
        for file in files.iter().filter(|file| !known.contains(file.as_str())) {
            context.outputs.remove_put(file)?;
        }
        for group in self.log_groups().await? {
            let Some(kept_since) = group.kept_since(now) else {
                continue;
            };
            let of_group = streams.iter().filter(|stream| stream.value.group == group.name);
            let paths: Vec<_> = of_group
                .map(|stream| context.outputs.source_path(&stream.value.source))
                .collect();
            let freed = blocking(move || {
                paths
                    .iter()
                    .try_fold(0u64, |sum, path| Ok(sum + logs::trim(path, kept_since)?))
            });
            let freed = freed.await?;
            if freed > 0 {
                tracing::info!(
                    group = group.name,
                    bytes = freed,
                    "freed what a log group does not keep"
                );
            }
        }
        Ok(())
    }
}
