//! The arithmetic of the limits, at times made up.

use proptest::prelude::*;

use super::*;
use crate::config::RateConfig;

const NANOS: u128 = 1_000_000_000;

fn rate(per_second: u64, burst: u64) -> RateConfig {
    RateConfig { per_second, burst }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_bucket_starts_full_and_fills_no_further() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(10, 30), start);
    assert_eq!(bucket.wait(30, start), Duration::ZERO);
    bucket.take(30, start + seconds(1000));
    assert_eq!(bucket.wait(1, start + seconds(1000)), Duration::from_millis(100));
    assert_eq!(bucket.wait(30, start + seconds(1000)), seconds(3));
    assert_eq!(bucket.wait(30, start + seconds(1003)), Duration::ZERO);
}

#[test]
fn a_request_larger_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(10, 20), start);
    bucket.take(5, start);
    assert_eq!(bucket.wait(100, start), Duration::from_millis(500));
    let full = start + Duration::from_millis(500);
    assert_eq!(bucket.wait(100, full), Duration::ZERO);
    bucket.take(100, full);
    // 80 in debt.
    assert_eq!(bucket.wait(0, full), seconds(8));
    assert_eq!(bucket.wait(10, full), seconds(9));
}

#[test]
fn a_changed_bucket_keeps_its_tokens_and_its_debt() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(10, 100), start);
    bucket.take(60, start);
    bucket.change(rate(1, 1000), start);
    assert_eq!(bucket.wait(40, start), Duration::ZERO);
    assert_eq!(bucket.wait(41, start), seconds(1));
    bucket.change(rate(1, 5), start);
    assert_eq!(bucket.wait(5, start), Duration::ZERO);
    bucket.take(25, start);
    assert_eq!(bucket.wait(0, start), seconds(20));
    bucket.change(rate(20, 5), start);
    assert_eq!(bucket.wait(0, start), seconds(1));
}

#[test]
fn a_clock_that_goes_back_neither_gives_nor_takes() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(1, 10), start + seconds(100));
    bucket.take(10, start);
    assert_eq!(bucket.wait(1, start + seconds(100)), seconds(1));
    assert_eq!(bucket.wait(1, start + seconds(101)), Duration::ZERO);
}

#[test]
fn a_limiter_waits_for_the_slower_of_its_buckets() {
    let start = Instant::now();
    let limits = |bytes, ops| Some(LimitsConfig { bytes, ops });
    let mut limiter = RateLimiter::new(limits(Some(rate(100, 100)), Some(rate(1, 1))), start);
    assert_eq!(limiter.wait(100, start), Duration::ZERO);
    limiter.charge(1, 50, start);
    assert_eq!(limiter.wait(50, start), seconds(1));
    limiter.charge(0, 350, start);
    assert_eq!(limiter.wait(0, start), seconds(3));
    limiter.change(limits(None, Some(rate(1, 1))), start);
    assert_eq!(limiter.wait(u64::MAX, start), seconds(1));
    limiter.change(None, start);
    assert!(!limiter.is_limited());
    assert_eq!(limiter.wait(u64::MAX, start), Duration::ZERO);
    limiter.charge(u64::MAX, u64::MAX, start);
}

/// Rates and bursts of every size.
fn rates() -> impl Strategy<Value = RateConfig> {
    let number = || prop_oneof![1u64..10, 1u64..1_000_000, 1u64..=u64::MAX];
    (number(), number()).prop_map(|(per_second, burst)| rate(per_second, burst))
}

fn tokens() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..20, 0u64..2_000_000, any::<u64>()]
}

fn nanoseconds() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..1_000, 0u64..10_000_000_000, 0u64..1 << 58]
}

/// What flows in within so many nanoseconds, in billionths of a token.
fn inflow(rate: RateConfig, nanos: u128) -> u128 {
    nanos.saturating_mul(u128::from(rate.per_second))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over any window, what is given is at most the burst and what flowed in; the last request alone may be larger than
    /// the burst.
    #[test]
    fn no_window_gives_more_than_the_burst_and_what_flowed_in(
        rate in rates(),
        steps in prop::collection::vec((nanoseconds(), tokens()), 1..40),
    ) {
        let mut now = Instant::now();
        let mut bucket = TokenBucket::new(rate, now);
        let mut given: Vec<(Instant, u128)> = Vec::new();
        for (nanos, tokens) in steps {
            now += Duration::from_nanos(nanos / 64);
            if !bucket.wait(tokens, now).is_zero() {
                continue;
            }
            bucket.take(tokens, now);
            given.push((now, tokens.into()));
            let mut sum = 0u128;
            for &(from, tokens_then) in given.iter().rev() {
                sum += tokens_then;
                let most = u128::from(rate.burst.max(tokens)) * NANOS;
                let flowed = inflow(rate, (now - from).as_nanos());
                prop_assert!(sum * NANOS <= most.saturating_add(flowed));
            }
        }
    }

    /// Whoever waits as long as told gets the tokens then, and a nanosecond earlier would not.
    #[test]
    fn a_wait_ends_exactly_when_there_is_enough(
        rate in rates(),
        before in prop::collection::vec((nanoseconds(), tokens()), 0..10),
        wanted in tokens(),
    ) {
        let mut now = Instant::now();
        let mut bucket = TokenBucket::new(rate, now);
        for (nanos, tokens) in before {
            now += Duration::from_nanos(nanos / 64);
            bucket.take(tokens, now);
        }
        let wait = bucket.wait(wanted, now);
        if let Some(then) = now.checked_add(wait) {
            prop_assert_eq!(bucket.wait(wanted, then), Duration::ZERO);
        }
        if let Some(then) = wait.checked_sub(Duration::from_nanos(1)).and_then(|early| now.checked_add(early)) {
            prop_assert_eq!(bucket.wait(wanted, then), Duration::from_nanos(1));
        }
    }

    /// A bucket that is never left full gives to the nanosecond what its rate says, however its waits are rounded.
    #[test]
    fn nothing_is_lost_between_waits(
        per_second in 1u64..2_000_000_000,
        burst in 3u64..1_000_000,
        requests in prop::collection::vec(1u64..1_000_000, 1..50),
    ) {
        let rate = rate(per_second, burst);
        let start = Instant::now();
        let mut now = start;
        let mut bucket = TokenBucket::new(rate, now);
        let mut given = 0u128;
        for tokens in requests {
            // Less than the burst by what flows in within a nanosecond, or a wait rounded up would end at a full bucket.
            let tokens = tokens.min(burst - 2);
            now += bucket.wait(tokens, now);
            bucket.take(tokens, now);
            given += u128::from(tokens);
            // The first moment at which the burst and the inflow are as much as was given.
            let missing = (given * NANOS).saturating_sub(u128::from(burst) * NANOS);
            let due = missing.div_ceil(u128::from(per_second));
            prop_assert_eq!((now - start).as_nanos(), due);
        }
    }

    /// A request of any size is served after a wait that is no longer than the debt and a full bucket take to flow in.
    #[test]
    fn nobody_starves(rate in rates(), debts in prop::collection::vec(tokens(), 0..5), wanted in tokens()) {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(rate, now);
        for tokens in &debts {
            bucket.take(*tokens, now);
        }
        let taken: u128 = debts.iter().map(|tokens| u128::from(*tokens)).sum();
        let longest = (taken * NANOS).div_ceil(u128::from(rate.per_second));
        prop_assert!(bucket.wait(wanted, now).as_nanos() <= longest);
    }

    /// Whatever numbers come, none overflows.
    #[test]
    fn no_input_overflows(
        steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 1..40),
    ) {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate(u64::MAX, u64::MAX), start);
        for (per_second, burst, tokens, nanos) in steps {
            let now = start.checked_add(Duration::new(nanos >> 2, 999_999_999)).unwrap_or(start);
            bucket.wait(tokens, now);
            bucket.take(tokens, now);
            bucket.take(u64::MAX, now);
            bucket.wait(u64::MAX, start);
            bucket.change(rate(per_second, burst), now);
        }
    }
}
