//! The input shapes of the CloudWatch Logs operations that are answered here.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DescribeLogGroups {
    pub(super) log_group_name_prefix: Option<String>,
    pub(super) log_group_name_pattern: Option<String>,
    pub(super) log_group_class: Option<String>,
    pub(super) log_group_identifiers: Option<Vec<String>>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DescribeLogStreams {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_name_prefix: Option<String>,
    pub(super) order_by: Option<String>,
    pub(super) descending: Option<bool>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GetLogEvents {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_name: Option<String>,
    pub(super) start_time: Option<i64>,
    pub(super) end_time: Option<i64>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<i32>,
    pub(super) start_from_head: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilterLogEvents {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_names: Option<Vec<String>>,
    pub(super) log_stream_name_prefix: Option<String>,
    pub(super) start_time: Option<i64>,
    pub(super) end_time: Option<i64>,
    pub(super) filter_pattern: Option<String>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CreateLogGroup {
    pub(super) log_group_name: Option<String>,
    pub(super) kms_key_id: Option<String>,
    pub(super) tags: Option<BTreeMap<String, String>>,
    pub(super) log_group_class: Option<String>,
    pub(super) deletion_protection_enabled: Option<bool>,
}

/// What names a group and nothing else.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OfGroup {
    pub(super) log_group_name: Option<String>,
}

/// What names a stream and nothing else.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OfStream {
    pub(super) log_group_name: Option<String>,
    pub(super) log_stream_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PutRetentionPolicy {
    pub(super) log_group_name: Option<String>,
    pub(super) retention_in_days: Option<i32>,
}

/// TagResource, and TagLogGroup, which it replaced; and what lists tags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Tagging {
    pub(super) log_group_name: Option<String>,
    pub(super) resource_arn: Option<String>,
    pub(super) tags: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Untagging {
    pub(super) log_group_name: Option<String>,
    pub(super) resource_arn: Option<String>,
    pub(super) tag_keys: Option<Vec<String>>,
    pub(super) tags: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PutLogEvents {
    pub(super) log_group_name: Option<String>,
    pub(super) log_stream_name: Option<String>,
    pub(super) log_events: Option<Vec<InputLogEvent>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct InputLogEvent {
    pub(super) timestamp: Option<i64>,
    pub(super) message: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TestMetricFilter {
    pub(super) filter_pattern: Option<String>,
    pub(super) log_event_messages: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StartLiveTail {
    pub(super) log_group_identifiers: Option<Vec<String>>,
    pub(super) log_stream_names: Option<Vec<String>>,
    pub(super) log_stream_name_prefixes: Option<Vec<String>>,
    pub(super) log_event_filter_pattern: Option<String>,
}
