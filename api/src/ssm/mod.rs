//! The parameters of AWS Systems Manager, target prefix `AmazonSSM`: which operation is which function. Nothing else of
//! Systems Manager is here.

mod get;
mod list;
pub(crate) mod names;
mod put;
mod shapes;
mod tags;
#[cfg(test)]
mod tests;

use berth_runtime::secrets::{SecretError, SecretStore};
use serde_json::Value;

use crate::arn::Owner;
use crate::decode::secret_shape as shape;
use crate::error::ApiError;
use crate::operations;

/// The key that sealed values are said to be encrypted with; there is no other.
const KEY_ALIAS: &str = "alias/aws/ssm";

pub(crate) async fn call(
    store: &SecretStore,
    owner: &Owner,
    operation: &str,
    body: &[u8],
) -> Result<Value, ApiError> {
    match operation {
        "PutParameter" => put::put(store, owner, shape(body)?).await,
        "GetParameter" => get::one(store, owner, shape(body)?).await,
        "GetParameters" => get::several(store, owner, shape(body)?).await,
        "GetParametersByPath" => get::by_path(store, owner, shape(body)?).await,
        "GetParameterHistory" => get::history(store, owner, shape(body)?).await,
        "DescribeParameters" => list::describe(store, owner, shape(body)?).await,
        "DeleteParameter" => put::delete(store, owner, shape(body)?).await,
        "DeleteParameters" => put::delete_several(store, owner, shape(body)?).await,
        "AddTagsToResource" => tags::add(store, shape(body)?).await,
        "RemoveTagsFromResource" => tags::remove(store, shape(body)?).await,
        "ListTagsForResource" => tags::list(store, shape(body)?).await,
        "LabelParameterVersion" | "UnlabelParameterVersion" => Err(ApiError::of_service(
            "UnsupportedOperationException",
            "Berth keeps no labels of parameter versions: name a version by its number.",
        )),
        other if operations::SSM.binary_search(&other).is_ok() => Err(ApiError::of_service(
            "UnsupportedOperationException",
            format!(
                "Berth does not support {other}: it has the Parameter Store of Systems Manager and nothing else."
            ),
        )),
        other => {
            let other: String = other.chars().take(100).collect();
            Err(ApiError::UnknownOperation(format!(
                "There is no operation '{other}' in Systems Manager."
            )))
        }
    }
}

fn validation(message: impl Into<String>) -> ApiError {
    ApiError::Validation(message.into())
}

fn not_found(name: &str) -> ApiError {
    ApiError::of_service(
        "ParameterNotFound",
        format!("Parameter {} not found.", names::shown(name)),
    )
}

fn version_not_found(name: &str, selector: &str) -> ApiError {
    let (name, selector) = (names::shown(name), names::shown(selector));
    let text = match selector.parse::<u64>() {
        Ok(_) => format!(
            "Systems Manager could not find version {selector} of {name}. Verify the version and try again."
        ),
        Err(_) => format!(
            "Systems Manager could not find label {selector} for parameter {name}. Verify the label and try again."
        ),
    };
    ApiError::of_service("ParameterVersionNotFound", text)
}

/// A page's size.
fn limit(value: Option<i32>, default: usize, most: usize) -> Result<usize, ApiError> {
    match value.map(usize::try_from) {
        None => Ok(default),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(validation(format!(
            "1 validation error detected: Value at 'maxResults' failed to satisfy constraint: Member must have value \
             between 1 and {most}"
        ))),
    }
}

fn invalid_token(_: crate::page::InvalidToken) -> ApiError {
    ApiError::of_service("InvalidNextToken", "The specified token isn't valid.")
}

/// What this service says of the store's errors.
fn refusal(error: SecretError) -> ApiError {
    match error {
        SecretError::ParameterNotFound(name) => not_found(&name),
        SecretError::ParameterVersionNotFound { name, version } => {
            version_not_found(&name, &version.to_string())
        }
        SecretError::ParameterExists(_) => ApiError::of_service(
            "ParameterAlreadyExists",
            "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.",
        ),
        SecretError::ParameterLimit(there) => ApiError::of_service(
            "ParameterLimitExceeded",
            format!("There are {there} parameters already: delete some, and try again."),
        ),
        SecretError::ParameterTypeChange { name, is } => ApiError::of_service(
            "HierarchyTypeMismatchException",
            format!(
                "Parameter {} is a {}. Parameter Store doesn't support changing a parameter type: create a new, unique \
                 parameter.",
                names::shown(&name),
                is.as_str()
            ),
        ),
        SecretError::ParameterTierChange(name) => validation(format!(
            "Parameter {} uses the advanced-parameter tier. You can't downgrade it to the standard-parameter tier: \
             delete it and create it anew.",
            names::shown(&name)
        )),
        SecretError::ParameterWithoutType => {
            validation("A parameter type is required when you create a parameter.")
        }
        error => ApiError::server(&error),
    }
}
