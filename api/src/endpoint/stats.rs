//! What containers use, as Docker's `stats` tells it, for a machine with control groups of version 2. Times of processors are
//! in nanoseconds.

use berth_runtime::Measurement;
use berth_runtime::model::task::{Container, Task};
use berth_runtime::protocol::message::ContainerUsage;
use serde_json::{Map, Value, json};

use super::metadata::time;

const NS_PER_US: u64 = 1000;
const MIB: u64 = 1 << 20;

/// Of every container of the task, by its id; null for one that does not run.
pub(super) fn task(task: &Task, usage: &[Measurement]) -> Value {
    let containers = task
        .containers
        .iter()
        .map(|it| (it.runtime_id.clone(), container(task, it, usage)));
    Value::Object(containers.collect::<Map<_, _>>())
}

/// Null for a container of which nothing is known.
pub(super) fn container(task: &Task, container: &Container, usage: &[Measurement]) -> Value {
    let of = |measurement: &Measurement| {
        let mut containers = measurement.usage.containers.iter();
        containers.find(|it| it.name == container.name).cloned()
    };
    let Some((newest, own)) = usage.last().and_then(|newest| Some((newest, of(newest)?))) else {
        return Value::Null;
    };
    let before = usage.iter().rev().nth(1);
    let before = before.and_then(|before| Some((before, of(before)?)));
    let cpus = task.cpu_units.div_ceil(1024);
    let limit = container.memory_mib.unwrap_or(task.memory_mib);
    let network = newest.usage.network;
    let no_time = || "0001-01-01T00:00:00Z".to_owned();
    let precpu = before.as_ref().map_or_else(
        || json!({}),
        |(measurement, own)| cpu(own, measurement.usage.system_cpu_us, cpus),
    );
    json!({
        "read": time(newest.at),
        "preread": before.as_ref().map_or_else(no_time, |(before, _)| time(before.at)),
        "id": container.runtime_id,
        "name": container.name,
        "num_procs": 0,
        "pids_stats": { "current": own.pids },
        "cpu_stats": cpu(&own, newest.usage.system_cpu_us, cpus),
        "precpu_stats": precpu,
        "memory_stats": {
            "usage": own.memory_bytes,
            "max_usage": own.memory_peak_bytes,
            "stats": { "inactive_file": own.inactive_file_bytes },
            "limit": u64::from(limit) * MIB,
        },
        "blkio_stats": {
            "io_service_bytes_recursive": operations(own.read_bytes, own.write_bytes),
            "io_serviced_recursive": operations(own.read_ops, own.write_ops),
        },
        "storage_stats": {},
        "networks": {
            "eth0": {
                "rx_bytes": network.rx_bytes,
                "rx_packets": network.rx_packets,
                "rx_errors": network.rx_errors,
                "rx_dropped": network.rx_dropped,
                "tx_bytes": network.tx_bytes,
                "tx_packets": network.tx_packets,
                "tx_errors": network.tx_errors,
                "tx_dropped": network.tx_dropped,
            },
        },
        "network_rate_stats": {
            "rx_bytes_per_sec": rate(newest, before.as_ref().map(|(before, _)| *before), |it| it.usage.network.rx_bytes),
            "tx_bytes_per_sec": rate(newest, before.as_ref().map(|(before, _)| *before), |it| it.usage.network.tx_bytes),
        },
    })
}

fn cpu(own: &ContainerUsage, system_us: u64, cpus: u32) -> Value {
    let ns = |us: u64| us.saturating_mul(NS_PER_US);
    json!({
        "cpu_usage": {
            "total_usage": ns(own.cpu_us),
            "usage_in_usermode": ns(own.cpu_user_us),
            "usage_in_kernelmode": ns(own.cpu_system_us),
        },
        "system_cpu_usage": ns(system_us),
        "online_cpus": cpus,
        "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
    })
}

fn operations(read: u64, write: u64) -> Value {
    json!([{ "major": 0, "minor": 0, "op": "read", "value": read }, { "major": 0, "minor": 0, "op": "write", "value": write }])
}

/// A second, between two measurements. A counter that went back, which a hostile guest can tell, is none.
pub(crate) fn rate(
    newest: &Measurement,
    before: Option<&Measurement>,
    counter: impl Fn(&Measurement) -> u64,
) -> f64 {
    let Some(before) = before else { return 0.0 };
    let millis = newest.at.millis_since(before.at).max(1);
    let moved = counter(newest).saturating_sub(counter(before));
    moved as f64 * 1000.0 / millis as f64
}
