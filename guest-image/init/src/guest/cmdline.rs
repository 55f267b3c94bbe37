//! The kernel command line, read before anything is mounted.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// `FSCONFIG_CMD_CREATE` of fsconfig(2).
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// More than any architecture's `COMMAND_LINE_SIZE`.
const MAX_COMMAND_LINE_BYTES: u64 = 64 * 1024;

/// The words of the kernel command line.
#[derive(Debug)]
pub(crate) struct CommandLine(String);

impl CommandLine {
    /// Reads it from a procfs of its own that is attached nowhere: nobody else sees it, and a `/proc` that somebody
    /// put there is not believed.
    pub(crate) fn read() -> io::Result<Self> {
        let proc = detached_procfs()?;
        let file = openat(
            &proc,
            "cmdline",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = Vec::new();
        File::from(file)
            .take(MAX_COMMAND_LINE_BYTES)
            .read_to_end(&mut text)?;
        Ok(Self(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Whether `word` stands on it, as a whole word.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|found| found == word)
    }
}

fn detached_procfs() -> io::Result<OwnedFd> {
    let name: &CStr = c"proc";
    // SAFETY: fsopen reads the string, which lives on, and returns a new descriptor or an error.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let no_string = std::ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value; both pointers are null.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            no_string,
            no_string,
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsmount takes no pointers and returns a new descriptor or an error.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel just returned this descriptor; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_count() {
        let line = CommandLine("console=ttyS0 berth.guest=1 panic=-1\n".into());
        assert!(line.has("berth.guest=1"));
        assert!(line.has("panic=-1"));
        assert!(!line.has("berth.guest"));
        assert!(!CommandLine("xberth.guest=1 berth.guest=10".into()).has("berth.guest=1"));
    }
}
