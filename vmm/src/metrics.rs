//! The counters of a machine: written by its threads, read by its control server. Not their meaning over time, which
//! is the daemon's business.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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
    start_working_set_us,
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

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
