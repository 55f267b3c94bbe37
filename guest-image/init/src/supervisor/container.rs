//! One container as the supervisor sees it: its state from start to end, its streams, its stopping.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use berth_protocol::message::{ContainerSpec, ContainerState, ContainerStatus, Stream};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::container::start::Started;
use crate::container::stop_signal;
use crate::guest::cgroup::ContainerCgroup;
use crate::guest::clock::unix_ms;
use crate::guest::power::log;
use crate::supervisor::output::Output;
use crate::wait::Ending;

/// The longest reason for a failed start that is passed on.
const MAX_REASON_BYTES: usize = 4096;
/// Grace times beyond a day are as good as one.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// A container of the task.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    stop_signal: i32,
    phase: Phase,
    /// When SIGKILL is due.
    kill_at: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
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
        // SAFETY: kill takes two numbers. The process is not reaped yet, so the number is still its own.
        if unsafe { libc::kill(self.pid.as_raw(), signal) } != 0 {
            log(&format!(
                "cannot send signal {signal} to process {}: {}",
                self.pid,
                Errno::last()
            ));
        }
    }
}

impl Container {
    pub(crate) fn started(spec: &ContainerSpec, started: Started) -> Self {
        Self {
            name: spec.name.clone(),
            stdout: Output::new(started.stdout),
            stderr: Output::new(started.stderr),
            // Checked with the task.
            stop_signal: stop_signal::parse(&spec.stop_signal).unwrap_or(libc::SIGTERM),
            phase: Phase::Starting {
                process: Process {
                    pid: started.pid,
                    cgroup: started.cgroup,
                },
                start_pipe: started.start_pipe,
                reason: Vec::new(),
                stop: false,
            },
            kill_at: None,
        }
    }

    pub(crate) fn failed(name: &str, reason: String) -> Self {
        Self {
            name: name.to_owned(),
            stdout: Output::default(),
            stderr: Output::default(),
            stop_signal: libc::SIGTERM,
            phase: Phase::Done(ContainerState::StartFailed { reason }),
            kill_at: None,
        }
    }

    /// None until there is something to tell the host.
    pub(crate) fn status(&self) -> Option<ContainerStatus> {
        let state = match &self.phase {
            Phase::Starting { .. } => return None,
            Phase::Running {
                process,
                started_at_ms,
            } => ContainerState::Running {
                pid: process.pid.as_raw().unsigned_abs(),
                started_at_ms: *started_at_ms,
            },
            Phase::Draining(ContainerState::Exited { started_at_ms, .. }) => {
                // The process number is gone, and with it any use of it.
                ContainerState::Running {
                    pid: 0,
                    started_at_ms: *started_at_ms,
                }
            }
            Phase::Draining(state) | Phase::Done(state) => state.clone(),
        };
        Some(ContainerStatus {
            name: self.name.clone(),
            state,
        })
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process().map(|process| process.pid)
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

    pub(crate) fn kill_at(&self) -> Option<Instant> {
        self.kill_at
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

    /// Its first process is reaped, and with it the whole pid namespace is dead.
    pub(crate) fn ended(&mut self, ending: Ending) {
        // Whatever the start pipe has is in it by now; a process killed on its way to the program counts as run.
        self.read_start_pipe();
        let Phase::Running {
            process,
            started_at_ms,
        } = &self.phase
        else {
            return;
        };
        let oom_killed = process.cgroup.oom_killed().unwrap_or_else(|error| {
            log(&error.to_string());
            false
        });
        self.kill_at = None;
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

    /// The stop signal now, SIGKILL when the grace time is over. A second stop can only bring that forward.
    pub(crate) fn stop(&mut self, grace: Duration, now: Instant) {
        match &mut self.phase {
            Phase::Starting { stop, .. } => *stop = true,
            Phase::Running { process, .. } => process.signal(self.stop_signal),
            Phase::Draining(_) | Phase::Done(_) => return,
        }
        let due = now + grace.min(LONGEST_GRACE);
        self.kill_at = Some(self.kill_at.map_or(due, |earlier| earlier.min(due)));
    }

    /// Kills it if its grace time is over.
    pub(crate) fn kill_if_due(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|due| due <= now) {
            self.kill_at = None;
            self.signal(libc::SIGKILL);
        }
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
            Phase::Draining(_) | Phase::Done(_) => None,
        }
    }
}
