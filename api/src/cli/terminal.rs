//! The terminal that the command line runs in: its size, and its raw mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use berth_runtime::protocol::exec::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Of a terminal that does not tell.
const USUAL: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// Of the terminal on standard input, or else on standard output.
pub(super) fn size() -> TerminalSize {
    let of = |fd: i32| {
        let mut size = nix::libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the call writes one `winsize`, which lives.
        let told = unsafe { window_size(fd, &raw mut size) };
        told.ok()
            .filter(|_| size.ws_row > 0 && size.ws_col > 0)
            .map(|_| TerminalSize {
                columns: size.ws_col,
                rows: size.ws_row,
            })
    };
    of(io::stdin().as_raw_fd())
        .or_else(|| of(io::stdout().as_raw_fd()))
        .unwrap_or(USUAL)
}

/// While this lives, keys reach the command as they are pressed, and none is this program's.
pub(super) struct RawMode(Termios);

impl RawMode {
    pub(super) fn begin() -> io::Result<RawMode> {
        let before = tcgetattr(io::stdin().as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}
