//! Whether one container of a task definition can be registered. Pure.

use super::validate::{not_on_fargate, refuse, unsupported, unsupported_value};
use super::{files, limits, log_driver, relations, repository, secrets};
use crate::arn::{MAX_NAME_CHARS, is_name};
use crate::decode::says_nothing;
use crate::ecs::shapes::{
    ContainerShape, KeyValue, LinuxParameters, PortMappingShape, RegisterTaskDefinition,
};

/// Linux capabilities that a container has by default or that can be named to be dropped.
const CAPABILITIES: &[&str] = &[
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];
/// Least memory of a container, in MiB.
pub(crate) const MIN_MEMORY_MIB: i32 = 6;
const MAX_IMAGE_BYTES: usize = 1024;

/// What a container's rules look at beyond the container.
pub(super) struct Task<'a> {
    /// CPU units and MiB, where the task has a size.
    pub(super) size: Option<(u32, u32)>,
    pub(super) input: &'a RegisterTaskDefinition,
    pub(super) region: &'a str,
}

/// The rules that come before those for the task as a whole.
pub(super) fn name_and_image(container: &ContainerShape, errors: &mut Vec<String>) {
    match container.name.as_deref().unwrap_or_default() {
        "" => errors.push("Container.name should not be null or empty.".to_owned()),
        name if !is_name(name) => errors.push("Container.name contains invalid characters.".to_owned()),
        _ => {}
    }
    let in_a_reference = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:./@#+".contains(&byte);
    match container.image.as_deref().unwrap_or_default() {
        "" => errors.push("Container.image should not be null or empty.".to_owned()),
        image if image.len() > MAX_IMAGE_BYTES || !image.bytes().all(in_a_reference) => {
            errors.push("Container.image contains invalid characters.".to_owned());
        }
        _ => {}
    }
}

pub(super) fn errors(container: &ContainerShape, task: &Task<'_>, errors: &mut Vec<String>) {
    let name = container.name.as_deref().unwrap_or_default();
    refused_on_fargate(container, errors);
    secrets::errors(container, task, errors);
    files::errors(container, task, errors);
    repository::errors(container, task, errors);
    needs_of_others(container, task.input, errors);
    not_yet(container, errors);
    resources(container, name, task, errors);
    ports(container.port_mappings.as_deref().unwrap_or_default(), errors);
    environment(container.environment.as_deref().unwrap_or_default(), errors);
    strings(container, errors);
    timeouts(container, errors);
    limits::ulimit_errors(container.ulimits.as_deref().unwrap_or_default(), errors);
    let controls = container.system_controls.as_deref().unwrap_or_default();
    limits::system_control_errors(controls, errors);
    if let Some(linux) = &container.linux_parameters {
        linux_parameters(linux, errors);
    }
    if let Some(log) = &container.log_configuration {
        log_driver::errors(log, task, errors);
    }
}

fn refused_on_fargate(container: &ContainerShape, errors: &mut Vec<String>) {
    if !says_nothing(&container.privileged) {
        errors.push(
            "Fargate requires that the ‘privileged’ setting be ‘false’ at the container level.".to_owned(),
        );
    }
    for (name, member) in [
        ("links", &container.links),
        ("disableNetworking", &container.disable_networking),
        ("dnsServers", &container.dns_servers),
        ("dnsSearchDomains", &container.dns_search_domains),
        ("extraHosts", &container.extra_hosts),
        ("dockerSecurityOptions", &container.docker_security_options),
    ] {
        if !says_nothing(member) {
            errors.push(not_on_fargate(name));
        }
    }
    for requirement in container.resource_requirements.as_deref().unwrap_or_default() {
        errors.push(match requirement.kind.as_deref() {
            Some("GPU") => {
                "Tasks using the Fargate launch type do not support GPU resource requirements".to_owned()
            }
            _ => unsupported("resourceRequirements"),
        });
    }
}

/// Members that name something else of the definition.
fn needs_of_others(container: &ContainerShape, input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    relations::errors(container, input, errors);
}

fn not_yet(container: &ContainerShape, errors: &mut Vec<String>) {
    refuse(
        &[
            ("firelensConfiguration", &container.firelens_configuration),
            ("credentialSpecs", &container.credential_specs),
        ],
        errors,
    );
    if container
        .hostname
        .as_deref()
        .is_some_and(|hostname| !hostname.is_empty())
    {
        errors.push(unsupported("hostname"));
    }
    match container.version_consistency.as_deref() {
        None | Some("enabled") => {}
        Some(other) => errors.push(unsupported_value("versionConsistency", other)),
    }
}

fn resources(container: &ContainerShape, name: &str, task: &Task<'_>, errors: &mut Vec<String>) {
    if container.cpu.is_some_and(|cpu| cpu < 0) {
        errors.push(format!(
            "Invalid setting for container '{name}'. 'cpu' must not be negative."
        ));
    }
    for (member, value) in [
        ("memory", container.memory),
        ("memoryReservation", container.memory_reservation),
    ] {
        let Some(value) = value else { continue };
        if value < MIN_MEMORY_MIB {
            errors.push(format!(
                "Invalid setting for container '{name}'. '{member}' must be at least {MIN_MEMORY_MIB}."
            ));
        }
        if task
            .size
            .is_some_and(|(_, memory)| i64::from(value) > i64::from(memory))
        {
            errors.push(format!(
                "The '{member}' setting for container '{name}' is greater than for the task"
            ));
        }
    }
    if let (Some(memory), Some(reservation)) = (container.memory, container.memory_reservation)
        && memory < reservation
    {
        errors.push(format!(
            "Invalid setting for container '{name}'. 'memory' must not be less than 'memoryReservation'."
        ));
    }
}

fn ports(mappings: &[PortMappingShape], errors: &mut Vec<String>) {
    for mapping in mappings {
        port_or_range(mapping, errors);
        if let Some(protocol) = mapping
            .protocol
            .as_deref()
            .filter(|name| !["tcp", "udp"].contains(name))
        {
            errors.push(format!(
                "Invalid 'protocol' setting '{protocol}': must be tcp or udp."
            ));
        }
        if let Some(protocol) = mapping
            .app_protocol
            .as_deref()
            .filter(|name| !["http", "http2", "grpc"].contains(name))
        {
            errors.push(format!(
                "Invalid 'appProtocol' setting '{protocol}': must be http, http2 or grpc."
            ));
        }
    }
}

fn port_or_range(mapping: &PortMappingShape, errors: &mut Vec<String>) {
    if let Some(range) = &mapping.container_port_range {
        let ports = range
            .split_once('-')
            .map(|(first, last)| (first.parse::<u16>(), last.parse::<u16>()));
        match ports {
            Some((Ok(first @ 1..), Ok(last))) if first <= last => {}
            _ => errors.push(format!(
                "Invalid 'containerPortRange' setting '{}': must be two ports from 1 to 65535, such as 8000-8010.",
                range.chars().take(MAX_NAME_CHARS).collect::<String>()
            )),
        }
        if mapping.container_port.is_some() || mapping.host_port.is_some() {
            errors.push(
                "A port mapping with a 'containerPortRange' must have neither 'containerPort' nor 'hostPort'."
                    .to_owned(),
            );
        }
        return;
    }
    match mapping.container_port {
        Some(1..=65535) => {}
        None => errors.push("Container.portMappings.containerPort should not be null.".to_owned()),
        Some(port) => errors.push(format!(
            "Invalid 'containerPort' setting {port}: must be 1 to 65535."
        )),
    }
    if mapping
        .host_port
        .is_some_and(|port| port != 0 && Some(port) != mapping.container_port)
    {
        errors.push(
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match."
                .to_owned(),
        );
    }
}

pub(crate) fn environment(variables: &[KeyValue], errors: &mut Vec<String>) {
    for variable in variables {
        let name = variable.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            errors.push("Environment variable name should not be null or empty.".to_owned());
        } else if name.contains(['=', '\0']) || variable.value.as_deref().is_some_and(|it| it.contains('\0'))
        {
            errors.push(format!(
                "Environment variable '{}' contains invalid characters.",
                name.escape_debug()
            ));
        }
    }
}

fn strings(container: &ContainerShape, errors: &mut Vec<String>) {
    let lists = [
        ("entryPoint", &container.entry_point),
        ("command", &container.command),
    ];
    for (member, list) in lists {
        if list.iter().flatten().any(|text| text.contains('\0')) {
            errors.push(format!("Container.{member} contains invalid characters."));
        }
    }
    if container
        .user
        .as_deref()
        .is_some_and(|user| user.contains(|it: char| it.is_control() || it == ' '))
    {
        errors.push("Container.user contains invalid characters.".to_owned());
    }
    let directory = container
        .working_directory
        .as_deref()
        .filter(|directory| !directory.is_empty());
    if directory.is_some_and(|directory| !directory.starts_with('/') || directory.contains('\0')) {
        errors.push("Container.workingDirectory must be an absolute path.".to_owned());
    }
}

fn timeouts(container: &ContainerShape, errors: &mut Vec<String>) {
    match container.stop_timeout {
        Some(121..) => errors.push(
            "Tasks using the Fargate launch type must have a container stop timeout of less than 120 seconds."
                .to_owned(),
        ),
        Some(..=1) => errors.push("Container.stopTimeout must be at least 2 seconds.".to_owned()),
        _ => {}
    }
    if container
        .start_timeout
        .is_some_and(|timeout| !(2..=120).contains(&timeout))
    {
        errors.push("Container.startTimeout must be between 2 and 120 seconds.".to_owned());
    }
}

fn linux_parameters(linux: &LinuxParameters, errors: &mut Vec<String>) {
    for (name, member) in [
        ("devices", &linux.devices),
        ("sharedMemorySize", &linux.shared_memory_size),
        ("maxSwap", &linux.max_swap),
        ("swappiness", &linux.swappiness),
    ] {
        if !says_nothing(member) {
            errors.push(not_on_fargate(name));
        }
    }
    relations::tmpfs_errors(linux.tmpfs.as_deref().unwrap_or_default(), errors);
    let capabilities = linux.capabilities.clone().unwrap_or_default();
    for capability in capabilities
        .add
        .iter()
        .flatten()
        .filter(|capability| *capability != "SYS_PTRACE")
    {
        errors.push(format!("{capability} is not allowed on Fargate."));
    }
    for capability in capabilities.drop.iter().flatten() {
        if !CAPABILITIES.contains(&capability.as_str()) {
            errors.push(format!(
                "'{capability}' is not a Linux capability that can be dropped."
            ));
        }
    }
}
