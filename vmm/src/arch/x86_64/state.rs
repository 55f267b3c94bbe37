//! The state of the processors and of the interrupt controllers, read from KVM and given back to it. It is complete: what
//! KVM holds of a machine whose vCPUs stand still is here, but for its memory, its lines and its events.

use std::collections::HashMap;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::vcpu::tsc_khz;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// More than the second of any processor within which KVM takes two counters for the same.
const FAR_CYCLES: u64 = 100_000_000_000;
/// Bytes of extended state that KVM_GET_XSAVE knows of.
const XSAVE_BYTES: i32 = size_of::<kvm_xsave>() as i32;
/// Most registers that KVM takes at once (`KVM_MAX_MSR_ENTRIES`).
const MSRS_AT_ONCE: usize = 256;
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("kvm does not give the {what}: {source}")]
    Get {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("kvm does not take the {what}: {source}")]
    Set {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("kvm does not take the model-specific register {0:#x}")]
    MsrRefused(u32),
    #[error("too many model-specific registers: {0:?}")]
    Msrs(vmm_sys_util::fam::Error),
    #[error("the extended state has {0} bytes, more than {XSAVE_BYTES}")]
    ExtendedState(i32),
    #[error("this processor is another than the snapshot's: cpuid leaf {function:#x} differs")]
    OtherProcessor { function: u32 },
    #[error("it has {0} interrupt controllers, not {expected}", expected = IRQCHIPS.len())]
    Irqchips(usize),
}

trait Named<T> {
    fn got(self, what: &'static str) -> Result<T, StateError>;
    fn taken(self, what: &'static str) -> Result<T, StateError>;
}

impl<T> Named<T> for Result<T, kvm_ioctls::Error> {
    fn got(self, what: &'static str) -> Result<T, StateError> {
        self.map_err(|source| StateError::Get { what, source })
    }

    fn taken(self, what: &'static str) -> Result<T, StateError> {
        self.map_err(|source| StateError::Set { what, source })
    }
}

/// What of the host must be known to save a vCPU. Found out before the jail closes.
pub struct Saveable {
    msrs: Vec<u32>,
}

impl Saveable {
    pub fn new(kvm: &Kvm) -> Result<Self, StateError> {
        let extended = kvm.check_extension_int(Cap::Xsave2);
        if extended > XSAVE_BYTES {
            return Err(StateError::ExtendedState(extended));
        }
        let list = kvm.get_msr_index_list().got("list of model-specific registers")?;
        let mut msrs = list.as_slice().to_vec();
        // The counter before whatever is measured by it, and the timer that it ends last.
        msrs.sort_by_key(|&msr| (msr == MSR_IA32_TSC_DEADLINE, msr != MSR_IA32_TSC));
        Ok(Self { msrs })
    }
}

/// A vCPU that stands still.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    tsc_khz: Option<u32>,
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads all of it. `cpuid` is what the vCPU was given.
    pub fn get(fd: &VcpuFd, cpuid: Vec<kvm_cpuid_entry2>, saveable: &Saveable) -> Result<Self, StateError> {
        Ok(Self {
            tsc_khz: tsc_khz(fd),
            cpuid,
            // First: it lets the local APIC take the events that it has been sent (KVM_GET_MP_STATE).
            mp_state: fd.get_mp_state().got("multiprocessing state")?,
            regs: fd.get_regs().got("registers")?,
            sregs: fd.get_sregs().got("special registers")?,
            xsave: fd.get_xsave().got("extended state")?,
            xcrs: fd.get_xcrs().got("extended control registers")?,
            debug_registers: fd.get_debug_regs().got("debug registers")?,
            // Before the local APIC: a timer that fires in between is seen twice then, and not never.
            msrs: get_msrs(fd, &saveable.msrs)?,
            lapic: fd.get_lapic().got("local apic")?,
            events: fd.get_vcpu_events().got("pending events")?,
        })
    }

    /// Has the time-stamp counter run as fast as it did.
    pub(super) fn set_clock(&self, fd: &VcpuFd) -> Result<(), StateError> {
        match self.tsc_khz {
            Some(khz) if tsc_khz(fd) != Some(khz) => {
                fd.set_tsc_khz(khz).taken("time-stamp counter's frequency")
            }
            _ => Ok(()),
        }
    }

    /// A guest has long read what processor it runs on, so that must be the one it finds.
    pub(super) fn check_cpuid(&self, here: &[kvm_cpuid_entry2]) -> Result<(), StateError> {
        let differs = |(index, then)| here.get(index) != Some(then);
        let differing = self.cpuid.iter().enumerate().find(|&at| differs(at));
        let missing = here.get(self.cpuid.len());
        match differing.map(|(_, then)| then).or(missing) {
            Some(leaf) => Err(StateError::OtherProcessor {
                function: leaf.function,
            }),
            None => Ok(()),
        }
    }

    /// Has KVM take the time-stamp counters as they are given, and not as an attempt to make them agree with the ones that
    /// it started, which is what it takes a value near those for (Linux before 6.7). For the first vCPU, whose counter the
    /// others' are then brought into agreement with.
    pub(super) fn part_from_startup_clock(&self, fd: &VcpuFd) -> Result<(), StateError> {
        let Some(tsc) = self.msrs.iter().find(|entry| entry.index == MSR_IA32_TSC) else {
            return Ok(());
        };
        let far = kvm_msr_entry {
            data: tsc.data.wrapping_add(FAR_CYCLES),
            ..*tsc
        };
        set_msrs(fd, &[far])
    }

    /// Sets the registers that are not what they were already. Of those that a processor has not, KVM says zero and takes
    /// zero, but complains of the latter in the host's log.
    fn set_changed_msrs(&self, fd: &VcpuFd) -> Result<(), StateError> {
        let indices: Vec<u32> = self.msrs.iter().map(|entry| entry.index).collect();
        let now: HashMap<u32, u64> = get_msrs(fd, &indices)?
            .iter()
            .map(|entry| (entry.index, entry.data))
            .collect();
        let changed: Vec<_> = self
            .msrs
            .iter()
            .filter(|entry| now.get(&entry.index) != Some(&entry.data))
            .copied()
            .collect();
        set_msrs(fd, &changed)
    }

    /// Gives all of it to a vCPU that has its CPUID, in an order in which nothing undoes what went before.
    pub(super) fn set(&self, fd: &VcpuFd) -> Result<(), StateError> {
        fd.set_mp_state(self.mp_state).taken("multiprocessing state")?;
        fd.set_regs(&self.regs).taken("registers")?;
        fd.set_sregs(&self.sregs).taken("special registers")?;
        // SAFETY: KVM reads no more than the structure has: `Saveable` refuses a processor with more extended state.
        unsafe { fd.set_xsave(&self.xsave) }.taken("extended state")?;
        fd.set_xcrs(&self.xcrs).taken("extended control registers")?;
        fd.set_debug_regs(&self.debug_registers)
            .taken("debug registers")?;
        fd.set_lapic(&self.lapic).taken("local apic")?;
        self.set_changed_msrs(fd)?;
        fd.set_vcpu_events(&self.events).taken("pending events")?;
        // The guest's clock stood still; its watchdogs are not to bark. Not every guest has such a clock.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }
}

/// The registers that KVM gives; those that it lists and then does not have are left out.
fn get_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut got = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .take(MSRS_AT_ONCE)
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let asked = entries.len();
        let mut msrs = Msrs::from_entries(&entries).map_err(StateError::Msrs)?;
        let done = fd.get_msrs(&mut msrs).got("model-specific registers")?.min(asked);
        got.extend_from_slice(&msrs.as_slice()[..done]);
        // It stops at the first that it does not have.
        rest = &rest[(done + usize::from(done < asked))..];
    }
    Ok(got)
}

fn set_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    for entries in entries.chunks(MSRS_AT_ONCE) {
        let msrs = Msrs::from_entries(entries).map_err(StateError::Msrs)?;
        let done = fd.set_msrs(&msrs).taken("model-specific registers")?;
        if let Some(refused) = entries.get(done) {
            return Err(StateError::MsrRefused(refused.index));
        }
    }
    Ok(())
}

/// What KVM holds for all vCPUs of a machine.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    irqchips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl VmState {
    pub fn get(vm: &VmFd) -> Result<Self, StateError> {
        let irqchips = IRQCHIPS
            .iter()
            .map(|&chip_id| {
                let mut chip = kvm_irqchip {
                    chip_id,
                    ..Default::default()
                };
                vm.get_irqchip(&mut chip).got("interrupt controllers")?;
                Ok(chip)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            irqchips,
            clock: vm.get_clock().got("clock")?,
        })
    }

    /// Gives it to a machine that has its vCPUs.
    pub fn set(&self, vm: &VmFd) -> Result<(), StateError> {
        if self.irqchips.len() != IRQCHIPS.len() {
            return Err(StateError::Irqchips(self.irqchips.len()));
        }
        for chip in &self.irqchips {
            vm.set_irqchip(chip).taken("interrupt controllers")?;
        }
        // From where it stood: to the guest no time has passed. It learns of the day from whoever restored it.
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).taken("clock")
    }
}
