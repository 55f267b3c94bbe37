//! The connection to the host: made again whenever it breaks, read into frames, written without blocking. What the
//! frames mean is the supervisor's concern.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_protocol::frame::{Decoder, Frame, FrameError, encode_message, encode_output};
use berth_protocol::message::{Stream, ToGuest, ToHost};
use berth_protocol::{HOST_PORT, MAX_OUTPUT_BYTES};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, connect, getsockopt, recv, send, socket, sockopt,
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Output is framed while less than this waits to be written.
const OUTPUT_BACKLOG_BYTES: usize = 2 * MAX_OUTPUT_BYTES;
/// A host that asks without reading the answers is not listened to beyond this.
const ANSWER_BACKLOG_BYTES: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot connect to the host: {0}")]
    Connect(Errno),
    #[error("cannot read from the host: {0}")]
    Read(Errno),
    #[error("cannot write to the host: {0}")]
    Write(Errno),
    #[error("the host closed the connection")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The connection in whatever state it is.
#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Connecting { socket: OwnedFd },
    Connected(Box<Connection>),
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    unwritten: Vec<u8>,
    written: usize,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Waiting {
                until: Instant::now(),
            },
            pause: FIRST_PAUSE,
        }
    }

    /// When [`Self::advance`] has something to do on its own.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// The socket and the events to wait for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, EpollFlags)> {
        match &self.state {
            State::Waiting { .. } => None,
            State::Connecting { socket } => Some((socket.as_fd(), EpollFlags::EPOLLOUT)),
            State::Connected(connection) => {
                let mut events = EpollFlags::empty();
                events.set(EpollFlags::EPOLLIN, connection.backlog() < ANSWER_BACKLOG_BYTES);
                events.set(EpollFlags::EPOLLOUT, connection.backlog() > 0);
                Some((connection.socket.as_fd(), events))
            }
        }
    }

    pub(crate) fn connected(&self) -> bool {
        matches!(self.state, State::Connected(_))
    }

    /// Tries to get connected; true when that just happened.
    pub(crate) fn advance(&mut self, now: Instant) -> Result<bool, LinkError> {
        let outcome = match &self.state {
            State::Waiting { until } if *until <= now => self.begin_connecting(),
            State::Connecting { socket } => finish_connecting(socket),
            _ => return Ok(false),
        };
        match outcome {
            Ok(true) => {
                self.connection_made();
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) => Err(LinkError::Connect(error)),
        }
    }

    /// Gives the connection up; another try comes after a pause, which grows until the host greets.
    pub(crate) fn lose(&mut self, now: Instant) {
        self.state = State::Waiting {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// The host spoke as it should: the next loss is followed by a new try almost at once.
    pub(crate) fn greeted(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// Reads what is there, as far as `buffer` goes; the frames then come from [`Self::next_frame`].
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<(), LinkError> {
        let State::Connected(connection) = &mut self.state else {
            return Ok(());
        };
        match recv(connection.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => {
                connection.decoder.push(&buffer[..count]);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(LinkError::Read(error)),
        }
    }

    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<ToGuest>>, LinkError> {
        match &mut self.state {
            State::Connected(connection) => Ok(connection.decoder.next()?),
            _ => Ok(None),
        }
    }

    /// Queues a message; without a connection it is dropped, as the next `Hello` tells all that matters.
    pub(crate) fn send(&mut self, message: &ToHost) -> Result<(), LinkError> {
        match &mut self.state {
            State::Connected(connection) => Ok(encode_message(message, &mut connection.unwritten)?),
            _ => Ok(()),
        }
    }

    /// Whether there is room for more output.
    pub(crate) fn takes_output(&self) -> bool {
        match &self.state {
            State::Connected(connection) => connection.backlog() < OUTPUT_BACKLOG_BYTES,
            _ => false,
        }
    }

    /// Queues a piece of output of at most [`MAX_OUTPUT_BYTES`].
    pub(crate) fn send_output(
        &mut self,
        container: &str,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), LinkError> {
        match &mut self.state {
            State::Connected(connection) => Ok(encode_output(
                container,
                stream,
                offset,
                bytes,
                &mut connection.unwritten,
            )?),
            _ => Ok(()),
        }
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), LinkError> {
        match &mut self.state {
            State::Connected(connection) => connection.flush(),
            _ => Ok(()),
        }
    }

    pub(crate) fn flushed(&self) -> bool {
        match &self.state {
            State::Connected(connection) => connection.backlog() == 0,
            _ => true,
        }
    }

    /// Starts to connect; true if that was all.
    fn begin_connecting(&mut self) -> Result<bool, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        let outcome = connect(
            socket.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_HOST, HOST_PORT),
        );
        self.state = State::Connecting { socket };
        match outcome {
            Ok(()) => Ok(true),
            Err(Errno::EINPROGRESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn connection_made(&mut self) {
        let until = Instant::now();
        self.state = match std::mem::replace(&mut self.state, State::Waiting { until }) {
            State::Connecting { socket } => State::Connected(Box::new(Connection {
                socket,
                decoder: Decoder::new(),
                unwritten: Vec::new(),
                written: 0,
            })),
            other => other,
        };
    }
}

/// True once the socket is connected, which is when it can be written to without an error of its own.
fn finish_connecting(socket: &OwnedFd) -> Result<bool, Errno> {
    let mut poll = [nix::poll::PollFd::new(
        socket.as_fd(),
        nix::poll::PollFlags::POLLOUT,
    )];
    if nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO)? == 0 {
        return Ok(false);
    }
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(true),
        error => Err(Errno::from_raw(error)),
    }
}

impl Connection {
    fn backlog(&self) -> usize {
        self.unwritten.len() - self.written
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        while self.backlog() > 0 {
            let rest = &self.unwritten[self.written..];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), rest, flags) {
                Ok(count) => self.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(LinkError::Write(error)),
            }
        }
        // Moving the rest to the front only once half is written keeps the cost per byte constant.
        if self.written * 2 >= self.unwritten.len() {
            self.unwritten.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
