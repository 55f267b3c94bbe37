//! The limits of a device as its thread meets them: it asks before it serves, and where it may not, sleeps until its timer
//! or its stop wakes it. The arithmetic is in [`crate::limits`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::config::LimitsConfig;
use crate::limits::RateLimiter;
use crate::metrics::{Counters, count};

/// Longest time for which the timer is set; a thread that wakes early asks again.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// A timer that is set to nothing is not set at all.
const SHORTEST_SLEEP: Duration = Duration::from_nanos(1);

/// The limits of one device, or of one direction of it. One thread serves under them, others may change them.
pub struct Throttle {
    /// Spares a device without limits the lock and the clock.
    limited: AtomicBool,
    state: Mutex<State>,
    timer: TimerFd,
    counters: Arc<Counters>,
    throttled: fn(&Counters) -> &AtomicU64,
}

struct State {
    limiter: RateLimiter,
    /// Something was refused and has not been allowed since.
    waiting: bool,
}

impl Throttle {
    /// `throttled` is the counter of the times that the device had to wait.
    pub fn new(
        limits: Option<LimitsConfig>,
        counters: Arc<Counters>,
        throttled: fn(&Counters) -> &AtomicU64,
    ) -> io::Result<Self> {
        let limiter = RateLimiter::new(limits, Instant::now());
        Ok(Self {
            limited: AtomicBool::new(limiter.is_limited()),
            state: Mutex::new(State {
                limiter,
                waiting: false,
            }),
            timer: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
            )?,
            counters,
            throttled,
        })
    }

    /// Of a device that has no limits.
    pub fn unlimited() -> io::Result<Arc<Self>> {
        let never = Self::new(None, Arc::default(), |counters| &counters.device_errors);
        never.map(Arc::new)
    }

    /// Without limits, for a test of the device.
    #[cfg(test)]
    pub(crate) fn open() -> Arc<Self> {
        Self::unlimited().unwrap()
    }

    /// Waits until the device has had to wait so many times; panics after ten seconds.
    #[cfg(test)]
    pub(crate) fn wait_until_throttled(&self, times: u64) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while (self.throttled)(&self.counters).load(Ordering::SeqCst) < times {
            assert!(Instant::now() < deadline, "the device was not throttled");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether an operation of `bytes` may be carried out now. If not, [`Throttle::timer`] becomes readable when it may,
    /// or when the limits have changed.
    pub fn allows(&self, bytes: u64) -> bool {
        if !self.limited.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state();
        let wait = state.limiter.wait(bytes, Instant::now());
        let was_waiting = std::mem::replace(&mut state.waiting, !wait.is_zero());
        if wait.is_zero() {
            return true;
        }
        self.wake_after(wait);
        if !was_waiting {
            count((self.throttled)(&self.counters), 1);
        }
        false
    }

    /// Accounts for operations carried out and bytes moved.
    pub fn charge(&self, ops: u64, bytes: u64) {
        if self.limited.load(Ordering::Acquire) {
            self.state().limiter.charge(ops, bytes, Instant::now());
        }
    }

    /// Other limits from now on, for a thread that sleeps as well.
    pub fn change(&self, limits: Option<LimitsConfig>) {
        // The lock is held to the end, or a thread that was refused under the old limits would set its timer last.
        let mut state = self.state();
        state.limiter.change(limits, Instant::now());
        state.waiting = false;
        self.limited.store(state.limiter.is_limited(), Ordering::Release);
        self.wake_after(SHORTEST_SLEEP);
    }

    /// Readable when it is time to ask again.
    pub fn timer(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// The timer was seen: it is not readable any more.
    pub fn acknowledge(&self) {
        // It fails where it was set anew meanwhile.
        let _ = self.timer.wait();
    }

    fn wake_after(&self, wait: Duration) {
        let wait = TimeSpec::from_duration(wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP));
        // An open timer takes any time that is valid.
        let _ = self
            .timer
            .set(Expiration::OneShot(wait), TimerSetTimeFlags::empty());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn ops(per_second: u64, burst: u64) -> Option<LimitsConfig> {
        Some(LimitsConfig::ops(per_second, burst))
    }

    fn throttle(limits: Option<LimitsConfig>) -> Throttle {
        Throttle::new(limits, Arc::default(), |counters| &counters.block_throttled).unwrap()
    }

    fn fires(throttle: &Throttle, timeout: PollTimeout) -> bool {
        poll(
            &mut [PollFd::new(throttle.timer.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) == Ok(1)
    }

    #[test]
    fn who_is_refused_is_counted_once_and_woken_when_it_is_time() {
        let throttle = throttle(ops(1, 1));
        assert!(throttle.allows(0));
        throttle.charge(1000, 0);
        assert!(!throttle.allows(0));
        assert!(!throttle.allows(0));
        assert_eq!(throttle.counters.snapshot().block_throttled, 1);
        // Of the debt there is a second left now.
        throttle.change(ops(1000, 1));
        let mut asked = 1;
        while !throttle.allows(0) {
            assert!(fires(&throttle, PollTimeout::from(10_000u16)));
            throttle.acknowledge();
            asked += 1;
        }
        assert!(asked <= 3, "asked {asked} times");
        assert!(!fires(&throttle, PollTimeout::ZERO));
    }

    #[test]
    fn a_change_wakes_who_waits() {
        let throttle = throttle(ops(1, 1));
        throttle.charge(10_000, 0);
        assert!(!throttle.allows(0));
        assert!(!fires(&throttle, PollTimeout::ZERO));
        throttle.change(None);
        assert!(fires(&throttle, PollTimeout::from(10_000u16)));
        throttle.acknowledge();
        assert!(throttle.allows(u64::MAX));
        throttle.change(ops(1, 1));
        assert!(throttle.allows(0));
        throttle.charge(10_000, 0);
        assert!(!throttle.allows(0));
    }

    #[test]
    fn a_wait_beyond_any_timer_is_a_wait() {
        let throttle = throttle(ops(1, 1));
        for _ in 0..3 {
            throttle.charge(u64::MAX, 0);
        }
        assert!(!throttle.allows(0));
        assert!(!fires(&throttle, PollTimeout::ZERO));
        assert!(throttle.timer.get().unwrap().is_some());
    }
}
