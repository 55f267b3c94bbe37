//! One container as the supervisor sees it: its state from waiting to its end, its streams, its health, its stopping.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_protocol::message::{ContainerSpec, ContainerState, ContainerStatus, Health, Stream};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::container::process;
use crate::container::start::Started;
use crate::container::stop_signal;
use crate::guest::cgroup::ContainerCgroup;
use crate::guest::clock::unix_ms;
use crate::guest::power::log;
use crate::supervisor::health::Monitor;
use crate::supervisor::order::Progress;
use crate::supervisor::output::Output;
use crate::wait::Ending;

/// The longest reason for a failed start that is passed on.
const MAX_REASON_BYTES: usize = 4096;
/// A debugger in another container lets go of what has ended at once.
const TRACER_GRACE: Duration = Duration::from_secs(1);

/// A container of the task.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) spec: ContainerSpec,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    stop_signal: i32,
    phase: Phase,
    /// When SIGKILL is due.
    kill_at: Option<Instant>,
    /// It is to end, and not to start again.
    stopping: bool,
    /// When it was first started, and last.
    since: Option<Instant>,
    this_run: Option<Instant>,
    restarts: u32,
    health: Option<Monitor>,
    /// Others have processes in its namespace of them.
    shares_pids: bool,
    /// Held open while it runs.
    stdin: Option<OwnedFd>,
    /// Where others can trace its first process: a handle on that, until it has ended.
    handle: Option<OwnedFd>,
    /// Its first process has ended, and whoever traces it has until then to let go of it.
    withheld: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// For what it depends on.
    Waiting,
    /// Its first process is on the way to the program.
    Starting {
        process: Process,
        start_pipe: OwnedFd,
        reason: Vec<u8>,
        stop: bool,
    },
    Running {
        process: Process,
        started_at_ms: u64,
    },
    /// Its processes are gone; what they wrote is not read to the end yet.
    Draining(ContainerState),
    Done(ContainerState),
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    cgroup: ContainerCgroup,
}

impl Process {
    fn signal(&self, signal: i32) {
        Self::signal_pid(self.pid, signal);
    }

    /// Of a child that is not reaped yet.
    fn signal_pid(pid: Pid, signal: i32) {
        // SAFETY: kill takes two numbers. The process is not reaped yet, so the number is still its own.
        if unsafe { libc::kill(pid.as_raw(), signal) } != 0 {
            log(&format!(
                "cannot send signal {signal} to process {pid}: {}",
                Errno::last()
            ));
        }
    }
}

impl Container {
    /// Of each stream at most `buffer_bytes` are kept before lines are dropped; none means that it waits.
    pub(crate) fn new(spec: &ContainerSpec, buffer_bytes: Option<usize>, shares_pids: bool) -> Self {
        let output = || buffer_bytes.map_or_else(Output::default, Output::dropping_beyond);
        Self {
            spec: spec.clone(),
            stdout: output(),
            stderr: output(),
            // Checked with the task.
            stop_signal: stop_signal::parse(&spec.stop_signal).unwrap_or(libc::SIGTERM),
            phase: Phase::Waiting,
            kill_at: None,
            stopping: false,
            since: None,
            this_run: None,
            restarts: 0,
            health: None,
            shares_pids,
            stdin: None,
            handle: None,
            withheld: None,
        }
    }

    /// Its first process is on the way, for the first time or again.
    pub(crate) fn started(&mut self, started: Started, now: Instant) {
        self.stdout.attach(started.stdout);
        if let Some(stderr) = started.stderr {
            self.stderr.attach(stderr);
        }
        self.stdin = started.stdin;
        if self.since.is_some() {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.handle = self
            .shares_pids
            .then(|| process::open(started.pid).ok())
            .flatten();
        self.withheld = None;
        self.since = self.since.or(Some(now));
        self.this_run = Some(now);
        self.phase = Phase::Starting {
            process: Process {
                pid: started.pid,
                cgroup: started.cgroup,
            },
            start_pipe: started.start_pipe,
            reason: Vec::new(),
            stop: false,
        };
    }

    /// It could not be started.
    pub(crate) fn failed(&mut self, reason: String) {
        self.phase = Phase::Done(ContainerState::StartFailed { reason });
    }

    /// It never will be started.
    pub(crate) fn give_up(&mut self, reason: Option<String>) {
        self.phase = Phase::Done(ContainerState::NotStarted { reason });
    }

    /// Neither told to stop nor at its end.
    pub(crate) fn is_to_be_stopped(&self) -> bool {
        !self.stopping && !matches!(self.phase, Phase::Done(_))
    }

    pub(crate) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting)
    }

    /// For those that depend on it.
    pub(crate) fn progress(&self) -> Progress {
        match (&self.phase, self.since) {
            (Phase::Waiting, _) => Progress::Waiting,
            (Phase::Done(ContainerState::Exited { exit_code, .. }), _) => Progress::Ended {
                exit_code: Some(*exit_code),
            },
            (Phase::Done(_), _) | (_, None) => Progress::Ended { exit_code: None },
            (phase, Some(since)) => Progress::Started {
                since,
                runs: self.restarts > 0 || !matches!(phase, Phase::Starting { .. }),
                health: self.health(),
            },
        }
    }

    /// Whether its end is the task's, and has come.
    pub(crate) fn has_ended_the_task(&self) -> bool {
        self.spec.essential && matches!(self.phase, Phase::Done(_))
    }

    fn health(&self) -> Health {
        self.health.as_ref().map_or(Health::Unknown, Monitor::health)
    }

    /// None until there is something to tell the host.
    pub(crate) fn status(&self) -> Option<ContainerStatus> {
        let running = |pid, started_at_ms: &u64| ContainerState::Running {
            pid,
            started_at_ms: *started_at_ms,
            health: self.health(),
            restarts: self.restarts,
        };
        let state = match &self.phase {
            Phase::Waiting | Phase::Starting { .. } => return None,
            Phase::Running {
                process,
                started_at_ms,
            } => running(process.pid.as_raw().unsigned_abs(), started_at_ms),
            // The process number is gone, and with it any use of it.
            Phase::Draining(ContainerState::Exited { started_at_ms, .. }) => running(0, started_at_ms),
            Phase::Draining(state) | Phase::Done(state) => state.clone(),
        };
        Some(ContainerStatus {
            name: self.spec.name.clone(),
            state,
        })
    }

    /// Of its first process, once that is its program.
    pub(crate) fn running_pid(&self) -> Option<Pid> {
        match &self.phase {
            Phase::Running { process, .. } => Some(process.pid),
            _ => None,
        }
    }

    /// Its control group, while it has processes.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.process().map(|process| process.cgroup.path())
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process().map(|process| process.pid)
    }

    /// Readable once its first process has ended, whether or not that can be reaped.
    pub(crate) fn handle(&self) -> Option<&OwnedFd> {
        self.handle.as_ref()
    }

    /// Its first process has ended. Unless it is reaped, somebody traces it and keeps its end to himself (ptrace(2)).
    pub(crate) fn has_ended(&mut self, now: Instant) {
        self.handle = None;
        self.withheld = Some(now + TRACER_GRACE);
    }

    pub(crate) fn start_pipe(&self) -> Option<&OwnedFd> {
        match &self.phase {
            Phase::Starting { start_pipe, .. } => Some(start_pipe),
            _ => None,
        }
    }

    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// When it has to be looked at again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let check = self.health.as_ref().map(Monitor::deadline);
        [self.kill_at, check, self.withheld].into_iter().flatten().min()
    }

    /// Reads the start pipe; true when that told whether the container runs.
    pub(crate) fn read_start_pipe(&mut self) -> bool {
        let Phase::Starting {
            start_pipe, reason, ..
        } = &mut self.phase
        else {
            return false;
        };
        let mut buffer = [0; 512];
        loop {
            match nix::unistd::read(&*start_pipe, &mut buffer) {
                Ok(0) => break,
                Ok(count) => reason.extend(buffer.iter().take(count.min(MAX_REASON_BYTES - reason.len()))),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => break,
            }
        }
        self.start_decided();
        true
    }

    fn start_decided(&mut self) {
        let placeholder = Phase::Done(ContainerState::StartFailed {
            reason: String::new(),
        });
        let Phase::Starting {
            process,
            reason,
            stop,
            ..
        } = std::mem::replace(&mut self.phase, placeholder)
        else {
            return;
        };
        if reason.is_empty() {
            if stop {
                process.signal(self.stop_signal);
            }
            let now = self.this_run.unwrap_or_else(Instant::now);
            self.health = self
                .spec
                .health_check
                .as_ref()
                .map(|check| Monitor::new(check, now));
            self.phase = Phase::Running {
                process,
                started_at_ms: unix_ms(),
            };
        } else {
            // Its process ends by itself and is reaped as nobody's.
            let reason = String::from_utf8_lossy(&reason).replace(['\n', '\r'], " ");
            self.phase = Phase::Done(ContainerState::StartFailed { reason });
            self.kill_at = None;
        }
    }

    /// Its first process is reaped, and with it the whole pid namespace is dead, if that is its own.
    pub(crate) fn ended(&mut self, ending: Ending) {
        // Whatever the start pipe has is in it by now; a process killed on its way to the program counts as run.
        self.read_start_pipe();
        self.stdin = None;
        let Phase::Running {
            process,
            started_at_ms,
        } = &self.phase
        else {
            return;
        };
        if self.shares_pids
            && let Err(error) = process.cgroup.kill()
        {
            log(&error.to_string());
        }
        self.stdout.writers_ended();
        self.stderr.writers_ended();
        self.withheld = None;
        let oom_killed = process.cgroup.oom_killed().unwrap_or_else(|error| {
            log(&error.to_string());
            false
        });
        self.kill_at = None;
        self.health = None;
        self.phase = Phase::Draining(ContainerState::Exited {
            exit_code: ending.exit_code(),
            signal: ending.signal(),
            oom_killed,
            started_at_ms: *started_at_ms,
            finished_at_ms: unix_ms(),
            stdout_bytes: 0,
            stderr_bytes: 0,
        });
    }

    /// Reads what a dead container left; true when that was all, and it is done.
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) -> bool {
        let Phase::Draining(state) = &self.phase else {
            return false;
        };
        self.stdout.drain(buffer);
        self.stderr.drain(buffer);
        if !self.stdout.ended() || !self.stderr.ended() {
            return false;
        }
        let mut state = state.clone();
        if let ContainerState::Exited {
            stdout_bytes,
            stderr_bytes,
            ..
        } = &mut state
        {
            (*stdout_bytes, *stderr_bytes) = (self.stdout.window.end(), self.stderr.window.end());
        }
        self.phase = Phase::Done(state);
        true
    }

    /// Whether it has ended only to start again.
    pub(crate) fn starts_again(&self) -> bool {
        let Phase::Done(ContainerState::Exited { exit_code, .. }) = &self.phase else {
            return false;
        };
        let (Some(policy), Some(this_run)) = (&self.spec.restart, self.this_run) else {
            return false;
        };
        !self.stopping
            && !policy.ignored_exit_codes.contains(exit_code)
            && this_run.elapsed() >= Duration::from_millis(policy.attempt_period_ms)
    }

    /// The stop signal now, SIGKILL when its stop timeout is over. Once.
    pub(crate) fn stop(&mut self, now: Instant) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        match &mut self.phase {
            Phase::Waiting => return self.give_up(None),
            Phase::Starting { stop, .. } => *stop = true,
            Phase::Running { process, .. } => process.signal(self.stop_signal),
            Phase::Draining(_) | Phase::Done(_) => return,
        }
        self.kill_at = Some(now + Duration::from_millis(self.spec.stop_timeout_ms));
    }

    /// Kills what has had its time: the container, who traces it beyond its end, or the check of its health. True if that changed its health.
    pub(crate) fn kill_if_due(&mut self, now: Instant) -> bool {
        if self.kill_at.is_some_and(|due| due <= now) {
            self.kill_at = None;
            self.signal(libc::SIGKILL);
        }
        if self.withheld.is_some_and(|due| due <= now) {
            self.withheld = self.pid().map(|pid| {
                process::kill_tracer(pid);
                now + TRACER_GRACE
            });
        }
        let before = self.health();
        if let Some(check) = self.health.as_mut().and_then(|monitor| monitor.overdue(now)) {
            Process::signal_pid(check, libc::SIGKILL);
        }
        self.health() != before
    }

    /// The first process, cgroup and command of a health check that is due.
    pub(crate) fn due_check(&self, now: Instant) -> Option<(Pid, &Path, &[String])> {
        let Phase::Running { process, .. } = &self.phase else {
            return None;
        };
        let argv = self.health.as_ref()?.due(now)?;
        Some((process.pid, process.cgroup.path(), argv))
    }

    pub(crate) fn check_began(&mut self, pid: Pid, now: Instant) {
        if let Some(monitor) = &mut self.health {
            monitor.began(pid, now);
        }
    }

    /// The process of its health check, if one runs.
    pub(crate) fn check_pid(&self) -> Option<Pid> {
        self.health.as_ref()?.pid()
    }

    /// A health check has ended; true if that changed its health.
    pub(crate) fn check_ended(&mut self, passed: bool, now: Instant) -> bool {
        let before = self.health();
        if let Some(monitor) = &mut self.health {
            monitor.ended(passed, now);
        }
        self.health() != before
    }

    /// Does nothing once its first process is gone.
    pub(crate) fn signal(&self, signal: i32) {
        if let Some(process) = self.process() {
            process.signal(signal);
        }
    }

    fn process(&self) -> Option<&Process> {
        match &self.phase {
            Phase::Starting { process, .. } | Phase::Running { process, .. } => Some(process),
            Phase::Waiting | Phase::Draining(_) | Phase::Done(_) => None,
        }
    }
}
