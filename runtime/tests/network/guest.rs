//! A guest without a machine: it holds a tap and speaks Ethernet, ARP, IPv4, UDP and ICMP by hand.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use berth_runtime::network::{EniSpec, MacAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Length of the virtio-net header in front of every frame of a fresh tap.
const VNET_HEADER: usize = 10;
const ARP: u16 = 0x0806;
pub(crate) const IPV4: u16 = 0x0800;
const BROADCAST: MacAddr = MacAddr([0xff; 6]);
/// Long enough for what comes, short enough to wait for what does not.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(400);

pub(crate) struct Guest {
    pub(crate) mac: MacAddr,
    pub(crate) address: Ipv4Addr,
    tap: Arc<File>,
    frames: Receiver<Vec<u8>>,
    ending: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// A UDP datagram as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) source: (Ipv4Addr, u16),
    pub(crate) destination: (Ipv4Addr, u16),
    pub(crate) payload: Vec<u8>,
}

impl Guest {
    pub(crate) fn new(tap: OwnedFd, eni: &EniSpec) -> Self {
        let tap = Arc::new(File::from(tap));
        let (sender, frames) = mpsc::channel();
        let ending = Arc::new(AtomicBool::new(false));
        let reader = {
            let (tap, ending, mac, address) = (Arc::clone(&tap), Arc::clone(&ending), eni.mac, eni.address);
            thread::spawn(move || read(&tap, mac, address, &sender, &ending))
        };
        Self {
            mac: eni.mac,
            address: eni.address,
            tap,
            frames,
            ending,
            reader: Some(reader),
        }
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) {
        write(&self.tap, frame);
    }

    /// Asks who has an address; none if nobody says so.
    pub(crate) fn resolve(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.send(&arp(
            BROADCAST,
            self.mac,
            1,
            (self.mac, self.address),
            (MacAddr([0; 6]), address),
        ));
        let reply = self.find(PATIENCE, |frame| {
            ether_type(frame) == ARP
                && frame.get(20..22) == Some(&[0, 2])
                && frame.get(28..32) == Some(&address.octets())
        })?;
        Some(MacAddr(reply[22..28].try_into().unwrap()))
    }

    pub(crate) fn udp(&self, next_hop: MacAddr, from_port: u16, to: (Ipv4Addr, u16), payload: &[u8]) {
        self.send(&udp(next_hop, self.mac, (self.address, from_port), to, payload));
    }

    pub(crate) fn receive_udp(&self) -> Option<Datagram> {
        self.datagram(PATIENCE)
    }

    /// Nothing arrives that carries IPv4.
    pub(crate) fn hears_nothing(&self) -> bool {
        self.find(SILENCE, |frame| ether_type(frame) == IPV4).is_none()
    }

    /// Whether an echo request is answered.
    pub(crate) fn ping(&self, next_hop: MacAddr, address: Ipv4Addr) -> bool {
        let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        echo.extend_from_slice(b"berth");
        let sum = checksum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        self.send(&ipv4(next_hop, self.mac, self.address, address, 1, &echo));
        let is_reply = |frame: &[u8]| {
            ether_type(frame) == IPV4 && frame.get(23) == Some(&1) && frame.get(34) == Some(&0)
        };
        self.find(PATIENCE, is_reply).is_some()
    }

    /// Waits for a frame, and lets pass those that come before it.
    pub(crate) fn find(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            let frame = self.frames.recv_timeout(left).ok()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    fn datagram(&self, patience: Duration) -> Option<Datagram> {
        let frame = self.find(patience, |frame| {
            ether_type(frame) == IPV4 && frame.get(23) == Some(&17)
        })?;
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let end = 34 + usize::from(port(38));
        Some(Datagram {
            source: (address(26), port(34)),
            destination: (address(30), port(36)),
            payload: frame[42..end].to_vec(),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Takes what arrives and answers ARP, as a guest's kernel would.
fn read(mut tap: &File, mac: MacAddr, address: Ipv4Addr, frames: &Sender<Vec<u8>>, ending: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !ending.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::from(20_u8);
        if !poll(&mut ready, timeout).is_ok_and(|count| count > 0) {
            continue;
        }
        // A tap that was deleted under its file says so for ever.
        let Ok(len) = tap.read(&mut buffer) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let frame = buffer[..len].get(VNET_HEADER..).unwrap_or_default().to_vec();
        let asks_us = ether_type(&frame) == ARP
            && frame.get(20..22) == Some(&[0, 1])
            && frame.get(38..42) == Some(&address.octets());
        if asks_us {
            let asker = MacAddr(frame[22..28].try_into().unwrap());
            let asker_address = Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]);
            write(tap, &arp(asker, mac, 2, (mac, address), (asker, asker_address)));
        }
        if frames.send(frame).is_err() {
            return;
        }
    }
}

fn write(mut tap: &File, frame: &[u8]) {
    let mut with_header = vec![0; VNET_HEADER];
    with_header.extend_from_slice(frame);
    // Writing to a tap that was taken away fails; that nothing arrives is what the tests look at.
    let _ = tap.write(&with_header);
}

pub(crate) fn ethernet(to: MacAddr, from: MacAddr, ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [to.octets(), from.octets()].concat();
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(body);
    frame.resize(frame.len().max(60), 0);
    frame
}

pub(crate) fn arp(
    to: MacAddr,
    from: MacAddr,
    operation: u8,
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        body.extend_from_slice(&mac.octets());
        body.extend_from_slice(&address.octets());
    }
    ethernet(to, from, ARP, &body)
}

pub(crate) fn udp(
    to_mac: MacAddr,
    from_mac: MacAddr,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&from.1.to_be_bytes());
    datagram.extend_from_slice(&to.1.to_be_bytes());
    datagram.extend_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend_from_slice(&[0, 0]); // no checksum
    datagram.extend_from_slice(payload);
    ipv4(to_mac, from_mac, from.0, to.0, 17, &datagram)
}

pub(crate) fn ipv4(
    to_mac: MacAddr,
    from_mac: MacAddr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&u16::try_from(20 + body.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(body);
    ethernet(to_mac, from_mac, IPV4, &packet)
}

pub(crate) fn ether_type(frame: &[u8]) -> u16 {
    frame
        .get(12..14)
        .map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
