//! The state in which a vCPU starts. What it does afterwards is [`crate::vcpu`]'s business.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::boot::Entry;
use super::cpuid::{self, Topology};
use super::state::{StateError, VcpuState};

/// `CR0.PE` and the bit that is always 1.
const CR0_PROTECTED_MODE: u64 = 0x11;
/// The bit of RFLAGS that is always 1.
const RFLAGS_RESERVED: u64 = 2;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, and everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

#[derive(Debug, thiserror::Error)]
pub enum VcpuSetupError {
    #[error("kvm does not tell what cpuid it supports: {0}")]
    SupportedCpuid(kvm_ioctls::Error),
    #[error("the cpuid leaves do not fit: {0:?}")]
    CpuidSize(vmm_sys_util::fam::Error),
    #[error("cannot set the cpuid of vcpu {vcpu}: {source}")]
    Cpuid { vcpu: u8, source: kvm_ioctls::Error },
    #[error("cannot set the model-specific registers of vcpu {vcpu}: {source}")]
    Msrs { vcpu: u8, source: kvm_ioctls::Error },
    #[error("vcpu {vcpu} took {done} of {wanted} model-specific registers")]
    MsrRefused { vcpu: u8, done: usize, wanted: usize },
    #[error("cannot set the registers of vcpu {vcpu}: {source}")]
    Registers { vcpu: u8, source: kvm_ioctls::Error },
    #[error("cannot restore vcpu {vcpu}: {source}")]
    Restore { vcpu: u8, source: StateError },
}

/// What all vCPUs of a machine are set up from.
pub struct VcpuTemplate {
    supported: CpuId,
    tsc_deadline: bool,
    vcpus: u8,
}

impl VcpuTemplate {
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, VcpuSetupError> {
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(VcpuSetupError::SupportedCpuid)?;
        Ok(Self {
            supported,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            vcpus,
        })
    }

    /// Sets up `vcpu`. The first one starts at `entry`; the others wait for it to wake them, which is the state in which
    /// KVM's local APIC makes them. That APIC also has LINT0 and LINT1 as the kernel expects to find them.
    pub fn apply(&self, fd: &VcpuFd, vcpu: u8, entry: Entry) -> Result<(), VcpuSetupError> {
        self.set_up(fd, vcpu)?;
        if vcpu == 0 {
            set_registers(fd, entry).map_err(|source| VcpuSetupError::Registers { vcpu, source })?;
        }
        Ok(())
    }

    /// Makes `vcpu` the processor that it was when `state` was saved.
    pub fn prepare(&self, fd: &VcpuFd, vcpu: u8, state: &VcpuState) -> Result<(), VcpuSetupError> {
        let restored = |source| VcpuSetupError::Restore { vcpu, source };
        state.set_clock(fd).map_err(restored)?;
        let leaves = self.set_up(fd, vcpu)?;
        state.check_cpuid(&leaves).map_err(restored)
    }

    /// Has `vcpu`, which is prepared, go on where `state` was saved. From here on its time passes.
    pub fn restore(&self, fd: &VcpuFd, vcpu: u8, state: &VcpuState) -> Result<(), VcpuSetupError> {
        let restored = |source| VcpuSetupError::Restore { vcpu, source };
        if vcpu == 0 {
            state.part_from_startup_clock(fd).map_err(restored)?;
        }
        state.set(fd).map_err(restored)
    }

    /// What the guest sees of the processor: part of a snapshot, so that it is not restored on another.
    pub fn cpuid(&self, fd: &VcpuFd, vcpu: u8) -> Vec<kvm_cpuid_entry2> {
        let topology = Topology {
            vcpu,
            vcpus: self.vcpus,
            tsc_deadline: self.tsc_deadline,
            tsc_khz: tsc_khz(fd),
        };
        cpuid::for_vcpu(self.supported.as_slice(), topology)
    }

    fn set_up(&self, fd: &VcpuFd, vcpu: u8) -> Result<Vec<kvm_cpuid_entry2>, VcpuSetupError> {
        let leaves = self.cpuid(fd, vcpu);
        let entries = CpuId::from_entries(&leaves).map_err(VcpuSetupError::CpuidSize)?;
        fd.set_cpuid2(&entries)
            .map_err(|source| VcpuSetupError::Cpuid { vcpu, source })?;
        set_msrs(fd, vcpu)?;
        Ok(leaves)
    }
}

/// The frequency of a vCPU's time-stamp counter, where KVM knows it.
pub(super) fn tsc_khz(fd: &VcpuFd) -> Option<u32> {
    fd.get_tsc_khz().ok().filter(|&khz| khz > 0)
}

fn set_msrs(fd: &VcpuFd, vcpu: u8) -> Result<(), VcpuSetupError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(VcpuSetupError::CpuidSize)?;
    let done = fd
        .set_msrs(&msrs)
        .map_err(|source| VcpuSetupError::Msrs { vcpu, source })?;
    if done != entries.len() {
        return Err(VcpuSetupError::MsrRefused {
            vcpu,
            done,
            wanted: entries.len(),
        });
    }
    Ok(())
}

/// The PVH entry state: 32-bit protected mode, flat segments, no paging. There is no descriptor table in memory: the
/// protocol leaves it to the kernel to load its own before it touches a segment register.
fn set_registers(fd: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = fd.get_sregs()?;
    set_protected_mode(&mut sregs);
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs {
        rip: entry.address,
        rbx: entry.start_info,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })
}

fn set_protected_mode(sregs: &mut kvm_sregs) {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0x8, 0xb);
    let data = flat(0x10, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0_PROTECTED_MODE;
    sregs.cr4 = 0;
    sregs.efer = 0;
}
