//! Volumes and snapshots: making, copying, deleting, and giving them to tasks. A volume is one task's at a time: who has it
//! is a record that is made in the transaction that makes the task, and goes in the one that stores its end.
//!
//! What is begun is stored first ([`VolumeState::Creating`], [`VolumeState::Deleting`], [`Holder::Copy`]), so that the next
//! daemon can undo or finish it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Runtime, RuntimeError};
use crate::faults::{self, Point};
use crate::model::Tag;
use crate::model::task::{Task, TaskId};
use crate::model::volume::{
    Holder, MAX_VOLUME_GIB, MIN_VOLUME_GIB, Volume, VolumeId, VolumeKind, VolumeState, is_volume_name,
};
use crate::state::keys;
use crate::store::{Record, StoreError, Transaction};
use crate::task::host::{HostError, VolumeDisk};
use crate::task::supervisor::Context;

const RETRY: Duration = Duration::from_secs(1);

/// That somebody has a volume for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attachment {
    volume: VolumeId,
    holder: Holder,
}

/// What a task asks for its volume, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchVolume {
    /// What the definition calls it.
    pub name: String,
    /// The id or the name of a snapshot, of which it is to be a copy, or of the volume that it is to be.
    pub from: Option<String>,
    pub size_gib: Option<u32>,
    /// Only of one that is made for the task; none means that it is.
    pub delete_on_termination: Option<bool>,
    pub tags: Vec<Tag>,
    pub role_arn: Option<String>,
}

/// A volume that is made for nobody yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    pub name: String,
    /// None means that of the snapshot.
    pub size_gib: Option<u32>,
    /// The id or the name of a snapshot; none means an empty volume.
    pub snapshot: Option<String>,
}

/// A volume, and how it is with it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    pub volume: Volume,
    pub holder: Option<Holder>,
    /// What it takes of the host's disk.
    pub used_bytes: u64,
}

/// What a task gets.
pub(super) enum Given {
    Existing(Record<Volume>),
    New { size_gib: u32, source: Option<VolumeId> },
}

impl Runtime {
    /// All volumes and snapshots, by name, then by id.
    pub async fn volumes(&self) -> Result<Vec<VolumeStatus>, RuntimeError> {
        let context = &self.shared.context;
        let attachments: Vec<Record<Attachment>> = context.records.list(keys::ATTACHMENTS).await?;
        let mut volumes: Vec<VolumeStatus> = context
            .records
            .list::<Volume>(keys::VOLUMES)
            .await?
            .into_iter()
            .map(|record| {
                let volume = record.value;
                let attachment = attachments.iter().find(|it| it.value.volume == volume.id);
                VolumeStatus {
                    holder: attachment.map(|it| it.value.holder.clone()),
                    used_bytes: context.host.volume_used_bytes(&volume.id),
                    volume,
                }
            })
            .collect();
        let key = |it: &VolumeStatus| {
            (
                it.volume.name.is_none(),
                it.volume.name.clone(),
                it.volume.id.clone(),
            )
        };
        volumes.sort_by_key(key);
        Ok(volumes)
    }

    /// Makes a volume, and waits for it so long; it goes on being made after that.
    pub async fn create_volume(
        &self,
        request: CreateVolume,
        wait: Duration,
    ) -> Result<VolumeStatus, RuntimeError> {
        let _admission = self.shared.admission.lock().await;
        check_name(&request.name)?;
        let (size_gib, source) = self
            .new_volume(request.snapshot.as_deref(), request.size_gib)
            .await?;
        self.check_disk(size_gib).await?;
        let volume = Volume {
            id: VolumeId::random(VolumeKind::Volume),
            kind: VolumeKind::Volume,
            name: Some(request.name.clone()),
            size_gib,
            state: VolumeState::Creating,
            source,
            tags: Vec::new(),
            created_at: self.now(),
        };
        let transaction = named(Transaction::default(), &volume)?;
        let committed = self.shared.context.records.commit(transaction).await;
        let revision = committed.map_err(|error| conflict(error, &request.name))?;
        drop(_admission);
        self.make(volume, revision, None, wait).await
    }

    /// Copies a volume that nobody has, and waits for it so long; nobody can have the volume meanwhile.
    pub async fn snapshot_volume(
        &self,
        of: &str,
        name: Option<String>,
        wait: Duration,
    ) -> Result<VolumeStatus, RuntimeError> {
        let admission = self.shared.admission.lock().await;
        if let Some(name) = &name {
            check_name(name)?;
        }
        let Record { value: of, revision } = self.free_volume(of).await?;
        self.check_disk(of.size_gib).await?;
        let snapshot = Volume {
            id: VolumeId::random(VolumeKind::Snapshot),
            kind: VolumeKind::Snapshot,
            name,
            size_gib: of.size_gib,
            state: VolumeState::Creating,
            source: Some(of.id.clone()),
            tags: of.tags.clone(),
            created_at: self.now(),
        };
        let attachment = Attachment {
            volume: of.id.clone(),
            holder: Holder::Copy,
        };
        let transaction = named(Transaction::default(), &snapshot)?
            .unchanged(keys::volume(&of.id), revision)
            .create(keys::attachment(&of.id), &attachment)?;
        let shown = snapshot.name.clone().unwrap_or_default();
        let committed = self.shared.context.records.commit(transaction).await;
        let revision = committed.map_err(|error| conflict(error, &shown))?;
        drop(admission);
        self.make(snapshot, revision, Some(of.id), wait).await
    }

    /// Deletes a volume that nobody has, or a snapshot.
    pub async fn delete_volume(&self, name: &str) -> Result<Volume, RuntimeError> {
        // Nothing begins to be copied meanwhile.
        let admission = self.shared.admission.lock().await;
        let Record { value, revision } = self.find_volume(name).await?;
        if value.state == VolumeState::Creating {
            return Err(not_available(&value));
        }
        self.check_free(&value).await?;
        self.check_not_copied(&value).await?;
        let deleting = Volume {
            state: VolumeState::Deleting,
            ..value.clone()
        };
        let transaction = Transaction::default()
            .replace(keys::volume(&value.id), revision, &deleting)?
            .absent(keys::attachment(&value.id));
        let committed = self.shared.context.records.commit(transaction).await;
        let revision = committed.map_err(|error| conflict(error, name))?;
        drop(admission);
        faults::pass(Point::VolumeDeletionStored);
        let context = Arc::clone(&self.shared.context);
        let record = Record {
            value: deleting,
            revision,
        };
        let deleted = self.in_background(async move { delete(&context, &record).await });
        deleted
            .await
            .map_err(|_| RuntimeError::Internal("the deletion broke off".to_owned()))??;
        Ok(value)
    }

    /// What a task gets that asks for this.
    pub(super) async fn volume_for_task(
        &self,
        asked: &LaunchVolume,
        count: u32,
    ) -> Result<Given, RuntimeError> {
        let existing = match &asked.from {
            Some(from) => Some(self.find_volume(from).await?),
            None => None,
        };
        let Some(record) = existing.filter(|found| found.value.kind == VolumeKind::Volume) else {
            let (size_gib, source) = self.new_volume(asked.from.as_deref(), asked.size_gib).await?;
            return Ok(Given::New { size_gib, source });
        };
        let volume = &record.value;
        let refuse = |text: String| Err(RuntimeError::Volume(text));
        if count > 1 {
            return refuse(format!(
                "volume {} can be one task's at a time, and count is {count}",
                shown(volume)
            ));
        }
        if asked.delete_on_termination == Some(true) {
            return refuse(format!(
                "deleteOnTermination cannot be true for volume {}, which was not made for the task",
                shown(volume)
            ));
        }
        if asked.size_gib.is_some_and(|size| size != volume.size_gib) {
            return refuse(format!(
                "sizeInGiB must be {}, the size of volume {}, or left out",
                volume.size_gib,
                shown(volume)
            ));
        }
        if !asked.tags.is_empty() {
            return refuse(format!(
                "tagSpecifications cannot be given for volume {}, which is there already",
                shown(volume)
            ));
        }
        if volume.state != VolumeState::Available {
            return Err(not_available(volume));
        }
        self.check_free(volume).await?;
        Ok(Given::Existing(record))
    }

    /// Adds to the transaction that makes a task that its volume is its own from then on, and is made if it has to be.
    pub(super) fn attach(
        &self,
        transaction: Transaction,
        task: &Task,
        given: &Given,
        asked: &LaunchVolume,
    ) -> Result<Transaction, RuntimeError> {
        let Some(own) = &task.volume else {
            return Ok(transaction);
        };
        let attachment = Attachment {
            volume: own.id.clone(),
            holder: Holder::Task(task.id.clone()),
        };
        let transaction = transaction.create(keys::attachment(&own.id), &attachment)?;
        Ok(match given {
            Given::Existing(record) => transaction.unchanged(keys::volume(&own.id), record.revision),
            Given::New { size_gib, source } => transaction.create(
                keys::volume(&own.id),
                &Volume {
                    id: own.id.clone(),
                    kind: VolumeKind::Volume,
                    name: None,
                    size_gib: *size_gib,
                    state: VolumeState::Creating,
                    source: source.clone(),
                    tags: asked.tags.clone(),
                    created_at: task.created_at,
                },
            )?,
        })
    }

    /// Undoes or finishes what an earlier daemon had begun, and frees what no task has any more. What a task that has not
    /// stopped has, stays its own.
    pub(super) async fn settle_volumes(&self, unfinished: &[TaskId]) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let mut attached = Vec::new();
        for record in context.records.list::<Attachment>(keys::ATTACHMENTS).await? {
            let Attachment { volume, holder } = record.value;
            match holder {
                Holder::Task(task) if unfinished.contains(&task) => attached.push(volume),
                holder => {
                    tracing::warn!(%volume, ?holder, "a volume is freed that nobody has any more");
                    let freed = Transaction::default().delete(keys::attachment(&volume));
                    context.records.commit(freed).await?;
                }
            }
        }
        for record in context.records.list::<Volume>(keys::VOLUMES).await? {
            let volume = &record.value;
            let begun = match volume.state {
                VolumeState::Available => false,
                // Whoever it is made for makes it.
                VolumeState::Creating => !attached.contains(&volume.id),
                VolumeState::Deleting => true,
            };
            if begun && let Err(error) = delete(context, &record).await {
                tracing::error!(volume = %volume.id, %error, "a volume cannot be deleted");
            }
        }
        Ok(())
    }

    /// Makes the disk of a stored volume or snapshot, and frees what it is copied from.
    async fn make(
        &self,
        volume: Volume,
        revision: u64,
        held: Option<VolumeId>,
        wait: Duration,
    ) -> Result<VolumeStatus, RuntimeError> {
        faults::pass(Point::VolumeStored);
        let context = Arc::clone(&self.shared.context);
        let making = volume.clone();
        let made = self.in_background(async move { finish(&context, making, revision, held).await });
        let volume = match tokio::time::timeout(wait, made).await {
            Ok(Ok(made)) => made?,
            Ok(Err(_)) => return Err(RuntimeError::Internal("the making broke off".to_owned())),
            Err(_) => volume,
        };
        Ok(VolumeStatus {
            holder: None,
            used_bytes: self.shared.context.host.volume_used_bytes(&volume.id),
            volume,
        })
    }

    /// Does something to its end, whether the asker waits for it or not; it ends with the runtime.
    fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        let mut volume_work = self
            .shared
            .volume_work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while volume_work.try_join_next().is_some() {}
        volume_work.spawn(async move { drop(done.send(work.await)) });
        result
    }

    /// Size and source of a volume that is to be made.
    async fn new_volume(
        &self,
        snapshot: Option<&str>,
        size_gib: Option<u32>,
    ) -> Result<(u32, Option<VolumeId>), RuntimeError> {
        let refuse = |text: String| Err(RuntimeError::Volume(text));
        let Some(snapshot) = snapshot else {
            return match size_gib {
                Some(size @ MIN_VOLUME_GIB..=MAX_VOLUME_GIB) => Ok((size, None)),
                _ => refuse(format!(
                    "sizeInGiB of a volume must be {MIN_VOLUME_GIB} to {MAX_VOLUME_GIB}"
                )),
            };
        };
        let snapshot = self.find_volume(snapshot).await?.value;
        if snapshot.kind != VolumeKind::Snapshot {
            return refuse(format!(
                "{} is no snapshot; make one of it first",
                shown(&snapshot)
            ));
        }
        if snapshot.state != VolumeState::Available {
            return Err(not_available(&snapshot));
        }
        if size_gib.is_some_and(|size| size != snapshot.size_gib) {
            return refuse(format!(
                "sizeInGiB must be {}, the size of snapshot {}, or left out",
                snapshot.size_gib,
                shown(&snapshot)
            ));
        }
        Ok((snapshot.size_gib, Some(snapshot.id)))
    }

    /// By id or by name.
    async fn find_volume(&self, name: &str) -> Result<Record<Volume>, RuntimeError> {
        let records = &self.shared.context.records;
        let missing = || RuntimeError::VolumeNotFound(name.chars().take(100).collect());
        let id = match VolumeId::parse(name) {
            Some(id) => id,
            None if is_volume_name(name) => {
                let found: Option<Record<VolumeId>> = records.get(&keys::volume_name(name)).await?;
                found.ok_or_else(missing)?.value
            }
            None => return Err(missing()),
        };
        records.get(&keys::volume(&id)).await?.ok_or_else(missing)
    }

    /// A volume that is whole, and nobody's.
    async fn free_volume(&self, name: &str) -> Result<Record<Volume>, RuntimeError> {
        let record = self.find_volume(name).await?;
        let volume = &record.value;
        if volume.kind != VolumeKind::Volume {
            return Err(RuntimeError::Volume(format!(
                "{} is a snapshot, not a volume",
                shown(volume)
            )));
        }
        if volume.state != VolumeState::Available {
            return Err(not_available(volume));
        }
        self.check_free(volume).await?;
        Ok(record)
    }

    /// Whoever is made of it needs it until then.
    async fn check_not_copied(&self, source: &Volume) -> Result<(), RuntimeError> {
        let volumes = self.shared.context.records.list::<Volume>(keys::VOLUMES).await?;
        let copy = volumes.iter().map(|record| &record.value).find(|volume| {
            volume.state == VolumeState::Creating && volume.source.as_ref() == Some(&source.id)
        });
        match copy {
            None => Ok(()),
            Some(copy) => Err(RuntimeError::VolumeInUse {
                volume: shown(source),
                by: format!("volume {}, which is being made of it", shown(copy)),
            }),
        }
    }

    async fn check_free(&self, volume: &Volume) -> Result<(), RuntimeError> {
        let key = keys::attachment(&volume.id);
        let found: Option<Record<Attachment>> = self.shared.context.records.get(&key).await?;
        let by = match found.map(|record| record.value.holder) {
            None => return Ok(()),
            Some(Holder::Task(task)) => format!("task {task}"),
            Some(Holder::Copy) => "a snapshot that is being made of it".to_owned(),
        };
        Err(RuntimeError::VolumeInUse {
            volume: shown(volume),
            by,
        })
    }
}

async fn finish(
    context: &Context,
    volume: Volume,
    revision: u64,
    held: Option<VolumeId>,
) -> Result<Volume, RuntimeError> {
    let disk = VolumeDisk {
        id: volume.id.clone(),
        size_gib: volume.size_gib,
        source: volume.source.clone(),
    };
    let made = context.host.make_volume(disk).await;
    let mut transaction = Transaction::default();
    if let Some(held) = &held {
        transaction = transaction.delete(keys::attachment(held));
    }
    let available = Volume {
        state: VolumeState::Available,
        ..volume
    };
    let transaction = match &made {
        Ok(()) => transaction.replace(keys::volume(&available.id), revision, &available)?,
        Err(error) => {
            tracing::error!(volume = %available.id, %error, "a volume cannot be made");
            forget(transaction, &available)
        }
    };
    // What it holds would be held until the next start.
    while let Err(error) = context.records.commit(transaction.clone()).await {
        if matches!(error, StoreError::Conflict { .. }) {
            return Err(error.into());
        }
        tracing::error!(volume = %available.id, %error, "cannot store that a volume is made, trying again");
        tokio::time::sleep(RETRY).await;
    }
    made.map_err(|HostError(error)| RuntimeError::Internal(error))?;
    faults::pass(Point::VolumeMade);
    Ok(available)
}

/// First the disk, then the record of it. If that has changed since, it is somebody else's to delete: its name may be
/// another volume's by now.
pub(super) async fn delete(context: &Context, record: &Record<Volume>) -> Result<(), RuntimeError> {
    let volume = &record.value;
    context.host.remove_volume(&volume.id).await?;
    let transaction = Transaction::default().unchanged(keys::volume(&volume.id), record.revision);
    match context.records.commit(forget(transaction, volume)).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn forget(transaction: Transaction, volume: &Volume) -> Transaction {
    let transaction = transaction.delete(keys::volume(&volume.id));
    match &volume.name {
        Some(name) => transaction.delete(keys::volume_name(name)),
        None => transaction,
    }
}

/// Stores a new volume under its name, which nobody else may have.
fn named(transaction: Transaction, volume: &Volume) -> Result<Transaction, StoreError> {
    let transaction = transaction.create(keys::volume(&volume.id), volume)?;
    match &volume.name {
        Some(name) => transaction.create(keys::volume_name(name), &volume.id),
        None => Ok(transaction),
    }
}

fn check_name(name: &str) -> Result<(), RuntimeError> {
    if is_volume_name(name) {
        return Ok(());
    }
    let name: String = name.chars().take(100).collect();
    Err(RuntimeError::Volume(format!(
        "{name:?} is no name for a volume: 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or a \
         digit, and not like an id (vol-…, snap-…)"
    )))
}

fn not_available(volume: &Volume) -> RuntimeError {
    let doing = match volume.state {
        VolumeState::Creating => "made",
        _ => "deleted",
    };
    RuntimeError::Volume(format!("{} is being {doing}", shown(volume)))
}

/// Its name, or its id.
fn shown(volume: &Volume) -> String {
    volume.name.clone().unwrap_or_else(|| volume.id.to_string())
}

/// Somebody else was faster.
pub(super) fn conflict(error: StoreError, name: &str) -> RuntimeError {
    match error {
        StoreError::Conflict { key } if key.starts_with(keys::ATTACHMENTS) => RuntimeError::VolumeInUse {
            volume: name.to_owned(),
            by: "somebody else since just now".to_owned(),
        },
        StoreError::Conflict { key } if key == keys::volume_name(name) => {
            RuntimeError::VolumeExists(name.to_owned())
        }
        StoreError::Conflict { key } if key.starts_with(keys::VOLUMES) => {
            RuntimeError::Volume(format!("volume {name} has just been changed"))
        }
        error => error.into(),
    }
}
