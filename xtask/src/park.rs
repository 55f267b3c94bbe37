//! One virtual machine that does nothing, held open for as long as the lab runs. While it lives, no other machine is
//! the first or the last one, and the kernel does not patch its own text at each start and end of a test's machine.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

/// Opens the machine, tells the standard output, and waits to be killed.
pub(crate) fn park() -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = kvm.create_vm().context("cannot create a virtual machine")?;
    let _vcpu = vm.create_vcpu(0).context("cannot create a vCPU")?;
    println!("parked");
    loop {
        std::thread::park();
    }
}
