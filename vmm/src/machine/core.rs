//! What a machine has before it has devices: its virtual machine, its memory and its vCPUs. No time of the guest's passes in
//! it, however long it waits for the rest.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::MachineError;
use crate::arch::acpi::Hardware;
use crate::arch::boot::{self, Payload};
use crate::arch::vcpu::VcpuTemplate;
use crate::arch::vm;
use crate::config::MachineConfig;
use crate::handed::{self, Start};
use crate::memory::{self, MemoryFile, Prefetch};
use crate::metrics::{Counters, Phases};
use crate::snapshot::{self, MachineState};

/// A machine without devices.
pub struct Core {
    pub(super) kvm: Kvm,
    pub(super) memory: GuestMemoryMmap,
    pub(super) vm: VmFd,
    pub(super) template: VcpuTemplate,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) counters: Arc<Counters>,
    /// Of a guest that goes on.
    pub(super) pages: Option<Pages>,
    origin: Origin,
}

enum Origin {
    Kernel {
        kernel: File,
        initrd: Option<File>,
        cmdline: String,
    },
    Snapshot(Box<MachineState>),
}

/// Of the pages that the guest needs first.
pub(super) enum Pages {
    Coming(Prefetch),
    /// Microseconds that it took.
    There(u64),
}

impl Pages {
    /// Waits for them, and says how long they took in all.
    pub(super) fn settle(self) -> u64 {
        match self {
            Self::Coming(prefetch) => prefetch.end(),
            Self::There(microseconds) => microseconds,
        }
    }
}

impl Core {
    /// Makes it from a configuration that was validated, of which what is said of devices does not matter yet.
    /// `started` is when the process was, if that is when the machine's start began.
    pub fn new(
        config: &MachineConfig,
        handed: handed::Core,
        started: Option<Instant>,
    ) -> Result<Self, MachineError> {
        let counters = Arc::new(Counters::default());
        let mut phases = started.map(Phases::since);
        let mut end = |counter| phases.iter_mut().for_each(|phases| phases.end(counter));
        end(&counters.start_jail_us);
        let handed::Core { kvm, start, memory } = handed;
        // SAFETY: the descriptor is owned, and given away here.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let file = memory.zip(config.memory).map(|(file, how)| MemoryFile {
            file,
            shared: how.shared,
            page_by_page: how.page_by_page,
        });
        let memory = memory::allocate_of(config.huge_pages, config.memory_mib, file)?;
        // They come beside all that is done next.
        let prefetch = match &start {
            Start::Boot { .. } => None,
            Start::Restore { working_set, .. } => {
                Some(Prefetch::begin(&memory, working_set).map_err(MachineError::Prefetch)?)
            }
        };
        let vm = vm::create(&kvm, &memory)?;
        let template = VcpuTemplate::new(&kvm, config.vcpus)?;
        let vcpus = create_vcpus(&vm, config.vcpus)?;
        end(&counters.start_vm_us);
        let origin = match start {
            Start::Boot {
                kernel,
                initrd,
                cmdline,
            } => Origin::Kernel {
                kernel,
                initrd,
                cmdline,
            },
            Start::Restore { state, .. } => {
                let state = snapshot::read(&state)?;
                state.check_core(config)?;
                for ((index, vcpu), state) in (0..).zip(&vcpus).zip(&state.vcpus) {
                    template.prepare(vcpu, index, state)?;
                }
                Origin::Snapshot(Box::new(state))
            }
        };
        if let (Some(prefetch), Some(first)) = (&prefetch, vcpus.first()) {
            prefetch.for_guest(first).map_err(MachineError::Prefetch)?;
        }
        Ok(Self {
            kvm,
            memory,
            vm,
            template,
            vcpus,
            counters,
            pages: prefetch.map(Pages::Coming),
            origin,
        })
    }

    /// Returns when the pages that the guest needs first are where it will look for them.
    pub fn settled(mut self) -> Self {
        self.pages = self.pages.map(|pages| Pages::There(pages.settle()));
        self
    }

    /// Puts the vCPUs where the guest is to begin, or to go on: from here on its time passes.
    pub(super) fn go_on(&mut self, config: &MachineConfig) -> Result<(), MachineError> {
        match &self.origin {
            Origin::Kernel {
                kernel,
                initrd,
                cmdline,
            } => {
                let hardware = Hardware {
                    vcpus: config.vcpus,
                    virtio_devices: config.virtio_devices(),
                    serial: config.serial_fd.is_some(),
                };
                let payload = Payload {
                    kernel,
                    initrd: initrd.as_ref(),
                    cmdline,
                };
                let entry = boot::load(&self.memory, &payload, hardware)?;
                for (index, vcpu) in (0..).zip(&self.vcpus) {
                    self.template.apply(vcpu, index, entry)?;
                }
            }
            Origin::Snapshot(state) => {
                state.check_devices(config)?;
                for ((index, vcpu), state) in (0..).zip(&self.vcpus).zip(&state.vcpus) {
                    self.template.restore(vcpu, index, state)?;
                }
                state.vm.set(&self.vm)?;
            }
        }
        Ok(())
    }

    /// Where the guest goes on, if it does not begin.
    pub(super) fn state(&self) -> Option<&MachineState> {
        match &self.origin {
            Origin::Kernel { .. } => None,
            Origin::Snapshot(state) => Some(state),
        }
    }
}

fn create_vcpus(vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, MachineError> {
    (0..count)
        .map(|vcpu| {
            vm.create_vcpu(u64::from(vcpu))
                .map_err(|source| MachineError::CreateVcpu { vcpu, source })
        })
        .collect()
}
