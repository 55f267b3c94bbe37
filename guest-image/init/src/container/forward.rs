//! A connection that a container made to the task's endpoint, passed on to the host: bytes in both directions until both have
//! ended. A process of its own for each, which is this binary executed anew, as for a command.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_protocol::ENDPOINT_PORT;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, connect, send, shutdown, socket,
};
use nix::unistd::Pid;

use crate::container::join::{begin_anew, handed_over};
use crate::container::start::{StartError, fork};

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-forward";
const NAME_C: &CStr = c"berth-forward";
const BUFFER_BYTES: usize = 16 * 1024;
/// The host gives up sooner on a connection on which nothing comes; this is for a host that has gone.
const IDLE_MS: u16 = 60_000;

/// Starts the process for a connection that was just taken.
pub(crate) fn serve(connection: &OwnedFd) -> Result<Pid, StartError> {
    if let Some(pid) = fork()? {
        return Ok(pid);
    }
    // The container sees that its connection ends; what PID 1 could tell, it has told.
    let _ = begin_anew(NAME_C, &[connection.as_fd()]);
    // SAFETY: ends the process without running destructors, which are the parent's.
    unsafe { libc::_exit(1) }
}

/// What the binary is, executed anew.
pub(crate) fn main() -> i32 {
    let container = handed_over(0);
    match host().and_then(|host| pass_on(container, host)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn host() -> Result<OwnedFd, Errno> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = VsockAddr::new(libc::VMADDR_CID_HOST, ENDPOINT_PORT);
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// Until both directions have ended, one of the sockets has failed, or nothing passes any more.
fn pass_on(container: OwnedFd, host: OwnedFd) -> Result<(), Errno> {
    for socket in [&container, &host] {
        fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut ways = [Way::new(), Way::new()];
    loop {
        ways[0].move_bytes(&container, &host)?;
        ways[1].move_bytes(&host, &container)?;
        if ways.iter().all(|way| way.ended) {
            return Ok(());
        }
        let [out, back] = &ways;
        let flags = [out.reads() | back.writes(), back.reads() | out.writes()];
        // A socket of which nothing is wanted would still tell that its other side is gone, over and over.
        let sockets = [&container, &host].into_iter().zip(flags);
        let mut wanted: Vec<PollFd<'_>> = sockets
            .filter(|(_, flags)| !flags.is_empty())
            .map(|(socket, flags)| PollFd::new(socket.as_fd(), flags))
            .collect();
        match poll(&mut wanted, PollTimeout::from(IDLE_MS)) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One direction.
struct Way {
    buffer: Vec<u8>,
    /// What is read and not yet written.
    held: std::ops::Range<usize>,
    /// Nothing more comes.
    closed: bool,
    /// Its end was passed on.
    ended: bool,
}

impl Way {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            held: 0..0,
            closed: false,
            ended: false,
        }
    }

    fn reads(&self) -> PollFlags {
        match self.held.is_empty() && !self.closed {
            true => PollFlags::POLLIN,
            false => PollFlags::empty(),
        }
    }

    fn writes(&self) -> PollFlags {
        match self.held.is_empty() {
            true => PollFlags::empty(),
            false => PollFlags::POLLOUT,
        }
    }

    /// As much as is there and is taken.
    fn move_bytes(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
        while !self.ended {
            if self.held.is_empty() && !self.closed {
                match nix::unistd::read(from, &mut self.buffer) {
                    Ok(0) => self.closed = true,
                    Ok(count) => self.held = 0..count,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(error) => return Err(error),
                }
            } else if self.held.is_empty() {
                self.ended = true;
                match shutdown(to.as_raw_fd(), Shutdown::Write) {
                    // Its other side went first.
                    Ok(()) | Err(Errno::ENOTCONN) => {}
                    Err(error) => return Err(error),
                }
            } else {
                match send(
                    to.as_raw_fd(),
                    &self.buffer[self.held.clone()],
                    MsgFlags::MSG_NOSIGNAL,
                ) {
                    Ok(count) => self.held.start += count,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn relayed() -> (UnixStream, UnixStream, std::thread::JoinHandle<Result<(), Errno>>) {
        let ((near, container), (far, host)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let relay = std::thread::spawn(move || pass_on(container.into(), host.into()));
        (near, far, relay)
    }

    #[test]
    fn bytes_pass_in_both_directions_and_each_ends_alone() {
        let (mut near, mut far, relay) = relayed();
        let question = vec![7; 300_000];
        let asked = question.clone();
        let mut asking = near.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            asking.write_all(&asked).unwrap();
            asking.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).unwrap();
        writer.join().unwrap();
        assert!(heard == question, "{} bytes", heard.len());
        far.write_all(b"answer").unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(relay.join().unwrap(), Ok(()));
    }

    #[test]
    fn who_goes_away_takes_the_connection_along() {
        let (near, mut far, relay) = relayed();
        drop(near);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).unwrap();
        drop(far);
        assert_eq!(relay.join().unwrap(), Ok(()));
        assert!(heard.is_empty());
    }
}
