//! The rules of one stream connection (virtio 1.3, 5.10.6): its phases, its credit, and which control packet is due.
//! No I/O, no time, no ports.
//!
//! Counters of bytes run modulo 2³², as on the wire.

use super::packet::{Credit, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// How the guest broke the rules; the connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("{0} bytes were more than the credit")]
    BeyondCredit(u32),
    #[error("bytes up to {0} were acknowledged and never sent")]
    AcknowledgedUnsent(u32),
    #[error("data after the end of data")]
    DataAfterShutdown,
    #[error("a packet that does not belong to this phase")]
    OutOfTurn,
    #[error("a length of {0} bytes that the packet does not have")]
    Length(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has to answer the request.
    Connecting,
    Established,
}

/// Control packets that are due, sent before any data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    request: bool,
    response: bool,
    reset: bool,
    shutdown: bool,
    credit_request: bool,
    credit_update: bool,
}

/// A control packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) op: Op,
    pub(super) flags: u32,
}

#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    due: Due,

    /// Bytes the guest may have on the way: what the host buffers for this connection at most.
    window: u32,
    /// Bytes from the guest.
    received: u32,
    /// Of them, bytes handed on to the host's socket.
    forwarded: u32,
    /// What the guest was last told of `forwarded`.
    announced: u32,
    guest_sends: bool,
    guest_receives: bool,

    /// What the guest last said of its own buffer.
    peer: Credit,
    /// Bytes to the guest.
    sent: u32,
    /// A credit request is on the way.
    credit_requested: bool,
    /// What was sent when the last one was made.
    requested_at: u32,
    host_sends: bool,
    host_receives: bool,
}

impl Connection {
    fn new(phase: Phase, window: u32, peer: Credit, due: Due) -> Self {
        Self {
            phase,
            due,
            window,
            received: 0,
            forwarded: 0,
            announced: 0,
            guest_sends: true,
            guest_receives: true,
            peer,
            sent: 0,
            credit_requested: false,
            requested_at: 0,
            host_sends: true,
            host_receives: true,
        }
    }

    /// A connection that the host asks for.
    pub(super) fn request(window: u32) -> Self {
        Self::new(
            Phase::Connecting,
            window,
            Credit::default(),
            Due {
                request: true,
                ..Due::default()
            },
        )
    }

    /// A connection that the guest asked for, and gets.
    pub(super) fn accept(window: u32, peer: Credit) -> Result<Self, Violation> {
        let mut connection = Self::new(
            Phase::Established,
            window,
            Credit::default(),
            Due {
                response: true,
                ..Due::default()
            },
        );
        connection.on_credit(peer)?;
        Ok(connection)
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    pub(super) fn guest_sends(&self) -> bool {
        self.guest_sends
    }

    pub(super) fn guest_receives(&self) -> bool {
        self.guest_receives
    }

    pub(super) fn host_receives(&self) -> bool {
        self.host_receives
    }

    /// What every packet from the guest says about the guest's buffer.
    pub(super) fn on_credit(&mut self, credit: Credit) -> Result<(), Violation> {
        let outstanding = self.sent.wrapping_sub(self.peer.fwd_cnt);
        let still_outstanding = self.sent.wrapping_sub(credit.fwd_cnt);
        if still_outstanding > outstanding {
            // Beyond what was sent is forged. Behind what was said before is an older packet overtaken by a newer
            // one, which happens with two senders in the guest.
            if still_outstanding > u32::MAX / 2 {
                return Err(Violation::AcknowledgedUnsent(credit.fwd_cnt));
            }
            return Ok(());
        }
        self.peer = credit;
        if self.credit() > 0 {
            self.credit_requested = false;
        }
        Ok(())
    }

    /// The guest accepted.
    pub(super) fn on_response(&mut self) -> Result<(), Violation> {
        if self.phase != Phase::Connecting || self.due.request {
            return Err(Violation::OutOfTurn);
        }
        self.phase = Phase::Established;
        Ok(())
    }

    /// The guest sent data, which the caller has to hand on or keep, and then report by [`Self::forward`].
    pub(super) fn on_data(&mut self, len: u32) -> Result<(), Violation> {
        if self.phase != Phase::Established {
            return Err(Violation::OutOfTurn);
        }
        if !self.guest_sends {
            return Err(Violation::DataAfterShutdown);
        }
        // Against what was forwarded, not what was announced: a packet in the queue cannot know either.
        if len > self.window - self.unforwarded() {
            return Err(Violation::BeyondCredit(len));
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// The guest ends one direction or both.
    pub(super) fn on_shutdown(&mut self, flags: u32) -> Result<(), Violation> {
        if self.phase != Phase::Established {
            return Err(Violation::OutOfTurn);
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.guest_receives = false;
            self.host_stops_sending();
        }
        self.end_if_drained();
        Ok(())
    }

    pub(super) fn on_credit_request(&mut self) {
        self.due.credit_update = self.phase == Phase::Established;
    }

    /// Bytes received and not yet handed on.
    pub(super) fn unforwarded(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// `len` more bytes, of those received, were handed on (or thrown away).
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len.min(self.unforwarded()));
        // A quarter at a time: few packets, and a guest that waits is always told, for it waits only when the whole
        // window is used up.
        if self.guest_sends && self.forwarded.wrapping_sub(self.announced) >= self.window / 4 {
            self.due.credit_update = true;
        }
        self.end_if_drained();
    }

    /// A guest that has closed both directions waits for a reset; it comes when the host has all of its data.
    fn end_if_drained(&mut self) {
        if !self.guest_sends && !self.guest_receives && self.unforwarded() == 0 {
            self.due.reset = true;
        }
    }

    /// How many bytes of data may be sent now.
    pub(super) fn sendable(&self) -> u32 {
        if self.phase == Phase::Established && self.host_sends {
            self.credit()
        } else {
            0
        }
    }

    fn credit(&self) -> u32 {
        // A guest may shrink its buffer below what is on the way.
        self.peer
            .buf_alloc
            .saturating_sub(self.sent.wrapping_sub(self.peer.fwd_cnt))
    }

    /// `len` bytes of data go to the guest, at most [`Self::sendable`].
    pub(super) fn on_sent(&mut self, len: u32) {
        debug_assert!(len <= self.sendable());
        self.sent = self.sent.wrapping_add(len);
        // A guest tells of itself only when little of its buffer is left, and would have read all of it before more comes.
        // Not more often than for each quarter of its buffer: an answer may be that it has read nothing.
        let buffer = self.peer.buf_alloc;
        let since = self.sent.wrapping_sub(self.requested_at);
        if !self.credit_requested && self.credit() < buffer / 2 && since >= buffer / 4 {
            self.request_credit();
        }
    }

    /// Whether a credit request would be of use: there is no credit, and none was asked for.
    pub(super) fn lacks_credit(&self) -> bool {
        self.phase == Phase::Established && self.host_sends && self.credit() == 0 && !self.credit_requested
    }

    pub(super) fn request_credit(&mut self) {
        self.credit_requested = true;
        self.requested_at = self.sent;
        self.due.credit_request = true;
    }

    /// The host's last byte was sent.
    pub(super) fn host_stops_sending(&mut self) {
        self.due.shutdown |= std::mem::replace(&mut self.host_sends, false);
    }

    /// The host takes no more data.
    pub(super) fn host_stops_receiving(&mut self) {
        self.due.shutdown |= std::mem::replace(&mut self.host_receives, false);
    }

    /// Ends the connection without ceremony.
    pub(super) fn reset(&mut self) {
        self.due.reset = true;
    }

    pub(super) fn has_control(&self) -> bool {
        self.due != Due::default()
    }

    /// The next control packet that is due. After a reset the connection is over.
    pub(super) fn next_control(&mut self) -> Option<Control> {
        let plain = |op| Some(Control { op, flags: 0 });
        let take = std::mem::take::<bool>;
        if take(&mut self.due.reset) {
            return plain(Op::Reset);
        }
        if take(&mut self.due.request) {
            return plain(Op::Request);
        }
        if take(&mut self.due.response) {
            return plain(Op::Response);
        }
        if take(&mut self.due.shutdown) {
            let receive = if self.host_receives { 0 } else { SHUTDOWN_RECEIVE };
            let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
            return Some(Control {
                op: Op::Shutdown,
                flags: receive | send,
            });
        }
        if take(&mut self.due.credit_request) {
            return plain(Op::CreditRequest);
        }
        if take(&mut self.due.credit_update) {
            return plain(Op::CreditUpdate);
        }
        None
    }

    /// What the packet that is sent now says about the host's buffer.
    pub(super) fn announce(&mut self) -> Credit {
        self.announced = self.forwarded;
        self.due.credit_update = false;
        Credit {
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
        }
    }
}
