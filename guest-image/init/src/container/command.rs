//! A command that somebody runs in a container, and speaks to: a process of its own for each, which holds the connection to
//! the host, starts the command in the container, and passes on what both say.
//!
//! The process is this binary executed anew. It is given the connection and, in a file of its own each, what there is to know
//! of every container that runs; it reads the one that it is asked for and closes the others.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use berth_protocol::exec::{FromCommand, TerminalSize, ToCommand};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::container::child::{ChildError, give_streams, step};
use crate::container::join::{Who, become_program, begin_anew, go_in, handed, read_down, write_down};
use crate::container::process;
use crate::container::relay::{Relay, Streams};
use crate::container::start::{StartError, fork};
use crate::container::user::Identity;
use crate::guest::cgroup;

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-command";
const NAME_C: &CStr = c"berth-command";
/// What shells exit with where a program cannot be run.
const NOT_RUN: i32 = 126;

/// A container that runs, as one of these processes is told of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    who: Who,
    /// Of its first process.
    pid: i32,
}

impl Target {
    pub(crate) fn new(spec: &berth_protocol::message::ContainerSpec, hostname: &str, first: Pid) -> Self {
        Self {
            who: Who {
                spec: spec.clone(),
                hostname: hostname.to_owned(),
            },
            pid: first.as_raw(),
        }
    }
}

/// Starts the process for a connection that the host has just made.
pub(crate) fn serve(connection: &OwnedFd, targets: &[Target]) -> Result<Pid, StartError> {
    let names: Vec<&str> = targets
        .iter()
        .map(|target| target.who.spec.name.as_str())
        .collect();
    let mut files = vec![write_down(&names).map_err(StartError::Order)?];
    for target in targets {
        files.push(write_down(target).map_err(StartError::Order)?);
    }
    if let Some(pid) = fork()? {
        return Ok(pid);
    }
    let mut descriptors = vec![connection.as_fd()];
    descriptors.extend(files.iter().map(AsFd::as_fd));
    // The host sees that nothing comes; what PID 1 could tell, it has told.
    let _ = begin_anew(NAME_C, &descriptors);
    // SAFETY: ends the process without running destructors, which are the parent's.
    unsafe { libc::_exit(NOT_RUN) }
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("there is no container {0:?} that runs")]
    NoContainer(String),
    #[error("the container has ended")]
    Ended,
    #[error("cannot read the container's specification: {0}")]
    Read(io::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error(transparent)]
    Child(#[from] ChildError),
}

/// What the binary is, executed anew.
pub(crate) fn main() -> i32 {
    // A command that takes no more input is no reason to end.
    pipe_signal(libc::SIG_IGN);
    let mut relay = Relay::new(handed(0));
    let Ok(start) = relay.first_message() else {
        return NOT_RUN;
    };
    let outcome = match begin(start) {
        Ok(running) => relay.run(running.streams, running.child, &running.reason),
        Err(error) => FromCommand::Failed {
            reason: error.to_string(),
        },
    };
    relay.finish(&outcome);
    0
}

fn pipe_signal(disposition: libc::sighandler_t) {
    // SAFETY: neither disposition runs any code.
    unsafe { libc::signal(libc::SIGPIPE, disposition) };
}

struct Running {
    child: Pid,
    streams: Streams,
    /// Why the program could not be run, once the child has ended.
    reason: OwnedFd,
}

fn begin(start: ToCommand) -> Result<Running, CommandError> {
    let ToCommand::Start {
        container,
        argv,
        env,
        terminal,
    } = start
    else {
        return Err(CommandError::NoContainer(String::new()));
    };
    let mut target = read_target(&container)?;
    target.who.spec.env.extend(env);
    let first = Pid::from_raw(target.pid);
    let process = process::open(first).map_err(|_| CommandError::Ended)?;
    if !process::is_in(first, &cgroup::name_of(&container)) {
        return Err(CommandError::Ended);
    }
    cgroup::enter(&container)?;
    go_in(&process)?;
    drop(process);
    let (streams, own) = match terminal {
        Some(size) => open_terminal(size)?,
        None => open_pipes()?,
    };
    let (reason, tell) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(step("make a pipe"))?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.map_err(step("fork"))? {
        ForkResult::Parent { child } => Ok(Running {
            child,
            streams,
            reason,
        }),
        ForkResult::Child => {
            drop(streams);
            let Err(error) = run(&target.who, &argv, &own);
            let _ = nix::unistd::write(&tell, error.to_string().as_bytes());
            // SAFETY: nothing here needs a destructor.
            unsafe { libc::_exit(NOT_RUN) }
        }
    }
}

/// The file of the container that is asked for. The others close with this process's next step.
fn read_target(container: &str) -> Result<Target, CommandError> {
    let names: Vec<String> = read_down(File::from(handed(1))).map_err(CommandError::Read)?;
    let mut found = None;
    for (index, name) in (2..).zip(&names) {
        let file = File::from(handed(index));
        if name == container {
            found = Some(file);
        }
    }
    let file = found.ok_or_else(|| CommandError::NoContainer(container.to_owned()))?;
    read_down(file).map_err(CommandError::Read)
}

/// The child's standard streams.
enum Own {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

fn open_pipes() -> Result<(Streams, Own), ChildError> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(step("make a pipe"));
    let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
    let streams = Streams::Pipes {
        stdin: to_stdin,
        stdout: from_stdout,
        stderr: from_stderr,
    };
    Ok((streams, Own::Pipes([stdin, stdout, stderr])))
}

/// A terminal of the container's own, so that it finds its name. What `/dev/ptmx` is, the container decides: only a
/// multiplexer of terminals knows these calls (ioctl_tty(2)).
fn open_terminal(size: TerminalSize) -> Result<(Streams, Own), ChildError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let main = nix::fcntl::open("/dev/ptmx", flags, Mode::empty()).map_err(step("open /dev/ptmx"))?;
    let unlocked: libc::c_int = 0;
    // SAFETY: this call reads one integer, which lives.
    Errno::result(unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })
        .map_err(step("unlock a terminal"))?;
    // SAFETY: takes numbers only.
    let other = unsafe {
        libc::ioctl(
            main.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    };
    let other = Errno::result(other).map_err(step("open a terminal"))?;
    // SAFETY: a new descriptor, which nobody else knows.
    let other = unsafe { OwnedFd::from_raw_fd(other) };
    crate::container::relay::resize(&main, size);
    Ok((Streams::Terminal(main), Own::Terminal(other)))
}

/// In the child: becomes the command.
fn run(who: &Who, argv: &[String], own: &Own) -> Result<Infallible, ChildError> {
    pipe_signal(libc::SIG_DFL);
    nix::unistd::setsid().map_err(step("start a session"))?;
    let [stdin, stdout, stderr]: [BorrowedFd<'_>; 3] = match own {
        Own::Pipes(pipes) => [pipes[0].as_fd(), pipes[1].as_fd(), pipes[2].as_fd()],
        Own::Terminal(terminal) => {
            // SAFETY: takes numbers only.
            Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })
                .map_err(step("take the terminal"))?;
            [terminal.as_fd(); 3]
        }
    };
    nix::unistd::dup2_stdin(stdin).map_err(step("set standard input"))?;
    nix::unistd::dup2_stdout(stdout).map_err(step("set standard output"))?;
    nix::unistd::dup2_stderr(stderr).map_err(step("set standard error"))?;
    become_program(who, argv, |identity: &Identity| give_streams(identity))
}
