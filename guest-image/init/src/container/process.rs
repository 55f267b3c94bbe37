//! Handles on processes (pidfd_open(2)), and what a number that may be somebody else's by now is worth.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// A handle on a process, readable once it has ended.
pub(super) fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process of this number is in this cgroup of the machine. Asked with a handle in hand, the answer is about
/// that process: while it lives its number is nobody else's.
pub(super) fn is_in(pid: Pid, cgroup: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line == format!("0::{cgroup}"))
}
