//! A command that somebody runs in a container, and speaks to: a process of its own for each, which holds the connection to
//! the host, starts the command in the container, and passes on what both say.
//!
//! The process is this binary executed anew. It is given the connection and, in a file of its own each, what there is to know
//! of every container that runs; it reads the one that it is asked for and closes the others.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_protocol::exec::{FromCommand, TerminalSize, ToCommand};
use berth_protocol::message::ContainerSpec;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

use crate::container::child::{ChildError, give_streams, step};
use crate::container::environment::Environment;
use crate::container::handover::{handed, read_down, write_down};
use crate::container::join::{
    become_program, become_user_inside, begin_anew, children_go_in, go_in_alone, handed_over,
};
use crate::container::plan::{PlanError, Who};
use crate::container::process;
use crate::container::relay::{Relay, Streams};
use crate::container::start::{StartError, clone_into, fork, open_cgroup};
use crate::container::terminal;
use crate::guest::cgroup;

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-command";
const NAME_C: &CStr = c"berth-command";
/// What shells exit with where a program cannot be run.
const NOT_RUN: i32 = 126;

/// A container that runs, as one of these processes is told of it.
#[derive(Debug)]
pub(crate) struct Target {
    who: Who,
    /// Of its first process.
    pid: i32,
}

handed!(Target { who, pid });

impl Target {
    pub(crate) fn new(spec: &ContainerSpec, hostname: &str, first: Pid) -> Result<Self, PlanError> {
        Ok(Self {
            who: Who::new(spec, hostname)?,
            pid: first.as_raw(),
        })
    }
}

/// Starts the process for a connection that the host has just made.
pub(crate) fn serve(connection: &OwnedFd, targets: &[Target]) -> Result<Pid, StartError> {
    let names: Vec<String> = targets.iter().map(|target| target.who.name.clone()).collect();
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
    Start(#[from] StartError),
    #[error(transparent)]
    Child(#[from] ChildError),
}

/// What the binary is, executed anew.
pub(crate) fn main() -> i32 {
    // A command that takes no more input is no reason to end.
    pipe_signal(libc::SIG_IGN);
    let mut relay = Relay::new(handed_over(0));
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
    target.who.env.extend(env);
    let first = Pid::from_raw(target.pid);
    let process = process::open(first).map_err(|_| CommandError::Ended)?;
    if !process::is_in(first, &cgroup::name_of(&container)) {
        return Err(CommandError::Ended);
    }
    // Beside the containers' own, so that the end of the container leaves this process to tell of it.
    cgroup::enter_commands()?;
    let cgroup = open_cgroup(&cgroup::path_of(&container))?;
    go_in_alone(&process)?;
    let (streams, own) = match terminal {
        Some(size) => open_terminal(size)?,
        None => open_pipes()?,
    };
    let (reason, tell) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(step("make a pipe"))?;
    let (number, tell_number) = pipe2(OFlag::O_CLOEXEC).map_err(step("make a pipe"))?;
    // Not in the container's namespace of processes, and gone once the command is.
    let Some(starter) = clone_into(Some(&cgroup), 0)? else {
        drop(streams);
        if let Err(error) = start_command(&target.who, &argv, &own, &process, &tell_number) {
            let _ = nix::unistd::write(&tell, error.to_string().as_bytes());
        }
        // SAFETY: nothing here needs a destructor.
        unsafe { libc::_exit(NOT_RUN) }
    };
    drop(tell_number);
    let child = match told_number(number) {
        Some(child) => {
            let _ = waitpid(starter, None);
            child
        }
        // It has told why, and ends.
        None => starter,
    };
    // Who waits for the container's end kills what is in its cgroup then. What came later is killed here.
    if process::has_ended(&process).unwrap_or(true) {
        // SAFETY: kill takes two numbers. The child is not reaped yet, so the number is still its own.
        unsafe { libc::kill(child.as_raw(), libc::SIGKILL) };
        return Err(CommandError::Ended);
    }
    Ok(Running {
        child,
        streams,
        reason,
    })
}

/// The number of the command's process; none if there is none.
fn told_number(pipe: OwnedFd) -> Option<Pid> {
    let mut number = [0; 4];
    File::from(pipe).read_exact(&mut number).ok()?;
    Some(Pid::from_raw(i32::from_ne_bytes(number)))
}

/// The file of the container that is asked for. The others close with this process's next step.
fn read_target(container: &str) -> Result<Target, CommandError> {
    let names: Vec<String> = read_down(File::from(handed_over(1))).map_err(CommandError::Read)?;
    let mut found = None;
    for (index, name) in (2..).zip(&names) {
        let file = File::from(handed_over(index));
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
    let other = terminal::peer(&main)?;
    crate::container::relay::resize(&main, size);
    Ok((Streams::Terminal(main), Own::Terminal(other)))
}

/// Becomes the container's user, and starts the command as a child of this process's parent (clone3(2), `CLONE_PARENT`).
fn start_command(
    who: &Who,
    argv: &[String],
    own: &Own,
    container: &OwnedFd,
    tell_number: &OwnedFd,
) -> Result<(), CommandError> {
    pipe_signal(libc::SIG_DFL);
    let [stdin, stdout, stderr]: [BorrowedFd<'_>; 3] = match own {
        Own::Pipes(pipes) => [pipes[0].as_fd(), pipes[1].as_fd(), pipes[2].as_fd()],
        Own::Terminal(terminal) => [terminal.as_fd(); 3],
    };
    nix::unistd::dup2_stdin(stdin).map_err(step("set standard input"))?;
    nix::unistd::dup2_stdout(stdout).map_err(step("set standard output"))?;
    nix::unistd::dup2_stderr(stderr).map_err(step("set standard error"))?;
    children_go_in(container)?;
    let environment = become_user_inside(who, give_streams)?;
    match clone_into(None, libc::CLONE_PARENT)? {
        Some(child) => {
            nix::unistd::write(tell_number, &child.as_raw().to_ne_bytes())
                .map_err(step("tell the command's number"))?;
            Ok(())
        }
        None => match run(argv, &environment, own) {
            Err(error) => Err(error.into()),
        },
    }
}

/// Becomes the command.
fn run(argv: &[String], environment: &Environment, own: &Own) -> Result<Infallible, ChildError> {
    nix::unistd::setsid().map_err(step("start a session"))?;
    if let Own::Terminal(_) = own {
        terminal::take().map_err(step("take the terminal"))?;
    }
    become_program(argv, environment)
}
