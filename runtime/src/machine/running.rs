//! A running VMM, seen from the daemon: its process by a pidfd, its guest's connections by the control socket.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use berth_vmm::client::{Client, ClientError};
use berth_vmm::config::{ExitReason, ExitReport, WorkingSet};
use berth_vmm::control::{BalloonReport, Command, Metrics, Outcome, ServerMessage};
use futures_util::future::BoxFuture;
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::process::Process;
use super::{CONTROL_SOCKET, EXIT_FILE, LOG_FILE, PID_FILE, at, working_set};
use crate::faults::{self, Point};
use crate::model::Timestamp;
use crate::task::host::{Accepted, GuestPort, GuestStream, HostError, Machine, MachineEnd};

/// A VMM with a small share of a busy CPU takes its time until it answers.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest has to say how it stands with its memory.
const GUEST_WAIT_MS: u32 = 1000;
/// Most of a VMM's own words that goes into a reason, in characters.
const MAX_DETAIL_CHARS: usize = 300;
/// Most that is read of what a VMM left behind.
const MAX_WORDS_BYTES: u64 = 64 * 1024;

pub struct RunningMachine {
    dir: PathBuf,
    process: Process,
    /// Set if this daemon started it, and has to reap it.
    child: Mutex<Option<Child>>,
    control: AsyncFd<Client>,
    /// Commands take effect in the order in which they were given, even if whoever gave one has gone away.
    commands: Arc<tokio::sync::Mutex<()>>,
}

impl RunningMachine {
    /// Attaches to a VMM that this daemon has just started.
    pub async fn connect(dir: PathBuf, child: Option<Child>) -> Result<RunningMachine, HostError> {
        let pid = child.as_ref().map(Child::id);
        let process = match pid {
            Some(pid) => Process::of_pid(pid)?,
            None => Process::from_pid_file(&dir.join(PID_FILE))?
                .ok_or_else(|| HostError("the machine has ended".to_owned()))?,
        };
        RunningMachine::attach(dir, process, child).await
    }

    /// Attaches to a VMM that an earlier daemon started.
    pub async fn adopt(dir: PathBuf, process: Process) -> Result<RunningMachine, HostError> {
        RunningMachine::attach(dir, process, None).await
    }

    async fn attach(
        dir: PathBuf,
        process: Process,
        child: Option<Child>,
    ) -> Result<RunningMachine, HostError> {
        let socket_dir = dir.clone();
        let client = tokio::task::spawn_blocking(move || attach(&socket_dir));
        let client = client
            .await
            .map_err(|error| HostError(error.to_string()))
            .flatten();
        let control = client.and_then(|client| {
            // SAFETY: a client owns its socket and keeps the same one until it is dropped.
            unsafe { AsyncFd::register_with_interest(client, Interest::READABLE) }
                .map_err(|error| HostError(format!("cannot watch the machine: {error}")))
        });
        match control {
            Ok(control) => Ok(RunningMachine {
                dir,
                process,
                child: Mutex::new(child),
                control,
                commands: Arc::default(),
            }),
            Err(error) => {
                // What it said before it ended explains more than the failed connection.
                process.kill();
                process.ended().await;
                let status = child.and_then(|mut child| child.wait().ok());
                let end = end_of(&dir, status.map(described).as_deref());
                Err(HostError(format!("{error}; {}", end.reason)))
            }
        }
    }

    /// The pages of `memory`, a file that the machine started from, that it has found so far.
    pub fn working_set(&self, memory: &fs::File) -> io::Result<WorkingSet> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = child.as_ref().map(Child::id);
        working_set::of_clone(pid.ok_or(io::ErrorKind::NotFound)?, memory)
    }

    /// Has the machine written down, which ends it.
    pub async fn snapshot(&self) -> Result<(), HostError> {
        self.command(Command::Snapshot, Some(Point::TemplateUnwritten))
            .await
    }

    /// Has the VMM do something; between the question and the answer is this point.
    async fn command(&self, command: Command, asked: Option<Point>) -> Result<(), HostError> {
        let dir = self.dir.clone();
        let turn = Arc::clone(&self.commands).lock_owned().await;
        // On a connection of its own, which blocks: the other one is the guest's.
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let failed = |error: ClientError| HostError(error.to_string());
            let client = connect(&dir)?;
            let sent = client.send(command).map_err(failed)?;
            faults::pass(asked);
            match client.reply(sent).map_err(failed)? {
                (Outcome::Error { error }, _) => Err(HostError(error)),
                _ => Ok(()),
            }
        });
        done.await.map_err(|error| HostError(error.to_string())).flatten()
    }

    /// The next connection of the guest.
    async fn next_connection(&self) -> Result<(GuestPort, UnixStream), HostError> {
        let failed = |error: &dyn std::error::Error| {
            HostError(format!("the machine's control socket failed: {error}"))
        };
        loop {
            let mut ready = self.control.readable().await.map_err(|error| failed(&error))?;
            match ready.get_inner().recv() {
                Ok((ServerMessage::VsockConnection { port }, Some(fd))) => {
                    // Others have their turn, however many of these a machine sends.
                    tokio::task::yield_now().await;
                    // A port that nobody serves: closing the descriptor resets the guest's connection.
                    let Some(port) = GuestPort::of(port) else { continue };
                    let stream = stream(fd).map_err(|error| failed(&error))?;
                    return Ok((port, stream));
                }
                Ok(_) => tokio::task::yield_now().await,
                Err(error) if error.would_block() => ready.clear_ready(),
                Err(error) => return Err(failed(&error)),
            }
        }
    }
}

impl Machine for RunningMachine {
    fn accept(&self) -> BoxFuture<'_, Result<Accepted, HostError>> {
        Box::pin(async {
            let (port, stream) = self.next_connection().await?;
            Ok((port, Box::new(stream) as Box<dyn GuestStream>))
        })
    }

    fn ended(&self) -> BoxFuture<'_, MachineEnd> {
        Box::pin(async {
            self.process.ended().await;
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            let status = child.as_mut().and_then(|child| child.wait().ok());
            end_of(&self.dir, status.map(described).as_deref())
        })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(self.command(Command::Pause, None))
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(self.command(Command::Resume, None))
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.process.kill() })
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        // A VMM that outlives the daemon is init's to reap; one that has ended is ours.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = child.take() {
            std::thread::spawn(move || drop(child.wait()));
        }
    }
}

fn connect(dir: &Path) -> Result<Client, HostError> {
    // A socket's path may have 107 bytes only; through the directory's descriptor it is always short.
    let parent = fs::File::open(dir).map_err(|error| at(dir, "open", &error))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", parent.as_raw_fd()));
    Client::connect(&path, CONTROL_TIMEOUT).map_err(|error| HostError(error.to_string()))
}

/// What the machine in `dir` counts, and its guest, if it says so; blocks.
pub(super) fn counters(dir: &Path) -> Result<(Metrics, Option<BalloonReport>), HostError> {
    let client = connect(dir)?;
    let counters = match client.request(Command::Metrics) {
        Ok((Outcome::Metrics(metrics), _)) => metrics,
        Ok((answer, _)) => {
            return Err(HostError(format!(
                "the machine does not tell its counters: {answer:?}"
            )));
        }
        Err(error) => return Err(HostError(error.to_string())),
    };
    // A VMM that an earlier daemon started may not know the question, and ends the connection.
    let guest = match client.request(Command::Balloon {
        wait_ms: GUEST_WAIT_MS,
    }) {
        Ok((Outcome::Balloon(report), _)) => Some(report),
        _ => None,
    };
    Ok((counters, guest))
}

/// Connects to a vsock port of the guest of the machine in `dir`; none where nobody listens there. Blocks.
pub(super) fn connect_guest(dir: &Path, port: u32) -> Result<Option<OwnedFd>, HostError> {
    match connect(dir)?.request(Command::VsockConnect { port }) {
        Ok((Outcome::Done, Some(fd))) => Ok(Some(fd)),
        Ok((Outcome::Error { error }, _)) => {
            tracing::debug!(error, "a guest does not take a connection");
            Ok(None)
        }
        Ok(_) => Err(HostError("the machine sent no connection".to_owned())),
        Err(error) => Err(HostError(error.to_string())),
    }
}

fn attach(dir: &Path) -> Result<Client, HostError> {
    let failed = |error: ClientError| HostError(error.to_string());
    let client = connect(dir)?;
    match client.request(Command::Attach).map_err(failed)? {
        (Outcome::Error { error }, _) => {
            return Err(HostError(format!(
                "the machine refuses to be attached to: {error}"
            )));
        }
        _ => client
            .set_nonblocking(true)
            .map_err(|error| failed(error.into()))?,
    }
    Ok(client)
}

/// What a VMM sends may be any descriptor at all; only a stream socket is taken.
pub(super) fn stream(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let local = getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
    if !local || getsockopt(&fd, sockopt::SockType)? != SockType::Stream {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a stream socket"));
    }
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

pub(super) fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(libc::SIGSYS)) => "ended for a system call that its filter forbids (SIGSYS)".to_owned(),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), _) => format!("exit status {code}"),
        (None, None) => "unknown exit status".to_owned(),
    }
}

/// How the machine in `dir` ended, from what it left there.
pub fn end_of(dir: &Path, status: Option<&str>) -> MachineEnd {
    let exit_path = dir.join(EXIT_FILE);
    // Both files are a VMM's to write, whatever has become of it.
    let report = last_bytes(&exit_path)
        .ok()
        .and_then(|json| serde_json::from_slice::<ExitReport>(&json).ok());
    let Some(report) = report else {
        let said = last_bytes(&dir.join(LOG_FILE)).unwrap_or_default();
        let details: Vec<String> = status
            .map(str::to_owned)
            .into_iter()
            .chain(last_line(&said))
            .collect();
        let details = if details.is_empty() {
            String::new()
        } else {
            format!(" ({})", details.join("; "))
        };
        return MachineEnd {
            reason: format!("the machine of the task ended unexpectedly{details}"),
            at: None,
        };
    };
    let what = match report.reason {
        ExitReason::PowerOff => "the guest powered off",
        ExitReason::Reset => "the guest kernel panicked or was reset",
        ExitReason::TripleFault => "the guest kernel crashed (triple fault)",
        ExitReason::Stopped => "the machine was stopped",
        ExitReason::Snapshot => "the machine was written down",
        ExitReason::Error => "the machine failed",
    };
    let detail = report
        .detail
        .as_deref()
        .map(|detail| format!(": {}", bounded(detail)))
        .unwrap_or_default();
    let written = fs::metadata(&exit_path)
        .and_then(|metadata| metadata.modified())
        .ok();
    let at = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let at = at
        .and_then(|at| u64::try_from(at.as_millis()).ok())
        .map(Timestamp);
    MachineEnd {
        reason: format!("{what}{detail}"),
        at,
    }
}

/// The end of a file that may be of any size: no more than [`MAX_WORDS_BYTES`].
fn last_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_WORDS_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_WORDS_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last line in which there is anything.
pub(super) fn last_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    said.lines().rfind(|line| !line.trim().is_empty()).map(bounded)
}

fn bounded(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_DETAIL_CHARS)
        .collect()
}
