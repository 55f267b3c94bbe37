//! The thread of a network device: waits for the driver and the tap, and runs the queues.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::rx::Receive;
use super::tx::Transmit;
use super::{NetThrottles, Progress};
use crate::devices::virtio::worker::Stop;
use crate::devices::virtio::{Interrupt, QueuePosition};
use crate::metrics::{Counters, count};

const STOP: u64 = 0;
const RECEIVE_KICK: u64 = 1;
const TRANSMIT_KICK: u64 = 2;
const RECEIVE_ALLOWED: u64 = 3;
const TRANSMIT_ALLOWED: u64 = 4;
const TAP: u64 = 5;

/// What wakes the thread.
pub(super) struct Events {
    epoll: Epoll,
    receive_kick: EventFd,
    transmit_kick: EventFd,
    throttles: NetThrottles,
}

impl Events {
    pub(super) fn new(
        receive_kick: EventFd,
        transmit_kick: EventFd,
        tap: &OwnedFd,
        throttles: NetThrottles,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd: RawFd, events: EventSet, token: u64| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
        };
        add(receive_kick.as_raw_fd(), EventSet::IN, RECEIVE_KICK)?;
        add(transmit_kick.as_raw_fd(), EventSet::IN, TRANSMIT_KICK)?;
        add(throttles.receive.timer(), EventSet::IN, RECEIVE_ALLOWED)?;
        add(throttles.transmit.timer(), EventSet::IN, TRANSMIT_ALLOWED)?;
        // By edge: frames may have to wait until the driver offers buffers, and must not wake the thread meanwhile.
        add(tap.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, TAP)?;
        Ok(Self {
            epoll,
            receive_kick,
            transmit_kick,
            throttles,
        })
    }
}

/// Serves both queues until told to stop, and returns how far it came. A queue whose ring is broken is left alone from
/// then on, and the driver is told that the device needs a reset.
pub(super) fn run(
    stop: &Stop,
    events: &Events,
    tap: &OwnedFd,
    receive: Receive,
    transmit: Transmit,
    interrupt: &dyn Interrupt,
    counters: &Counters,
) -> Vec<QueuePosition> {
    let failed = || {
        interrupt.fail_device();
        Vec::new()
    };
    let stop_event = EpollEvent::new(EventSet::IN, STOP);
    if events
        .epoll
        .ctl(ControlOperation::Add, stop.event().as_raw_fd(), stop_event)
        .is_err()
    {
        return failed();
    }
    let mut receive = Some(receive);
    let mut transmit = Some(transmit);
    // Both queues may have work from before the thread started.
    let (mut receive_more, mut transmit_more) = (true, true);
    let mut ready = [EpollEvent::default(); 6];
    loop {
        let timeout = if receive_more || transmit_more { 0 } else { -1 };
        let count_ready = match events.epoll.wait(timeout, &mut ready) {
            Ok(count_ready) => count_ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return failed(),
        };
        for event in ready.iter().take(count_ready) {
            match event.data() {
                STOP => {
                    let positions = receive.map(Receive::leave).into_iter();
                    return positions.chain(transmit.map(|queue| queue.position())).collect();
                }
                RECEIVE_KICK => {
                    let _ = events.receive_kick.read();
                    receive_more = true;
                }
                TRANSMIT_KICK => {
                    let _ = events.transmit_kick.read();
                    transmit_more = true;
                }
                RECEIVE_ALLOWED => {
                    events.throttles.receive.acknowledge();
                    receive_more = true;
                }
                TRANSMIT_ALLOWED => {
                    events.throttles.transmit.acknowledge();
                    transmit_more = true;
                }
                _ => {
                    if let Some(receive) = &mut receive {
                        receive.tap_is_ready();
                    }
                    receive_more = true;
                }
            }
        }
        let mut signal = false;
        if std::mem::take(&mut transmit_more) {
            transmit_more = serve(
                &mut transmit,
                |queue| queue.run(tap),
                &mut signal,
                interrupt,
                counters,
            );
        }
        if std::mem::take(&mut receive_more) {
            receive_more = serve(
                &mut receive,
                |queue| queue.run(tap),
                &mut signal,
                interrupt,
                counters,
            );
        }
        if signal {
            interrupt.signal_queue();
        }
    }
}

/// Runs one queue, unless it broke before. True where there is more to do at once.
fn serve<Q>(
    queue: &mut Option<Q>,
    run: impl FnOnce(&mut Q) -> Result<Progress, virtio_queue::Error>,
    signal: &mut bool,
    interrupt: &dyn Interrupt,
    counters: &Counters,
) -> bool {
    match queue.as_mut().map(run) {
        None => false,
        Some(Ok(progress)) => {
            *signal |= progress.signal;
            progress.more
        }
        Some(Err(_)) => {
            *queue = None;
            count(&counters.device_errors, 1);
            interrupt.fail_device();
            false
        }
    }
}
