//! From a validated RegisterTaskDefinition to the runtime's definition. Pure; the rules are in `validate.rs`.

use berth_runtime::model::definition::{ContainerDefinition, DefinitionSpec, LogConfiguration, PortMapping};

use super::size::{parse_cpu, parse_memory};
use super::{files, flaws, limits, relations, repository, secrets, validate};
use crate::ecs::shapes::{ContainerShape, LogConfigurationShape, PortMappingShape, RegisterTaskDefinition};
use crate::ecs::values::{name_values, unsigned};
use crate::error::ApiError;

/// The definition, or everything that is wrong with it.
pub(crate) fn spec(input: &RegisterTaskDefinition, region: &str) -> Result<DefinitionSpec, ApiError> {
    if let Some(message) = flaws::message(&validate::flaws(input, region)) {
        return Err(ApiError::Client(message));
    }
    let size = |text: &Option<String>, parse: fn(&str) -> Option<u32>| {
        text.as_deref()
            .and_then(parse)
            .ok_or_else(|| ApiError::Client("Invalid size of task.".to_owned()))
    };
    let platform = input.runtime_platform.clone().unwrap_or_default();
    Ok(DefinitionSpec {
        cpu_units: size(&input.cpu, parse_cpu)?,
        memory_mib: size(&input.memory, parse_memory)?,
        ephemeral_storage_gib: unsigned(
            "ephemeralStorage",
            input
                .ephemeral_storage
                .as_ref()
                .and_then(|storage| storage.size_in_gib),
        )?,
        execution_role_arn: input.execution_role_arn.clone(),
        task_role_arn: input.task_role_arn.clone(),
        network_mode: input.network_mode.clone(),
        requires_compatibilities: input.requires_compatibilities.clone().unwrap_or_default(),
        operating_system_family: platform.operating_system_family,
        cpu_architecture: platform.cpu_architecture,
        containers: input
            .container_definitions
            .iter()
            .flatten()
            .map(container)
            .collect::<Result<_, _>>()?,
        volumes: input
            .volumes
            .iter()
            .flatten()
            .map(|volume| volume.name.clone().unwrap_or_default())
            .collect(),
        launch_volume: relations::launch_volume(input.volumes.as_deref().unwrap_or_default())
            .map(str::to_owned),
        share_pids: input.pid_mode.as_deref() == Some("task"),
    })
}

fn container(input: &ContainerShape) -> Result<ContainerDefinition, ApiError> {
    let linux = input.linux_parameters.clone().unwrap_or_default();
    let capabilities = linux.capabilities.unwrap_or_default();
    Ok(ContainerDefinition {
        name: input.name.clone().unwrap_or_default(),
        image: input.image.clone().unwrap_or_default(),
        repository_credentials: repository::credentials(input).map_err(ApiError::Client)?,
        essential: input.essential.unwrap_or(true),
        cpu: unsigned("cpu", input.cpu)?.unwrap_or(0),
        memory_mib: unsigned("memory", input.memory)?,
        memory_reservation_mib: unsigned("memoryReservation", input.memory_reservation)?,
        // An empty list is how a client that knows no null says nothing.
        entry_point: input.entry_point.clone().filter(|words| !words.is_empty()),
        command: input.command.clone().filter(|words| !words.is_empty()),
        environment: name_values(input.environment.as_deref()),
        environment_files: files::references(input.environment_files.as_deref()),
        secrets: secrets::references(input.secrets.as_deref())?,
        working_directory: input
            .working_directory
            .clone()
            .filter(|directory| !directory.is_empty()),
        user: input.user.clone().filter(|user| !user.is_empty()),
        readonly_root_filesystem: input.readonly_root_filesystem.unwrap_or(false),
        port_mappings: input
            .port_mappings
            .iter()
            .flatten()
            .map(port)
            .collect::<Result<_, _>>()?,
        stop_timeout_s: unsigned("stopTimeout", input.stop_timeout)?,
        start_timeout_s: unsigned("startTimeout", input.start_timeout)?,
        ulimits: input.ulimits.iter().flatten().map(limits::ulimit).collect(),
        init_process_enabled: linux.init_process_enabled,
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        docker_labels: input.docker_labels.clone().unwrap_or_default(),
        log: input.log_configuration.as_ref().map(log),
        depends_on: relations::dependencies(input),
        health_check: input
            .health_check
            .as_ref()
            .map(relations::health_check)
            .transpose()?,
        restart_policy: input
            .restart_policy
            .as_ref()
            .and_then(relations::restart_policy)
            .transpose()?,
        mount_points: relations::mount_points(input),
        volumes_from: relations::volumes_from(input),
        tmpfs: relations::tmpfs(linux.tmpfs.as_deref().unwrap_or_default())?,
        system_controls: input
            .system_controls
            .iter()
            .flatten()
            .map(limits::system_control)
            .collect(),
        interactive: input.interactive,
        pseudo_terminal: input.pseudo_terminal,
    })
}

fn port(input: &PortMappingShape) -> Result<PortMapping, ApiError> {
    let container_port = unsigned("containerPort", input.container_port)?.unwrap_or(0);
    Ok(PortMapping {
        container_port,
        // With awsvpc they are the same, and AWS fills the one from the other.
        host_port: input.container_port_range.is_none().then_some(container_port),
        container_port_range: input.container_port_range.clone(),
        protocol: input.protocol.clone().unwrap_or_else(|| "tcp".to_owned()),
        name: input.name.clone(),
        app_protocol: input.app_protocol.clone(),
    })
}

fn log(input: &LogConfigurationShape) -> LogConfiguration {
    let options = input.options.clone().unwrap_or_default();
    let option = |name: &str| options.get(name).cloned().unwrap_or_default();
    LogConfiguration {
        group: option("awslogs-group"),
        stream_prefix: option("awslogs-stream-prefix"),
        options,
    }
}
