//! What all downloads of a store share: how many there are at once, and how many bytes a second they take together.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Downloads of all pulls together.
const MAX_DOWNLOADS: usize = 8;

pub(super) struct Bandwidth {
    slots: Semaphore,
    bytes_per_second: Option<NonZeroU64>,
    /// When everything that was let through so far would have come at the allowed rate.
    paid_until: Mutex<Instant>,
}

impl Bandwidth {
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            slots: Semaphore::new(MAX_DOWNLOADS),
            bytes_per_second,
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a place among the downloads; it is free again when the permit is dropped. None never comes: the
    /// semaphore is not closed.
    pub(super) async fn slot(&self) -> Option<SemaphorePermit<'_>> {
        self.slots.acquire().await.ok()
    }

    /// Waits as long as these bytes take.
    pub(super) async fn spend(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let until = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            *paid_until = paid_until.max(Instant::now()) + cost(bytes, rate);
            *paid_until
        };
        tokio::time::sleep_until(until).await;
    }
}

fn cost(bytes: u64, rate: NonZeroU64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_their_time() {
        let rate = NonZeroU64::new(1000).unwrap();
        assert_eq!(cost(500, rate), Duration::from_millis(500));
        assert_eq!(cost(u64::MAX, NonZeroU64::MIN), Duration::from_nanos(u64::MAX));
    }

    #[tokio::test]
    async fn all_who_spend_together_get_no_more_than_the_rate() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1_000_000));
        let begun = Instant::now();
        let spend = || async {
            for _ in 0..5 {
                bandwidth.spend(10_000).await;
            }
        };
        futures_util::future::join3(spend(), spend(), spend()).await;
        assert!(begun.elapsed() >= Duration::from_millis(150));
    }
}
