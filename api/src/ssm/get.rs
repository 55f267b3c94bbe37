//! GetParameter, GetParameters, GetParametersByPath, GetParameterHistory.

use berth_runtime::model::parameter::{Parameter, ParameterType, ParameterVersion};
use berth_runtime::secrets::{SecretError, SecretStore, SecretText};
use serde_json::{Map, Value, json};

use super::names::{self, Named, length};
use super::{invalid_token, limit, list, not_found, refusal, shapes, version_not_found};
use crate::arn::Owner;
use crate::ecs::values::{put, seconds};
use crate::error::ApiError;
use crate::page::{Order, page};

const MAX_NAMES: usize = 10;
const MAX_BY_PATH: usize = 10;
const MAX_HISTORY: usize = 50;
/// Stands for the value of a SecureString that was not asked for in clear.
const ENCRYPTED: &str = "(encrypted)";

pub(super) async fn one(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::GetParameter,
) -> Result<Value, ApiError> {
    let text = input.name.unwrap_or_default();
    let named = names::parse(&text, owner)?;
    let clear = input.with_decryption.unwrap_or(false);
    Ok(json!({ "Parameter": look_up(store, owner, &named, clear).await? }))
}

pub(super) async fn several(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::GetParameters,
) -> Result<Value, ApiError> {
    let asked = input.names.unwrap_or_default();
    if asked.is_empty() || asked.len() > MAX_NAMES {
        return Err(length("names", 1, MAX_NAMES));
    }
    let clear = input.with_decryption.unwrap_or(false);
    let (mut found, mut invalid) = (Vec::new(), Vec::new());
    for name in asked {
        let named = names::parse(&name, owner)?;
        match look_up(store, owner, &named, clear).await {
            Ok(parameter) => found.push(parameter),
            Err(ApiError::Service { .. }) => invalid.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(json!({ "Parameters": found, "InvalidParameters": invalid }))
}

pub(super) async fn by_path(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::GetParametersByPath,
) -> Result<Value, ApiError> {
    let path = names::parse_path(&input.path.unwrap_or_default())?;
    let recursive = input.recursive.unwrap_or(false);
    let clear = input.with_decryption.unwrap_or(false);
    let filters = input.parameter_filters.unwrap_or_default();
    let question = format!("GetParametersByPath {path:?} {recursive} {filters:?}");
    let mut found = store.parameters().await.map_err(refusal)?;
    found.retain(|parameter| names::is_below(&parameter.name, &path, recursive));
    list::filter(&mut found, &filters, &["Type", "KeyId"])?;
    let limit = limit(input.max_results, MAX_BY_PATH, MAX_BY_PATH)?;
    let key = |parameter: &Parameter| parameter.name.clone();
    let token = input.next_token.as_deref().filter(|token| !token.is_empty());
    let (found, next) = page(found, key, Order::Ascending, &question, token, limit).map_err(invalid_token)?;
    let mut shapes = Vec::with_capacity(found.len());
    for parameter in &found {
        match store.parameter_value(&parameter.name, None).await {
            Ok((version, value)) => {
                shapes.push(shape(owner, &parameter.name, &version, &value, None, clear));
            }
            // It went just now.
            Err(SecretError::ParameterNotFound(_)) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
    let mut answer = Map::new();
    put(&mut answer, "Parameters", Some(shapes));
    put(&mut answer, "NextToken", next);
    Ok(Value::Object(answer))
}

pub(super) async fn history(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::GetParameterHistory,
) -> Result<Value, ApiError> {
    let text = input.name.unwrap_or_default();
    let named = names::parse(&text, owner)?;
    let clear = input.with_decryption.unwrap_or(false);
    let limit = limit(input.max_results, MAX_HISTORY, MAX_HISTORY)?;
    let mut found = None;
    for name in &named.names {
        match store.parameter_versions(name).await {
            Ok(versions) => {
                found = Some((name, versions));
                break;
            }
            Err(SecretError::ParameterNotFound(_)) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
    let (name, versions) = found.ok_or_else(|| not_found(&text))?;
    let question = format!("GetParameterHistory {name:?}");
    let key = |version: &u64| format!("{version:020}");
    let token = input.next_token.as_deref().filter(|token| !token.is_empty());
    let (versions, next) =
        page(versions, key, Order::Ascending, &question, token, limit).map_err(invalid_token)?;
    let mut shapes = Vec::with_capacity(versions.len());
    for version in versions {
        let (version, value) = match store.parameter_value(name, Some(version)).await {
            Err(SecretError::ParameterVersionNotFound { .. }) => continue,
            other => other.map_err(refusal)?,
        };
        let mut shape = list::metadata(name, &version);
        put(&mut shape, "Value", Some(shown_value(&version, &value, clear)));
        put(&mut shape, "Labels", Some(json!([])));
        shapes.push(Value::Object(shape));
    }
    let mut answer = Map::new();
    put(&mut answer, "Parameters", Some(shapes));
    put(&mut answer, "NextToken", next);
    Ok(Value::Object(answer))
}

async fn look_up(store: &SecretStore, owner: &Owner, named: &Named, clear: bool) -> Result<Value, ApiError> {
    let asked = named.names.first().map(String::as_str).unwrap_or_default();
    for name in &named.names {
        let newest = match store.parameter(name).await {
            Ok(parameter) => parameter.newest.version,
            Err(SecretError::ParameterNotFound(_)) => continue,
            Err(error) => return Err(refusal(error)),
        };
        let version = match (&named.selector, named.version()) {
            (None, _) => newest,
            (Some(_), Some(version)) => version,
            (Some(selector), None) => return Err(version_not_found(name, selector)),
        };
        let (version, value) = store
            .parameter_value(name, Some(version))
            .await
            .map_err(refusal)?;
        let selector = named.selector.as_deref();
        return Ok(shape(owner, name, &version, &value, selector, clear));
    }
    Err(not_found(asked))
}

fn shape(
    owner: &Owner,
    name: &str,
    version: &ParameterVersion,
    value: &SecretText,
    selector: Option<&str>,
    clear: bool,
) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "Name", Some(name));
    put(&mut shape, "Type", Some(version.kind.as_str()));
    put(&mut shape, "Value", Some(shown_value(version, value, clear)));
    put(&mut shape, "Version", Some(version.version));
    put(
        &mut shape,
        "Selector",
        selector.map(|selector| format!(":{selector}")),
    );
    put(&mut shape, "LastModifiedDate", Some(seconds(version.modified_at)));
    put(&mut shape, "ARN", Some(owner.parameter(name)));
    put(&mut shape, "DataType", Some(&version.data_type));
    Value::Object(shape)
}

fn shown_value<'a>(version: &ParameterVersion, value: &'a SecretText, clear: bool) -> &'a str {
    match version.kind {
        ParameterType::SecureString if !clear => ENCRYPTED,
        _ => value.expose(),
    }
}
