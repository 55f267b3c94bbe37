//! A balloon behind the transport: queues that a driver need not have, a configuration that changes, a state of its own.

use std::time::Duration;

use super::*;
use crate::devices::virtio::balloon::{Backing, Balloon, BalloonHandle};
use crate::devices::virtio::worker::Worker;
use crate::jail::Thread;
use crate::memory;

const STATISTICS: u64 = 1 << 1;

struct Bench {
    transport: MmioTransport,
    handle: BalloonHandle,
    interrupt: EventFd,
}

impl Bench {
    fn new(memory_mib: u32) -> Self {
        let counters = Arc::new(Counters::default());
        let worker = Worker::confined(Thread::Balloon);
        let (device, handle) =
            Balloon::new(Backing::Anonymous, memory_mib, counters.clone(), worker).unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(
            Box::new(device),
            (RegisterPages::new(1), 0),
            memory::allocate(memory_mib, None).unwrap(),
            interrupt.try_clone().unwrap(),
            counters,
        );
        Self {
            transport: transport.unwrap(),
            handle,
            interrupt,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// A driver that does without some features comes to work, with so many queues. Returns whether it may.
    fn start(&self, without: u64, queues: u32) -> bool {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for select in [0, 1] {
            self.write(DEVICE_FEATURES_SEL, select);
            self.write(DRIVER_FEATURES_SEL, select);
            let left_out = half(without, select);
            self.write(DRIVER_FEATURES, self.read(DEVICE_FEATURES) & !left_out);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for index in 0..queues {
            let area = 0x10_0000 + 0x1_0000 * index;
            self.write(QUEUE_SEL, index);
            self.write(QUEUE_SIZE, 16);
            self.write(QUEUE_DESC_LOW, area);
            self.write(QUEUE_DRIVER_LOW, area + 0x1000);
            self.write(QUEUE_DEVICE_LOW, area + 0x2000);
            self.write(QUEUE_READY, 1);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.read(STATUS) & DEVICE_NEEDS_RESET == 0
    }
}

#[test]
fn a_driver_has_the_queues_of_the_features_that_it_took() {
    for (without, queues) in [(0, 4), (STATISTICS, 3)] {
        assert!(Bench::new(128).start(without, queues));
        assert!(
            !Bench::new(128).start(without, queues - 1),
            "one less than {queues}"
        );
    }
}

#[test]
fn a_driver_is_told_of_a_new_target_once_it_is_at_work() {
    let bench = Bench::new(128);
    bench.handle.set_target(8).unwrap();
    bench.transport.show_config();
    assert!(bench.interrupt.read().is_err());
    assert_eq!(bench.read(CONFIG), 8 << 8);
    assert!(bench.start(0, 4));
    let before = bench.read(CONFIG_GENERATION);
    bench.handle.set_target(16).unwrap();
    bench.transport.show_config();
    assert_eq!(bench.read(CONFIG), 16 << 8);
    assert_eq!(bench.interrupt.read().unwrap(), 1);
    assert_eq!(bench.read(INTERRUPT_STATUS), CONFIG_INTERRUPT);
    assert_eq!(bench.read(CONFIG_GENERATION), before + 1);
    // What the driver says it has is there to be read, and gone when it starts anew.
    bench.write(CONFIG + 4, 0x700);
    assert_eq!(bench.read(CONFIG + 4), 0x700);
    bench.write(STATUS, 0);
    assert!(bench.start(0, 4));
    let (report, reported) = std::sync::mpsc::channel();
    let done = move |result| report.send(result).unwrap();
    bench.handle.report(Duration::ZERO, Box::new(done));
    let report: crate::control::BalloonReport = reported.recv().unwrap().unwrap();
    assert_eq!((report.target_bytes, report.actual_bytes), (16 << 20, 0));
}

#[test]
fn a_balloon_goes_on_with_its_target_where_there_is_room_for_it() {
    for (without, queues) in [(0, 4), (STATISTICS, 3)] {
        let bench = Bench::new(128);
        assert!(bench.start(without, queues));
        bench.handle.set_target(64).unwrap();
        bench.write(CONFIG + 4, 0x700);
        let state = bench.transport.leave().unwrap();
        let other = Bench::new(128);
        other.transport.take_up(&state).unwrap();
        assert_eq!((other.read(CONFIG), other.read(CONFIG + 4)), (64 << 8, 0x700));
        let smaller = Bench::new(127);
        assert_eq!(
            smaller.transport.take_up(&state),
            Err(TransportStateError::State(5))
        );
    }
}
