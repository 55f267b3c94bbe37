//! All connections of a device: which packet belongs to which, whose turn it is, and the bounds on all together.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Connection;
use super::handle::{Caller, Listener};
use super::packet::{Credit, HEADER_BYTES, HOST_CID, Header, Op, Room, SHUTDOWN_BOTH, TYPE_STREAM};
use super::socket;
use super::stream::{Outgoing, Stream};
use crate::devices::virtio::net::buffers::ChainBuffers;
use crate::metrics::{Counters, count};

pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Connections of the guest that nobody has taken yet.
pub(super) const MAX_WAITING: usize = 16;
/// How long the guest may take to answer a request, or to confirm the end of a connection.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The first connections get a large window, the others a small one: with all in use and nobody reading, the device
/// buffers 40 MiB, and the kernel at most twice as much.
pub(super) const LARGE_WINDOW_BYTES: u32 = 256 * 1024;
pub(super) const SMALL_WINDOW_BYTES: u32 = 32 * 1024;
const MAX_LARGE_WINDOWS: usize = 32;
/// Resets without a connection that wait for the guest's buffers; beyond it the guest gets no answer.
const MAX_REPLIES: usize = 1024;
/// Where the host's ports of its own connections start.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// `VMADDR_PORT_ANY`, which is no port. Tokens of events that are not a connection's have it as host port.
const NO_PORT: u32 = u32::MAX;

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    host_port: u32,
    guest_port: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }

    /// None for the token of an event that is not a connection's.
    pub(super) fn from_token(token: u64) -> Option<Self> {
        let key = Self {
            host_port: (token >> 32) as u32,
            guest_port: token as u32,
        };
        (key.host_port != NO_PORT).then_some(key)
    }
}

/// The far end of a connection of the guest that nobody has taken yet.
struct Waiting {
    key: Key,
    far: OwnedFd,
    /// The guest has ended the connection since; what it sent is still in the socket.
    ended: bool,
}

pub(super) struct Table {
    guest_cid: u64,
    epoll: Arc<Epoll>,
    counters: Arc<Counters>,
    streams: HashMap<Key, Stream>,
    /// Streams that may have something to send, each once, in turn.
    ready: VecDeque<Key>,
    /// Resets of connections that do not exist.
    replies: VecDeque<Header>,
    waiting: VecDeque<Waiting>,
    /// All timeouts are the same, so the oldest is the first.
    deadlines: VecDeque<(Instant, Key)>,
    next_host_port: u32,
    large_windows: usize,
}

impl Table {
    pub(super) fn new(guest_cid: u64, epoll: Arc<Epoll>, counters: Arc<Counters>) -> Self {
        Self {
            guest_cid,
            epoll,
            counters,
            streams: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            waiting: VecDeque::new(),
            deadlines: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            large_windows: 0,
        }
    }

    /// Starts a connection to a port of the guest.
    pub(super) fn connect(&mut self, guest_port: u32, caller: Caller, now: Instant) {
        if self.streams.len() >= MAX_CONNECTIONS {
            return caller.answer(Err(format!(
                "{MAX_CONNECTIONS} vsock connections are open already"
            )));
        }
        // One of so many successive ports is free.
        let key = loop {
            let key = Key {
                host_port: self.next_host_port,
                guest_port,
            };
            self.next_host_port = match self.next_host_port + 1 {
                NO_PORT => FIRST_HOST_PORT,
                port => port,
            };
            if !self.streams.contains_key(&key) {
                break key;
            }
        };
        let connection = Connection::request(self.window());
        let deadline = now + ANSWER_TIMEOUT;
        let stream = self.insert(key, connection, None);
        stream.caller = Some(caller);
        stream.deadline = Some(deadline);
        self.deadlines.push_back((deadline, key));
        self.enqueue(key);
    }

    /// Takes a packet of the guest; `data` is what follows its header.
    pub(super) fn on_packet(&mut self, header: &Header, data: ChainBuffers<'_>, listener: Option<&Listener>) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return count(&self.counters.device_errors, 1);
        }
        let op = Op::from_wire(header.op);
        if header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let Some(stream) = self.streams.get_mut(&key) else {
            return match op {
                Some(Op::Request) => self.accept(key, header, listener),
                _ => self.refuse(header),
            };
        };
        if op == Some(Op::Reset) {
            if let Some(caller) = stream.caller.take() {
                caller.answer(Err(format!(
                    "the guest refused the connection to port {}",
                    key.guest_port
                )));
            }
            return self.remove(key);
        }
        let data = data.split_at(header.len as usize).0;
        if stream.on_packet(op, header, data).is_err() {
            count(&self.counters.device_errors, 1);
            self.remove(key);
            return self.refuse(header);
        }
        if op == Some(Op::Response) {
            self.establish(key);
        }
        self.enqueue(key);
    }

    /// The guest accepted: makes the socket pair, and gives one end to whoever asked.
    fn establish(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        let caller = stream.caller.take();
        stream.deadline = None;
        let made = socket::pair(stream.window()).and_then(|(near, far)| {
            watch(&self.epoll, key, &near)?;
            stream.establish(near);
            Ok(far)
        });
        match &made {
            Ok(_) => count(&self.counters.vsock_connections, 1),
            Err(_) => stream.reset(),
        }
        if let Some(caller) = caller {
            caller.answer(made.map_err(|error| format!("cannot make a socket pair: {error}")));
        }
    }

    /// Accepts a connection of the guest, unless there are too many.
    fn accept(&mut self, key: Key, header: &Header, listener: Option<&Listener>) {
        if self.streams.len() >= MAX_CONNECTIONS || key.host_port == NO_PORT {
            return self.refuse(header);
        }
        let window = self.window();
        let Ok(connection) = Connection::accept(window, header.credit) else {
            count(&self.counters.device_errors, 1);
            return self.refuse(header);
        };
        let made = socket::pair(window).and_then(|pair| watch(&self.epoll, key, &pair.0).map(|()| pair));
        let Ok((near, far)) = made else {
            return self.refuse(header);
        };
        let left = match listener {
            Some(listener) => listener(key.host_port, far).err(),
            None => Some(far),
        };
        if let Some(far) = left
            && !self.hold(key, far)
        {
            return self.refuse(header);
        }
        count(&self.counters.vsock_connections, 1);
        self.insert(key, connection, Some(near));
        self.enqueue(key);
    }

    /// Keeps a far end until somebody takes it; one whose connection has ended makes room if need be.
    fn hold(&mut self, key: Key, far: OwnedFd) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            let Some(ended) = self.waiting.iter().position(|waiting| waiting.ended) else {
                return false;
            };
            self.waiting.remove(ended);
        }
        self.waiting.push_back(Waiting {
            key,
            far,
            ended: false,
        });
        true
    }

    /// Offers the connections that wait to the listener, oldest first.
    pub(super) fn offer_waiting(&mut self, listener: &Listener) {
        while let Some(waiting) = self.waiting.pop_front() {
            let Waiting { key, far, ended } = waiting;
            if let Err(far) = listener(key.host_port, far) {
                self.waiting.push_front(Waiting { key, far, ended });
                return;
            }
        }
    }

    /// What happened to a connection's socket.
    pub(super) fn on_socket(&mut self, key: Key, events: EventSet) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.on_socket(events);
            self.enqueue(key);
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Writes the next packets into the guest's buffers: one, or, while no other stream waits for its turn, as many as
    /// the data at hand fills. Returns the lengths of the packets, of which there are none where there was nothing to send.
    pub(super) fn next_outgoing(&mut self, rooms: &[Room<'_>], now: Instant) -> Vec<u32> {
        let Some(first) = rooms.first() else {
            return Vec::new();
        };
        if let Some(reply) = self.replies.pop_front() {
            first.header.write(&reply.encode());
            return vec![HEADER_BYTES as u32];
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&key) else {
                continue;
            };
            stream.queued = false;
            let rooms = if self.ready.is_empty() {
                rooms
            } else {
                std::slice::from_ref(first)
            };
            let Some(outgoing) = stream.next_outgoing(rooms) else {
                continue;
            };
            let (op, flags, len, credit) = match outgoing {
                Outgoing::Control(control, credit) => (control.op, control.flags, 0, credit),
                Outgoing::Data(len, credit) => (Op::Data, 0, len, credit),
            };
            if op == Op::Shutdown && flags == SHUTDOWN_BOTH {
                let deadline = now + ANSWER_TIMEOUT;
                stream.deadline = Some(deadline);
                self.deadlines.push_back((deadline, key));
            }
            let mut lengths = Vec::with_capacity(rooms.len());
            let mut left = len;
            for room in rooms {
                let part = (left as usize).min(room.data.len()) as u32;
                let header = self.header(key, op, flags, part, credit);
                room.header.write(&header.encode());
                lengths.push(HEADER_BYTES as u32 + part);
                left -= part;
                if left == 0 {
                    break;
                }
            }
            if op == Op::Reset {
                self.remove(key);
            } else {
                self.enqueue(key);
            }
            return lengths;
        }
        Vec::new()
    }

    fn header(&self, key: Key, op: Op, flags: u32, len: u32, credit: Credit) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            credit,
        }
    }

    /// Ends what the guest has not answered in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(at, key)) = self.deadlines.front()
            && at <= now
        {
            self.deadlines.pop_front();
            let Some(stream) = self
                .streams
                .get_mut(&key)
                .filter(|stream| stream.deadline == Some(at))
            else {
                continue;
            };
            if let Some(caller) = stream.caller.take() {
                caller.answer(Err(format!(
                    "the guest did not answer at port {} in time",
                    key.guest_port
                )));
                self.remove(key);
            } else {
                stream.reset();
                self.enqueue(key);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|&(at, _)| at)
    }

    fn window(&self) -> u32 {
        if self.large_windows < MAX_LARGE_WINDOWS {
            LARGE_WINDOW_BYTES
        } else {
            SMALL_WINDOW_BYTES
        }
    }

    fn insert(&mut self, key: Key, connection: Connection, socket: Option<OwnedFd>) -> &mut Stream {
        let stream = Stream::new(connection, socket, Arc::clone(&self.counters));
        self.large_windows += usize::from(stream.window() == LARGE_WINDOW_BYTES);
        self.streams.entry(key).insert_entry(stream).into_mut()
    }

    fn remove(&mut self, key: Key) {
        let Some(stream) = self.streams.remove(&key) else {
            return;
        };
        self.large_windows -= usize::from(stream.window() == LARGE_WINDOW_BYTES);
        if stream.queued {
            self.ready.retain(|&ready| ready != key);
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.key == key) {
            waiting.ended = true;
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(&key)
            && !stream.queued
            && stream.has_outgoing()
        {
            stream.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Answers a packet with a reset, unless it is one.
    fn refuse(&mut self, to: &Header) {
        if to.op == Op::Reset as u16 {
            return;
        }
        if self.replies.len() >= MAX_REPLIES {
            return count(&self.counters.device_errors, 1);
        }
        let key = Key {
            host_port: to.dst_port,
            guest_port: to.src_port,
        };
        let mut reply = self.header(key, Op::Reset, 0, 0, Credit::default());
        reply.kind = to.kind;
        self.replies.push_back(reply);
    }
}

/// Reports what happens to a connection's socket, by edge.
fn watch(epoll: &Epoll, key: Key, socket: &OwnedFd) -> std::io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(
        ControlOperation::Add,
        socket.as_raw_fd(),
        EpollEvent::new(events, key.token()),
    )
}
