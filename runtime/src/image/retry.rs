//! What is asked of a registry again after it failed, and when: exponential back-off with jitter, and the registry's own
//! word (`Retry-After`) where it gives one.

use std::time::Duration;

use super::error::ImageError;

/// How often something is tried that fails each time.
const MAX_ATTEMPTS: u32 = 5;
/// The longest pause after the first failure; it doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Nobody waits longer than this because a registry says so: the pull fails with what it said.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The failures of one request so far.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Something was won since the last failure: what counts begins anew.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next attempt; none if there is to be none.
    pub(super) fn after(&mut self, error: &ImageError) -> Option<Duration> {
        let asked = transient(error)?;
        self.failures += 1;
        (self.failures < MAX_ATTEMPTS && asked <= MAX_RETRY_AFTER)
            .then(|| pause(self.failures, asked, rand::random()))
    }
}

/// Whether it may go better next time, and how long the registry wants to be left alone before.
pub(super) fn transient(error: &ImageError) -> Option<Duration> {
    match error {
        ImageError::Unreachable { transient: true, .. } => Some(Duration::ZERO),
        ImageError::Busy { retry_after, .. } => Some(retry_after.unwrap_or_default()),
        _ => None,
    }
}

/// `random` is from 0 to 1. Never less than what was asked for, and those who wait at once do not come back at once.
fn pause(failures: u32, asked: Duration, random: f64) -> Duration {
    let most = FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(MAX_PAUSE);
    asked + most.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(retry_after: Option<u64>) -> ImageError {
        ImageError::Busy {
            registry: "r".into(),
            detail: "it answered 429".into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_are_never_the_same_for_all() {
        assert_eq!(pause(1, Duration::ZERO, 1.0), FIRST_PAUSE);
        assert_eq!(pause(1, Duration::ZERO, 0.0), FIRST_PAUSE / 2);
        assert_eq!(pause(3, Duration::ZERO, 1.0), FIRST_PAUSE * 4);
        assert_eq!(pause(u32::MAX, Duration::ZERO, 1.0), MAX_PAUSE);
    }

    #[test]
    fn what_the_registry_asks_for_is_the_least() {
        let mut backoff = Backoff::default();
        assert!(backoff.after(&busy(Some(7))).unwrap() >= Duration::from_secs(7));
        assert_eq!(backoff.after(&busy(Some(3600))), None);
    }

    #[test]
    fn attempts_end_and_begin_anew_with_progress() {
        let mut backoff = Backoff::default();
        let tries = |backoff: &mut Backoff| std::iter::from_fn(|| backoff.after(&busy(None))).count();
        assert_eq!(tries(&mut backoff), MAX_ATTEMPTS as usize - 1);
        backoff.reset();
        assert_eq!(tries(&mut backoff), MAX_ATTEMPTS as usize - 1);
        let gone = ImageError::NotFound { image: "x".into() };
        backoff.reset();
        assert_eq!(backoff.after(&gone), None);
    }
}
