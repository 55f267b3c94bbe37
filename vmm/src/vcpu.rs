//! vCPU threads: they run the guest and carry its port and register accesses to the buses. In what state a vCPU starts is
//! `arch`'s business.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::config::ExitReason;
use crate::ending::Ending;
use crate::jail::{Jail, Thread};
use crate::metrics::{Counters, count};

/// How long to wait for a vCPU before it is kicked again. A kick that comes just before the thread enters the guest is
/// lost; asking again is simpler than closing that gap.
const KICK_AGAIN_AFTER: Duration = Duration::from_micros(500);

/// The two address spaces of a guest.
#[derive(Default)]
pub struct Buses {
    pub mmio: Bus,
    pub pio: Bus,
}

/// What all vCPUs share.
#[derive(Clone)]
pub struct VcpuContext {
    pub buses: Arc<Buses>,
    pub ending: Arc<Ending>,
    pub counters: Arc<Counters>,
    pub jail: Jail,
    /// Locked for writing until every thread of the machine is confined; no guest code runs before.
    pub gate: Arc<RwLock<()>>,
}

/// The running vCPUs.
#[derive(Default)]
pub struct VcpuThreads(Vec<JoinHandle<()>>);

impl VcpuThreads {
    /// Starts one thread for each of `vcpus`. They run until the machine ends, also when a later one cannot be started.
    pub fn start(&mut self, vcpus: Vec<VcpuFd>, context: &VcpuContext) -> io::Result<()> {
        extern "C" fn interrupt_only(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), interrupt_only).map_err(io::Error::from)?;
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let context = context.clone();
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run(vcpu, index, &context))?;
            self.0.push(thread);
        }
        Ok(())
    }

    /// Waits until every vCPU has left the guest for good. The machine must have ended.
    pub fn join(&mut self) {
        while self.0.iter().any(|thread| !thread.is_finished()) {
            for thread in self.0.iter().filter(|thread| !thread.is_finished()) {
                // It fails only for a thread that has just finished.
                let _ = thread.kill(SIGRTMIN());
            }
            thread::sleep(KICK_AGAIN_AFTER);
        }
        for thread in self.0.drain(..) {
            // A thread that panicked is as finished as any.
            let _ = thread.join();
        }
    }
}

fn run(mut vcpu: VcpuFd, index: usize, context: &VcpuContext) {
    let VcpuContext {
        buses,
        ending,
        counters,
        jail,
        gate,
    } = context;
    jail.confine_or_abort(Thread::Vcpu);
    drop(gate.read().unwrap_or_else(PoisonError::into_inner));
    while ending.report().is_none() {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counters.exits_io, 1);
                claimed(counters, buses.pio.write(u64::from(port), data));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counters.exits_io, 1);
                claimed(counters, buses.pio.read(u64::from(port), data));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counters.exits_mmio, 1);
                claimed(counters, buses.mmio.write(address, data));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counters.exits_mmio, 1);
                claimed(counters, buses.mmio.read(address, data));
            }
            Ok(exit) => {
                count(&counters.exits_other, 1);
                if let Some((reason, detail)) = end_of_machine(&exit) {
                    let detail = detail.map(|detail| format!("vcpu {index}: {detail}"));
                    ending.end(reason, detail);
                }
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => ending.end(
                ExitReason::Error,
                Some(format!("cannot run vcpu {index}: {error}")),
            ),
        }
    }
}

fn claimed(counters: &Counters, claimed: bool) {
    if !claimed {
        count(&counters.unclaimed_accesses, 1);
    }
}

/// What an exit other than a bus access means. KVM halts a vCPU and wakes it by itself; where it does report a halt, the
/// vCPU goes on at the next interrupt all the same.
fn end_of_machine(exit: &VcpuExit) -> Option<(ExitReason, Option<String>)> {
    let error = |detail: String| Some((ExitReason::Error, Some(detail)));
    match exit {
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        VcpuExit::Shutdown => Some((ExitReason::TripleFault, None)),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some((ExitReason::PowerOff, None)),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Some((ExitReason::Reset, None)),
        VcpuExit::SystemEvent(kind, _) => error(format!("system event {kind}")),
        VcpuExit::InternalError => error("kvm cannot emulate what the guest does".into()),
        VcpuExit::FailEntry(reason, cpu) => {
            error(format!("cannot enter the guest on cpu {cpu}: {reason:#x}"))
        }
        other => error(format!("unexpected exit {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_end_the_machine_for_the_right_reason() {
        let reason = |exit: VcpuExit| end_of_machine(&exit).map(|(reason, _)| reason);
        assert_eq!(reason(VcpuExit::Hlt), None);
        assert_eq!(reason(VcpuExit::Shutdown), Some(ExitReason::TripleFault));
        assert_eq!(reason(VcpuExit::SystemEvent(1, &[])), Some(ExitReason::PowerOff));
        assert_eq!(reason(VcpuExit::SystemEvent(2, &[])), Some(ExitReason::Reset));
        assert_eq!(reason(VcpuExit::SystemEvent(3, &[])), Some(ExitReason::Error));
        assert_eq!(reason(VcpuExit::InternalError), Some(ExitReason::Error));
        assert_eq!(reason(VcpuExit::FailEntry(1, 0)), Some(ExitReason::Error));
    }
}
