//! The descriptors that the parent handed over: each is taken exactly once, checked for its kind, and closed on exec.
//! What they are used for is decided elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockopt, sockopt};

use crate::config::{HuskConfig, MachineConfig, StartConfig, WorkingSet};

#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    #[error("{what} is descriptor {fd}, which is not open")]
    NotOpen {
        what: String,
        fd: RawFd,
        source: io::Error,
    },
    #[error("{what} is descriptor {fd}, which was handed over already")]
    Duplicate { what: String, fd: RawFd },
    #[error("{what} is descriptor {fd}, which is not {expected}")]
    Kind {
        what: String,
        fd: RawFd,
        expected: &'static str,
    },
}

/// Everything that a machine was handed.
#[derive(Debug)]
pub struct Handed {
    pub core: Core,
    pub rest: Rest,
}

/// What a machine is made of before it has devices.
#[derive(Debug)]
pub struct Core {
    pub kvm: OwnedFd,
    pub start: Start,
    pub memory: Option<File>,
}

/// What it is given besides. Vectors are in the order of the configuration.
#[derive(Debug)]
pub struct Rest {
    pub snapshot: Option<File>,
    pub control: OwnedFd,
    pub exit: Option<File>,
    pub drives: Vec<File>,
    pub taps: Vec<OwnedFd>,
    pub serial: Option<OwnedFd>,
}

/// What the guest starts from.
#[derive(Debug)]
pub enum Start {
    Boot {
        kernel: File,
        initrd: Option<File>,
        cmdline: String,
    },
    Restore {
        state: File,
        working_set: WorkingSet,
    },
}

impl Handed {
    /// Takes every descriptor that `config` names.
    ///
    /// # Safety
    /// Nothing else in this process may own any of these descriptors.
    pub unsafe fn take(config: &MachineConfig) -> Result<Self, HandedError> {
        let mut taken = Taken::default();
        // SAFETY: the caller promises that nobody else owns the descriptors; `Taken` hands out each number once.
        let mut take = |what: String, fd| unsafe { taken.take(what, fd) };
        Ok(Self {
            core: Core::take_by(&mut take, config)?,
            rest: Rest::take_by(&mut take, config)?,
        })
    }
}

impl Core {
    /// Takes every descriptor that `config` names; the second is its connection to its parent.
    ///
    /// # Safety
    /// As for [`Handed::take`].
    pub unsafe fn take(config: &HuskConfig) -> Result<(Self, OwnedFd), HandedError> {
        let mut taken = Taken::default();
        // SAFETY: as in `Handed::take`.
        let mut take = |what: String, fd| unsafe { taken.take(what, fd) };
        let core = Self::take_by(&mut take, &config.alone())?;
        let parent = take("parent_fd".into(), config.parent_fd)?.seqpacket_connection()?;
        Ok((core, parent))
    }

    fn take_by(
        take: &mut impl FnMut(String, RawFd) -> Result<Claim, HandedError>,
        config: &MachineConfig,
    ) -> Result<Self, HandedError> {
        let kvm = take("kvm_fd".into(), config.kvm_fd)?;
        let start = match config.start {
            StartConfig::Boot {
                kernel_fd,
                initrd_fd,
                ref cmdline,
            } => Start::Boot {
                kernel: take("kernel_fd".into(), kernel_fd)?.regular_file()?,
                initrd: initrd_fd
                    .map(|fd| take("initrd_fd".into(), fd)?.regular_file())
                    .transpose()?,
                cmdline: cmdline.clone(),
            },
            StartConfig::Restore {
                state_fd,
                ref working_set,
            } => Start::Restore {
                state: take("state_fd".into(), state_fd)?.regular_file()?,
                working_set: working_set.clone(),
            },
        };
        let memory = config
            .memory
            .map(|memory| take("the memory".into(), memory.fd)?.regular_file())
            .transpose()?;
        Ok(Self {
            kvm: kvm.fd,
            start,
            memory,
        })
    }
}

impl Rest {
    /// Takes what `config` names and [`Core::take`] has not taken.
    ///
    /// # Safety
    /// As for [`Handed::take`].
    pub unsafe fn take(config: &MachineConfig) -> Result<Self, HandedError> {
        let mut taken = Taken::default();
        // SAFETY: as in `Handed::take`.
        let mut take = |what: String, fd| unsafe { taken.take(what, fd) };
        Self::take_by(&mut take, config)
    }

    fn take_by(
        take: &mut impl FnMut(String, RawFd) -> Result<Claim, HandedError>,
        config: &MachineConfig,
    ) -> Result<Self, HandedError> {
        let mut regular_file =
            |what: &str, fd: Option<RawFd>| fd.map(|fd| take(what.into(), fd)?.regular_file()).transpose();
        let snapshot = regular_file("snapshot_fd", config.snapshot_fd)?;
        let exit = regular_file("exit_fd", config.exit_fd)?;
        let control = take("control_fd".into(), config.control_fd)?.seqpacket_listener()?;
        let drives = config
            .drives
            .iter()
            .map(|drive| take(format!("the drive {:?}", drive.id), drive.fd))
            .collect::<Result<Vec<_>, _>>()?;
        let taps = config
            .nets
            .iter()
            .enumerate()
            .map(|(index, net)| take(format!("the tap of network device {index}"), net.tap_fd))
            .collect::<Result<Vec<_>, _>>()?;
        let serial = config
            .serial_fd
            .map(|fd| take("serial_fd".into(), fd))
            .transpose()?;
        Ok(Self {
            snapshot,
            control,
            exit,
            drives: drives.into_iter().map(Claim::disk).collect::<Result<_, _>>()?,
            taps: taps.into_iter().map(|tap| tap.fd).collect(),
            serial: serial.map(|serial| serial.fd),
        })
    }
}

/// Has the process's table hold so many descriptors as no machine without many connections has. The kernel starts with 64, and to
/// widen the table of a process with several threads it waits until all processors have let go of the old one (RCU), which is the
/// longest wait of a whole restore. So this is for a process with one thread; `open` is any descriptor that is open.
pub fn make_room(open: RawFd) {
    const ROOM: RawFd = 256;
    // SAFETY: F_DUPFD_CLOEXEC with a number that may be no descriptor fails with EBADF, and else makes a new one.
    let last = unsafe { libc::fcntl(open, libc::F_DUPFD_CLOEXEC, ROOM - 1) };
    if last >= 0 {
        // SAFETY: it was just made, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(last) });
    }
}

/// Takes the descriptor that is to be standard error.
///
/// # Safety
/// As for [`Handed::take`].
pub unsafe fn take_log(fd: RawFd) -> Result<File, HandedError> {
    // SAFETY: as in `Handed::take`.
    unsafe { Taken::default().take("log_fd".into(), fd) }?.regular_file()
}

#[derive(Default)]
struct Taken(Vec<RawFd>);

impl Taken {
    /// # Safety
    /// As for [`Handed::take`].
    unsafe fn take(&mut self, what: String, fd: RawFd) -> Result<Claim, HandedError> {
        if self.0.contains(&fd) {
            return Err(HandedError::Duplicate { what, fd });
        }
        // SAFETY: F_GETFD with a number that may be no descriptor fails with EBADF and does nothing.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(HandedError::NotOpen {
                what,
                fd,
                source: io::Error::last_os_error(),
            });
        }
        // SAFETY: it is open (just seen), nobody else owns it (the caller's promise), and it was not taken before.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        self.0.push(fd);
        fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| HandedError::NotOpen {
            what: what.clone(),
            fd,
            source: errno.into(),
        })?;
        Ok(Claim { what, fd: owned })
    }
}

/// A taken descriptor whose kind is not known yet.
struct Claim {
    what: String,
    fd: OwnedFd,
}

impl Claim {
    fn wrong_kind(&self, expected: &'static str) -> HandedError {
        HandedError::Kind {
            what: self.what.clone(),
            fd: self.fd.as_raw_fd(),
            expected,
        }
    }

    fn file(
        self,
        expected: &'static str,
        is: impl Fn(&std::fs::FileType) -> bool,
    ) -> Result<File, HandedError> {
        let refused = self.wrong_kind(expected);
        let file = File::from(self.fd);
        match file.metadata() {
            Ok(metadata) if is(&metadata.file_type()) => Ok(file),
            _ => Err(refused),
        }
    }

    fn regular_file(self) -> Result<File, HandedError> {
        self.file("a regular file", |kind| kind.is_file())
    }

    fn disk(self) -> Result<File, HandedError> {
        self.file("a regular file or a block device", |kind| {
            kind.is_file() || kind.is_block_device()
        })
    }

    fn seqpacket_listener(self) -> Result<OwnedFd, HandedError> {
        let seqpacket = getsockopt(&self.fd, sockopt::SockType) == Ok(SockType::SeqPacket);
        let listening = getsockopt(&self.fd, sockopt::AcceptConn) == Ok(true);
        if seqpacket && listening {
            Ok(self.fd)
        } else {
            Err(self.wrong_kind("a listening seqpacket socket"))
        }
    }

    fn seqpacket_connection(self) -> Result<OwnedFd, HandedError> {
        let seqpacket = getsockopt(&self.fd, sockopt::SockType) == Ok(SockType::SeqPacket);
        if seqpacket && getpeername::<UnixAddr>(self.fd.as_raw_fd()).is_ok() {
            Ok(self.fd)
        } else {
            Err(self.wrong_kind("a connected seqpacket socket"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_descriptors_before_there_are_threads() {
        let room = || -> usize {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
            line.unwrap().trim().parse().unwrap()
        };
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let file = tempfile::tempfile().unwrap();
        let before = open();
        make_room(file.as_raw_fd());
        assert!(room() >= 256);
        assert_eq!(open(), before);
        // What is not open is told of by whoever takes it.
        make_room(-1);
    }
}
