//! `berth ps`: the tasks at a glance.

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Connection};
use super::{output, table, task};

/// Digits of a task id that are shown; enough to be unique on any one host.
const SHORT_ID: usize = 12;

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth ps              # what runs, in every cluster
  berth ps -a           # stopped tasks too
  berth ps --json       # one JSON array, as DescribeTasks shows tasks")]
pub(super) struct PsArgs {
    /// Stopped tasks too
    #[arg(short, long)]
    all: bool,
    /// Only this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn ps(args: PsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let tasks = task::list(&client, args.cluster.as_deref(), args.all).await?;
    let text = if args.json {
        format!("{:#}\n", json!(tasks))
    } else {
        let now = jiff::Timestamp::now().as_second();
        let rows = tasks
            .iter()
            .map(|task| row(task, now))
            .collect::<Result<Vec<_>, _>>()?;
        let header = [
            "TASK",
            "DEFINITION",
            "CLUSTER",
            "STATUS",
            "EXIT",
            "ADDRESS",
            "AGE",
            "IMAGE",
        ];
        table::columns(&header, &rows, &[4])
    };
    Ok(output::print(&text)?)
}

fn row(value: &Value, now: i64) -> Result<Vec<String>, task::TaskError> {
    let task = task::Task::from_json(value)?;
    let container = task.containers.first().cloned().unwrap_or_default();
    let dash = || "-".to_owned();
    Ok(vec![
        task.id().chars().take(SHORT_ID).collect(),
        task.definition().to_owned(),
        task.cluster().to_owned(),
        match task.paused_at() {
            Some(_) => "PAUSED".to_owned(),
            None => task.last_status.clone(),
        },
        container.exit_code.map_or_else(dash, |code| code.to_string()),
        task.interface_detail("privateIPv4Address")
            .map_or_else(dash, str::to_owned),
        task.created_at
            .map_or_else(dash, |created| table::span(seconds_between(created, now))),
        container.image,
    ])
}

/// Whole seconds from `then` (seconds since the epoch) to `now`; 0 if the clocks disagree.
fn seconds_between(then: f64, now: i64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "float casts saturate, and an age may lose its fraction"
    )]
    let then = then as i64;
    u64::try_from(now.saturating_sub(then)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_end_of_a_task() {
        let task = json!({
            "taskArn": "arn:aws:ecs:r:0:task/blue/0123456789abcdef0123456789abcdef", "clusterArn": "x/blue",
            "taskDefinitionArn": "x/web:3", "lastStatus": "STOPPED", "createdAt": 1000.5,
            "containers": [{"image": "nginx", "exitCode": 7}],
        });
        assert_eq!(
            row(&task, 1065).unwrap(),
            [
                "0123456789ab",
                "web:3",
                "blue",
                "STOPPED",
                "7",
                "-",
                "1m 5s",
                "nginx"
            ]
        );
    }

    #[test]
    fn a_paused_task_says_so() {
        let task = json!({
            "taskArn": "x/01", "clusterArn": "x/blue", "taskDefinitionArn": "x/web:3", "lastStatus": "RUNNING",
            "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}, {"name": "berth.paused-at", "value": "1000.5"}],
        });
        assert_eq!(row(&task, 1065).unwrap()[3], "PAUSED");
    }

    #[test]
    fn a_clock_ahead_of_ours_gives_no_age() {
        assert_eq!(seconds_between(2000.0, 1000), 0);
    }
}
