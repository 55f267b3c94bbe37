//! GetMachineMetrics: the counters of a task's machine. Each is a total since the machine started, and named after what it
//! counts in: `…Bytes`, `…Ops`, `…Packets`, `…Us` (microseconds). `startUs` is how long its VMM took from its start until
//! the guest ran: `startJailUs` for its jail, `startVmUs` for the virtual machine, `startStateUs` for the kernel or what a clone goes on
//! from, and `startDevicesUs`; `startWorkingSetUs` is what preparing a clone's memory took beside that. What the host counts of it is
//! `cpuUsageUs`, `memoryBytes` (now), `memoryPeakBytes`, `pids` (now) and `oomKills`: of its VMM, so all of its guest is in
//! there. What the guest says of its memory begins with `guest` (`guestFreeBytes`, `guestOomKills`, …): it is the guest's word, asked
//! when the operation is, or what it said `guestAgeMs` ago; `balloonTargetBytes` and `balloonBytes` are how much of its
//! memory the host has asked for and has.

use berth_runtime::{MachineMetrics, RuntimeError};
use serde_json::{Map, Value, json};

use super::{OneTask, refusal, task_id};
use crate::app::App;
use crate::error::{ApiError, unexpected};

pub(super) async fn get(app: &App, input: OneTask) -> Result<Value, ApiError> {
    let id = task_id(app, input.task.as_deref())?;
    let metrics = app.runtime.machine_metrics(&id).await.map_err(refusal)?;
    Ok(json!({ "metrics": metrics.as_ref().map(encode).transpose()? }))
}

fn encode(metrics: &MachineMetrics) -> Result<Value, ApiError> {
    let mut shape = Map::new();
    insert_all(&mut shape, "", &metrics.counters)?;
    if let Some(guest) = &metrics.guest {
        shape.insert("balloonTargetBytes".to_owned(), json!(guest.target_bytes));
        shape.insert("balloonBytes".to_owned(), json!(guest.actual_bytes));
        shape.insert("guestAgeMs".to_owned(), json!(guest.statistics_age_ms));
        insert_all(&mut shape, "guest_", &guest.statistics)?;
    }
    let usage = &metrics.usage;
    shape.insert("cpuUsageUs".to_owned(), json!(usage.cpu_usec));
    shape.insert("memoryBytes".to_owned(), json!(usage.memory_bytes));
    shape.insert("memoryPeakBytes".to_owned(), json!(usage.memory_peak_bytes));
    shape.insert("pids".to_owned(), json!(usage.pids));
    shape.insert("oomKills".to_owned(), json!(usage.oom_kills));
    Ok(Value::Object(shape))
}

/// Inserts the fields of a structure, as the API writes names; nothing of none.
fn insert_all(
    shape: &mut Map<String, Value>,
    prefix: &str,
    fields: &impl serde::Serialize,
) -> Result<(), ApiError> {
    let fields = serde_json::to_value(fields)
        .map_err(|error| unexpected(&RuntimeError::Internal(error.to_string())))?;
    for (name, value) in fields.as_object().into_iter().flatten() {
        shape.insert(camel_case(&format!("{prefix}{name}")), value.clone());
    }
    Ok(())
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_runtime::{BalloonReport, MemoryStatistics};

    use super::*;

    #[test]
    fn every_counter_has_a_name_as_the_api_writes_names() {
        let shape = encode(&MachineMetrics::default()).unwrap();
        let names: Vec<&String> = shape.as_object().unwrap().keys().collect();
        assert!(names.contains(&&"netRxBytes".to_owned()), "{names:?}");
        for name in ["startWorkingSetUs", "startJailUs", "pageFaultsMajor"] {
            assert!(names.contains(&&name.to_owned()), "{names:?}");
        }
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_alphanumeric())),
            "{names:?}"
        );
    }

    #[test]
    fn what_the_guest_says_is_there_where_it_says_something() {
        let mut metrics = MachineMetrics {
            guest: Some(BalloonReport {
                actual_bytes: 4096,
                ..BalloonReport::default()
            }),
            ..MachineMetrics::default()
        };
        let silent = encode(&metrics).unwrap();
        assert_eq!(
            (&silent["balloonBytes"], &silent["guestAgeMs"]),
            (&json!(4096), &Value::Null)
        );
        assert!(silent.get("guestFreeBytes").is_none());
        metrics.guest.as_mut().unwrap().statistics = Some(MemoryStatistics {
            free_bytes: Some(u64::MAX),
            ..MemoryStatistics::default()
        });
        let said = encode(&metrics).unwrap();
        assert_eq!(said["guestFreeBytes"], json!(u64::MAX));
        assert_eq!(said["guestOomKills"], Value::Null);
    }
}
