//! Tasks: the record that is stored and described.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::definition::DefinitionId;
use super::isolation::Isolation;
use super::object::EnvironmentFile;
use super::volume::TaskVolume;
use super::{NameValue, Tag, Timestamp};

/// 32 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(String);

impl TaskId {
    /// A new random id.
    pub fn random() -> TaskId {
        TaskId(format!("{:032x}", rand::random::<u128>()))
    }
    /// None unless `text` is 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<TaskId> {
        let well_formed = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| TaskId(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The life of a task, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskStatus {
    Provisioning,
    Pending,
    Activating,
    Running,
    Deactivating,
    Stopping,
    Deprovisioning,
    Stopped,
}

impl TaskStatus {
    /// `RUNNING` and so on.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskStatus::Provisioning => "PROVISIONING",
            TaskStatus::Pending => "PENDING",
            TaskStatus::Activating => "ACTIVATING",
            TaskStatus::Running => "RUNNING",
            TaskStatus::Deactivating => "DEACTIVATING",
            TaskStatus::Stopping => "STOPPING",
            TaskStatus::Deprovisioning => "DEPROVISIONING",
            TaskStatus::Stopped => "STOPPED",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DesiredStatus {
    Running,
    Stopped,
}

/// `stopCode` of the ECS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCode {
    TaskFailedToStart,
    EssentialContainerExited,
    UserInitiated,
    ServiceSchedulerInitiated,
    SpotInterruption,
    TerminationNotice,
}

impl StopCode {
    /// The API's own spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            StopCode::TaskFailedToStart => "TaskFailedToStart",
            StopCode::EssentialContainerExited => "EssentialContainerExited",
            StopCode::UserInitiated => "UserInitiated",
            StopCode::ServiceSchedulerInitiated => "ServiceSchedulerInitiated",
            StopCode::SpotInterruption => "SpotInterruption",
            StopCode::TerminationNotice => "TerminationNotice",
        }
    }
}

/// Why a task stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCause {
    pub code: StopCode,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub cluster: String,
    pub definition: DefinitionId,
    /// With task-level overrides applied.
    pub cpu_units: u32,
    pub memory_mib: u32,
    pub ephemeral_storage_gib: u32,
    pub overrides: Overrides,
    pub group: String,
    pub started_by: Option<String>,
    pub enable_execute_command: bool,
    pub tags: Vec<Tag>,
    pub status: TaskStatus,
    pub desired_status: DesiredStatus,
    pub stop: Option<StopCause>,
    pub containers: Vec<Container>,
    pub eni: Eni,
    /// Grows by one with every change that can be seen from outside.
    pub version: u64,
    pub created_at: Timestamp,
    pub connectivity_at: Option<Timestamp>,
    pub pull_started_at: Option<Timestamp>,
    pub pull_stopped_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub stopping_at: Option<Timestamp>,
    pub execution_stopped_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
    #[serde(default)]
    pub pauses: Pauses,
    /// The end of execution was not seen; `execution_stopped_at` is the daemon's last heartbeat before it.
    #[serde(default)]
    pub ended_at_heartbeat: bool,
    /// It is not to be stopped for having fewer tasks or newer ones.
    #[serde(default)]
    pub protected_until: Option<Timestamp>,
    #[serde(default)]
    pub volume: Option<TaskVolume>,
    /// As its cluster had chosen when it was run.
    #[serde(default)]
    pub isolation: Isolation,
}

impl Task {
    /// Until when it is protected, if it is now.
    pub fn protection(&self, now: Timestamp) -> Option<Timestamp> {
        self.protected_until.filter(|until| *until > now)
    }

    /// UNHEALTHY if an essential container is, else UNKNOWN if one is, else HEALTHY. A container without a check counts for
    /// nothing, unless none has one.
    pub fn health(&self) -> HealthStatus {
        let checked = self
            .containers
            .iter()
            .filter(|container| container.essential)
            .filter_map(|container| container.health);
        let found: Vec<HealthStatus> = checked.collect();
        [HealthStatus::Unhealthy, HealthStatus::Unknown]
            .into_iter()
            .find(|status| found.contains(status) || found.is_empty() && *status == HealthStatus::Unknown)
            .unwrap_or(HealthStatus::Healthy)
    }
}

/// The time in which a task stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// It is paused, from then on.
    pub since: Option<Timestamp>,
    /// All pauses that are over, in milliseconds.
    pub ended_ms: u64,
}

impl Pauses {
    /// Ends the pause, if there is one.
    pub fn end(&mut self, at: Timestamp) {
        if let Some(since) = self.since.take() {
            self.ended_ms = self.ended_ms.saturating_add(at.millis_since(since));
        }
    }

    /// Milliseconds of pauses up to then.
    pub fn until(self, at: Timestamp) -> u64 {
        let open = self.since.map_or(0, |since| at.millis_since(since));
        self.ended_ms.saturating_add(open)
    }
}

/// `overrides` of RunTask, as given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    pub cpu_units: Option<u32>,
    pub memory_mib: Option<u32>,
    pub ephemeral_storage_gib: Option<u32>,
    pub execution_role_arn: Option<String>,
    pub task_role_arn: Option<String>,
    pub containers: Vec<ContainerOverride>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOverride {
    pub name: String,
    pub command: Option<Vec<String>>,
    pub environment: Vec<NameValue>,
    /// In the place of the definition's.
    #[serde(default)]
    pub environment_files: Vec<EnvironmentFile>,
    pub cpu: Option<u32>,
    pub memory_mib: Option<u32>,
    pub memory_reservation_mib: Option<u32>,
}

/// A container of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// Of the manifest, once pulled: `sha256:…`.
    pub image_digest: Option<String>,
    /// 32 hex digits of the task id, a dash, and a number: the container's own id.
    pub runtime_id: String,
    pub essential: bool,
    pub status: ContainerStatus,
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
    pub cpu: u32,
    pub memory_mib: Option<u32>,
    pub memory_reservation_mib: Option<u32>,
    /// The log stream it writes to, where it has the awslogs driver.
    pub log: Option<LogTarget>,
    /// Of a container that has a health check.
    #[serde(default)]
    pub health: Option<HealthStatus>,
    /// How often its restart policy started it again; none without one.
    #[serde(default)]
    pub restarts: Option<u32>,
}

/// `healthStatus` of the ECS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthStatus {
    Healthy,
    Unhealthy,
    Unknown,
}

impl HealthStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Healthy => "HEALTHY",
            HealthStatus::Unhealthy => "UNHEALTHY",
            HealthStatus::Unknown => "UNKNOWN",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    pub group: String,
    pub stream: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ContainerStatus {
    Pending,
    Running,
    Stopped,
}

impl ContainerStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            ContainerStatus::Pending => "PENDING",
            ContainerStatus::Running => "RUNNING",
            ContainerStatus::Stopped => "STOPPED",
        }
    }
}

/// The task's network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// `eni-` and 17 hex digits.
    pub id: String,
    /// The attachment's own id, a UUID.
    pub attachment_id: String,
    pub subnet_id: String,
    pub vpc_id: String,
    pub address: Ipv4Addr,
    /// `02:…`, lower case, colons.
    pub mac: String,
    pub security_groups: Vec<String>,
    /// `assignPublicIp: ENABLED`: the task may reach the internet through the host's uplink.
    pub internet: bool,
}
