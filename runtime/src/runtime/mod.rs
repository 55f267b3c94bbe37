//! The way into the runtime: one cheap handle with everything that can be asked of it.

mod background;
mod billing;
mod capacity;
mod clusters;
mod definitions;
pub mod endpoint;
pub mod exec;
mod images;
mod log_groups;
mod logs;
mod networks;
mod open;
mod tasks;
#[cfg(test)]
mod tests;
mod volumes;
#[cfg(test)]
pub(crate) use tests::definition as test_definition;

pub use self::logs::LogMatcher;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use capacity::{Overcommit, Ratio, Shortage};
pub use images::{ImageUsage, PullState};
pub use volumes::{CreateVolume, LaunchVolume, VolumeStatus};

use crate::image::{PullBehavior, PullPhase, PullProgress};
use crate::logs::LogError;
use crate::machine::MachineOptions;
use crate::metering::{PriceError, PriceList};
use crate::model::definition::DefinitionId;
use crate::model::task::{Overrides, Task, TaskId, TaskStatus};
use crate::model::{Tag, Timestamp};
use crate::secrets::{SecretError, SecretStore};
use crate::store::{Record, StoreError};
use crate::task::host::HostError;
use crate::task::supervisor::{Context, Request, supervise};

/// How a runtime is set up.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    pub data_dir: PathBuf,
    /// The `berth-vmm` binary.
    pub vmm: PathBuf,
    /// The guest kernel (ELF) and its initial RAM file system with `berth-init`.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// For prices and availability zones, such as `us-east-1`.
    pub region: String,
    /// Registries that may be spoken to over plain http: `host[:port]`.
    pub insecure_registries: BTreeSet<String>,
    /// Most bytes on disk of all images that are kept; none means half of the file system.
    pub image_budget_bytes: Option<u64>,
    /// Of all image pulls together.
    pub pull_bytes_per_second: Option<NonZeroU64>,
    pub pull_behavior: PullBehavior,
    /// Credentials of registries; none means `docker-config.json` in the data directory. It need not be there.
    pub docker_config: Option<PathBuf>,
    /// Shortest billed time of a task, in seconds.
    pub minimum_billed_seconds: u64,
    pub machines: MachineOptions,
    /// Prefix of everything made on the host (network namespaces, links, tables) and name of the parent cgroup.
    pub host_prefix: String,
    /// How long a stopped task can still be described.
    pub stopped_task_retention: Duration,
    /// How much of the host may be promised to tasks.
    pub overcommit: Overcommit,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cluster {0} does not exist")]
    ClusterNotFound(String),
    #[error("cluster {cluster} still has {tasks} tasks")]
    ClusterHasTasks { cluster: String, tasks: usize },
    #[error("task definition {0} does not exist")]
    DefinitionNotFound(String),
    #[error("task definition {0} is inactive")]
    DefinitionInactive(DefinitionId),
    #[error("task {0} does not exist")]
    TaskNotFound(String),
    #[error("subnet {0} does not exist")]
    SubnetNotFound(String),
    #[error("security group {0} does not exist")]
    SecurityGroupNotFound(String),
    #[error("security group {group} and subnet {subnet} belong to different networks")]
    SecurityGroupElsewhere { group: String, subnet: String },
    #[error("container {0} does not exist in the task definition")]
    ContainerNotFound(String),
    /// The host has no room.
    #[error("this host has no room: {0}")]
    Capacity(Shortage),
    /// The token was used before, for another request; these are the tasks that it made.
    #[error("the client token was used for another request")]
    TokenConflict(Vec<Task>),
    #[error("log group {0} does not exist")]
    LogGroupNotFound(String),
    #[error("log stream {0} does not exist")]
    LogStreamNotFound(String),
    #[error("log group {0} exists already")]
    LogGroupExists(String),
    #[error("log stream {0} exists already")]
    LogStreamExists(String),
    #[error("log stream {0} is a container's, and no one else can write it")]
    LogStreamOfContainer(String),
    #[error("the task is {}, and only a task that is RUNNING can be paused or resumed", .0.as_str())]
    NotRunning(TaskStatus),
    #[error("container {0} does not run")]
    ContainerNotRunning(String),
    #[error("the task is paused")]
    Paused,
    #[error("image {image} is in use by {users}")]
    ImageInUse { image: String, users: String },
    /// An image that a caller named cannot be had.
    #[error("{0}")]
    Image(String),
    #[error("volume {0} does not exist")]
    VolumeNotFound(String),
    #[error("there is a volume or a snapshot named {0} already")]
    VolumeExists(String),
    #[error("volume {volume} is in use by {by}")]
    VolumeInUse { volume: String, by: String },
    /// What was asked of a volume cannot be.
    #[error("{0}")]
    Volume(String),
    #[error("there is no log event at position {0}")]
    InvalidPosition(u64),
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for RuntimeError {
    fn from(error: StoreError) -> RuntimeError {
        RuntimeError::Internal(error.to_string())
    }
}

impl From<HostError> for RuntimeError {
    fn from(error: HostError) -> RuntimeError {
        RuntimeError::Internal(error.to_string())
    }
}

impl From<SecretError> for RuntimeError {
    fn from(error: SecretError) -> RuntimeError {
        RuntimeError::Internal(error.to_string())
    }
}

impl From<PriceError> for RuntimeError {
    fn from(error: PriceError) -> RuntimeError {
        RuntimeError::Internal(error.to_string())
    }
}

impl From<LogError> for RuntimeError {
    fn from(error: LogError) -> RuntimeError {
        match error {
            LogError::Position(position) => RuntimeError::InvalidPosition(position),
            error @ LogError::Io { .. } => RuntimeError::Internal(error.to_string()),
        }
    }
}

/// What RunTask asks for, decoded and validated.
#[derive(Clone, Debug)]
pub struct RunTask {
    pub cluster: String,
    pub definition: DefinitionId,
    /// 1 to 10.
    pub count: u32,
    pub overrides: Overrides,
    /// None means the default subnet.
    pub subnet_id: Option<String>,
    /// Empty means the VPC's default group.
    pub security_groups: Vec<String>,
    pub internet: bool,
    /// None means `family:<family>`.
    pub group: Option<String>,
    pub started_by: Option<String>,
    pub enable_execute_command: bool,
    pub tags: Vec<Tag>,
    /// The token, and a digest of the request it came with.
    pub client_token: Option<(String, String)>,
    /// For a definition that has a volume to be configured at launch.
    pub volume: Option<LaunchVolume>,
}

/// How far a task's image pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullStatus {
    /// `resolving`, `downloading`, `unpacking` or `packing`.
    pub phase: &'static str,
    pub layers_done: u32,
    pub layers_total: u32,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

impl From<PullProgress> for PullStatus {
    fn from(progress: PullProgress) -> PullStatus {
        PullStatus {
            phase: match progress.phase {
                PullPhase::Resolving => "resolving",
                PullPhase::Downloading => "downloading",
                PullPhase::Unpacking => "unpacking",
                PullPhase::Packing => "packing",
            },
            layers_done: u32::try_from(progress.layers_done).unwrap_or(u32::MAX),
            layers_total: u32::try_from(progress.layers_total).unwrap_or(u32::MAX),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
        }
    }
}

/// A handle; clones share one runtime.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    context: Arc<Context>,
    prices: PriceList,
    settings: Settings,
    /// One for each task that is not stopped.
    supervisors: Mutex<HashMap<TaskId, mpsc::UnboundedSender<Request>>>,
    /// Pulls that no task asked for, by what they were asked for with.
    pulls: Mutex<HashMap<String, images::Asked>>,
    /// What is free on the host is looked at and taken in one go.
    admission: tokio::sync::Mutex<()>,
    /// Volumes that are being made, copied or deleted.
    volume_work: Mutex<JoinSet<()>>,
}

/// What the runtime itself needs of its configuration.
struct Settings {
    minimum_billed_seconds: u64,
    stopped_task_retention: Duration,
    overcommit: Overcommit,
}

impl Runtime {
    pub fn now(&self) -> Timestamp {
        self.shared.context.clock.now()
    }

    /// Gives up what is not to outlive the daemon. Its tasks go on.
    pub async fn close(&self) {
        self.shared.context.host.close().await;
    }

    /// Parameters and secrets.
    pub fn secrets(&self) -> &SecretStore {
        &self.shared.context.secrets
    }

    /// Starts the supervisor of a task that is stored and not stopped.
    fn supervise(&self, record: Record<Task>, resumed: bool) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let id = record.value.id.clone();
        self.supervisors().insert(id.clone(), sender);
        let shared = Arc::downgrade(&self.shared);
        let context = Arc::clone(&self.shared.context);
        tokio::spawn(async move {
            supervise(context, record, resumed, inbox).await;
            if let Some(shared) = shared.upgrade() {
                Runtime { shared }.supervisors().remove(&id);
            }
        });
    }

    fn supervisors(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, mpsc::UnboundedSender<Request>>> {
        self.shared
            .supervisors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
