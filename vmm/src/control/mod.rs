//! The control protocol of a machine: what is said on its `SOCK_SEQPACKET` Unix socket.
//!
//! One packet is one JSON message of at most [`MAX_MESSAGE_BYTES`], a request of [`MAX_REQUEST_BYTES`]. A client sends [`Request`]s and gets one
//! [`ServerMessage::Reply`] each, in order. A client that has sent [`Command::Attach`] also gets
//! [`ServerMessage::VsockConnection`] events. Descriptors travel beside a message (`SCM_RIGHTS`), at most one each.
//!
//! Several clients may be connected; one at a time is attached, and the last to attach wins. Guest connections made
//! while nobody is attached are accepted by the device and wait (bounded) for the next one to attach, so a daemon
//! that restarts loses none.

pub(crate) mod packet;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::config::{ExitReason, LimitsConfig};

/// Version of the protocol, said in [`Info`].
pub const CONTROL_VERSION: u32 = 3;
/// Largest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Largest request in bytes: every machine has room for one all the time.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024;
/// Longest that a guest has to answer [`Command::Balloon`], in milliseconds.
pub const MAX_BALLOON_WAIT_MS: u32 = 10_000;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, returned in the reply.
    pub id: u64,
    #[serde(flatten)]
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Who is this: answers [`Outcome::Info`].
    Info,
    /// From now on this client gets the connections that the guest makes.
    Attach,
    /// Connect to a vsock port of the guest: answers [`Outcome::Done`] with one end of a socket pair beside it.
    VsockConnect { port: u32 },
    /// Counters: answers [`Outcome::Metrics`].
    Metrics,
    /// Inject a non-maskable interrupt into vCPU 0 (a guest with `unknown_nmi_panic` then panics).
    Nmi,
    /// Have the vCPUs stand still. The devices do not: what comes from the network or a vsock connection waits in the
    /// guest's memory. Pausing a paused machine does nothing.
    Pause,
    /// Have them go on.
    Resume,
    /// Write the state of the machine to the file that was given for it, and end the machine with
    /// [`ExitReason::Snapshot`]: its memory, which is a file already, is not to change any more. Connections are cut, and
    /// frames on their way are lost. Answers when all is written. A snapshot that fails ends the machine as well.
    Snapshot,
    /// Limit a device otherwise from now on, or not at all: answers [`Outcome::Done`]. What the device has used of its
    /// limits stays used, and one that waits goes on as soon as the new limits allow.
    SetLimits {
        device: LimitedDevice,
        limits: Option<LimitsConfig>,
    },
    /// Have the guest put so many MiB of its memory into its balloon, or take out what is beyond: answers
    /// [`Outcome::Done`], and how far it comes is in [`Outcome::Balloon`]. Never so much that less stays than
    /// [`crate::devices::virtio::balloon::FLOOR_MIB`]. A guest that runs out of memory takes some back by itself.
    SetBalloon { target_mib: u32 },
    /// Ask the guest how it stands with its memory, and answer [`Outcome::Balloon`] when it has said so, or after so many
    /// milliseconds, at most [`MAX_BALLOON_WAIT_MS`], with what it said last. With none it is not asked.
    Balloon { wait_ms: u32 },
    /// End the machine now, as if its plug were pulled. The reply is sent first.
    Stop,
}

/// A device that can be limited, or one direction of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedDevice {
    /// The drive with this id.
    Drive(String),
    /// Frames to the guest through the network device with this number, from 0 in the order of the configuration.
    NetRx(usize),
    /// Frames from the guest through the network device with this number.
    NetTx(usize),
    Entropy,
    Serial,
}

/// What a machine sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and counters are most of it"
)]
pub enum ServerMessage {
    Reply {
        id: u64,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// The guest connected to this port of the host; one end of a `SOCK_STREAM` socket pair comes beside the message.
    VsockConnection { port: u32 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Done,
    Info(Info),
    Metrics(Metrics),
    Balloon(BalloonReport),
    Error { error: String },
}

/// Who a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub control_version: u32,
    pub vmm_version: String,
    pub pid: u32,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Set once the guest has ended and the process is about to.
    pub exiting: Option<ExitReason>,
}

/// The balloon, and what the guest says of its memory. All but the target is the guest's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonReport {
    pub target_bytes: u64,
    /// What is in the balloon; never more than the guest's memory.
    pub actual_bytes: u64,
    /// None from a guest that has said nothing yet.
    pub statistics: Option<MemoryStatistics>,
    /// How long ago it said that, in milliseconds.
    pub statistics_age_ms: Option<u64>,
}

/// A guest's memory, as it counts it itself since it booted. None for what it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStatistics {
    /// As the guest's `/proc/meminfo` has them: MemTotal, MemFree, MemAvailable, and Cached with Buffers.
    pub total_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    pub cache_bytes: Option<u64>,
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
    pub swap_in_bytes: Option<u64>,
    pub swap_out_bytes: Option<u64>,
    pub huge_page_allocations: Option<u64>,
    pub huge_page_failures: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Times that somebody had to wait for memory.
    pub allocation_stalls: Option<u64>,
    /// Memory that was looked at to be used otherwise, and that was: by the kernel beside all else, or by who waited for it.
    pub background_scanned_bytes: Option<u64>,
    pub direct_scanned_bytes: Option<u64>,
    pub background_reclaimed_bytes: Option<u64>,
    pub direct_reclaimed_bytes: Option<u64>,
}

/// Counters since the machine started. All are totals; bytes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Microseconds from the start of the process until its vCPUs ran. Not a total.
    pub start_us: u64,
    /// Of these, one after the other: reading the configuration and entering the jail; making memory, virtual machine and
    /// vCPUs; loading the kernel, or what the vCPUs were when they were written down; the devices.
    pub start_jail_us: u64,
    pub start_vm_us: u64,
    pub start_state_us: u64,
    pub start_devices_us: u64,
    /// How long a prepared working set took, beside the devices.
    pub start_working_set_us: u64,
    /// Page faults of the process, those of its guest's memory among them: such as needed no disk, and such as did.
    pub page_faults_minor: u64,
    pub page_faults_major: u64,
    /// KVM exits that reached user space, by kind.
    pub exits_io: u64,
    pub exits_mmio: u64,
    pub exits_other: u64,
    /// Accesses to memory or ports where no device is.
    pub unclaimed_accesses: u64,
    pub block_read_bytes: u64,
    pub block_write_bytes: u64,
    pub block_read_ops: u64,
    pub block_write_ops: u64,
    pub block_flush_ops: u64,
    /// Times that a drive had requests and waited for its limits.
    pub block_throttled: u64,
    /// Drives whose requests are carried out by io_uring; those of the others are one after the other. Not a total.
    pub block_io_uring_drives: u64,
    pub net_rx_bytes: u64,
    pub net_rx_packets: u64,
    pub net_tx_bytes: u64,
    pub net_tx_packets: u64,
    pub net_rx_dropped: u64,
    /// Times that a network device stopped to take frames for the guest, because of its limits.
    pub net_rx_throttled: u64,
    /// Times that a network device had frames of the guest and waited for its limits.
    pub net_tx_throttled: u64,
    pub vsock_rx_bytes: u64,
    pub vsock_tx_bytes: u64,
    pub vsock_connections: u64,
    /// Memory that the guest did not use or put into its balloon, and the host has back; what the guest takes again is not subtracted.
    pub balloon_released_bytes: u64,
    pub entropy_bytes: u64,
    /// Times that the entropy device had requests and waited for its limits.
    pub entropy_throttled: u64,
    /// Output of the serial port that was dropped because it was beyond the limits.
    pub serial_throttled_bytes: u64,
    /// Requests that a device refused because the guest broke the rules of the queue or the device.
    pub device_errors: u64,
}
