//! Two virtual machines that do nothing, held open for as long as the lab runs. While they live, no other machine is the
//! first or the last of its kind, and the kernel does not spend its time on patching its own text at each start and end of a
//! test's machine: KVM has static keys for "some machine", "some vCPU without a local APIC" and "some local APIC that is off".

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

/// Opens the machines, tells the standard output, and waits to be killed.
pub(crate) fn park() -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let bare = kvm.create_vm().context("cannot create a virtual machine")?;
    let _without_apic = bare.create_vcpu(0).context("cannot create a vCPU")?;
    let machine = kvm.create_vm().context("cannot create a virtual machine")?;
    machine
        .create_irq_chip()
        .context("cannot create an interrupt controller")?;
    // Never run, so its local APIC stays off, as it is at reset.
    let _with_apic = machine.create_vcpu(0).context("cannot create a vCPU")?;
    println!("parked");
    loop {
        std::thread::park();
    }
}
