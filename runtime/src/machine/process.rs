//! A process that may not be our child, held by a pidfd so that its number cannot come to mean another.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::at;
use crate::task::host::HostError;

/// A running (or just ended) process.
#[derive(Debug)]
pub struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

/// The pid and the time it started at (clock ticks since boot), which together name one process of this boot.
pub fn write_pid_file(path: &Path, pid: u32) -> Result<(), HostError> {
    let started = start_ticks(pid).unwrap_or_default();
    let temporary = path.with_extension("new");
    let write = || {
        fs::write(&temporary, format!("{pid} {started} {}\n", boot_id()?))?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| at(path, "write", &error))
}

impl Process {
    pub fn of_pid(pid: u32) -> Result<Process, HostError> {
        let failed = |error: io::Error| HostError(format!("cannot follow process {pid}: {error}"));
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        let fd = i32::try_from(fd).map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidData)))?;
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just returned to us and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` is the same descriptor until it is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        Ok(Process { pidfd })
    }

    /// The process that the file names, if it still runs.
    pub fn from_pid_file(path: &Path) -> Result<Option<Process>, HostError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(path, "read", &error)),
        };
        let mut words = text.split_whitespace();
        let (Some(pid), Some(started), Some(boot)) = (
            words.next().and_then(|word| word.parse().ok()),
            words.next(),
            words.next(),
        ) else {
            return Ok(None);
        };
        if boot_id().ok().as_deref() != Some(boot) {
            return Ok(None);
        }
        let Ok(process) = Process::of_pid(pid) else {
            return Ok(None);
        };
        // Asked after the descriptor was opened: if it fits now, the descriptor is of this process.
        Ok((start_ticks(pid).as_deref() == Some(started)).then_some(process))
    }

    pub async fn ended(&self) {
        // A pidfd becomes readable when its process ends; an error of the wait is told by the next kill.
        drop(self.pidfd.readable().await);
    }

    pub fn kill(&self) {
        // SAFETY: sends a signal through a descriptor that we hold; no memory is passed.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                libc::c_long::from(self.pidfd.get_ref().as_raw_fd()),
                libc::c_long::from(libc::SIGKILL),
                0 as libc::c_long,
                0 as libc::c_long,
            );
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; none if the process is gone or a zombie.
fn start_ticks(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold anything.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18).map(str::to_owned))?
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
