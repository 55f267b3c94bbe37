//! Whether a task definition can be registered: the rules for the task as a whole, and the order of all rules. Pure.
//! The rules for one container are in `container.rs`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::flaws::Flaw;
use super::size::{exists, parse_cpu, parse_memory};
use super::{container, files, limits, relations};
use crate::arn::{MAX_NAME_CHARS, is_name};
use crate::decode::says_nothing;
use crate::ecs::shapes::{ContainerShape, EphemeralStorage, RegisterTaskDefinition};

const MAX_CONTAINERS: usize = 10;
const MAX_ROLE_BYTES: usize = 2048;
const COMPATIBILITIES: [&str; 4] = ["EC2", "EXTERNAL", "FARGATE", "MANAGED_INSTANCES"];

/// Everything that is wrong with a definition, in the order in which AWS would come upon it. The texts are AWS's
/// wherever its clients match on them.
pub(crate) fn flaws(input: &RegisterTaskDefinition, region: &str) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut errors = Vec::new();
    let containers = input.container_definitions.as_deref().unwrap_or_default();
    family(input.family.as_deref().unwrap_or_default(), &mut errors);
    if containers.is_empty() {
        errors.push("Container list cannot be empty.".to_owned());
    }
    if containers.len() > MAX_CONTAINERS {
        errors.push(format!(
            "Task definition cannot have more than {MAX_CONTAINERS} containers."
        ));
        // What follows is said once for each container.
        return Flaw::all(errors);
    }
    flaws.extend(Flaw::all(std::mem::take(&mut errors)));
    for (index, container) in containers.iter().enumerate() {
        container::name_and_image(container, &mut errors);
        flaws.extend(of_container(index, container, &mut errors));
    }
    if input.network_mode.as_deref() != Some("awsvpc") {
        errors.push("Fargate only supports network mode ‘awsvpc’.".to_owned());
    }
    let size = size(input, &mut errors);
    compatibilities(input, &mut errors);
    roles(
        input.task_role_arn.as_deref(),
        input.execution_role_arn.as_deref(),
        &mut errors,
    );
    ephemeral_storage(input.ephemeral_storage.as_ref(), &mut errors);
    task_level_members(input, &mut errors);
    flaws.extend(Flaw::all(std::mem::take(&mut errors)));

    let task = container::Task { size, input, region };
    for (index, container) in containers.iter().enumerate() {
        container::errors(container, &task, &mut errors);
        flaws.extend(of_container(index, container, &mut errors));
    }
    together(containers, size, &mut errors);
    flaws.extend(Flaw::all(errors));
    flaws
}

/// Takes the errors that are one container's.
fn of_container(index: usize, container: &ContainerShape, errors: &mut Vec<String>) -> Vec<Flaw> {
    let of = match container.name.as_deref() {
        Some(name) if is_name(name) => format!("container '{name}'"),
        _ => format!("container number {}", index + 1),
    };
    let texts = std::mem::take(errors).into_iter();
    texts
        .map(|text| Flaw {
            text,
            of: Some(of.clone()),
        })
        .collect()
}

fn family(family: &str, errors: &mut Vec<String>) {
    if family.is_empty() {
        errors.push("Family name should not be null or empty.".to_owned());
    } else if family.len() > MAX_NAME_CHARS {
        errors.push(format!(
            "Family name cannot be longer than {MAX_NAME_CHARS} characters."
        ));
    } else if !is_name(family) {
        errors.push("Family contains invalid characters.".to_owned());
    }
}

/// CPU units and MiB of the task, if they are ones that exist.
fn size(input: &RegisterTaskDefinition, errors: &mut Vec<String>) -> Option<(u32, u32)> {
    let cpu = input.cpu.as_deref().filter(|cpu| !cpu.is_empty());
    let memory = input.memory.as_deref().filter(|memory| !memory.is_empty());
    if cpu.is_none() {
        errors.push("Fargate requires that 'cpu' be defined at the task level.".to_owned());
    }
    if memory.is_none() {
        memoryless(input, errors);
        errors.push("Fargate requires that 'memory' be defined at the task level.".to_owned());
    }
    let (cpu, memory) = (parse_cpu(cpu?), parse_memory(memory?));
    if cpu.is_none() {
        errors.push("Invalid 'cpu' setting for task.".to_owned());
    }
    if memory.is_none() {
        errors.push("Invalid 'memory' setting for task.".to_owned());
    }
    pair(cpu?, memory?, errors).then_some((cpu?, memory?))
}

/// Without memory of the task, a definition that is not for Fargate needs memory of each container.
fn memoryless(input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    let asked = input.requires_compatibilities.as_deref().unwrap_or_default();
    if asked.iter().any(|compatibility| compatibility == "FARGATE") {
        return;
    }
    for container in input.container_definitions.as_deref().unwrap_or_default() {
        if container.memory.is_none() && container.memory_reservation.is_none() {
            errors.push(format!(
                "Invalid setting for container '{}'. At least one of 'memory' or 'memoryReservation' must be \
                 specified.",
                container.name.as_deref().unwrap_or_default()
            ));
        }
    }
}

/// Checks a pair of CPU units and MiB.
pub(crate) fn pair(cpu: u32, memory: u32, errors: &mut Vec<String>) -> bool {
    let exists = exists(cpu, memory);
    if !exists {
        errors.push(format!(
            "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the Amazon ECS \
             documentation for the valid values."
        ));
    }
    exists
}

fn compatibilities(input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    for compatibility in input.requires_compatibilities.as_deref().unwrap_or_default() {
        if !COMPATIBILITIES.contains(&compatibility.as_str()) {
            errors.push(format!(
                "Invalid compatibility '{}' in 'requiresCompatibilities'. Must be one of {COMPATIBILITIES:?}.",
                limits::shown(compatibility)
            ));
        }
    }
    let platform = input.runtime_platform.clone().unwrap_or_default();
    match platform.operating_system_family.as_deref() {
        None | Some("LINUX") => {}
        Some(other) => errors.push(unsupported_value("operatingSystemFamily", other)),
    }
    match platform.cpu_architecture.as_deref() {
        None | Some("X86_64") => {}
        Some(other) => errors.push(unsupported_value("cpuArchitecture", other)),
    }
}

/// A role is a name or an ARN; nobody here looks what it allows.
pub(crate) fn roles(task: Option<&str>, execution: Option<&str>, errors: &mut Vec<String>) {
    for (member, role) in [("taskRoleArn", task), ("executionRoleArn", execution)] {
        let role = role.unwrap_or_default();
        if role.len() > MAX_ROLE_BYTES || !role.bytes().all(|byte| byte.is_ascii_graphic()) {
            errors.push(format!(
                "Invalid '{member}' setting: must have at most {MAX_ROLE_BYTES} printable characters and no space."
            ));
        }
    }
}

pub(crate) fn ephemeral_storage(storage: Option<&EphemeralStorage>, errors: &mut Vec<String>) {
    match storage.map(|storage| storage.size_in_gib) {
        Some(None) => errors.push("EphemeralStorage size should not be null.".to_owned()),
        Some(Some(..=20)) => errors.push("EphemeralStorage size should be at least 21".to_owned()),
        Some(Some(201..)) => errors.push("EphemeralStorage size should be at most 200".to_owned()),
        None | Some(Some(_)) => {}
    }
}

fn task_level_members(input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    if !says_nothing(&input.placement_constraints) {
        errors.push(not_on_fargate("placementConstraints"));
    }
    if input.ipc_mode.is_some() {
        errors.push(not_on_fargate("ipcMode"));
    }
    match input.pid_mode.as_deref() {
        None | Some("task") => {}
        Some(other) => errors.push(format!(
            "Tasks using the Fargate launch type do not support pidMode '{other}'. The supported value for pidMode \
             is 'task'."
        )),
    }
    let volumes = input.volumes.as_deref().unwrap_or_default();
    if volumes.iter().any(|volume| {
        volume
            .host
            .as_ref()
            .is_some_and(|host| host.source_path.is_some())
    }) {
        errors.push(not_on_fargate("sourcePath"));
    }
    if volumes
        .iter()
        .any(|volume| !says_nothing(&volume.docker_volume_configuration))
    {
        errors.push(not_on_fargate("dockerVolumeConfiguration"));
    }
    relations::volume_errors(volumes, errors);
    if !says_nothing(&input.proxy_configuration) {
        errors.push(
            "Berth does not support 'proxyConfiguration': there is no App Mesh here. Leave it out; a proxy can run as a \
             container of the task."
                .to_owned(),
        );
    }
    refuse(
        &[
            ("inferenceAccelerators", &input.inference_accelerators),
            ("enableFaultInjection", &input.enable_fault_injection),
            (
                "trustedExecutionConfiguration",
                &input.trusted_execution_configuration,
            ),
        ],
        errors,
    );
}

/// What the containers must be taken together.
fn together(containers: &[ContainerShape], size: Option<(u32, u32)>, errors: &mut Vec<String>) {
    let names: Vec<&str> = containers
        .iter()
        .filter_map(|container| container.name.as_deref())
        .collect();
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        errors.push("Container names must be unique within a task definition".to_owned());
    }
    if !containers.is_empty()
        && !containers
            .iter()
            .any(|container| container.essential.unwrap_or(true))
    {
        errors.push("Task definition doesn't have any essential container".to_owned());
    }
    let sum: i64 = containers
        .iter()
        .map(|container| i64::from(container.cpu.unwrap_or(0)))
        .sum();
    if size.is_some_and(|(cpu, _)| sum > i64::from(cpu)) {
        errors.push(
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'."
                .to_owned(),
        );
    }
    relations::circle(containers, errors);
    files::together(containers, errors);
}

/// Adds an error for each of these members that says something.
pub(super) fn refuse(members: &[(&str, &Option<Value>)], errors: &mut Vec<String>) {
    for (name, member) in members {
        if !says_nothing(member) {
            errors.push(unsupported(name));
        }
    }
}

pub(super) fn not_on_fargate(member: &str) -> String {
    format!("Fargate compatible task definitions do not support {member}")
}

/// Something that Fargate does and Berth does not.
pub(crate) fn unsupported(member: &str) -> String {
    format!("Berth does not support '{member}' yet.")
}

pub(crate) fn unsupported_value(member: &str, value: &str) -> String {
    let value: String = value.chars().take(MAX_NAME_CHARS).collect();
    format!("Berth does not support '{member}' with the value '{value}' yet.")
}
