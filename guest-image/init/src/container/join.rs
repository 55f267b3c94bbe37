//! Running one more program in a container that runs: in its namespaces and its cgroup, as its user.
//!
//! A namespace of processes is entered by forking, so there are two processes: one of the machine's, which the caller can
//! wait for and kill, and its child in the container, which is the program and does not outlive it. Both begin as this
//! binary executed anew, with the container's own specification and nothing else: what PID 1 knows must not be in the
//! memory of a process that the container may be able to read. Here is the way in, and the program that nobody speaks to, a
//! health check; `command` is the one that somebody does.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use berth_protocol::message::ContainerSpec;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execveat};

use crate::container::child::{ChildError, become_user, step};
use crate::container::environment::Environment;
use crate::container::handover::{handed, read_down, write_down};
use crate::container::inside::Root;
use crate::container::plan::Who;
use crate::container::process;
use crate::container::program;
use crate::container::start::{StartError, clone_into, open_cgroup};
use crate::container::user::Identity;

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-join";
/// What container engines exit with where a program cannot be run.
const NOT_RUN: i32 = 126;
const NAME_C: &CStr = c"berth-join";
/// Where descriptors are handed over; everything above is closed.
const FIRST_HANDED_FD: i32 = 3;

/// What is to be run, and as whom.
#[derive(Debug)]
struct Order {
    who: Who,
    argv: Vec<String>,
}

handed!(Order { who, argv });

/// Starts `argv` in the container whose first process is `first`; what it writes goes nowhere. The process that comes back
/// ends as the program does.
pub(crate) fn run(
    first: Pid,
    cgroup: &Path,
    spec: &ContainerSpec,
    hostname: &str,
    argv: &[String],
) -> Result<Pid, StartError> {
    let container = process::open(first).map_err(StartError::Join)?;
    let order = Order {
        who: Who::new(spec, hostname)?,
        argv: argv.to_vec(),
    };
    let order = write_down(&order).map_err(StartError::Order)?;
    let cgroup = open_cgroup(cgroup)?;
    match clone_into(Some(&cgroup), 0)? {
        Some(pid) => Ok(pid),
        None => {
            // Who waits sees only that it did not run; what PID 1 could tell, it has told.
            let _ = begin_anew(NAME_C, &[order.as_fd(), container.as_fd()]);
            // SAFETY: ends the process without running destructors, which are the parent's.
            unsafe { libc::_exit(NOT_RUN) }
        }
    }
}

/// Executes this binary again under another name, with these descriptors from [`FIRST_HANDED_FD`] on and no others.
pub(super) fn begin_anew(name: &CStr, handed: &[BorrowedFd<'_>]) -> Result<Infallible, ChildError> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(step("unblock signals"))?;
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "0").map_err(|source| ChildError::Write { path, source })?;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open /dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(step("set standard input"))?;
    nix::unistd::dup2_stdout(&null).map_err(step("set standard output"))?;
    nix::unistd::dup2_stderr(&null).map_err(step("set standard error"))?;
    let free = i32::try_from(handed.len()).map_or(i32::MAX, |count| FIRST_HANDED_FD + count);
    // First out of each other's way.
    let moved = handed
        .iter()
        .map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(free)).map_err(step("move a descriptor")))
        .collect::<Result<Vec<_>, _>>()?;
    for (fd, place) in moved.into_iter().zip(FIRST_HANDED_FD..) {
        // SAFETY: takes numbers only. Whatever was there belongs to values of the parent's, never used or dropped here.
        Errno::result(unsafe { libc::dup2(fd, place) }).map_err(step("hand a descriptor over"))?;
    }
    // SAFETY: as above.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, free.unsigned_abs(), u32::MAX, 0) };
    Errno::result(closed).map_err(step("close descriptors"))?;
    let no_variables: [CString; 0] = [];
    execveat(
        AT_FDCWD,
        c"/proc/self/exe",
        &[name],
        &no_variables,
        AtFlags::empty(),
    )
    .map_err(step("execute berth-init anew"))
}

/// A descriptor that [`begin_anew`] handed to this process, to be taken once.
pub(super) fn handed_over(index: i32) -> OwnedFd {
    // SAFETY: whoever runs this binary by such a name without these descriptors is told that they are none.
    unsafe { OwnedFd::from_raw_fd(FIRST_HANDED_FD + index) }
}

/// Goes into the namespaces of a container, of which this is the first process; into that of processes goes the next child.
fn go_in(container: &OwnedFd) -> Result<(), ChildError> {
    go_in_alone(container)?;
    children_go_in(container)
}

/// As above, and children do not go into that of processes.
pub(super) fn go_in_alone(container: &OwnedFd) -> Result<(), ChildError> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(container, namespaces).map_err(step("enter the container"))
}

pub(super) fn children_go_in(container: &OwnedFd) -> Result<(), ChildError> {
    setns(container, CloneFlags::CLONE_NEWPID).map_err(step("enter the container's namespace of processes"))
}

/// What the binary is, executed anew: goes into the container, and ends as the program does.
pub(crate) fn main() -> i32 {
    enter().unwrap_or(NOT_RUN)
}

fn enter() -> Result<i32, ChildError> {
    let [order, container] = [0, 1].map(handed_over);
    let path = "the order";
    let order: Order = read_down(File::from(order)).map_err(|source| ChildError::Read { path, source })?;
    go_in(&container)?;
    drop(container);
    let environment = become_user_inside(&order.who, |_| Ok(()))?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.map_err(step("fork"))? {
        ForkResult::Parent { child } => Ok(outlast(child)),
        ForkResult::Child => {
            nix::unistd::setsid().map_err(step("start a session"))?;
            match become_program(&order.argv, &environment) {
                Err(error) => Err(error),
            }
        }
    }
}

/// Waits for the program; its exit code, as shells give it.
fn outlast(child: Pid) -> i32 {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return NOT_RUN,
        }
    }
}

/// Becomes the container's user, in its namespaces but that of processes, where nobody of the container sees this process;
/// `before` is done with all rights still. What the container does see, this process's child, never has more rights than a
/// container may have: one that may trace could take them over.
pub(super) fn become_user_inside(
    who: &Who,
    before: impl FnOnce(&Identity) -> Result<(), ChildError>,
) -> Result<Environment, ChildError> {
    umask(Mode::from_bits_truncate(0o022));
    let root = Root::open(Path::new("/"))?;
    nix::unistd::chdir(who.working_dir.as_str()).map_err(step("enter the working directory"))?;
    become_user(who, &root, before, || Ok(()))
}

/// Becomes the program, which does not outlive the caller.
pub(super) fn become_program(argv: &[String], environment: &Environment) -> Result<Infallible, ChildError> {
    set_pdeathsig(Signal::SIGKILL).map_err(step("follow the caller"))?;
    Ok(program::exec(argv, environment)?)
}
