//! A machine written down: everything but its memory, which is a file already. What is in the state is decided by whose
//! state it is (`arch::state`, the devices); here it is put together, and checked against the machine that takes it up.

mod file;

use serde::{Deserialize, Serialize};

use crate::arch::state::{VcpuState, VmState};
use crate::config::MachineConfig;
use crate::devices::serial::SerialState;
use crate::devices::virtio::mmio::TransportState;
pub use file::{MAX_STATE_BYTES, STATE_VERSION, SnapshotFile, read};

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read the state: {0}")]
    Read(std::io::Error),
    #[error("cannot write the state: {0}")]
    Write(std::io::Error),
    #[error("the state has {0} bytes, more than {MAX_STATE_BYTES}")]
    TooLarge(u64),
    #[error("the file is no machine's state")]
    NoState,
    #[error(
        "the state is of version {0}, and this program reads version {STATE_VERSION}: take the snapshot anew"
    )]
    Version(u32),
    #[error("the state is damaged: its checksum is not that of its content")]
    Damaged,
    #[error("the state cannot be decoded: {0}")]
    Decode(postcard::Error),
    #[error("the state cannot be encoded: {0}")]
    Encode(postcard::Error),
    #[error("the snapshot's machine has {then} {what}, and this one {now}")]
    OtherShape { what: &'static str, then: u64, now: u64 },
}

/// The state of a machine that stands still.
#[derive(Serialize, Deserialize)]
pub struct MachineState {
    pub memory_mib: u32,
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
    /// In the order in which the guest sees them.
    pub devices: Vec<TransportState>,
    pub serial: Option<SerialState>,
}

impl MachineState {
    /// Whether a machine of this configuration can take the state up, but for its devices.
    pub fn check_core(&self, config: &MachineConfig) -> Result<(), SnapshotError> {
        same(&[
            (
                "MiB of memory",
                u64::from(self.memory_mib),
                u64::from(config.memory_mib),
            ),
            ("vcpus", self.vcpus.len() as u64, u64::from(config.vcpus)),
        ])
    }

    /// Whether its devices can. What each makes of its part, it says itself.
    pub fn check_devices(&self, config: &MachineConfig) -> Result<(), SnapshotError> {
        same(&[
            (
                "virtio devices",
                self.devices.len() as u64,
                config.virtio_devices() as u64,
            ),
            (
                "serial ports",
                self.serial.is_some().into(),
                config.serial_fd.is_some().into(),
            ),
        ])
    }
}

/// Whether there are as many of each as there were.
fn same(counts: &[(&'static str, u64, u64)]) -> Result<(), SnapshotError> {
    match counts.iter().find(|(_, then, now)| then != now) {
        Some(&(what, then, now)) => Err(SnapshotError::OtherShape { what, then, now }),
        None => Ok(()),
    }
}
