//! Rate limits as arithmetic: token buckets, and the pair of them that limits a device. The time is always said by the
//! caller; who waits, and how, is the devices' business (`devices::virtio::throttle`).

mod bucket;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::config::LimitsConfig;
pub use bucket::TokenBucket;

/// What a device may do: so many bytes, and so many operations. Without a bucket there is no limit.
#[derive(Clone, Debug, Default)]
pub struct RateLimiter {
    bytes: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: Option<LimitsConfig>, now: Instant) -> Self {
        let mut limiter = Self::default();
        limiter.change(limits, now);
        limiter
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.ops.is_some()
    }

    /// How long until an operation of `bytes` is allowed; zero if it is now.
    pub fn wait(&self, bytes: u64, now: Instant) -> Duration {
        let wait = |bucket: &Option<TokenBucket>, tokens| {
            bucket
                .as_ref()
                .map_or(Duration::ZERO, |bucket| bucket.wait(tokens, now))
        };
        wait(&self.bytes, bytes).max(wait(&self.ops, 1))
    }

    /// Accounts for what was done, whether it was allowed or not.
    pub fn charge(&mut self, ops: u64, bytes: u64, now: Instant) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.ops, ops)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens, now);
            }
        }
    }

    /// Other limits from now on. What was used of the limits so far stays used; a limit that is new starts full.
    pub fn change(&mut self, limits: Option<LimitsConfig>, now: Instant) {
        let limits = limits.unwrap_or_default();
        for (bucket, rate) in [(&mut self.bytes, limits.bytes), (&mut self.ops, limits.ops)] {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.change(rate, now),
                (_, rate) => *bucket = rate.map(|rate| TokenBucket::new(rate, now)),
            }
        }
    }
}
