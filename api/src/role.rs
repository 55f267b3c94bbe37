//! What a task may do with the credentials of its role. There are no policies here, so every role may do the same, and that
//! is little: what concerns the task itself, names of what there is, and the secrets that the task was started with.

#[cfg(test)]
mod tests;

use berth_runtime::model::definition::TaskDefinition;
use berth_runtime::model::secret::SecretSource;
use berth_runtime::model::task::{Task, TaskId};
use serde::Deserialize;

use crate::app::{App, Operation, Route, Service};
use crate::arn::Owner;
use crate::decode::shape;
use crate::error::{ApiError, unexpected};
use crate::reply::Reply;
use crate::{other, secretsmanager, ssm};

/// What an operation is about, of all the services.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct About {
    tasks: Vec<String>,
    #[serde(rename = "taskDefinition")]
    task_definition: String,
    #[serde(rename = "logGroupName")]
    log_group_name: String,
    #[serde(rename = "logGroupIdentifier")]
    log_group_identifier: Option<String>,
    #[serde(rename = "logStreamName")]
    log_stream_name: String,
    #[serde(rename = "SecretId")]
    secret_id: String,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Names")]
    names: Vec<String>,
}

/// Refuses what a task that signs with its role's credentials may not do.
pub(crate) async fn admit(
    app: &App,
    id: &TaskId,
    route: &Route,
    service: &str,
    body: &[u8],
) -> Result<(), ApiError> {
    let role = role(app, id).await?;
    let action = match route {
        Route::NoTarget if other::asks_who_calls(service, body) => return Ok(()),
        Route::Operation(operation) => {
            if permitted(app, id, operation, body).await? {
                return Ok(());
            }
            format!("{}:{}", operation.service.signing_name(), operation.name)
        }
        _ => service.to_owned(),
    };
    let action: String = action.chars().take(100).collect();
    Err(ApiError::AccessDenied(format!(
        "User: {} is not authorized to perform: {action}",
        app.owner.assumed_role(&role, id)
    )))
}

/// Who the caller is.
pub(crate) async fn identity(app: &App, id: &TaskId) -> Reply {
    match role(app, id).await {
        Ok(role) => {
            let arn = app.owner.assumed_role(&role, id);
            other::caller_identity(&app.owner.account_id, &arn, id.as_str())
        }
        Err(error) => other::refusal("sts", &error),
    }
}

/// The role of a task that lives; credentials do not outlive it.
async fn role(app: &App, id: &TaskId) -> Result<String, ApiError> {
    let role = app.runtime.task_role(id).await;
    Ok(role.ok().flatten().ok_or(ApiError::ExpiredToken)?.arn)
}

async fn permitted(app: &App, id: &TaskId, operation: &Operation, body: &[u8]) -> Result<bool, ApiError> {
    let names_only = [
        "ListClusters",
        "DescribeClusters",
        "ListTasks",
        "ListTaskDefinitions",
        "ListTaskDefinitionFamilies",
    ];
    if operation.service == Service::Ecs && names_only.contains(&operation.name.as_str()) {
        return Ok(true);
    }
    // A body that is no such shape is about nothing that is the task's.
    let about: About = shape(body).unwrap_or_default();
    let task = app.runtime.task(id).await.map_err(|error| unexpected(&error))?;
    let definition = app
        .runtime
        .definition(&task.definition.family, Some(task.definition.revision))
        .await
        .map_err(|error| unexpected(&error))?;
    Ok(about.is_of(operation, &app.owner, &task, &definition))
}

impl About {
    /// Whether the operation reads what is this task's, and nothing else.
    fn is_of(&self, operation: &Operation, owner: &Owner, task: &Task, definition: &TaskDefinition) -> bool {
        let sources = || {
            let containers = definition.spec.containers.iter();
            containers.flat_map(|container| container.secrets.iter().map(|secret| &secret.source))
        };
        let parameter = |text: &str| {
            let named = ssm::names::parse(text, owner);
            let known = |wanted: &String| {
                sources().any(|source| {
                    matches!(source, SecretSource::Parameter { names, .. } if names.contains(wanted))
                })
            };
            named.is_ok_and(|named| named.names.iter().all(known))
        };
        match (operation.service, operation.name.as_str()) {
            (Service::Ecs, "DescribeTasks" | "GetTaskProtection" | "UpdateTaskProtection") => {
                let own = |name: &String| {
                    owner
                        .parse_task(name)
                        .is_ok_and(|name| name.id.as_ref() == Some(&task.id))
                };
                !self.tasks.is_empty() && self.tasks.iter().all(own)
            }
            (Service::Ecs, "DescribeTaskDefinition") => {
                let named = owner.parse_definition(&self.task_definition);
                named.is_ok_and(|named| {
                    named.family == definition.id.family && named.revision == Some(definition.id.revision)
                })
            }
            (Service::Logs, "GetLogEvents") => {
                let own = |log: &berth_runtime::model::task::LogTarget| {
                    log.group == self.log_group_name && log.stream == self.log_stream_name
                };
                let mut logs = task
                    .containers
                    .iter()
                    .filter_map(|container| container.log.as_ref());
                self.log_group_identifier.is_none() && logs.any(own)
            }
            (Service::SecretsManager, "GetSecretValue" | "DescribeSecret") => {
                let wanted = secretsmanager::id(owner, Some(&self.secret_id)).unwrap_or_default();
                !wanted.is_empty()
                    && sources().any(|source| matches!(source, SecretSource::Secret { resource, .. } if resource == wanted))
            }
            (Service::Ssm, "GetParameter") => self.name.as_deref().is_some_and(parameter),
            (Service::Ssm, "GetParameters") => {
                !self.names.is_empty() && self.names.iter().all(|name| parameter(name))
            }
            _ => false,
        }
    }
}
