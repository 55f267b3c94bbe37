//! GetSecretValue, DescribeSecret, GetResourcePolicy.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::model::Timestamp;
use berth_runtime::model::secret::Secret;
use berth_runtime::secrets::{SecretStore, VersionSelector};
use serde_json::{Map, Value, json};

use super::{id, refusal, shapes};
use crate::arn::Owner;
use crate::ecs::values::{put, seconds};
use crate::error::ApiError;

const DAY_MS: u64 = 24 * 3600 * 1000;

pub(super) async fn value(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::GetSecretValue,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let selector = VersionSelector {
        id: input.version_id,
        stage: input.version_stage,
    };
    let (secret, value) = store.secret_value(id, &selector).await.map_err(refusal)?;
    let mut shape = Map::new();
    put(&mut shape, "ARN", Some(owner.secret(&secret.resource())));
    put(&mut shape, "Name", Some(&secret.name));
    put(&mut shape, "VersionId", Some(&value.id));
    match value.bytes.to_text().filter(|_| !value.binary) {
        Some(text) => put(&mut shape, "SecretString", Some(text.expose())),
        None => put(
            &mut shape,
            "SecretBinary",
            Some(STANDARD.encode(value.bytes.expose())),
        ),
    }
    put(&mut shape, "VersionStages", Some(&value.version.stages));
    put(&mut shape, "CreatedDate", Some(seconds(value.version.created_at)));
    Ok(Value::Object(shape))
}

pub(super) async fn describe(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::OneSecret,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let secret = store.secret(id).await.map_err(refusal)?;
    let mut shape = metadata(owner, &secret);
    put(&mut shape, "VersionIdsToStages", Some(stages(&secret)));
    Ok(Value::Object(shape))
}

/// There are no policies: who has the access key may do everything.
pub(super) async fn policy(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::OneSecret,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let secret = store.secret(id).await.map_err(refusal)?;
    Ok(json!({ "ARN": owner.secret(&secret.resource()), "Name": secret.name }))
}

/// What DescribeSecret and ListSecrets both say.
pub(super) fn metadata(owner: &Owner, secret: &Secret) -> Map<String, Value> {
    let mut shape = Map::new();
    put(&mut shape, "ARN", Some(owner.secret(&secret.resource())));
    put(&mut shape, "Name", Some(&secret.name));
    put(&mut shape, "Description", secret.description.as_ref());
    put(&mut shape, "LastChangedDate", Some(seconds(secret.changed_at)));
    let day = |at: Timestamp| seconds(Timestamp(at.0 - at.0 % DAY_MS));
    put(&mut shape, "LastAccessedDate", secret.accessed_at.map(day));
    let deleted = secret.deletion.map(|deletion| seconds(deletion.asked_at));
    put(&mut shape, "DeletedDate", deleted);
    let tags = secret
        .tags
        .iter()
        .map(|tag| json!({ "Key": tag.key, "Value": tag.value }));
    put(&mut shape, "Tags", Some(tags.collect::<Vec<_>>()));
    put(&mut shape, "CreatedDate", Some(seconds(secret.created_at)));
    shape
}

/// Versions that have labels, and those.
pub(super) fn stages(secret: &Secret) -> Map<String, Value> {
    let versions = secret
        .versions
        .iter()
        .filter(|(_, version)| !version.stages.is_empty());
    versions
        .map(|(id, version)| (id.clone(), json!(version.stages)))
        .collect()
}
