//! The network device's thread under limits, on a datagram socket that plays the tap. Where a test must not depend on the
//! clock, the rate is so low that nothing flows in.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::NetThrottles;
use super::driver::{Driver, TestInterrupt, memory};
use super::header::HEADER_BYTES;
use super::rx::Receive;
use super::service::{self, Events};
use super::tx::Transmit;
use crate::config::LimitsConfig;
use crate::devices::virtio::QueuePosition;
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::jail::Thread;
use crate::metrics::Counters;

const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_BUFFER: u64 = 0x20_0000;
/// A frame's length without its header.
const FRAME_BYTES: usize = 100;
/// Three frames at once, and the next after 100 seconds.
const THREE_FRAMES: LimitsConfig = LimitsConfig::bytes(1, 3 * FRAME_BYTES as u64);

struct Bench {
    worker: Worker,
    receive: Driver,
    transmit: Driver,
    interrupt: Arc<TestInterrupt>,
    throttles: NetThrottles,
    host: UnixDatagram,
}

impl Bench {
    fn new(rx: Option<LimitsConfig>, tx: Option<LimitsConfig>, mut worker: Worker) -> Self {
        let counters = Arc::new(Counters::default());
        let throttles = NetThrottles {
            receive: Arc::new(Throttle::new(rx, counters.clone(), |c| &c.net_rx_throttled).unwrap()),
            transmit: Arc::new(Throttle::new(tx, counters.clone(), |c| &c.net_tx_throttled).unwrap()),
        };
        let (tap, host) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let tap = OwnedFd::from(tap);
        let memory = memory();
        let (receive, receive_queue) = Driver::new(&memory, 0x1_0000, 64);
        let (transmit, transmit_queue) = Driver::new(&memory, 0x2_0000, 64);
        let interrupt = Arc::new(TestInterrupt::default());
        let events = Events::new(receive_queue.kick, transmit_queue.kick, &tap, throttles.clone()).unwrap();
        let (served, raised) = (throttles.clone(), interrupt.clone());
        worker
            .serve(move |stop| {
                let receive = Receive::new(
                    receive_queue.queue,
                    memory.clone(),
                    0,
                    counters.clone(),
                    served.receive,
                );
                let transmit =
                    Transmit::new(transmit_queue.queue, memory, 0, counters.clone(), served.transmit);
                service::run(stop, &events, &tap, receive, transmit, &*raised, &counters)
            })
            .unwrap();
        let mut bench = Self {
            worker,
            receive,
            transmit,
            interrupt,
            throttles,
            host,
        };
        for buffer in 0..32 {
            let address = RECEIVE_BUFFERS + 2048 * buffer;
            bench.receive.offer(&[(address, 2048)], true);
        }
        bench
    }

    fn guest_sends(&mut self, frames: usize) {
        for _ in 0..frames {
            let len = (HEADER_BYTES + FRAME_BYTES) as u32;
            self.transmit.offer(&[(TRANSMIT_BUFFER, len)], false);
        }
    }

    /// Waits until the driver has heard that so many more frames were sent.
    fn guest_has_sent(&mut self, frames: usize) {
        for _ in 0..frames {
            self.transmit.wait_used(&self.interrupt);
        }
    }

    fn host_sends(&self, frames: usize) {
        for _ in 0..frames {
            self.host.send(&[0; HEADER_BYTES + FRAME_BYTES]).unwrap();
        }
    }

    fn guest_receives(&mut self, frames: usize) {
        for _ in 0..frames {
            let (_, len) = self.receive.wait_used(&self.interrupt);
            assert_eq!(len as usize, HEADER_BYTES + FRAME_BYTES);
        }
    }

    /// Frames that have come to the host.
    fn host_receives(&self) -> usize {
        let mut frame = [0; 4096];
        std::iter::from_fn(|| match self.host.recv(&mut frame) {
            Ok(len) => Some(len),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                None
            }
        })
        .count()
    }
}

#[test]
fn frames_of_the_guest_wait_for_its_limits_and_others_do_not() {
    let mut bench = Bench::new(None, Some(THREE_FRAMES), Worker::unconfined());
    bench.guest_sends(6);
    bench.guest_has_sent(3);
    bench.throttles.transmit.wait_until_throttled(1);
    assert_eq!(bench.transmit.take_used(), None);
    assert_eq!(bench.host_receives(), 3);
    bench.host_sends(10);
    bench.guest_receives(10);
    assert_eq!(bench.host_receives(), 0);
    // Three frames are used of the new limits too.
    let other = LimitsConfig::bytes(10_000, FRAME_BYTES as u64);
    bench.throttles.transmit.change(Some(other));
    bench.guest_has_sent(2);
    bench.throttles.transmit.change(None);
    bench.guest_has_sent(1);
    assert_eq!(bench.host_receives(), 3);
}

#[test]
fn frames_to_the_guest_wait_for_its_limits_and_others_do_not() {
    let mut bench = Bench::new(Some(THREE_FRAMES), None, Worker::unconfined());
    bench.host_sends(6);
    bench.guest_receives(3);
    bench.throttles.receive.wait_until_throttled(1);
    assert_eq!(bench.receive.take_used(), None);
    bench.guest_sends(10);
    bench.guest_has_sent(10);
    assert_eq!(bench.host_receives(), 10);
    assert_eq!(bench.receive.take_used(), None);
    bench.throttles.receive.change(None);
    bench.guest_receives(3);
}

#[test]
fn a_device_that_waits_stops_at_once_and_leaves_what_it_has_not_served() {
    let mut bench = Bench::new(Some(THREE_FRAMES), Some(THREE_FRAMES), Worker::unconfined());
    bench.guest_sends(6);
    bench.host_sends(6);
    bench.throttles.transmit.wait_until_throttled(1);
    bench.throttles.receive.wait_until_throttled(1);
    let start = Instant::now();
    let positions = bench.worker.stop();
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the wait is 100 seconds"
    );
    let three = QueuePosition {
        next_avail: 3,
        next_used: 3,
    };
    assert_eq!(positions, [three; 2]);
}

#[test]
fn a_confined_thread_can_wait_and_is_no_faster_than_the_rate() {
    let start = Instant::now();
    let limits = Some(LimitsConfig::ops(100, 1));
    let mut bench = Bench::new(limits, limits, Worker::confined(Thread::Net));
    bench.guest_sends(5);
    bench.host_sends(5);
    bench.guest_has_sent(5);
    bench.guest_receives(5);
    assert!(start.elapsed() >= Duration::from_millis(40));
    bench.worker.stop();
}
