//! Starting a container: what the parent makes ready, and the clone.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_protocol::message::{ContainerSpec, NetworkSpec};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, pipe2};

use crate::container::child::{self, Launch};
use crate::container::pids::SharedPids;
use crate::container::plan::{Plan, PlanError, Who};
use crate::container::root::{self, RootError, RootPlan};
use crate::container::terminal::{self, TerminalError};
use crate::guest::cgroup::{self, CgroupError, ContainerCgroup};
use crate::guest::drives::{self, DriveError, SCRATCH};

/// A container whose first process exists, though not yet its program.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) cgroup: ContainerCgroup,
    /// Kept open as long as it runs.
    pub(crate) stdin: Option<OwnedFd>,
    /// The reading ends, non-blocking; a terminal has one.
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
    /// Ends once the program runs; gives a reason first if it never will. Non-blocking.
    pub(crate) start_pipe: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot open cgroup {path}: {source}")]
    OpenCgroup { path: PathBuf, source: io::Error },
    #[error("cannot make a pipe: {0}")]
    Pipe(Errno),
    #[error("cannot start a process: {0}")]
    Clone(Errno),
    #[error("cannot start a process in the task's namespace of processes: {0}")]
    Shared(String),
    #[error("cannot reach the container's first process: {0}")]
    Join(Errno),
    #[error("cannot hand over what is to be run: {0}")]
    Order(io::Error),
}

/// What all containers of a task have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) hostname: String,
    /// By [`root::NETWORK_FILES`].
    network_files: [String; 3],
    /// Where they share their processes.
    pub(crate) pids: Option<SharedPids>,
}

impl Surroundings {
    pub(crate) fn new(hostname: &str, network: Option<&NetworkSpec>) -> Self {
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let mut resolv = String::new();
        let address = network.map_or(Ipv4Addr::LOCALHOST, |network| network.address);
        hosts.push_str(&format!("{address}\t{hostname}\n"));
        if let Some(network) = network {
            if !network.search_domains.is_empty() {
                resolv.push_str(&format!("search {}\n", network.search_domains.join(" ")));
            }
            for server in &network.dns_servers {
                resolv.push_str(&format!("nameserver {server}\n"));
            }
        }
        Self {
            hostname: hostname.to_owned(),
            network_files: [format!("{hostname}\n"), hosts, resolv],
            pids: None,
        }
    }
}

/// A container's own ends of its standard streams.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The other ends of them.
struct FarEnds {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// Makes the container's root, cgroup and streams, and its first process.
pub(crate) fn start(spec: &ContainerSpec, surroundings: &Surroundings) -> Result<Started, StartError> {
    let plan = Plan {
        who: Who::new(spec, &surroundings.hostname)?,
        argv: spec.argv.clone(),
        root: RootPlan {
            lower: drives::mount_image(&spec.image_drive)?,
            readonly: spec.readonly_root,
            working_dir: PathBuf::from(&spec.working_dir),
            folder: Path::new(SCRATCH).join(&spec.name),
            mounts: spec.mounts.clone(),
            tmpfs: spec.tmpfs.clone(),
        },
        system_controls: spec.system_controls.clone(),
        init_process: spec.init_process,
        terminal: spec.terminal,
    };
    root::prepare(&plan.root.folder, &surroundings.network_files)?;
    let cgroup = cgroup::make_container(spec)?;
    let cgroup_folder = open_cgroup(cgroup.path())?;
    let (far, ends) = streams(spec)?;
    let (start_pipe, start_writer) = pipe()?;
    let pid = match &surroundings.pids {
        Some(pids) => {
            let started = pids.start(&plan, &cgroup_folder, &ends, &start_writer);
            if started.is_err() {
                // Whoever started it may have ended before it could tell.
                cgroup.kill()?;
            }
            started?
        }
        None => match clone_into(Some(&cgroup_folder), NAMESPACES)? {
            Some(pid) => pid,
            None => child::run(&Launch {
                plan: &plan,
                ends: &ends,
                start_pipe: start_writer.as_fd(),
            }),
        },
    };
    Ok(Started {
        pid,
        cgroup,
        stdin: far.stdin,
        stdout: far.stdout,
        stderr: far.stderr,
        start_pipe,
    })
}

fn streams(spec: &ContainerSpec) -> Result<(FarEnds, Ends), StartError> {
    if spec.terminal {
        let (main, stdin) = terminal::open()?;
        let copy = || stdin.try_clone().map_err(StartError::Order);
        let ends = Ends {
            stdout: copy()?,
            stderr: copy()?,
            stdin,
        };
        let far = FarEnds {
            stdin: None,
            stdout: main,
            stderr: None,
        };
        return Ok((far, ends));
    }
    let (stdin, far_stdin) = if spec.open_stdin {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(StartError::Pipe)?;
        (reader, Some(writer))
    } else {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let null = nix::fcntl::open("/dev/null", flags, Mode::empty());
        (null.map_err(StartError::Pipe)?, None)
    };
    let ((far_stdout, stdout), (far_stderr, stderr)) = (pipe()?, pipe()?);
    let ends = Ends {
        stdin,
        stdout,
        stderr,
    };
    let far = FarEnds {
        stdin: far_stdin,
        stdout: far_stdout,
        stderr: Some(far_stderr),
    };
    Ok((far, ends))
}

/// A pipe whose reading end does not block; the writing end is a program's standard stream, and does.
fn pipe() -> Result<(OwnedFd, OwnedFd), StartError> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(StartError::Pipe)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(StartError::Pipe)?;
    Ok((reader, writer))
}

/// Of each container its own.
pub(super) const NAMESPACES: i32 =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

pub(super) fn open_cgroup(path: &Path) -> Result<File, StartError> {
    File::open(path).map_err(|source| StartError::OpenCgroup {
        path: path.to_owned(),
        source,
    })
}

/// A fork, perhaps into a cgroup and into new namespaces (clone3(2)); none in the child.
pub(super) fn clone_into(cgroup: Option<&File>, flags: i32) -> Result<Option<Pid>, StartError> {
    // SAFETY: `clone_args` is plain data, and zero means "not asked for" in each of its fields.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.unsigned_abs());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // A sibling takes the caller's own.
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child has its own copy of the memory and stack, as after fork(2); this process
    // has one thread, so no lock is held by a thread that the child lacks.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(Pid::from_raw(pid as libc::pid_t))),
        _ => Err(StartError::Clone(Errno::last())),
    }
}

/// A fork; none in the child.
pub(super) fn fork() -> Result<Option<Pid>, StartError> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.map_err(StartError::Clone)? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_files_tell_name_address_and_resolvers() {
        let network = NetworkSpec {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 0, 0, 5),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            dns_servers: vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)],
            search_domains: vec!["a.internal".into(), "internal".into()],
            mtu: 1500,
        };
        let [hostname, hosts, resolv] = Surroundings::new("box", Some(&network)).network_files;
        assert_eq!(hostname, "box\n");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n") && hosts.ends_with("10.0.0.5\tbox\n"));
        assert_eq!(
            resolv,
            "search a.internal internal\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n"
        );
    }
}
