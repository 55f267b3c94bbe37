//! Task definitions: what a task is to be. Values only; the rules that a definition must keep are checked by the API
//! before it gets here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::object::EnvironmentFile;
use super::secret::SecretReference;
use super::{NameValue, Tag, Timestamp};

/// Default ephemeral storage of a task in GiB.
pub const DEFAULT_EPHEMERAL_STORAGE_GIB: u32 = 20;
/// Default time between the stop signal and SIGKILL, in seconds.
pub const DEFAULT_STOP_TIMEOUT_S: u32 = 30;
/// Default time that other containers wait for one, in seconds.
pub const DEFAULT_START_TIMEOUT_S: u32 = 180;

/// `family:revision`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DefinitionId {
    pub family: String,
    pub revision: u32,
}

impl std::fmt::Display for DefinitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.family, self.revision)
    }
}

/// What the author of a definition says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionSpec {
    /// 1024 units are one vCPU.
    pub cpu_units: u32,
    pub memory_mib: u32,
    /// None means [`DEFAULT_EPHEMERAL_STORAGE_GIB`].
    pub ephemeral_storage_gib: Option<u32>,
    pub execution_role_arn: Option<String>,
    pub task_role_arn: Option<String>,
    pub network_mode: Option<String>,
    pub requires_compatibilities: Vec<String>,
    /// `LINUX`, where said.
    pub operating_system_family: Option<String>,
    /// `X86_64`, where said.
    pub cpu_architecture: Option<String>,
    pub containers: Vec<ContainerDefinition>,
    /// Names of what its containers can share: folders that are empty when the task starts, but for `launch_volume`.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// `configuredAtLaunch`: which of `volumes` every task says more of.
    #[serde(default)]
    pub launch_volume: Option<String>,
    /// `pidMode: task`: its containers see each other's processes.
    #[serde(default)]
    pub share_pids: bool,
}

/// A registered revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDefinition {
    pub id: DefinitionId,
    pub status: DefinitionStatus,
    pub spec: DefinitionSpec,
    pub tags: Vec<Tag>,
    pub registered_at: Timestamp,
    pub registered_by: String,
    pub deregistered_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DefinitionStatus {
    Active,
    Inactive,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDefinition {
    pub name: String,
    pub image: String,
    /// With which its registry is asked.
    #[serde(default)]
    pub repository_credentials: Option<RepositoryCredentials>,
    pub essential: bool,
    /// CPU shares within the task; 0 when not said.
    pub cpu: u32,
    pub memory_mib: Option<u32>,
    pub memory_reservation_mib: Option<u32>,
    pub entry_point: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    pub environment: Vec<NameValue>,
    /// Files with variables that `environment` does not say. The first file that says one counts.
    #[serde(default)]
    pub environment_files: Vec<EnvironmentFile>,
    /// More environment, whose values are looked up when the task starts.
    #[serde(default)]
    pub secrets: Vec<SecretReference>,
    pub working_directory: Option<String>,
    pub user: Option<String>,
    pub readonly_root_filesystem: bool,
    pub port_mappings: Vec<PortMapping>,
    pub stop_timeout_s: Option<u32>,
    pub start_timeout_s: Option<u32>,
    pub ulimits: Vec<Ulimit>,
    pub init_process_enabled: Option<bool>,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub docker_labels: BTreeMap<String, String>,
    pub log: Option<LogConfiguration>,
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    #[serde(default)]
    pub restart_policy: Option<RestartPolicy>,
    #[serde(default)]
    pub mount_points: Vec<MountPoint>,
    #[serde(default)]
    pub volumes_from: Vec<VolumeFrom>,
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Kernel parameters by their dotted names, in the order in which they are set.
    #[serde(default)]
    pub system_controls: Vec<NameValue>,
    /// Standard input stays open, and nothing comes.
    #[serde(default)]
    pub interactive: Option<bool>,
    /// Standard streams are a terminal.
    #[serde(default)]
    pub pseudo_terminal: Option<bool>,
}

impl ContainerDefinition {
    /// As given, or the default.
    pub fn stop_timeout_s(&self) -> u32 {
        self.stop_timeout_s.unwrap_or(DEFAULT_STOP_TIMEOUT_S)
    }

    /// As given, or the default.
    pub fn start_timeout_s(&self) -> u32 {
        self.start_timeout_s.unwrap_or(DEFAULT_START_TIMEOUT_S)
    }
}

/// `repositoryCredentials`: a secret with the user name and the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryCredentials {
    /// As it was given: the ARN or the name of a secret.
    pub parameter: String,
    /// The secret's name and suffix, or its name.
    pub resource: String,
}

/// It starts when the other container has come so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub container: String,
    pub condition: DependencyCondition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DependencyCondition {
    Start,
    Complete,
    Success,
    Healthy,
}

impl DependencyCondition {
    pub const ALL: [Self; 4] = [Self::Start, Self::Complete, Self::Success, Self::Healthy];

    /// The API's own spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "START",
            Self::Complete => "COMPLETE",
            Self::Success => "SUCCESS",
            Self::Healthy => "HEALTHY",
        }
    }
}

/// `healthCheck`, with its defaults filled in. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// As given: `CMD` and the words of a command, `CMD-SHELL` and a line for the shell, or a line for the shell alone.
    pub command: Vec<String>,
    pub interval_s: u32,
    pub timeout_s: u32,
    pub retries: u32,
    pub start_period_s: Option<u32>,
}

/// `restartPolicy` of a container that has one, enabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub ignored_exit_codes: Vec<i32>,
    pub attempt_period_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    pub volume: String,
    pub path: String,
    pub read_only: bool,
}

/// All mount points of another container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFrom {
    pub container: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub path: String,
    pub size_mib: u32,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// 0 where there is a range.
    pub container_port: u16,
    /// `FIRST-LAST`
    #[serde(default)]
    pub container_port_range: Option<String>,
    pub host_port: Option<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
    pub name: Option<String>,
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    /// -1 is no limit, here and below.
    pub soft: i64,
    pub hard: i64,
}

/// `logConfiguration`; the driver is `awslogs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfiguration {
    pub group: String,
    pub stream_prefix: String,
    /// All options as given, the two above among them.
    pub options: BTreeMap<String, String>,
}

/// How much output that is not stored yet is kept for a container that must not wait, unless its options say.
pub const DEFAULT_LOG_BUFFER_BYTES: u64 = 10 << 20;

impl LogConfiguration {
    /// Whether a log group that does not exist is made.
    pub fn creates_group(&self) -> bool {
        self.options
            .get("awslogs-create-group")
            .is_none_or(|value| value != "false")
    }

    /// How many bytes of output that is not stored yet are kept before lines are dropped; none means that the container
    /// waits.
    pub fn buffer_bytes(&self) -> Option<u64> {
        if self.options.get("mode").is_some_and(|mode| mode == "blocking") {
            return None;
        }
        let size = self
            .options
            .get("max-buffer-size")
            .and_then(|text| byte_size(text));
        Some(size.unwrap_or(DEFAULT_LOG_BUFFER_BYTES))
    }
}

/// A size as log drivers write it: a number, and `k`, `m` or `g` with or without `b`.
pub fn byte_size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, unit) = match text.char_indices().next_back()? {
        (at, 'k') => (&text[..at], 1 << 10),
        (at, 'm') => (&text[..at], 1 << 20),
        (at, 'g') => (&text[..at], 1 << 30),
        _ => (text, 1u64),
    };
    let number: u64 = number
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| number.parse().ok())??;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(options: &[(&str, &str)]) -> LogConfiguration {
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        LogConfiguration {
            group: "g".to_owned(),
            stream_prefix: "p".to_owned(),
            options: options.collect(),
        }
    }

    #[test]
    fn sizes_are_read_as_log_drivers_write_them() {
        let sizes = ["0", "17", "17b", "2k", "2KB", "10m", "1g"].map(byte_size);
        let expected = [0, 17, 17, 2048, 2048, 10 << 20, 1 << 30].map(Some);
        assert_eq!(sizes, expected);
        for text in [
            "",
            "m",
            "b",
            "-1",
            "1.5m",
            "1 m",
            "+1",
            "1mm",
            "99999999999999999999",
            "18446744073709551615k",
            "é",
        ] {
            assert_eq!(byte_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_container_waits_only_if_it_says_so() {
        assert_eq!(log(&[]).buffer_bytes(), Some(10 << 20));
        assert_eq!(
            log(&[("mode", "non-blocking"), ("max-buffer-size", "1m")]).buffer_bytes(),
            Some(1 << 20)
        );
        assert_eq!(
            log(&[("mode", "blocking"), ("max-buffer-size", "1m")]).buffer_bytes(),
            None
        );
        assert!(log(&[]).creates_group() && !log(&[("awslogs-create-group", "false")]).creates_group());
    }
}
