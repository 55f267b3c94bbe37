//! What the lab says on its control port, and what to conclude from it and from its silence. No I/O, no clock.

use std::time::Duration;

/// A lab that boots says so well within this time, even on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// The lab beats every two seconds; this long without a beat, it has stalled for good.
const SILENCE_LIMIT: Duration = Duration::from_secs(180);

/// A line of the control port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Ready,
    Beat,
    Status(u8),
}

impl Signal {
    /// Anything that is not of the protocol is ignored.
    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "ready" => Some(Self::Ready),
            "beat" => Some(Self::Beat),
            line => line.strip_prefix("status ")?.parse().ok().map(Self::Status),
        }
    }
}

/// How a lab ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The command ended with this status.
    Status(u8),
    /// The command's time was up.
    TimedOut,
    /// The lab never got as far as the command.
    NeverReady(&'static str),
    /// The lab went away under the command.
    Lost(&'static str),
}

/// Follows one lab. Times are counted from its start.
#[derive(Debug)]
pub(super) struct Watch {
    timeout: Option<Duration>,
    ready: Option<Duration>,
    heard: Duration,
}

impl Watch {
    /// `timeout` is the time that the command may take.
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            ready: None,
            heard: Duration::ZERO,
        }
    }

    pub(super) fn hear(&mut self, signal: Signal, now: Duration) -> Option<End> {
        self.heard = now;
        match signal {
            Signal::Beat => None,
            Signal::Ready => {
                self.ready.get_or_insert(now);
                None
            }
            Signal::Status(status) => Some(End::Status(status)),
        }
    }

    /// The emulator has ended, or its control port has.
    pub(super) fn gone(&self) -> End {
        match self.ready {
            Some(_) => End::Lost("it ended by itself (a kernel panic?)"),
            None => End::NeverReady("it ended while it booted"),
        }
    }

    pub(super) fn judge(&self, now: Duration) -> Option<End> {
        let Some(ready) = self.ready else {
            return (now > BOOT_LIMIT).then_some(End::NeverReady("it did not boot in time"));
        };
        if self.timeout.is_some_and(|timeout| now > ready + timeout) {
            return Some(End::TimedOut);
        }
        (now > self.heard + SILENCE_LIMIT).then_some(End::Lost("it stalled: no heartbeat"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lines_of_the_control_port_are_understood_and_others_ignored() {
        assert_eq!(Signal::parse("ready\n"), Some(Signal::Ready));
        assert_eq!(Signal::parse("beat\n"), Some(Signal::Beat));
        assert_eq!(Signal::parse("status 3\n"), Some(Signal::Status(3)));
        assert_eq!(Signal::parse("status 256\n"), None);
        assert_eq!(Signal::parse("hello"), None);
    }

    #[test]
    fn the_status_of_the_command_ends_the_lab() {
        let mut watch = Watch::new(None);
        assert_eq!(watch.hear(Signal::Ready, seconds(5)), None);
        assert_eq!(watch.hear(Signal::Status(7), seconds(6)), Some(End::Status(7)));
    }

    #[test]
    fn a_lab_that_does_not_boot_was_never_ready() {
        let watch = Watch::new(Some(seconds(1)));
        assert_eq!(watch.judge(seconds(100)), None);
        assert!(matches!(watch.judge(seconds(181)), Some(End::NeverReady(_))));
        assert!(matches!(watch.gone(), End::NeverReady(_)));
    }

    #[test]
    fn the_timeout_counts_from_the_start_of_the_command() {
        let mut watch = Watch::new(Some(seconds(10)));
        watch.hear(Signal::Ready, seconds(50));
        assert_eq!(watch.judge(seconds(60)), None);
        assert_eq!(watch.judge(seconds(61)), Some(End::TimedOut));
    }

    #[test]
    fn silence_means_lost_and_a_beat_ends_the_silence() {
        let mut watch = Watch::new(None);
        watch.hear(Signal::Ready, seconds(5));
        watch.hear(Signal::Beat, seconds(100));
        assert_eq!(watch.judge(seconds(280)), None);
        assert!(matches!(watch.judge(seconds(281)), Some(End::Lost(_))));
        assert!(matches!(watch.gone(), End::Lost(_)));
    }
}
