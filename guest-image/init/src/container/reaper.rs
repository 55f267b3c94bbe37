//! The small init of a container that asked for one: passes signals on to the program and reaps orphans.
//!
//! It is this binary again, executed anew inside the container, so that nothing of the guest's PID 1 is left in its
//! memory, which the container may be able to read.

use std::ffi::{CString, c_int};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, execveat};

use crate::wait::reap_one;

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-reaper";
/// What container engines exit with when they fail themselves.
const OWN_FAILURE: i32 = 125;

/// Replaces this process by the reaper of `child`. `init` is this very binary; the caller blocked all signals, so
/// that those which come meanwhile wait.
pub(crate) fn exec(init: impl AsFd, child: Pid) -> Errno {
    let arguments = [NAME.to_owned(), child.to_string()].map(CString::new);
    let [Ok(name), Ok(child)] = arguments else {
        return Errno::EINVAL;
    };
    let no_variables: [CString; 0] = [];
    match execveat(init, c"", &[name, child], &no_variables, AtFlags::AT_EMPTY_PATH) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Waits for signals until the child is gone; the exit code is the child's.
pub(crate) fn run(child: Option<&str>) -> i32 {
    let child = child.and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
    let Some(child) = child.filter(|pid| pid.as_raw() > 1 && is_own(*pid)) else {
        return OWN_FAILURE;
    };
    // Where it is not the first process, in a namespace that containers share, orphans come to it all the same.
    if std::process::id() != 1 && set_child_subreaper(true).is_err() {
        return OWN_FAILURE;
    }
    loop {
        if let Some(code) = reap(child) {
            return code;
        }
        if let Some(signal) = next_signal().filter(|signal| *signal != libc::SIGCHLD) {
            // SAFETY: kill takes two numbers. It fails if the child is gone, which the next turn sees.
            unsafe { libc::kill(child.as_raw(), signal) };
        }
    }
}

/// What the first process of a shared namespace does, with all signals blocked.
pub(crate) fn reap_for_ever() -> ! {
    loop {
        while reap_one().is_some() {}
        next_signal();
    }
}

/// Whether it is a child of this process, whatever it does by now.
fn is_own(pid: Pid) -> bool {
    let only_look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(pid), only_look).is_ok()
}

/// Reaps whoever ended; the exit code once that was the child.
fn reap(child: Pid) -> Option<i32> {
    while let Some((pid, ending)) = reap_one() {
        if pid == child {
            return Some(ending.exit_code());
        }
    }
    None
}

/// All signals are blocked, so this takes each in turn, real-time ones too.
fn next_signal() -> Option<c_int> {
    let all = SigSet::all();
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the right types.
    let result = unsafe { libc::sigwait(std::ptr::from_ref(all.as_ref()), &raw mut signal) };
    (result == 0).then_some(signal)
}
