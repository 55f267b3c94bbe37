//! The machine's end of its control socket, on the main thread. It speaks to clients; what they ask for is done behind
//! [`Controlled`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockFlag, accept4, shutdown};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{
    BalloonReport, Command, Info, LimitedDevice, MAX_BALLOON_WAIT_MS, MAX_REQUEST_BYTES, Metrics, Outcome,
    Request, ServerMessage, packet,
};
use crate::config::LimitsConfig;

/// Most clients at a time; more are turned away.
pub const MAX_CLIENTS: usize = 16;

/// How long new clients wait when the process has no descriptor left for one.
const ACCEPT_AGAIN_MS: i32 = 100;

const ENDING: u64 = 0;
const LISTENER: u64 = 1;
const ANSWERED: u64 = 2;
const FIRST_CLIENT: u64 = 3;

/// Called once with one end of a socket pair, or with why there is none.
pub type ConnectDone = Box<dyn FnOnce(Result<OwnedFd, String>) + Send>;
/// Called once with how it stands with the balloon, or with why there is none.
pub type BalloonDone = Box<dyn FnOnce(Result<BalloonReport, String>) + Send>;
/// Gets each connection that the guest makes, with its port; gives it back when there is nobody to take it.
pub type ConnectionListener = Box<dyn Fn(u32, OwnedFd) -> Result<(), OwnedFd> + Send + Sync>;

/// The streams between the guest and its host.
pub trait GuestStreams {
    fn connect(&self, port: u32, done: ConnectDone);
    fn set_listener(&self, listener: Option<ConnectionListener>);
}

/// What a client can have done.
pub trait Controlled {
    fn info(&self) -> Info;
    fn metrics(&self) -> Metrics;
    fn inject_nmi(&self) -> Result<(), String>;
    /// None for a machine without vsock.
    fn streams(&self) -> Option<&dyn GuestStreams>;
    fn pause(&self);
    fn resume(&self);
    fn snapshot(&self) -> Result<(), String>;
    fn set_limits(&self, device: &LimitedDevice, limits: Option<LimitsConfig>) -> Result<(), String>;
    fn set_balloon(&self, target_mib: u32) -> Result<(), String>;
    /// Asks the guest, which has so much time to answer.
    fn balloon(&self, wait: Duration, done: BalloonDone);
    fn stop(&self);
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot set up the control server's events: {0}")]
    Events(io::Error),
    #[error("cannot wait for control clients: {0}")]
    Wait(io::Error),
}

/// The server.
pub struct ControlServer {
    listener: OwnedFd,
    listening: bool,
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    attached: Option<u64>,
    answered: Arc<AnsweredQueue>,
    buffer: Vec<u8>,
}

struct Client {
    socket: Arc<OwnedFd>,
    /// A request is being carried out; the next is not read before its reply is sent, so that replies keep their order.
    busy: bool,
}

/// What the guest has answered, on its way from the threads of the devices.
struct AnsweredQueue {
    results: Mutex<Vec<Answered>>,
    event: EventFd,
}

struct Answered {
    client: u64,
    request: u64,
    outcome: Outcome,
    descriptor: Option<OwnedFd>,
}

impl AnsweredQueue {
    fn push(&self, answered: Answered) {
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(answered);
        // There are at most as many unread as clients.
        let _ = self.event.write(1);
    }

    fn take(&self) -> Vec<Answered> {
        // It fails when there is nothing new, and then there is nothing to take.
        let _ = self.event.read();
        std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ControlServer {
    /// Serves clients of `listener`, a listening seqpacket socket, until `ending` is readable.
    pub fn new(listener: OwnedFd, ending: &EventFd) -> Result<Self, ServerError> {
        let events = || -> io::Result<Self> {
            nix::fcntl::fcntl(
                &listener,
                nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
            )?;
            let epoll = Epoll::new()?;
            let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            let add = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
            add(ending.as_raw_fd(), ENDING)?;
            add(listener.as_raw_fd(), LISTENER)?;
            add(event.as_raw_fd(), ANSWERED)?;
            Ok(Self {
                listener,
                listening: true,
                epoll,
                clients: BTreeMap::new(),
                next_client: FIRST_CLIENT,
                attached: None,
                answered: Arc::new(AnsweredQueue {
                    results: Mutex::default(),
                    event,
                }),
                buffer: vec![0; MAX_REQUEST_BYTES],
            })
        };
        events().map_err(ServerError::Events)
    }

    /// Serves until the machine has ended.
    pub fn run(&mut self, machine: &dyn Controlled) -> Result<(), ServerError> {
        let mut events = [EpollEvent::default(); MAX_CLIENTS];
        loop {
            let timeout = if self.listening { -1 } else { ACCEPT_AGAIN_MS };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ServerError::Wait(error)),
            };
            if !self.listening {
                self.listen(true);
            }
            for event in &events[..count] {
                match event.data() {
                    ENDING => return Ok(()),
                    LISTENER => self.accept(),
                    ANSWERED => self.answer_waiting(machine),
                    client => self.on_client(client, event.event_set(), machine),
                }
            }
        }
    }

    fn on_client(&mut self, client: u64, events: EventSet, machine: &dyn Controlled) {
        if events.contains(EventSet::IN) {
            self.serve(client, machine);
        } else {
            self.drop_client(client, machine);
        }
    }

    /// Answers what clients have asked already, then leaves them. For when the machine has ended.
    pub fn finish(&mut self, machine: &dyn Controlled) {
        self.answer_waiting(machine);
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for client in clients {
            self.serve(client, machine);
            self.drop_client(client, machine);
        }
    }

    fn listen(&mut self, listening: bool) {
        let events = if listening {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        let event = EpollEvent::new(events, LISTENER);
        self.listening = self
            .epoll
            .ctl(ControlOperation::Modify, self.listener.as_raw_fd(), event)
            .is_ok()
            && listening;
    }

    fn accept(&mut self) {
        let socket = match accept4(
            self.listener.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        ) {
            // SAFETY: accept4 has just made this descriptor, and nobody else knows of it.
            Ok(raw) => unsafe { OwnedFd::from_raw_fd(raw) },
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            // No descriptor is left; the client stays in the listener's queue, and would wake this thread for ever.
            Err(_) => return self.listen(false),
        };
        self.add_client(socket);
    }

    /// One client more, unless there are too many.
    fn add_client(&mut self, socket: OwnedFd) {
        let token = self.next_client;
        let event = EpollEvent::new(EventSet::IN, token);
        if self.clients.len() < MAX_CLIENTS
            && self
                .epoll
                .ctl(ControlOperation::Add, socket.as_raw_fd(), event)
                .is_ok()
        {
            self.next_client += 1;
            self.clients.insert(
                token,
                Client {
                    socket: Arc::new(socket),
                    busy: false,
                },
            );
        }
    }

    /// Reads one request and answers it.
    fn serve(&mut self, token: u64, machine: &dyn Controlled) {
        let Some(client) = self.clients.get(&token).filter(|client| !client.busy) else {
            return;
        };
        let received = packet::receive(client.socket.as_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT);
        let request = match received {
            Ok(Some(bytes)) => serde_json::from_slice::<Request>(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.drop_client(token, machine),
        };
        match request {
            Ok(Request { id, command }) => self.carry_out(token, id, command, machine),
            // Without a readable id there is nothing to answer to.
            Err(_) => self.drop_client(token, machine),
        }
    }

    fn carry_out(&mut self, client: u64, id: u64, command: Command, machine: &dyn Controlled) {
        let no_vsock = || Outcome::Error {
            error: "the machine has no vsock device".into(),
        };
        let outcome = match command {
            Command::Info => Outcome::Info(machine.info()),
            Command::Metrics => Outcome::Metrics(machine.metrics()),
            Command::Nmi => done(machine.inject_nmi()),
            Command::Pause => {
                machine.pause();
                Outcome::Done
            }
            Command::Resume => {
                machine.resume();
                Outcome::Done
            }
            Command::Snapshot => done(machine.snapshot()),
            Command::SetLimits { device, limits } => done(machine.set_limits(&device, limits)),
            Command::SetBalloon { target_mib } => done(machine.set_balloon(target_mib)),
            Command::Balloon { wait_ms } if wait_ms > MAX_BALLOON_WAIT_MS => Outcome::Error {
                error: format!("wait_ms is {wait_ms}, more than {MAX_BALLOON_WAIT_MS}"),
            },
            Command::Balloon { wait_ms } => {
                let mut answer = self.answer_later(client, id);
                let give = move |result| match result {
                    Ok(report) => answer.give(Outcome::Balloon(report), None),
                    Err(error) => answer.give(Outcome::Error { error }, None),
                };
                return machine.balloon(Duration::from_millis(wait_ms.into()), Box::new(give));
            }
            Command::Attach => match machine.streams() {
                Some(streams) => return self.attach(client, id, streams, machine),
                None => no_vsock(),
            },
            Command::VsockConnect { port } => match machine.streams() {
                Some(streams) => return self.connect(client, id, port, streams),
                None => no_vsock(),
            },
            Command::Stop => {
                self.reply(client, id, Outcome::Done, None, machine);
                return machine.stop();
            }
        };
        self.reply(client, id, outcome, None, machine);
    }

    /// The reply goes first: connections that wait for somebody follow it.
    fn attach(&mut self, token: u64, id: u64, streams: &dyn GuestStreams, machine: &dyn Controlled) {
        self.reply(token, id, Outcome::Done, None, machine);
        let Some(client) = self.clients.get(&token) else {
            return;
        };
        let socket = client.socket.clone();
        self.attached = Some(token);
        streams.set_listener(Some(Box::new(move |port, stream| {
            let event = ServerMessage::VsockConnection { port };
            send(&socket, &event, Some(stream.as_fd())).map_err(|_| {
                // A client that does not read loses its attachment; this thread finds the socket shut and drops it.
                let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
                stream
            })
        })));
    }

    fn connect(&mut self, token: u64, id: u64, port: u32, streams: &dyn GuestStreams) {
        let mut answer = self.answer_later(token, id);
        let give = move |result| match result {
            Ok(stream) => answer.give(Outcome::Done, Some(stream)),
            Err(error) => answer.give(Outcome::Error { error }, None),
        };
        streams.connect(port, Box::new(give));
    }

    /// The answer is the guest's; until it comes the client has to wait.
    fn answer_later(&mut self, client: u64, request: u64) -> LaterAnswer {
        self.set_busy(client, true);
        LaterAnswer {
            queue: self.answered.clone(),
            client,
            request,
            given: false,
        }
    }

    fn set_busy(&mut self, token: u64, busy: bool) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        client.busy = busy;
        let events = if busy { EventSet::empty() } else { EventSet::IN };
        // The socket is in the set, or the client would not be here.
        let _ = self.epoll.ctl(
            ControlOperation::Modify,
            client.socket.as_raw_fd(),
            EpollEvent::new(events, token),
        );
    }

    fn answer_waiting(&mut self, machine: &dyn Controlled) {
        for Answered {
            client,
            request,
            outcome,
            descriptor,
        } in self.answered.take()
        {
            self.set_busy(client, false);
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            self.reply(client, request, outcome, descriptor, machine);
        }
    }

    /// Sends without waiting: a client that does not read its replies is dropped.
    fn reply(
        &mut self,
        token: u64,
        id: u64,
        outcome: Outcome,
        descriptor: Option<BorrowedFd<'_>>,
        machine: &dyn Controlled,
    ) {
        let Some(client) = self.clients.get(&token) else {
            return;
        };
        if send(&client.socket, &ServerMessage::Reply { id, outcome }, descriptor).is_err() {
            self.drop_client(token, machine);
        }
    }

    fn drop_client(&mut self, token: u64, machine: &dyn Controlled) {
        let Some(client) = self.clients.remove(&token) else {
            return;
        };
        // The listener of an attached client keeps its socket open until it is replaced.
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            client.socket.as_raw_fd(),
            EpollEvent::default(),
        );
        let _ = shutdown(client.socket.as_raw_fd(), Shutdown::Both);
        if self.attached == Some(token) {
            self.attached = None;
            if let Some(streams) = machine.streams() {
                streams.set_listener(None);
            }
        }
    }
}

fn done(result: Result<(), String>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Error { error },
    }
}

fn send(socket: &OwnedFd, message: &ServerMessage, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    packet::send(socket.as_fd(), message, descriptor, MsgFlags::MSG_DONTWAIT)
}

/// Makes sure that a client gets an answer even if the device forgets about it.
struct LaterAnswer {
    queue: Arc<AnsweredQueue>,
    client: u64,
    request: u64,
    given: bool,
}

impl LaterAnswer {
    fn give(&mut self, outcome: Outcome, descriptor: Option<OwnedFd>) {
        self.given = true;
        self.queue.push(Answered {
            client: self.client,
            request: self.request,
            outcome,
            descriptor,
        });
    }
}

impl Drop for LaterAnswer {
    fn drop(&mut self) {
        if !self.given {
            let error = "the guest was not waited for".into();
            self.give(Outcome::Error { error }, None);
        }
    }
}

#[cfg(feature = "fuzzing")]
mod fuzzing;
#[cfg(test)]
mod tests;
