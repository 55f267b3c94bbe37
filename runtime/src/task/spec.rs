//! From a task, its definition and its images to what the guest is told. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use berth_protocol::message::{
    Condition, ContainerSpec, Dependency, HealthCheck, Mount, NetworkSpec, ResourceLimit, RestartPolicy,
    SystemControl, TaskSpec, Tmpfs, VolumeDrive,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::endpoint;
use super::host::PulledImage;
use crate::model::definition::{
    self, ContainerDefinition, DefinitionSpec, DependencyCondition, LogConfiguration, MountPoint,
};
use crate::model::task::{ContainerOverride, Task};
use crate::network::{MacAddr, NetworkError};

/// Serial number of the writable drive.
pub const SCRATCH_DRIVE: &str = "scratch";
/// Most processes and threads of a task's containers together.
const TASK_PIDS: u64 = 4096;
/// Soft and hard limit of open files on Fargate.
const DEFAULT_NOFILE: u64 = 65_535;
const NOFILE: &str = "nofile";
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";

/// Serial number of the drive with the task's volume.
pub const VOLUME_DRIVE: &str = "volume";

/// Serial number of the drive with the image of the `index`th container.
pub fn image_drive(index: usize) -> String {
    format!("image-{index}")
}

/// What the network gives every task.
pub struct NetworkFacts {
    pub subnet: Ipv4Net,
    pub dns_servers: Vec<Ipv4Addr>,
    pub mtu: u16,
    pub region: String,
}

/// What is settled once the images are here, and kept until the task has stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// One for each container, in order.
    pub images: Vec<PulledImage>,
    /// What the guest's init shows on every connection, so that none of its containers can speak for it.
    pub session: String,
}

/// The error is one line for `stoppedReason`.
pub fn task_spec(
    task: &Task,
    definition: &DefinitionSpec,
    prepared: &Prepared,
    network: &NetworkFacts,
) -> Result<TaskSpec, String> {
    let containers = definition
        .containers
        .iter()
        .zip(&prepared.images)
        .enumerate()
        .map(|(index, (container, image))| {
            let chosen = task
                .overrides
                .containers
                .iter()
                .find(|chosen| chosen.name == container.name);
            let role = endpoint::role(task, definition);
            let runtime_id = task.containers.get(index).map_or("", |own| &own.runtime_id);
            let told = endpoint::environment(runtime_id, &prepared.session, role, &network.region);
            container_spec(index, container, chosen, image, definition, told)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mac = task.eni.mac.parse().map(MacAddr::octets);
    let mac = mac.map_err(|error: NetworkError| error.to_string())?;
    let hostname = format!("ip-{}", task.eni.address.to_string().replace('.', "-"));
    Ok(TaskSpec {
        task_id: task.id.to_string(),
        session: prepared.session.clone(),
        hostname,
        network: Some(NetworkSpec {
            mac,
            address: task.eni.address,
            prefix_len: network.subnet.prefix_len(),
            gateway: network.subnet.hosts().next().unwrap_or(network.subnet.addr()),
            dns_servers: network.dns_servers.clone(),
            search_domains: Vec::new(),
            mtu: network.mtu,
        }),
        memory_bytes: u64::from(task.memory_mib) << 20,
        pids: TASK_PIDS,
        scratch_drive: SCRATCH_DRIVE.to_owned(),
        volumes: definition.volumes.clone(),
        volume_drives: task
            .volume
            .iter()
            .map(|volume| VolumeDrive {
                volume: volume.name.clone(),
                drive: VOLUME_DRIVE.to_owned(),
            })
            .collect(),
        share_pids: definition.share_pids,
        containers,
    })
}

fn container_spec(
    index: usize,
    container: &ContainerDefinition,
    chosen: Option<&ContainerOverride>,
    image: &PulledImage,
    definition: &DefinitionSpec,
    told: BTreeMap<String, String>,
) -> Result<ContainerSpec, String> {
    // As Docker: an entry point given by the definition takes the image's command away.
    let entry_point = container.entry_point.as_ref();
    let command = chosen
        .and_then(|chosen| chosen.command.as_ref())
        .or(container.command.as_ref());
    let mut argv = entry_point.unwrap_or(&image.entrypoint).clone();
    match (entry_point, command) {
        (_, Some(command)) => argv.extend(command.iter().cloned()),
        (None, None) => argv.extend(image.cmd.iter().cloned()),
        (Some(_), None) => {}
    }
    if argv.is_empty() {
        return Err("CannotStartContainerError: no command specified".to_owned());
    }
    let mut env = BTreeMap::new();
    for variable in &image.env {
        if let Some((name, value)) = variable.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(told);
    let own = container.environment.iter();
    for variable in own.chain(chosen.iter().flat_map(|chosen| &chosen.environment)) {
        env.insert(variable.name.clone(), variable.value.clone());
    }
    let working_dir = container
        .working_directory
        .clone()
        .unwrap_or_else(|| image.working_dir.clone());
    let cpu = chosen.and_then(|chosen| chosen.cpu).unwrap_or(container.cpu);
    Ok(ContainerSpec {
        name: container.name.clone(),
        image_drive: image_drive(index),
        argv,
        env,
        working_dir: if working_dir.is_empty() {
            "/".to_owned()
        } else {
            working_dir
        },
        user: container.user.clone().unwrap_or_else(|| image.user.clone()),
        stop_signal: image
            .stop_signal
            .clone()
            .unwrap_or_else(|| DEFAULT_STOP_SIGNAL.to_owned()),
        readonly_root: container.readonly_root_filesystem,
        capabilities_add: capabilities(&container.capabilities_add),
        capabilities_drop: capabilities(&container.capabilities_drop),
        limits: limits(container),
        system_controls: container
            .system_controls
            .iter()
            .map(|control| SystemControl {
                name: control.name.clone(),
                value: control.value.clone(),
            })
            .collect(),
        memory_bytes: chosen
            .and_then(|chosen| chosen.memory_mib)
            .or(container.memory_mib)
            .map(|mib| u64::from(mib) << 20),
        memory_reservation_bytes: chosen
            .and_then(|chosen| chosen.memory_reservation_mib)
            .or(container.memory_reservation_mib)
            .map(|mib| u64::from(mib) << 20),
        cpu_shares: (cpu > 0).then(|| u64::from(cpu)),
        init_process: container.init_process_enabled.unwrap_or(false),
        open_stdin: container.interactive.unwrap_or(false),
        terminal: container.pseudo_terminal.unwrap_or(false),
        essential: container.essential,
        depends_on: container.depends_on.iter().map(dependency).collect(),
        start_timeout_ms: milliseconds(container.start_timeout_s()),
        stop_timeout_ms: milliseconds(container.stop_timeout_s()),
        health_check: container.health_check.as_ref().and_then(health_check),
        restart: container.restart_policy.as_ref().map(|policy| RestartPolicy {
            ignored_exit_codes: policy.ignored_exit_codes.clone(),
            attempt_period_ms: milliseconds(policy.attempt_period_s),
        }),
        mounts: mounts(container, definition),
        tmpfs: container.tmpfs.iter().map(tmpfs).collect(),
        output_buffer_bytes: container.log.as_ref().and_then(LogConfiguration::buffer_bytes),
    })
}

/// Its own, and that of open files in any case.
fn limits(container: &ContainerDefinition) -> Vec<ResourceLimit> {
    let mut limits: Vec<ResourceLimit> = container
        .ulimits
        .iter()
        .map(|limit| ResourceLimit {
            name: limit.name.clone(),
            // Only -1 is below 0.
            soft: u64::try_from(limit.soft).ok(),
            hard: u64::try_from(limit.hard).ok(),
        })
        .collect();
    if !limits.iter().any(|limit| limit.name == NOFILE) {
        limits.push(ResourceLimit {
            name: NOFILE.to_owned(),
            soft: Some(DEFAULT_NOFILE),
            hard: Some(DEFAULT_NOFILE),
        });
    }
    limits
}

fn milliseconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1000
}

fn dependency(dependency: &definition::Dependency) -> Dependency {
    Dependency {
        container: dependency.container.clone(),
        condition: match dependency.condition {
            DependencyCondition::Start => Condition::Start,
            DependencyCondition::Complete => Condition::Complete,
            DependencyCondition::Success => Condition::Success,
            DependencyCondition::Healthy => Condition::Healthy,
        },
    }
}

/// None where the command is `NONE`, or says nothing: there is no check then.
fn health_check(check: &definition::HealthCheck) -> Option<HealthCheck> {
    let shell = |line: &[String]| ["/bin/sh".to_owned(), "-c".to_owned(), line.join(" ")].to_vec();
    let argv = match check.command.split_first()? {
        (kind, words) if kind == "CMD" => words.to_vec(),
        (kind, line) if kind == "CMD-SHELL" => shell(line),
        (kind, _) if kind == "NONE" => return None,
        _ => shell(&check.command),
    };
    (!argv.is_empty()).then(|| HealthCheck {
        argv,
        interval_ms: milliseconds(check.interval_s),
        timeout_ms: milliseconds(check.timeout_s),
        retries: check.retries,
        start_period_ms: milliseconds(check.start_period_s.unwrap_or(0)),
    })
}

/// Its own mount points, and those of the containers whose it takes; its own lie over the others.
fn mounts(container: &ContainerDefinition, definition: &DefinitionSpec) -> Vec<Mount> {
    let mount = |point: &MountPoint, read_only: bool| Mount {
        volume: point.volume.clone(),
        path: point.path.clone(),
        readonly: point.read_only || read_only,
    };
    let mut all = Vec::new();
    for from in &container.volumes_from {
        let other = definition
            .containers
            .iter()
            .find(|other| other.name == from.container);
        all.extend(
            other
                .iter()
                .flat_map(|other| &other.mount_points)
                .map(|point| mount(point, from.read_only)),
        );
    }
    all.extend(container.mount_points.iter().map(|point| mount(point, false)));
    all
}

fn tmpfs(tmpfs: &definition::Tmpfs) -> Tmpfs {
    Tmpfs {
        path: tmpfs.path.clone(),
        bytes: u64::from(tmpfs.size_mib) << 20,
        options: tmpfs.options.clone(),
    }
}

/// `SYS_PTRACE` and `CAP_SYS_PTRACE` are the same; `ALL` stays.
fn capabilities(names: &[String]) -> Vec<String> {
    let full = |name: &String| match name.as_str() {
        "ALL" => name.clone(),
        name if name.starts_with("CAP_") => name.to_owned(),
        name => format!("CAP_{name}"),
    };
    names.iter().map(full).collect()
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
