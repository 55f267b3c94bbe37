//! The queues against a datagram socket that plays the tap, and a hostile driver. The whole device on a real tap is in
//! `tap_tests`.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::driver::{Driver, INDIRECT, NEXT, WRITE, memory};
use super::header::HEADER_BYTES;
use super::rx::Receive;
use super::tx::Transmit;
use super::{FRAMES_PER_RUN, MAX_FRAME_BYTES, Net, NetThrottles};
use crate::control::Metrics;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::metrics::Counters;

const RINGS: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A "tap", and the host's end of it.
fn tap() -> (OwnedFd, UnixDatagram) {
    let (tap, host) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    (tap.into(), host)
}

struct Sender {
    driver: Driver,
    transmit: Transmit,
    tap: OwnedFd,
    host: UnixDatagram,
    counters: Arc<Counters>,
}

impl Sender {
    fn new(features: u64) -> Self {
        let memory = memory();
        let (driver, queue) = Driver::new(&memory, RINGS, 64);
        let counters = Arc::new(Counters::default());
        let transmit = Transmit::new(
            queue.queue,
            memory,
            features,
            Arc::clone(&counters),
            Throttle::open(),
        );
        let (tap, host) = tap();
        Self {
            driver,
            transmit,
            tap,
            host,
            counters,
        }
    }

    fn run(&mut self) -> bool {
        self.transmit.run(&self.tap).unwrap().more
    }

    fn arrived(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 100_000];
        let len = self.host.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn metrics(&self) -> Metrics {
        self.counters.snapshot()
    }

    /// Offers a chain that must be refused, and returns whether it was, with nothing sent.
    fn refuses(&mut self, head: u16) -> bool {
        let before = self.metrics().device_errors;
        self.driver.offer_head(head);
        self.run();
        self.driver.take_used() == Some((head, 0))
            && self.metrics().device_errors == before + 1
            && self.arrived().is_none()
    }
}

fn frame_with_header(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..len).map(|i| (i * 7 % 251) as u8));
    frame
}

#[test]
fn frame_is_gathered_from_the_descriptors_of_its_chain() {
    let mut sender = Sender::new(0);
    let frame = frame_with_header(1_000);
    sender.driver.write(BUFFERS, &frame);
    // The header itself is split, and one descriptor is empty.
    let parts = [(BUFFERS, 5), (BUFFERS + 5, 20), (BUFFERS, 0), (BUFFERS + 25, 987)];
    let head = sender.driver.offer(&parts, false);
    assert!(!sender.run());
    assert_eq!(sender.arrived(), Some(frame));
    assert_eq!(sender.driver.take_used(), Some((head, 0)));
    assert_eq!(sender.metrics().net_tx_packets, 1);
    assert_eq!(sender.metrics().net_tx_bytes, 1_000);
}

#[test]
fn frame_from_an_indirect_table_is_sent() {
    let mut sender = Sender::new(0);
    let frame = frame_with_header(100);
    sender.driver.write(BUFFERS, &frame);
    let table = 0x5_0000;
    sender
        .driver
        .describe_at(GuestAddress(table), 0, (BUFFERS, 12, NEXT, 1));
    sender
        .driver
        .describe_at(GuestAddress(table), 1, (BUFFERS + 12, 100, 0, 0));
    sender.driver.describe(3, (table, 32, INDIRECT, 0));
    sender.driver.offer_head(3);
    sender.run();
    assert_eq!(sender.arrived(), Some(frame));
}

#[test]
fn segmentation_that_was_not_negotiated_is_refused() {
    let mut frame = frame_with_header(100);
    (frame[0], frame[1]) = (1, 1);
    for (features, passes) in [
        (1 << VIRTIO_NET_F_CSUM, false),
        (1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4, true),
    ] {
        let mut sender = Sender::new(features);
        sender.driver.write(BUFFERS, &frame);
        sender.driver.offer(&[(BUFFERS, 112)], false);
        sender.run();
        assert_eq!(sender.arrived().is_some(), passes);
    }
}

#[test]
fn malformed_chains_are_refused_and_the_next_frame_is_sent() {
    let mut sender = Sender::new(0);
    let end = super::driver::MEMORY_BYTES as u64;
    let long = (HEADER_BYTES + MAX_FRAME_BYTES) as u32;
    let bad: [&[super::driver::Descriptor]; 10] = [
        &[(BUFFERS, 100, WRITE, 0)],
        &[(BUFFERS, 100, NEXT, 1), (BUFFERS, 100, WRITE, 0)],
        &[(end - 50, 100, 0, 0)],
        &[(u64::MAX - 10, 100, 0, 0)],
        &[(BUFFERS, u32::MAX, 0, 0)],
        &[(BUFFERS, long + 1, 0, 0)],
        // Loops: onto itself, and outside the table.
        &[(BUFFERS, 100, NEXT, 0)],
        &[(BUFFERS, 100, NEXT, 64)],
        // Shorter than its headers.
        &[(BUFFERS, 25, 0, 0)],
        &[(BUFFERS, 0, 0, 0)],
    ];
    for chain in bad {
        for (index, &descriptor) in chain.iter().enumerate() {
            sender.driver.describe(index as u16, descriptor);
        }
        assert!(sender.refuses(0), "{chain:?}");
    }
    for table in [
        (0x5_0001, 8, INDIRECT, 0),
        (end, 32, INDIRECT, 0),
        (0x5_0000, 0, INDIRECT, 0),
    ] {
        sender.driver.describe(0, table);
        assert!(sender.refuses(0), "{table:?}");
    }
    let frame = frame_with_header(60);
    sender.driver.write(BUFFERS, &frame);
    sender.driver.describe(0, (BUFFERS, 72, 0, 0));
    sender.driver.offer_head(0);
    sender.run();
    assert_eq!(sender.arrived(), Some(frame));
}

#[test]
fn impossible_ring_index_or_head_breaks_the_queue() {
    let mut sender = Sender::new(0);
    sender.driver.set_available(65);
    assert!(sender.transmit.run(&sender.tap).is_err());

    let mut sender = Sender::new(0);
    sender.driver.offer_head(64);
    assert!(sender.transmit.run(&sender.tap).is_err());
}

#[test]
fn one_run_sends_a_bounded_number_of_frames() {
    let mut sender = Sender::new(0);
    sender.driver.describe(0, (BUFFERS, 72, 0, 0));
    for _ in 0..FRAMES_PER_RUN {
        sender.driver.offer_head(0);
    }
    assert!(sender.run());
    assert_eq!(std::iter::from_fn(|| sender.arrived()).count(), FRAMES_PER_RUN);
    assert!(!sender.run());
}

struct Receiver {
    driver: Driver,
    kick: EventFd,
    receive: Receive,
    tap: OwnedFd,
    host: UnixDatagram,
    counters: Arc<Counters>,
    /// Address of each chain's buffer, by head.
    buffers: Vec<u64>,
    next_buffer: u64,
}

impl Receiver {
    fn new(features: u64, size: u16) -> Self {
        let memory = memory();
        let (driver, queue) = Driver::new(&memory, RINGS, size);
        let counters = Arc::new(Counters::default());
        let receive = Receive::new(
            queue.queue,
            memory,
            features,
            Arc::clone(&counters),
            Throttle::open(),
        );
        let (tap, host) = tap();
        let buffers = vec![0; usize::from(size)];
        Self {
            driver,
            kick: queue.kick,
            receive,
            tap,
            host,
            counters,
            buffers,
            next_buffer: BUFFERS,
        }
    }

    fn offer(&mut self, len: u32) {
        let address = self.next_buffer;
        self.next_buffer = BUFFERS + (address + u64::from(len) - BUFFERS) % (16 << 20);
        let head = self.driver.offer(&[(address, len)], true);
        self.buffers[usize::from(head)] = address;
    }

    fn send(&mut self, frame: &[u8]) {
        self.host.send(frame).unwrap();
        self.receive.tap_is_ready();
    }

    fn run(&mut self) {
        while self.receive.run(&self.tap).unwrap().more {}
    }

    /// The next frame that the driver has got, with `num_buffers` cleared; and of how many buffers it was made.
    fn arrived(&mut self) -> Option<(Vec<u8>, u16)> {
        let (head, len) = self.driver.take_used()?;
        let mut frame = self.driver.read(self.buffers[usize::from(head)], len as usize);
        let buffers = u16::from_le_bytes([frame[10], frame[11]]);
        for _ in 1..buffers {
            let (head, len) = self.driver.take_used().expect("all buffers of a frame at once");
            frame.extend(self.driver.read(self.buffers[usize::from(head)], len as usize));
        }
        frame[10..12].fill(0);
        Some((frame, buffers))
    }

    fn metrics(&self) -> Metrics {
        self.counters.snapshot()
    }
}

#[test]
fn long_frame_is_spread_over_mergeable_buffers() {
    let mut receiver = Receiver::new(MERGEABLE, 64);
    for _ in 0..32 {
        receiver.offer(4096);
    }
    let (long, short) = (frame_with_header(60_000), frame_with_header(60));
    receiver.send(&long);
    receiver.send(&short);
    receiver.run();
    assert_eq!(receiver.arrived(), Some((long, 15)));
    assert_eq!(receiver.arrived(), Some((short, 1)));
    assert_eq!(receiver.arrived(), None);
    assert_eq!(receiver.metrics().net_rx_packets, 2);
    assert_eq!(receiver.metrics().net_rx_bytes, 60_060);
}

#[test]
fn frame_waits_until_the_driver_has_offered_enough_buffers() {
    let mut receiver = Receiver::new(MERGEABLE, 64);
    receiver.offer(4096);
    receiver.offer(4096);
    let (first, second) = (frame_with_header(20_000), frame_with_header(100));
    receiver.send(&first);
    receiver.send(&second);
    let _ = receiver.kick.read();
    receiver.run();
    assert_eq!(receiver.arrived(), None);
    for _ in 0..4 {
        receiver.offer(4096);
    }
    assert!(
        receiver.kick.read().is_ok(),
        "the driver was not asked for a kick"
    );
    receiver.run();
    assert_eq!(receiver.arrived(), Some((first, 5)));
    assert_eq!(receiver.arrived(), Some((second, 1)));
    assert_eq!(receiver.metrics().net_rx_dropped, 0);
}

#[test]
fn frame_that_can_never_fit_is_dropped() {
    // All that this driver can offer is too little.
    let mut receiver = Receiver::new(MERGEABLE, 4);
    for _ in 0..4 {
        receiver.offer(2048);
    }
    let short = frame_with_header(60);
    receiver.send(&frame_with_header(20_000));
    receiver.send(&short);
    receiver.run();
    assert_eq!(receiver.arrived(), Some((short.clone(), 1)));
    assert_eq!(receiver.metrics().net_rx_dropped, 1);

    // Without mergeable buffers a frame has one chain.
    let mut receiver = Receiver::new(0, 64);
    receiver.offer(2048);
    receiver.offer(2048);
    receiver.send(&frame_with_header(2048));
    receiver.send(&short);
    receiver.run();
    assert_eq!(receiver.arrived(), Some((short, 1)));
    assert_eq!(receiver.metrics().net_rx_dropped, 1);
}

#[test]
fn unusable_receive_buffers_are_returned_empty() {
    let mut receiver = Receiver::new(MERGEABLE, 64);
    let end = super::driver::MEMORY_BYTES as u64;
    let bad = [
        (BUFFERS, 2048, 0, 0),
        (end, 2048, WRITE, 0),
        (BUFFERS, u32::MAX, WRITE, 0),
        (BUFFERS, 11, WRITE, 0),
        (BUFFERS, 2048, WRITE | NEXT, 5),
    ];
    for (index, descriptor) in (0u16..).zip(bad) {
        receiver.driver.describe(index, descriptor);
        if index == 4 {
            receiver.driver.describe(5, (BUFFERS, 2048, WRITE | NEXT, 4));
        }
        receiver.driver.offer_head(index);
    }
    let frame = frame_with_header(60);
    receiver.send(&frame);
    receiver.run();
    for index in 0..5 {
        assert_eq!(receiver.driver.take_used(), Some((index, 0)));
    }
    assert_eq!(receiver.metrics().device_errors, 5);
    receiver.offer(2048);
    receiver.run();
    assert!(receiver.driver.take_used().is_some_and(|(_, len)| len == 72));
}

#[test]
fn configuration_holds_mac_and_mtu() {
    let (tap, _host) = tap();
    let net = Net::new(
        tap,
        [2, 0, 0, 1, 2, 3],
        Some(1500),
        Arc::default(),
        NetThrottles {
            receive: Throttle::open(),
            transmit: Throttle::open(),
        },
        Worker::unconfined(),
    );
    let mut config = [0xaa; 16];
    net.read_config(0, &mut config);
    assert_eq!(config[..6], [2, 0, 0, 1, 2, 3]);
    assert_eq!(config[10..], [0xdc, 0x05, 0, 0, 0, 0]);
    net.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 16]);
    assert_ne!(net.features() & 1 << VIRTIO_NET_F_MTU, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the sizes of frames and buffers, the driver gets every frame, whole and in order, as long as it goes
    /// on offering buffers; and is told whenever it waits.
    #[test]
    fn no_frame_is_lost_or_changed(
        steps in prop::collection::vec((1usize..=9_000, 64u32..=5_000, 0usize..6), 1..60),
    ) {
        let mut receiver = Receiver::new(MERGEABLE, 256);
        let mut expected = std::collections::VecDeque::new();
        let check = |receiver: &mut Receiver, expected: &mut std::collections::VecDeque<Vec<u8>>| {
            while let Some((frame, _)) = receiver.arrived() {
                assert_eq!(Some(frame), expected.pop_front());
            }
        };
        for (len, buffer, buffers) in steps {
            for _ in 0..buffers {
                if receiver.driver.free_descriptors() > 0 {
                    receiver.offer(buffer);
                }
            }
            let frame = frame_with_header(len);
            // The socket's buffer may be full, as a tap's queue may.
            if receiver.host.send(&frame).is_ok() {
                expected.push_back(frame);
            }
            receiver.receive.tap_is_ready();
            let signal = receiver.receive.run(&receiver.tap).unwrap().signal;
            let before = expected.len();
            check(&mut receiver, &mut expected);
            prop_assert!(signal || expected.len() == before);
        }
        while !expected.is_empty() {
            while receiver.driver.free_descriptors() > 128 {
                receiver.offer(4096);
            }
            receiver.run();
            check(&mut receiver, &mut expected);
        }
        prop_assert_eq!(receiver.metrics().net_rx_dropped, 0);
        prop_assert_eq!(receiver.metrics().device_errors, 0);
    }

    /// Whatever a descriptor table and the rings say, a run ends, and every frame that leaves was in the guest.
    #[test]
    fn random_descriptors_never_break_the_queues(
        descriptors in prop::collection::vec(descriptor(), 64),
        heads in prop::collection::vec(0u16..66, 1..40),
    ) {
        let mut sender = Sender::new(u64::MAX);
        let mut receiver = Receiver::new(MERGEABLE, 64);
        for driver in [&mut sender.driver, &mut receiver.driver] {
            for (index, &descriptor) in (0u16..).zip(&descriptors) {
                driver.describe(index, descriptor);
            }
            for &head in &heads {
                driver.offer_head(head);
            }
        }
        while sender.transmit.run(&sender.tap).is_ok_and(|progress| progress.more) {}
        while let Some(frame) = sender.arrived() {
            prop_assert!(frame.len() <= HEADER_BYTES + MAX_FRAME_BYTES);
        }
        for len in [60, 9_000, 60_000] {
            receiver.send(&frame_with_header(len));
            while receiver.receive.run(&receiver.tap).is_ok_and(|progress| progress.more) {}
        }
    }
}

/// Descriptors that are often almost right.
fn descriptor() -> impl Strategy<Value = super::driver::Descriptor> {
    let end = super::driver::MEMORY_BYTES as u64;
    let address = prop_oneof![8 => BUFFERS..end, 1 => end - 100..end + 100, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0u32..9_000, 1 => 0u32..200_000, 1 => any::<u32>()];
    // Rarely indirect.
    let flags = prop_oneof![9 => 0u16..4, 1 => any::<u16>()];
    (address, len, flags, 0u16..66)
}
