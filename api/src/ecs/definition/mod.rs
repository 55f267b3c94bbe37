//! Operations on task definitions.

mod container;
mod decode;
pub(crate) mod encode;
pub(crate) mod files;
pub(crate) mod flaws;
mod limits;
mod log_driver;
mod relations;
mod repository;
mod secrets;
pub(crate) mod size;
#[cfg(test)]
mod tests;
pub(crate) mod validate;

pub(crate) use container::{MIN_MEMORY_MIB, environment as environment_errors};

use std::collections::BTreeMap;

use berth_runtime::RuntimeError;
use berth_runtime::model::definition::{DefinitionId, TaskDefinition};
use serde_json::{Value, json};

use super::shapes;
use super::values::{includes, limit, listed, tags, tags_json};
use crate::app::App;
use crate::error::{ApiError, unexpected};
use crate::page::{Order, page};

/// Largest RegisterTaskDefinition.
const MAX_DEFINITION_BYTES: usize = 64 * 1024;

pub(super) async fn register(
    app: &App,
    input: shapes::RegisterTaskDefinition,
    bytes: usize,
) -> Result<Value, ApiError> {
    if bytes > MAX_DEFINITION_BYTES {
        return Err(ApiError::Client(format!(
            "Actual length: '{bytes}'. Max allowed length is '{MAX_DEFINITION_BYTES}' bytes."
        )));
    }
    let spec = decode::spec(&input, &app.owner.region)?;
    secrets::check_account(&spec, &app.owner)?;
    repository::check_account(&spec, &app.owner)?;
    let tags = tags(input.tags.as_deref())?;
    let family = input.family.unwrap_or_default();
    let registered = app.runtime.register(&family, spec, tags, &app.owner.root()).await;
    Ok(described(
        app,
        &registered.map_err(|error| unexpected(&error))?,
        true,
    ))
}

pub(super) async fn describe(app: &App, input: shapes::DescribeTaskDefinition) -> Result<Value, ApiError> {
    let name = app
        .owner
        .parse_definition(&input.task_definition.unwrap_or_default())?;
    let found = app
        .runtime
        .definition(&name.family, name.revision)
        .await
        .map_err(not_found)?;
    Ok(described(app, &found, includes(input.include.as_deref(), "TAGS")))
}

pub(super) async fn deregister(
    app: &App,
    input: shapes::DeregisterTaskDefinition,
) -> Result<Value, ApiError> {
    let name = app
        .owner
        .parse_definition(&input.task_definition.unwrap_or_default())?;
    let revision = name
        .revision
        .ok_or_else(|| ApiError::Client("Revision is missing.".to_owned()))?;
    let id = DefinitionId {
        family: name.family,
        revision,
    };
    let found = app.runtime.deregister(&id).await.map_err(|error| match error {
        RuntimeError::DefinitionNotFound(_) => {
            ApiError::Client("The specified task definition does not exist.".to_owned())
        }
        RuntimeError::DefinitionInactive(_) => {
            ApiError::Client("The specified task definition is inactive.".to_owned())
        }
        error => unexpected(&error),
    })?;
    Ok(described(app, &found, false))
}

pub(super) async fn list(app: &App, input: shapes::ListTaskDefinitions) -> Result<Value, ApiError> {
    let status = input.status.unwrap_or_else(|| "ACTIVE".to_owned());
    if !["ACTIVE", "INACTIVE", "DELETE_IN_PROGRESS"].contains(&status.as_str()) {
        return Err(ApiError::InvalidParameter(
            "status must be ACTIVE, INACTIVE or DELETE_IN_PROGRESS.".to_owned(),
        ));
    }
    let order = match input.sort.as_deref() {
        None | Some("ASC") => Order::Ascending,
        Some("DESC") => Order::Descending,
        Some(_) => return Err(ApiError::InvalidParameter("sort must be ASC or DESC.".to_owned())),
    };
    let question = format!("ListTaskDefinitions {:?} {status} {order:?}", input.family_prefix);
    let mut found = definitions(app).await?;
    found.retain(|definition| {
        // Unlike the families' prefix, this one is a whole family.
        input
            .family_prefix
            .as_deref()
            .is_none_or(|family| family == definition.id.family)
            && encode::status(definition.status) == status
    });
    let key = |found: &TaskDefinition| format!("{}:{:010}", found.id.family, found.id.revision);
    let limit = limit(input.max_results)?;
    let (found, next) = page(found, key, order, &question, input.next_token.as_deref(), limit)?;
    let arns = found
        .iter()
        .map(|definition| app.owner.definition(&definition.id))
        .collect();
    Ok(listed("taskDefinitionArns", arns, next))
}

pub(super) async fn list_families(
    app: &App,
    input: shapes::ListTaskDefinitionFamilies,
) -> Result<Value, ApiError> {
    let status = input.status.unwrap_or_else(|| "ALL".to_owned());
    if !["ACTIVE", "INACTIVE", "ALL"].contains(&status.as_str()) {
        return Err(ApiError::InvalidParameter(
            "status must be ACTIVE, INACTIVE or ALL.".to_owned(),
        ));
    }
    // A family is active while any of its revisions is.
    let mut families: BTreeMap<String, &str> = BTreeMap::new();
    for definition in definitions(app).await? {
        let status = encode::status(definition.status);
        let family = families.entry(definition.id.family).or_insert(status);
        if status == "ACTIVE" {
            *family = status;
        }
    }
    let prefix = input.family_prefix.as_deref().unwrap_or_default();
    let wanted =
        |(family, its): &(String, &str)| family.starts_with(prefix) && (status == "ALL" || status == *its);
    let families: Vec<String> = families
        .into_iter()
        .filter(wanted)
        .map(|(family, _)| family)
        .collect();
    let question = format!("ListTaskDefinitionFamilies {prefix:?} {status}");
    let token = input.next_token.as_deref();
    let (families, next) = page(
        families,
        String::clone,
        Order::Ascending,
        &question,
        token,
        limit(input.max_results)?,
    )?;
    Ok(listed("families", families, next))
}

async fn definitions(app: &App) -> Result<Vec<TaskDefinition>, ApiError> {
    app.runtime
        .definitions()
        .await
        .map_err(|error| unexpected(&error))
}

fn described(app: &App, definition: &TaskDefinition, with_tags: bool) -> Value {
    let mut answer = json!({ "taskDefinition": encode::definition(&app.owner, definition) });
    if with_tags {
        answer["tags"] = tags_json(&definition.tags);
    }
    answer
}

fn not_found(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::DefinitionNotFound(_) => {
            ApiError::Client("Unable to describe task definition.".to_owned())
        }
        error => unexpected(&error),
    }
}
