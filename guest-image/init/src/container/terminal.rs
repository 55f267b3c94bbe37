//! The terminal of a container that asked for one: made by the parent, so that the container's own terminals stay its own.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use berth_protocol::exec::TerminalSize;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::container::relay::resize;

/// Where the guest's own terminals are.
const FOLDER: &str = "/run/berth/pts";
/// Nobody says how large it is.
const SIZE: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    #[error("cannot make {FOLDER}: {0}")]
    Folder(io::Error),
    #[error("cannot mount devpts on {FOLDER}: {0}")]
    Mount(Errno),
    #[error("cannot {step}: {source}")]
    Step { step: &'static str, source: Errno },
}

/// Once, in the parent.
pub(crate) fn prepare() -> Result<(), TerminalError> {
    fs::create_dir_all(FOLDER).map_err(TerminalError::Folder)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("devpts"),
        FOLDER,
        Some("devpts"),
        flags,
        Some("mode=0620,gid=5,ptmxmode=0600"),
    )
    .map_err(TerminalError::Mount)
}

/// A new terminal: the side of who looks at it, which does not block, and the side of the programs.
pub(crate) fn open() -> Result<(OwnedFd, OwnedFd), TerminalError> {
    let path = format!("{FOLDER}/ptmx");
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let main = nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(step("open a terminal"))?;
    let other = peer(&main)?;
    resize(&main, SIZE);
    Ok((main, other))
}

/// Of a terminal whose multiplexer is open: the other side. Only a multiplexer of terminals knows these calls (ioctl_tty(2)).
pub(super) fn peer(main: &OwnedFd) -> Result<OwnedFd, TerminalError> {
    let unlocked: libc::c_int = 0;
    // SAFETY: this call reads one integer, which lives.
    Errno::result(unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })
        .map_err(step("unlock a terminal"))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes numbers only.
    let other = unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let other = Errno::result(other).map_err(step("open the other side of a terminal"))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(other) })
}

/// Standard input becomes the terminal of this process's session.
pub(super) fn take() -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) }).map(drop)
}

fn step(step: &'static str) -> impl Fn(Errno) -> TerminalError {
    move |source| TerminalError::Step { step, source }
}
