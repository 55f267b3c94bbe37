//! The health of one run of a container: when its check is due, and what its outcomes make of it. Starts no process.

use std::time::{Duration, Instant};

use berth_protocol::message::{Health, HealthCheck};
use nix::unistd::Pid;

/// Follows the checks of one container from its start to its end.
#[derive(Debug)]
pub(crate) struct Monitor {
    check: HealthCheck,
    since: Instant,
    failures: u32,
    health: Health,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Check(Instant),
    End { pid: Pid, until: Instant },
}

impl Monitor {
    pub(crate) fn new(check: &HealthCheck, now: Instant) -> Self {
        Self {
            since: now,
            failures: 0,
            health: Health::Unknown,
            next: Next::Check(now + Duration::from_millis(check.interval_ms)),
            check: check.clone(),
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// When it has to be looked at.
    pub(crate) fn deadline(&self) -> Instant {
        match self.next {
            Next::Check(at) => at,
            Next::End { until, .. } => until,
        }
    }

    /// The command to run now, if its time has come.
    pub(crate) fn due(&self, now: Instant) -> Option<&[String]> {
        matches!(self.next, Next::Check(at) if at <= now).then_some(&self.check.argv)
    }

    pub(crate) fn began(&mut self, pid: Pid, now: Instant) {
        let until = now + Duration::from_millis(self.check.timeout_ms);
        self.next = Next::End { pid, until };
    }

    /// The process of the check that runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match self.next {
            Next::End { pid, .. } => Some(pid),
            Next::Check(_) => None,
        }
    }

    /// The check that takes too long, which counts as failed from now on: its process is to be killed.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<Pid> {
        match self.next {
            Next::End { pid, until } if until <= now => {
                self.ended(false, now);
                Some(pid)
            }
            _ => None,
        }
    }

    /// A check has ended, or could not begin.
    pub(crate) fn ended(&mut self, passed: bool, now: Instant) {
        self.next = Next::Check(now + Duration::from_millis(self.check.interval_ms));
        let starting = now < self.since + Duration::from_millis(self.check.start_period_ms);
        if passed {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if !starting || self.health == Health::Healthy {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.check.retries {
                self.health = Health::Unhealthy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn monitor(start_period_ms: u64, now: Instant) -> Monitor {
        let check = HealthCheck {
            argv: vec!["check".into()],
            interval_ms: 10_000,
            timeout_ms: 2_000,
            retries: 3,
            start_period_ms,
        };
        Monitor::new(&check, now)
    }

    #[test]
    fn the_first_check_and_each_one_after_come_an_interval_later() {
        let start = Instant::now();
        let mut monitor = monitor(0, start);
        assert_eq!(monitor.due(start + 9 * SECOND), None);
        assert_eq!(monitor.due(start + 10 * SECOND), Some(&["check".to_owned()][..]));
        monitor.began(Pid::from_raw(7), start + 10 * SECOND);
        assert_eq!(monitor.due(start + 60 * SECOND), None, "one at a time");
        assert_eq!(monitor.pid(), Some(Pid::from_raw(7)));
        monitor.ended(true, start + 11 * SECOND);
        assert_eq!((monitor.health(), monitor.pid()), (Health::Healthy, None));
        assert_eq!(monitor.deadline(), start + 21 * SECOND);
    }

    #[test]
    fn so_many_failures_in_a_row_make_it_unhealthy_and_one_pass_healthy_again() {
        let start = Instant::now();
        let mut monitor = monitor(0, start);
        let mut tell = |passed: bool| {
            monitor.ended(passed, start);
            monitor.health()
        };
        assert_eq!([false, false, true].map(&mut tell)[2], Health::Healthy);
        assert_eq!(
            [false, false, false].map(&mut tell),
            [Health::Healthy, Health::Healthy, Health::Unhealthy]
        );
        assert_eq!(tell(true), Health::Healthy);
    }

    #[test]
    fn failures_while_it_starts_do_not_count_unless_it_was_healthy() {
        let start = Instant::now();
        let mut monitor = monitor(60_000, start);
        for second in 1..20 {
            monitor.ended(false, start + second * SECOND);
        }
        assert_eq!(monitor.health(), Health::Unknown);
        monitor.ended(true, start + 20 * SECOND);
        for second in 21..24 {
            monitor.ended(false, start + second * SECOND);
        }
        assert_eq!(monitor.health(), Health::Unhealthy);
    }

    #[test]
    fn a_check_that_takes_too_long_has_failed() {
        let start = Instant::now();
        let mut monitor = monitor(0, start);
        for round in 0..3 {
            monitor.began(Pid::from_raw(7), start);
            assert_eq!(monitor.overdue(start + SECOND), None);
            assert_eq!(
                monitor.overdue(start + 2 * SECOND),
                Some(Pid::from_raw(7)),
                "{round}"
            );
            assert_eq!(monitor.pid(), None);
        }
        assert_eq!(monitor.health(), Health::Unhealthy);
    }
}
