//! Berth's own service, for what ECS has no operation for. It is spoken like ECS: JSON 1.1, target prefix
//! `Berth_20261101`, SigV4 with the service name `berth`. A `task` is a task's id or ARN.
//!
//! | operation | input | output |
//! |---|---|---|
//! | `GetBill` | `task?`, `since?` (epoch seconds) | `currency`, `minimumSeconds`, `lines`, `totalNanos`, `total` |
//! | `GetOutput` | `task`, `container?`, `position`, `waitSeconds` (at most 20) | `events`, `position`, `end` |
//! | `GetPullStatus` | `task` | `pull`: `phase`, `layersDone`, `layersTotal`, `bytesDone`, `bytesTotal`; or null |
//! | `WaitTask` | `task`, `version`, `waitSeconds` (at most 20) | `task` as DescribeTasks shows it, `version` |
//! | `PauseTask`, `ResumeTask` | `task` | `task` as DescribeTasks shows it; a paused one has the attribute `berth.paused-at` |
//! | `GetMachineMetrics` | `task` | `metrics`: what the task's machine counts (names and units in [`metrics`]); or null |
//! | `GetUsage` | `task?`, `measurements?` (at most 60, 2 if not said) | `tasks`: `taskArn`, `containers`, `measurements` of the last seconds, oldest first ([`usage`]) |
//! | `ExecuteCommand` | `task`, `container?`, `command`, `environment?`, `terminal?` (`columns`, `rows`), with the header `Upgrade: berth-command` | status 101, then the frames of `berth_protocol::exec` |
//! | `ListImages` | | `images`: `image`, `digest`, `sizeBytes`, `lastUsedAt`, `tasks`; `usedBytes`, `budgetBytes` |
//! | `PullImage` | `image`, `waitSeconds` (at most 20) | `image` as in ListImages, without `tasks`, once it is here; before, `pull` as in GetPullStatus, and the same request again waits on. The pull goes on meanwhile |
//! | `RemoveImage` | `image` | `removed`, `freedBytes` |
//! | `PruneImages` | `unusedSeconds?` | `images`: what was removed; `freedBytes` |
//! | `CreateVolume` | `name`, `sizeInGiB?`, `snapshot?`, `waitSeconds` (at most 20) | `volume` as in ListVolumes; it goes on being made after the wait |
//! | `ListVolumes` | | `volumes`: `volumeId`, `name`, `kind` (volume, snapshot), `sizeInGiB`, `usedBytes`, `state` (creating, available, attached, copying, deleting), `taskArn`, `source`, `tags`, `createdAt` |
//! | `SnapshotVolume` | `volume` (name or id), `name?`, `waitSeconds` (at most 20) | `volume` as in ListVolumes: the snapshot |
//! | `DeleteVolume` | `volume` (name or id, of a snapshot too) | `volumeId`, `name` |
//! | `RotateSecretKeys` | | `key`: the new key's id; `values`: how many values were sealed anew with it |
//! | `DescribeSecretKeys` | | `keys`: ids of the keys that are live, oldest first; more than one while a rotation is not ended |
//! | `GetVersion` | | `version` |
//! | `DescribeNetworks` | | `vpcs`, `subnets`, `securityGroups`, `dnsServers` |
//!
//! Amounts of money come twice: as integers of 10^-9 of the currency (`totalNanos`), and as exact decimals (`total`).
//! An event of `GetOutput` is a line of output, or a piece of a long one: `data` is base64, and `newline` says whether
//! a newline followed. Reading on from the `position` of each answer gives every byte once; `end` says that there will
//! be no more.

mod bill;
mod exec;
mod images;
mod metrics;
mod network;
mod secrets;
mod usage;
mod volumes;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::RuntimeError;
use berth_runtime::model::log::OutputStream;
use berth_runtime::model::task::TaskId;
use berth_runtime::runtime::PullStatus;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::decode::shape;
use crate::ecs::task::{encode, zones};
use crate::error::{ApiError, unexpected};

const MAX_WAIT_SECONDS: u64 = 20;
/// Most output in an answer.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OneTask {
    task: Option<String>,
    container: Option<String>,
    position: Option<u64>,
    version: Option<u64>,
    wait_seconds: Option<u64>,
}

pub(crate) use exec::{EXECUTE_COMMAND, PROTOCOL, execute};
pub(crate) use volumes::refused as volume_refused;

pub(crate) async fn call(app: &App, operation: &str, body: &[u8]) -> Result<Value, ApiError> {
    match operation {
        "GetBill" => bill::get(app, shape(body)?).await,
        "GetOutput" => output(app, shape(body)?).await,
        "GetPullStatus" => pull_status(app, shape(body)?),
        "WaitTask" => wait(app, shape(body)?).await,
        "GetMachineMetrics" => metrics::get(app, shape(body)?).await,
        "GetUsage" => usage::get(app, shape(body)?).await,
        "PauseTask" => pause(app, shape(body)?).await,
        "ResumeTask" => resume(app, shape(body)?).await,
        "ListImages" => images::list(app).await,
        "PullImage" => images::pull(app, shape(body)?).await,
        "RemoveImage" => images::remove(app, shape(body)?).await,
        "PruneImages" => images::prune(app, shape(body)?).await,
        "CreateVolume" => volumes::create(app, shape(body)?).await,
        "ListVolumes" => volumes::list(app).await,
        "SnapshotVolume" => volumes::snapshot(app, shape(body)?).await,
        "DeleteVolume" => volumes::delete(app, shape(body)?).await,
        "RotateSecretKeys" => secrets::rotate(app).await,
        "DescribeSecretKeys" => Ok(secrets::keys(app)),
        "GetVersion" => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
        "DescribeNetworks" => network::describe(app).await,
        other => {
            let other: String = other.chars().take(100).collect();
            Err(ApiError::UnknownOperation(format!(
                "There is no operation '{other}' in Berth."
            )))
        }
    }
}

async fn output(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    let task = app.runtime.task(&id).await.map_err(refusal)?;
    let container = match &input.container {
        Some(name) => task.containers.iter().find(|container| container.name == *name),
        None => task.containers.first(),
    };
    let container = container
        .ok_or_else(|| ApiError::ResourceNotFound("The specified container was not found.".to_owned()))?;
    let position = input.position.unwrap_or(0);
    let wait = wait_time(input.wait_seconds)?;
    let output = app
        .runtime
        .output(&id, &container.name, position, MAX_OUTPUT_BYTES, wait)
        .await;
    let (events, end) = output.map_err(refusal)?;
    let position = events.last().map_or(position, |event| event.next_position);
    let events = events.iter().map(|event| {
        json!({
            "position": event.position,
            "nextPosition": event.next_position,
            "timestamp": event.timestamp.0,
            "stream": match event.stream {
                OutputStream::Stdout => "stdout",
                OutputStream::Stderr => "stderr",
            },
            "data": STANDARD.encode(&event.bytes),
            "newline": event.newline,
        })
    });
    Ok(json!({ "events": events.collect::<Vec<_>>(), "position": position, "end": end }))
}

fn pull_status(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    Ok(json!({ "pull": app.runtime.pull_status(&id).map(progress) }))
}

fn progress(pull: PullStatus) -> Value {
    json!({
        "phase": pull.phase,
        "layersDone": pull.layers_done,
        "layersTotal": pull.layers_total,
        "bytesDone": pull.bytes_done,
        "bytesTotal": pull.bytes_total,
    })
}

async fn wait(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    let wait = wait_time(input.wait_seconds)?;
    let task = app
        .runtime
        .task_after(&id, input.version.unwrap_or(0), wait)
        .await
        .map_err(refusal)?;
    Ok(json!({ "task": encode::task(&app.owner, &zones(app).await?, &task, true), "version": task.version }))
}

async fn pause(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    let task = app.runtime.pause_task(&id).await.map_err(refusal)?;
    Ok(json!({ "task": encode::task(&app.owner, &zones(app).await?, &task, true) }))
}

async fn resume(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    let task = app.runtime.resume_task(&id).await.map_err(refusal)?;
    Ok(json!({ "task": encode::task(&app.owner, &zones(app).await?, &task, true) }))
}

fn task_id(app: &App, name: Option<&str>) -> Result<TaskId, ApiError> {
    let name = name.ok_or_else(|| ApiError::InvalidParameter("task can not be blank.".to_owned()))?;
    app.owner.parse_task(name)?.id.ok_or_else(task_not_found)
}

fn wait_time(seconds: Option<u64>) -> Result<Duration, ApiError> {
    match seconds.unwrap_or(0) {
        seconds @ ..=MAX_WAIT_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err(ApiError::InvalidParameter(format!(
            "waitSeconds must be at most {MAX_WAIT_SECONDS}."
        ))),
    }
}

fn task_not_found() -> ApiError {
    ApiError::ResourceNotFound("The specified task was not found.".to_owned())
}

fn refusal(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::TaskNotFound(_) => task_not_found(),
        RuntimeError::ContainerNotFound(_) => {
            ApiError::ResourceNotFound("The specified container was not found.".to_owned())
        }
        RuntimeError::ContainerNotRunning(name) => {
            ApiError::InvalidParameter(format!("The container '{name}' does not run."))
        }
        RuntimeError::Paused => ApiError::InvalidParameter("The task is paused; resume it first.".to_owned()),
        RuntimeError::NotRunning(status) => ApiError::InvalidParameter(format!(
            "The task is {}; only a task that is RUNNING can be paused or resumed.",
            status.as_str()
        )),
        RuntimeError::InvalidPosition(position) => {
            ApiError::InvalidParameter(format!("There is no output at position {position}."))
        }
        error => unexpected(&error),
    }
}
