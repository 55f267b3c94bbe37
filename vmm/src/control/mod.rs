//! The control protocol of a machine: what is said on its `SOCK_SEQPACKET` Unix socket.
//!
//! One packet is one JSON message of at most [`MAX_MESSAGE_BYTES`]. A client sends [`Request`]s and gets one
//! [`ServerMessage::Reply`] each, in order. A client that has sent [`Command::Attach`] also gets
//! [`ServerMessage::VsockConnection`] events. Descriptors travel beside a message (`SCM_RIGHTS`), at most one each.
//!
//! Several clients may be connected; one at a time is attached, and the last to attach wins. Guest connections made
//! while nobody is attached are accepted by the device and wait (bounded) for the next one to attach, so a daemon
//! that restarts loses none.

pub(crate) mod packet;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::config::ExitReason;

/// Version of the protocol, said in [`Info`].
pub const CONTROL_VERSION: u32 = 2;
/// Largest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

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
    /// End the machine now, as if its plug were pulled. The reply is sent first.
    Stop,
}

/// What a machine sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
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

/// Counters since the machine started. All are totals; bytes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
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
    pub net_rx_bytes: u64,
    pub net_rx_packets: u64,
    pub net_tx_bytes: u64,
    pub net_tx_packets: u64,
    pub net_rx_dropped: u64,
    pub vsock_rx_bytes: u64,
    pub vsock_tx_bytes: u64,
    pub vsock_connections: u64,
    pub entropy_bytes: u64,
    /// Requests that a device refused because the guest broke the rules of the queue or the device.
    pub device_errors: u64,
}
