//! PutLogEvents: a batch of events for one stream. Sequence tokens are taken and ignored, as AWS does now.

use berth_runtime::model::Timestamp;
use berth_runtime::model::log::LogGroup;
use serde_json::{Map, Value, json};

use super::shapes;
use super::{group, refusal, stream_name};
use crate::app::App;
use crate::error::ApiError;

/// What every answer gives; nobody needs it.
pub(super) const SEQUENCE_TOKEN: &str = "00000000000000000000000000000000000000000000000000000001";

const MAX_EVENTS: usize = 10_000;
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// What each event counts beside its message.
const EVENT_OVERHEAD_BYTES: usize = 26;
const HOUR_MS: u64 = 60 * 60 * 1000;
const LONGEST_SPAN_MS: u64 = 24 * HOUR_MS;
const OLDEST_MS: u64 = 14 * 24 * HOUR_MS;
const NEWEST_MS: u64 = 2 * HOUR_MS;

pub(super) async fn put(app: &App, input: shapes::PutLogEvents) -> Result<Value, ApiError> {
    let group = group(app, input.log_group_name.as_deref(), None)?;
    let stream = stream_name(input.log_stream_name.as_deref())?;
    let mut events = checked(input.log_events.unwrap_or_default())?;
    let group = app.runtime.log_group(group).await.map_err(refusal)?;
    // Rejecting every event needs a stream too.
    app.runtime
        .log_stream(&group.name, stream)
        .await
        .map_err(refusal)?;
    let rejected = Rejected::of(&events, &group, app.runtime.now());
    events.truncate(rejected.taken.end);
    events.drain(..rejected.taken.start);
    if !events.is_empty() {
        let stored = app.runtime.put_log_events(&group.name, stream, events);
        stored.await.map_err(refusal)?;
    }
    let mut answer = json!({ "nextSequenceToken": SEQUENCE_TOKEN });
    if !rejected.info.is_empty() {
        answer["rejectedLogEventsInfo"] = Value::Object(rejected.info);
    }
    Ok(answer)
}

/// The events of a batch that keeps the rules for batches.
fn checked(events: Vec<shapes::InputLogEvent>) -> Result<Vec<(Timestamp, String)>, ApiError> {
    let refuse = |text: String| Err(ApiError::InvalidParameter(text));
    if !(1..=MAX_EVENTS).contains(&events.len()) {
        return refuse(format!(
            "1 validation error detected: Value at 'logEvents' failed to satisfy constraint: Member must have length \
             between 1 and {MAX_EVENTS}"
        ));
    }
    let mut checked = Vec::with_capacity(events.len());
    let mut bytes = 0;
    for (number, event) in events.into_iter().enumerate() {
        let message = event.message.unwrap_or_default();
        let invalid = |member: &str, rule: &str| {
            let number = number + 1;
            refuse(format!(
                "1 validation error detected: Value at 'logEvents.{number}.member.{member}' failed to satisfy constraint: \
                 Member must {rule}"
            ))
        };
        let Some(timestamp) = event.timestamp.and_then(|time| u64::try_from(time).ok()) else {
            return invalid("timestamp", "have value greater than or equal to 0");
        };
        if message.is_empty() {
            return invalid("message", "have length greater than or equal to 1");
        }
        let counted = message.len() + EVENT_OVERHEAD_BYTES;
        if counted > MAX_BATCH_BYTES {
            return refuse(format!(
                "Log event too large: {counted} bytes exceeds limit of {MAX_BATCH_BYTES}"
            ));
        }
        bytes += counted;
        checked.push((Timestamp(timestamp), message));
    }
    if bytes > MAX_BATCH_BYTES {
        return refuse(format!(
            "Upload too large: {bytes} bytes exceeds limit of {MAX_BATCH_BYTES}"
        ));
    }
    if !checked.is_sorted_by_key(|(time, _)| *time) {
        return refuse(
            "Log events in a single PutLogEvents request must be in chronological order.".to_owned(),
        );
    }
    if let (Some((first, _)), Some((last, _))) = (checked.first(), checked.last())
        && last.millis_since(*first) > LONGEST_SPAN_MS
    {
        return refuse(
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
                .to_owned(),
        );
    }
    Ok(checked)
}

/// Which events are not taken, because of their times.
struct Rejected {
    taken: std::ops::Range<usize>,
    info: Map<String, Value>,
}

impl Rejected {
    fn of(events: &[(Timestamp, String)], group: &LogGroup, now: Timestamp) -> Rejected {
        let before = |time: Timestamp| events.partition_point(|(at, _)| *at < time);
        let too_old = before(Timestamp(now.0.saturating_sub(OLDEST_MS)));
        let expired = group.kept_since(now).map_or(0, before);
        let too_new = before(now.plus_millis(NEWEST_MS + 1));
        let mut info = Map::new();
        if too_old > 0 {
            info.insert("tooOldLogEventEndIndex".to_owned(), json!(too_old));
        }
        if expired > 0 {
            info.insert("expiredLogEventEndIndex".to_owned(), json!(expired));
        }
        if too_new < events.len() {
            info.insert("tooNewLogEventStartIndex".to_owned(), json!(too_new));
        }
        let first = too_old.max(expired);
        Rejected {
            taken: first..too_new.max(first),
            info,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(timestamp: i64, message: &str) -> shapes::InputLogEvent {
        shapes::InputLogEvent {
            timestamp: Some(timestamp),
            message: Some(message.to_owned()),
        }
    }

    fn refused(events: Vec<shapes::InputLogEvent>) -> String {
        checked(events).unwrap_err().to_string()
    }

    #[test]
    fn a_batch_that_breaks_a_rule_is_refused_by_its_name() {
        assert!(refused(Vec::new()).contains("between 1 and 10000"));
        assert!(refused(vec![event(-1, "a")]).contains("'logEvents.1.member.timestamp'"));
        assert!(refused(vec![event(1, "a"), event(1, "")]).contains("'logEvents.2.member.message'"));
        assert!(refused(vec![event(2, "a"), event(1, "b")]).contains("chronological order"));
        assert!(refused(vec![event(0, "a"), event(86_400_001, "b")]).contains("24 hours"));
        assert!(refused(vec![event(0, "a"); 10_001]).contains("between 1 and 10000"));
        let half = "x".repeat(MAX_BATCH_BYTES / 2 - EVENT_OVERHEAD_BYTES);
        assert_eq!(checked(vec![event(0, &half), event(0, &half)]).unwrap().len(), 2);
        assert_eq!(
            refused(vec![event(0, &half), event(0, &half), event(0, "x")]),
            "Upload too large: 1048603 bytes exceeds limit of 1048576"
        );
        let whole = "x".repeat(MAX_BATCH_BYTES - EVENT_OVERHEAD_BYTES + 1);
        assert_eq!(
            refused(vec![event(0, &whole)]),
            "Log event too large: 1048577 bytes exceeds limit of 1048576"
        );
    }

    #[test]
    fn events_that_are_too_old_too_new_or_expired_are_left_out_and_told() {
        let hours = |hours: u64| Timestamp(hours * HOUR_MS);
        let now = hours(1000);
        let at =
            |times: &[u64]| -> Vec<_> { times.iter().map(|time| (hours(*time), String::new())).collect() };
        let mut group = LogGroup::new("g", now);
        let rejected = Rejected::of(&at(&[600, 663, 664, 1000, 1002, 1003]), &group, now);
        assert_eq!(rejected.taken, 2..5);
        assert_eq!(
            Value::Object(rejected.info),
            json!({ "tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 5 })
        );
        group.retention_days = Some(1);
        let rejected = Rejected::of(&at(&[975, 976]), &group, now);
        assert_eq!(rejected.taken, 1..2);
        assert_eq!(
            Value::Object(rejected.info),
            json!({ "expiredLogEventEndIndex": 1 })
        );
        let rejected = Rejected::of(&at(&[1003]), &group, now);
        assert!(rejected.taken.is_empty());
        let rejected = Rejected::of(&at(&[1]), &group, now);
        assert!(rejected.taken.is_empty());
    }
}
