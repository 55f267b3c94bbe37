//! The configuration of a machine: plain values and the numbers of already-open file descriptors.
//!
//! The parent opens everything, leaves the descriptors open across `exec`, and passes this structure as JSON on the
//! descriptor named by `--config-fd`. The machine opens no path, before or after it starts.

mod huge_pages;
mod husk;
mod limits;
pub mod validate;
mod working_set;

use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use huge_pages::{BadHugePages, HugePages};
pub use husk::{HandOver, HuskConfig, PlaceError};
pub use limits::{LimitsConfig, LimitsError, RateConfig};
pub use working_set::{Area, PAGE_BYTES, PageRange, WorkingSet};

/// Version of [`MachineConfig`]; a machine refuses any other.
pub const CONFIG_VERSION: u32 = 2;
/// Most vCPUs a machine can have.
pub const MAX_VCPUS: u8 = 32;
/// Most guest memory, in MiB (256 GiB).
pub const MAX_MEMORY_MIB: u32 = 256 * 1024;

/// Everything a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Must be [`CONFIG_VERSION`].
    pub version: u32,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, 32 to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// `/dev/kvm`, open for reading and writing.
    pub kvm_fd: RawFd,
    /// Where the guest starts.
    pub start: StartConfig,
    /// What the guest's memory is made of; none means memory of the process alone.
    pub memory: Option<MemoryConfig>,
    /// Of what pages it is, whatever it is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A regular file to which [`crate::control::Command::Snapshot`] writes the state of the machine. Needs shared memory,
    /// which is the other half of the snapshot.
    pub snapshot_fd: Option<RawFd>,
    /// A listening `SOCK_SEQPACKET` Unix socket on which the machine serves [`crate::control`].
    pub control_fd: RawFd,
    /// A regular file to which the machine writes an [`ExitReport`] (JSON) before it ends.
    pub exit_fd: Option<RawFd>,
    /// Block devices, in the order in which the guest sees them (`vda`, `vdb`, …).
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// Network devices, in order (`eth0`, …).
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// The vsock device.
    pub vsock: Option<VsockConfig>,
    /// Whether the machine has a balloon (virtio-balloon), through which the host gets back the memory that the guest does
    /// not use.
    #[serde(default)]
    pub balloon: bool,
    /// Whether the machine has an entropy device (virtio-rng).
    #[serde(default)]
    pub entropy: bool,
    /// Random bytes that the guest gets; none means no limit.
    pub entropy_limits: Option<LimitsConfig>,
    /// Where the output of the serial port goes; none means no serial port at all.
    pub serial_fd: Option<RawFd>,
    /// Output of the serial port, of which lines beyond are dropped; none means no limit.
    pub serial_limits: Option<LimitsConfig>,
    /// The jail around the process; none means no jail at all, which is for tests and debugging.
    pub jail: Option<JailConfig>,
}

/// Where the guest starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StartConfig {
    /// At the entry of a kernel.
    Boot {
        /// An uncompressed ELF kernel with a PVH entry note.
        kernel_fd: RawFd,
        /// An initial RAM file system.
        initrd_fd: Option<RawFd>,
        /// The kernel command line.
        cmdline: String,
    },
    /// Where a snapshot was taken. The machine must have as many vCPUs, as much memory and the same kinds of devices, in
    /// the same order; disks, taps, addresses and context ids are those of this configuration.
    Restore {
        /// What was written to `snapshot_fd`. The memory of the snapshot goes into [`MachineConfig::memory`].
        state_fd: RawFd,
        /// The pages that the guest is known to need first; they are there before it runs.
        #[serde(default)]
        working_set: WorkingSet,
    },
}

/// A file as the guest's memory: a regular file or a memfd of exactly the guest's size, from the lowest address to the
/// highest, without the gap between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    pub fd: RawFd,
    /// What the guest writes goes into the file. If not, it stays in the process, and many machines may start from one
    /// file.
    pub shared: bool,
    /// Brings in each page of the file by itself, and not some neighbours with it, so that `/proc/PID/pagemap` shows what the
    /// guest has touched and nothing else. That is slower; it is for a machine whose [`WorkingSet`] is to be learned.
    #[serde(default)]
    pub page_by_page: bool,
}

/// Who the process is once it has left the host's namespaces, file system and privileges behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Not 0, and nobody else's.
    pub uid: u32,
    /// Not 0, and nobody else's.
    pub gid: u32,
}

/// One block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// The serial number that the guest reads (`VIRTIO_BLK_T_GET_ID`), at most 20 ASCII bytes.
    pub id: String,
    /// A regular file or block device; its size at start is the capacity, in whole 512-byte sectors.
    pub fd: RawFd,
    /// Read-only is enforced by the device whatever the descriptor allows.
    pub read_only: bool,
    /// Reads and writes together; none means no limit.
    pub limits: Option<LimitsConfig>,
    #[serde(default)]
    pub engine: DriveEngine,
}

/// How the requests of a drive are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveEngine {
    /// As is best for the file on this host.
    #[default]
    Auto,
    /// Many at once by io_uring, where the host has it.
    IoUring,
    /// One after the other, by the device's thread.
    InOrder,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no engine of drives: it is auto, io-uring or in-order")]
pub struct NoDriveEngine(String);

impl FromStr for DriveEngine {
    type Err = NoDriveEngine;

    fn from_str(name: &str) -> Result<Self, NoDriveEngine> {
        match name {
            "auto" => Ok(Self::Auto),
            "io-uring" => Ok(Self::IoUring),
            "in-order" => Ok(Self::InOrder),
            _ => Err(NoDriveEngine(name.into())),
        }
    }
}

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// A tap descriptor opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, non-blocking.
    pub tap_fd: RawFd,
    /// The guest's MAC address, as six bytes.
    pub mac: [u8; 6],
    /// The MTU announced to the guest (`VIRTIO_NET_F_MTU`).
    pub mtu: Option<u16>,
    /// Frames to the guest; none means no limit.
    pub rx_limits: Option<LimitsConfig>,
    /// Frames from the guest; none means no limit.
    pub tx_limits: Option<LimitsConfig>,
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u64,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset: a reboot, or a kernel panic with `panic=-1`.
    Reset,
    /// A vCPU triple-faulted.
    TripleFault,
    /// The control socket said so.
    Stopped,
    /// The machine was written down, to go on elsewhere.
    Snapshot,
    /// The machine itself failed; the detail says how.
    Error,
}

/// What a machine writes to its exit file before it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    pub reason: ExitReason,
    /// One line for a person, where there is more to say.
    pub detail: Option<String>,
}
