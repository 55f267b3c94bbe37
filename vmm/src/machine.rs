//! A configuration and the descriptors handed with it become a machine, which runs until it ends.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::{Arc, PoisonError, RwLock};

use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::acpi::Hardware;
use crate::arch::boot::{self, BootError, Entry, Payload};
use crate::arch::layout;
use crate::arch::vcpu::{VcpuSetupError, VcpuTemplate};
use crate::arch::vm::{self, VmError};
use crate::bus::BusError;
use crate::config::{ExitReason, ExitReport, MachineConfig};
use crate::control::server::{
    ConnectDone, ConnectionListener, ControlServer, Controlled, GuestStreams, ServerError,
};
use crate::control::{CONTROL_VERSION, Info, Metrics};
use crate::devices::power::Power;
use crate::devices::serial::SerialPort;
use crate::devices::system_control::{SYSTEM_CONTROL_PORT, SystemControl};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, DiskError};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, RegisterPages};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Vsock, VsockHandle};
use crate::devices::virtio::worker::Worker;
use crate::ending::{self, Ending};
use crate::handed::Handed;
use crate::jail::{Jail, JailError, Thread};
use crate::memory::{self, MemoryError};
use crate::metrics::Counters;
use crate::vcpu::{Buses, VcpuContext, VcpuThreads};

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
    #[error("cannot start the thread of a device: {0}")]
    StartDevice(io::Error),
    #[error("the main thread {0}")]
    Confine(JailError),
    #[error("cannot start the vcpus: {0}")]
    StartVcpus(io::Error),
}

/// A machine that is ready to run.
pub struct Machine {
    control: ControlServer,
    vcpus: Vec<VcpuFd>,
    buses: Arc<Buses>,
    controlled: ControlledMachine,
    virtio: Vec<Arc<MmioTransport>>,
    serial: Option<Arc<SerialPort>>,
    exit: Option<File>,
    jail: Jail,
    /// KVM maps it into the guest; it is kept until the vCPUs have ended.
    _memory: GuestMemoryMmap,
}

/// What control clients reach.
struct ControlledMachine {
    vm: VmFd,
    vcpus: u8,
    memory_mib: u32,
    counters: Arc<Counters>,
    ending: Arc<Ending>,
    streams: Option<VsockHandle>,
}

impl Machine {
    /// Builds a machine from a configuration that was validated, and what came with it. Its threads are confined by
    /// `jail`, before the guest runs.
    pub fn new(config: &MachineConfig, handed: Handed, jail: Jail) -> Result<Self, MachineError> {
        let Handed {
            kvm,
            kernel,
            initrd,
            control,
            exit,
            drives,
            taps,
            serial,
        } = handed;
        let ending = Arc::new(Ending::new().map_err(MachineError::Event)?);
        let counters = Arc::new(Counters::default());
        let control = ControlServer::new(control, ending.event())?;
        // SAFETY: the descriptor is owned, and given away here.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };

        let memory = memory::allocate(config.memory_mib)?;
        let vm = vm::create(&kvm, &memory)?;
        let hardware = Hardware {
            vcpus: config.vcpus,
            virtio_devices: config.virtio_devices(),
            serial: serial.is_some(),
        };
        let payload = Payload {
            kernel: &kernel,
            initrd: initrd.as_ref(),
            cmdline: &config.cmdline,
        };
        let entry = boot::load(&memory, &payload, hardware)?;
        let vcpus = create_vcpus(&kvm, &vm, config.vcpus, entry)?;

        let mut assembly = Assembly {
            vm: &vm,
            memory: &memory,
            counters: &counters,
            buses: Buses::default(),
            registers: RegisterPages::new(config.virtio_devices()),
            virtio: Vec::new(),
        };
        let power = Arc::new(Power::new(ending.clone()));
        assembly.add_ports(layout::POWER_PORT, layout::POWER_PORTS, power)?;
        assembly.add_ports(SYSTEM_CONTROL_PORT, 1, Arc::new(SystemControl))?;
        let serial = match serial {
            Some(out) => {
                let port = Arc::new(SerialPort::new(out, assembly.interrupt_line(layout::SERIAL_GSI)?));
                assembly.add_ports(layout::SERIAL_PORT, layout::SERIAL_PORTS, port.clone())?;
                Some(port)
            }
            None => None,
        };
        let worker = |name: &str, kind| Worker::new(name, jail, kind).map_err(MachineError::StartDevice);
        for (drive, file) in config.drives.iter().zip(drives) {
            let worker = worker("block", Thread::Block)?;
            let block = Block::new(file, &drive.id, drive.read_only, counters.clone(), worker)?;
            assembly.add_virtio(Box::new(block))?;
        }
        for (net, tap) in config.nets.iter().zip(taps) {
            let worker = worker("net", Thread::Net)?;
            let net = Net::new(tap, net.mac, net.mtu, counters.clone(), worker);
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
        if config.entropy {
            assembly.add_virtio(Box::new(Rng::new(counters.clone(), worker("rng", Thread::Rng)?)))?;
        }
        vm::map_registers(&vm, &assembly.registers)?;
        let Assembly { buses, virtio, .. } = assembly;

        Ok(Self {
            control,
            vcpus,
            buses: Arc::new(buses),
            controlled: ControlledMachine {
                vm,
                vcpus: config.vcpus,
                memory_mib: config.memory_mib,
                counters,
                ending,
                streams,
            },
            virtio,
            serial,
            exit,
            jail,
            _memory: memory,
        })
    }

    /// Runs the guest until the machine ends, then stops everything, reports, and takes leave of the clients.
    pub fn run(self) -> ExitReport {
        self.run_once_closed(|| ())
    }

    /// As [`Machine::run`]; `then` comes when every thread is confined, on the main one, before the guest runs.
    pub fn run_once_closed(self, then: impl FnOnce()) -> ExitReport {
        let Self {
            mut control,
            vcpus,
            buses,
            controlled,
            virtio,
            serial,
            exit,
            jail,
            _memory,
        } = self;
        let ending = &controlled.ending;
        let context = VcpuContext {
            buses,
            ending: ending.clone(),
            counters: controlled.counters.clone(),
            jail,
            gate: Arc::new(RwLock::new(())),
        };
        let mut threads = VcpuThreads::default();
        let closed = context.gate.write().unwrap_or_else(PoisonError::into_inner);
        let ready = threads
            .start(vcpus, &context)
            .map_err(MachineError::StartVcpus)
            .and_then(|()| jail.confine(Thread::Main).map_err(MachineError::Confine));
        match ready {
            Ok(()) => then(),
            Err(error) => ending.end(ExitReason::Error, Some(error.to_string())),
        }
        drop(closed);
        if let Err(error) = control.run(&controlled) {
            ending.end(ExitReason::Error, Some(error.to_string()));
        }
        threads.join();
        for transport in &virtio {
            transport.reset();
        }
        if let Some(serial) = serial {
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

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8, entry: Entry) -> Result<Vec<VcpuFd>, MachineError> {
    let template = VcpuTemplate::new(kvm, count)?;
    (0..count)
        .map(|vcpu| {
            let fd = vm
                .create_vcpu(u64::from(vcpu))
                .map_err(|source| MachineError::CreateVcpu { vcpu, source })?;
            template.apply(&fd, vcpu, entry)?;
            Ok(fd)
        })
        .collect()
}

impl Controlled for ControlledMachine {
    fn info(&self) -> Info {
        Info {
            control_version: CONTROL_VERSION,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            exiting: self.ending.report().map(|report| report.reason),
        }
    }

    fn metrics(&self) -> Metrics {
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

/// The devices of a machine while it is built.
struct Assembly<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemoryMmap,
    counters: &'a Arc<Counters>,
    buses: Buses,
    registers: Arc<RegisterPages>,
    virtio: Vec<Arc<MmioTransport>>,
}

impl Assembly<'_> {
    /// An event that raises an edge on an interrupt line.
    fn interrupt_line(&self, line: u32) -> Result<EventFd, MachineError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(MachineError::Event)?;
        self.vm
            .register_irqfd(&event, line)
            .map_err(|source| MachineError::InterruptLine { line, source })?;
        Ok(event)
    }

    fn add_ports(
        &mut self,
        first: u16,
        count: u16,
        device: Arc<dyn crate::bus::BusDevice>,
    ) -> Result<(), MachineError> {
        let first = u64::from(first);
        Ok(self.buses.pio.insert(first..first + u64::from(count), device)?)
    }

    /// Puts a virtio device behind the next transport, in the order in which the guest finds them.
    fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let index = self.virtio.len();
        let base = layout::virtio_mmio_base(index);
        let interrupt = self.interrupt_line(layout::virtio_gsi(index))?;
        let transport = MmioTransport::new(
            device,
            (self.registers.clone(), index),
            self.memory.clone(),
            interrupt,
            self.counters.clone(),
        )
        .map_err(MachineError::Event)?;
        transport.for_each_kick(|queue, kick| {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            self.vm
                .register_ioevent(kick, &address, queue)
                .map_err(|source| MachineError::QueueKick {
                    device: index,
                    queue,
                    source,
                })
        })?;
        let transport = Arc::new(transport);
        self.buses
            .mmio
            .insert(base..base + layout::VIRTIO_MMIO_BYTES, transport.clone())?;
        self.virtio.push(transport);
        Ok(())
    }
}
