//! Operations on tasks.

pub(crate) mod encode;
pub(crate) mod execute;
pub(crate) mod protection;
mod request;
mod run;
#[cfg(test)]
pub(crate) mod tests;
mod volume;
#[cfg(test)]
mod volume_tests;

pub(super) use run::run;

use berth_runtime::RuntimeError;
use berth_runtime::model::task::{DesiredStatus, StopCode, Task};
use serde_json::{Value, json};

use self::encode::Zones;
use super::definition::validate::unsupported_value;
use super::values::{MAX_RESULTS, includes, limit, listed};
use super::{cluster, shapes};
use crate::app::App;
use crate::error::{ApiError, unexpected};
use crate::page::{Order, page};

const MAX_REASON_CHARS: usize = 1024;
const NOT_FOUND: &str = "The referenced task was not found.";

pub(super) async fn stop(app: &App, input: shapes::StopTask) -> Result<Value, ApiError> {
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let reason = input.reason.filter(|reason| !reason.is_empty());
    let reason = reason.unwrap_or_else(|| "Task stopped by user".to_owned());
    if reason.chars().count() > MAX_REASON_CHARS {
        return Err(ApiError::InvalidParameter(format!(
            "reason must have at most {MAX_REASON_CHARS} characters."
        )));
    }
    let task = find(app, &cluster, &input.task.unwrap_or_default()).await?;
    let task = task.ok_or_else(|| ApiError::InvalidParameter(NOT_FOUND.to_owned()))?;
    let stopped = app
        .runtime
        .stop_task(&task.id, StopCode::UserInitiated, &reason)
        .await;
    let stopped = stopped.map_err(|error| match error {
        RuntimeError::TaskNotFound(_) => ApiError::InvalidParameter(NOT_FOUND.to_owned()),
        error => unexpected(&error),
    })?;
    Ok(json!({ "task": encode::task(&app.owner, &zones(app).await?, &stopped, true) }))
}

pub(super) async fn describe(app: &App, input: shapes::DescribeTasks) -> Result<Value, ApiError> {
    let asked = input.tasks.unwrap_or_default();
    if asked.is_empty() {
        return Err(ApiError::InvalidParameter("Tasks cannot be empty.".to_owned()));
    }
    if asked.len() > MAX_RESULTS {
        return Err(ApiError::InvalidParameter(format!(
            "Tasks cannot have more than {MAX_RESULTS} elements."
        )));
    }
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let zones = zones(app).await?;
    let with_tags = includes(input.include.as_deref(), "TAGS");
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &asked {
        match find(app, &cluster, name).await? {
            Some(task) => found.push(encode::task(&app.owner, &zones, &task, with_tags)),
            None => {
                let id = name.rsplit('/').next().unwrap_or_default();
                let arn = format!(
                    "{}/{id}",
                    app.owner.cluster(&cluster).replacen(":cluster/", ":task/", 1)
                );
                failures.push(json!({ "arn": arn, "reason": "MISSING" }));
            }
        }
    }
    Ok(json!({ "tasks": found, "failures": failures }))
}

pub(super) async fn list(app: &App, input: shapes::ListTasks) -> Result<Value, ApiError> {
    for (member, value, known) in [
        (
            "desiredStatus",
            &input.desired_status,
            ["RUNNING", "PENDING", "STOPPED", ""].as_slice(),
        ),
        (
            "launchType",
            &input.launch_type,
            &["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"],
        ),
    ] {
        if value.as_deref().is_some_and(|value| !known.contains(&value)) {
            return Err(ApiError::InvalidParameter(format!(
                "{member} must be one of {}.",
                known.join(" ")
            )));
        }
    }
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let question = format!(
        "ListTasks {cluster} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        input.family,
        input.started_by,
        input.desired_status,
        input.launch_type,
        input.service_name,
        input.container_instance,
        input.daemon_name
    );
    let mut tasks = app.runtime.tasks().await.map_err(|error| unexpected(&error))?;
    tasks.retain(|task| task.cluster == cluster && wanted(&input, task));
    // Newest first.
    let key = |task: &Task| format!("{:020} {}", task.created_at.0, task.id);
    let token = input.next_token.as_deref();
    let (tasks, next) = page(
        tasks,
        key,
        Order::Descending,
        &question,
        token,
        limit(input.max_results)?,
    )?;
    let arns = tasks
        .iter()
        .map(|task| app.owner.task(&task.cluster, &task.id))
        .collect();
    Ok(listed("taskArns", arns, next))
}

/// StartTask places tasks on container instances, of which there are none.
pub(super) fn start() -> Result<Value, ApiError> {
    Err(ApiError::InvalidParameter(
        "No Container Instances were found in your cluster.".to_owned(),
    ))
}

/// Accepts the one capacity provider there is.
pub(super) fn capacity_provider(name: &str) -> Result<(), ApiError> {
    match name {
        "FARGATE" => Ok(()),
        "FARGATE_SPOT" => Err(ApiError::Client(unsupported_value("capacityProvider", name))),
        _ => Err(ApiError::InvalidParameter(
            "The specified capacity provider was not found. Specify a valid name or ARN and try again."
                .to_owned(),
        )),
    }
}

/// Whether ListTasks shows this task of its cluster.
fn wanted(input: &shapes::ListTasks, task: &Task) -> bool {
    let desired = match input.desired_status.as_deref() {
        None | Some("" | "RUNNING") => task.desired_status == DesiredStatus::Running,
        Some("STOPPED") => task.desired_status == DesiredStatus::Stopped,
        // ECS never gives a task the desired status PENDING.
        Some(_) => false,
    };
    desired
        && input
            .family
            .as_deref()
            .is_none_or(|family| family == task.definition.family)
        && input
            .started_by
            .as_deref()
            .is_none_or(|by| task.started_by.as_deref() == Some(by))
        && input
            .launch_type
            .as_deref()
            .is_none_or(|launch_type| launch_type == "FARGATE")
        && input.service_name.is_none()
        && input.container_instance.is_none()
        && input.daemon_name.is_none()
}

/// A task of this cluster.
async fn find(app: &App, cluster: &str, name: &str) -> Result<Option<Task>, ApiError> {
    let name = app.owner.parse_task(name)?;
    if let Some(of) = name.cluster.filter(|of| of != cluster) {
        return Err(ApiError::InvalidParameter(format!(
            "Invalid identifier: Identifier is for cluster {of}. Your cluster is {cluster}"
        )));
    }
    let Some(id) = name.id else { return Ok(None) };
    match app.runtime.task(&id).await {
        Ok(task) => Ok(Some(task).filter(|task| task.cluster == cluster)),
        Err(RuntimeError::TaskNotFound(_)) => Ok(None),
        Err(error) => Err(unexpected(&error)),
    }
}

pub(crate) async fn zones(app: &App) -> Result<Zones, ApiError> {
    let subnets = app.runtime.subnets().await.map_err(|error| unexpected(&error))?;
    Ok(subnets
        .into_iter()
        .map(|subnet| (subnet.id, subnet.availability_zone))
        .collect())
}
