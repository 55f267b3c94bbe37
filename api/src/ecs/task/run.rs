//! RunTask.

use berth_runtime::RuntimeError;
use berth_runtime::model::task::Task;
use berth_runtime::runtime::RunTask;
use serde_json::{Value, json};

use super::{encode, request, volume};
use crate::app::App;
use crate::arn::Owner;
use crate::berth::volume_refused;
use crate::ecs::{cluster, shapes};
use crate::error::{ApiError, unexpected};

pub(crate) async fn run(app: &App, input: shapes::RunTaskShape, body: &[u8]) -> Result<Value, ApiError> {
    let name = request::precheck(&input, &app.owner)?;
    let cluster = cluster::active(app, input.cluster.as_deref()).await?;
    let client_token = request::client_token(input.client_token.as_deref(), body)?;
    // Before the definition is looked up, which may be gone since the first request.
    if let Some((token, digest)) = &client_token {
        let made = app.runtime.tasks_of_token(&cluster, token, digest).await;
        if let Some(tasks) = made.map_err(|error| refusal(&app.owner, error))? {
            return answer(app, &tasks).await;
        }
    }
    let definition = app.runtime.definition(&name.family, name.revision).await;
    let definition = definition.map_err(|error| refusal(&app.owner, error))?;
    let network = request::network(&input, &definition)?;
    let overrides = request::overrides(input.overrides.as_ref(), &definition)?;
    let tags = request::task_tags(&input, &definition, &cluster)?;
    let volume = volume::launch_volume(&input, &definition)?;
    let run = RunTask {
        volume,
        subnet_id: Some(roomiest(app, &network.subnets).await?),
        definition: definition.id,
        count: input
            .count
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1),
        overrides,
        security_groups: network.security_groups,
        internet: network.internet,
        group: input.group.filter(|group| !group.is_empty()),
        started_by: input.started_by.filter(|by| !by.is_empty()),
        enable_execute_command: input.enable_execute_command.unwrap_or(false),
        tags,
        client_token,
        cluster: cluster.clone(),
    };
    match app.runtime.run_task(run).await {
        Ok(tasks) => answer(app, &tasks).await,
        Err(RuntimeError::Capacity(shortage)) => {
            let failure = json!({
                "arn": app.owner.cluster(&cluster),
                "reason": format!("RESOURCE:{}", shortage.resource),
                "detail": shortage.to_string(),
            });
            Ok(json!({ "tasks": [], "failures": [failure] }))
        }
        Err(error) => Err(refusal(&app.owner, error)),
    }
}

async fn answer(app: &App, tasks: &[Task]) -> Result<Value, ApiError> {
    let zones = super::zones(app).await?;
    let tasks: Vec<Value> = tasks
        .iter()
        .map(|task| encode::task(&app.owner, &zones, task, true))
        .collect();
    Ok(json!({ "tasks": tasks, "failures": [] }))
}

/// Of several subnets, all of which must exist, the one with the most addresses left.
async fn roomiest(app: &App, subnets: &[String]) -> Result<String, ApiError> {
    let known = app.runtime.subnets().await.map_err(|error| unexpected(&error))?;
    let mut best: Option<(u64, &String)> = None;
    for id in subnets {
        if !known.iter().any(|subnet| subnet.id == *id) {
            return Err(refusal(&app.owner, RuntimeError::SubnetNotFound(id.clone())));
        }
        let free = match subnets {
            [_] => 0,
            _ => app
                .runtime
                .available_addresses(id)
                .await
                .map_err(|error| unexpected(&error))?,
        };
        if best.is_none_or(|(most, _)| free > most) {
            best = Some((free, id));
        }
    }
    let (_, id) = best.ok_or_else(|| ApiError::InvalidParameter("subnets can not be empty.".to_owned()))?;
    Ok(id.clone())
}

/// What RunTask says of the runtime's errors.
pub(super) fn refusal(owner: &Owner, error: RuntimeError) -> ApiError {
    if let Some(refused) = volume_refused(&error) {
        return match refused {
            // RunTask has no other name for what is not there.
            ApiError::ResourceNotFound(message) => ApiError::InvalidParameter(message),
            refused => refused,
        };
    }
    let id = |id: &str| id.chars().take(100).collect::<String>();
    ApiError::InvalidParameter(match error {
        RuntimeError::ClusterNotFound(_) => return ApiError::ClusterNotFound,
        RuntimeError::DefinitionNotFound(_) => {
            return ApiError::Client("TaskDefinition not found.".to_owned());
        }
        RuntimeError::DefinitionInactive(_) => {
            return ApiError::Client("TaskDefinition is inactive".to_owned());
        }
        RuntimeError::TokenConflict(tasks) => {
            let arn = |task: &Task| owner.task(&task.cluster, &task.id);
            return ApiError::Conflict {
                resource_ids: tasks.iter().map(arn).collect(),
            };
        }
        RuntimeError::SubnetNotFound(subnet) => {
            let subnet = id(&subnet);
            format!(
                "Error retrieving subnet information for [{subnet}]: The subnet ID '{subnet}' does not exist \
                 (ErrorCode: InvalidSubnetID.NotFound)"
            )
        }
        RuntimeError::SecurityGroupNotFound(group) => {
            let group = id(&group);
            format!(
                "Error retrieving security group information for [{group}]: The security group '{group}' does not \
                 exist (ErrorCode: InvalidGroup.NotFound)"
            )
        }
        RuntimeError::SecurityGroupElsewhere { group, subnet } => {
            format!(
                "Security group {} and subnet {} belong to different networks.",
                id(&group),
                id(&subnet)
            )
        }
        RuntimeError::LogGroupNotFound(_) => {
            return ApiError::Client(
                "ResourceInitializationError: failed to validate logger args: The specified log group does not exist."
                    .to_owned(),
            );
        }
        RuntimeError::ContainerNotFound(name) => {
            format!(
                "Override for container named {} is not a container in the TaskDefinition.",
                id(&name)
            )
        }
        error => return unexpected(&error),
    })
}
