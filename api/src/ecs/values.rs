//! Small values that many shapes share: tags, name-value pairs, times, counts and pages.

use berth_runtime::model::isolation::{ISOLATION_TAG, Isolation};
use berth_runtime::model::{NameValue, Tag, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::shapes::{KeyValue, TagShape};
use crate::error::ApiError;
use crate::page::InvalidToken;

pub(super) const MAX_TAGS: usize = 50;
/// What Berth reads a tag for has such a key.
const OWN_TAGS: &str = "berth:";
/// What `berth run` finds its definitions by again. Tags of a definition may become those of tasks and volumes.
pub(crate) const RUN_TAG: &str = "berth:run-digest";
const MAX_TAG_KEY_CHARS: usize = 128;
const MAX_TAG_VALUE_CHARS: usize = 256;
/// Most items in a page, and in a list of resources to describe.
pub(crate) const MAX_RESULTS: usize = 100;

/// Adds a member that has a value.
pub(crate) fn put(shape: &mut Map<String, Value>, name: &str, value: Option<impl Serialize>) {
    if let Some(value) = value {
        shape.insert(name.to_owned(), json!(value));
    }
}

/// Seconds since the epoch, with milliseconds as the fraction.
pub(crate) fn seconds(time: Timestamp) -> Value {
    json!(time.0 as f64 / 1000.0)
}

pub(crate) fn name_values(list: Option<&[KeyValue]>) -> Vec<NameValue> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let pairs = list.unwrap_or_default().iter();
    pairs
        .map(|pair| NameValue {
            name: text(&pair.name),
            value: text(&pair.value),
        })
        .collect()
}

pub(crate) fn name_values_json(list: &[NameValue]) -> Value {
    list.iter()
        .map(|pair| json!({ "name": pair.name, "value": pair.value }))
        .collect()
}

pub(crate) fn tags_json(tags: &[Tag]) -> Value {
    tags.iter()
        .map(|tag| json!({ "key": tag.key, "value": tag.value }))
        .collect()
}

/// Checks tags that a caller sets for a cluster.
pub(crate) fn cluster_tags(list: Option<&[TagShape]>) -> Result<Vec<Tag>, ApiError> {
    let tags = checked_tags(list, &[ISOLATION_TAG])?;
    if Isolation::chosen(&tags).is_err() {
        let given = tags.iter().find(|tag| tag.key == ISOLATION_TAG);
        return Err(ApiError::InvalidParameter(format!(
            "Invalid value '{}' of the tag '{ISOLATION_TAG}': the tasks of a cluster are 'shared' or 'strict'.",
            given.map_or("", |tag| &tag.value)
        )));
    }
    Ok(tags)
}

/// Checks tags that a caller sets for anything else.
pub(crate) fn tags(list: Option<&[TagShape]>) -> Result<Vec<Tag>, ApiError> {
    checked_tags(list, &[RUN_TAG])
}

fn checked_tags(list: Option<&[TagShape]>, own: &[&str]) -> Result<Vec<Tag>, ApiError> {
    let refuse = |text: String| Err(ApiError::InvalidParameter(text));
    let list = list.unwrap_or_default();
    if list.len() > MAX_TAGS {
        return refuse(format!("The number of tags cannot be more than {MAX_TAGS}."));
    }
    let mut tags: Vec<Tag> = Vec::with_capacity(list.len());
    for tag in list {
        let key = tag.key.clone().unwrap_or_default();
        let value = tag.value.clone().unwrap_or_default();
        if key.is_empty() || key.chars().count() > MAX_TAG_KEY_CHARS {
            return refuse(format!(
                "A tag key must have 1 to {MAX_TAG_KEY_CHARS} characters."
            ));
        }
        if value.chars().count() > MAX_TAG_VALUE_CHARS {
            return refuse(format!(
                "A tag value cannot have more than {MAX_TAG_VALUE_CHARS} characters."
            ));
        }
        let in_a_tag = |it: char| it.is_alphanumeric() || it == ' ' || "_.:/=+-@".contains(it);
        if !key.chars().chain(value.chars()).all(in_a_tag) {
            return refuse("A tag contains invalid characters.".to_owned());
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return refuse("Tag keys that start with 'aws:' are reserved.".to_owned());
        }
        // What nothing reads is not taken: whoever sets it counts on it.
        if key.to_ascii_lowercase().starts_with(OWN_TAGS) && !own.contains(&key.as_str()) {
            return refuse(format!(
                "Berth knows no tag '{key}' here: '{ISOLATION_TAG}' is for clusters, other keys that start with '{OWN_TAGS}' are reserved."
            ));
        }
        if tags.iter().any(|other| other.key == key) {
            return refuse(format!("Duplicate tag key '{key}'."));
        }
        tags.push(Tag { key, value });
    }
    Ok(tags)
}

/// A number of the wire as an unsigned one.
pub(crate) fn unsigned<T: TryFrom<i32>>(member: &str, value: Option<i32>) -> Result<Option<T>, ApiError> {
    let out_of_range = |value| ApiError::InvalidParameter(format!("Invalid '{member}' setting {value}."));
    value
        .map(|value| T::try_from(value).map_err(|_| out_of_range(value)))
        .transpose()
}

/// `maxResults`.
pub(crate) fn limit(max_results: Option<i32>) -> Result<usize, ApiError> {
    match max_results.map(usize::try_from) {
        None => Ok(MAX_RESULTS),
        Some(Ok(limit @ 1..=MAX_RESULTS)) => Ok(limit),
        Some(_) => Err(ApiError::InvalidParameter(format!(
            "maxResults must be between 1 and {MAX_RESULTS}."
        ))),
    }
}

impl From<InvalidToken> for ApiError {
    fn from(_: InvalidToken) -> ApiError {
        ApiError::InvalidParameter("Invalid token".to_owned())
    }
}

/// A list operation's answer.
pub(crate) fn listed(member: &str, items: Vec<String>, next: Option<String>) -> Value {
    let mut shape = Map::new();
    put(&mut shape, member, Some(items));
    put(&mut shape, "nextToken", next);
    Value::Object(shape)
}

/// Whether `include` asks for this.
pub(crate) fn includes(include: Option<&[String]>, what: &str) -> bool {
    include.unwrap_or_default().iter().any(|asked| asked == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_milliseconds() {
        assert_eq!(
            seconds(Timestamp(1_793_534_400_123)).to_string(),
            "1793534400.123"
        );
        assert_eq!(seconds(Timestamp(0)).to_string(), "0.0");
    }

    #[test]
    fn pages_have_one_to_a_hundred_items() {
        assert_eq!(limit(None), Ok(100));
        assert_eq!(limit(Some(1)), Ok(1));
        for bad in [0, -1, 101, i32::MAX, i32::MIN] {
            assert!(limit(Some(bad)).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn tags_that_aws_would_refuse_are_refused() {
        let tag = |key: &str, value: &str| TagShape {
            key: Some(key.to_owned()),
            value: Some(value.to_owned()),
        };
        assert_eq!(tags(Some(&[tag("Größe", "a b/c")])).unwrap().len(), 1);
        let long = "x".repeat(129);
        for bad in [
            tag("", "x"),
            tag("aws:x", "x"),
            tag("AWS:x", ""),
            tag("a<", ""),
            tag(&long, ""),
        ] {
            assert!(
                tags(Some(std::slice::from_ref(&bad))).is_err(),
                "{bad:?} was taken"
            );
        }
        assert!(tags(Some(&[tag("a", "1"), tag("a", "2")])).is_err());
    }

    #[test]
    fn tags_that_berth_reads_are_checked() {
        let tag = |key: &str, value: &str| {
            [TagShape {
                key: Some(key.to_owned()),
                value: Some(value.to_owned()),
            }]
        };
        for value in ["shared", "strict"] {
            let tag = tag("berth:isolation", value);
            assert_eq!(cluster_tags(Some(&tag)).unwrap().len(), 1);
            // Only a cluster chooses.
            assert!(tags(Some(&tag)).is_err());
        }
        assert_eq!(
            cluster_tags(Some(&tag("berth:isolation", "Strict")))
                .unwrap_err()
                .to_string(),
            "Invalid value 'Strict' of the tag 'berth:isolation': the tasks of a cluster are 'shared' or 'strict'."
        );
        assert!(cluster_tags(Some(&tag("berth:isolation", ""))).is_err());
        assert_eq!(
            cluster_tags(Some(&tag("berth:isolaton", "strict")))
                .unwrap_err()
                .to_string(),
            "Berth knows no tag 'berth:isolaton' here: 'berth:isolation' is for clusters, other keys that start with \
             'berth:' are reserved."
        );
        assert!(cluster_tags(Some(&tag("Berth:isolation", "strict"))).is_err());
        assert!(tags(Some(&tag("berthing", "x"))).is_ok());
        // What `berth run` sets.
        assert!(tags(Some(&tag(RUN_TAG, "x"))).is_ok());
        assert!(cluster_tags(Some(&tag(RUN_TAG, "x"))).is_err());
    }
}
