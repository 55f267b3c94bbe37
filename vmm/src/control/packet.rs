//! One message as one packet of a seqpacket socket. In the control protocol at most one descriptor is beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg};
use serde::Serialize;

use super::MAX_MESSAGE_BYTES;

/// Sends `message` whole. `flags` may make it non-blocking.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
    flags: MsgFlags,
) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    send_with_descriptors(socket, message, &raw, flags)
}

/// As [`send`], with any number of descriptors, which are open.
pub(crate) fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    raw: &[RawFd],
    flags: MsgFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long",
        ));
    }
    let rights = [ControlMessage::ScmRights(raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives a packet without descriptors: whatever was sent beside it, the kernel drops. `None` is the end.
pub(crate) fn receive<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    flags: MsgFlags,
) -> io::Result<Option<&'a [u8]>> {
    let received = recv(socket.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC)?;
    match buffer.get(..received) {
        Some([]) => Ok(None),
        Some(bytes) => Ok(Some(bytes)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {received} bytes"),
        )),
    }
}

/// Receives a packet and the descriptor beside it. `None` is the end.
pub(crate) fn receive_with_descriptor<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> io::Result<Option<(&'a [u8], Option<OwnedFd>)>> {
    match receive_with_descriptors(socket, buffer)? {
        Some((_, descriptors)) if descriptors.len() > 1 => Err(too_long()),
        Some((bytes, mut descriptors)) => Ok(Some((bytes, descriptors.pop()))),
        None => Ok(None),
    }
}

/// Receives a packet and all descriptors beside it. `None` is the end.
pub(crate) fn receive_with_descriptors<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> io::Result<Option<(&'a [u8], Vec<OwnedFd>)>> {
    // Room for as many as can be sent at once (unix(7)): what does not fit would be open here and owned by nobody.
    let mut control = nix::cmsg_space!([RawFd; 253]);
    let mut vectors = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &mut vectors,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let (bytes, flags) = (message.bytes, message.flags);
    let mut descriptors = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
            descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(too_long());
    }
    if bytes == 0 {
        return Ok(None);
    }
    Ok(Some((&buffer[..bytes], descriptors)))
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message that is too long")
}
