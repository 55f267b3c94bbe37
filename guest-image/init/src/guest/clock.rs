//! The guest's clocks, in milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

/// By how much the clock may be off before it is set: less than the host's words may take on their way.
const TOLERANCE_MS: u64 = 50;

#[derive(Debug, thiserror::Error)]
#[error("cannot set the clock to {unix_ms} ms: {source}")]
pub(crate) struct ClockError {
    unix_ms: u64,
    source: nix::Error,
}

/// Milliseconds since the kernel started.
pub(crate) fn uptime_ms() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    since_boot.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Sets the clock to what the host says, if it is wrong.
pub(crate) fn set_unix_ms(now: u64) -> Result<(), ClockError> {
    if unix_ms().abs_diff(now) <= TOLERANCE_MS {
        return Ok(());
    }
    let time = TimeSpec::milliseconds(i64::try_from(now).unwrap_or(i64::MAX));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|source| ClockError { unix_ms: now, source })
}
