//! The counters of a machine: written by its threads, read by its control server. Not their meaning over time, which
//! is the daemon's business.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use crate::control::Metrics;

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// One counter for each field of [`Metrics`]. Relaxed order is enough: each counter stands alone.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub $name: AtomicU64,)*
        }

        impl Counters {
            /// The totals so far.
            pub fn snapshot(&self) -> Metrics {
                Metrics { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    start_us,
    start_jail_us,
    start_vm_us,
    start_state_us,
    start_working_set_us,
    start_devices_us,
    page_faults_minor,
    page_faults_major,
    exits_io,
    exits_mmio,
    exits_other,
    unclaimed_accesses,
    block_read_bytes,
    block_write_bytes,
    block_read_ops,
    block_write_ops,
    block_flush_ops,
    block_throttled,
    block_io_uring_drives,
    net_rx_bytes,
    net_rx_packets,
    net_tx_bytes,
    net_tx_packets,
    net_rx_dropped,
    net_rx_throttled,
    net_tx_throttled,
    vsock_rx_bytes,
    vsock_tx_bytes,
    vsock_connections,
    balloon_released_bytes,
    entropy_bytes,
    entropy_throttled,
    serial_throttled_bytes,
    device_errors,
);

/// Sets a counter to the microseconds that have passed since then.
pub fn clock(counter: &AtomicU64, since: Instant) {
    let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    counter.store(us, Ordering::Relaxed);
}

/// One phase after the other, each clocked.
pub struct Phases {
    since: Instant,
}

impl Phases {
    /// The first one has begun then.
    pub fn since(begun: Instant) -> Self {
        Self { since: begun }
    }

    /// Sets a counter to the microseconds that the phase took which ends here.
    pub fn end(&mut self, counter: &AtomicU64) {
        clock(counter, self.since);
        self.since = Instant::now();
    }
}

/// Sets the counters of page faults to those that all threads of the process have met.
pub fn count_page_faults(counters: &Counters) {
    let set = |counter: &AtomicU64, faults: i64| counter.store(faults.unsigned_abs(), Ordering::Relaxed);
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        set(&counters.page_faults_minor, usage.minor_page_faults());
        set(&counters.page_faults_major, usage.major_page_faults());
    }
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
