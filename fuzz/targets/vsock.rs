//! A hostile guest's vsock packets, with the host connecting, reading, writing and hanging up in between.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_fuzz::driver::{RING_STEPS, silent};
use berth_fuzz::{Guest, Input, Rings};
use berth_vmm::fuzzing::VsockQueues;
use libfuzzer_sys::fuzz_target;

const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;
/// A driver that has packets written into its own rings can keep the device busy for long.
const MOST_RUNS: usize = 8;

type Sockets = Arc<Mutex<Vec<UnixStream>>>;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let guest = Guest::default();
    let event_idx = input.flag();
    let mut rings = [0, 1, 2].map(|index| Rings::new(index, &mut input));
    let queues = [0, 1, 2].map(|index: usize| rings[index].queue(&guest, event_idx));
    let (mut device, handle) =
        VsockQueues::new(GUEST_CID, guest.memory.clone(), queues, silent()).expect("events can be made");
    let sockets = Sockets::default();
    while let Some(step) = input.step() {
        match step % 20 {
            0..=2 => {
                device.sockets().expect("events can be waited for");
                (0..MOST_RUNS).all(|_| device.transmit());
                (0..MOST_RUNS).all(|_| device.receive());
            }
            3..=6 => {
                let (header, data) = packet(&mut input);
                let mut buffers = vec![(Guest::address(&mut input), 44, false)];
                if !data.is_empty() {
                    buffers.push((Guest::address(&mut input), data.len() as u32, false));
                }
                let content = [&header[..], data].concat();
                rings[1].offer(&guest, &content, &buffers);
            }
            7 => flood(&mut device, &mut rings[1], &guest, &mut input),
            8 => {
                let buffer = (Guest::address(&mut input), Guest::length(&mut input), true);
                rings[0].offer(&guest, &[], &[buffer]);
            }
            9 => listen(&handle, &sockets, input.u8()),
            10 => {
                let sockets = sockets.clone();
                let done = move |result: Result<std::os::fd::OwnedFd, String>| keep(&sockets, result.ok());
                handle.connect(input.u8().into(), Box::new(done));
            }
            11 | 12 => use_socket(&sockets, &mut input),
            13 => device.expire(Duration::from_secs(3)),
            14 => {
                if !device.reset_transport() {
                    break;
                }
            }
            _ => {
                let which = usize::from(input.u8() % 3);
                rings[which].step(input.u8() % RING_STEPS, &guest, &mut input);
            }
        }
    }
    device.leave();
});

/// A header, mostly of a sound packet, and the data that follow it.
fn packet<'a>(input: &mut Input<'a>) -> (Vec<u8>, &'a [u8]) {
    let shape = input.u8();
    let of = |bit: u8, sound: u64, input: &mut Input| if shape & bit == 0 { sound } else { input.u64() };
    let source = of(1, GUEST_CID, input);
    let destination = of(2, HOST_CID, input);
    let ports = [input.number() as u32, input.number() as u32];
    let op = u16::from(input.u8());
    let flags = input.u8().into();
    let data = if op == 5 { input.some_bytes() } else { &[] };
    let length = of(4, data.len() as u64, input) as u32;
    let kind = of(8, 1, input) as u16;
    let room = of(16, 1 << 16, input) as u32;
    let taken = input.number() as u32;
    let header = header(source, destination, ports, length, kind, op, [flags, room, taken]);
    (header, data)
}

/// A header as it is on the wire; last its flags, the size of the sender's buffer, and what was taken out of it.
fn header(
    source: u64,
    destination: u64,
    ports: [u32; 2],
    length: u32,
    kind: u16,
    op: u16,
    last: [u32; 3],
) -> Vec<u8> {
    let mut header = Vec::with_capacity(44);
    header.extend(source.to_le_bytes());
    header.extend(destination.to_le_bytes());
    header.extend(ports.map(u32::to_le_bytes).as_flattened());
    header.extend(length.to_le_bytes());
    header.extend([kind, op].map(u16::to_le_bytes).as_flattened());
    header.extend(last.map(u32::to_le_bytes).as_flattened());
    header
}

/// Sends the same long packet of data again and again, until a window must be full.
fn flood(device: &mut VsockQueues, rings: &mut Rings, guest: &Guest, input: &mut Input) {
    let ports = [input.u8(), input.u8()].map(|port| u32::from(port % 4));
    let length = u32::from(input.u16()) % 0x8000;
    let header = header(GUEST_CID, HOST_CID, ports, length, 1, 5, [0, 1 << 16, 0]);
    for _ in 0..input.u8() % 32 {
        rings.offer(guest, &header, &[(0x6000, 44, false), (0x7000, length, false)]);
        device.transmit();
    }
}

/// From now on somebody takes connections, gives them back, or nobody is there.
fn listen(handle: &berth_vmm::devices::virtio::vsock::VsockHandle, sockets: &Sockets, how: u8) {
    let sockets = sockets.clone();
    handle.set_listener(match how % 4 {
        0 => None,
        1 => Some(Box::new(|_, socket| Err(socket))),
        _ => Some(Box::new(move |_, socket| {
            keep(&sockets, Some(socket));
            Ok(())
        })),
    });
}

fn keep(sockets: &Sockets, socket: Option<std::os::fd::OwnedFd>) {
    if let Some(socket) = socket {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true).expect("a socket need not block");
        sockets.lock().expect("no target panics").push(socket);
    }
}

/// The host does something with one of its ends.
fn use_socket(sockets: &Sockets, input: &mut Input) {
    let mut sockets = sockets.lock().expect("no target panics");
    let which = usize::from(input.u8());
    let count = sockets.len();
    if count == 0 {
        return;
    }
    let socket = &mut sockets[which % count];
    match input.u8() % 8 {
        0 | 1 => drop(socket.write(input.some_bytes())),
        2 => drop(socket.write(&vec![7; Guest::length(input) as usize % (1 << 20)])),
        3 | 4 => drop(socket.read(&mut vec![0; 1 << 16])),
        5 => drop(socket.shutdown(Shutdown::Write)),
        6 => drop(socket.shutdown(Shutdown::Read)),
        _ => drop(sockets.swap_remove(which % count)),
    }
}
