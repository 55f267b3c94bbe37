//! vCPU threads: they run the guest and carry its port and register accesses to the buses. In what state a vCPU starts is
//! `arch`'s business.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    pub gate: Arc<Gate>,
}

/// What vCPUs go through to run the guest. Closed until every thread of the machine is confined, and while the machine
/// is paused.
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    /// How many vCPUs are through.
    inside: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        let inside = self.inside();
        self.open.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(inside);
    }

    pub fn close(&self) {
        self.open.store(false, Ordering::Release);
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn enter(&self) {
        let mut inside = self
            .changed
            .wait_while(self.inside(), |_| !self.is_open())
            .unwrap_or_else(PoisonError::into_inner);
        *inside += 1;
    }

    fn leave(&self) {
        *self.inside() -= 1;
        self.changed.notify_all();
    }

    /// Waits until no vCPU is through, at most for `timeout`; returns whether that is so.
    fn wait_until_empty(&self, timeout: Duration) -> bool {
        let (inside, _) = self
            .changed
            .wait_timeout_while(self.inside(), timeout, |inside| *inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *inside == 0
    }

    fn inside(&self) -> MutexGuard<'_, usize> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU: its thread holds it while the gate is open.
pub type SharedVcpu = Arc<Mutex<VcpuFd>>;

/// The running vCPUs.
pub struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl VcpuThreads {
    /// None yet, behind `gate`.
    pub fn behind(gate: Arc<Gate>) -> Self {
        Self {
            threads: Vec::new(),
            gate,
        }
    }

    /// Starts one thread for each of `vcpus`. They run until the machine ends, also when a later one cannot be started.
    pub fn start(&mut self, vcpus: &[SharedVcpu], context: &VcpuContext) -> io::Result<()> {
        extern "C" fn interrupt_only(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), interrupt_only).map_err(io::Error::from)?;
        for (index, vcpu) in vcpus.iter().enumerate() {
            let (vcpu, context) = (vcpu.clone(), context.clone());
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run(&vcpu, index, &context))?;
            self.threads.push(thread);
        }
        Ok(())
    }

    /// Has every vCPU stand still, its last access to a device carried out, until [`VcpuThreads::resume`].
    pub fn pause(&self) {
        self.gate.close();
        while !self.gate.wait_until_empty(KICK_AGAIN_AFTER) {
            self.kick();
        }
    }

    pub fn resume(&self) {
        self.gate.open();
    }

    /// Whether they are to stand still.
    pub fn are_paused(&self) -> bool {
        !self.gate.is_open()
    }

    /// Waits until every vCPU has left the guest for good. The machine must have ended.
    pub fn join(&mut self) {
        self.gate.open();
        while self.kick() {
            thread::sleep(KICK_AGAIN_AFTER);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked is as finished as any.
            let _ = thread.join();
        }
    }

    /// Has every vCPU leave the guest for a moment. Returns whether there are any left.
    fn kick(&self) -> bool {
        let mut any = false;
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            any = true;
            // It fails only for a thread that has just finished.
            let _ = thread.kill(SIGRTMIN());
        }
        any
    }
}

fn run(vcpu: &SharedVcpu, index: usize, context: &VcpuContext) {
    context.jail.confine_or_abort(Thread::Vcpu);
    let gate = &context.gate;
    loop {
        gate.enter();
        let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        run_while_open(&mut vcpu, index, context);
        drop(vcpu);
        gate.leave();
        if context.ending.report().is_some() {
            return;
        }
    }
}

/// Runs the guest until the gate closes or the machine ends. An access to a device is part of an instruction that KVM
/// carries out to its end when the vCPU is run again, and only then do its registers tell where it is: so before it
/// leaves, the vCPU is run for what is still to be done, and not for one instruction more.
fn run_while_open(vcpu: &mut VcpuFd, index: usize, context: &VcpuContext) {
    let VcpuContext {
        buses,
        ending,
        counters,
        gate,
        ..
    } = context;
    while ending.report().is_none() {
        let leaving = !gate.is_open();
        vcpu.set_kvm_immediate_exit(leaving.into());
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
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if leaving {
                    return;
                }
            }
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
