//! `berth metrics`: what a task's machine counts.

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::{output, table, task};

#[derive(Args)]
#[command(after_help = "\
Counters are totals since the machine started. Their names end in their unit; Us are microseconds.

Examples:
  berth metrics 3f2a
  berth metrics 3f2a --json | jq .netRxBytes")]
pub(super) struct MetricsArgs {
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn metrics(args: MetricsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let found = task::Task::from_json(&task::find(&client, &args.task).await?)?;
    let answer = client
        .call(Service::Berth, "GetMachineMetrics", &json!({"task": found.id()}))
        .await?;
    let metrics = &answer["metrics"];
    anyhow::ensure!(
        !metrics.is_null(),
        "the task {} is {}, and has no machine",
        found.id(),
        found.last_status
    );
    let text = if args.json {
        format!("{metrics:#}\n")
    } else {
        page(metrics)
    };
    Ok(output::print(&text)?)
}

fn page(metrics: &Value) -> String {
    let known = metrics.as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> = known
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    table::columns(&["COUNTER", "VALUE"], &rows, &[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_a_line_and_what_the_host_does_not_know_is_none() {
        let text = page(&json!({"blockReadOps": 12, "memoryPeakBytes": null}));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("blockReadOps") && text.contains("12"), "{text}");
    }
}
