//! What the frames say.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Bytes of the seed that a guest gets for its random number generator.
pub const SEED_BYTES: usize = 32;

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToGuest {
    /// First on every connection.
    Hello {
        version: u32,
        outputs: Vec<OutputPosition>,
    },
    /// The task to run. Sent once; a guest that already has one answers with an `Error` and goes on.
    Run {
        task: Box<TaskSpec>,
        /// The time now, in milliseconds since the Unix epoch: a guest that was cloned believes it is earlier.
        unix_ms: u64,
        /// Random bytes for this guest alone, so that clones share none of theirs.
        seed: [u8; SEED_BYTES],
    },
    /// Everything of this stream below `offset` is stored; the guest may forget it.
    Ack {
        container: String,
        stream: Stream,
        offset: u64,
    },
    /// Stop all containers, those first that no running one depends on: the stop signal, SIGKILL after the container's own
    /// stop timeout.
    Stop,
    /// Send a signal to the container's first process.
    Signal { container: String, signal: i32 },
    /// Tell what containers use, every second for so long from now on; a later one of these counts alone.
    Measure { seconds: u32 },
    /// Flush the disks and power off.
    PowerOff,
}

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToHost {
    /// First on every connection.
    Hello {
        version: u32,
        init_version: String,
        /// Milliseconds from the guest's boot to `berth-init` being ready.
        ready_ms: u64,
        /// The session of the task that it was given; none before that. Any process of a container can connect to the
        /// host as well, but knows no session.
        session: Option<String>,
        containers: Vec<ContainerStatus>,
    },
    /// A container changed its state.
    Container { status: ContainerStatus },
    /// What the containers have used so far; only while it is asked for.
    Usage { usage: TaskUsage },
    /// The guest could not do what it was told.
    Error { message: String },
}

/// Up to which byte a stream is stored by the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPosition {
    pub container: String,
    pub stream: Stream,
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a container is doing, as the guest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub name: String,
    #[serde(flatten)]
    pub state: ContainerState,
}

/// Times are milliseconds since the Unix epoch by the guest's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    Running {
        pid: u32,
        started_at_ms: u64,
        health: Health,
        /// How often it was started again.
        restarts: u32,
    },
    /// Never ran; `reason` is one line.
    StartFailed { reason: String },
    /// Never was to run: another one that it depends on did not get as far as it should, which `reason` tells in one line,
    /// or the task was stopped before.
    NotStarted { reason: Option<String> },
    /// Ended, and every byte it wrote was read: the last offsets of its two streams are final.
    Exited {
        /// 0 to 255; 128 + signal when a signal ended it.
        exit_code: i32,
        signal: Option<i32>,
        /// The kernel killed a process of this container because its memory limit was reached.
        oom_killed: bool,
        started_at_ms: u64,
        finished_at_ms: u64,
        stdout_bytes: u64,
        stderr_bytes: u64,
    },
}

/// What a container's health check has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing yet, or there is no check.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

/// What a task has used so far. Counters begin with the machine, or with the container's first start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskUsage {
    /// Milliseconds since the Unix epoch by the guest's clock.
    pub at_ms: u64,
    /// Of all of the machine's processors, idle time among it.
    pub system_cpu_us: u64,
    pub disk_used_bytes: u64,
    pub disk_bytes: u64,
    pub network: NetworkUsage,
    /// Of those that run.
    pub containers: Vec<ContainerUsage>,
}

/// Counters of `eth0`, which all containers share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// What the control group of a container counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    pub name: String,
    pub cpu_us: u64,
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub memory_bytes: u64,
    /// Of that, files that could be dropped at once (`inactive_file`).
    pub inactive_file_bytes: u64,
    pub memory_peak_bytes: u64,
    pub pids: u64,
    pub read_bytes: u64,
    pub read_ops: u64,
    pub write_bytes: u64,
    pub write_ops: u64,
}

/// A task: the machine-wide part and its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub task_id: String,
    /// A secret of host and `berth-init`, repeated in every later `Hello` of the guest.
    pub session: String,
    pub hostname: String,
    pub network: Option<NetworkSpec>,
    /// Cap of all containers together, in bytes (`memory.max` of the parent cgroup).
    pub memory_bytes: u64,
    /// Cap on processes of all containers together (`pids.max`).
    pub pids: u64,
    /// Serial number of the writable ext4 block device; each container's upper layer lives in a folder of it.
    pub scratch_drive: String,
    /// Names of what containers can mount: folders on the scratch drive, but for those that have a drive of their own.
    pub volumes: Vec<String>,
    /// Volumes that outlive the task.
    #[serde(default)]
    pub volume_drives: Vec<VolumeDrive>,
    /// Whether its containers see each other's processes.
    pub share_pids: bool,
    pub containers: Vec<ContainerSpec>,
}

/// A volume and the serial number of its writable ext4 block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDrive {
    /// One of the task's `volumes`.
    pub volume: String,
    pub drive: String,
}

/// `eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub dns_servers: Vec<Ipv4Addr>,
    pub search_domains: Vec<String>,
    pub mtu: u16,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// Serial number of the read-only EROFS block device with its root file system.
    pub image_drive: String,
    /// Program and arguments; never empty. The program is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Absolute; made if missing.
    pub working_dir: String,
    /// `user`, `user:group`, `uid`, `uid:gid` or empty for root; names come from the image's own files.
    pub user: String,
    /// `SIGTERM` and so on, or a number.
    pub stop_signal: String,
    pub readonly_root: bool,
    /// Capabilities on top of the default set, such as `CAP_SYS_PTRACE`.
    pub capabilities_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` for every one.
    pub capabilities_drop: Vec<String>,
    pub limits: Vec<ResourceLimit>,
    /// Kernel parameters of the container's or the task's own namespaces, set in this order before it starts.
    pub system_controls: Vec<SystemControl>,
    /// Cap of this container alone, in bytes; none means the task's.
    pub memory_bytes: Option<u64>,
    /// What it keeps when the task is short of memory, in bytes (`memory.low`).
    pub memory_reservation_bytes: Option<u64>,
    /// Relative share of the CPU (`cpu.weight` is derived from it); none means the default.
    pub cpu_shares: Option<u64>,
    /// Whether a small init runs as pid 1 of the container and reaps for it.
    pub init_process: bool,
    /// Whether its standard input is open, though nothing comes.
    pub open_stdin: bool,
    /// Whether its standard streams are one terminal, which it hears as its standard output.
    pub terminal: bool,
    /// Whether its end is the end of the task.
    pub essential: bool,
    pub depends_on: Vec<Dependency>,
    /// How long others wait for it to end, or to be healthy, from its start on.
    pub start_timeout_ms: u64,
    /// Between its stop signal and SIGKILL.
    pub stop_timeout_ms: u64,
    pub health_check: Option<HealthCheck>,
    pub restart: Option<RestartPolicy>,
    pub mounts: Vec<Mount>,
    pub tmpfs: Vec<Tmpfs>,
    /// How many bytes of each output stream are kept for the host before lines are dropped, and counted in the stream by a
    /// line that says so; none means that the container waits for the host instead.
    #[serde(default)]
    pub output_buffer_bytes: Option<u64>,
}

/// A limit of setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// `nofile` and so on.
    pub name: String,
    /// None is no limit, here and below.
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// A parameter of sysctl(8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemControl {
    /// Such as `net.core.somaxconn`.
    pub name: String,
    pub value: String,
}

/// A container starts once the other one has come so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub container: String,
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Condition {
    /// It was started.
    Start,
    /// It has ended.
    Complete,
    /// It has ended with the exit code 0.
    Success,
    /// Its health check has passed.
    Healthy,
}

/// A command in the container, run now and then: healthy where its exit code is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Never empty.
    pub argv: Vec<String>,
    /// Between the end of one check and the next, and before the first.
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// From its start on, in which failures do not count.
    pub start_period_ms: u64,
}

/// A container that ends is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// With these it has ended.
    pub ignored_exit_codes: Vec<i32>,
    /// It has to have run for so long.
    pub attempt_period_ms: u64,
}

/// A volume of the task, seen in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub volume: String,
    /// Absolute; made if missing.
    pub path: String,
    pub readonly: bool,
}

/// A file system in memory, which the task pays for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute; made if missing.
    pub path: String,
    pub bytes: u64,
    /// Of mount(8), such as `noexec` or `mode=1777`.
    pub options: Vec<String>,
}
