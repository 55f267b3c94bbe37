//! GetUsage: what containers have used, second by second. Counters are totals since the machine, or the container, started;
//! asking has the guests measure, for a minute from the last question on, so the first answer may take seconds.

use berth_runtime::model::task::{Task, TaskStatus};
use berth_runtime::protocol::message::ContainerUsage;
use berth_runtime::{Measurement, RuntimeError};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{refusal, task_id};
use crate::app::App;
use crate::ecs::values::seconds;
use crate::error::{ApiError, unexpected};

/// As many as are kept.
const MOST: usize = 60;
/// Enough for what is used now.
const DEFAULT: usize = 2;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Input {
    task: Option<String>,
    measurements: Option<usize>,
}

pub(super) async fn get(app: &App, input: Input) -> Result<Value, ApiError> {
    let most = input.measurements.unwrap_or(DEFAULT);
    if !(1..=MOST).contains(&most) {
        return Err(ApiError::InvalidParameter(format!(
            "measurements must be within 1 to {MOST}."
        )));
    }
    let mut tasks = match &input.task {
        Some(name) => vec![
            app.runtime
                .task(&task_id(app, Some(name))?)
                .await
                .map_err(refusal)?,
        ],
        None => app.runtime.tasks().await.map_err(|error| unexpected(&error))?,
    };
    tasks.retain(|task| task.status == TaskStatus::Running);
    let told = join_all(tasks.iter().map(|task| app.runtime.usage(&task.id))).await;
    let mut shown = Vec::new();
    for (task, told) in tasks.iter().zip(told) {
        match told {
            Ok(told) => shown.push(of(app, task, &told, most)),
            // Forgotten meanwhile.
            Err(RuntimeError::TaskNotFound(_)) => {}
            Err(error) => return Err(unexpected(&error)),
        }
    }
    Ok(json!({ "tasks": shown }))
}

fn of(app: &App, task: &Task, told: &[Measurement], most: usize) -> Value {
    let newest = &told[told.len().saturating_sub(most)..];
    let limits = task.containers.iter().map(|container| {
        let mib = container.memory_mib.unwrap_or(task.memory_mib);
        json!({ "name": container.name, "memoryLimitBytes": u64::from(mib) << 20 })
    });
    json!({
        "taskArn": app.owner.task(&task.cluster, &task.id),
        "containers": limits.collect::<Vec<_>>(),
        "measurements": newest.iter().map(measurement).collect::<Vec<_>>(),
    })
}

fn measurement(measurement: &Measurement) -> Value {
    let usage = &measurement.usage;
    let network = &usage.network;
    json!({
        "at": seconds(measurement.at),
        "diskUsedBytes": usage.disk_used_bytes,
        "diskBytes": usage.disk_bytes,
        "network": {
            "rxBytes": network.rx_bytes,
            "rxPackets": network.rx_packets,
            "rxErrors": network.rx_errors,
            "rxDropped": network.rx_dropped,
            "txBytes": network.tx_bytes,
            "txPackets": network.tx_packets,
            "txErrors": network.tx_errors,
            "txDropped": network.tx_dropped,
        },
        "containers": usage.containers.iter().map(container).collect::<Vec<_>>(),
    })
}

fn container(usage: &ContainerUsage) -> Value {
    json!({
        "name": usage.name,
        "cpuUs": usage.cpu_us,
        "cpuUserUs": usage.cpu_user_us,
        "cpuSystemUs": usage.cpu_system_us,
        "memoryBytes": usage.memory_bytes,
        "memoryInactiveFileBytes": usage.inactive_file_bytes,
        "memoryPeakBytes": usage.memory_peak_bytes,
        "pids": usage.pids,
        "readBytes": usage.read_bytes,
        "readOps": usage.read_ops,
        "writeBytes": usage.write_bytes,
        "writeOps": usage.write_ops,
    })
}
