//! Making, changing and deleting log groups and streams.

use std::collections::BTreeMap;

use berth_runtime::model::Tag;
use serde_json::{Map, Value, json};

use super::shapes;
use super::{group, refusal, stream_name};
use crate::app::App;
use crate::ecs::shapes::TagShape;
use crate::ecs::values;
use crate::error::ApiError;

const MAX_TAGS: usize = 50;
/// What PutRetentionPolicy takes.
const RETENTION_DAYS: [u32; 22] = [
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
];

pub(super) async fn create(app: &App, input: shapes::CreateLogGroup) -> Result<Value, ApiError> {
    let name = group(app, input.log_group_name.as_deref(), None)?;
    let unsupported = |what: &str| {
        Err(ApiError::InvalidParameter(format!(
            "Berth does not support '{what}' of a log group."
        )))
    };
    if input.kms_key_id.is_some() {
        return unsupported("kmsKeyId");
    }
    if input.deletion_protection_enabled == Some(true) {
        return unsupported("deletionProtectionEnabled");
    }
    match input.log_group_class.as_deref() {
        None | Some("STANDARD") => {}
        Some("INFREQUENT_ACCESS" | "DELIVERY" | "ESSENTIALS") => return unsupported("logGroupClass"),
        Some(_) => {
            return Err(ApiError::InvalidParameter(
                "logGroupClass must be STANDARD.".to_owned(),
            ));
        }
    }
    let tags = tags(input.tags)?;
    app.runtime.create_log_group(name, tags).await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn delete(app: &App, input: shapes::OfGroup) -> Result<Value, ApiError> {
    let name = group(app, input.log_group_name.as_deref(), None)?;
    app.runtime.delete_log_group(name).await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn create_stream(app: &App, input: shapes::OfStream) -> Result<Value, ApiError> {
    let group = group(app, input.log_group_name.as_deref(), None)?;
    let stream = stream_name(input.log_stream_name.as_deref())?;
    app.runtime
        .create_log_stream(group, stream)
        .await
        .map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn delete_stream(app: &App, input: shapes::OfStream) -> Result<Value, ApiError> {
    let group = group(app, input.log_group_name.as_deref(), None)?;
    let stream = stream_name(input.log_stream_name.as_deref())?;
    app.runtime
        .delete_log_stream(group, stream)
        .await
        .map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn put_retention(app: &App, input: shapes::PutRetentionPolicy) -> Result<Value, ApiError> {
    let name = group(app, input.log_group_name.as_deref(), None)?;
    let days = input.retention_in_days.and_then(|days| u32::try_from(days).ok());
    let Some(days) = days.filter(|days| RETENTION_DAYS.contains(days)) else {
        let given = input.retention_in_days.unwrap_or_default();
        return Err(ApiError::InvalidParameter(format!(
            "1 validation error detected: Value '{given}' at 'retentionInDays' failed to satisfy constraint: Member must \
             satisfy enum value set: {RETENTION_DAYS:?}"
        )));
    };
    set_retention(app, name, Some(days)).await
}

pub(super) async fn delete_retention(app: &App, input: shapes::OfGroup) -> Result<Value, ApiError> {
    let name = group(app, input.log_group_name.as_deref(), None)?;
    set_retention(app, name, None).await
}

async fn set_retention(app: &App, name: &str, days: Option<u32>) -> Result<Value, ApiError> {
    let change = app
        .runtime
        .change_log_group(name, |group| group.retention_days = days);
    change.await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn tag(app: &App, input: shapes::Tagging) -> Result<Value, ApiError> {
    let name = tagged(app, &input)?;
    let added = tags(input.tags.clone())?;
    let before = app.runtime.log_group(name).await.map_err(refusal)?.tags;
    let others = before
        .iter()
        .filter(|tag| added.iter().all(|it| it.key != tag.key));
    if others.count() + added.len() > MAX_TAGS {
        return Err(ApiError::of_service(
            "TooManyTagsException",
            format!("A log group cannot have more than {MAX_TAGS} tags."),
        ));
    }
    let change = app.runtime.change_log_group(name, |group| {
        group.tags.retain(|tag| added.iter().all(|it| it.key != tag.key));
        group.tags.extend(added.iter().cloned());
    });
    change.await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn untag(app: &App, input: shapes::Untagging) -> Result<Value, ApiError> {
    let name = resource(
        app,
        input.log_group_name.as_deref(),
        input.resource_arn.as_deref(),
    )?;
    let keys = input.tag_keys.or(input.tags).unwrap_or_default();
    let change = app
        .runtime
        .change_log_group(name, |group| group.tags.retain(|tag| !keys.contains(&tag.key)));
    change.await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn list_tags(app: &App, input: shapes::Tagging) -> Result<Value, ApiError> {
    let found = app
        .runtime
        .log_group(tagged(app, &input)?)
        .await
        .map_err(refusal)?;
    let tags: Map<String, Value> = found
        .tags
        .into_iter()
        .map(|tag| (tag.key, json!(tag.value)))
        .collect();
    Ok(json!({ "tags": tags }))
}

fn tagged<'a>(app: &App, input: &'a shapes::Tagging) -> Result<&'a str, ApiError> {
    resource(
        app,
        input.log_group_name.as_deref(),
        input.resource_arn.as_deref(),
    )
}

/// The group that is named, or of which the ARN is given.
fn resource<'a>(app: &App, name: Option<&'a str>, arn: Option<&'a str>) -> Result<&'a str, ApiError> {
    if let Some(arn) = arn.filter(|arn| !arn.starts_with("arn:")) {
        let arn: String = arn.chars().take(200).collect();
        return Err(ApiError::InvalidParameter(format!(
            "'{arn}' is not the ARN of a log group."
        )));
    }
    group(app, name, arn)
}

fn tags(given: Option<BTreeMap<String, String>>) -> Result<Vec<Tag>, ApiError> {
    let list: Vec<TagShape> = given
        .into_iter()
        .flatten()
        .map(|(key, value)| TagShape {
            key: Some(key),
            value: Some(value),
        })
        .collect();
    values::tags(Some(&list))
}
