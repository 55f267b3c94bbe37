//! The socket over which transactions go to the kernel. It speaks to the network namespace in which it was opened.

use std::{
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    message::{self, Writer},
    ruleset::Operation,
};

/// The kernel takes a transaction as one datagram, so the send buffer bounds it.
const SEND_BUFFER_BYTES: usize = 32 << 20;
/// The kernel answers at once or not at all.
const ANSWER_TIMEOUT_S: i64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot open an nf_tables netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot send a transaction of {bytes} bytes to nf_tables")]
    Send { bytes: usize, source: io::Error },
    #[error("cannot receive the answer of nf_tables")]
    Receive(#[source] io::Error),
    #[error(
        "the kernel has no connection tracking for bridges: load the module nf_conntrack_bridge \
         (CONFIG_NF_CONNTRACK_BRIDGE)"
    )]
    NoBridgeConntrack,
    #[error("nf_tables refused to {operation}")]
    Refused { operation: String, source: io::Error },
}

/// A socket for transactions, one at a time.
pub(in crate::network) struct NftSocket {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    next_sequence: u32,
}

impl NftSocket {
    /// Opens a socket to the network namespace of the calling thread.
    pub(in crate::network) fn open() -> Result<Self, NftError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.set_cap_ack(true)?;
            setsockopt(
                &socket.as_fd(),
                sockopt::ReceiveTimeout,
                &TimeVal::new(ANSWER_TIMEOUT_S, 0),
            )?;
            // Without the privilege to go over the system's limit, the limit bounds a transaction.
            if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
                setsockopt(&socket.as_fd(), sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(NftError::Open)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                socket,
                next_sequence: 1,
            }),
        })
    }

    /// Does all of the operations or none of them. Waits for the kernel.
    pub(in crate::network) fn commit(&self, operations: &[Operation<'_>]) -> Result<(), NftError> {
        if operations.is_empty() {
            return Ok(());
        }
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .commit(operations)
    }
}

impl Inner {
    fn commit(&mut self, operations: &[Operation<'_>]) -> Result<(), NftError> {
        const BATCH_BEGIN: u16 = 0x10;
        const BATCH_END: u16 = 0x11;
        const REQUEST: u16 = 0x1;
        const SUBSYSTEM: u16 = 10;

        let begin = self.next_sequence;
        let mut writer = Writer::default();
        writer.message(BATCH_BEGIN, REQUEST, begin, 0, SUBSYSTEM, |_| {});
        let mut sequence = begin;
        for (index, operation) in operations.iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            // Success is told only for what asks for it. Answers come in order, so the last one tells for all.
            operation.write(&mut writer, sequence, index + 1 == operations.len());
        }
        let last = sequence;
        let end = last.wrapping_add(1);
        writer.message(BATCH_END, REQUEST, end, 0, SUBSYSTEM, |_| {});
        self.next_sequence = end.wrapping_add(1);

        let batch = writer.finish();
        self.socket
            .send_to(&batch, &SocketAddr::new(0, 0), 0)
            .map_err(|source| NftError::Send {
                bytes: batch.len(),
                source,
            })?;
        self.await_answer(begin, last, operations)
    }

    fn await_answer(&self, begin: u32, last: u32, operations: &[Operation<'_>]) -> Result<(), NftError> {
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(NftError::Receive)?;
            for answer in message::answers(&datagram) {
                let place = answer.sequence.wrapping_sub(begin);
                if place > last.wrapping_sub(begin) {
                    continue; // left over from an earlier transaction that failed in several places
                }
                if answer.errno != 0 {
                    return Err(refusal(answer.errno, place, operations));
                }
                if answer.sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

/// `place` counts from the begin of the batch, which itself answers for a commit that failed as a whole.
fn refusal(errno: i32, place: u32, operations: &[Operation<'_>]) -> NftError {
    let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
    let operation = index.and_then(|index| operations.get(index));
    if errno == Errno::EPROTO as i32 && matches!(operation, Some(Operation::AddRule { .. })) {
        return NftError::NoBridgeConntrack;
    }
    let operation = operation.map_or_else(|| "commit the transaction".to_owned(), Operation::describe);
    NftError::Refused {
        operation,
        source: io::Error::from_raw_os_error(errno),
    }
}
