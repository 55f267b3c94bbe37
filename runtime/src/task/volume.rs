//! The volume of a task: made for it where it is to be, and released with it. That nobody else has it meanwhile is seen to
//! where it is given ([`crate::runtime`]) and where the task's end is stored.

use super::host::{HostError, VolumeDisk};
use super::supervisor::{Context, to_host_error};
use crate::faults::{self, Point};
use crate::model::task::Task;
use crate::model::volume::{TaskVolume, Volume, VolumeState};
use crate::state::keys;
use crate::store::{Record, StoreError, Transaction};

impl Context {
    /// Makes the disk of a volume that is made for the task, before anything else of it and before it is billed.
    pub(super) async fn make_volume(&self, task: &Task) -> Result<(), HostError> {
        let Some(own) = task.volume.as_ref().filter(|volume| volume.made) else {
            return Ok(());
        };
        let failed = |error: HostError| HostError(format!("CannotCreateVolumeError: {error}"));
        let record = self.volume(own).await.map_err(failed)?;
        let Record { value, revision } =
            record.ok_or_else(|| failed(HostError(format!("the record of volume {} is missing", own.id))))?;
        let disk = VolumeDisk {
            id: value.id.clone(),
            size_gib: value.size_gib,
            source: value.source.clone(),
        };
        self.host.make_volume(disk).await.map_err(failed)?;
        let made = Volume {
            state: VolumeState::Available,
            ..value
        };
        let transaction = Transaction::default()
            .replace(keys::volume(&made.id), revision, &made)
            .map_err(to_host_error)?;
        self.records.commit(transaction).await.map_err(to_host_error)?;
        faults::pass(Point::VolumeMade);
        Ok(())
    }

    /// Removes a volume that was made for the task, unless it is to stay and was really made. What stays is free for
    /// others once the task's end is stored.
    pub(super) async fn release_volume(&self, task: &Task) -> Result<(), HostError> {
        let Some(own) = task.volume.as_ref().filter(|volume| volume.made) else {
            return Ok(());
        };
        let Some(record) = self.volume(own).await? else {
            return Ok(());
        };
        if !own.delete_on_termination && record.value.state == VolumeState::Available {
            return Ok(());
        }
        self.host.remove_volume(&own.id).await?;
        let transaction = Transaction::default().delete(keys::volume(&own.id));
        self.records.commit(transaction).await.map_err(to_host_error)?;
        Ok(())
    }

    async fn volume(&self, own: &TaskVolume) -> Result<Option<Record<Volume>>, HostError> {
        let found: Result<_, StoreError> = self.records.get(&keys::volume(&own.id)).await;
        found.map_err(to_host_error)
    }
}
