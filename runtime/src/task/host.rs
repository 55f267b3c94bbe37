//! What a task needs of the host it runs on, as traits: the real host and machine, and the simulated ones of tests.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::image::{Credentials, ImageStore};
use crate::model::Timestamp;
use crate::model::isolation::Isolation;
use crate::model::task::{Eni, TaskId};
use crate::model::volume::VolumeId;
use crate::runtime::PullStatus;

/// A one-line cause, fit for a task's `stoppedReason`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// A pulled image, ready to be a container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    pub digest: String,
    pub rootfs: PathBuf,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: Option<String>,
}

/// What a machine is made of.
pub struct MachineSpec {
    pub task: TaskId,
    /// What the machine may share with those of other tasks.
    pub isolation: Isolation,
    pub cpu_units: u32,
    pub memory_mib: u32,
    pub scratch_gib: u32,
    /// Read-only drives: serial number and file.
    pub images: Vec<(String, PathBuf)>,
    /// The writable drive of a volume.
    pub volume: Option<PathBuf>,
    /// The tap and the MAC address of its guest.
    pub tap: Option<OwnedFd>,
    pub mac: String,
    pub mtu: u16,
}

/// The disk of a volume, as it is made: empty, or a copy of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeDisk {
    pub id: VolumeId,
    pub size_gib: u32,
    pub source: Option<VolumeId>,
}

/// What a host has for tasks, or what tasks take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// 1,024 to a processor.
    pub cpu_units: u64,
    pub memory_bytes: u64,
    /// For the writable disks of tasks and for volumes. Of a host: what is free, without what images may still take, and
    /// what they take already.
    pub disk_bytes: u64,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineEnd {
    /// One line.
    pub reason: String,
    /// When, if it can be known.
    pub at: Option<Timestamp>,
}

/// What a machine counts, and what it takes of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineMetrics {
    pub counters: berth_vmm::control::Metrics,
    /// How the guest says that it stands with its memory; none where it cannot be asked.
    pub guest: Option<berth_vmm::control::BalloonReport>,
    pub usage: crate::cgroup::Usage,
}

/// What is left of a machine that an earlier daemon started.
pub enum Found {
    /// Nothing was ever started.
    Nothing,
    Running(Arc<dyn Machine>),
    Ended(MachineEnd),
}

/// A byte stream to the guest.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// The ports of the host that a guest can connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPort {
    /// `berth_protocol::HOST_PORT`.
    Init,
    /// `berth_protocol::ENDPOINT_PORT`.
    Endpoint,
}

impl GuestPort {
    pub fn of(port: u32) -> Option<GuestPort> {
        match port {
            berth_protocol::HOST_PORT => Some(GuestPort::Init),
            berth_protocol::ENDPOINT_PORT => Some(GuestPort::Endpoint),
            _ => None,
        }
    }
}

/// A connection that a guest has made.
pub type Accepted = (GuestPort, Box<dyn GuestStream>);

/// A running machine.
pub trait Machine: Send + Sync {
    /// The next connection that the guest makes, and the port of it; pends while there is none.
    fn accept(&self) -> BoxFuture<'_, Result<Accepted, HostError>>;
    /// Waits for the machine's end.
    fn ended(&self) -> BoxFuture<'_, MachineEnd>;
    /// Has the guest stand still; its memory stays.
    fn pause(&self) -> BoxFuture<'_, Result<(), HostError>>;
    /// Has it go on; nothing for one that runs.
    fn resume(&self) -> BoxFuture<'_, Result<(), HostError>>;
    /// Pulls the plug; `ended` follows.
    fn kill(&self) -> BoxFuture<'_, ()>;
}

/// The host. Every call may be repeated.
pub trait Host: Send + Sync {
    /// Makes the interface; the descriptor of its tap, where there is a real one.
    fn attach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<Option<OwnedFd>, HostError>>;
    fn detach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<(), HostError>>;
    /// The image stays until the machine of the task is removed. `max_bytes` bounds what all images of the task unpack to
    /// together.
    fn pull_image<'a>(
        &'a self,
        task: &'a TaskId,
        image: &'a str,
        credentials: Option<Credentials>,
        max_bytes: u64,
        progress: &'a (dyn Fn(PullStatus) + Send + Sync),
    ) -> BoxFuture<'a, Result<PulledImage, HostError>>;
    fn start_machine(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, HostError>>;
    fn find_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<Found, HostError>>;
    /// None where no machine of the task runs.
    fn machine_metrics<'a>(
        &'a self,
        task: &'a TaskId,
    ) -> BoxFuture<'a, Result<Option<MachineMetrics>, HostError>>;
    /// A connection to this vsock port of the guest; none where no machine of the task runs, or nobody listens there.
    fn connect_guest<'a>(
        &'a self,
        task: &'a TaskId,
        port: u32,
    ) -> BoxFuture<'a, Result<Option<Box<dyn GuestStream>>, HostError>>;
    /// Ends the machine if it runs and removes everything of it.
    fn remove_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), HostError>>;
    /// Makes a disk, unless it is there.
    fn make_volume(&self, disk: VolumeDisk) -> BoxFuture<'_, Result<(), HostError>>;
    /// Removes a disk, if it is there.
    fn remove_volume<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<(), HostError>>;
    fn volume_path(&self, id: &VolumeId) -> PathBuf;
    /// What a disk takes of the host's.
    fn volume_used_bytes(&self, id: &VolumeId) -> u64;
    /// All that there is, whoever has it.
    fn resources(&self) -> BoxFuture<'_, Result<Resources, HostError>>;
    /// None where images are not real.
    fn images(&self) -> Option<&ImageStore> {
        None
    }
    /// The daemon is about to end: what does not outlive it goes now.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    fn dns_servers(&self) -> Vec<std::net::Ipv4Addr>;
    fn mtu(&self) -> u16;
}
