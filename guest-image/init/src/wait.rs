//! Reaping children, with every signal number: the types of `nix` know no real-time signals.

use std::io;

use nix::unistd::Pid;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signaled(i32),
}

impl Ending {
    /// As shells give it: 128 + signal when a signal ended it.
    pub(crate) fn exit_code(self) -> i32 {
        match self {
            Ending::Exited(code) => code,
            Ending::Signaled(signal) => 128 + signal,
        }
    }

    pub(crate) fn signal(self) -> Option<i32> {
        match self {
            Ending::Exited(_) => None,
            Ending::Signaled(signal) => Some(signal),
        }
    }
}

/// Reaps one child that has ended; none if none has.
pub(crate) fn reap_one() -> Option<(Pid, Ending)> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            0 => return None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            pid if libc::WIFEXITED(status) => {
                return Some((Pid::from_raw(pid), Ending::Exited(libc::WEXITSTATUS(status))));
            }
            pid if libc::WIFSIGNALED(status) => {
                return Some((Pid::from_raw(pid), Ending::Signaled(libc::WTERMSIG(status))));
            }
            _ => {}
        }
    }
}
