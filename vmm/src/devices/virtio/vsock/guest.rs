//! A guest's vsock driver, for tests: packets out, packets in, no rules of its own.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::packet::{Credit, HEADER_BYTES, HOST_CID, Header, MAX_DATA_BYTES, Op, TYPE_STREAM};
use super::{Vsock, VsockHandle};
use crate::control::Metrics;
use crate::devices::virtio::net::driver::{Driver, TestInterrupt, memory};
use crate::devices::virtio::worker::Worker;
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::metrics::Counters;

pub(super) const CID: u64 = 3;
/// What this guest says of its buffer unless told otherwise.
pub(super) const ROOM: Credit = Credit {
    buf_alloc: 1 << 20,
    fwd_cnt: 0,
};

const RECEIVE_RINGS: u64 = 0x1_0000;
const TRANSMIT_RINGS: u64 = 0x2_0000;
const EVENT_RINGS: u64 = 0x3_0000;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_BUFFERS: u64 = 0x80_0000;
const RECEIVE_BUFFER_BYTES: u32 = 4096;
const QUEUE: u16 = 128;

pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) handle: VsockHandle,
    pub(super) receive: Driver,
    pub(super) transmit: Driver,
    pub(super) event: Driver,
    pub(super) interrupt: Arc<TestInterrupt>,
    counters: Arc<Counters>,
    transmit_slot: u64,
}

impl Guest {
    /// A guest with an active device and receive buffers offered.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_receive_buffers();
        guest.offer_receive_buffers();
        guest
    }

    pub(super) fn without_receive_buffers() -> Self {
        let counters = Arc::new(Counters::default());
        let (device, handle) = Vsock::new(CID, Arc::clone(&counters), Worker::unconfined());
        let interrupt = Arc::new(TestInterrupt::default());
        let memory = memory();
        let (receive, _) = Driver::new(&memory, RECEIVE_RINGS, QUEUE);
        let (transmit, _) = Driver::new(&memory, TRANSMIT_RINGS, QUEUE);
        let (event, _) = Driver::new(&memory, EVENT_RINGS, 16);
        let mut guest = Self {
            device,
            handle,
            receive,
            transmit,
            event,
            interrupt,
            counters,
            transmit_slot: 0,
        };
        guest.activate();
        guest
    }

    /// Sets the queues up anew and activates the device.
    pub(super) fn activate(&mut self) {
        let memory = self.receive.memory.clone();
        let (receive, receive_queue) = Driver::new(&memory, RECEIVE_RINGS, QUEUE);
        let (transmit, transmit_queue) = Driver::new(&memory, TRANSMIT_RINGS, QUEUE);
        let (event, event_queue) = Driver::new(&memory, EVENT_RINGS, 16);
        (self.receive, self.transmit, self.event) = (receive, transmit, event);
        let activation = Activation {
            memory,
            queues: vec![receive_queue, transmit_queue, event_queue],
            interrupt: Arc::clone(&self.interrupt) as _,
            features: self.device.features(),
            restored: false,
        };
        self.device.activate(activation).unwrap();
    }

    /// The device is stopped, and another one goes on where it was.
    pub(super) fn restore(&mut self) {
        let positions = self.device.stop();
        let drivers = [&self.receive, &self.transmit, &self.event];
        assert_eq!(positions.len(), drivers.len());
        let queues = drivers.into_iter().zip(positions);
        let activation = Activation {
            memory: self.receive.memory.clone(),
            queues: queues
                .map(|(driver, position)| driver.continued(position))
                .collect(),
            interrupt: Arc::clone(&self.interrupt) as _,
            features: self.device.features(),
            restored: true,
        };
        let (device, handle) = Vsock::new(CID, Arc::clone(&self.counters), Worker::unconfined());
        (self.device, self.handle) = (device, handle);
        self.device.activate(activation).unwrap();
    }

    pub(super) fn offer_receive_buffers(&mut self) {
        for slot in 0..self.receive.free_descriptors() as u64 {
            let address = RECEIVE_BUFFERS + slot * u64::from(RECEIVE_BUFFER_BYTES);
            self.receive.offer(&[(address, RECEIVE_BUFFER_BYTES)], true);
        }
    }

    /// A packet of this guest.
    pub(super) fn header(op: Op, guest_port: u32, host_port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            credit: ROOM,
        }
    }

    pub(super) fn can_send(&mut self) -> bool {
        while self.transmit.take_used().is_some() {}
        self.transmit.free_descriptors() >= 2
    }

    /// Sends a packet as it is; its data in a descriptor of its own.
    pub(super) fn send_raw(&mut self, header: &Header, data: &[u8]) {
        while !self.can_send() {
            let seen = self.interrupt.count();
            if !self.can_send() {
                self.interrupt.wait(seen);
            }
        }
        // Never more than `QUEUE` / 2 packets are under way, so no slot is written before it was read.
        let address = TRANSMIT_BUFFERS + self.transmit_slot * (HEADER_BYTES + MAX_DATA_BYTES + 4096) as u64;
        self.transmit_slot = (self.transmit_slot + 1) % u64::from(QUEUE);
        self.transmit.write(address, &header.encode());
        self.transmit.write(address + HEADER_BYTES as u64, data);
        let mut buffers = vec![(address, HEADER_BYTES as u32)];
        if !data.is_empty() {
            buffers.push((address + HEADER_BYTES as u64, data.len() as u32));
        }
        self.transmit.offer(&buffers, false);
    }

    pub(super) fn send(&mut self, op: Op, guest_port: u32, host_port: u32) {
        self.send_raw(&Self::header(op, guest_port, host_port), &[]);
    }

    pub(super) fn send_data(&mut self, guest_port: u32, host_port: u32, data: &[u8]) {
        let header = Header {
            len: data.len() as u32,
            ..Self::header(Op::Data, guest_port, host_port)
        };
        self.send_raw(&header, data);
    }

    pub(super) fn shutdown(&mut self, guest_port: u32, host_port: u32, flags: u32) {
        self.send_raw(
            &Header {
                flags,
                ..Self::header(Op::Shutdown, guest_port, host_port)
            },
            &[],
        );
    }

    /// The next packet from the device, if there is one; its buffer is offered again.
    pub(super) fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.receive.take_used()?;
        let address = self.address(head);
        let packet = self.receive.read(address, len as usize);
        let (front, data) = packet.split_at(HEADER_BYTES);
        let header = Header::decode(front.try_into().unwrap());
        assert_eq!(header.len as usize, data.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        let packet = (header, data.to_vec());
        self.receive.offer(&[(address, RECEIVE_BUFFER_BYTES)], true);
        Some(packet)
    }

    /// The buffer of a chain, which its descriptor still says.
    fn address(&self, head: u16) -> u64 {
        let raw = self.receive.read(RECEIVE_RINGS + 16 * u64::from(head), 8);
        u64::from_le_bytes(raw.try_into().unwrap())
    }

    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            let seen = self.interrupt.count();
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            self.interrupt.wait(seen);
        }
    }

    /// The next packet must be this one; returns it.
    pub(super) fn expect(&mut self, op: Op, guest_port: u32, host_port: u32) -> Header {
        let (header, _) = self.receive();
        assert_eq!(
            (header.op, header.dst_port, header.src_port),
            (op as u16, guest_port, host_port)
        );
        header
    }

    /// Sends a credit request and waits for its answer: everything sent before was dealt with.
    pub(super) fn sync(&mut self, guest_port: u32, host_port: u32) {
        self.send(Op::CreditRequest, guest_port, host_port);
        self.expect(Op::CreditUpdate, guest_port, host_port);
    }

    /// From now on connections go to the returned channel.
    pub(super) fn listen(&self) -> Receiver<(u32, UnixStream)> {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        self.handle
            .set_listener(Some(Box::new(move |port, socket: OwnedFd| {
                sender.lock().unwrap().send((port, socket.into())).unwrap();
                Ok(())
            })));
        receiver
    }

    /// A connection from the guest, accepted, and the host's end of it.
    pub(super) fn connect(&mut self, guest_port: u32, host_port: u32) -> UnixStream {
        self.connect_with(guest_port, host_port, ROOM)
    }

    /// The same from a guest with less room, or more.
    pub(super) fn connect_with(&mut self, guest_port: u32, host_port: u32, credit: Credit) -> UnixStream {
        let accepted = self.listen();
        let request = Header {
            credit,
            ..Self::header(Op::Request, guest_port, host_port)
        };
        self.send_raw(&request, &[]);
        self.expect(Op::Response, guest_port, host_port);
        let (port, socket) = accepted.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(port, host_port);
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// Starts a connection from the host.
    pub(super) fn host_connects(&self, port: u32) -> Receiver<Result<OwnedFd, String>> {
        let (sender, receiver) = channel();
        self.handle
            .connect(port, Box::new(move |result| sender.send(result).unwrap()));
        receiver
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.counters.snapshot()
    }
}

/// A small generator of pseudo-random numbers (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
