//! AWS Secrets Manager, target prefix `secretsmanager`: which operation is which function.

mod list;
mod read;
mod shapes;
#[cfg(test)]
mod tests;
mod write;

use berth_runtime::secrets::{SecretError, SecretStore};
use serde_json::Value;

use crate::arn::Owner;
use crate::decode::secret_shape as shape;
use crate::error::ApiError;
use crate::operations;

const MAX_ID_CHARS: usize = 2048;
const NOT_FOUND: &str = "Secrets Manager can't find the specified secret.";

pub(crate) async fn call(
    store: &SecretStore,
    owner: &Owner,
    operation: &str,
    body: &[u8],
) -> Result<Value, ApiError> {
    match operation {
        "CreateSecret" => write::create(store, owner, shape(body)?).await,
        "PutSecretValue" => write::put_value(store, owner, shape(body)?).await,
        "UpdateSecret" => write::update(store, owner, shape(body)?).await,
        "UpdateSecretVersionStage" => write::move_stage(store, owner, shape(body)?).await,
        "DeleteSecret" => write::delete(store, owner, shape(body)?).await,
        "RestoreSecret" => write::restore(store, owner, shape(body)?).await,
        "TagResource" => write::tag(store, owner, shape(body)?).await,
        "UntagResource" => write::untag(store, owner, shape(body)?).await,
        "GetSecretValue" => read::value(store, owner, shape(body)?).await,
        "DescribeSecret" => read::describe(store, owner, shape(body)?).await,
        "GetResourcePolicy" => read::policy(store, owner, shape(body)?).await,
        "ListSecretVersionIds" => list::versions(store, owner, shape(body)?).await,
        "ListSecrets" => list::secrets(store, owner, shape(body)?).await,
        other if operations::SECRETS_MANAGER.binary_search(&other).is_ok() => {
            Err(invalid_request(format!("Berth does not support {other} yet.")))
        }
        other => {
            let other: String = other.chars().take(100).collect();
            Err(ApiError::UnknownOperation(format!(
                "There is no operation '{other}' in Secrets Manager."
            )))
        }
    }
}

/// Name, or name and suffix, from a name or an ARN.
pub(crate) fn id<'a>(owner: &Owner, text: Option<&'a str>) -> Result<&'a str, ApiError> {
    let text = text.unwrap_or_default();
    if text.is_empty() || text.len() > MAX_ID_CHARS {
        return Err(invalid_parameter(format!(
            "SecretId must have 1 to {MAX_ID_CHARS} characters."
        )));
    }
    match owner.resource(text, "secretsmanager")? {
        Some(resource) => resource
            .strip_prefix("secret:")
            .ok_or_else(|| invalid_parameter("The ARN is not one of a secret.")),
        None => Ok(text),
    }
}

fn invalid_parameter(message: impl Into<String>) -> ApiError {
    ApiError::InvalidParameter(message.into())
}

fn invalid_request(message: impl Into<String>) -> ApiError {
    ApiError::of_service("InvalidRequestException", message)
}

fn exists(message: impl Into<String>) -> ApiError {
    ApiError::of_service("ResourceExistsException", message)
}

fn invalid_token(_: crate::page::InvalidToken) -> ApiError {
    ApiError::of_service("InvalidNextTokenException", "The NextToken value is invalid.")
}

/// What this service says of the store's errors.
fn refusal(error: SecretError) -> ApiError {
    let limit = |message: String| ApiError::of_service("LimitExceededException", message);
    match error {
        SecretError::SecretNotFound(_) => ApiError::ResourceNotFound(NOT_FOUND.to_owned()),
        SecretError::SecretExists(name) => exists(format!(
            "The operation failed because the secret {name} already exists."
        )),
        SecretError::SecretDeleted(_) => invalid_request(
            "You can't perform this operation on the secret because it was marked for deletion.",
        ),
        SecretError::SecretVersionNotFound(_, version) => ApiError::ResourceNotFound(format!(
            "Secrets Manager can't find the specified secret value for VersionId: {version}"
        )),
        SecretError::SecretStageNotFound(_, stage) => ApiError::ResourceNotFound(format!(
            "Secrets Manager can't find the specified secret value for staging label: {stage}"
        )),
        SecretError::SecretStageElsewhere(..) => {
            invalid_request("You provided a VersionStage that is not associated to the provided VersionId.")
        }
        SecretError::SecretStageTaken(_, stage, version) => invalid_parameter(format!(
            "The parameter RemoveFromVersionId can't be empty. Staging label {stage} is currently attached to version \
             {version}, so you must explicitly reference that version in RemoveFromVersionId."
        )),
        SecretError::SecretVersionExists(_, version) => exists(format!(
            "You can't use ClientRequestToken {version} because that value is already in use for a version of secret \
             with another value."
        )),
        SecretError::SecretLimit(there) => limit(format!("There are {there} secrets already.")),
        SecretError::SecretVersionLimit(most) => limit(format!(
            "A secret cannot have more than {most} versions with staging labels."
        )),
        error => ApiError::server(&error),
    }
}
