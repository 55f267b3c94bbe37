//! When the host wants to be told what the containers use, and what they have used.

use std::time::{Duration, Instant};

use berth_protocol::message::TaskUsage;

use crate::guest::{clock, usage};
use crate::supervisor::container::Container;

const EVERY: Duration = Duration::from_secs(1);
/// Whatever the host says: it asks again if it still wants to know.
const LONGEST: Duration = Duration::from_secs(600);

/// What the host has asked for.
#[derive(Debug, Default)]
pub(crate) struct Measurements(Option<Asked>);

#[derive(Debug)]
struct Asked {
    until: Instant,
    next: Instant,
}

impl Measurements {
    /// For so long from now on; the first at once.
    pub(crate) fn ask(&mut self, seconds: u32, now: Instant) {
        let until = now + Duration::from_secs(seconds.into()).min(LONGEST);
        let next = self.0.as_ref().map_or(now, |asked| asked.next);
        self.0 = (until > now).then_some(Asked { until, next });
    }

    /// When to look again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref().map(|asked| asked.next)
    }

    /// Whether it is time now.
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        let Some(asked) = &mut self.0 else { return false };
        if now < asked.next {
            return false;
        }
        if now >= asked.until {
            self.0 = None;
            return false;
        }
        // A guest that was late, or paused, does not catch up.
        asked.next = (asked.next + EVERY).max(now + EVERY / 2);
        true
    }
}

pub(crate) fn of(containers: &[Container]) -> TaskUsage {
    let (disk_used_bytes, disk_bytes) = usage::disk_bytes();
    let running = containers
        .iter()
        .filter_map(|container| Some((container.spec.name.as_str(), container.cgroup()?)));
    TaskUsage {
        at_ms: clock::unix_ms(),
        system_cpu_us: usage::system_cpu_us(),
        disk_used_bytes,
        disk_bytes,
        network: usage::network(),
        containers: running
            .map(|(name, cgroup)| usage::container(name, cgroup))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn it_is_told_every_second_for_as_long_as_it_was_asked_for() {
        let (mut measurements, start) = (Measurements::default(), Instant::now());
        assert!(!measurements.due(start) && measurements.deadline().is_none());
        measurements.ask(3, start);
        assert!(measurements.due(start));
        assert!(!measurements.due(start + seconds(0.9)));
        assert!(measurements.due(start + seconds(1.1)));
        assert_eq!(measurements.deadline(), Some(start + seconds(2.0)));
        measurements.ask(3, start + seconds(1.5));
        assert!(
            !measurements.due(start + seconds(1.6)),
            "asking again brings nothing forward"
        );
        assert!(measurements.due(start + seconds(2.0)) && measurements.due(start + seconds(4.0)));
        assert!(!measurements.due(start + seconds(5.0)) && measurements.deadline().is_none());
    }

    #[test]
    fn it_does_not_catch_up_and_does_not_go_on_for_ever() {
        let (mut measurements, start) = (Measurements::default(), Instant::now());
        measurements.ask(u32::MAX, start);
        assert!(measurements.due(start) && measurements.due(start + seconds(100.0)));
        assert!(!measurements.due(start + seconds(100.1)));
        assert!(!measurements.due(start + LONGEST));
        assert!(measurements.deadline().is_none());
        measurements.ask(5, start);
        measurements.ask(0, start);
        assert!(measurements.deadline().is_none());
    }
}
