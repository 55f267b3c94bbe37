//! A task as DescribeTasks shows it: the shape of a Fargate task. Pure.

use std::collections::HashMap;

use berth_runtime::model::isolation::Isolation;
use berth_runtime::model::task::{
    Container, ContainerOverride, ContainerStatus, DesiredStatus, Eni, HealthStatus, Overrides, Task,
    TaskStatus,
};
use berth_runtime::model::volume::TaskVolume;
use serde_json::{Map, Value, json};

use crate::arn::Owner;
use crate::ecs::definition::files;
use crate::ecs::values::{name_values_json, put, seconds, tags_json};

const PLATFORM_VERSION: &str = "1.4.0";
const PAUSED_AT: &str = "berth.paused-at";
const ISOLATION: &str = "berth.isolation";

/// Availability zones by subnet.
pub(crate) type Zones = HashMap<String, String>;

pub(crate) fn task(owner: &Owner, zones: &Zones, task: &Task, with_tags: bool) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "taskArn", Some(owner.task(&task.cluster, &task.id)));
    put(&mut shape, "clusterArn", Some(owner.cluster(&task.cluster)));
    put(
        &mut shape,
        "taskDefinitionArn",
        Some(owner.definition(&task.definition)),
    );
    let attachments: Vec<Value> = [attachment(owner, task)]
        .into_iter()
        .chain(task.volume.as_ref().map(|volume| volume_attachment(task, volume)))
        .collect();
    put(&mut shape, "attachments", Some(attachments));
    put(&mut shape, "attributes", Some(attributes(task)));
    put(&mut shape, "availabilityZone", zones.get(&task.eni.subnet_id));
    put(
        &mut shape,
        "connectivity",
        task.connectivity_at.map(|_| "CONNECTED"),
    );
    put(&mut shape, "connectivityAt", task.connectivity_at.map(seconds));
    let containers = task
        .containers
        .iter()
        .map(|it| container(owner, task, it))
        .collect::<Vec<_>>();
    put(&mut shape, "containers", Some(containers));
    put(&mut shape, "cpu", Some(task.cpu_units.to_string()));
    put(&mut shape, "memory", Some(task.memory_mib.to_string()));
    put(&mut shape, "createdAt", Some(seconds(task.created_at)));
    let desired = match task.desired_status {
        DesiredStatus::Running => "RUNNING",
        DesiredStatus::Stopped => "STOPPED",
    };
    put(&mut shape, "desiredStatus", Some(desired));
    put(
        &mut shape,
        "enableExecuteCommand",
        Some(task.enable_execute_command),
    );
    put(&mut shape, "group", Some(&task.group));
    put(&mut shape, "healthStatus", Some(task.health().as_str()));
    put(&mut shape, "lastStatus", Some(task.status.as_str()));
    put(&mut shape, "launchType", Some("FARGATE"));
    put(&mut shape, "platformFamily", Some("Linux"));
    put(&mut shape, "platformVersion", Some(PLATFORM_VERSION));
    put(&mut shape, "overrides", Some(overrides(task)));
    put(&mut shape, "pullStartedAt", task.pull_started_at.map(seconds));
    put(&mut shape, "pullStoppedAt", task.pull_stopped_at.map(seconds));
    put(&mut shape, "startedAt", task.started_at.map(seconds));
    put(&mut shape, "startedBy", task.started_by.as_ref());
    put(&mut shape, "stoppingAt", task.stopping_at.map(seconds));
    put(
        &mut shape,
        "executionStoppedAt",
        task.execution_stopped_at.map(seconds),
    );
    put(&mut shape, "stoppedAt", task.stopped_at.map(seconds));
    put(
        &mut shape,
        "stopCode",
        task.stop.as_ref().map(|stop| stop.code.as_str()),
    );
    put(
        &mut shape,
        "stoppedReason",
        task.stop.as_ref().map(|stop| &stop.reason),
    );
    put(
        &mut shape,
        "tags",
        Some(if with_tags {
            tags_json(&task.tags)
        } else {
            json!([])
        }),
    );
    put(&mut shape, "version", Some(task.version));
    let storage = json!({ "sizeInGiB": task.ephemeral_storage_gib });
    put(&mut shape, "ephemeralStorage", Some(&storage));
    put(&mut shape, "fargateEphemeralStorage", Some(&storage));
    Value::Object(shape)
}

/// ECS knows no pause, so that is an attribute: since when, in seconds. Nor does it know isolation, which its cluster chose.
fn attributes(task: &Task) -> Value {
    let mut attributes = vec![json!({ "name": "ecs.cpu-architecture", "value": "x86_64" })];
    if let Some(since) = task.pauses.since {
        attributes.push(json!({ "name": PAUSED_AT, "value": seconds(since).to_string() }));
    }
    if task.isolation != Isolation::default() {
        attributes.push(json!({ "name": ISOLATION, "value": task.isolation.as_str() }));
    }
    attributes.into()
}

fn attachment(owner: &Owner, task: &Task) -> Value {
    let eni = &task.eni;
    let status = match task.status {
        TaskStatus::Provisioning => "PRECREATED",
        TaskStatus::Pending if task.connectivity_at.is_none() => "ATTACHING",
        TaskStatus::Stopped => "DELETED",
        _ => "ATTACHED",
    };
    let details = [
        ("subnetId", eni.subnet_id.clone()),
        ("networkInterfaceId", eni.id.clone()),
        ("macAddress", eni.mac.clone()),
        ("privateDnsName", private_dns_name(&owner.region, eni)),
        ("privateIPv4Address", eni.address.to_string()),
    ];
    let details: Vec<Value> = details
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({ "id": eni.attachment_id, "type": "ElasticNetworkInterface", "status": status, "details": details })
}

fn volume_attachment(task: &Task, volume: &TaskVolume) -> Value {
    let status = match task.status {
        TaskStatus::Provisioning => "ATTACHING",
        TaskStatus::Stopped if volume.delete_on_termination => "DELETED",
        TaskStatus::Stopped => "DETACHED",
        TaskStatus::Deprovisioning => "DETACHING",
        _ => "ATTACHED",
    };
    let details = [
        ("roleArn", volume.role_arn.clone()),
        (
            "deleteOnTermination",
            Some(volume.delete_on_termination.to_string()),
        ),
        ("volumeName", Some(volume.name.clone())),
        ("volumeId", Some(volume.id.to_string())),
        ("sizeInGiB", Some(volume.size_gib.to_string())),
    ];
    let details: Vec<Value> = details
        .iter()
        .filter_map(|(name, value)| Some(json!({ "name": name, "value": value.as_ref()? })))
        .collect();
    json!({
        "id": volume.attachment_id, "type": "AmazonElasticBlockStorage", "status": status, "details": details,
    })
}

/// EC2's name of an address: the oldest region has a domain of its own.
pub(crate) fn private_dns_name(region: &str, eni: &Eni) -> String {
    let domain = if region == "us-east-1" {
        "ec2".to_owned()
    } else {
        format!("{region}.compute")
    };
    format!(
        "ip-{}.{domain}.internal",
        eni.address.to_string().replace('.', "-")
    )
}

fn container(owner: &Owner, task: &Task, container: &Container) -> Value {
    let mut shape = Map::new();
    put(
        &mut shape,
        "containerArn",
        Some(owner.container(&task.cluster, &task.id, &container.name)),
    );
    put(&mut shape, "taskArn", Some(owner.task(&task.cluster, &task.id)));
    put(&mut shape, "name", Some(&container.name));
    put(&mut shape, "image", Some(&container.image));
    put(&mut shape, "imageDigest", container.image_digest.as_ref());
    // There is no container to have an id before it runs.
    let ran = container.status != ContainerStatus::Pending;
    put(&mut shape, "runtimeId", ran.then_some(&container.runtime_id));
    put(&mut shape, "lastStatus", Some(container.status.as_str()));
    put(&mut shape, "exitCode", container.exit_code);
    put(&mut shape, "reason", container.reason.as_ref());
    let agent = task
        .enable_execute_command
        .then(|| [execute_command_agent(task, container)]);
    put(&mut shape, "managedAgents", agent);
    put(&mut shape, "networkBindings", Some(json!([])));
    let eni = &task.eni;
    let interface = json!({
        "attachmentId": eni.attachment_id,
        "privateIpv4Address": eni.address.to_string(),
    });
    put(&mut shape, "networkInterfaces", Some([interface]));
    let health = container.health.unwrap_or(HealthStatus::Unknown);
    put(&mut shape, "healthStatus", Some(health.as_str()));
    put(&mut shape, "restartCount", container.restarts);
    put(&mut shape, "cpu", Some(container.cpu.to_string()));
    put(
        &mut shape,
        "memory",
        container.memory_mib.map(|memory| memory.to_string()),
    );
    put(
        &mut shape,
        "memoryReservation",
        container.memory_reservation_mib.map(|memory| memory.to_string()),
    );
    Value::Object(shape)
}

/// What AWS puts into a container that commands can be run in. Here the guest has it, and it is there with the container.
fn execute_command_agent(task: &Task, container: &Container) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "name", Some("ExecuteCommandAgent"));
    put(&mut shape, "lastStatus", Some(container.status.as_str()));
    let ran = container.status != ContainerStatus::Pending;
    put(
        &mut shape,
        "lastStartedAt",
        task.started_at.filter(|_| ran).map(seconds),
    );
    Value::Object(shape)
}

/// As given, but each container of the task is named, as AWS does.
fn overrides(task: &Task) -> Value {
    let Overrides {
        cpu_units,
        memory_mib,
        ephemeral_storage_gib,
        execution_role_arn,
        task_role_arn,
        containers,
    } = &task.overrides;
    let named = task.containers.iter().map(|container| {
        let given = containers.iter().find(|given| given.name == container.name);
        given.map_or_else(|| json!({ "name": container.name }), container_override)
    });
    let mut shape = Map::new();
    put(&mut shape, "containerOverrides", Some(named.collect::<Vec<_>>()));
    put(&mut shape, "inferenceAcceleratorOverrides", Some(json!([])));
    put(&mut shape, "cpu", cpu_units.map(|cpu| cpu.to_string()));
    put(&mut shape, "memory", memory_mib.map(|memory| memory.to_string()));
    put(
        &mut shape,
        "ephemeralStorage",
        ephemeral_storage_gib.map(|size| json!({ "sizeInGiB": size })),
    );
    put(&mut shape, "executionRoleArn", execution_role_arn.as_ref());
    put(&mut shape, "taskRoleArn", task_role_arn.as_ref());
    Value::Object(shape)
}

fn container_override(given: &ContainerOverride) -> Value {
    let mut shape = Map::new();
    put(&mut shape, "name", Some(&given.name));
    put(&mut shape, "command", given.command.as_ref());
    let environment = &given.environment;
    put(
        &mut shape,
        "environment",
        (!environment.is_empty()).then(|| name_values_json(environment)),
    );
    put(
        &mut shape,
        "environmentFiles",
        files::encode(&given.environment_files),
    );
    put(&mut shape, "cpu", given.cpu);
    put(&mut shape, "memory", given.memory_mib);
    put(&mut shape, "memoryReservation", given.memory_reservation_mib);
    Value::Object(shape)
}
