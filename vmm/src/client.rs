//! The client's end of a machine's control socket, for the daemon. Blocking by default; non-blocking it fits into an event
//! loop, which waits on its descriptor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::control::{Command, MAX_MESSAGE_BYTES, Outcome, Request, ServerMessage, packet};

/// Most messages that are kept while a reply is waited for.
const MAX_PASSED_OVER: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to the machine at {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    /// Its kind is `WouldBlock` when a non-blocking client would have to wait, or a blocking one has waited too long.
    #[error("cannot speak to the machine: {0}")]
    Io(#[from] io::Error),
    #[error("the machine has closed the connection")]
    Closed,
    #[error("the machine sent what is no message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the machine sent {0} messages and no reply")]
    TooMany(usize),
}

impl ClientError {
    /// Whether trying again later may help.
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    next_id: AtomicU64,
    /// What came while [`Client::request`] waited for something else.
    passed_over: Mutex<VecDeque<(ServerMessage, Option<OwnedFd>)>>,
}

impl Client {
    /// Connects to the machine that listens at `path`. Connecting, sending and receiving each fail after `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let dial = || -> io::Result<Self> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let client = Self::from_fd(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?);
            client.set_timeout(timeout)?;
            connect(client.socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(client)
        };
        dial().map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })
    }

    /// Takes over a connected seqpacket socket.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self {
            socket,
            next_id: AtomicU64::new(1),
            passed_over: Mutex::default(),
        }
    }

    /// Sets how long sending and receiving may take while blocking; zero means for ever.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = TimeVal::microseconds(i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX));
        setsockopt(&self.socket, sockopt::SendTimeout, &timeout)?;
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(())
    }

    /// Makes the client non-blocking, or blocking again.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        let flags = OFlag::from_bits_truncate(fcntl(&self.socket, FcntlArg::F_GETFL)?);
        let flags = if nonblocking {
            flags | OFlag::O_NONBLOCK
        } else {
            flags - OFlag::O_NONBLOCK
        };
        fcntl(&self.socket, FcntlArg::F_SETFL(flags))?;
        Ok(())
    }

    /// Sends a request and returns its id, which its reply will bear.
    pub fn send(&self, command: Command) -> Result<u64, ClientError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        packet::send(
            self.socket.as_fd(),
            &Request { id, command },
            None,
            MsgFlags::empty(),
        )?;
        Ok(id)
    }

    /// Receives the next message, and the descriptor that came with it.
    pub fn recv(&self) -> Result<(ServerMessage, Option<OwnedFd>), ClientError> {
        let passed_over = self
            .passed_over
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        passed_over.map_or_else(|| self.recv_from_socket(), Ok)
    }

    /// Sends a request and waits for its reply. Other messages that come before it are kept for [`Client::recv`].
    pub fn request(&self, command: Command) -> Result<(Outcome, Option<OwnedFd>), ClientError> {
        self.reply(self.send(command)?)
    }

    /// Waits for the reply to what was sent with this id, as [`Client::request`] does.
    pub fn reply(&self, sent: u64) -> Result<(Outcome, Option<OwnedFd>), ClientError> {
        loop {
            match self.recv_from_socket()? {
                (ServerMessage::Reply { id, outcome }, descriptor) if id == sent => {
                    return Ok((outcome, descriptor));
                }
                other => {
                    let mut passed_over = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
                    // A machine that keeps its rules has not so many to send; another would fill this process.
                    if passed_over.len() >= MAX_PASSED_OVER {
                        return Err(ClientError::TooMany(MAX_PASSED_OVER));
                    }
                    passed_over.push_back(other);
                }
            }
        }
    }

    fn recv_from_socket(&self) -> Result<(ServerMessage, Option<OwnedFd>), ClientError> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match packet::receive_with_descriptor(self.socket.as_fd(), &mut buffer)? {
            Some((bytes, descriptor)) => Ok((serde_json::from_slice(bytes)?, descriptor)),
            None => Err(ClientError::Closed),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
