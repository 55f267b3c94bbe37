//! DescribeLogGroups and DescribeLogStreams.

use berth_runtime::model::log::{LogGroup, LogStream, LogStreamStats};
use serde_json::{Map, Value, json};

use super::shapes;
use super::{group, limit, refusal};
use crate::app::App;
use crate::ecs::values::put;
use crate::error::{ApiError, unexpected};
use crate::page::{Order, page};

const MAX_ITEMS: usize = 50;

pub(super) async fn groups(app: &App, input: shapes::DescribeLogGroups) -> Result<Value, ApiError> {
    if input.log_group_name_prefix.is_some() && input.log_group_name_pattern.is_some() {
        return Err(ApiError::InvalidParameter(
            "LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.".to_owned(),
        ));
    }
    let identifiers = input.log_group_identifiers.iter().flatten();
    let named: Vec<&str> = identifiers
        .map(|identifier| app.owner.parse_log_group(identifier))
        .collect::<Result<_, _>>()?;
    let class = input.log_group_class.as_deref().unwrap_or("STANDARD");
    let question = format!(
        "DescribeLogGroups {:?} {:?} {class} {named:?}",
        input.log_group_name_prefix, input.log_group_name_pattern
    );
    let mut found = app
        .runtime
        .log_groups()
        .await
        .map_err(|error| unexpected(&error))?;
    found.retain(|group| {
        input
            .log_group_name_prefix
            .as_deref()
            .is_none_or(|prefix| group.name.starts_with(prefix))
            && input
                .log_group_name_pattern
                .as_deref()
                .is_none_or(|pattern| group.name.contains(pattern))
            && (named.is_empty() || named.contains(&group.name.as_str()))
            && class == "STANDARD"
    });
    let limit = limit("limit", input.limit, MAX_ITEMS, MAX_ITEMS)?;
    let key = |group: &LogGroup| group.name.clone();
    let (found, next) = page(
        found,
        key,
        Order::Ascending,
        &question,
        input.next_token.as_deref(),
        limit,
    )?;
    let mut groups = Vec::with_capacity(found.len());
    for group in &found {
        let streams = app.runtime.log_streams(&group.name).await.map_err(refusal)?;
        let stored = streams
            .iter()
            .fold(0u64, |sum, (_, stats)| sum.saturating_add(stats.stored_bytes));
        let arn = app.owner.log_group(&group.name);
        let mut shape = json!({
            "logGroupName": group.name,
            "creationTime": group.created_at.0,
            "metricFilterCount": 0,
            "arn": format!("{arn}:*"),
            "logGroupArn": arn,
            "logGroupClass": "STANDARD",
            "storedBytes": stored,
        });
        if let Some(days) = group.retention_days {
            shape["retentionInDays"] = json!(days);
        }
        groups.push(shape);
    }
    let mut answer = Map::new();
    put(&mut answer, "logGroups", Some(groups));
    put(&mut answer, "nextToken", next);
    Ok(Value::Object(answer))
}

pub(super) async fn streams(app: &App, input: shapes::DescribeLogStreams) -> Result<Value, ApiError> {
    let group = group(
        app,
        input.log_group_name.as_deref(),
        input.log_group_identifier.as_deref(),
    )?;
    let by_time = match input.order_by.as_deref() {
        None | Some("LogStreamName") => false,
        Some("LastEventTime") if input.log_stream_name_prefix.is_some() => {
            return Err(ApiError::InvalidParameter(
                "Cannot order by LastEventTime with a logStreamNamePrefix.".to_owned(),
            ));
        }
        Some("LastEventTime") => true,
        Some(_) => {
            return Err(ApiError::InvalidParameter(
                "orderBy must be LogStreamName or LastEventTime.".to_owned(),
            ));
        }
    };
    let order = if input.descending == Some(true) {
        Order::Descending
    } else {
        Order::Ascending
    };
    let prefix = input.log_stream_name_prefix.unwrap_or_default();
    let question = format!("DescribeLogStreams {group:?} {prefix:?} {by_time} {order:?}");
    let mut found = app.runtime.log_streams(group).await.map_err(refusal)?;
    found.retain(|(stream, _)| stream.name.starts_with(&prefix));
    let key = |(stream, stats): &(LogStream, LogStreamStats)| {
        let last = stats.last_event_at.unwrap_or(stream.created_at);
        if by_time {
            format!("{:020} {}", last.0, stream.name)
        } else {
            stream.name.clone()
        }
    };
    let limit = limit("limit", input.limit, MAX_ITEMS, MAX_ITEMS)?;
    let (found, next) = page(found, key, order, &question, input.next_token.as_deref(), limit)?;
    let streams = found.iter().map(|(stream, stats)| {
        let mut shape = Map::new();
        put(&mut shape, "logStreamName", Some(&stream.name));
        put(&mut shape, "creationTime", Some(stream.created_at.0));
        put(
            &mut shape,
            "firstEventTimestamp",
            stats.first_event_at.map(|time| time.0),
        );
        put(
            &mut shape,
            "lastEventTimestamp",
            stats.last_event_at.map(|time| time.0),
        );
        put(
            &mut shape,
            "lastIngestionTime",
            stats.last_ingested_at.map(|time| time.0),
        );
        put(
            &mut shape,
            "uploadSequenceToken",
            Some(super::put::SEQUENCE_TOKEN),
        );
        put(
            &mut shape,
            "arn",
            Some(app.owner.log_stream(&stream.group, &stream.name)),
        );
        put(&mut shape, "storedBytes", Some(stats.stored_bytes));
        Value::Object(shape)
    });
    let mut answer = Map::new();
    put(&mut answer, "logStreams", Some(streams.collect::<Vec<_>>()));
    put(&mut answer, "nextToken", next);
    Ok(Value::Object(answer))
}
