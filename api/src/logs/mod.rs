//! The CloudWatch Logs API, `Logs_20140328`. A stream is written by a container with the awslogs driver, or else by
//! clients; reading is the same.

mod describe;
mod events;
mod filter;
mod groups;
mod pattern;
mod put;
mod shapes;
mod tail;

use berth_runtime::RuntimeError;
use berth_runtime::model::Timestamp;
use serde_json::Value;

pub(crate) use self::tail::{MAX_LIVE_TAILS, START_LIVE_TAIL, start as start_live_tail};

use crate::app::App;
use crate::decode::shape;
use crate::error::{ApiError, unexpected};
use crate::operations;

/// The operation whose requests may be large.
pub(crate) const PUT_LOG_EVENTS: &str = "PutLogEvents";
/// A batch of 1 MiB with every character written as six.
pub(crate) const MAX_PUT_BODY_BYTES: usize = 8 * 1024 * 1024;

const ALREADY_EXISTS: &str = "ResourceAlreadyExistsException";
const MAX_NAME_CHARS: usize = 512;
/// Most events, and most bytes of text, in an answer.
const MAX_EVENTS: usize = 10_000;
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// How much of the logs one request looks at; after that a token leads on.
const MAX_SCANNED_BYTES: u64 = 64 * 1024 * 1024;

pub(crate) async fn call(app: &App, operation: &str, body: &[u8]) -> Result<Value, ApiError> {
    match operation {
        "DescribeLogGroups" => describe::groups(app, shape(body)?).await,
        "DescribeLogStreams" => describe::streams(app, shape(body)?).await,
        "GetLogEvents" => events::get(app, shape(body)?).await,
        "CreateLogGroup" => groups::create(app, shape(body)?).await,
        "DeleteLogGroup" => groups::delete(app, shape(body)?).await,
        "CreateLogStream" => groups::create_stream(app, shape(body)?).await,
        "DeleteLogStream" => groups::delete_stream(app, shape(body)?).await,
        "PutRetentionPolicy" => groups::put_retention(app, shape(body)?).await,
        "DeleteRetentionPolicy" => groups::delete_retention(app, shape(body)?).await,
        "TagResource" | "TagLogGroup" => groups::tag(app, shape(body)?).await,
        "UntagResource" | "UntagLogGroup" => groups::untag(app, shape(body)?).await,
        "ListTagsForResource" | "ListTagsLogGroup" => groups::list_tags(app, shape(body)?).await,
        PUT_LOG_EVENTS => put::put(app, shape(body)?).await,
        "TestMetricFilter" => filter::test(shape(body)?),
        "FilterLogEvents" => filter::filter(app, shape(body)?).await,
        other if operations::LOGS.binary_search(&other).is_ok() => Err(ApiError::InvalidOperation(format!(
            "Berth does not support {other} yet."
        ))),
        other => {
            let other: String = other.chars().take(100).collect();
            Err(ApiError::UnknownOperation(format!(
                "There is no operation '{other}' in CloudWatch Logs."
            )))
        }
    }
}

pub(crate) fn is_group_name(name: &str) -> bool {
    let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/#".contains(&byte);
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(in_a_name)
}

pub(crate) fn is_stream_name(name: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&name.chars().count())
        && !name.contains(|it: char| matches!(it, ':' | '*') || it.is_control())
}

/// The group that a request names in one of two ways.
fn group<'a>(app: &App, name: Option<&'a str>, identifier: Option<&'a str>) -> Result<&'a str, ApiError> {
    let refuse = |text: &str| Err(ApiError::InvalidParameter(text.to_owned()));
    let name = match (name, identifier) {
        (Some(_), Some(_)) => {
            return refuse("LogGroup name and LogGroup ARN are mutually exclusive parameters.");
        }
        (Some(name), None) => name,
        (None, Some(identifier)) => app.owner.parse_log_group(identifier)?,
        (None, None) => return refuse("Please specify either logGroupName or logGroupIdentifier."),
    };
    if is_group_name(name) {
        Ok(name)
    } else {
        refuse("The specified log group name is not valid.")
    }
}

fn stream_name(name: Option<&str>) -> Result<&str, ApiError> {
    let name = name.unwrap_or_default();
    if is_stream_name(name) {
        Ok(name)
    } else {
        Err(ApiError::InvalidParameter(
            "The specified log stream name is not valid.".to_owned(),
        ))
    }
}

/// A number with a default and bounds.
fn limit(member: &str, value: Option<i32>, default: usize, most: usize) -> Result<usize, ApiError> {
    match value.map(usize::try_from) {
        None => Ok(default),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::InvalidParameter(format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must have value \
             between 1 and {most}"
        ))),
    }
}

/// Milliseconds since the epoch.
fn time(member: &str, value: Option<i64>) -> Result<Option<Timestamp>, ApiError> {
    let negative = |_| {
        ApiError::InvalidParameter(format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must have value \
             greater than or equal to 0"
        ))
    };
    value
        .map(|value| u64::try_from(value).map(Timestamp).map_err(negative))
        .transpose()
}

fn invalid_token() -> ApiError {
    ApiError::InvalidParameter("The specified nextToken is invalid.".to_owned())
}

fn refusal(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::LogGroupNotFound(_) => {
            ApiError::ResourceNotFound("The specified log group does not exist.".to_owned())
        }
        RuntimeError::LogStreamNotFound(_) => {
            ApiError::ResourceNotFound("The specified log stream does not exist.".to_owned())
        }
        RuntimeError::LogGroupExists(_) => {
            ApiError::of_service(ALREADY_EXISTS, "The specified log group already exists")
        }
        RuntimeError::LogStreamExists(_) => {
            ApiError::of_service(ALREADY_EXISTS, "The specified log stream already exists")
        }
        RuntimeError::LogStreamOfContainer(_) => ApiError::InvalidParameter(
            "The specified log stream belongs to a container, and nobody else can write to it.".to_owned(),
        ),
        RuntimeError::InvalidPosition(_) => invalid_token(),
        error => unexpected(&error),
    }
}
