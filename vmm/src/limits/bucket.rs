//! One token bucket, exact to the nanosecond.
//!
//! The level is kept in billionths of a token, so that a rate per second times nanoseconds needs no division and loses
//! nothing. It saturates where it would leave an `i128`, which is beyond any bucket that can be configured.

use std::time::{Duration, Instant};

use crate::config::RateConfig;

const NANOS: i128 = 1_000_000_000;

/// A bucket that fills at a steady rate up to its size.
///
/// Within any time it gives at most its size and what flowed in meanwhile. More tokens than the bucket holds are there
/// when it is full, and leave it in debt: whoever comes next waits until the debt is paid as well.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: u64,
    burst: u64,
    /// Billionths of a token at `filled`; below zero it is a debt.
    level: i128,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: RateConfig, now: Instant) -> Self {
        Self {
            per_second: rate.per_second,
            burst: rate.burst,
            level: i128::from(rate.burst) * NANOS,
            filled: now,
        }
    }

    /// How long until so many tokens can be taken, or until the bucket is full, if it is smaller; zero if they can now.
    /// A bucket that nothing flows into makes wait for ever.
    pub fn wait(&self, tokens: u64, now: Instant) -> Duration {
        let wanted = i128::from(tokens.min(self.burst)) * NANOS;
        let missing = wanted.saturating_sub(self.level_at(now));
        match u128::try_from(missing) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(_) if self.per_second == 0 => Duration::MAX,
            Ok(missing) => nanoseconds(missing.div_ceil(u128::from(self.per_second))),
        }
    }

    /// Takes tokens, whether they are there or not.
    pub fn take(&mut self, tokens: u64, now: Instant) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(tokens) * NANOS);
    }

    /// Another rate and size from now on. The tokens stay, as far as the new size holds them, and so does a debt.
    pub fn change(&mut self, rate: RateConfig, now: Instant) {
        self.fill(now);
        self.per_second = rate.per_second;
        self.burst = rate.burst;
        self.level = self.level.min(i128::from(rate.burst) * NANOS);
    }

    fn fill(&mut self, now: Instant) {
        self.level = self.level_at(now);
        self.filled = self.filled.max(now);
    }

    fn level_at(&self, now: Instant) -> i128 {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let flowed = elapsed.saturating_mul(u128::from(self.per_second));
        self.level
            .saturating_add(i128::try_from(flowed).unwrap_or(i128::MAX))
            .min(i128::from(self.burst) * NANOS)
    }
}

fn nanoseconds(nanos: u128) -> Duration {
    const PER_SECOND: u128 = NANOS.unsigned_abs();
    match u64::try_from(nanos / PER_SECOND) {
        // A remainder of `PER_SECOND` fits.
        Ok(seconds) => Duration::new(seconds, (nanos % PER_SECOND) as u32),
        Err(_) => Duration::MAX,
    }
}
