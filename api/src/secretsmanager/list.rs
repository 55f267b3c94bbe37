//! ListSecrets, ListSecretVersionIds.

use berth_runtime::model::secret::{Secret, SecretVersion};
use berth_runtime::secrets::SecretStore;
use serde_json::{Map, Value, json};

use super::{id, invalid_parameter, invalid_token, read, refusal, shapes};
use crate::arn::Owner;
use crate::ecs::values::{put, seconds};
use crate::error::ApiError;
use crate::page::{Order, page};

const MAX_ITEMS: usize = 100;
const MAX_FILTERS: usize = 10;
const FILTER_KEYS: &[&str] = &[
    "all",
    "description",
    "name",
    "owning-service",
    "primary-region",
    "tag-key",
    "tag-value",
];

pub(super) async fn secrets(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::ListSecrets,
) -> Result<Value, ApiError> {
    let deleted_too = input.include_planned_deletion.unwrap_or(false);
    let filters = input.filters.unwrap_or_default();
    if filters.len() > MAX_FILTERS {
        return Err(invalid_parameter(format!(
            "Filters cannot have more than {MAX_FILTERS} items."
        )));
    }
    for filter in &filters {
        let known = |key: &str| FILTER_KEYS.contains(&key);
        if !filter.key.as_deref().is_some_and(known) || filter.values.as_ref().is_none_or(Vec::is_empty) {
            return Err(invalid_parameter(format!(
                "A filter needs values and a key that is one of {}.",
                FILTER_KEYS.join(" ")
            )));
        }
    }
    let order = match input.sort_order.as_deref() {
        None | Some("asc") => Order::Ascending,
        Some("desc") => Order::Descending,
        Some(_) => return Err(invalid_parameter("SortOrder must be asc or desc.")),
    };
    let by = input.sort_by.unwrap_or_else(|| "created-date".to_owned());
    let time = |secret: &Secret| match by.as_str() {
        "last-accessed-date" => secret.accessed_at.map_or(0, |at| at.0),
        "last-changed-date" => secret.changed_at.0,
        "name" => 0,
        _ => secret.created_at.0,
    };
    if !["created-date", "last-accessed-date", "last-changed-date", "name"].contains(&by.as_str()) {
        return Err(invalid_parameter(
            "SortBy must be created-date, last-accessed-date, last-changed-date or name.",
        ));
    }
    let question = format!("ListSecrets {deleted_too} {filters:?} {order:?} {by}");
    let mut found = store.secrets().await.map_err(refusal)?;
    found.retain(|secret| {
        (deleted_too || secret.deletion.is_none()) && filters.iter().all(|filter| fits(secret, filter))
    });
    let key = |secret: &Secret| format!("{:020} {}", time(secret), secret.name);
    let limit = limit(input.max_results)?;
    let (found, next) =
        page(found, key, order, &question, input.next_token.as_deref(), limit).map_err(invalid_token)?;
    let shapes = found.iter().map(|secret| {
        let mut shape = read::metadata(owner, secret);
        put(&mut shape, "SecretVersionsToStages", Some(read::stages(secret)));
        Value::Object(shape)
    });
    let mut answer = Map::new();
    put(&mut answer, "SecretList", Some(shapes.collect::<Vec<_>>()));
    put(&mut answer, "NextToken", next);
    Ok(Value::Object(answer))
}

pub(super) async fn versions(
    store: &SecretStore,
    owner: &Owner,
    input: shapes::ListSecretVersionIds,
) -> Result<Value, ApiError> {
    let id = id(owner, input.secret_id.as_deref())?;
    let deprecated_too = input.include_deprecated.unwrap_or(false);
    let limit = limit(input.max_results)?;
    let secret = store.secret(id).await.map_err(refusal)?;
    let question = format!("ListSecretVersionIds {} {deprecated_too}", secret.resource());
    let found: Vec<_> = secret.versions.clone().into_iter().collect();
    let found = found
        .into_iter()
        .filter(|(_, it)| deprecated_too || !it.stages.is_empty());
    let key = |(id, version): &(String, SecretVersion)| format!("{:020} {id}", version.created_at.0);
    let token = input.next_token.as_deref();
    let (found, next) =
        page(found.collect(), key, Order::Ascending, &question, token, limit).map_err(invalid_token)?;
    let shapes = found.iter().map(|(id, version)| {
        json!({
            "VersionId": id,
            "VersionStages": version.stages,
            "CreatedDate": seconds(version.created_at),
        })
    });
    let mut answer = Map::new();
    put(&mut answer, "Versions", Some(shapes.collect::<Vec<_>>()));
    put(&mut answer, "NextToken", next);
    put(&mut answer, "ARN", Some(owner.secret(&secret.resource())));
    put(&mut answer, "Name", Some(&secret.name));
    Ok(Value::Object(answer))
}

/// Whether one of the filter's values begins what it looks at. A value that begins with `!` must not.
fn fits(secret: &Secret, filter: &shapes::Filter) -> bool {
    let begins = |text: &str, value: &str| text.starts_with(value);
    let begins_in_any_case = |text: &str, value: &str| text.to_lowercase().starts_with(&value.to_lowercase());
    let has = |value: &str| {
        let description = secret.description.as_deref().unwrap_or_default();
        let described = || {
            let mut words = description.split_whitespace();
            begins_in_any_case(description, value) || words.any(|word| begins_in_any_case(word, value))
        };
        let tag_key = || secret.tags.iter().any(|tag| begins(&tag.key, value));
        let tag_value = || secret.tags.iter().any(|tag| begins(&tag.value, value));
        match filter.key.as_deref() {
            Some("name") => begins(&secret.name, value),
            Some("description") => described(),
            Some("tag-key") => tag_key(),
            Some("tag-value") => tag_value(),
            Some("all") => begins_in_any_case(&secret.name, value) || described() || tag_key() || tag_value(),
            // No secret here has an owner or a region beside its own.
            _ => false,
        }
    };
    let mut values = filter.values.iter().flatten();
    values.any(|value| match value.strip_prefix('!') {
        Some(value) => !has(value),
        None => has(value),
    })
}

fn limit(value: Option<i32>) -> Result<usize, ApiError> {
    match value.map(usize::try_from) {
        None => Ok(MAX_ITEMS),
        Some(Ok(limit)) if (1..=MAX_ITEMS).contains(&limit) => Ok(limit),
        Some(_) => Err(invalid_parameter(format!(
            "MaxResults must be between 1 and {MAX_ITEMS}."
        ))),
    }
}
