//! The way into the runtime: one cheap handle with everything that can be asked of it.

mod background;
mod billing;
mod clusters;
mod definitions;
pub mod exec;
mod logs;
mod networks;
mod open;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::logs::LogError;
use crate::machine::{Isolation, UserRange};
use crate::metering::{PriceError, PriceList};
use crate::model::Tag;
use crate::model::definition::DefinitionId;
use crate::model::task::{Overrides, Task, TaskId, TaskStatus};
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
    /// Shortest billed time of a task, in seconds.
    pub minimum_billed_seconds: u64,
    /// Whom machines run as.
    pub machine_users: UserRange,
    /// What tasks share with each other.
    pub isolation: Isolation,
    /// Prefix of everything made on the host (network namespaces, links, tables) and name of the parent cgroup.
    pub host_prefix: String,
    /// How long a stopped task can still be described.
    pub stopped_task_retention: Duration,
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
    /// The host has no room; the text names the resource: `MEMORY`, `CPU`, `DISK` or `ENI`.
    #[error("not enough {0} on this host")]
    Capacity(&'static str),
    /// The token was used before, for another request; these are the tasks that it made.
    #[error("the client token was used for another request")]
    TokenConflict(Vec<Task>),
    #[error("log group {0} does not exist")]
    LogGroupNotFound(String),
    #[error("log stream {0} does not exist")]
    LogStreamNotFound(String),
    #[error("the task is {}, and only a task that is RUNNING can be paused or resumed", .0.as_str())]
    NotRunning(TaskStatus),
    #[error("container {0} does not run")]
    ContainerNotRunning(String),
    #[error("the task is paused")]
    Paused,
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
    /// What is free on the host is looked at and taken in one go.
    admission: tokio::sync::Mutex<()>,
}

/// What the runtime itself needs of its configuration.
struct Settings {
    minimum_billed_seconds: u64,
    stopped_task_retention: Duration,
    /// Memory of the host, in bytes.
    host_memory_bytes: u64,
}

impl Runtime {
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
