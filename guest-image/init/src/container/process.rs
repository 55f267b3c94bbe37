//! Handles on processes (pidfd_open(2)), and what a number that may be somebody else's by now is worth.

use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// A handle on a process, readable once it has ended.
pub(crate) fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a process has ended, by its handle.
pub(super) fn has_ended(process: &OwnedFd) -> Result<bool, Errno> {
    let mut wanted = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut wanted, PollTimeout::ZERO)? > 0)
}

/// Whether the process of this number is in this cgroup of the machine. Asked with a handle in hand, the answer is about
/// that process: while it lives its number is nobody else's.
pub(super) fn is_in(pid: Pid, cgroup: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line == format!("0::{cgroup}"))
}

/// Kills whoever traces this process, which is not reaped yet: its end is then told to its parent.
pub(crate) fn kill_tracer(pid: Pid) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if let Some(tracer) = tracer_in(&status) {
        // SAFETY: takes two numbers. A tracer that has ended just now traces nobody, and numbers are not given again so soon.
        unsafe { libc::kill(tracer, libc::SIGKILL) };
    }
}

fn tracer_in(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line?.trim().parse().ok().filter(|tracer| *tracer > 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    #[test]
    fn nobody_is_killed_where_nobody_traces() {
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t1\n"), None);
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t77\n"), Some(77));
        assert_eq!(tracer_in(""), None);
    }

    #[test]
    fn an_end_that_a_tracer_keeps_to_itself_is_told_once_the_tracer_is_gone() {
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        let mut traced = sleep().spawn().unwrap();
        let number = i32::try_from(traced.id()).unwrap();
        let mut tracer = sleep();
        let trace = move || {
            // SAFETY: takes numbers only.
            let done = unsafe { libc::ptrace(libc::PTRACE_SEIZE, number, 0, 0) };
            Errno::result(done).map(drop).map_err(Into::into)
        };
        // SAFETY: one system call, which is safe after a fork.
        let mut tracer = unsafe { tracer.pre_exec(trace) }.spawn().unwrap();
        let handle = open(Pid::from_raw(number)).unwrap();
        traced.kill().unwrap();
        while !has_ended(&handle).unwrap() {
            std::thread::yield_now();
        }
        assert!(
            traced.try_wait().unwrap().is_none(),
            "the tracer does not hold it"
        );
        kill_tracer(Pid::from_raw(number));
        assert_eq!(tracer.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(traced.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
