//! `repositoryCredentials` of a container: the secret with which its registry is asked. Pure.

use berth_runtime::model::definition::{DefinitionSpec, RepositoryCredentials};

use super::container::Task;
use crate::arn::Owner;
use crate::ecs::shapes::ContainerShape;
use crate::error::ApiError;

const MAX_SHOWN_CHARS: usize = 255;
/// Longest name of a secret, and its suffix.
const MAX_NAME_BYTES: usize = 519;

pub(super) fn errors(container: &ContainerShape, task: &Task<'_>, errors: &mut Vec<String>) {
    match credentials(container) {
        Ok(None) => {}
        Ok(Some(credentials)) => {
            let role = task.input.execution_role_arn.as_deref().unwrap_or_default();
            if role.is_empty() {
                errors.push(
                    "When you are specifying repository credentials, you must also specify a value for \
                     'executionRoleArn'"
                        .to_owned(),
                );
            }
            match arn_part(&credentials.parameter, 3) {
                Some(region) if region != task.region => errors.push(format!(
                    "Berth has the region '{}' alone, so 'credentialsParameter' cannot be in '{}'.",
                    task.region,
                    shown(region)
                )),
                _ => {}
            }
        }
        Err(error) => errors.push(error),
    }
}

/// None where none are named.
pub(super) fn credentials(container: &ContainerShape) -> Result<Option<RepositoryCredentials>, String> {
    let shape = container.repository_credentials.as_ref();
    let parameter = shape.and_then(|shape| shape.credentials_parameter.as_deref());
    let Some(parameter) = parameter.filter(|parameter| !parameter.is_empty()) else {
        return Ok(None);
    };
    let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-!".contains(&byte);
    let named = |name: &str| {
        let good = !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(in_a_name);
        good.then(|| name.to_owned())
    };
    let parts: Vec<&str> = parameter.splitn(6, ':').collect();
    let resource = match parts.as_slice() {
        ["arn", "aws", "secretsmanager", _, _, resource] => resource.strip_prefix("secret:").and_then(named),
        _ => named(parameter),
    };
    let resource = resource.ok_or_else(|| {
        format!(
            "Invalid 'credentialsParameter' '{}': it must be the ARN or the name of a secret.",
            shown(parameter)
        )
    })?;
    Ok(Some(RepositoryCredentials {
        parameter: parameter.to_owned(),
        resource,
    }))
}

/// Refuses what is another account's.
pub(super) fn check_account(spec: &DefinitionSpec, owner: &Owner) -> Result<(), ApiError> {
    let all = spec.containers.iter();
    for credentials in all.filter_map(|container| container.repository_credentials.as_ref()) {
        match arn_part(&credentials.parameter, 4) {
            Some(account) if account != owner.account_id => {
                return Err(ApiError::Client(format!(
                    "Berth has the account '{}' alone, so 'credentialsParameter' cannot be in '{}'.",
                    owner.account_id,
                    shown(account)
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn arn_part(parameter: &str, index: usize) -> Option<&str> {
    parameter
        .starts_with("arn:")
        .then(|| parameter.split(':').nth(index))?
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}
