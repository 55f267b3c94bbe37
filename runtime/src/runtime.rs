//! The way into the runtime: one cheap handle with everything that can be asked of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::bill::{Bill, BillQuery};
use crate::model::cluster::{Cluster, ClusterCounts};
use crate::model::definition::{DefinitionId, DefinitionSpec, TaskDefinition};
use crate::model::log::{LogEvent, LogGroup, LogPage, LogQuery, LogStream, LogStreamStats};
use crate::model::network::{SecurityGroup, Subnet, Vpc};
use crate::model::task::{Overrides, StopCode, Task, TaskId};
use crate::model::{NameValue, Tag};

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
    #[error("{0}")]
    Internal(String),
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
pub struct Runtime {}

impl Runtime {
    /// Opens the data directory, makes what must exist (default cluster, VPC, subnet, security group), cleans what a
    /// crash left, and takes running tasks up again.
    pub async fn open(_config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        todo!()
    }

    // Clusters.

    /// An existing active cluster of this name is returned as it is.
    pub async fn create_cluster(&self, _name: &str, _settings: Vec<NameValue>, _tags: Vec<Tag>) -> Result<Cluster, RuntimeError> {
        todo!()
    }
    /// All clusters, inactive ones too, by name.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, RuntimeError> {
        todo!()
    }
    pub async fn cluster_counts(&self, _name: &str) -> Result<ClusterCounts, RuntimeError> {
        todo!()
    }
    /// Refused while the cluster has tasks that are not stopped.
    pub async fn delete_cluster(&self, _name: &str) -> Result<Cluster, RuntimeError> {
        todo!()
    }

    // Task definitions.

    /// Registers the next revision of the family.
    pub async fn register(&self, _family: &str, _spec: DefinitionSpec, _tags: Vec<Tag>, _registered_by: &str) -> Result<TaskDefinition, RuntimeError> {
        todo!()
    }
    /// The given revision, or the latest active one.
    pub async fn definition(&self, _family: &str, _revision: Option<u32>) -> Result<TaskDefinition, RuntimeError> {
        todo!()
    }
    /// All of them, by family and revision.
    pub async fn definitions(&self) -> Result<Vec<TaskDefinition>, RuntimeError> {
        todo!()
    }
    pub async fn deregister(&self, _id: &DefinitionId) -> Result<TaskDefinition, RuntimeError> {
        todo!()
    }

    // Tasks.

    /// All or none: either every task is stored as PROVISIONING and on its way, or an error says why not.
    pub async fn run_task(&self, _request: RunTask) -> Result<Vec<Task>, RuntimeError> {
        todo!()
    }
    /// Idempotent; returns the task as it is just after.
    pub async fn stop_task(&self, _id: &TaskId, _code: StopCode, _reason: &str) -> Result<Task, RuntimeError> {
        todo!()
    }
    pub async fn task(&self, _id: &TaskId) -> Result<Task, RuntimeError> {
        todo!()
    }
    /// All tasks, newest first; stopped ones are kept for a while.
    pub async fn tasks(&self) -> Result<Vec<Task>, RuntimeError> {
        todo!()
    }
    /// Waits until the task's version is above `version`, or `timeout` passes; returns it as it is then.
    pub async fn task_after(&self, _id: &TaskId, _version: u64, _timeout: Duration) -> Result<Task, RuntimeError> {
        todo!()
    }
    /// None unless the task is pulling just now.
    pub fn pull_status(&self, _id: &TaskId) -> Option<PullStatus> {
        todo!()
    }

    // Networks.

    pub async fn vpcs(&self) -> Result<Vec<Vpc>, RuntimeError> {
        todo!()
    }
    pub async fn subnets(&self) -> Result<Vec<Subnet>, RuntimeError> {
        todo!()
    }
    pub async fn security_groups(&self) -> Result<Vec<SecurityGroup>, RuntimeError> {
        todo!()
    }
    /// Addresses that subnet could still give.
    pub async fn available_addresses(&self, _subnet_id: &str) -> Result<u64, RuntimeError> {
        todo!()
    }
    /// The resolvers that tasks are told to use.
    pub fn dns_servers(&self) -> Vec<Ipv4Addr> {
        todo!()
    }

    // Logs.

    pub async fn log_groups(&self) -> Result<Vec<LogGroup>, RuntimeError> {
        todo!()
    }
    pub async fn log_streams(&self, _group: &str) -> Result<Vec<(LogStream, LogStreamStats)>, RuntimeError> {
        todo!()
    }
    pub async fn log_events(&self, _group: &str, _stream: &str, _query: LogQuery) -> Result<LogPage, RuntimeError> {
        todo!()
    }
    /// A container's output from `position` on (0 is the start), whether or not it has a log stream. Waits up to `wait`
    /// for more if there is none yet. The flag says that the container has ended and this is the last of it.
    pub async fn output(&self, _task: &TaskId, _container: &str, _position: u64, _max_bytes: usize, _wait: Duration) -> Result<(Vec<LogEvent>, bool), RuntimeError> {
        todo!()
    }

    // Metering.

    pub async fn bill(&self, _query: BillQuery) -> Result<Bill, RuntimeError> {
        todo!()
    }
}
