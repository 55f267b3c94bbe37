//! `secrets` of a container: which are taken, and what each `valueFrom` names. Pure.

use std::collections::BTreeSet;

use berth_runtime::model::definition::DefinitionSpec;
use berth_runtime::model::secret::{SecretReference, SecretSource};

use super::container::Task;
use crate::arn::Owner;
use crate::ecs::shapes::{ContainerShape, SecretShape};
use crate::error::ApiError;
use crate::ssm::names::Named;

const MAX_SHOWN_CHARS: usize = 255;

pub(super) fn errors(container: &ContainerShape, task: &Task<'_>, errors: &mut Vec<String>) {
    let secrets = container.secrets.as_deref().unwrap_or_default();
    let role = task.input.execution_role_arn.as_deref().unwrap_or_default();
    if !secrets.is_empty() && role.is_empty() {
        errors.push(
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'"
                .to_owned(),
        );
    }
    let environment = container.environment.iter().flatten();
    let mut names: BTreeSet<&str> = environment
        .filter_map(|variable| variable.name.as_deref())
        .collect();
    for secret in secrets {
        let name = secret.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            errors.push("Container.secrets.name should not be null or empty.".to_owned());
        } else if name.contains(['=', '\0']) {
            errors.push(format!(
                "Container.secrets.name '{}' contains invalid characters.",
                name.escape_debug()
            ));
        } else if !names.insert(name) {
            errors.push(format!(
                "The secret name must be unique and not shared with any new or existing environment variables set on \
                 the container, such as '{}'.",
                shown(name)
            ));
        }
        match arn_region(secret.value_from.as_deref().unwrap_or_default()) {
            Some(region) if region != task.region => errors.push(format!(
                "Berth has the region '{}' alone, so 'valueFrom' cannot be in '{}'.",
                task.region,
                shown(region)
            )),
            _ => {}
        }
        if let Err(error) = source(secret.value_from.as_deref().unwrap_or_default()) {
            errors.push(error);
        }
    }
}

/// Of secrets that `errors` finds nothing wrong with.
pub(super) fn references(secrets: Option<&[SecretShape]>) -> Result<Vec<SecretReference>, ApiError> {
    let reference = |secret: &SecretShape| {
        let value_from = secret.value_from.clone().unwrap_or_default();
        Ok(SecretReference {
            name: secret.name.clone().unwrap_or_default(),
            source: source(&value_from).map_err(ApiError::Client)?,
            value_from,
        })
    };
    secrets.unwrap_or_default().iter().map(reference).collect()
}

/// Refuses what is another account's.
pub(super) fn check_account(spec: &DefinitionSpec, owner: &Owner) -> Result<(), ApiError> {
    for reference in spec.containers.iter().flat_map(|container| &container.secrets) {
        let account = reference
            .value_from
            .starts_with("arn:")
            .then(|| reference.value_from.split(':').nth(4));
        if let Some(account) = account.flatten().filter(|account| *account != owner.account_id) {
            return Err(ApiError::Client(format!(
                "Berth has the account '{}' alone, so 'valueFrom' cannot be in '{}'.",
                owner.account_id,
                shown(account)
            )));
        }
    }
    Ok(())
}

fn arn_region(value_from: &str) -> Option<&str> {
    value_from.strip_prefix("arn:")?.split(':').nth(2)
}

fn source(value_from: &str) -> Result<SecretSource, String> {
    if value_from.is_empty() {
        return Err("Container.secrets.valueFrom should not be null or empty.".to_owned());
    }
    let invalid = || {
        format!(
            "Invalid 'valueFrom' '{}': it must be the name or the ARN of a parameter, or the ARN of a secret.",
            shown(value_from)
        )
    };
    let parts: Vec<&str> = value_from.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", "aws", "ssm", _, _, resource] => {
            let name = resource.strip_prefix("parameter/").ok_or_else(invalid)?;
            parameter(Named::of_arn(name)).ok_or_else(invalid)
        }
        ["arn", "aws", "secretsmanager", _, _, resource] => {
            let named = resource.strip_prefix("secret:").ok_or_else(invalid)?;
            secret(named).ok_or_else(invalid)
        }
        _ if value_from.starts_with("arn:") => Err(invalid()),
        _ => parameter(Named::of_name(value_from)).ok_or_else(invalid),
    }
}

fn parameter(named: Named) -> Option<SecretSource> {
    let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
    let well_formed = |name: &String| !name.is_empty() && name.bytes().all(in_a_name);
    if !named.names.iter().all(well_formed) || (named.selector.is_some() && named.version().is_none()) {
        return None;
    }
    Some(SecretSource::Parameter {
        version: named.version(),
        names: named.names,
    })
}

/// `name-suffix`, and then perhaps a JSON key, a label and a version's id, each of which may be empty.
fn secret(named: &str) -> Option<SecretSource> {
    let mut parts = named.split(':').map(str::to_owned);
    let resource = parts.next().filter(|resource| !resource.is_empty())?;
    let mut optional = || parts.next().filter(|part| !part.is_empty());
    let source = SecretSource::Secret {
        resource,
        json_key: optional(),
        version_stage: optional(),
        version_id: optional(),
    };
    parts.next().is_none().then_some(source)
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}
