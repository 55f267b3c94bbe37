//! Operations that change a secret.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::clock::{Clock, SystemClock};
use berth_runtime::model::Tag;
use berth_runtime::model::secret::Secret;
use berth_runtime::secrets::{CreateSecret, NewValue, SecretBytes, SecretError, SecretStore, SecretText};
use serde_json::{Map, Value, json};

use super::{id, invalid_parameter, invalid_request, refusal, shapes};
use crate::arn::Owner;
use crate::decode::says_nothing;
use crate::ecs::shapes::TagShape;
use crate::ecs::values::{self, put, seconds};
use crate::error::ApiError;
use crate::reply::uuid_text;

const MAX_NAME_CHARS: usize = 512;
const MAX_VALUE_BYTES: usize = 65_536;
const MAX_DESCRIPTION_CHARS: usize = 2048;
const MAX_STAGES: usize = 20;
const MAX_STAGE_CHARS: usize = 256;
const MAX_TAGS: usize = 50;
/// Of a version's id, in characters.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 32..=64;
const RECOVERY_DAYS: std::ops::RangeInclusive<i64> = 7..=30;
const DEFAULT_RECOVERY_DAYS: i64 = 30;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The key that values are said to be encrypted with; there is no other.
const KEY_ALIAS: &str = "alias/aws/secretsmanager";

pub(super) async fn create(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::CreateSecret,
) -> Result<Value, ApiError> {
    let name = input.name.unwrap_or_default();
    let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-!".contains(&byte);
    if !(1..=MAX_NAME_CHARS).contains(&name.len()) || !name.bytes().all(in_a_name) {
        return Err(ApiError::Validation(
            "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@!"
                .to_owned(),
        ));
    }
    key_and_kind(input.kms_key_id.as_deref(), input.kind.as_deref())?;
    if !says_nothing(&input.add_replica_regions) {
        return Err(invalid_parameter(
            "Berth does not support 'AddReplicaRegions' yet.",
        ));
    }
    let token = token(input.client_request_token)?;
    let value = value(input.secret_string, input.secret_binary)?;
    let created = store.create_secret(CreateSecret {
        name: name.clone(),
        description: description(input.description)?,
        tags: tags(input.tags.as_deref())?,
        value: value.map(|value| value.version(&token, BTreeSet::new())),
    });
    let secret = created.await.map_err(|error| match error {
        SecretError::SecretDeleted(_) => invalid_request(
            "You can't create this secret because a secret with this name is already scheduled for deletion.",
        ),
        error => refusal(error),
    })?;
    let version = secret.versions.contains_key(&token).then_some(token);
    Ok(answer(owner, &secret, version))
}

pub(super) async fn put_value(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::PutSecretValue,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let token = token(input.client_request_token)?;
    let value = value(input.secret_string, input.secret_binary)?
        .ok_or_else(|| invalid_request("You must provide either SecretString or SecretBinary."))?;
    let stages = input.version_stages.unwrap_or_default();
    if stages.len() > MAX_STAGES {
        return Err(invalid_parameter(format!(
            "VersionStages cannot have more than {MAX_STAGES} staging labels."
        )));
    }
    for stage in &stages {
        check_stage(stage)?;
    }
    let value = value.version(&token, stages.into_iter().collect());
    let secret = store.put_secret_value(id, value).await.map_err(refusal)?;
    let stages = secret.versions.get(&token).map(|version| version.stages.clone());
    let mut answer = answer(owner, &secret, Some(token));
    answer["VersionStages"] = json!(stages);
    Ok(answer)
}

pub(super) async fn update(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::UpdateSecret,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    key_and_kind(input.kms_key_id.as_deref(), input.kind.as_deref())?;
    let token = token(input.client_request_token)?;
    let value = value(input.secret_string, input.secret_binary)?;
    let version = value.is_some().then(|| token.clone());
    let value = value.map(|value| value.version(&token, BTreeSet::new()));
    let secret = store
        .update_secret(id, description(input.description)?, value)
        .await
        .map_err(refusal)?;
    Ok(answer(owner, &secret, version))
}

pub(super) async fn move_stage(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::UpdateSecretVersionStage,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let stage = input.version_stage.unwrap_or_default();
    check_stage(&stage)?;
    let (from, to) = (input.remove_from_version_id, input.move_to_version_id);
    if from.is_none() && to.is_none() {
        return Err(invalid_parameter(
            "You must provide RemoveFromVersionId or MoveToVersionId.",
        ));
    }
    if to.is_none() && stage == berth_runtime::model::secret::CURRENT {
        return Err(invalid_parameter(
            "You can only move staging label AWSCURRENT to a different secret version. It can't be completely removed.",
        ));
    }
    let moved = store
        .move_secret_stage(id, &stage, from.as_deref(), to.as_deref())
        .await;
    Ok(answer(owner, &moved.map_err(refusal)?, None))
}

pub(super) async fn delete(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::DeleteSecret,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let forced = input.force_delete_without_recovery.unwrap_or(false);
    if forced && input.recovery_window_in_days.is_some() {
        return Err(invalid_parameter(
            "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.",
        ));
    }
    let days = input.recovery_window_in_days.unwrap_or(DEFAULT_RECOVERY_DAYS);
    let days = u32::try_from(days).ok().filter(|_| RECOVERY_DAYS.contains(&days));
    let days = days.ok_or_else(|| {
        invalid_parameter("The RecoveryWindowInDays value must be between 7 and 30 days (inclusive).")
    })?;
    let deleted = store.delete_secret(id, (!forced).then_some(days * DAY)).await;
    // Who wants it gone is told that it is.
    if forced && matches!(deleted, Err(SecretError::SecretNotFound(_))) {
        let now = seconds(SystemClock.now());
        return Ok(json!({ "ARN": owner.secret(id), "Name": id, "DeletionDate": now }));
    }
    let (secret, at) = deleted.map_err(|error| match error {
        SecretError::SecretDeleted(_) => invalid_request(
            "You can't perform this operation on the secret because it was already scheduled for deletion.",
        ),
        error => refusal(error),
    })?;
    let mut answer = answer(owner, &secret, None);
    answer["DeletionDate"] = seconds(at);
    Ok(answer)
}

pub(super) async fn restore(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::OneSecret,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let secret = store.restore_secret(id).await.map_err(refusal)?;
    Ok(answer(owner, &secret, None))
}

pub(super) async fn tag(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::TagResource,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let added = tags(input.tags.as_deref())?;
    let before = store.secret(id).await.map_err(refusal)?.tags;
    let others = before
        .iter()
        .filter(|tag| added.iter().all(|it| it.key != tag.key));
    if others.count() + added.len() > MAX_TAGS {
        return Err(invalid_parameter(format!(
            "A secret cannot have more than {MAX_TAGS} tags."
        )));
    }
    let change = |mut tags: Vec<Tag>| {
        tags.retain(|tag| added.iter().all(|it| it.key != tag.key));
        tags.extend(added);
        tags
    };
    store.tag_secret(id, change).await.map_err(refusal)?;
    Ok(json!({}))
}

pub(super) async fn untag(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::UntagResource,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let keys = input.tag_keys.unwrap_or_default();
    let change = |mut tags: Vec<Tag>| {
        tags.retain(|tag| !keys.contains(&tag.key));
        tags
    };
    store.tag_secret(id, change).await.map_err(refusal)?;
    Ok(json!({}))
}

/// A value before it is given a version.
struct Content {
    binary: bool,
    bytes: SecretBytes,
}

impl Content {
    fn version(self, token: &str, stages: BTreeSet<String>) -> NewValue {
        NewValue {
            version: token.to_owned(),
            binary: self.binary,
            bytes: self.bytes,
            stages,
        }
    }
}

fn value(text: Option<SecretText>, binary: Option<SecretText>) -> Result<Option<Content>, ApiError> {
    let content = match (text, binary) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid_parameter(
                "You can't specify both a binary secret value and a string secret value in the same secret.",
            ));
        }
        (Some(text), None) => Content {
            binary: false,
            bytes: SecretBytes::from(&text),
        },
        (None, Some(encoded)) => Content {
            binary: true,
            bytes: SecretBytes::new(
                STANDARD
                    .decode(encoded.expose())
                    .map_err(|_| ApiError::Serialization("SecretBinary is not base64".to_owned()))?,
            ),
        },
    };
    match content.bytes.expose().len() {
        1..=MAX_VALUE_BYTES => Ok(Some(content)),
        _ => Err(invalid_parameter(format!(
            "A secret value must have 1 to {MAX_VALUE_BYTES} bytes."
        ))),
    }
}

/// The caller's, or a new one.
fn token(given: Option<String>) -> Result<String, ApiError> {
    match given {
        Some(token) if !TOKEN_CHARS.contains(&token.chars().count()) || token.contains(char::is_control) => {
            Err(invalid_parameter(
                "ClientRequestToken must be 32-64 characters long.",
            ))
        }
        Some(token) => Ok(token),
        None => Ok(uuid_text(rand::random())),
    }
}

fn check_stage(stage: &str) -> Result<(), ApiError> {
    match (1..=MAX_STAGE_CHARS).contains(&stage.chars().count()) {
        true => Ok(()),
        false => Err(invalid_parameter(format!(
            "A staging label must have 1 to {MAX_STAGE_CHARS} characters."
        ))),
    }
}

fn description(text: Option<String>) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.chars().count() > MAX_DESCRIPTION_CHARS => Err(invalid_parameter(format!(
            "Description cannot have more than {MAX_DESCRIPTION_CHARS} characters."
        ))),
        text => Ok(text),
    }
}

fn key_and_kind(key: Option<&str>, kind: Option<&str>) -> Result<(), ApiError> {
    if key.is_some_and(|key| !key.is_empty() && key != KEY_ALIAS) {
        return Err(invalid_parameter(format!(
            "Berth has one key of its own, '{KEY_ALIAS}': it does not support another 'KmsKeyId'."
        )));
    }
    match kind {
        None | Some("") => Ok(()),
        Some(_) => Err(invalid_parameter("Berth does not support 'Type' yet.")),
    }
}

fn tags(list: Option<&[shapes::Tag]>) -> Result<Vec<Tag>, ApiError> {
    let list: Vec<TagShape> = list
        .unwrap_or_default()
        .iter()
        .map(|tag| TagShape {
            key: tag.key.clone(),
            value: tag.value.clone(),
        })
        .collect();
    values::tags(Some(&list))
}

fn answer(owner: &Owner, secret: &Secret, version: Option<String>) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "ARN", Some(owner.secret(&secret.resource())));
    put(&mut shape, "Name", Some(&secret.name));
    put(&mut shape, "VersionId", version);
    Value::Object(shape)
}
