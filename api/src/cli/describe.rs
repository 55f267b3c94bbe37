//! `berth describe`: one task in full.

use clap::Args;
use serde_json::Value;

use super::client::{Client, Connection};
use super::{output, table, task};

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth describe 3f2a
  berth describe --json 3f2a | jq -r .stoppedReason")]
pub(super) struct DescribeArgs {
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    /// Print the task as DescribeTasks shows it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn describe(args: DescribeArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let found = task::find(&client, &args.task).await?;
    let text = if args.json {
        format!("{found:#}\n")
    } else {
        page(&found)?
    };
    Ok(output::print(&text)?)
}

/// Name and value, a line each; what is not known is left out.
fn page(value: &Value) -> Result<String, task::TaskError> {
    let task = task::Task::from_json(value)?;
    let mut lines: Vec<(&str, Option<String>)> = vec![
        ("task", Some(task.id().to_owned())),
        ("arn", Some(task.task_arn.clone())),
        ("cluster", Some(task.cluster().to_owned())),
        ("definition", Some(task.definition().to_owned())),
        ("group", task.group.clone()),
        ("started by", task.started_by.clone()),
        (
            "status",
            Some(format!("{} (desired {})", task.last_status, task.desired_status)),
        ),
        ("stop code", task.stop_code.clone()),
        ("stopped reason", task.stopped_reason.clone()),
        (
            "size",
            Some(format!("{} CPU units, {} MiB", task.cpu, task.memory)),
        ),
        (
            "address",
            task.interface_detail("privateIPv4Address").map(str::to_owned),
        ),
        ("mac", task.interface_detail("macAddress").map(str::to_owned)),
        (
            "interface",
            task.interface_detail("networkInterfaceId").map(str::to_owned),
        ),
        ("subnet", task.interface_detail("subnetId").map(str::to_owned)),
        ("created", time(task.created_at)),
        ("pull started", time(task.pull_started_at)),
        ("pull stopped", time(task.pull_stopped_at)),
        ("started", time(task.started_at)),
        ("paused", time(task.paused_at())),
        ("execution stopped", time(task.execution_stopped_at)),
        ("stopped", time(task.stopped_at)),
    ];
    for container in &task.containers {
        lines.extend([
            ("container", Some(container.name.clone())),
            ("  image", Some(container.image.clone())),
            ("  digest", container.image_digest.clone()),
            ("  status", Some(container.last_status.clone())),
            ("  exit code", container.exit_code.map(|code| code.to_string())),
            ("  reason", container.reason.clone()),
        ]);
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let known = lines
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    Ok(known
        .map(|(name, value)| format!("{name:width$}  {}\n", table::printable(value)))
        .collect())
}

/// Seconds since the epoch as RFC 3339 with milliseconds.
fn time(seconds: Option<f64>) -> Option<String> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "float casts saturate, and what is out of range is left out"
    )]
    let millis = (seconds? * 1000.0).round() as i64;
    Some(format!("{:.3}", jiff::Timestamp::from_millisecond(millis).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_members_are_left_out() {
        let text = page(&json!({
            "taskArn": "a/00ff", "lastStatus": "STOPPED", "desiredStatus": "STOPPED",
            "stoppedReason": "Essential container\u{1b} exited", "createdAt": 0.25,
            "containers": [{"name": "main", "exitCode": 7}],
        }))
        .unwrap();
        assert!(
            text.contains("stopped reason     Essential container\\u{1b} exited\n"),
            "{text}"
        );
        assert!(
            text.contains("created            1970-01-01T00:00:00.250Z\n"),
            "{text}"
        );
        assert!(
            text.contains("  exit code        7\n") && !text.contains("pull started"),
            "{text}"
        );
    }

    #[test]
    fn a_pause_is_told_with_its_time() {
        let text = page(&json!({
            "taskArn": "x/01", "lastStatus": "RUNNING",
            "attributes": [{"name": "berth.paused-at", "value": "1.5"}],
        }));
        assert!(text.unwrap().contains("1970-01-01T00:00:01.500Z"));
    }
}
