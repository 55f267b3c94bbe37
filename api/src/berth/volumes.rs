//! CreateVolume, ListVolumes, SnapshotVolume, DeleteVolume.

use std::collections::HashMap;
use std::time::Duration;

use berth_runtime::RuntimeError;
use berth_runtime::model::task::TaskId;
use berth_runtime::model::volume::{Holder, VolumeState};
use berth_runtime::runtime::{CreateVolume, VolumeStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use super::wait_time;
use crate::app::App;
use crate::ecs::values::{seconds, tags_json, unsigned};
use crate::error::{ApiError, unexpected};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeInput {
    name: Option<String>,
    volume: Option<String>,
    #[serde(rename = "sizeInGiB")]
    size_in_gib: Option<i32>,
    snapshot: Option<String>,
    wait_seconds: Option<u64>,
}

pub(super) async fn create(app: &App, input: VolumeInput) -> Result<Value, ApiError> {
    let wait = wait(&input)?;
    let request = CreateVolume {
        name: said("name", input.name)?,
        size_gib: unsigned("sizeInGiB", input.size_in_gib)?,
        snapshot: input.snapshot.filter(|snapshot| !snapshot.is_empty()),
    };
    let made = app.runtime.create_volume(request, wait).await.map_err(refusal)?;
    Ok(json!({ "volume": volume(&made, &HashMap::new()) }))
}

pub(super) async fn list(app: &App) -> Result<Value, ApiError> {
    let volumes = app.runtime.volumes().await.map_err(refusal)?;
    let tasks = app.runtime.tasks().await.map_err(refusal)?;
    let arns = tasks
        .into_iter()
        .map(|task| (task.id.clone(), app.owner.task(&task.cluster, &task.id)))
        .collect();
    let volumes: Vec<Value> = volumes.iter().map(|status| volume(status, &arns)).collect();
    Ok(json!({ "volumes": volumes }))
}

pub(super) async fn snapshot(app: &App, input: VolumeInput) -> Result<Value, ApiError> {
    let wait = wait(&input)?;
    let of = said("volume", input.volume)?;
    let made = app.runtime.snapshot_volume(&of, input.name, wait).await;
    Ok(json!({ "volume": volume(&made.map_err(refusal)?, &HashMap::new()) }))
}

pub(super) async fn delete(app: &App, input: VolumeInput) -> Result<Value, ApiError> {
    let name = said("volume", input.volume)?;
    let deleted = app.runtime.delete_volume(&name).await.map_err(refusal)?;
    Ok(json!({ "volumeId": deleted.id.as_str(), "name": deleted.name }))
}

fn wait(input: &VolumeInput) -> Result<Duration, ApiError> {
    wait_time(input.wait_seconds)
}

fn said(member: &str, value: Option<String>) -> Result<String, ApiError> {
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| ApiError::InvalidParameter(format!("{member} can not be blank.")))
}

fn volume(status: &VolumeStatus, arns: &HashMap<TaskId, String>) -> Value {
    let volume = &status.volume;
    let state = match (volume.state, &status.holder) {
        (VolumeState::Creating, _) => "creating",
        (VolumeState::Deleting, _) => "deleting",
        (VolumeState::Available, None) => "available",
        (VolumeState::Available, Some(Holder::Task(_))) => "attached",
        (VolumeState::Available, Some(Holder::Copy)) => "copying",
    };
    let task = match &status.holder {
        Some(Holder::Task(task)) => Some(task),
        _ => None,
    };
    json!({
        "volumeId": volume.id.as_str(),
        "name": volume.name,
        "kind": volume.kind.as_str(),
        "sizeInGiB": volume.size_gib,
        "usedBytes": status.used_bytes,
        "state": state,
        "taskArn": task.and_then(|task| arns.get(task)),
        "source": volume.source.as_ref().map(|source| source.as_str()),
        "tags": tags_json(&volume.tags),
        "createdAt": seconds(volume.created_at),
    })
}

fn refusal(error: RuntimeError) -> ApiError {
    refused(&error).unwrap_or_else(|| match error {
        RuntimeError::Capacity(shortage) => ApiError::InvalidParameter(format!(
            "RESOURCE:{}: this host has no room: {shortage}.",
            shortage.resource
        )),
        error => unexpected(&error),
    })
}

/// What the API says of what cannot be done with a volume, wherever it is asked for.
pub(crate) fn refused(error: &RuntimeError) -> Option<ApiError> {
    Some(match error {
        RuntimeError::VolumeNotFound(name) => {
            ApiError::ResourceNotFound(format!("There is no volume or snapshot '{name}'."))
        }
        RuntimeError::VolumeExists(name) => {
            ApiError::InvalidParameter(format!("There is a volume or a snapshot named '{name}' already."))
        }
        RuntimeError::VolumeInUse { volume, by } => {
            ApiError::InvalidParameter(format!("The volume '{volume}' is in use by {by}."))
        }
        RuntimeError::Volume(reason) => ApiError::InvalidParameter(format!("{reason}.")),
        _ => return None,
    })
}
