//! Reading and writing a socket pair by iovecs, without blocking and without signals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libc::iovec;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// The device's end and the far end of a new stream socket pair, for a connection with this window. The kernel's buffer
/// on the way to the host counts as the device's memory: it gets twice the window, as far as the host allows.
pub(super) fn pair(window: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    setsockopt(&near, SndBuf, &(window as usize))?;
    Ok((near.into(), far.into()))
}

fn message(iovecs: &[iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid `msghdr`: no name, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    message
}

/// Sends what the socket takes now.
///
/// # Safety
/// Every iovec must be readable memory.
pub(super) unsafe fn send(socket: impl AsFd, iovecs: &[iovec]) -> io::Result<usize> {
    let message = message(iovecs);
    loop {
        // SAFETY: the descriptor is open, `message` is valid and its memory readable by this function's contract.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, FLAGS) };
        match usize::try_from(sent).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Receives what there is now; 0 is the end of the stream.
///
/// # Safety
/// Every iovec must be writable memory that no Rust reference covers.
pub(super) unsafe fn receive(socket: impl AsFd, iovecs: &[iovec]) -> io::Result<usize> {
    let mut message = message(iovecs);
    loop {
        // SAFETY: the descriptor is open, `message` is valid and its memory writable by this function's contract.
        let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, FLAGS) };
        match usize::try_from(received).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// `shutdown(2)`. A socket whose other end is gone needs none, so its error says nothing new.
pub(super) fn shutdown(socket: impl AsFd, how: libc::c_int) {
    // SAFETY: the descriptor is open.
    let _ = unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), how) };
}
