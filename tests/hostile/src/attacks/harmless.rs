//! One request of a driver that means no harm.

use super::vsock::{self, Packet};
use crate::machine::{fill, read, wait, write};
use crate::virtio::{BUFFERS, Descriptor, Device, Kind, NEXT, PATIENCE, Settled, WRITE};

/// Whether a device that was reset serves such a driver.
pub fn is_served(device: &Device) -> Result<(), &'static str> {
    device.start(device.usual_features());
    if device.failed() {
        return Err("it does not start");
    }
    match device.kind {
        Kind::Block => block(device),
        Kind::Entropy => entropy(device),
        Kind::Net => net(device),
        Kind::Vsock => vsock(device),
        Kind::Balloon => balloon(device),
    }
}

/// The id of the drive, which every drive has.
fn block(device: &Device) -> Result<(), &'static str> {
    const GET_ID: u32 = 8;
    let (header, id, status) = (BUFFERS, BUFFERS + 64, BUFFERS + 128);
    write(header, [GET_ID, 0, 0, 0]);
    fill(id, 20, 0xee);
    write(status, 0xee_u8);
    let mut queue = device.queue(0);
    queue.describe(0, Descriptor::new(header, 16, NEXT, 1));
    queue.describe(1, Descriptor::new(id, 20, NEXT | WRITE, 2));
    queue.describe(2, Descriptor::new(status, 1, WRITE, 0));
    if queue.run(0) != Settled::Used {
        return Err("a request is not used");
    }
    let right = read::<u8>(status) == 0 && queue.used_len() == 21 && read::<[u8; 4]>(id) == *b"disk";
    right.then_some(()).ok_or("a request is answered wrongly")
}

fn entropy(device: &Device) -> Result<(), &'static str> {
    fill(BUFFERS, 64, 0);
    let mut queue = device.queue(0);
    queue.describe(0, Descriptor::new(BUFFERS, 64, WRITE, 0));
    if queue.run(0) != Settled::Used {
        return Err("a request is not used");
    }
    let right = queue.used_len() == 64 && read::<[u64; 8]>(BUFFERS) != [0; 8];
    right.then_some(()).ok_or("a request is answered wrongly")
}

/// A frame of no protocol to everybody.
fn net(device: &Device) -> Result<(), &'static str> {
    fill(BUFFERS, 12 + 60, 0);
    fill(BUFFERS + 12, 6, 0xff);
    write(BUFFERS + 12 + 12, 0xb588_u16);
    let mut queue = device.queue(1);
    queue.describe(0, Descriptor::new(BUFFERS, 12 + 60, 0, 0));
    let used = queue.run(0) == Settled::Used;
    used.then_some(()).ok_or("a frame is not used")
}

/// A request for a connection to the host, which is answered.
fn vsock(device: &Device) -> Result<(), &'static str> {
    const ROOM: u32 = 4096;
    let answer = BUFFERS + 0x1_0000;
    fill(answer, 44, 0);
    let mut receive = device.queue(0);
    receive.describe(0, Descriptor::new(answer, ROOM, WRITE, 0));
    receive.offer(0);
    receive.kick();
    Packet::request(4000).put(BUFFERS);
    let mut transmit = device.queue(1);
    transmit.describe(0, Descriptor::new(BUFFERS, Packet::BYTES, 0, 0));
    if transmit.run(0) != Settled::Used {
        return Err("a packet is not used");
    }
    if !wait(PATIENCE, || receive.used() == 1) {
        return Err("a packet is not answered");
    }
    let right = Packet::get(answer).op == vsock::RESPONSE;
    right.then_some(()).ok_or("a connection is not accepted")
}

/// A page that nothing is in.
fn balloon(device: &Device) -> Result<(), &'static str> {
    let page = BUFFERS + 0x10_0000;
    write(page, !0_u64);
    write(BUFFERS, (page / 4096) as u32);
    let mut queue = device.queue(0);
    queue.describe(0, Descriptor::new(BUFFERS, 4, 0, 0));
    if queue.run(0) != Settled::Used {
        return Err("a page is not used");
    }
    let right = read::<u64>(page) == 0;
    right.then_some(()).ok_or("a page is not taken")
}
