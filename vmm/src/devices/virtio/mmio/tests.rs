//! The transport against drivers that keep to the rules, and against some that do not.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::ActivateError;
use crate::memory;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 5;
const HIGH_FEATURES: u32 = (FEATURES >> 32) as u32;

#[derive(Default)]
struct Log {
    /// Feature bits that this device has less than others.
    lacks: u64,
    activations: Vec<Activation>,
    resets: usize,
    config_writes: Vec<(u64, Vec<u8>)>,
    fail: bool,
}

struct FakeDevice(Arc<Mutex<Log>>);

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURES & !self.0.lock().unwrap().lacks
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // As much as a device has.
        for (index, byte) in data.iter_mut().enumerate().take(64) {
            *byte = offset.wrapping_add(index as u64) as u8;
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().config_writes.push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.0.lock().unwrap();
        log.activations.push(activation);
        if log.fail {
            Err(ActivateError::Thread(io::Error::other("test")))
        } else {
            Ok(())
        }
    }
    fn stop(&mut self) -> Vec<QueuePosition> {
        let mut log = self.0.lock().unwrap();
        log.resets += 1;
        let stopped = log.activations.pop();
        log.activations.clear();
        let queues = stopped.map(|activation| activation.queues).unwrap_or_default();
        queues
            .iter()
            .map(|active| QueuePosition::of(&active.queue))
            .collect()
    }
}

struct Bench {
    transport: MmioTransport,
    log: Arc<Mutex<Log>>,
    interrupt: EventFd,
    counters: Arc<Counters>,
}

impl Bench {
    fn new() -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let counters = Arc::new(Counters::default());
        let transport = MmioTransport::new(
            Box::new(FakeDevice(log.clone())),
            (RegisterPages::new(1), 0),
            memory::allocate(32, None).unwrap(),
            interrupt.try_clone().unwrap(),
            counters.clone(),
        )
        .unwrap();
        Self {
            transport,
            log,
            interrupt,
            counters,
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

    fn status(&self) -> u32 {
        self.read(STATUS)
    }

    fn agree(&self) {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, HIGH_FEATURES);
        self.write(DRIVER_FEATURES_SEL, 0);
        self.write(DRIVER_FEATURES, 1 << VIRTIO_RING_F_EVENT_IDX);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_ne!(self.status() & FEATURES_OK, 0);
    }

    fn set_up_queue(&self, index: u32, size: u32, base: u32) {
        self.write(QUEUE_SEL, index);
        self.write(QUEUE_SIZE, size);
        self.write(QUEUE_DESC_LOW, base);
        self.write(QUEUE_DRIVER_LOW, base.wrapping_add(0x1000));
        self.write(QUEUE_DEVICE_LOW, base.wrapping_add(0x2000));
        self.write(QUEUE_READY, 1);
    }

    fn start(&self) {
        self.agree();
        self.set_up_queue(0, 128, 0x10_0000);
        self.set_up_queue(1, 64, 0x20_0000);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn errors(&self) -> u64 {
        self.counters.snapshot().device_errors
    }
}

#[test]
fn a_driver_finds_the_device() {
    let bench = Bench::new();
    assert_eq!(bench.read(MAGIC).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(VERSION), 2);
    assert_eq!(bench.read(DEVICE_ID), 42);
    assert_eq!(bench.read(DEVICE_FEATURES), FEATURES as u32);
    bench.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.read(DEVICE_FEATURES), HIGH_FEATURES);
    bench.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(bench.read(DEVICE_FEATURES), 0);
    assert_eq!(bench.read(QUEUE_SIZE_MAX), 256);
    bench.write(QUEUE_SEL, 1);
    assert_eq!(bench.read(QUEUE_SIZE_MAX), 64);
    for beyond in [2, u32::MAX] {
        bench.write(QUEUE_SEL, beyond);
        assert_eq!(bench.read(QUEUE_SIZE_MAX), 0);
        assert_eq!(bench.read(QUEUE_READY), 0);
    }
    assert_eq!(bench.read(SHM_LEN_LOW), u32::MAX);
}

#[test]
fn a_good_driver_activates_the_device_once() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    bench.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let log = bench.log.lock().unwrap();
    assert_eq!(log.activations.len(), 1);
    let activation = &log.activations[0];
    assert_eq!(
        activation.features,
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    );
    let queues: Vec<_> = activation
        .queues
        .iter()
        .map(|active| {
            (
                active.queue.size(),
                active.queue.desc_table(),
                active.queue.event_idx_enabled(),
            )
        })
        .collect();
    assert_eq!(queues, [(128, 0x10_0000, true), (64, 0x20_0000, true)]);
    assert_eq!(bench.errors(), 0);
}

#[test]
fn a_kick_reaches_the_queue_that_it_names() {
    let bench = Bench::new();
    bench.start();
    let mut kicks = Vec::new();
    bench
        .transport
        .for_each_kick(|index, event| {
            kicks.push(index);
            if index == 1 { event.write(1) } else { Ok(()) }
        })
        .unwrap();
    assert_eq!(kicks, [0, 1]);
    let log = bench.log.lock().unwrap();
    assert!(log.activations[0].queues[0].kick.read().is_err());
    assert_eq!(log.activations[0].queues[1].kick.read().unwrap(), 1);
}

#[test]
fn a_reset_starts_over() {
    let bench = Bench::new();
    bench.start();
    bench.transport.shared.signal_queue();
    bench.write(STATUS, 0);
    assert_eq!(
        (
            bench.status(),
            bench.read(INTERRUPT_STATUS),
            bench.read(QUEUE_READY)
        ),
        (0, 0, 0)
    );
    assert_eq!(bench.log.lock().unwrap().resets, 1);
    bench.start();
    assert_eq!(bench.log.lock().unwrap().activations.len(), 1);
}

#[test]
fn features_that_were_not_offered_are_not_agreed_on() {
    for (select, features) in [(0, 1 << 6), (1, HIGH_FEATURES | 1 << 10), (1, 0)] {
        let bench = Bench::new();
        bench.write(STATUS, ACKNOWLEDGE);
        bench.write(STATUS, ACKNOWLEDGE | DRIVER);
        bench.write(DRIVER_FEATURES_SEL, 1);
        bench.write(DRIVER_FEATURES, HIGH_FEATURES);
        bench.write(DRIVER_FEATURES_SEL, select);
        bench.write(DRIVER_FEATURES, features);
        bench.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER, "{select} {features:#x}");
    }
}

#[test]
fn features_beyond_the_second_word_fail_the_device() {
    let bench = Bench::new();
    bench.write(STATUS, ACKNOWLEDGE | DRIVER);
    bench.write(DRIVER_FEATURES_SEL, 2);
    bench.write(DRIVER_FEATURES, 0);
    assert_eq!(bench.errors(), 0);
    bench.write(DRIVER_FEATURES, 1);
    assert_ne!(bench.status() & DEVICE_NEEDS_RESET, 0);
}

#[test]
fn features_cannot_change_once_agreed_on() {
    let bench = Bench::new();
    bench.agree();
    bench.write(DRIVER_FEATURES, 1 << 5);
    bench.set_up_queue(0, 128, 0x10_0000);
    bench.set_up_queue(1, 64, 0x20_0000);
    bench.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.log.lock().unwrap().activations[0].features & 1 << 5, 0);
}

#[test]
fn steps_left_out_do_not_count() {
    let bench = Bench::new();
    bench.write(STATUS, DRIVER_OK);
    assert_eq!(bench.status(), 0);
    bench.write(STATUS, DRIVER | FEATURES_OK);
    assert_eq!(bench.status(), 0);
    assert!(bench.log.lock().unwrap().activations.is_empty());
    bench.agree();
    bench.write(STATUS, ACKNOWLEDGE);
    assert_ne!(bench.status() & FEATURES_OK, 0, "bits are not taken back");
}

#[test]
fn a_bad_queue_fails_the_device_until_it_is_reset() {
    let end = 32 << 20;
    for (size, base) in [
        (0, 0x10_0000),
        (3, 0x10_0000),
        (512, 0x10_0000),
        (64, 1),
        (64, end),
        (64, u32::MAX),
    ] {
        let bench = Bench::new();
        bench.agree();
        bench.set_up_queue(0, size, base);
        assert_ne!(bench.status() & DEVICE_NEEDS_RESET, 0, "{size} {base:#x}");
        bench.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(bench.status() & DRIVER_OK, 0);
        assert_eq!(bench.errors(), 1);
        assert!(bench.log.lock().unwrap().activations.is_empty());
        bench.write(STATUS, 0);
        bench.start();
        assert_eq!(bench.log.lock().unwrap().activations.len(), 1);
    }
}

#[test]
fn a_queue_left_out_fails_the_device() {
    let bench = Bench::new();
    bench.agree();
    bench.set_up_queue(0, 128, 0x10_0000);
    bench.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_ne!(bench.status() & DEVICE_NEEDS_RESET, 0);
    assert!(bench.log.lock().unwrap().activations.is_empty());
    assert_eq!(bench.interrupt.read().unwrap(), 1, "the driver is told");
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let bench = Bench::new();
    bench.log.lock().unwrap().fail = true;
    bench.start();
    assert_ne!(bench.status() & DEVICE_NEEDS_RESET, 0);
    assert_eq!(bench.read(INTERRUPT_STATUS), CONFIG_INTERRUPT);
}

#[test]
fn a_running_queue_cannot_be_moved() {
    let bench = Bench::new();
    bench.start();
    bench.write(QUEUE_SEL, 0);
    bench.write(QUEUE_READY, 0);
    bench.write(QUEUE_SIZE, 3);
    assert_eq!(bench.read(QUEUE_READY), 1);
    assert_eq!(bench.errors(), 0);
}

#[test]
fn interrupts_are_told_and_acknowledged() {
    let bench = Bench::new();
    bench.start();
    bench.transport.shared.signal_queue();
    assert_eq!(bench.interrupt.read().unwrap(), 1);
    let generation = bench.read(CONFIG_GENERATION);
    bench.transport.shared.signal_config();
    assert_ne!(bench.read(CONFIG_GENERATION), generation);
    assert_eq!(bench.read(INTERRUPT_STATUS), QUEUE_INTERRUPT | CONFIG_INTERRUPT);
    bench.write(INTERRUPT_ACK, QUEUE_INTERRUPT);
    assert_eq!(bench.read(INTERRUPT_STATUS), CONFIG_INTERRUPT);
    bench.write(INTERRUPT_ACK, u32::MAX);
    assert_eq!(bench.read(INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_is_read_in_any_width_and_written_only_by_a_driver() {
    let bench = Bench::new();
    let mut data = [0; 8];
    bench.transport.read(CONFIG + 3, &mut data);
    assert_eq!(data, [3, 4, 5, 6, 7, 8, 9, 10]);
    bench.transport.write(CONFIG, &[1]);
    assert!(bench.log.lock().unwrap().config_writes.is_empty());
    bench.write(STATUS, ACKNOWLEDGE | DRIVER);
    bench.transport.write(CONFIG + 1, &[1, 2]);
    assert_eq!(bench.log.lock().unwrap().config_writes, [(1, vec![1, 2])]);
}

#[test]
fn registers_are_read_as_memory_and_written_whole() {
    let bench = Bench::new();
    let mut data = [0; 8];
    bench.transport.read(MAGIC + 1, &mut data);
    assert_eq!(&data, b"irt\x02\0\0\0\x2a");
    for len in [1, 2, 3, 8] {
        bench.transport.write(STATUS, &vec![1; len]);
        assert_eq!(bench.status(), 0);
    }
    bench.transport.write(STATUS + 1, &[1, 0, 0, 0]);
    assert_eq!(bench.status(), 0);
}

#[test]
fn another_device_goes_on_where_one_left() {
    let bench = Bench::new();
    bench.start();
    {
        let mut log = bench.log.lock().unwrap();
        let queue = &mut log.activations[0].queues[1].queue;
        queue.set_next_avail(7);
        queue.set_next_used(5);
    }
    let state = bench.transport.leave().unwrap();
    let other = Bench::new();
    other.transport.take_up(&state).unwrap();
    assert_eq!(other.status(), bench.status());
    {
        let log = other.log.lock().unwrap();
        let [activation] = &log.activations[..] else {
            panic!("{} activations", log.activations.len())
        };
        assert!(activation.restored);
        assert_eq!(activation.features, FEATURES & !(1 << 5));
        let [first, second] = &activation.queues[..] else {
            panic!()
        };
        assert_eq!(QueuePosition::of(&first.queue), QueuePosition::default());
        let position = QueuePosition {
            next_avail: 7,
            next_used: 5,
        };
        assert_eq!(QueuePosition::of(&second.queue), position);
        assert_eq!(first.queue.size(), 128);
        assert!(first.queue.event_idx_enabled() && second.queue.desc_table() == 0x20_0000);
        // It looks for what the other had not seen, and the driver looks at its configuration again.
        assert_eq!(first.kick.read().unwrap(), 1);
    }
    assert_eq!(other.read(INTERRUPT_STATUS), CONFIG_INTERRUPT);
    assert_eq!(other.interrupt.read().unwrap(), 1);
    assert_eq!(other.read(CONFIG_GENERATION), bench.read(CONFIG_GENERATION) + 1);
    // And from there once more.
    let again = Bench::new();
    again
        .transport
        .take_up(&other.transport.leave().unwrap())
        .unwrap();
    assert_eq!(again.log.lock().unwrap().activations.len(), 1);
}

#[test]
fn a_device_whose_driver_has_not_come_waits_for_it_elsewhere() {
    let bench = Bench::new();
    bench.agree();
    bench.set_up_queue(0, 128, 0x10_0000);
    let state = bench.transport.leave().unwrap();
    let other = Bench::new();
    other.transport.take_up(&state).unwrap();
    assert!(other.log.lock().unwrap().activations.is_empty());
    assert!(other.interrupt.read().is_err());
    other.set_up_queue(1, 64, 0x20_0000);
    other.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let log = other.log.lock().unwrap();
    assert_eq!(log.activations.len(), 1);
    assert!(!log.activations[0].restored);
}

#[test]
fn a_device_takes_up_only_what_it_can() {
    use TransportStateError as Error;
    let bench = Bench::new();
    bench.start();
    let state = bench.transport.leave().unwrap();
    let lacking = Bench::new();
    lacking.log.lock().unwrap().lacks = 1 << VIRTIO_RING_F_EVENT_IDX;
    assert_eq!(
        lacking.transport.take_up(&state),
        Err(Error::Features {
            device: 42,
            missing: 1 << VIRTIO_RING_F_EVENT_IDX
        })
    );
    let failing = Bench::new();
    failing.log.lock().unwrap().fail = true;
    assert_eq!(failing.transport.take_up(&state), Err(Error::Activate(42)));
    // A state that says of a queue what no driver could have set up.
    let mut json = serde_json::to_value(&state).unwrap();
    json["queues"][0]["descriptors"] = 3.into();
    let forged: TransportState = serde_json::from_value(json).unwrap();
    assert_eq!(Bench::new().transport.take_up(&forged), Err(Error::Activate(42)));
    // A device that the driver has given up is not written down.
    let broken = Bench::new();
    broken.start();
    broken.write(STATUS, FAILED);
    assert_eq!(broken.transport.leave().err(), Some(Error::Broken(42)));
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_activates_a_bad_queue(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0u64..0x140, 0usize..9, any::<u64>(), any::<bool>()), 0..200),
    ) {
        let bench = Bench::new();
        bench.agree();
        for (write, offset, len, value, sane) in accesses {
            // Half of the accesses are to whole registers with small values, as else hardly one would mean anything.
            let (offset, len, value) = if sane { (offset & !3, 4, value & 0xff) } else { (offset, len, value) };
            let mut data = value.to_le_bytes();
            match write {
                true => bench.transport.write(offset, &data[..len.min(8)]),
                false => bench.transport.read(offset, &mut data[..len.min(8)]),
            }
            let log = bench.log.lock().unwrap();
            for activation in &log.activations {
                prop_assert_eq!(activation.features & !FEATURES, 0);
                for active in &activation.queues {
                    prop_assert!(active.queue.is_valid(&activation.memory));
                }
            }
        }
    }
}
