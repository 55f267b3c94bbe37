//! DescribeParameters, and the filters of lists.

use berth_runtime::model::parameter::{Parameter, ParameterType, ParameterVersion};
use berth_runtime::secrets::SecretStore;
use serde_json::{Map, Value, json};

use super::names::{self, shown};
use super::{KEY_ALIAS, invalid_token, limit, refusal, shapes, validation};
use crate::arn::Owner;
use crate::ecs::values::{put, seconds};
use crate::error::ApiError;
use crate::page::{Order, page};

const MAX_ITEMS: usize = 50;
const KEYS: &[&str] = &["Name", "Type", "KeyId", "Path", "Tier", "DataType", "tag:"];

pub(super) async fn describe(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::DescribeParameters,
) -> Result<Value, ApiError> {
    let old = input.filters.unwrap_or_default();
    let mut filters = input.parameter_filters.unwrap_or_default();
    if !old.is_empty() && !filters.is_empty() {
        return Err(validation(
            "You can use either Filters or ParameterFilters in a single request.",
        ));
    }
    filters.extend(old.into_iter().map(|filter| shapes::ParameterStringFilter {
        option: (filter.key.as_deref() == Some("Name")).then(|| "BeginsWith".to_owned()),
        key: filter.key,
        values: filter.values,
    }));
    let question = format!("DescribeParameters {filters:?}");
    let mut found = store.parameters().await.map_err(refusal)?;
    filter(&mut found, &filters, KEYS)?;
    let limit = limit(input.max_results, MAX_ITEMS, MAX_ITEMS)?;
    let key = |parameter: &Parameter| parameter.name.clone();
    let token = input.next_token.as_deref().filter(|token| !token.is_empty());
    let (found, next) = page(found, key, Order::Ascending, &question, token, limit).map_err(invalid_token)?;
    let shapes = found.iter().map(|parameter| {
        let mut shape = metadata(&parameter.name, &parameter.newest);
        put(&mut shape, "ARN", Some(owner.parameter(&parameter.name)));
        Value::Object(shape)
    });
    let mut answer = Map::new();
    put(&mut answer, "Parameters", Some(shapes.collect::<Vec<_>>()));
    put(&mut answer, "NextToken", next);
    Ok(Value::Object(answer))
}

/// What is said of a version, without its value.
pub(super) fn metadata(name: &str, version: &ParameterVersion) -> Map<String, Value> {
    let mut shape = Map::new();
    put(&mut shape, "Name", Some(name));
    put(&mut shape, "Type", Some(version.kind.as_str()));
    put(
        &mut shape,
        "KeyId",
        (version.kind == ParameterType::SecureString).then_some(KEY_ALIAS),
    );
    put(&mut shape, "LastModifiedDate", Some(seconds(version.modified_at)));
    put(&mut shape, "LastModifiedUser", Some(&version.modified_by));
    put(&mut shape, "Description", version.description.as_ref());
    put(&mut shape, "AllowedPattern", version.allowed_pattern.as_ref());
    put(&mut shape, "Version", Some(version.version));
    put(&mut shape, "Tier", Some(version.tier.as_str()));
    put(&mut shape, "Policies", Some(json!([])));
    put(&mut shape, "DataType", Some(&version.data_type));
    shape
}

/// Keeps what all filters let through. `keys` are those that the operation has.
pub(super) fn filter(
    found: &mut Vec<Parameter>,
    filters: &[shapes::ParameterStringFilter],
    keys: &[&str],
) -> Result<(), ApiError> {
    for filter in filters {
        let key = filter.key.as_deref().unwrap_or_default();
        let values = filter.values.as_deref().unwrap_or_default();
        if !keys
            .iter()
            .any(|known| key == *known || (*known == "tag:" && key.starts_with("tag:")))
        {
            return Err(ApiError::of_service(
                "InvalidFilterKey",
                format!(
                    "The filter key '{}' is not one of {}.",
                    shown(key),
                    keys.join(" ")
                ),
            ));
        }
        let option = filter.option.as_deref().unwrap_or(match key {
            "Path" => "OneLevel",
            _ => "Equals",
        });
        let options: &[&str] = match key {
            "Name" => &["Equals", "BeginsWith", "Contains"],
            "KeyId" => &["Equals", "BeginsWith"],
            "Path" => &["OneLevel", "Recursive"],
            _ => &["Equals"],
        };
        if !options.contains(&option) {
            return Err(ApiError::of_service(
                "InvalidFilterOption",
                format!(
                    "The filter option '{}' is not valid. Valid options for {key} are {options:?}.",
                    shown(option)
                ),
            ));
        }
        let mut paths = Vec::new();
        if key == "Path" {
            for value in values {
                paths.push(names::parse_path(value)?);
            }
        }
        found.retain(|parameter| {
            let newest = &parameter.newest;
            let fits = |text: &str| values.iter().any(|value| matches(text, value, option));
            match key {
                // A name of one level is the same with its slash.
                "Name" => {
                    fits(&parameter.name) || (option != "Contains" && fits(&format!("/{}", parameter.name)))
                }
                "Type" => fits(newest.kind.as_str()),
                "KeyId" => newest.kind == ParameterType::SecureString && fits(KEY_ALIAS),
                "Tier" => fits(newest.tier.as_str()),
                "DataType" => fits(&newest.data_type),
                "Path" => paths
                    .iter()
                    .any(|path| names::is_below(&parameter.name, path, option == "Recursive")),
                tag => parameter.tags.iter().any(|it| {
                    tag.strip_prefix("tag:") == Some(&it.key)
                        && (values.is_empty() || values.contains(&it.value))
                }),
            }
        });
    }
    Ok(())
}

fn matches(text: &str, value: &str, option: &str) -> bool {
    match option {
        "BeginsWith" => text.starts_with(value),
        "Contains" => text.contains(value),
        _ => text == value,
    }
}
