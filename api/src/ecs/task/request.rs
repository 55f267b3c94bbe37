//! From a RunTask to the runtime's request: the checks that need no state, and the overrides. Pure.

use berth_runtime::model::Tag;
use berth_runtime::model::definition::TaskDefinition;
use berth_runtime::model::task::{ContainerOverride, Overrides};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::arn::{DefinitionName, Owner};
use crate::decode::says_nothing;
use crate::ecs::definition::encode::runs_on_fargate;
use crate::ecs::definition::flaws::{self, Flaw};
use crate::ecs::definition::size::{parse_cpu, parse_memory};
use crate::ecs::definition::{MIN_MEMORY_MIB, environment_errors, files, validate};
use crate::ecs::shapes::{AwsVpcConfiguration, ContainerOverrideShape, RunTaskShape, TagShape, TaskOverride};
use crate::ecs::values::{name_values, tags, unsigned};
use crate::error::ApiError;

const MAX_COUNT: i32 = 10;
const MAX_SUBNETS: usize = 16;
const MAX_SECURITY_GROUPS: usize = 5;
const MAX_OVERRIDES_BYTES: usize = 8192;
const MAX_CLIENT_TOKEN_CHARS: usize = 64;
const MAX_STARTED_BY_CHARS: usize = 128;
const MAX_GROUP_CHARS: usize = 255;
/// The platform there is, and the one that AWS no longer has a newer name for.
const PLATFORM_VERSIONS: [&str; 2] = ["LATEST", "1.4.0"];

/// What can be said without looking anything up, in AWS's order: before the cluster is looked up.
pub(super) fn precheck(input: &RunTaskShape, owner: &Owner) -> Result<DefinitionName, ApiError> {
    let refuse = |text: &str| Err(ApiError::InvalidParameter(text.to_owned()));
    let strategy = input.capacity_provider_strategy.as_deref().unwrap_or_default();
    match input.launch_type.as_deref() {
        Some(_) if !strategy.is_empty() => {
            return refuse(
                "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try \
                 again.",
            );
        }
        None | Some("FARGATE") => {}
        Some("EC2" | "EXTERNAL" | "MANAGED_INSTANCES") => {
            return refuse("No Container Instances were found in your cluster.");
        }
        Some(_) => return refuse("launchType must be one of EC2, EXTERNAL, FARGATE, MANAGED_INSTANCES."),
    }
    for item in strategy {
        super::capacity_provider(item.capacity_provider.as_deref().unwrap_or_default())?;
        let (weight, base) = (item.weight.unwrap_or(0), item.base.unwrap_or(0));
        if !(0..=1000).contains(&weight) || !(0..=100_000).contains(&base) {
            return refuse("weight must be 0 to 1000, and base 0 to 100000.");
        }
    }
    if !strategy.is_empty() && strategy.iter().all(|item| item.weight.unwrap_or(1) == 0) {
        return refuse("At least one capacity provider must have a weight above 0.");
    }
    if !says_nothing(&input.placement_constraints) {
        return refuse("Placement constraints are not supported with FARGATE launch type.");
    }
    if !says_nothing(&input.placement_strategy) {
        return refuse("Placement strategies are not supported with FARGATE launch type.");
    }
    if input
        .platform_version
        .as_deref()
        .is_some_and(|version| !PLATFORM_VERSIONS.contains(&version))
    {
        return Err(ApiError::PlatformUnknown(
            "The specified platform does not exist.".to_owned(),
        ));
    }
    if !(1..=MAX_COUNT).contains(&input.count.unwrap_or(1)) {
        return refuse("count must be between 1 and 10.");
    }
    bounded("startedBy", input.started_by.as_deref(), MAX_STARTED_BY_CHARS)?;
    bounded("group", input.group.as_deref(), MAX_GROUP_CHARS)?;
    bounded(
        "clientToken",
        input.client_token.as_deref(),
        MAX_CLIENT_TOKEN_CHARS,
    )?;
    match input.task_definition.as_deref() {
        None | Some("") => Err(ApiError::Client("TaskDefinition can not be blank.".to_owned())),
        Some(name) => owner.parse_definition(name),
    }
}

fn bounded(member: &str, text: Option<&str>, most: usize) -> Result<(), ApiError> {
    let text = text.unwrap_or_default();
    if text.chars().count() > most || text.chars().any(char::is_control) {
        return Err(ApiError::InvalidParameter(format!(
            "{member} must have at most {most} printable characters."
        )));
    }
    Ok(())
}

/// Where the tasks are to be attached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// At least one.
    pub(super) subnets: Vec<String>,
    pub(super) security_groups: Vec<String>,
    pub(super) internet: bool,
}

/// The checks of the definition and the network, once the cluster is known to exist.
pub(super) fn network(input: &RunTaskShape, definition: &TaskDefinition) -> Result<Network, ApiError> {
    let refuse = |text: &str| Err(ApiError::InvalidParameter(text.to_owned()));
    if !runs_on_fargate(definition) {
        return refuse("Task definition does not support launch_type FARGATE.");
    }
    let configuration = input
        .network_configuration
        .as_ref()
        .and_then(|it| it.awsvpc_configuration.clone());
    let Some(AwsVpcConfiguration {
        subnets,
        security_groups,
        assign_public_ip,
    }) = configuration
    else {
        return refuse("Network Configuration must be provided when networkMode 'awsvpc' is specified.");
    };
    let (subnets, security_groups) = (subnets.unwrap_or_default(), security_groups.unwrap_or_default());
    if subnets.is_empty() {
        return refuse("subnets can not be empty.");
    }
    if subnets.len() > MAX_SUBNETS {
        return refuse("subnets can have at most 16 items.");
    }
    if security_groups.len() > MAX_SECURITY_GROUPS {
        return refuse("securityGroups can have at most 5 items.");
    }
    let internet = match assign_public_ip.as_deref() {
        None | Some("DISABLED") => false,
        Some("ENABLED") => true,
        Some(_) => return refuse("assignPublicIp must be ENABLED or DISABLED."),
    };
    Ok(Network {
        subnets,
        security_groups,
        internet,
    })
}

/// Overrides that fit the definition, or everything that is wrong with them.
pub(super) fn overrides(
    input: Option<&TaskOverride>,
    definition: &TaskDefinition,
) -> Result<Overrides, ApiError> {
    let Some(input) = input else {
        return Ok(Overrides::default());
    };
    if let Some(message) = flaws::message(&overrides_errors(input, definition)) {
        return Err(ApiError::InvalidParameter(message));
    }
    let role = |role: &Option<String>| role.clone().filter(|role| !role.is_empty());
    let overrides = Overrides {
        cpu_units: input.cpu.as_deref().and_then(parse_cpu),
        memory_mib: input.memory.as_deref().and_then(parse_memory),
        ephemeral_storage_gib: unsigned(
            "ephemeralStorage",
            input
                .ephemeral_storage
                .as_ref()
                .and_then(|storage| storage.size_in_gib),
        )?,
        execution_role_arn: role(&input.execution_role_arn),
        task_role_arn: role(&input.task_role_arn),
        containers: input
            .container_overrides
            .iter()
            .flatten()
            .map(container)
            .collect::<Result<_, _>>()?,
    };
    let length = serde_json::to_string(&overrides).map_or(usize::MAX, |text| text.len());
    if length > MAX_OVERRIDES_BYTES {
        return Err(ApiError::InvalidParameter(format!(
            "Container Overrides length must be at most {MAX_OVERRIDES_BYTES}"
        )));
    }
    Ok(overrides)
}

fn overrides_errors(input: &TaskOverride, definition: &TaskDefinition) -> Vec<Flaw> {
    let mut errors = Vec::new();
    if !says_nothing(&input.inference_accelerator_overrides) {
        errors.push(validate::unsupported("inferenceAcceleratorOverrides"));
    }
    validate::ephemeral_storage(input.ephemeral_storage.as_ref(), &mut errors);
    validate::roles(
        input.task_role_arn.as_deref(),
        input.execution_role_arn.as_deref(),
        &mut errors,
    );
    let mut size = |text: Option<&str>, member: &str, parse: fn(&str) -> Option<u32>, or: u32| {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Some(or);
        };
        let parsed = parse(text);
        if parsed.is_none() {
            errors.push(format!("Invalid '{member}' setting for task."));
        }
        parsed
    };
    let spec = &definition.spec;
    let cpu = size(input.cpu.as_deref(), "cpu", parse_cpu, spec.cpu_units);
    let memory = size(input.memory.as_deref(), "memory", parse_memory, spec.memory_mib);
    let size = cpu.zip(memory);
    let size = size.filter(|(cpu, memory)| validate::pair(*cpu, *memory, &mut errors));
    let mut flaws = Flaw::all(errors);

    let given = input.container_overrides.as_deref().unwrap_or_default();
    for (index, shape) in given.iter().enumerate() {
        let name = shape.name.as_deref().unwrap_or_default();
        let mut errors = Vec::new();
        container_errors(shape, &mut errors);
        if given[..index].iter().any(|other| other.name == shape.name) {
            errors.push(format!(
                "containerOverrides has container '{}' twice.",
                shown(name)
            ));
        }
        let of = Some(format!("the override of container '{}'", shown(name)));
        flaws.extend(errors.into_iter().map(|text| Flaw { text, of: of.clone() }));
    }
    let mut errors = Vec::new();
    for shape in given {
        let name = shape.name.as_deref().unwrap_or_default();
        if !spec.containers.iter().any(|known| known.name == name) {
            errors.push(format!(
                "Override for container named {} is not a container in the TaskDefinition.",
                shown(name)
            ));
        }
    }
    let role = |role: &Option<String>| role.as_deref().is_some_and(|role| !role.is_empty());
    if given
        .iter()
        .flat_map(|shape| &shape.environment_files)
        .any(|files| !files.is_empty())
        && !role(&input.execution_role_arn)
        && !role(&spec.execution_role_arn)
    {
        errors.push(files::NEED_A_ROLE.to_owned());
    }
    if let Some(size) = size {
        fits(given, definition, size, &mut errors);
    }
    flaws.extend(Flaw::all(errors));
    flaws
}

/// What can be said of one container's override alone.
fn container_errors(input: &ContainerOverrideShape, errors: &mut Vec<String>) {
    files::file_errors(input.environment_files.as_deref().unwrap_or_default(), errors);
    if !says_nothing(&input.resource_requirements) {
        errors.push(validate::unsupported("resourceRequirements"));
    }
    if input.command.iter().flatten().any(|word| word.contains('\0')) {
        errors.push("command contains invalid characters.".to_owned());
    }
    environment_errors(input.environment.as_deref().unwrap_or_default(), errors);
    for (member, value, least) in [
        ("cpu", input.cpu, 0),
        ("memory", input.memory, MIN_MEMORY_MIB),
        ("memoryReservation", input.memory_reservation, MIN_MEMORY_MIB),
    ] {
        if let Some(value) = value.filter(|value| *value < least) {
            errors.push(format!(
                "Invalid '{member}' setting {value}: must be at least {least}."
            ));
        }
    }
}

/// Whether the containers, with what is given over what the definition says, fit a task of this size.
fn fits(
    given: &[ContainerOverrideShape],
    definition: &TaskDefinition,
    (task_cpu, task_memory): (u32, u32),
    errors: &mut Vec<String>,
) {
    let mut sum = 0;
    for container in &definition.spec.containers {
        let name = &container.name;
        let given = given.iter().find(|given| given.name.as_ref() == Some(name));
        let number =
            |given: Option<i32>, defined: Option<u32>| given.map(i64::from).or(defined.map(i64::from));
        sum += number(given.and_then(|given| given.cpu), Some(container.cpu)).unwrap_or(0);
        let memory = number(given.and_then(|given| given.memory), container.memory_mib);
        let reservation = number(
            given.and_then(|given| given.memory_reservation),
            container.memory_reservation_mib,
        );
        for (member, value) in [("memory", memory), ("memoryReservation", reservation)] {
            if value.is_some_and(|value| value > i64::from(task_memory)) {
                errors.push(format!(
                    "The '{member}' setting for container '{name}' is greater than for the task"
                ));
            }
        }
        if memory
            .zip(reservation)
            .is_some_and(|(memory, reservation)| memory < reservation)
        {
            errors.push(format!(
                "Invalid setting for container '{name}'. 'memory' must not be less than 'memoryReservation'."
            ));
        }
    }
    if sum > i64::from(task_cpu) {
        errors.push(
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'."
                .to_owned(),
        );
    }
}

fn container(input: &ContainerOverrideShape) -> Result<ContainerOverride, ApiError> {
    Ok(ContainerOverride {
        name: input.name.clone().unwrap_or_default(),
        command: input.command.clone().filter(|command| !command.is_empty()),
        environment: name_values(input.environment.as_deref()),
        environment_files: files::references(input.environment_files.as_deref()),
        cpu: unsigned("cpu", input.cpu)?,
        memory_mib: unsigned("memory", input.memory)?,
        memory_reservation_mib: unsigned("memoryReservation", input.memory_reservation)?,
    })
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_GROUP_CHARS).collect()
}

/// The tags that the tasks get: those of the definition if asked, and over them the caller's.
pub(super) fn task_tags(
    input: &RunTaskShape,
    definition: &TaskDefinition,
    cluster: &str,
) -> Result<Vec<Tag>, ApiError> {
    let mut all = tags(input.tags.as_deref())?;
    match input.propagate_tags.as_deref() {
        None | Some("NONE") => {}
        Some("TASK_DEFINITION") => {
            for tag in &definition.tags {
                if !all.iter().any(|own| own.key == tag.key) {
                    all.push(tag.clone());
                }
            }
            let shapes: Vec<TagShape> = all
                .iter()
                .map(|tag| TagShape {
                    key: Some(tag.key.clone()),
                    value: Some(tag.value.clone()),
                })
                .collect();
            all = tags(Some(&shapes))?;
        }
        Some(_) => {
            return Err(ApiError::InvalidParameter(
                "propagateTags must be TASK_DEFINITION or NONE for a task that no service starts.".to_owned(),
            ));
        }
    }
    if input.enable_ecs_managed_tags == Some(true) {
        all.push(Tag {
            key: "aws:ecs:clusterName".to_owned(),
            value: cluster.to_owned(),
        });
    }
    Ok(all)
}

/// The token, and a digest of everything else that was asked; the order of members does not matter.
pub(super) fn client_token(token: Option<&str>, body: &[u8]) -> Result<Option<(String, String)>, ApiError> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Ok(None);
    };
    let mut request: Value = crate::decode::shape(body)?;
    if let Some(members) = request.as_object_mut() {
        members.remove("clientToken");
        members.retain(|_, member| !member.is_null());
    }
    let digest = hex::encode(Sha256::digest(request.to_string().as_bytes()));
    Ok(Some((token.to_owned(), digest)))
}
