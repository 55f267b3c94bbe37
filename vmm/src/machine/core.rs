//! What a machine has before it has devices: its virtual machine, its memory and its vCPUs. No time of the guest's passes in
//! it, however long it waits for the rest.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::MachineError;
use crate::arch::acpi::Hardware;
use crate::arch::boot::{self, Payload};
use crate::arch::vcpu::VcpuTemplate;
use crate::arch::vm;
use crate::config::{MachineConfig, WorkingSet};
use crate::handed::{self, Start};
use crate::memory::{self, MemoryFile};
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
    origin: Origin,
}

enum Origin {
    Kernel {
        kernel: File,
        initrd: Option<File>,
        cmdline: String,
    },
    Snapshot {
        state: Box<MachineState>,
        prefetch: Prefetch,
    },
}

enum Prefetch {
    Wanted(WorkingSet),
    Begun(JoinHandle<u64>),
    /// Microseconds that it took.
    Done(u64),
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
            Start::Restore { state, working_set } => {
                let state = snapshot::read(&state)?;
                state.check_core(config)?;
                for ((index, vcpu), state) in (0..).zip(&vcpus).zip(&state.vcpus) {
                    template.prepare(vcpu, index, state)?;
                }
                Origin::Snapshot {
                    state: Box::new(state),
                    prefetch: Prefetch::Wanted(working_set),
                }
            }
        };
        Ok(Self {
            kvm,
            memory,
            vm,
            template,
            vcpus,
            counters,
            origin,
        })
    }

    /// Has the pages that the guest needs first where it will look for them. Returns when they are there.
    pub fn prefetch(&mut self) -> Result<(), MachineError> {
        self.begin_prefetch()?;
        self.end_prefetch();
        Ok(())
    }

    /// Puts the vCPUs where the guest is to begin, or to go on: from here on its time passes. Its pages are prefetched beside
    /// whatever comes next, if they were not before.
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
            Origin::Snapshot { state, .. } => {
                state.check_devices(config)?;
                for ((index, vcpu), state) in (0..).zip(&self.vcpus).zip(&state.vcpus) {
                    self.template.restore(vcpu, index, state)?;
                }
                state.vm.set(&self.vm)?;
            }
        }
        self.begin_prefetch()
    }

    /// Where the guest goes on, if it does not begin.
    pub(super) fn state(&self) -> Option<&MachineState> {
        match &self.origin {
            Origin::Kernel { .. } => None,
            Origin::Snapshot { state, .. } => Some(state),
        }
    }

    fn begin_prefetch(&mut self) -> Result<(), MachineError> {
        if let Origin::Snapshot { prefetch, .. } = &mut self.origin
            && let Prefetch::Wanted(working_set) = prefetch
            && let Some(first) = self.vcpus.first()
        {
            let begun = memory::prefetch_aside(&self.memory, working_set, first);
            *prefetch = Prefetch::Begun(begun.map_err(MachineError::Prefetch)?);
        }
        Ok(())
    }

    fn end_prefetch(&mut self) {
        if let Origin::Snapshot { prefetch, .. } = &mut self.origin {
            let begun = std::mem::replace(prefetch, Prefetch::Done(0));
            *prefetch = match begun {
                // A thread that panicked has prefetched what it has.
                Prefetch::Begun(thread) => Prefetch::Done(thread.join().unwrap_or(0)),
                other => other,
            };
        }
    }

    /// Waits for the pages that are prefetched, and counts how long they took.
    pub(super) fn settle(&mut self, counters: &Counters) {
        self.end_prefetch();
        if let Origin::Snapshot {
            prefetch: Prefetch::Done(microseconds),
            ..
        } = self.origin
        {
            counters
                .start_working_set_us
                .store(microseconds, Ordering::Relaxed);
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
