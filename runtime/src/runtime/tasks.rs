//! Tasks: admitting, stopping, looking at them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::open::random_id;
use super::volumes::{self, Given};
use super::{LaunchVolume, PullStatus, RunTask, Runtime, RuntimeError, Shortage};
use crate::faults::{self, Point};
use crate::model::Timestamp;
use crate::model::definition::{
    ContainerDefinition, DEFAULT_EPHEMERAL_STORAGE_GIB, DefinitionStatus, TaskDefinition,
};
use crate::model::isolation::Isolation;
use crate::model::log::{LogGroup, LogSource, LogStream};
use crate::model::network::{SecurityGroup, Subnet};
use crate::model::task::{
    Container, ContainerStatus, DesiredStatus, Eni, HealthStatus, LogTarget, Overrides, Pauses, StopCause,
    StopCode, Task, TaskId, TaskStatus,
};
use crate::model::volume::{TaskVolume, VolumeId, VolumeKind};
use crate::network::{MacAddr, ipam};
use crate::state::keys;
use crate::store::{Record, Transaction};
use crate::task::host::MachineMetrics;
use crate::task::supervisor::{Request, Wish};

/// How long a client token answers for its request.
pub(super) const CLIENT_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a client token was used for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct UsedToken {
    pub cluster: String,
    pub token: String,
    request_digest: String,
    tasks: Vec<TaskId>,
    pub used_at: Timestamp,
}

/// Where a task is put.
struct Place {
    subnet: Subnet,
    security_groups: Vec<String>,
}

impl Runtime {
    /// All or none: either every task is stored as PROVISIONING and on its way, or an error says why not.
    pub async fn run_task(&self, request: RunTask) -> Result<Vec<Task>, RuntimeError> {
        let _admission = self.shared.admission.lock().await;
        let (cluster, _) = self.active_cluster(&request.cluster).await?;
        if let Some((token, digest)) = &request.client_token
            && let Some(tasks) = self.tasks_of_token(&request.cluster, token, digest).await?
        {
            return Ok(tasks);
        }
        let definition = self
            .definition(&request.definition.family, Some(request.definition.revision))
            .await?;
        if definition.status == DefinitionStatus::Inactive {
            return Err(RuntimeError::DefinitionInactive(definition.id));
        }
        for chosen in &request.overrides.containers {
            if !definition
                .spec
                .containers
                .iter()
                .any(|container| container.name == chosen.name)
            {
                return Err(RuntimeError::ContainerNotFound(chosen.name.clone()));
            }
        }
        let given = match &request.volume {
            Some(asked) => Some((asked, self.volume_for_task(asked, request.count).await?)),
            None => None,
        };
        let place = self.place(&request).await?;
        let mut taken = self.taken_addresses(&place.subnet.id).await?;
        let mut tasks = Vec::new();
        for _ in 0..request.count {
            let address =
                ipam::next_free(place.subnet.cidr, &taken).ok_or(RuntimeError::Capacity(Shortage {
                    resource: "ENI",
                    unit: "addresses of the subnet",
                    needed: u64::from(request.count),
                    free: tasks.len() as u64,
                }))?;
            taken.insert(address);
            let mut task = self.new_task(&request, &definition, &place, address);
            task.volume = given.as_ref().map(|(asked, given)| task_volume(asked, given));
            task.isolation = cluster.isolation();
            tasks.push(task);
        }
        self.check_capacity(&tasks).await?;
        let new_groups = self.missing_log_groups(&definition).await?;
        let mut creation = self.creation(&request, new_groups, &tasks)?;
        for task in &tasks {
            if let Some((asked, given)) = &given {
                creation = self.attach(creation, task, given, asked)?;
            }
        }
        let committed = self.shared.context.records.commit(creation).await;
        let from = request.volume.as_ref().and_then(|asked| asked.from.as_deref());
        let revision = committed.map_err(|error| volumes::conflict(error, from.unwrap_or_default()))?;
        faults::pass(Point::TaskAdmitted);
        for task in &tasks {
            self.supervise(
                Record {
                    value: task.clone(),
                    revision,
                },
                false,
            );
        }
        Ok(tasks)
    }

    /// The tasks that a client token has made already; none if it was not used. Another request's token is refused.
    pub async fn tasks_of_token(
        &self,
        cluster: &str,
        token: &str,
        request_digest: &str,
    ) -> Result<Option<Vec<Task>>, RuntimeError> {
        let key = keys::client_token(cluster, token);
        let used: Option<Record<UsedToken>> = self.shared.context.records.get(&key).await?;
        let Some(used) = used.map(|record| record.value) else {
            return Ok(None);
        };
        let mut tasks = Vec::new();
        for id in &used.tasks {
            match self.task(id).await {
                Ok(task) => tasks.push(task),
                // Stopped long ago, and forgotten.
                Err(RuntimeError::TaskNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if used.request_digest == request_digest {
            Ok(Some(tasks))
        } else {
            Err(RuntimeError::TokenConflict(tasks))
        }
    }

    /// Idempotent; returns the task as it is just after.
    pub async fn stop_task(&self, id: &TaskId, code: StopCode, reason: &str) -> Result<Task, RuntimeError> {
        let reason = reason.to_owned();
        self.ask(id, Wish::Stop(StopCause { code, reason })).await
    }

    /// Has the task stand still: its guest runs no more, and keeps its memory and its address. Idempotent.
    pub async fn pause_task(&self, id: &TaskId) -> Result<Task, RuntimeError> {
        self.ask(id, Wish::Pause).await.and_then(running)
    }

    /// Has a paused task go on. Idempotent.
    pub async fn resume_task(&self, id: &TaskId) -> Result<Task, RuntimeError> {
        self.ask(id, Wish::Resume).await.and_then(running)
    }

    /// Protects the task from now on for so long, or no longer; one that has stopped stays as it is.
    pub async fn protect_task(&self, id: &TaskId, time: Option<Duration>) -> Result<Task, RuntimeError> {
        let now = self.shared.context.clock.now();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let until = time.map(|time| Timestamp(now.0.saturating_add(millis(time))));
        self.ask(id, Wish::Protect(until)).await
    }

    /// Until when a task is protected; none for one that is not.
    pub fn protection(&self, task: &Task) -> Option<Timestamp> {
        task.protection(self.shared.context.clock.now())
    }

    /// Tells the task's supervisor; the task as it is just after.
    async fn ask(&self, id: &TaskId, wish: Wish) -> Result<Task, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        let supervisor = self.supervisors().get(id).cloned();
        if let Some(supervisor) = supervisor
            && supervisor.send(Request { wish, reply }).is_ok()
            && let Ok(task) = answer.await
        {
            return Ok(task);
        }
        // No supervisor: it is stopped.
        self.task(id).await
    }

    pub async fn task(&self, id: &TaskId) -> Result<Task, RuntimeError> {
        let record: Option<Record<Task>> = self.shared.context.records.get(&keys::task(id)).await?;
        record
            .map(|record| record.value)
            .ok_or_else(|| RuntimeError::TaskNotFound(id.to_string()))
    }

    /// What the task's machine counts and takes of the host; none while it has no machine.
    pub async fn machine_metrics(&self, id: &TaskId) -> Result<Option<MachineMetrics>, RuntimeError> {
        if self.task(id).await?.status == TaskStatus::Stopped {
            return Ok(None);
        }
        match self.shared.context.host.machine_metrics(id).await {
            Ok(metrics) => Ok(metrics),
            // It went while it was being asked.
            Err(_) if self.task(id).await?.status >= TaskStatus::Stopping => Ok(None),
            Err(error) => Err(RuntimeError::Internal(error.to_string())),
        }
    }

    /// All tasks, newest first; stopped ones are kept for a while.
    pub async fn tasks(&self) -> Result<Vec<Task>, RuntimeError> {
        let records = self.shared.context.records.list::<Task>(keys::TASKS).await?;
        let mut tasks: Vec<Task> = records.into_iter().map(|record| record.value).collect();
        tasks.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(tasks)
    }

    /// Waits until the task's version is above `version`, or `timeout` passes; returns it as it is then.
    pub async fn task_after(
        &self,
        id: &TaskId,
        version: u64,
        timeout: Duration,
    ) -> Result<Task, RuntimeError> {
        let store = self.shared.context.records.store();
        let mut changes = store.watch(&keys::task(id), store.revision().await?).await?;
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let task = self.task(id).await?;
            let waited = tokio::time::timeout_at(deadline, changes.recv());
            if task.version > version || !matches!(waited.await, Ok(Some(_))) {
                return self.task(id).await;
            }
        }
    }

    /// None unless the task is pulling just now.
    pub fn pull_status(&self, id: &TaskId) -> Option<PullStatus> {
        let pulls = self
            .shared
            .context
            .pulls
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pulls.get(id).copied()
    }

    /// The log groups that the definition names, that do not exist and that it does not forbid to create.
    async fn missing_log_groups(
        &self,
        definition: &TaskDefinition,
    ) -> Result<BTreeSet<String>, RuntimeError> {
        let mut missing = BTreeSet::new();
        for log in definition
            .spec
            .containers
            .iter()
            .filter_map(|container| container.log.as_ref())
        {
            let found: Option<Record<LogGroup>> = self
                .shared
                .context
                .records
                .get(&keys::log_group(&log.group))
                .await?;
            if found.is_none() {
                if !log.creates_group() {
                    return Err(RuntimeError::LogGroupNotFound(log.group.clone()));
                }
                missing.insert(log.group.clone());
            }
        }
        Ok(missing)
    }

    async fn place(&self, request: &RunTask) -> Result<Place, RuntimeError> {
        let subnets = self.subnets().await?;
        let subnet = match &request.subnet_id {
            Some(id) => subnets.into_iter().find(|subnet| subnet.id == *id),
            None => subnets.into_iter().find(|subnet| subnet.is_default),
        };
        let subnet = subnet.ok_or_else(|| {
            RuntimeError::SubnetNotFound(request.subnet_id.clone().unwrap_or_else(|| "default".to_owned()))
        })?;
        let groups = self.security_groups().await?;
        let mut chosen = BTreeSet::new();
        for id in &request.security_groups {
            let group = groups.iter().find(|group| group.id == *id);
            let group = group.ok_or_else(|| RuntimeError::SecurityGroupNotFound(id.clone()))?;
            if group.vpc_id != subnet.vpc_id {
                return Err(RuntimeError::SecurityGroupElsewhere {
                    group: id.clone(),
                    subnet: subnet.id,
                });
            }
            chosen.insert(id.clone());
        }
        if chosen.is_empty() {
            let default = |group: &&SecurityGroup| group.vpc_id == subnet.vpc_id && group.is_default;
            chosen.extend(groups.iter().find(default).map(|group| group.id.clone()));
        }
        Ok(Place {
            subnet,
            security_groups: chosen.into_iter().collect(),
        })
    }

    fn new_task(
        &self,
        request: &RunTask,
        definition: &TaskDefinition,
        place: &Place,
        address: std::net::Ipv4Addr,
    ) -> Task {
        let id = TaskId::random();
        let spec = &definition.spec;
        let overrides = &request.overrides;
        let eni_id = random_id("eni");
        let containers = spec
            .containers
            .iter()
            .enumerate()
            .map(|(index, container)| new_container(&id, index, container, overrides))
            .collect();
        Task {
            cluster: request.cluster.clone(),
            definition: definition.id.clone(),
            cpu_units: overrides.cpu_units.unwrap_or(spec.cpu_units),
            memory_mib: overrides.memory_mib.unwrap_or(spec.memory_mib),
            ephemeral_storage_gib: overrides
                .ephemeral_storage_gib
                .or(spec.ephemeral_storage_gib)
                .unwrap_or(DEFAULT_EPHEMERAL_STORAGE_GIB),
            overrides: overrides.clone(),
            group: request
                .group
                .clone()
                .unwrap_or_else(|| format!("family:{}", definition.id.family)),
            started_by: request.started_by.clone(),
            enable_execute_command: request.enable_execute_command,
            tags: request.tags.clone(),
            status: TaskStatus::Provisioning,
            desired_status: DesiredStatus::Running,
            stop: None,
            containers,
            eni: Eni {
                mac: MacAddr::derived(&eni_id).to_string(),
                id: eni_id,
                attachment_id: random_uuid(),
                subnet_id: place.subnet.id.clone(),
                vpc_id: place.subnet.vpc_id.clone(),
                address,
                security_groups: place.security_groups.clone(),
                internet: request.internet,
            },
            version: 1,
            created_at: self.shared.context.clock.now(),
            connectivity_at: None,
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            stopping_at: None,
            execution_stopped_at: None,
            stopped_at: None,
            pauses: Pauses::default(),
            ended_at_heartbeat: false,
            protected_until: None,
            volume: None,
            isolation: Isolation::default(),
            id,
        }
    }

    /// One transaction for the tasks, their addresses, log streams and the client token.
    fn creation(
        &self,
        request: &RunTask,
        new_groups: BTreeSet<String>,
        tasks: &[Task],
    ) -> Result<Transaction, RuntimeError> {
        let now = self.shared.context.clock.now();
        let mut transaction = Transaction::default();
        for task in tasks {
            transaction = transaction
                .create(keys::task(&task.id), task)?
                .create(keys::address(&task.eni.subnet_id, task.eni.address), &task.id)?;
            for container in &task.containers {
                let Some(log) = &container.log else { continue };
                let stream = LogStream {
                    group: log.group.clone(),
                    name: log.stream.clone(),
                    created_at: now,
                    source: LogSource::Container {
                        task: task.id.clone(),
                        container: container.name.clone(),
                    },
                };
                transaction = transaction.put(keys::log_stream(&log.group, &log.stream), &stream)?;
            }
        }
        for name in new_groups {
            transaction = transaction.create(keys::log_group(&name), &LogGroup::new(&name, now))?;
        }
        if let Some((token, digest)) = &request.client_token {
            let used = UsedToken {
                cluster: request.cluster.clone(),
                token: token.clone(),
                request_digest: digest.clone(),
                tasks: tasks.iter().map(|task| task.id.clone()).collect(),
                used_at: now,
            };
            transaction = transaction.create(keys::client_token(&request.cluster, token), &used)?;
        }
        Ok(transaction)
    }
}

/// Only what runs can be paused or resumed.
fn running(task: Task) -> Result<Task, RuntimeError> {
    match task.status {
        TaskStatus::Running => Ok(task),
        status => Err(RuntimeError::NotRunning(status)),
    }
}

fn task_volume(asked: &LaunchVolume, given: &Given) -> TaskVolume {
    let (id, size_gib, made) = match given {
        Given::Existing(record) => (record.value.id.clone(), record.value.size_gib, false),
        Given::New { size_gib, .. } => (VolumeId::random(VolumeKind::Volume), *size_gib, true),
    };
    TaskVolume {
        id,
        name: asked.name.clone(),
        size_gib,
        attachment_id: random_uuid(),
        made,
        delete_on_termination: made && asked.delete_on_termination.unwrap_or(true),
        role_arn: asked.role_arn.clone(),
    }
}

fn new_container(
    id: &TaskId,
    index: usize,
    definition: &ContainerDefinition,
    overrides: &Overrides,
) -> Container {
    let chosen = overrides
        .containers
        .iter()
        .find(|chosen| chosen.name == definition.name);
    Container {
        name: definition.name.clone(),
        image: definition.image.clone(),
        image_digest: None,
        runtime_id: format!("{id}-{index:010}"),
        essential: definition.essential,
        status: ContainerStatus::Pending,
        exit_code: None,
        reason: None,
        cpu: chosen.and_then(|chosen| chosen.cpu).unwrap_or(definition.cpu),
        memory_mib: chosen
            .and_then(|chosen| chosen.memory_mib)
            .or(definition.memory_mib),
        memory_reservation_mib: chosen
            .and_then(|chosen| chosen.memory_reservation_mib)
            .or(definition.memory_reservation_mib),
        log: definition.log.as_ref().map(|log| LogTarget {
            group: log.group.clone(),
            stream: format!("{}/{}/{id}", log.stream_prefix, definition.name),
        }),
        health: definition.health_check.as_ref().map(|_| HealthStatus::Unknown),
        restarts: definition.restart_policy.as_ref().map(|_| 0),
    }
}

/// A version 4 UUID.
fn random_uuid() -> String {
    let random = rand::random::<u128>() & !(0xf << 76) & !(0xc << 60) | 4 << 76 | 8 << 60;
    let hex = format!("{random:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
