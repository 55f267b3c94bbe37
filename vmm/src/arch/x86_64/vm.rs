//! The parts of a virtual machine that the kernel holds: memory slots and the interrupt controllers.

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout;
use crate::devices::virtio::mmio::RegisterPages;

/// The version of the KVM interface that has not changed since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// What KVM must be able to do.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "a movable task state segment"),
];

/// The memory slot of the virtio registers; the guest's memory has the ones before it, at most two.
const REGISTERS_SLOT: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("kvm_fd speaks kvm version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    #[error("kvm has no {0}")]
    Missing(&'static str),
    #[error("cannot create a virtual machine: {0}")]
    Create(kvm_ioctls::Error),
    #[error("cannot set up the virtual machine's {what}: {source}")]
    SetUp {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("cannot give the virtual machine its memory at {address:#x}: {source}")]
    Memory { address: u64, source: kvm_ioctls::Error },
}

/// Creates a virtual machine with `memory` and interrupt controllers, without vCPUs. The memory must stay mapped for as
/// long as a vCPU may run: [`crate::machine::Machine`] sees to that.
pub fn create(kvm: &Kvm, memory: &GuestMemoryMmap) -> Result<VmFd, VmError> {
    match kvm.get_api_version() {
        KVM_API_VERSION => {}
        other => return Err(VmError::ApiVersion(other)),
    }
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(VmError::Missing(name));
    }
    let vm = kvm.create_vm().map_err(VmError::Create)?;
    let step = |what| move |source| VmError::SetUp { what, source };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(step("identity map"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(step("task state segment"))?;
    vm.create_irq_chip().map_err(step("interrupt controllers"))?;
    disable_performance_counters(&vm).map_err(step("performance counters"))?;
    for (slot, region) in memory.iter().enumerate() {
        let address = region.start_addr().raw_value();
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is one mapping of `len` bytes, and stays mapped while vCPUs run (see above). Slots are
        // numbered apart and ranges do not overlap, which `GuestMemoryMmap` checked.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| VmError::Memory { address, source })?;
    }
    Ok(vm)
}

/// CPUID denies them, but a guest may use an old processor's counters without asking.
fn disable_performance_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let can = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if can as u32 & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut disable = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    disable.args[0] = KVM_PMU_CAP_DISABLE.into();
    vm.enable_cap(&disable)
}

/// Lets the guest read the registers of its virtio devices without leaving it, where KVM can do that. The pages must stay
/// for as long as a vCPU may run.
pub fn map_registers(vm: &VmFd, pages: &RegisterPages) -> Result<(), VmError> {
    let (start, bytes) = pages.as_raw();
    if bytes == 0 || !vm.check_extension(Cap::ReadonlyMem) {
        return Ok(());
    }
    let slot = kvm_userspace_memory_region {
        slot: REGISTERS_SLOT,
        guest_phys_addr: layout::VIRTIO_MMIO,
        memory_size: bytes as u64,
        userspace_addr: start as u64,
        flags: KVM_MEM_READONLY,
    };
    // SAFETY: the pages are `bytes` long, page-aligned, and stay (see above). The guest only reads them, and this process
    // accesses them only as atomics. The slot's number and addresses are apart from those of the guest's memory.
    unsafe { vm.set_user_memory_region(slot) }.map_err(|source| VmError::Memory {
        address: layout::VIRTIO_MMIO,
        source,
    })
}

/// Sends a non-maskable interrupt to the first vCPU, as a message to its local APIC. Returns whether it was taken.
pub fn inject_nmi(vm: &VmFd) -> Result<bool, kvm_ioctls::Error> {
    const DELIVERY_NMI: u32 = 4 << 8;
    let message = kvm_msi {
        address_lo: layout::LOCAL_APIC,
        data: DELIVERY_NMI,
        ..Default::default()
    };
    Ok(vm.signal_msi(message)? > 0)
}
