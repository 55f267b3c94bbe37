//! A configuration and the descriptors handed with it become a machine, which runs until it ends.

mod assembly;
mod controlled;
mod core;
mod limits;

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use self::core::Core;
use self::core::Pages;
use crate::arch::boot::BootError;
use crate::arch::layout;
use crate::arch::state::{Saveable, StateError};
use crate::arch::vcpu::VcpuSetupError;
use crate::arch::vm::{self, VmError};
use crate::bus::BusError;
use crate::config::{ExitReason, ExitReport, MachineConfig, MemoryConfig};
use crate::control::server::{ControlServer, ServerError};
use crate::devices::generation::{Generation, GenerationError};
use crate::devices::power::Power;
use crate::devices::serial::SerialPort;
use crate::devices::system_control::{SYSTEM_CONTROL_PORT, SystemControl};
use crate::devices::virtio::balloon::{Backing, Balloon};
use crate::devices::virtio::block::{Block, Disk, DiskError};
use crate::devices::virtio::mmio::{RegisterPages, TransportStateError};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::worker::Worker;
use crate::ending::{self, Ending};
use crate::handed::{Handed, Rest};
use crate::jail::{Jail, JailError, Thread};
use crate::memory::MemoryError;
use crate::metrics::{Phases, clock};
use crate::snapshot::{SnapshotError, SnapshotFile};
use crate::vcpu::{Buses, Gate, VcpuContext, VcpuThreads};
use assembly::{Assembly, InterruptLines};
use controlled::{ControlledMachine, SnapshotWriter};
use limits::DeviceLimits;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    VcpuSetup(#[from] VcpuSetupError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Control(#[from] ServerError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("cannot restore the machine: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("cannot restore the machine: {0}")]
    State(#[from] StateError),
    #[error("cannot restore the machine: {0}")]
    Device(#[from] TransportStateError),
    #[error("cannot create vcpu {vcpu}: {source}")]
    CreateVcpu { vcpu: u8, source: kvm_ioctls::Error },
    #[error("cannot create an event: {0}")]
    Event(io::Error),
    #[error("cannot connect interrupt line {line}: {source}")]
    InterruptLine { line: u32, source: kvm_ioctls::Error },
    #[error("cannot connect queue {queue} of device {device}: {source}")]
    QueueKick {
        device: usize,
        queue: u32,
        source: kvm_ioctls::Error,
    },
    #[error("cannot connect the acknowledgements of device {device}: {source}")]
    Acknowledgements {
        device: usize,
        source: kvm_ioctls::Error,
    },
    #[error("cannot start the thread of a device: {0}")]
    StartDevice(io::Error),
    #[error("the main thread {0}")]
    Confine(JailError),
    #[error("cannot prefetch the guest's memory: {0}")]
    Prefetch(io::Error),
    #[error("cannot start the vcpus: {0}")]
    StartVcpus(io::Error),
}

/// A machine that is ready to run.
pub struct Machine {
    control: ControlServer,
    buses: Arc<Buses>,
    controlled: ControlledMachine,
    gate: Arc<Gate>,
    pages: Option<Pages>,
    exit: Option<File>,
    jail: Jail,
    started: Instant,
    /// KVM maps it into the guest; it is kept until the vCPUs have ended.
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// Builds a machine from a configuration that was validated, and what came with it. Its threads are confined by
    /// `jail`, before the guest runs. `started` is when the process was.
    pub fn new(
        config: &MachineConfig,
        handed: Handed,
        jail: Jail,
        started: Instant,
    ) -> Result<Self, MachineError> {
        let Handed { core, rest } = handed;
        Core::new(config, core, Some(started))?.into_machine(config, rest, jail, started)
    }
}

impl Core {
    /// Gives it the devices of a configuration that was validated, and whose core it is; the rest is as for [`Machine::new`].
    pub fn into_machine(
        mut self,
        config: &MachineConfig,
        rest: Rest,
        jail: Jail,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let Rest {
            snapshot,
            control,
            exit,
            drives,
            taps,
            serial,
        } = rest;
        let ending = Arc::new(Ending::new().map_err(MachineError::Event)?);
        let counters = self.counters.clone();
        let mut phases = Phases::since(Instant::now());
        let control = ControlServer::new(control, ending.event())?;
        self.go_on(config)?;

        phases.end(&counters.start_state_us);

        let mut assembly = Assembly {
            vm: &self.vm,
            memory: &self.memory,
            counters: &counters,
            buses: Buses::default(),
            registers: RegisterPages::new(config.virtio_devices()),
            virtio: Vec::new(),
            lines: InterruptLines::default(),
            acknowledged: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(MachineError::Event)?,
        };
        let limits = DeviceLimits::new(config, &counters).map_err(MachineError::Event)?;
        let generation = Generation::new(assembly.interrupt_line(layout::ACPI_GSI)?);
        let power = Arc::new(Power::new(ending.clone()));
        assembly.add_ports(layout::POWER_PORT, layout::POWER_PORTS, power)?;
        assembly.add_ports(SYSTEM_CONTROL_PORT, 1, Arc::new(SystemControl))?;
        let serial = match serial {
            Some(out) => {
                let line = assembly.interrupt_line(layout::SERIAL_GSI)?;
                let state = self.state().and_then(|state| state.serial.as_ref());
                let port = SerialPort::new(out, config.serial_limits, counters.clone(), line, state)
                    .map_err(MachineError::Event)?;
                let port = Arc::new(port);
                assembly.add_ports(layout::SERIAL_PORT, layout::SERIAL_PORTS, port.clone())?;
                Some(port)
            }
            None => None,
        };
        let worker = |name: &str, kind| Worker::new(name, jail, kind).map_err(MachineError::StartDevice);
        for ((drive, file), (_, throttle)) in config.drives.iter().zip(drives).zip(&limits.drives) {
            let (counters, throttle) = (counters.clone(), throttle.clone());
            let disk = Disk::new(file, &drive.id, drive.read_only, counters, throttle)?;
            let block = Block::new(disk, drive.engine, jail).map_err(MachineError::StartDevice)?;
            assembly.add_virtio(Box::new(block))?;
        }
        for ((net, tap), throttles) in config.nets.iter().zip(taps).zip(&limits.nets) {
            let worker = worker("net", Thread::Net)?;
            let net = Net::new(tap, net.mac, net.mtu, counters.clone(), throttles.clone(), worker);
            assembly.add_virtio(Box::new(net))?;
        }
        let streams = match &config.vsock {
            Some(vsock) => {
                let (device, handle) =
                    Vsock::new(vsock.guest_cid, counters.clone(), worker("vsock", Thread::Vsock)?);
                assembly.add_virtio(Box::new(device))?;
                Some(handle)
            }
            None => None,
        };
        if let Some(throttle) = &limits.entropy {
            let worker = worker("rng", Thread::Rng)?;
            assembly.add_virtio(Box::new(Rng::new(counters.clone(), throttle.clone(), worker)))?;
        }
        let mut balloon = None;
        if config.balloon {
            let backing = match config.memory {
                None => Backing::Anonymous,
                Some(MemoryConfig { shared: true, .. }) => Backing::SharedFile,
                Some(MemoryConfig { shared: false, .. }) => Backing::PrivateFile(config.huge_pages),
            };
            let worker = worker("balloon", Thread::Balloon)?;
            let (device, handle) = Balloon::new(backing, config.memory_mib, counters.clone(), worker)
                .map_err(MachineError::Event)?;
            balloon = Some((handle, assembly.add_virtio(Box::new(device))?));
        }
        vm::map_registers(&self.vm, &assembly.registers)?;
        let Assembly {
            buses, virtio, lines, ..
        } = assembly;

        generation.begin(&self.memory)?;
        if let Some(state) = self.state() {
            for (transport, state) in virtio.iter().zip(&state.devices) {
                transport.take_up(state)?;
            }
            generation.tell();
        }
        let writer = match snapshot {
            Some(file) => Some(SnapshotWriter {
                file: SnapshotFile::new(file),
                saveable: Saveable::new(&self.kvm)?,
                cpuid: (0..)
                    .zip(&self.vcpus)
                    .map(|(index, vcpu)| self.template.cpuid(vcpu, index))
                    .collect(),
            }),
            None => None,
        };
        let gate = Arc::new(Gate::default());
        phases.end(&counters.start_devices_us);
        let Core {
            memory,
            vm,
            vcpus,
            pages,
            ..
        } = self;

        Ok(Machine {
            control,
            buses: Arc::new(buses),
            controlled: ControlledMachine {
                vm,
                vcpus: vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect(),
                threads: VcpuThreads::behind(gate.clone()),
                memory_mib: config.memory_mib,
                virtio,
                lines,
                serial,
                limits,
                counters,
                ending,
                streams,
                balloon,
                writer,
            },
            gate,
            pages,
            exit,
            jail,
            started,
            _memory: memory,
        })
    }
}

impl Machine {
    /// Runs the guest until the machine ends, then stops everything, reports, and takes leave of the clients.
    pub fn run(self) -> ExitReport {
        self.run_once_closed(|| ())
    }

    /// As [`Machine::run`]; `then` comes when every thread is confined, on the main one, before the guest runs.
    pub fn run_once_closed(self, then: impl FnOnce()) -> ExitReport {
        let Self {
            mut control,
            buses,
            mut controlled,
            gate,
            pages,
            exit,
            jail,
            started,
            _memory,
        } = self;
        return_free_heap();
        let ending = controlled.ending.clone();
        let context = VcpuContext {
            buses,
            ending: ending.clone(),
            counters: controlled.counters.clone(),
            jail,
            gate: gate.clone(),
        };
        let ready = controlled
            .threads
            .start(&controlled.vcpus, &context)
            .map_err(MachineError::StartVcpus)
            .and_then(|()| jail.confine(Thread::Main).map_err(MachineError::Confine));
        // The thread that gets them is under no filter, so it ends before the guest runs.
        if let Some(pages) = pages {
            let took = &controlled.counters.start_working_set_us;
            took.store(pages.settle(), Ordering::Relaxed);
        }
        match ready {
            Ok(()) => then(),
            Err(error) => ending.end(ExitReason::Error, Some(error.to_string())),
        }
        gate.open();
        clock(&controlled.counters.start_us, started);
        if let Err(error) = control.run(&controlled) {
            ending.end(ExitReason::Error, Some(error.to_string()));
        }
        controlled.threads.join();
        for transport in &controlled.virtio {
            transport.reset();
        }
        if let Some(serial) = &controlled.serial {
            serial.finish();
        }
        let mut report = ending.report().cloned().unwrap_or(ExitReport {
            reason: ExitReason::Error,
            detail: None,
        });
        if let Some(Err(error)) = exit.map(|exit| ending::write_report(&exit, &report)) {
            let detail = Some(format!("cannot write the exit report {report:?}: {error}"));
            report = ExitReport {
                reason: ExitReason::Error,
                detail,
            };
        }
        // Last, so that a client that sees its connection closed finds the report written.
        control.finish(&controlled);
        report
    }
}

/// What only the building of the machine needed, its configuration and its state as text, is not needed again.
fn return_free_heap() {
    // SAFETY: it takes a number, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
