//! Metadata in the shapes of version 4, with the names and forms of a Fargate task.

use berth_runtime::model::Timestamp;
use berth_runtime::model::definition::TaskDefinition;
use berth_runtime::model::network::Subnet;
use berth_runtime::model::task::{Container, ContainerStatus, DesiredStatus, Task};
use berth_runtime::{Measurement, RuntimeError};
use serde_json::{Map, Value, json};

use super::{Refusal, inside};
use crate::app::App;
use crate::arn::Owner;
use crate::ecs::task::encode::private_dns_name;
use crate::ecs::values::put;

const CPU_UNITS: f64 = 1024.0;
const MIB: u64 = 1 << 20;

/// All that goes into the answers.
pub(super) struct Facts<'a> {
    pub(super) owner: &'a Owner,
    pub(super) task: &'a Task,
    pub(super) definition: TaskDefinition,
    pub(super) subnet: Subnet,
    pub(super) dns_servers: Vec<String>,
    /// Of what the task uses, if somebody has looked.
    pub(super) newest: Option<Measurement>,
}

/// As the endpoint writes times: RFC 3339.
pub(super) fn time(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).ok();
    let at = millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    at.unwrap_or(jiff::Timestamp::MAX).to_string()
}

impl<'a> Facts<'a> {
    pub(super) async fn of(app: &'a App, task: &'a Task) -> Result<Facts<'a>, Refusal> {
        let runtime = &app.runtime;
        let definition = runtime
            .definition(&task.definition.family, Some(task.definition.revision))
            .await
            .map_err(inside)?;
        let subnets = runtime.subnets().await.map_err(inside)?;
        let subnet = subnets.into_iter().find(|subnet| subnet.id == task.eni.subnet_id);
        let subnet =
            subnet.ok_or_else(|| inside(RuntimeError::SubnetNotFound(task.eni.subnet_id.clone())))?;
        let dns_servers = runtime.dns_servers();
        Ok(Facts {
            owner: &app.owner,
            task,
            definition,
            subnet,
            dns_servers: dns_servers.iter().map(ToString::to_string).collect(),
            newest: runtime.newest_usage(&task.id),
        })
    }

    pub(super) fn container(&self, container: &Container) -> Value {
        let (task, owner) = (self.task, self.owner);
        let arn = owner.task(&task.cluster, &task.id);
        let mut shape = Map::new();
        put(&mut shape, "DockerId", Some(&container.runtime_id));
        put(&mut shape, "Name", Some(&container.name));
        put(&mut shape, "DockerName", Some(&container.name));
        put(&mut shape, "Image", Some(&container.image));
        put(&mut shape, "ImageID", container.image_digest.as_ref());
        let mut labels = Map::new();
        let spec = self.definition.spec.containers.iter();
        let own = spec.clone().find(|own| own.name == container.name);
        for (name, value) in own.iter().flat_map(|own| &own.docker_labels) {
            put(&mut labels, name, Some(value));
        }
        let id = &task.definition;
        for (name, value) in [
            ("cluster", owner.cluster(&task.cluster)),
            ("container-name", container.name.clone()),
            ("task-arn", arn),
            ("task-definition-family", id.family.clone()),
            ("task-definition-version", id.revision.to_string()),
        ] {
            put(&mut labels, &format!("com.amazonaws.ecs.{name}"), Some(value));
        }
        put(&mut shape, "Labels", Some(labels));
        put(&mut shape, "DesiredStatus", Some(self.desired_status()));
        put(&mut shape, "KnownStatus", Some(container.status.as_str()));
        put(&mut shape, "ExitCode", container.exit_code);
        let mut limits = Map::new();
        put(&mut limits, "CPU", Some(container.cpu));
        let memory = container.memory_mib.or(container.memory_reservation_mib);
        put(&mut limits, "Memory", memory);
        put(&mut shape, "Limits", Some(limits));
        if container.status != ContainerStatus::Pending {
            put(&mut shape, "CreatedAt", task.pull_stopped_at.map(time));
            put(&mut shape, "StartedAt", task.started_at.map(time));
        }
        put(&mut shape, "Type", Some("NORMAL"));
        if let Some(health) = container.health {
            put(&mut shape, "Health", Some(json!({ "status": health.as_str() })));
        }
        put(&mut shape, "RestartCount", container.restarts);
        if let Some(log) = own.and_then(|own| own.log.as_ref()) {
            put(&mut shape, "LogDriver", Some("awslogs"));
            let mut options = json!(log.options);
            let stream = container.log.as_ref().map(|log| log.stream.as_str());
            options["awslogs-stream"] = json!(stream);
            put(&mut shape, "LogOptions", Some(options));
        }
        let arn = owner.container(&task.cluster, &task.id, &container.name);
        put(&mut shape, "ContainerARN", Some(arn));
        put(&mut shape, "Networks", Some([self.network()]));
        Value::Object(shape)
    }

    pub(super) fn task(&self, with_tags: bool) -> Value {
        let (task, owner) = (self.task, self.owner);
        let mut shape = Map::new();
        put(&mut shape, "Cluster", Some(owner.cluster(&task.cluster)));
        put(&mut shape, "TaskARN", Some(owner.task(&task.cluster, &task.id)));
        put(&mut shape, "Family", Some(&task.definition.family));
        put(&mut shape, "Revision", Some(task.definition.revision.to_string()));
        put(&mut shape, "DesiredStatus", Some(self.desired_status()));
        put(&mut shape, "KnownStatus", Some(task.status.as_str()));
        let limits = json!({ "CPU": f64::from(task.cpu_units) / CPU_UNITS, "Memory": task.memory_mib });
        put(&mut shape, "Limits", Some(limits));
        put(&mut shape, "PullStartedAt", task.pull_started_at.map(time));
        put(&mut shape, "PullStoppedAt", task.pull_stopped_at.map(time));
        put(
            &mut shape,
            "ExecutionStoppedAt",
            task.execution_stopped_at.map(time),
        );
        put(
            &mut shape,
            "AvailabilityZone",
            Some(&self.subnet.availability_zone),
        );
        put(&mut shape, "LaunchType", Some("FARGATE"));
        put(&mut shape, "VPCID", Some(&task.eni.vpc_id));
        let containers: Vec<Value> = task.containers.iter().map(|it| self.container(it)).collect();
        put(&mut shape, "Containers", Some(containers));
        let reserved = u64::from(task.ephemeral_storage_gib) * 1024;
        let used = self
            .newest
            .as_ref()
            .map(|newest| newest.usage.disk_used_bytes / MIB);
        let storage = json!({ "Utilized": used.unwrap_or(0), "Reserved": reserved });
        put(&mut shape, "EphemeralStorageMetrics", Some(storage));
        if with_tags {
            let tags: Map<String, Value> = task
                .tags
                .iter()
                .map(|tag| (tag.key.clone(), json!(tag.value)))
                .collect();
            put(&mut shape, "TaskTags", Some(tags));
        }
        Value::Object(shape)
    }

    fn desired_status(&self) -> &'static str {
        match self.task.desired_status {
            DesiredStatus::Running => "RUNNING",
            DesiredStatus::Stopped => "STOPPED",
        }
    }

    fn network(&self) -> Value {
        let (eni, cidr) = (&self.task.eni, self.subnet.cidr);
        let gateway = cidr.hosts().next().unwrap_or(cidr.addr());
        json!({
            "NetworkMode": "awsvpc",
            "IPv4Addresses": [eni.address.to_string()],
            "AttachmentIndex": 0,
            "MACAddress": eni.mac,
            "IPv4SubnetCIDRBlock": cidr.trunc().to_string(),
            "DomainNameServers": self.dns_servers,
            "PrivateDNSName": private_dns_name(&self.owner.region, eni),
            "SubnetGatewayIpv4Address": format!("{gateway}/{}", cidr.prefix_len()),
        })
    }
}
