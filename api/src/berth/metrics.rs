//! GetMachineMetrics: the counters of a task's machine. Each is a total since the machine started, and named after what it
//! counts in: `…Bytes`, `…Ops`, `…Packets`, `…Us` (microseconds). `startUs` is how long its VMM took from its start until
//! the guest ran, and `startWorkingSetUs` what of that went into preparing a clone's memory. What the host counts of it is
//! `cpuUsageUs`, `memoryBytes` (now), `memoryPeakBytes`, `pids` (now) and `oomKills`: of its VMM, so all of its guest is in
//! there.

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
    let counters = serde_json::to_value(&metrics.counters)
        .map_err(|error| unexpected(&RuntimeError::Internal(error.to_string())))?;
    let mut shape = Map::new();
    for (name, value) in counters.as_object().into_iter().flatten() {
        shape.insert(camel_case(name), value.clone());
    }
    let usage = &metrics.usage;
    shape.insert("cpuUsageUs".to_owned(), json!(usage.cpu_usec));
    shape.insert("memoryBytes".to_owned(), json!(usage.memory_bytes));
    shape.insert("memoryPeakBytes".to_owned(), json!(usage.memory_peak_bytes));
    shape.insert("pids".to_owned(), json!(usage.pids));
    shape.insert("oomKills".to_owned(), json!(usage.oom_kills));
    Ok(Value::Object(shape))
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
    use super::*;

    #[test]
    fn every_counter_has_a_name_as_the_api_writes_names() {
        let shape = encode(&MachineMetrics::default()).unwrap();
        let names: Vec<&String> = shape.as_object().unwrap().keys().collect();
        assert!(names.contains(&&"netRxBytes".to_owned()), "{names:?}");
        assert!(names.contains(&&"startWorkingSetUs".to_owned()), "{names:?}");
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_alphanumeric())),
            "{names:?}"
        );
    }
}
