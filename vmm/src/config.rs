//! The configuration of a machine: plain values and the numbers of already-open file descriptors.
//!
//! The parent opens everything, leaves the descriptors open across `exec`, and passes this structure as JSON on the
//! descriptor named by `--config-fd`. The machine opens no path, before or after it starts.

pub mod validate;

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

/// Version of [`MachineConfig`]; a machine refuses any other.
pub const CONFIG_VERSION: u32 = 1;
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
    /// An uncompressed ELF kernel with a PVH entry note.
    pub kernel_fd: RawFd,
    /// An initial RAM file system.
    pub initrd_fd: Option<RawFd>,
    /// The kernel command line, without the device parameters, which the machine adds.
    pub cmdline: String,
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
    /// Whether the machine has an entropy device (virtio-rng).
    #[serde(default)]
    pub entropy: bool,
    /// Where the output of the serial port goes; none means no serial port at all.
    pub serial_fd: Option<RawFd>,
    /// The jail around the process; none means no jail at all, which is for tests and debugging.
    pub jail: Option<JailConfig>,
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
