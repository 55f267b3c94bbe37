//! Attacks on vsock devices (virtio 1.3, 5.10.6).

use super::Passed;
use crate::machine::{fill, read, wait, write};
use crate::virtio::*;

pub const RESPONSE: u16 = 2;
const REQUEST: u16 = 1;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const HOST: u64 = 2;
/// Which the VMM gives this guest.
const GUEST: u64 = 3;
const HOST_PORT: u32 = 1024;
/// Room for each packet from the host, and where the first is.
const RECEIVE_BYTES: u64 = 4096;
const RECEIVE: u64 = BUFFERS + 0x20_0000;
const PAYLOAD: u64 = BUFFERS + 0x1000;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy)]
pub struct Packet {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len: u32,
    kind: u16,
    pub op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Packet {
    pub const BYTES: u32 = 44;

    /// One that asks for a connection, as it should be.
    pub fn request(guest_port: u32) -> Self {
        Self {
            src_cid: GUEST,
            dst_cid: HOST,
            src_port: guest_port,
            dst_port: HOST_PORT,
            len: 0,
            kind: 1,
            op: REQUEST,
            flags: 0,
            buf_alloc: 0x1_0000,
            fwd_cnt: 0,
        }
    }

    fn of(guest_port: u32, op: u16) -> Self {
        Self {
            op,
            ..Self::request(guest_port)
        }
    }

    pub fn put(self, address: u64) {
        write(address, self.src_cid);
        write(address + 8, self.dst_cid);
        write(address + 16, self.src_port);
        write(address + 20, self.dst_port);
        write(address + 24, self.len);
        write(address + 28, self.kind);
        write(address + 30, self.op);
        write(address + 32, self.flags);
        write(address + 36, self.buf_alloc);
        write(address + 40, self.fwd_cnt);
    }

    pub fn get(address: u64) -> Self {
        Self {
            src_cid: read(address),
            dst_cid: read(address + 8),
            src_port: read(address + 16),
            dst_port: read(address + 20),
            len: read(address + 24),
            kind: read(address + 28),
            op: read(address + 30),
            flags: read(address + 32),
            buf_alloc: read(address + 36),
            fwd_cnt: read(address + 40),
        }
    }
}

/// A driver with room for the host's packets, as long as it offers it.
struct Driver<'a> {
    receive: Queue<'a>,
    transmit: Queue<'a>,
    seen: u16,
}

impl<'a> Driver<'a> {
    fn start(device: &'a Device) -> Self {
        device.start(device.usual_features());
        let mut receive = device.queue(0);
        for head in 0..SIZE as u16 {
            let address = RECEIVE + RECEIVE_BYTES * u64::from(head);
            receive.describe(head, Descriptor::new(address, RECEIVE_BYTES as u32, WRITE, 0));
            receive.offer(head);
        }
        receive.kick();
        Self {
            receive,
            transmit: device.queue(1),
            seen: 0,
        }
    }

    /// Sends a packet, and after it so many bytes, whatever it says of them.
    fn send(&mut self, packet: Packet, bytes: u32) -> Result<(), Passed> {
        packet.put(BUFFERS);
        let next = if bytes > 0 { NEXT } else { 0 };
        self.transmit
            .describe(0, Descriptor::new(BUFFERS, Packet::BYTES, next, 1));
        self.transmit.describe(1, Descriptor::new(PAYLOAD, bytes, 0, 0));
        match self.transmit.run(0) {
            Settled::Used => Ok(()),
            _ => Err("a packet that it does not use"),
        }
    }

    /// The next packet of the host's, if one comes in time.
    fn next(&mut self, cycles: u64) -> Option<Packet> {
        if !wait(cycles, || self.receive.used() != self.seen) {
            return None;
        }
        let slot = u64::from(self.seen) % u64::from(SIZE);
        let head: u32 = read(self.receive.rings.used + 4 + 8 * slot);
        self.seen = self.seen.wrapping_add(1);
        let packet = Packet::get(RECEIVE + RECEIVE_BYTES * u64::from(head));
        self.receive.offer(head as u16);
        self.receive.kick();
        Some(packet)
    }

    /// What the host says to the next request, whatever else it says before.
    fn answer(&mut self) -> Option<u16> {
        loop {
            let op = self.next(PATIENCE)?.op;
            if matches!(op, RESPONSE | RESET) {
                return Some(op);
            }
        }
    }

    /// The next answer must be this one.
    fn expect(&mut self, op: u16, or: Passed) -> Result<(), Passed> {
        (self.answer() == Some(op)).then_some(()).ok_or(or)
    }

    fn connect(&mut self, port: u32) -> Result<(), Passed> {
        self.send(Packet::request(port), 0)?;
        self.expect(RESPONSE, "no connection at all")
    }
}

/// Packets for which the device has answers, which it can put nowhere good.
pub fn ask_for_answers(device: &Device, count: u32) {
    let mut transmit = device.queue(1);
    transmit.describe(0, Descriptor::new(BUFFERS + 0x4000, Packet::BYTES, 0, 0));
    for port in 0..count {
        Packet::of(port, DATA).put(BUFFERS + 0x4000);
        transmit.offer(0);
        if (port + 1) % SIZE == 0 || port + 1 == count {
            transmit.kick();
            transmit.settle();
        }
    }
}

/// From and to whom it cannot be: others' packets are dropped, not answered.
pub fn forged_addresses(device: &Device) -> Result<(), Passed> {
    let mut driver = Driver::start(device);
    for cid in [0, 1, 2, 4, 0x1_0000_0003, 0xffff_ffff, u64::MAX] {
        for op in [REQUEST, DATA] {
            let packet = Packet::of(5, op);
            driver.send(
                Packet {
                    src_cid: cid,
                    ..packet
                },
                0,
            )?;
            if cid != HOST {
                driver.send(
                    Packet {
                        dst_cid: cid,
                        ..packet
                    },
                    0,
                )?;
            }
        }
    }
    // What is answered first is what comes now.
    driver.send(Packet::of(77, DATA), 0)?;
    match driver.next(PATIENCE) {
        Some(Packet {
            op: RESET,
            dst_port: 77,
            ..
        }) => {}
        _ => return Err("a packet from or to somebody else"),
    }
    for (kind, op) in [
        (0, REQUEST),
        (2, REQUEST),
        (u16::MAX, REQUEST),
        (1, 0),
        (1, 8),
        (1, u16::MAX),
        (1, RESPONSE),
    ] {
        driver.send(
            Packet {
                kind,
                ..Packet::of(6, op)
            },
            0,
        )?;
        driver.expect(RESET, "a packet of no kind")?;
    }
    // The port that is none, and all ports at once.
    for dst_port in [u32::MAX, 0, 1 << 30] {
        driver.send(
            Packet {
                dst_port,
                ..Packet::request(7)
            },
            0,
        )?;
        driver.next(PATIENCE);
    }
    Ok(())
}

/// Lengths that are not those of what follows.
pub fn forged_lengths(device: &Device) -> Result<(), Passed> {
    fill(PAYLOAD, 4096, 0x41);
    for (len, bytes) in [
        (1, 0),
        (u32::MAX, 0),
        (u32::MAX, 64),
        (0, 64),
        (65, 64),
        (0x1_0000, 4096),
        (0x8000_0000, 1),
    ] {
        let mut driver = Driver::start(device);
        driver.connect(9)?;
        for op in [
            DATA,
            REQUEST,
            RESPONSE,
            SHUTDOWN,
            CREDIT_UPDATE,
            CREDIT_REQUEST,
            RESET,
        ] {
            let packet = Packet {
                len,
                ..Packet::of(9, op)
            };
            driver.send(packet, bytes)?;
        }
    }
    // Not even a header.
    device.start(device.usual_features());
    let mut transmit = device.queue(1);
    for len in [0, 1, 43] {
        transmit.describe(0, Descriptor::new(BUFFERS, len, 0, 0));
        transmit.run(0);
    }
    Ok(())
}

/// Credit that was not given, or cannot be.
pub fn forged_credit(device: &Device) -> Result<(), Passed> {
    const CHUNK: u32 = 0x8000;
    for (buf_alloc, fwd_cnt) in [
        (0, 0),
        (u32::MAX, 0),
        (0, u32::MAX),
        (u32::MAX, u32::MAX),
        (1, 0x8000_0000),
    ] {
        let mut driver = Driver::start(device);
        driver.connect(11)?;
        for op in [CREDIT_UPDATE, CREDIT_REQUEST, DATA] {
            let packet = Packet {
                buf_alloc,
                fwd_cnt,
                ..Packet::of(11, op)
            };
            driver.send(packet, 0)?;
        }
    }
    // More than the host has room for, while nobody there reads: the connection ends.
    let mut driver = Driver::start(device);
    driver.connect(12)?;
    for _ in 0..4096 {
        let packet = Packet {
            len: CHUNK,
            ..Packet::of(12, DATA)
        };
        driver.send(packet, CHUNK)?;
        while let Some(packet) = driver.next(0) {
            if packet.op == RESET {
                return Ok(());
            }
        }
    }
    Err("more than it has said that it has room for")
}

/// Each is answered, and no more are kept than a device may have.
pub fn too_many_connections(device: &Device) -> Result<(), Passed> {
    const MOST: u32 = 1024;
    let mut driver = Driver::start(device);
    let (mut accepted, mut refused) = (0, 0);
    for first in (0..MOST + 64).step_by(SIZE as usize) {
        for (index, port) in (0..).zip(first..first + SIZE) {
            let address = BUFFERS + 64 * u64::from(index);
            Packet::request(port).put(address);
            driver
                .transmit
                .describe(index, Descriptor::new(address, Packet::BYTES, 0, 0));
            driver.transmit.offer(index);
        }
        driver.transmit.kick();
        for _ in 0..SIZE {
            match driver.answer() {
                Some(RESPONSE) => accepted += 1,
                Some(RESET) => refused += 1,
                _ => return Err("a request that it does not answer"),
            }
        }
    }
    if accepted > MOST || refused == 0 {
        return Err("more connections than there may be");
    }
    // The same ones again, ends of theirs, and answers that nobody asked for.
    for port in 0..100 {
        for op in [REQUEST, SHUTDOWN, RESPONSE, RESET, SHUTDOWN] {
            let packet = Packet {
                flags: u32::MAX,
                ..Packet::of(port, op)
            };
            driver.send(packet, 0)?;
            while driver.next(0).is_some() {}
        }
    }
    Ok(())
}

/// Packets that are all answered, from a guest that offers no room for answers.
pub fn answers_nobody_takes(device: &Device) -> Result<(), Passed> {
    const PACKETS: u32 = 4000;
    device.start(device.usual_features());
    ask_for_answers(device, PACKETS);
    let all_used = u32::from(device.queue(1).used()) == PACKETS;
    all_used.then_some(()).ok_or("fewer packets than were sent")
}
