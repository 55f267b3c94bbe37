//! `berth top`: what containers use now, from the last two measurements of each task.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{Client, Connection, Service};
use super::{output, table, task};

const EVERY: Duration = Duration::from_secs(1);
/// Upper left corner, and nothing below it.
const CLEAR: &str = "\x1b[H\x1b[J";
const ID_CHARS: usize = 12;

#[derive(Args)]
#[command(after_help = "\
CPU is of one vCPU, so a task of two can reach 200%. The network is the whole task's, and stands beside its first container.
Guests measure while somebody looks: the first numbers of a task take some seconds.

Examples:
  berth top
  berth top 3f2a
  berth top --once --json | jq '.tasks[].containers[].cpuPercent'")]
pub(super) struct TopArgs {
    /// The task's id, or any unique beginning of it; all that run if not given
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Print once and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn top(args: TopArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let mut question = json!({});
    if let Some(prefix) = &args.task {
        let found = task::Task::from_json(&task::find(&client, prefix).await?)?;
        question["task"] = json!(found.id());
    }
    let redraw = !args.once && !args.json && std::io::stdout().is_terminal();
    loop {
        let answer = client.call(Service::Berth, "GetUsage", &question).await?;
        let told: Told = serde_json::from_value(answer)?;
        let now = Now {
            tasks: told.tasks.iter().filter_map(now).collect(),
        };
        let text = match args.json {
            true => format!("{}\n", serde_json::to_string(&now)?),
            false => page(&now),
        };
        output::print(&format!("{}{text}", if redraw { CLEAR } else { "" }))?;
        if args.once {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Deserialize)]
struct Told {
    tasks: Vec<ToldTask>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldTask {
    task_arn: String,
    containers: Vec<Limit>,
    measurements: Vec<Measurement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limit {
    name: String,
    memory_limit_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Measurement {
    at: f64,
    disk_used_bytes: u64,
    network: Network,
    containers: Vec<Counters>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    rx_bytes: u64,
    tx_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counters {
    name: String,
    cpu_us: u64,
    memory_bytes: u64,
    pids: u64,
    read_bytes: u64,
    write_bytes: u64,
}

/// What is shown.
#[derive(Serialize)]
struct Now {
    tasks: Vec<NowTask>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NowTask {
    task_arn: String,
    /// Between the two measurements that the rates are of.
    seconds: f64,
    disk_used_bytes: u64,
    rx_bytes_per_second: f64,
    tx_bytes_per_second: f64,
    containers: Vec<NowContainer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NowContainer {
    name: String,
    cpu_percent: f64,
    memory_bytes: u64,
    memory_limit_bytes: u64,
    pids: u64,
    read_bytes_per_second: f64,
    write_bytes_per_second: f64,
}

/// None of a task that has not said twice what it uses.
fn now(told: &ToldTask) -> Option<NowTask> {
    let (newest, before) = match told.measurements.as_slice() {
        [.., before, newest] => (newest, before),
        _ => return None,
    };
    let seconds = newest.at - before.at;
    // A guest can tell any number; a counter that goes back has not moved.
    let rate = |newest: u64, before: u64| newest.saturating_sub(before) as f64 / seconds.max(0.001);
    let containers = newest.containers.iter().map(|own| {
        let first = before.containers.iter().find(|it| it.name == own.name);
        let rate =
            |counter: fn(&Counters) -> u64| first.map_or(0.0, |first| rate(counter(own), counter(first)));
        let limit = told.containers.iter().find(|limit| limit.name == own.name);
        NowContainer {
            name: own.name.clone(),
            cpu_percent: rate(|it| it.cpu_us) / 1e4,
            memory_bytes: own.memory_bytes,
            memory_limit_bytes: limit.map_or(0, |limit| limit.memory_limit_bytes),
            pids: own.pids,
            read_bytes_per_second: rate(|it| it.read_bytes),
            write_bytes_per_second: rate(|it| it.write_bytes),
        }
    });
    Some(NowTask {
        task_arn: told.task_arn.clone(),
        seconds,
        disk_used_bytes: newest.disk_used_bytes,
        rx_bytes_per_second: rate(newest.network.rx_bytes, before.network.rx_bytes),
        tx_bytes_per_second: rate(newest.network.tx_bytes, before.network.tx_bytes),
        containers: containers.collect(),
    })
}

fn page(now: &Now) -> String {
    let header = [
        "TASK",
        "CONTAINER",
        "CPU",
        "MEMORY",
        "OF",
        "PIDS",
        "READ/S",
        "WRITE/S",
        "RX/S",
        "TX/S",
    ];
    let mut rows = Vec::new();
    for task in &now.tasks {
        let id = task.task_arn.rsplit('/').next().unwrap_or_default();
        for (index, container) in task.containers.iter().enumerate() {
            let of_task = |rate: f64| if index == 0 { bytes(rate) } else { String::new() };
            rows.push(vec![
                id.chars().take(ID_CHARS).collect(),
                container.name.clone(),
                format!("{:.1}%", container.cpu_percent),
                bytes(container.memory_bytes as f64),
                bytes(container.memory_limit_bytes as f64),
                container.pids.to_string(),
                bytes(container.read_bytes_per_second),
                bytes(container.write_bytes_per_second),
                of_task(task.rx_bytes_per_second),
                of_task(task.tx_bytes_per_second),
            ]);
        }
    }
    table::columns(&header, &rows, &[2, 3, 4, 5, 6, 7, 8, 9])
}

/// Three digits or so, and a unit.
fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "KiB", "MiB"] {
        if count < 1024.0 {
            let digits = usize::from(unit != "B" && count < 100.0);
            return format!("{count:.digits$} {unit}");
        }
        count /= 1024.0;
    }
    format!("{count:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(measurements: &str) -> ToldTask {
        let json = format!(
            r#"{{"taskArn": "arn:aws:ecs:r:a:task/default/0123456789abcdef", "measurements": [{measurements}],
                "containers": [{{"name": "web", "memoryLimitBytes": 1073741824}}]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn measurement(at: f64, count: u64) -> String {
        format!(
            r#"{{"at": {at}, "diskUsedBytes": 7, "network": {{"rxBytes": {count}, "txBytes": 5}}, "containers": [{{
                "name": "web", "cpuUs": {count}, "memoryBytes": 2097152, "pids": 3, "readBytes": 0, "writeBytes": {count}}}]}}"#
        )
    }

    #[test]
    fn rates_are_between_the_last_two_measurements() {
        let all = [
            measurement(0.0, 0),
            measurement(10.0, 100_000),
            measurement(12.0, 1_100_000),
        ]
        .join(",");
        let shown = now(&told(&all)).unwrap();
        assert_eq!(shown.seconds, 2.0);
        assert_eq!(shown.containers[0].cpu_percent, 50.0);
        assert_eq!(shown.rx_bytes_per_second, 500_000.0);
        let text = page(&Now { tasks: vec![shown] });
        let line = text.lines().nth(1).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words[..5],
            ["0123456789ab", "web", "50.0%", "2.0", "MiB"],
            "{text}"
        );
    }

    #[test]
    fn nothing_is_made_up() {
        assert!(now(&told("")).is_none());
        assert!(now(&told(&measurement(1.0, 5))).is_none());
        let back = [measurement(1.0, 5_000_000), measurement(1.0, 0)].join(",");
        assert_eq!(now(&told(&back)).unwrap().containers[0].cpu_percent, 0.0);
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(300.0 * 1024.0 * 1024.0), "300 MiB");
        assert_eq!(bytes(2e12), "1862.6 GiB");
    }
}
