//! GetBill.

use berth_runtime::model::Timestamp;
use berth_runtime::model::bill::{Bill, BillQuery, BilledLine};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::ecs::values::{seconds, tags_json};
use crate::error::{ApiError, unexpected};

const NANOS: u64 = 1_000_000_000;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GetBill {
    task: Option<String>,
    since: Option<f64>,
}

pub(super) async fn get(app: &App, input: GetBill) -> Result<Value, ApiError> {
    let task = input
        .task
        .as_deref()
        .map(|task| super::task_id(app, Some(task)))
        .transpose()?;
    let since = input.since.map(since).transpose()?;
    let bill = app
        .runtime
        .bill(BillQuery { task, since })
        .await
        .map_err(|error| unexpected(&error))?;
    Ok(encode(app, &bill))
}

fn since(seconds: f64) -> Result<Timestamp, ApiError> {
    // The end of the year 9999; below it, milliseconds are exact.
    if !(0.0..=253_402_300_799.0).contains(&seconds) {
        return Err(ApiError::InvalidParameter(
            "since must be a time in seconds since the epoch.".to_owned(),
        ));
    }
    Ok(Timestamp((seconds * 1000.0).round() as u64))
}

fn encode(app: &App, bill: &Bill) -> Value {
    let lines = bill.lines.iter().map(|billed| line(app, billed));
    json!({
        "currency": bill.currency,
        "minimumSeconds": bill.minimum_seconds,
        "lines": lines.collect::<Vec<_>>(),
        "totalNanos": bill.total_nanos,
        "total": decimal(bill.total_nanos),
    })
}

fn line(app: &App, billed: &BilledLine) -> Value {
    let line = &billed.line;
    json!({
        "task": line.task,
        "taskArn": app.owner.task(&line.cluster, &line.task),
        "cluster": line.cluster,
        "family": line.family,
        "revision": line.revision,
        "region": line.region,
        "architecture": line.architecture,
        "purchase": line.purchase,
        "cpuUnits": line.cpu_units,
        "memoryMib": line.memory_mib,
        "ephemeralStorageGib": line.ephemeral_storage_gib,
        "tags": tags_json(&line.tags),
        "openedAt": seconds(line.opened_at),
        "closedAt": line.closed.map(|closed| seconds(closed.at)),
        "closedAtLastHeartbeat": line.closed.is_some_and(|closed| closed.at_last_heartbeat),
        "open": billed.open,
        "billedSeconds": billed.billed_seconds,
        "pausedSeconds": billed.paused_seconds,
        "vcpuNanos": billed.vcpu_nanos,
        "vcpu": decimal(billed.vcpu_nanos),
        "memoryNanos": billed.memory_nanos,
        "memory": decimal(billed.memory_nanos),
        "storageNanos": billed.storage_nanos,
        "storage": decimal(billed.storage_nanos),
        "totalNanos": billed.total_nanos,
        "total": decimal(billed.total_nanos),
    })
}

/// Exact: nine decimal places.
fn decimal(nanos: u64) -> String {
    format!("{}.{:09}", nanos / NANOS, nanos % NANOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_decimals() {
        assert_eq!(decimal(0), "0.000000000");
        assert_eq!(decimal(1_234_567_890_001), "1234.567890001");
        assert_eq!(decimal(u64::MAX), "18446744073.709551615");
    }

    #[test]
    fn times_outside_the_calendar_are_refused() {
        assert_eq!(since(1.5), Ok(Timestamp(1500)));
        for bad in [-1.0, 1e300, f64::NAN, f64::INFINITY] {
            assert!(since(bad).is_err(), "{bad} was taken");
        }
    }
}
