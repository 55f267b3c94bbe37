//! A task definition as DescribeTaskDefinition shows it. Pure.

use berth_runtime::model::definition::{ContainerDefinition, DefinitionStatus, PortMapping, TaskDefinition};
use berth_runtime::model::secret::SecretSource;
use serde_json::{Map, Value, json};

use super::{files, limits, relations};
use crate::arn::Owner;
use crate::ecs::values::{name_values_json, put, seconds};

pub(crate) fn definition(owner: &Owner, definition: &TaskDefinition) -> Value {
    let spec = &definition.spec;
    let mut shape = Map::new();
    put(
        &mut shape,
        "taskDefinitionArn",
        Some(owner.definition(&definition.id)),
    );
    put(&mut shape, "family", Some(&definition.id.family));
    put(&mut shape, "revision", Some(definition.id.revision));
    put(&mut shape, "status", Some(status(definition.status)));
    put(
        &mut shape,
        "containerDefinitions",
        Some(spec.containers.iter().map(container).collect::<Vec<_>>()),
    );
    put(&mut shape, "cpu", Some(spec.cpu_units.to_string()));
    put(&mut shape, "memory", Some(spec.memory_mib.to_string()));
    put(&mut shape, "networkMode", spec.network_mode.as_ref());
    put(&mut shape, "pidMode", spec.share_pids.then_some("task"));
    put(&mut shape, "taskRoleArn", spec.task_role_arn.as_ref());
    put(&mut shape, "executionRoleArn", spec.execution_role_arn.as_ref());
    let volumes = spec.volumes.iter().map(|name| match &spec.launch_volume {
        Some(at_launch) if at_launch == name => json!({ "name": name, "configuredAtLaunch": true }),
        _ => json!({ "name": name, "host": {} }),
    });
    put(&mut shape, "volumes", Some(volumes.collect::<Vec<_>>()));
    put(&mut shape, "placementConstraints", Some(json!([])));
    put(
        &mut shape,
        "requiresAttributes",
        Some(required_attributes(definition)),
    );
    put(&mut shape, "compatibilities", Some(compatibilities(definition)));
    let asked = &spec.requires_compatibilities;
    put(
        &mut shape,
        "requiresCompatibilities",
        (!asked.is_empty()).then_some(asked),
    );
    let storage = spec
        .ephemeral_storage_gib
        .map(|size| json!({ "sizeInGiB": size }));
    put(&mut shape, "ephemeralStorage", storage);
    if spec.operating_system_family.is_some() || spec.cpu_architecture.is_some() {
        let mut platform = Map::new();
        put(
            &mut platform,
            "operatingSystemFamily",
            spec.operating_system_family.as_ref(),
        );
        put(&mut platform, "cpuArchitecture", spec.cpu_architecture.as_ref());
        put(&mut shape, "runtimePlatform", Some(platform));
    }
    put(
        &mut shape,
        "registeredAt",
        Some(seconds(definition.registered_at)),
    );
    put(&mut shape, "registeredBy", Some(&definition.registered_by));
    put(
        &mut shape,
        "deregisteredAt",
        definition.deregistered_at.map(seconds),
    );
    Value::Object(shape)
}

pub(crate) fn status(status: DefinitionStatus) -> &'static str {
    match status {
        DefinitionStatus::Active => "ACTIVE",
        DefinitionStatus::Inactive => "INACTIVE",
    }
}

/// Whether the definition was registered for Fargate; one that names no compatibility is checked for it all the same.
pub(crate) fn runs_on_fargate(definition: &TaskDefinition) -> bool {
    let asked = &definition.spec.requires_compatibilities;
    asked.is_empty() || asked.iter().any(|compatibility| compatibility == "FARGATE")
}

fn compatibilities(definition: &TaskDefinition) -> Value {
    if runs_on_fargate(definition) {
        json!(["EC2", "FARGATE"])
    } else {
        json!(["EC2"])
    }
}

/// What an agent would have to be able to do.
fn required_attributes(definition: &TaskDefinition) -> Value {
    let spec = &definition.spec;
    let logs = spec.containers.iter().any(|container| container.log.is_some());
    let sources: Vec<&SecretSource> = spec
        .containers
        .iter()
        .flat_map(|container| &container.secrets)
        .map(|secret| &secret.source)
        .collect();
    let of_ssm = sources
        .iter()
        .any(|source| matches!(source, SecretSource::Parameter { .. }));
    let of_asm = sources
        .iter()
        .any(|source| matches!(source, SecretSource::Secret { .. }));
    let private = spec
        .containers
        .iter()
        .any(|container| container.repository_credentials.is_some());
    let files = spec
        .containers
        .iter()
        .any(|container| !container.environment_files.is_empty());
    let wanted = [
        ("com.amazonaws.ecs.capability.docker-remote-api.1.18", true),
        ("com.amazonaws.ecs.capability.docker-remote-api.1.19", logs),
        ("com.amazonaws.ecs.capability.logging-driver.awslogs", logs),
        (
            "com.amazonaws.ecs.capability.task-iam-role",
            spec.task_role_arn.is_some(),
        ),
        ("ecs.capability.env-files.s3", files),
        ("ecs.capability.execution-role-awslogs", logs),
        (
            "ecs.capability.private-registry-authentication.secretsmanager",
            private,
        ),
        ("ecs.capability.pid-ipc-namespace-sharing", spec.share_pids),
        ("ecs.capability.secrets.asm.environment-variables", of_asm),
        ("ecs.capability.secrets.ssm.environment-variables", of_ssm),
        ("ecs.capability.task-eni", true),
    ];
    wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(name, _)| json!({ "name": name }))
        .collect()
}

fn container(container: &ContainerDefinition) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "name", Some(&container.name));
    put(&mut shape, "image", Some(&container.image));
    let credentials = container.repository_credentials.as_ref();
    let credentials = credentials.map(|it| json!({ "credentialsParameter": it.parameter }));
    put(&mut shape, "repositoryCredentials", credentials);
    put(&mut shape, "cpu", Some(container.cpu));
    put(&mut shape, "memory", container.memory_mib);
    put(&mut shape, "memoryReservation", container.memory_reservation_mib);
    put(&mut shape, "essential", Some(container.essential));
    put(&mut shape, "entryPoint", container.entry_point.as_ref());
    put(&mut shape, "command", container.command.as_ref());
    put(
        &mut shape,
        "environment",
        Some(name_values_json(&container.environment)),
    );
    put(
        &mut shape,
        "environmentFiles",
        files::encode(&container.environment_files),
    );
    let secrets = container.secrets.iter();
    let secrets = secrets.map(|secret| json!({ "name": secret.name, "valueFrom": secret.value_from }));
    put(
        &mut shape,
        "secrets",
        (!container.secrets.is_empty()).then(|| secrets.collect::<Vec<_>>()),
    );
    relations::encode(container, &mut shape);
    put(
        &mut shape,
        "systemControls",
        Some(limits::encode_system_controls(container)),
    );
    put(&mut shape, "interactive", container.interactive);
    put(&mut shape, "pseudoTerminal", container.pseudo_terminal);
    put(
        &mut shape,
        "workingDirectory",
        container.working_directory.as_ref(),
    );
    put(&mut shape, "user", container.user.as_ref());
    put(
        &mut shape,
        "readonlyRootFilesystem",
        container.readonly_root_filesystem.then_some(true),
    );
    put(
        &mut shape,
        "portMappings",
        Some(container.port_mappings.iter().map(port).collect::<Vec<_>>()),
    );
    put(&mut shape, "startTimeout", container.start_timeout_s);
    put(&mut shape, "stopTimeout", container.stop_timeout_s);
    put(&mut shape, "ulimits", limits::encode_ulimits(container));
    put(&mut shape, "linuxParameters", linux_parameters(container));
    put(
        &mut shape,
        "dockerLabels",
        (!container.docker_labels.is_empty()).then_some(&container.docker_labels),
    );
    let log = container.log.as_ref();
    let log = log.map(|log| json!({ "logDriver": "awslogs", "options": log.options, "secretOptions": [] }));
    put(&mut shape, "logConfiguration", log);
    Value::Object(shape)
}

fn linux_parameters(container: &ContainerDefinition) -> Option<Value> {
    let mut shape = Map::new();
    if !container.capabilities_add.is_empty() || !container.capabilities_drop.is_empty() {
        let capabilities = json!({ "add": container.capabilities_add, "drop": container.capabilities_drop });
        put(&mut shape, "capabilities", Some(capabilities));
    }
    put(&mut shape, "initProcessEnabled", container.init_process_enabled);
    put(&mut shape, "tmpfs", relations::encode_tmpfs(container));
    (!shape.is_empty()).then_some(Value::Object(shape))
}

fn port(mapping: &PortMapping) -> Value {
    let mut shape = Map::new();
    let range = mapping.container_port_range.as_ref();
    put(
        &mut shape,
        "containerPort",
        range.is_none().then_some(mapping.container_port),
    );
    put(&mut shape, "containerPortRange", range);
    put(&mut shape, "hostPort", mapping.host_port);
    put(&mut shape, "protocol", Some(&mapping.protocol));
    put(&mut shape, "name", mapping.name.as_ref());
    put(&mut shape, "appProtocol", mapping.app_protocol.as_ref());
    Value::Object(shape)
}
