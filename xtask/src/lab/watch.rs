//! What the lab says on its control port, and what to conclude from it and from its silence. No I/O, no clock.

use std::time::Duration;

/// A lab that boots says so well within this time, even on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Each processor of the lab beats every two seconds; this long without a beat, it has stalled for good.
const SILENCE_LIMIT: Duration = Duration::from_secs(180);

/// A line of the control port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Ready,
    /// Of the processor with this number.
    Beat(u8),
    /// The command said something; not a line of the control port.
    Output,
    Status(u8),
}

impl Signal {
    /// Anything that is not of the protocol is ignored.
    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "ready" => Some(Self::Ready),
            line => match line.split_once(' ')? {
                ("beat", cpu) => cpu.parse().ok().map(Self::Beat),
                ("status", status) => status.parse().ok().map(Self::Status),
                _ => None,
            },
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

/// What the command is given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// The time that it may take.
    pub(super) timeout: Option<Duration>,
    /// The time that it may say nothing.
    pub(super) silence: Option<Duration>,
}

/// Follows one lab. Times are counted from its start.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    ready: Option<Duration>,
    /// When each processor was last heard.
    heard: Vec<Duration>,
    output: Duration,
}

impl Watch {
    /// `cpus` is how many processors the lab has.
    pub(super) fn new(limits: Limits, cpus: u8) -> Self {
        Self {
            limits,
            ready: None,
            heard: vec![Duration::ZERO; cpus.into()],
            output: Duration::ZERO,
        }
    }

    pub(super) fn hear(&mut self, signal: Signal, now: Duration) -> Option<End> {
        match signal {
            Signal::Beat(cpu) => {
                if let Some(heard) = self.heard.get_mut(usize::from(cpu)) {
                    *heard = now;
                }
                None
            }
            Signal::Output => {
                self.output = now;
                None
            }
            Signal::Ready => {
                self.output = now;
                self.ready.get_or_insert(now);
                self.heard.fill(now);
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
        let Limits { timeout, silence } = self.limits;
        if timeout.is_some_and(|timeout| now > ready + timeout) {
            return Some(End::TimedOut);
        }
        if silence.is_some_and(|silence| now > self.output + silence) {
            return Some(End::Lost("the command in it says nothing any more"));
        }
        let stalled = self.heard.iter().any(|&heard| now > heard + SILENCE_LIMIT);
        stalled.then_some(End::Lost("it stalled: a processor of it has no heartbeat"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limits(timeout: Option<u64>, silence: Option<u64>) -> Limits {
        Limits {
            timeout: timeout.map(seconds),
            silence: silence.map(seconds),
        }
    }

    #[test]
    fn lines_of_the_control_port_are_understood_and_others_ignored() {
        assert_eq!(Signal::parse("ready\n"), Some(Signal::Ready));
        assert_eq!(Signal::parse("beat 1\n"), Some(Signal::Beat(1)));
        assert_eq!(Signal::parse("status 3\n"), Some(Signal::Status(3)));
        assert_eq!(Signal::parse("status 256\n"), None);
        assert_eq!(Signal::parse("beat"), None);
        assert_eq!(Signal::parse("hello"), None);
        assert_eq!(Signal::parse("hello 1"), None);
    }

    #[test]
    fn the_status_of_the_command_ends_the_lab() {
        let mut watch = Watch::new(Limits::default(), 2);
        assert_eq!(watch.hear(Signal::Ready, seconds(5)), None);
        assert_eq!(watch.hear(Signal::Status(7), seconds(6)), Some(End::Status(7)));
    }

    #[test]
    fn a_lab_that_does_not_boot_was_never_ready() {
        let watch = Watch::new(limits(Some(1), None), 2);
        assert_eq!(watch.judge(seconds(100)), None);
        assert!(matches!(watch.judge(seconds(181)), Some(End::NeverReady(_))));
        assert!(matches!(watch.gone(), End::NeverReady(_)));
    }

    #[test]
    fn the_timeout_counts_from_the_start_of_the_command() {
        let mut watch = Watch::new(limits(Some(10), None), 2);
        watch.hear(Signal::Ready, seconds(50));
        assert_eq!(watch.judge(seconds(60)), None);
        assert_eq!(watch.judge(seconds(61)), Some(End::TimedOut));
    }

    #[test]
    fn silence_means_lost_and_a_beat_ends_the_silence() {
        let mut watch = Watch::new(Limits::default(), 1);
        watch.hear(Signal::Ready, seconds(5));
        watch.hear(Signal::Beat(0), seconds(100));
        assert_eq!(watch.judge(seconds(280)), None);
        assert!(matches!(watch.judge(seconds(281)), Some(End::Lost(_))));
        assert!(matches!(watch.gone(), End::Lost(_)));
    }

    #[test]
    fn a_silent_processor_is_noticed_beside_one_that_beats() {
        let mut watch = Watch::new(Limits::default(), 2);
        watch.hear(Signal::Ready, seconds(5));
        for second in (6..=185).step_by(2) {
            watch.hear(Signal::Beat(0), seconds(second));
            // Of a processor that the lab does not have.
            watch.hear(Signal::Beat(2), seconds(second));
        }
        assert_eq!(watch.judge(seconds(185)), None);
        assert!(matches!(watch.judge(seconds(186)), Some(End::Lost(_))));
    }

    #[test]
    fn a_command_that_says_nothing_for_too_long_has_lost_its_lab() {
        let mut watch = Watch::new(limits(None, Some(100)), 1);
        watch.hear(Signal::Ready, seconds(5));
        watch.hear(Signal::Beat(0), seconds(100));
        assert_eq!(watch.judge(seconds(105)), None);
        assert!(matches!(watch.judge(seconds(106)), Some(End::Lost(_))));
        watch.hear(Signal::Output, seconds(106));
        assert_eq!(watch.judge(seconds(206)), None);
        assert!(matches!(watch.judge(seconds(207)), Some(End::Lost(_))));
    }
}
