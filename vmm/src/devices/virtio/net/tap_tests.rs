//! The whole device on a real tap, in a network namespace of the test's own; the host's end is a packet socket. Needs
//! root and `/dev/net/tun`, and says so where it has not.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;

use super::driver::{Driver, TestInterrupt, memory};
use super::header::HEADER_BYTES;
use super::{Net, NetThrottles};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::devices::virtio::{Activation, VirtioDevice};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// "Local experimental" (IEEE 802), which no stack answers.
const EXPERIMENTAL: u16 = 0x88b5;
const IPV4: u16 = 0x0800;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_BUFFERS: u64 = 0x100_0000;
const SLOT_BYTES: u64 = 0x1_2000;
const BUFFER_BYTES: u32 = 4096;
const QUEUE: u16 = 128;

fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the structure that its request takes.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A tap that is up, in the network namespace of this thread, and a packet socket on it.
fn tap_and_host(ethertype: u16, vnet_header: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    use std::os::unix::fs::OpenOptionsExt;
    let tun = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let tun = OwnedFd::from(tun);
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    ioctl(&tun, libc::TUNSETIFF, &mut request)?;
    let control = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    ioctl(&control, libc::SIOCSIFFLAGS, &mut request)?;
    ioctl(&control, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX has filled this member.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };

    let host = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    if vnet_header {
        const PACKET_VNET_HDR: i32 = 15;
        let on = 1i32;
        // SAFETY: the option is an int, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                host.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(result, 0);
    }
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    // SAFETY: the address is as long as said.
    let result = unsafe {
        libc::bind(
            host.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(result, 0);
    Ok((tun, host))
}

/// Says so past the test harness, which keeps what a passing test prints to itself.
fn skipped(why: &str, error: &dyn std::error::Error) {
    let _ = writeln!(io::stderr(), "SKIPPED a tap test: {why}: {error}");
}

/// Runs a test in a network namespace of its own, where that is possible.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(error) => skipped("no network namespace without root", &error),
    })
    .join()
    .unwrap();
}

struct Guest {
    device: Net,
    receive: Driver,
    transmit: Driver,
    interrupt: Arc<TestInterrupt>,
    slot: u64,
}

impl Guest {
    /// A guest with so many receive buffers.
    fn new(tap: OwnedFd, buffers: u64) -> Self {
        let memory = memory();
        let (receive, receive_queue) = Driver::new(&memory, 0x1_0000, QUEUE);
        let (transmit, transmit_queue) = Driver::new(&memory, 0x2_0000, QUEUE);
        let interrupt = Arc::new(TestInterrupt::default());
        let throttles = NetThrottles {
            receive: Throttle::open(),
            transmit: Throttle::open(),
        };
        let mut device = Net::new(tap, MAC, None, Arc::default(), throttles, Worker::unconfined());
        device
            .activate(Activation {
                memory,
                queues: vec![receive_queue, transmit_queue],
                interrupt: Arc::clone(&interrupt) as _,
                features: device.features(),
                restored: false,
            })
            .unwrap();
        let mut guest = Self {
            device,
            receive,
            transmit,
            interrupt,
            slot: 0,
        };
        guest.offer_receive_buffers(0..buffers);
        guest
    }

    fn offer_receive_buffers(&mut self, slots: std::ops::Range<u64>) {
        for slot in slots {
            let address = RECEIVE_BUFFERS + slot * u64::from(BUFFER_BYTES);
            self.receive.offer(&[(address, BUFFER_BYTES)], true);
        }
    }

    fn try_send(&mut self, frame: &[u8]) -> bool {
        while self.transmit.take_used().is_some() {}
        if self.transmit.free_descriptors() < QUEUE as usize - 64 {
            return false;
        }
        let address = TRANSMIT_BUFFERS + self.slot * SLOT_BYTES;
        self.slot = (self.slot + 1) % 100;
        self.transmit.write(address, frame);
        self.transmit.offer(
            &[
                (address, HEADER_BYTES as u32),
                (address + 12, frame.len() as u32 - 12),
            ],
            false,
        );
        true
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.receive.take_used()?;
        let raw = self.receive.read(0x1_0000 + 16 * u64::from(head), 8);
        let address = u64::from_le_bytes(raw.try_into().unwrap());
        let data = self.receive.read(address, len as usize);
        self.receive.offer(&[(address, BUFFER_BYTES)], true);
        Some(data)
    }

    /// The next frame of an Ethernet type, with its header; others (the host's own) are skipped.
    fn try_receive(&mut self, ethertype: u16) -> Option<Vec<u8>> {
        loop {
            let mut frame = self.take_buffer()?;
            for _ in 1..u16::from_le_bytes([frame[10], frame[11]]) {
                frame.extend(self.take_buffer().expect("all buffers of a frame at once"));
            }
            if frame[HEADER_BYTES + 12..][..2] == ethertype.to_be_bytes() {
                return Some(frame);
            }
        }
    }

    fn receive(&mut self, ethertype: u16) -> Vec<u8> {
        loop {
            let seen = self.interrupt.count();
            if let Some(frame) = self.try_receive(ethertype) {
                return frame;
            }
            self.interrupt.wait(seen);
        }
    }
}

fn host_send(host: &OwnedFd, data: &[u8]) {
    // SAFETY: the buffer is as long as said.
    let sent = unsafe { libc::send(host.as_raw_fd(), data.as_ptr().cast(), data.len(), 0) };
    assert_eq!(sent, data.len() as isize, "{}", io::Error::last_os_error());
}

fn host_receive(host: &OwnedFd) -> Vec<u8> {
    let mut data = vec![0; 100_000];
    // SAFETY: the buffer is as long as said.
    let len = unsafe { libc::recv(host.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), 0) };
    assert!(len > 0, "{}", io::Error::last_os_error());
    data.truncate(len as usize);
    data
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&to[..], &from[..], &ethertype.to_be_bytes()].concat()
}

/// Frame number `n` of the test stream, of a length that varies.
fn payload(n: usize) -> Vec<u8> {
    let len = 46 + n * 7919 % 1_455;
    let mut payload: Vec<u8> = (0..len).map(|i| (n + i * 3) as u8).collect();
    payload[..8].copy_from_slice(&(n as u64).to_le_bytes());
    payload
}

#[test]
fn ten_megabytes_each_way_cross_a_tap() {
    const FRAMES: usize = 13_000;
    /// Frames on the way, fewer than a packet socket or a tap keeps.
    const WINDOW: usize = 32;
    /// Sometimes enough for the longest frame, sometimes not, and sometimes none.
    const BUFFERS: u64 = 18;
    in_a_namespace(|| {
        let (tap, host) = match tap_and_host(EXPERIMENTAL, false) {
            Ok(pair) => pair,
            Err(error) => return skipped("no tap", &error),
        };
        let mut guest = Guest::new(tap, BUFFERS);
        let host = Arc::new(host);
        let (host_got, guest_got) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let receiver = std::thread::spawn({
            let (host, host_got) = (Arc::clone(&host), Arc::clone(&host_got));
            move || {
                let mut n = 0;
                while n < FRAMES {
                    let frame = host_receive(&host);
                    // A packet socket sees what is sent as well.
                    if frame[..6] == HOST_MAC {
                        assert!(frame[14..] == payload(n), "frame {n}");
                        n += 1;
                        host_got.store(n, Ordering::SeqCst);
                    }
                }
            }
        });
        let sender = std::thread::spawn({
            let guest_got = Arc::clone(&guest_got);
            move || {
                for n in 0..FRAMES {
                    while n >= guest_got.load(Ordering::SeqCst) + WINDOW {
                        std::thread::sleep(Duration::from_micros(20));
                    }
                    host_send(
                        &host,
                        &[ethernet(MAC, HOST_MAC, EXPERIMENTAL), payload(n)].concat(),
                    );
                }
            }
        });
        let (mut sent, mut received) = (0, 0);
        while sent < FRAMES || received < FRAMES {
            let seen = guest.interrupt.count();
            let mut progress = false;
            while let Some(frame) = guest.try_receive(EXPERIMENTAL) {
                assert!(
                    frame[HEADER_BYTES + 14..] == payload(received),
                    "frame {received}"
                );
                received += 1;
                guest_got.store(received, Ordering::SeqCst);
                progress = true;
            }
            if sent < FRAMES && sent < host_got.load(Ordering::SeqCst) + WINDOW {
                let head = [vec![0; HEADER_BYTES], ethernet(HOST_MAC, MAC, EXPERIMENTAL)].concat();
                if guest.try_send(&[head, payload(sent)].concat()) {
                    sent += 1;
                    progress = true;
                }
            }
            if !progress && received < FRAMES && sent == FRAMES {
                guest.interrupt.wait(seen);
            }
        }
        receiver.join().unwrap();
        sender.join().unwrap();
    });
}

/// An IPv4 TCP segment with `len` bytes of payload, as a stack hands it to a device that segments: its checksum holds
/// the sum of the pseudo header alone.
fn tcp_segment(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let total = (40 + len) as u16;
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
    ];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = |bytes: &[u8]| {
        bytes
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
            .sum::<u32>()
    };
    let fold = |sum: u32| ((sum & 0xffff) + (sum >> 16)) as u16;
    let checksum = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    (tcp[12], tcp[13]) = (0x50, 0x10);
    let pseudo = fold(sum(&ip[12..20]) + 6 + 20 + len as u32);
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let data: Vec<u8> = (0..len).map(|i| (i % 241) as u8).collect();
    [ethernet(to, from, IPV4), ip, tcp, data].concat()
}

/// `struct virtio_net_hdr`: checksum at 34 + 16, segments of 1448 bytes behind 54 bytes of headers.
const SEGMENTATION: [u8; 10] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0];

#[test]
fn large_segments_cross_a_tap_whole() {
    const FEW: u64 = 10;
    in_a_namespace(|| {
        let (tap, host) = match tap_and_host(IPV4, true) {
            Ok(pair) => pair,
            Err(error) => return skipped("no tap", &error),
        };
        let mut guest = Guest::new(tap, FEW);
        let to_guest = tcp_segment(MAC, HOST_MAC, 60_000);
        host_send(&host, &[&SEGMENTATION[..], &to_guest].concat());
        // Too few buffers: it has to wait, and the driver's kick has to wake it.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guest.try_receive(IPV4), None);
        guest.offer_receive_buffers(FEW..u64::from(QUEUE));
        let frame = guest.receive(IPV4);
        assert_eq!(frame[..2], SEGMENTATION[..2]);
        assert!(frame[HEADER_BYTES..] == to_guest);

        let to_host = tcp_segment(HOST_MAC, MAC, 60_000);
        assert!(guest.try_send(&[&SEGMENTATION[..], &[0, 0], &to_host].concat()));
        let frame = loop {
            let frame = host_receive(&host);
            if frame[10..16] == HOST_MAC {
                break frame;
            }
        };
        assert_eq!(frame[..2], SEGMENTATION[..2]);
        assert!(frame[10..] == to_host);

        // Another device goes on: the buffers that the first had looked at and not used are there for it.
        let positions = guest.device.stop();
        assert_eq!(positions.len(), 2);
        let activation = Activation {
            memory: guest.receive.memory.clone(),
            queues: vec![
                guest.receive.continued(positions[0]),
                guest.transmit.continued(positions[1]),
            ],
            interrupt: Arc::clone(&guest.interrupt) as _,
            features: guest.device.features(),
            restored: true,
        };
        guest.device.activate(activation).unwrap();
        for _ in 0..2 * QUEUE {
            let segment = tcp_segment(MAC, HOST_MAC, 100);
            host_send(&host, &[&[0; SEGMENTATION.len()][..], &segment].concat());
            assert!(guest.receive(IPV4)[HEADER_BYTES..].starts_with(&segment));
        }

        // A driver that cannot take offloads gets plain frames after a reset.
        guest.device.stop();
        let (receive, queue) = Driver::new(&guest.receive.memory, 0x1_0000, QUEUE);
        let (transmit, transmit_queue) = Driver::new(&guest.receive.memory, 0x2_0000, QUEUE);
        (guest.receive, guest.transmit) = (receive, transmit);
        let features = guest.device.features() & !(1 << VIRTIO_NET_F_GUEST_CSUM);
        let activation = Activation {
            memory: guest.receive.memory.clone(),
            queues: vec![queue, transmit_queue],
            interrupt: Arc::clone(&guest.interrupt) as _,
            features,
            restored: false,
        };
        guest.device.activate(activation).unwrap();
        guest.offer_receive_buffers(0..u64::from(QUEUE));
        host_send(
            &host,
            &[&SEGMENTATION[..], &tcp_segment(MAC, HOST_MAC, 4_000)].concat(),
        );
        let mut payload = 0;
        while payload < 4_000 {
            let frame = guest.receive(IPV4);
            assert_eq!(frame[..2], [0, 0]);
            assert!(frame.len() <= HEADER_BYTES + 1_514);
            payload += frame.len() - HEADER_BYTES - 54;
        }
        assert_eq!(payload, 4_000);
    });
}
