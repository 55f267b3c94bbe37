//! What the first process of a container does between the clone and its program.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Gid, Uid};

use crate::container::capability::{CapabilityError, CapabilitySet};
use crate::container::environment::Environment;
use crate::container::inside::{InsideError, Root};
use crate::container::limits::{self, LimitError};
use crate::container::plan::{self, ControlError, Plan, Who};
use crate::container::program::{self, ProgramError};
use crate::container::reaper;
use crate::container::root::{self, RootError};
use crate::container::start::Ends;
use crate::container::terminal::{self, TerminalError};
use crate::container::user::{self, Database, Identity, UserError};

/// The images' own passwd and group files may be this large.
const MAX_DATABASE_BYTES: u64 = 4 * 1024 * 1024;
/// Where the start pipe sits in the child; everything above is closed.
const START_PIPE_FD: i32 = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    #[error("cannot {step}: {source}")]
    Step { step: &'static str, source: Errno },
    #[error("cannot read {path}: {source}")]
    Read { path: &'static str, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: &'static str, source: io::Error },
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Everything the child needs; it is a copy of the parent's memory.
pub(crate) struct Launch<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) ends: &'a Ends,
    /// Closes when the program runs; a reason comes out of it when it never will.
    pub(crate) start_pipe: BorrowedFd<'a>,
}

pub(super) fn step(step: &'static str) -> impl Fn(Errno) -> ChildError {
    move |source| ChildError::Step { step, source }
}

/// Becomes the container's program, or tells the parent why not.
pub(crate) fn run(launch: &Launch<'_>) -> ! {
    let (error, start_pipe) = match take_descriptors(launch) {
        Err(error) => (error, launch.start_pipe),
        Ok(start_pipe) => match become_program(launch) {
            Err(error) => (error, start_pipe),
        },
    };
    let _ = nix::unistd::write(start_pipe, error.to_string().as_bytes());
    // SAFETY: ends the process without running destructors, which are the parent's.
    unsafe { libc::_exit(127) }
}

fn become_program(launch: &Launch<'_>) -> Result<Infallible, ChildError> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(step("unblock signals"))?;
    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::setsid().map_err(step("start a session"))?;
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "0").map_err(|source| ChildError::Write { path, source })?;
    let own_binary = open_own_binary()?;
    // Only now: a new cgroup namespace is rooted where the process is, and the clone put it into its cgroup.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(step("unshare the cgroup namespace"))?;
    let plan = launch.plan;
    nix::unistd::sethostname(&plan.who.hostname).map_err(step("set the hostname"))?;
    plan::set_controls(&plan.system_controls)?;

    let root = root::enter(&plan.root)?;
    become_user(&plan.who, &root, give_streams, || {
        if plan.init_process {
            leave_to_child(own_binary)?;
        }
        if plan.terminal {
            terminal::take().map_err(step("take the terminal"))?;
        }
        Ok(())
    })
    .and_then(|environment| Ok(program::exec(&plan.argv, &environment)?))
}

/// Becomes the container's user, with its limits; `before` is done with all rights still, `after` without.
pub(super) fn become_user(
    who: &Who,
    root: &Root,
    before: impl FnOnce(&Identity) -> Result<(), ChildError>,
    after: impl FnOnce() -> Result<(), ChildError>,
) -> Result<Environment, ChildError> {
    let identity = identify(root, &who.user)?;
    let environment = Environment::new(&who.env, &identity.home, &who.hostname);
    before(&identity)?;
    limits::set(&who.limits)?;
    assume(&identity, who.capabilities)?;
    after()?;
    Ok(environment)
}

/// Standard streams and the start pipe, and nothing else: no descriptor of PID 1 may reach the container.
fn take_descriptors(launch: &Launch<'_>) -> Result<BorrowedFd<'static>, ChildError> {
    nix::unistd::dup2_stdin(&launch.ends.stdin).map_err(step("set standard input"))?;
    nix::unistd::dup2_stdout(&launch.ends.stdout).map_err(step("set standard output"))?;
    nix::unistd::dup2_stderr(&launch.ends.stderr).map_err(step("set standard error"))?;
    if launch.start_pipe.as_raw_fd() != START_PIPE_FD {
        // SAFETY: takes numbers only. Whatever descriptor was there belongs to values of the parent's memory that
        // this process never uses or drops: it executes a program or exits.
        let moved = unsafe { libc::dup3(launch.start_pipe.as_raw_fd(), START_PIPE_FD, libc::O_CLOEXEC) };
        Errno::result(moved).map_err(step("move the start pipe"))?;
    }
    let first = START_PIPE_FD.unsigned_abs() + 1;
    // SAFETY: as above.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    Errno::result(closed).map_err(step("close descriptors"))?;
    // SAFETY: the start pipe is there now, and stays until this process executes a program or exits.
    Ok(unsafe { BorrowedFd::borrow_raw(START_PIPE_FD) })
}

fn open_own_binary() -> Result<OwnedFd, ChildError> {
    nix::fcntl::open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the reaper"))
}

fn identify(root: &Root, user: &str) -> Result<Identity, ChildError> {
    let read =
        |database: Database| root.read(&Path::new("/etc").join(database.to_string()), MAX_DATABASE_BYTES);
    Ok(user::resolve(
        user,
        &read(Database::Passwd)?,
        &read(Database::Group)?,
    )?)
}

/// So that the program may open /dev/stdout and /dev/stderr, which are links to these pipes.
pub(super) fn give_streams(identity: &Identity) -> Result<(), ChildError> {
    for fd in [1, 2] {
        // SAFETY: fchown on a number that is open: a pipe of this container's own.
        Errno::result(unsafe { libc::fchown(fd, identity.uid, identity.gid) })
            .map_err(step("give the output pipes to the user"))?;
    }
    Ok(())
}

pub(super) fn assume(identity: &Identity, capabilities: CapabilitySet) -> Result<(), ChildError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    capabilities.bound()?;
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(step("set the supplementary groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(step("set the group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(step("set the user"))?;
    // Leaving uid 0 already cleared the sets of any other user.
    if uid.is_root() {
        Ok(capabilities.apply()?)
    } else {
        Ok(())
    }
}

/// Goes on in a new child, while this process, pid 1 of the container, becomes its reaper.
fn leave_to_child(own_binary: OwnedFd) -> Result<(), ChildError> {
    let block = |set: &SigSet| sigprocmask(SigmaskHow::SIG_SETMASK, Some(set), None);
    block(&SigSet::all()).map_err(step("block signals"))?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.map_err(step("fork"))? {
        ForkResult::Parent { child } => Err(step("run the reaper")(reaper::exec(own_binary, child))),
        ForkResult::Child => {
            nix::unistd::setsid().map_err(step("start a session"))?;
            block(&SigSet::empty()).map_err(step("unblock signals"))
        }
    }
}
