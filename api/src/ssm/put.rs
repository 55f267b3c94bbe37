//! PutParameter, DeleteParameter, DeleteParameters.

use berth_runtime::model::parameter::{ParameterTier, ParameterType};
use berth_runtime::secrets::{PutParameter, SecretError, SecretStore, SecretText};
use regex::RegexBuilder;
use serde_json::{Value, json};

use super::names::{self, length, shown};
use super::{KEY_ALIAS, not_found, refusal, shapes, tags, validation};
use crate::arn::Owner;
use crate::decode::says_nothing;
use crate::error::ApiError;

const MAX_STANDARD_BYTES: usize = 4096;
const MAX_ADVANCED_BYTES: usize = 8192;
const MAX_DESCRIPTION_CHARS: usize = 1024;
const MAX_PATTERN_CHARS: usize = 1024;
const MAX_NAMES: usize = 10;
/// Of a compiled pattern, which a caller chooses.
const MAX_PATTERN_BYTES: usize = 1 << 20;

pub(super) async fn put(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::PutParameter,
) -> Result<Value, ApiError> {
    let name = input.name.unwrap_or_default();
    names::check_new(&name, owner)?;
    let overwrite = input.overwrite.unwrap_or(false);
    let tags = tags::checked(input.tags.as_deref())?;
    if overwrite && !tags.is_empty() {
        return Err(validation(
            "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, please remove \
             overwrite flag. To update tags for an existing parameter, please use AddTagsToResource or \
             RemoveTagsFromResource.",
        ));
    }
    if !says_nothing(&input.policies) && input.policies != Some(json!("[]")) {
        return Err(ApiError::of_service(
            "InvalidPolicyTypeException",
            "Berth does not support 'Policies' yet.",
        ));
    }
    if let Some(key) = input.key_id.filter(|key| key != KEY_ALIAS) {
        return Err(ApiError::of_service(
            "InvalidKeyId",
            format!(
                "Berth has one key of its own, '{KEY_ALIAS}', and not '{}'.",
                shown(&key)
            ),
        ));
    }
    let data_type = input.data_type.filter(|it| !it.is_empty());
    if let Some(other) = data_type.as_deref().filter(|it| *it != "text") {
        return Err(validation(format!(
            "Berth does not support 'DataType' with the value '{}' yet.",
            shown(other)
        )));
    }
    if input
        .description
        .as_ref()
        .is_some_and(|it| it.chars().count() > MAX_DESCRIPTION_CHARS)
    {
        return Err(length("description", 0, MAX_DESCRIPTION_CHARS));
    }
    let kind = input.kind.as_deref().map(kind_of).transpose()?;
    let value = input.value.unwrap_or_default();
    let before = match store.parameter(&name).await {
        Ok(before) => Some(before.newest),
        Err(SecretError::ParameterNotFound(_)) => None,
        Err(error) => return Err(refusal(error)),
    };
    let tier = tier(input.tier.as_deref(), before.as_ref().map(|it| it.tier), &value)?;
    let allowed_pattern = input.allowed_pattern.filter(|it| !it.is_empty());
    let pattern = allowed_pattern
        .as_deref()
        .or(before.as_ref().and_then(|it| it.allowed_pattern.as_deref()));
    if let Some(pattern) = pattern {
        matches(pattern, &value)?;
    }
    let put = PutParameter {
        name,
        value,
        kind,
        tier: Some(tier),
        data_type,
        description: input.description,
        allowed_pattern,
        overwrite,
        tags,
        by: owner.root(),
    };
    let parameter = store.put_parameter(put).await.map_err(refusal)?;
    Ok(json!({ "Version": parameter.newest.version, "Tier": parameter.newest.tier.as_str() }))
}

fn kind_of(text: &str) -> Result<ParameterType, ApiError> {
    let kinds = [
        ParameterType::String,
        ParameterType::StringList,
        ParameterType::SecureString,
    ];
    kinds.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        validation(format!(
            "1 validation error detected: Value '{}' at 'type' failed to satisfy constraint: Member must satisfy enum \
             value set: [SecureString, StringList, String]",
            shown(text)
        ))
    })
}

/// The tier, and that the value fits it.
fn tier(
    asked: Option<&str>,
    before: Option<ParameterTier>,
    value: &SecretText,
) -> Result<ParameterTier, ApiError> {
    let bytes = value.expose().len();
    if bytes == 0 {
        return Err(validation(
            "1 validation error detected: Value at 'value' failed to satisfy constraint: Member must have length greater \
             than or equal to 1",
        ));
    }
    let tier = match asked {
        None => before.unwrap_or(ParameterTier::Standard),
        Some("Standard") => ParameterTier::Standard,
        Some("Advanced") => ParameterTier::Advanced,
        Some("Intelligent-Tiering") if bytes > MAX_STANDARD_BYTES => ParameterTier::Advanced,
        Some("Intelligent-Tiering") => before.unwrap_or(ParameterTier::Standard),
        Some(other) => {
            return Err(validation(format!(
                "1 validation error detected: Value '{}' at 'tier' failed to satisfy constraint: Member must satisfy \
                 enum value set: [Standard, Advanced, Intelligent-Tiering]",
                shown(other)
            )));
        }
    };
    match tier {
        ParameterTier::Standard if bytes > MAX_STANDARD_BYTES => Err(validation(format!(
            "Standard tier parameters support a maximum parameter value of {MAX_STANDARD_BYTES} characters. To create a \
             larger parameter value, upgrade the parameter to use the advanced-parameter tier."
        ))),
        ParameterTier::Advanced if bytes > MAX_ADVANCED_BYTES => Err(validation(format!(
            "Advanced tier parameters support a maximum parameter value of {MAX_ADVANCED_BYTES} characters."
        ))),
        tier => Ok(tier),
    }
}

/// The text of a refusal has the pattern, and not the value.
fn matches(pattern: &str, value: &SecretText) -> Result<(), ApiError> {
    let invalid = || {
        ApiError::of_service(
            "InvalidAllowedPatternException",
            "The request does not meet the regular expression requirement.",
        )
    };
    if pattern.chars().count() > MAX_PATTERN_CHARS {
        return Err(length("allowedPattern", 0, MAX_PATTERN_CHARS));
    }
    let regex = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build();
    match regex.map_err(|_| invalid())?.is_match(value.expose()) {
        true => Ok(()),
        false => Err(ApiError::of_service(
            "ParameterPatternMismatchException",
            format!(
                "Parameter value, cannot be validated against allowedPattern: {}",
                shown(pattern)
            ),
        )),
    }
}

pub(super) async fn delete(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::DeleteParameter,
) -> Result<Value, ApiError> {
    let name = input.name.unwrap_or_default();
    match remove(store, owner, &name).await? {
        true => Ok(json!({})),
        false => Err(not_found(&name)),
    }
}

pub(super) async fn delete_several(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::DeleteParameters,
) -> Result<Value, ApiError> {
    let asked = input.names.unwrap_or_default();
    if asked.is_empty() || asked.len() > MAX_NAMES {
        return Err(length("names", 1, MAX_NAMES));
    }
    let (mut deleted, mut invalid) = (Vec::new(), Vec::new());
    for name in asked {
        match remove(store, owner, &name).await? {
            true => deleted.push(name),
            false => invalid.push(name),
        }
    }
    Ok(json!({ "DeletedParameters": deleted, "InvalidParameters": invalid }))
}

/// Whether there was one.
async fn remove(store: &SecretStore, owner: &Owner, name: &str) -> Result<bool, ApiError> {
    let named = names::parse(name, owner)?;
    if named.selector.is_some() {
        return Ok(false);
    }
    for name in &named.names {
        match store.delete_parameter(name).await {
            Ok(()) => return Ok(true),
            Err(SecretError::ParameterNotFound(_)) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
    Ok(false)
}
