//! Tags of parameters.

use berth_runtime::model::Tag;
use berth_runtime::secrets::{SecretError, SecretStore};
use serde_json::{Value, json};

use super::names::shown;
use super::{refusal, shapes, validation};
use crate::ecs::shapes::TagShape;
use crate::ecs::values;
use crate::error::ApiError;

const MAX_TAGS: usize = 50;

pub(super) fn checked(list: Option<&[shapes::Tag]>) -> Result<Vec<Tag>, ApiError> {
    let list: Vec<TagShape> = list
        .unwrap_or_default()
        .iter()
        .map(|tag| TagShape {
            key: tag.key.clone(),
            value: tag.value.clone(),
        })
        .collect();
    values::tags(Some(&list)).map_err(|error| validation(error.to_string()))
}

pub(super) async fn add(store: &SecretStore, input: shapes::AddTagsToResource) -> Result<Value, ApiError> {
    let name = parameter(input.resource_type.as_deref(), input.resource_id)?;
    let added = checked(input.tags.as_deref())?;
    let before = store.parameter(&name).await.map_err(resource)?.tags;
    let others = before
        .iter()
        .filter(|tag| added.iter().all(|it| it.key != tag.key));
    if others.count() + added.len() > MAX_TAGS {
        return Err(ApiError::of_service(
            "TooManyTagsError",
            format!("A parameter cannot have more than {MAX_TAGS} tags."),
        ));
    }
    let change = |mut tags: Vec<Tag>| {
        tags.retain(|tag| added.iter().all(|it| it.key != tag.key));
        tags.extend(added);
        tags
    };
    store.tag_parameter(&name, change).await.map_err(resource)?;
    Ok(json!({}))
}

pub(super) async fn remove(
    store: &SecretStore,
    input: shapes::RemoveTagsFromResource,
) -> Result<Value, ApiError> {
    let name = parameter(input.resource_type.as_deref(), input.resource_id)?;
    let keys = input.tag_keys.unwrap_or_default();
    let change = |mut tags: Vec<Tag>| {
        tags.retain(|tag| !keys.contains(&tag.key));
        tags
    };
    store.tag_parameter(&name, change).await.map_err(resource)?;
    Ok(json!({}))
}

pub(super) async fn list(store: &SecretStore, input: shapes::ListTagsForResource) -> Result<Value, ApiError> {
    let name = parameter(input.resource_type.as_deref(), input.resource_id)?;
    let tags = store.parameter(&name).await.map_err(resource)?.tags;
    let tags = tags
        .iter()
        .map(|tag| json!({ "Key": tag.key, "Value": tag.value }));
    Ok(json!({ "TagList": tags.collect::<Vec<_>>() }))
}

fn parameter(kind: Option<&str>, id: Option<String>) -> Result<String, ApiError> {
    match kind {
        Some("Parameter") => Ok(id.unwrap_or_default()),
        _ => Err(ApiError::of_service(
            "InvalidResourceType",
            "The resource type isn't valid: Berth tags resources of the type Parameter.",
        )),
    }
}

fn resource(error: SecretError) -> ApiError {
    match error {
        SecretError::ParameterNotFound(name) => ApiError::of_service(
            "InvalidResourceId",
            format!("The resource ID '{}' isn't valid.", shown(&name)),
        ),
        error => refusal(error),
    }
}
