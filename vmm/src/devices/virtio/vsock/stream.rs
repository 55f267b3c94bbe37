//! A connection and the socket in which it ends on the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use libc::iovec;
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Control, Violation};
use super::handle::Caller;
use super::packet::{Credit, Header, MAX_DATA_BYTES, Op, Room};
use super::socket;
use crate::devices::virtio::net::buffers::ChainBuffers;
use crate::metrics::{Counters, count};

/// What a stream sends to the guest.
pub(super) enum Outgoing {
    Control(Control, Credit),
    /// So many bytes, which are in the guest's buffers already, each room but the last full.
    Data(u32, Credit),
}

pub(super) struct Stream {
    connection: Connection,
    /// None until the guest has accepted.
    socket: Option<OwnedFd>,
    /// Data from the guest that the socket has not taken yet, oldest first; at most the connection's window.
    backlog: VecDeque<u8>,
    /// The socket may have data. By edge: set by its event, cleared when it is empty.
    readable: bool,
    /// The ends of data that were passed on to the socket.
    closed_write: bool,
    closed_read: bool,
    /// Who asked for the connection, until answered.
    pub(super) caller: Option<Caller>,
    /// When the guest must have answered.
    pub(super) deadline: Option<Instant>,
    /// Whether its key is in the table's queue.
    pub(super) queued: bool,
    counters: Arc<Counters>,
}

impl Stream {
    pub(super) fn new(connection: Connection, socket: Option<OwnedFd>, counters: Arc<Counters>) -> Self {
        Self {
            connection,
            socket,
            backlog: VecDeque::new(),
            readable: false,
            closed_write: false,
            closed_read: false,
            caller: None,
            deadline: None,
            queued: false,
            counters,
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.connection.window()
    }

    pub(super) fn establish(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }

    pub(super) fn reset(&mut self) {
        self.connection.reset();
    }

    /// Whether there may be something to send to the guest.
    pub(super) fn has_outgoing(&self) -> bool {
        self.connection.has_control()
            || self.readable && (self.connection.sendable() > 0 || self.connection.lacks_credit())
    }

    /// A packet from the guest, other than a request or a reset.
    pub(super) fn on_packet(
        &mut self,
        op: Option<Op>,
        header: &Header,
        data: ChainBuffers<'_>,
    ) -> Result<(), Violation> {
        self.connection.on_credit(header.credit)?;
        match op {
            Some(Op::Response) => self.connection.on_response()?,
            Some(Op::Shutdown) => self.connection.on_shutdown(header.flags)?,
            Some(Op::Data) => {
                if data.len() != header.len as usize {
                    return Err(Violation::Length(header.len));
                }
                self.connection.on_data(header.len)?;
                self.take(data);
            }
            Some(Op::CreditUpdate) => {}
            Some(Op::CreditRequest) => self.connection.on_credit_request(),
            Some(Op::Request | Op::Reset) | None => return Err(Violation::OutOfTurn),
        }
        self.pass_on_ends();
        Ok(())
    }

    /// Hands data on to the socket, and keeps what it does not take.
    fn take(&mut self, data: ChainBuffers<'_>) {
        count(&self.counters.vsock_tx_bytes, data.len() as u64);
        let Some(socket) = self.socket.as_ref().filter(|_| self.connection.host_receives()) else {
            return self.connection.forward(self.connection.unforwarded());
        };
        let mut sent = 0;
        if self.backlog.is_empty() && data.len() > 0 {
            // SAFETY: the iovecs are guest memory borrowed by `data`.
            match unsafe { socket::send(socket, data.iovecs()) } {
                Ok(len) => sent = len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.host_stops_receiving(),
            }
        }
        self.connection.forward(sent as u32);
        let (_, rest) = data.split_at(sent);
        if rest.len() > 0 {
            let mut kept = vec![0; rest.len()];
            rest.read(&mut kept);
            self.backlog.extend(kept);
            debug_assert!(self.backlog.len() <= self.window() as usize);
        }
    }

    /// What happened to the socket.
    pub(super) fn on_socket(&mut self, events: EventSet) {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.contains(EventSet::HANG_UP) {
            self.host_stops_receiving();
        } else if events.contains(EventSet::OUT) {
            self.flush();
        }
        self.pass_on_ends();
    }

    fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        while !self.backlog.is_empty() {
            let (first, second) = self.backlog.as_slices();
            let iovecs = [first, second].map(|part| iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            // SAFETY: the iovecs are the two halves of the backlog, borrowed until after the call.
            match unsafe { socket::send(socket, &iovecs) } {
                Ok(len) => {
                    self.backlog.drain(..len);
                    self.connection.forward(len as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.host_stops_receiving(),
            }
        }
        // A burst should not hold its memory for the life of the connection.
        self.backlog = VecDeque::new();
    }

    /// Nobody will read what the guest sends.
    fn host_stops_receiving(&mut self) {
        self.backlog = VecDeque::new();
        self.connection.host_stops_receiving();
        self.connection.forward(self.connection.unforwarded());
    }

    /// Lets the socket know which directions the guest has closed, the sending one only behind its last byte.
    fn pass_on_ends(&mut self) {
        let Some(socket) = &self.socket else { return };
        if !self.connection.guest_sends() && self.backlog.is_empty() && !self.closed_write {
            self.closed_write = true;
            socket::shutdown(socket, libc::SHUT_WR);
        }
        if !self.connection.guest_receives() && !self.closed_read {
            self.closed_read = true;
            socket::shutdown(socket, libc::SHUT_RD);
        }
    }

    /// The next packet to the guest, or packets: data is read from the socket into as many of the rooms as it fills, at most
    /// [`MAX_DATA_BYTES`].
    pub(super) fn next_outgoing(&mut self, rooms: &[Room<'_>]) -> Option<Outgoing> {
        loop {
            if let Some(control) = self.connection.next_control() {
                return Some(Outgoing::Control(control, self.connection.announce()));
            }
            let socket = self.socket.as_ref().filter(|_| self.readable)?;
            let sendable = self.connection.sendable();
            if sendable == 0 {
                if !self.connection.lacks_credit() {
                    return None;
                }
                self.connection.request_credit();
                continue;
            }
            let mut left = (sendable as usize).min(MAX_DATA_BYTES);
            let mut iovecs = Vec::with_capacity(rooms.len());
            for room in rooms {
                iovecs.extend(room.data.first(left));
                left -= room.data.len().min(left);
            }
            // SAFETY: the iovecs are guest memory borrowed by the caller's buffers.
            match unsafe { socket::receive(socket, &iovecs) } {
                Ok(0) => {
                    self.readable = false;
                    self.connection.host_stops_sending();
                }
                Ok(len) => {
                    // At most `MAX_DATA_BYTES`.
                    let len = len as u32;
                    self.connection.on_sent(len);
                    count(&self.counters.vsock_rx_bytes, u64::from(len));
                    return Some(Outgoing::Data(len, self.connection.announce()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(_) => self.connection.reset(),
            }
        }
    }
}
