//! Running one more program in a container that runs: in its namespaces and its cgroup, as its user.
//!
//! A namespace of processes is entered by forking, so there are two processes: one of the machine's, which the caller can
//! wait for and kill, and its child in the container, which is the program and does not outlive it. Both begin as this
//! binary executed anew, with the container's own specification and nothing else: what PID 1 knows must not be in the
//! memory of a process that the container may be able to read.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;

use berth_protocol::message::ContainerSpec;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execveat};
use serde::{Deserialize, Serialize};

use crate::container::capability::CapabilitySet;
use crate::container::child::{ChildError, assume, identify, limit, step};
use crate::container::environment::Environment;
use crate::container::inside::Root;
use crate::container::program;
use crate::container::start::{StartError, clone_into, open_cgroup};

/// The program name by which `main` knows that it is this.
pub(crate) const NAME: &str = "berth-join";
/// What container engines exit with where a program cannot be run.
const NOT_RUN: i32 = 126;
/// Where the order and the container's first process are handed over; everything above is closed.
const ORDER_FD: i32 = 3;
const CONTAINER_FD: i32 = 4;
/// Above both.
const FIRST_FREE_FD: i32 = 10;

/// What is to be run, and as whom.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    spec: ContainerSpec,
    hostname: String,
    argv: Vec<String>,
}

/// Starts `argv` in the container whose first process is `first`; what it writes goes nowhere. The process that comes back
/// ends as the program does.
pub(crate) fn run(
    first: Pid,
    cgroup: &Path,
    spec: &ContainerSpec,
    hostname: &str,
    argv: &[String],
) -> Result<Pid, StartError> {
    let container = open_process(first).map_err(StartError::Join)?;
    let order = Order {
        spec: spec.clone(),
        hostname: hostname.to_owned(),
        argv: argv.to_vec(),
    };
    let order = write_down(&order).map_err(StartError::Order)?;
    let cgroup = open_cgroup(cgroup)?;
    match clone_into(&cgroup, 0)? {
        Some(pid) => Ok(pid),
        None => {
            // Who waits sees only that it did not run; what PID 1 could tell, it has told.
            let _ = begin_anew(&order, &container);
            // SAFETY: ends the process without running destructors, which are the parent's.
            unsafe { libc::_exit(NOT_RUN) }
        }
    }
}

/// A handle on a process (pidfd_open(2)).
fn open_process(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn write_down(order: &Order) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"order", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(order)?)?;
    file.rewind()?;
    Ok(file)
}

/// Executes this binary again, with two descriptors.
fn begin_anew(order: &File, container: &OwnedFd) -> Result<Infallible, ChildError> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(step("unblock signals"))?;
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "0").map_err(|source| ChildError::Write { path, source })?;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open /dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(step("set standard input"))?;
    nix::unistd::dup2_stdout(&null).map_err(step("set standard output"))?;
    nix::unistd::dup2_stderr(&null).map_err(step("set standard error"))?;
    // First out of each other's way.
    let moved = [order.as_fd(), container.as_fd()]
        .map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE_FD)).map_err(step("move a descriptor")));
    for (fd, place) in moved.into_iter().zip([ORDER_FD, CONTAINER_FD]) {
        // SAFETY: takes numbers only. Whatever was there belongs to values of the parent's, never used or dropped here.
        Errno::result(unsafe { libc::dup2(fd?, place) }).map_err(step("hand a descriptor over"))?;
    }
    let first = CONTAINER_FD.unsigned_abs() + 1;
    // SAFETY: as above.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    Errno::result(closed).map_err(step("close descriptors"))?;
    let name = CString::new(NAME).unwrap_or_default();
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

/// What the binary is, executed anew: goes into the container, and ends as the program does.
pub(crate) fn main() -> i32 {
    enter().unwrap_or(NOT_RUN)
}

fn enter() -> Result<i32, ChildError> {
    // SAFETY: `run` left these two, and whoever else runs this binary by this name is told that they are none.
    let [order, container] = [ORDER_FD, CONTAINER_FD].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let order = read_down(File::from(order)).map_err(|source| ChildError::Read {
        path: "the order",
        source,
    })?;
    let capabilities =
        CapabilitySet::of_container(&order.spec.capabilities_add, &order.spec.capabilities_drop)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&container, namespaces).map_err(step("enter the container"))?;
    drop(container);
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.map_err(step("fork"))? {
        ForkResult::Parent { child } => Ok(outlast(child)),
        ForkResult::Child => match become_program(&order, capabilities) {
            Err(error) => Err(error),
        },
    }
}

fn read_down(mut file: File) -> io::Result<Order> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
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

fn become_program(order: &Order, capabilities: CapabilitySet) -> Result<Infallible, ChildError> {
    let spec = &order.spec;
    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::setsid().map_err(step("start a session"))?;
    let root = Root::open(Path::new("/"))?;
    nix::unistd::chdir(spec.working_dir.as_str()).map_err(step("enter the working directory"))?;
    let identity = identify(&root, &spec.user)?;
    let environment = Environment::new(&spec.env, &identity.home, &order.hostname);
    limit(spec)?;
    assume(&identity, capabilities)?;
    // After the change of user, which takes it back.
    set_pdeathsig(Signal::SIGKILL).map_err(step("follow the caller"))?;
    Ok(program::exec(&order.argv, &environment)?)
}
