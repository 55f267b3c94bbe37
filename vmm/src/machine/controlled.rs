//! What clients of the control socket can have done to a machine that runs.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VmFd;

use super::assembly::InterruptLines;
use super::limits::DeviceLimits;
use crate::arch::state::{Saveable, StateError, VcpuState, VmState};
use crate::arch::vm;
use crate::config::{ExitReason, LimitsConfig};
use crate::control::server::{BalloonDone, ConnectDone, ConnectionListener, Controlled, GuestStreams};
use crate::control::{CONTROL_VERSION, Info, LimitedDevice, Metrics};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::BalloonHandle;
use crate::devices::virtio::mmio::{MmioTransport, TransportStateError};
use crate::devices::virtio::vsock::VsockHandle;
use crate::ending::Ending;
use crate::metrics::{Counters, count_page_faults};
use crate::snapshot::{MachineState, SnapshotError, SnapshotFile};
use crate::vcpu::{SharedVcpu, VcpuThreads};

/// What control clients reach.
pub(super) struct ControlledMachine {
    pub(super) vm: VmFd,
    pub(super) vcpus: Vec<SharedVcpu>,
    pub(super) threads: VcpuThreads,
    pub(super) memory_mib: u32,
    pub(super) virtio: Vec<Arc<MmioTransport>>,
    pub(super) lines: InterruptLines,
    pub(super) serial: Option<Arc<SerialPort>>,
    pub(super) limits: DeviceLimits,
    pub(super) counters: Arc<Counters>,
    pub(super) ending: Arc<Ending>,
    pub(super) streams: Option<VsockHandle>,
    /// The balloon, and where its driver sees it.
    pub(super) balloon: Option<(BalloonHandle, Arc<MmioTransport>)>,
    pub(super) writer: Option<SnapshotWriter>,
}

/// Writes a machine down.
pub(super) struct SnapshotWriter {
    pub(super) file: SnapshotFile,
    pub(super) saveable: Saveable,
    /// For each vCPU what it was told of its processor.
    pub(super) cpuid: Vec<Vec<kvm_cpuid_entry2>>,
}

const NO_BALLOON: &str = "the machine has no balloon";

#[derive(Debug, thiserror::Error)]
enum LeaveError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Device(#[from] TransportStateError),
    #[error(transparent)]
    File(#[from] SnapshotError),
    #[error("cannot take the interrupt lines from the devices: {0}")]
    Lines(kvm_ioctls::Error),
    #[error("the guest has ended ({0:?})")]
    Ended(ExitReason),
}

impl ControlledMachine {
    /// Stops everything and writes it down. The memory is in its file already. The machine cannot go on afterwards.
    fn leave(&self, writer: &SnapshotWriter) -> Result<(), LeaveError> {
        self.threads.pause();
        // It may have on its way out.
        if let Some(report) = self.ending.report() {
            return Err(LeaveError::Ended(report.reason));
        }
        let devices = self
            .virtio
            .iter()
            .map(|transport| transport.leave())
            .collect::<Result<_, _>>()?;
        self.lines.settle(&self.vm).map_err(LeaveError::Lines)?;
        let vcpus = self
            .vcpus
            .iter()
            .zip(&writer.cpuid)
            .map(|(vcpu, cpuid)| {
                let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                VcpuState::get(&vcpu, cpuid.clone(), &writer.saveable)
            })
            .collect::<Result<_, _>>()?;
        let state = MachineState {
            memory_mib: self.memory_mib,
            vcpus,
            vm: VmState::get(&self.vm)?,
            devices,
            serial: self.serial.as_ref().map(|serial| serial.state()),
        };
        Ok(writer.file.write(&state)?)
    }
}

impl Controlled for ControlledMachine {
    fn info(&self) -> Info {
        Info {
            control_version: CONTROL_VERSION,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            // At most as many as `MAX_VCPUS`.
            vcpus: self.vcpus.len() as u8,
            memory_mib: self.memory_mib,
            exiting: self.ending.report().map(|report| report.reason),
        }
    }

    fn metrics(&self) -> Metrics {
        count_page_faults(&self.counters);
        self.counters.snapshot()
    }

    fn inject_nmi(&self) -> Result<(), String> {
        match vm::inject_nmi(&self.vm) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the guest takes no interrupts".into()),
            Err(error) => Err(format!("cannot inject an interrupt: {error}")),
        }
    }

    fn streams(&self) -> Option<&dyn GuestStreams> {
        self.streams.as_ref().map(|handle| handle as &dyn GuestStreams)
    }

    fn pause(&self) {
        self.threads.pause();
    }

    fn resume(&self) {
        self.threads.resume();
    }

    fn snapshot(&self) -> Result<(), String> {
        if self.ending.report().is_some() {
            return Err("the guest has ended".into());
        }
        let writer = self
            .writer
            .as_ref()
            .ok_or("the machine was given no file for a snapshot")?;
        match self.leave(writer) {
            Ok(()) => {
                self.ending.end(ExitReason::Snapshot, None);
                Ok(())
            }
            Err(error) => {
                let error = format!("cannot take a snapshot: {error}");
                self.ending.end(ExitReason::Error, Some(error.clone()));
                Err(error)
            }
        }
    }

    fn set_limits(&self, device: &LimitedDevice, limits: Option<LimitsConfig>) -> Result<(), String> {
        self.limits
            .set(device, limits, self.serial.as_deref())
            .map_err(|error| error.to_string())
    }

    fn set_balloon(&self, target_mib: u32) -> Result<(), String> {
        let (balloon, transport) = self.balloon.as_ref().ok_or(NO_BALLOON)?;
        balloon
            .set_target(target_mib)
            .map_err(|error| error.to_string())?;
        transport.show_config();
        Ok(())
    }

    fn balloon(&self, wait: Duration, done: BalloonDone) {
        match &self.balloon {
            // Who stands still answers nothing.
            Some((balloon, _)) if self.threads.are_paused() => balloon.report(Duration::ZERO, done),
            Some((balloon, _)) => balloon.report(wait, done),
            None => done(Err(NO_BALLOON.into())),
        }
    }

    fn stop(&self) {
        self.ending.end(ExitReason::Stopped, None);
    }
}

impl GuestStreams for VsockHandle {
    fn connect(&self, port: u32, done: ConnectDone) {
        Self::connect(self, port, done);
    }

    fn set_listener(&self, listener: Option<ConnectionListener>) {
        Self::set_listener(self, listener);
    }
}
