//! Starting a container: what the parent makes ready, and the clone.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_protocol::message::{ContainerSpec, NetworkSpec};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};

use crate::container::capability::{CapabilityError, CapabilitySet};
use crate::container::child::{self, Launch};
use crate::container::root::{self, RootError, RootPlan};
use crate::guest::cgroup::{self, CgroupError, ContainerCgroup};
use crate::guest::drives::{self, DriveError, SCRATCH};

/// A container whose first process exists, though not yet its program.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) cgroup: ContainerCgroup,
    /// The reading ends, non-blocking.
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Ends once the program runs; gives a reason first if it never will. Non-blocking.
    pub(crate) start_pipe: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Capability(#[from] CapabilityError),
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
    #[error("cannot reach the container's first process: {0}")]
    Join(Errno),
    #[error("cannot hand over what is to be run: {0}")]
    Order(io::Error),
}

/// What all containers of a task have in common.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) hostname: String,
    /// By [`root::NETWORK_FILES`].
    network_files: [String; 3],
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
        }
    }
}

/// Makes the container's root, cgroup and pipes, and its first process.
pub(crate) fn start(spec: &ContainerSpec, surroundings: &Surroundings) -> Result<Started, StartError> {
    let capabilities = CapabilitySet::of_container(&spec.capabilities_add, &spec.capabilities_drop)?;
    let folder = Path::new(SCRATCH).join(&spec.name);
    let root = RootPlan {
        lower: drives::mount_image(&spec.image_drive)?,
        readonly: spec.readonly_root,
        working_dir: PathBuf::from(&spec.working_dir),
        folder,
        mounts: spec.mounts.clone(),
        tmpfs: spec.tmpfs.clone(),
    };
    root::prepare(&root.folder, &surroundings.network_files)?;
    let cgroup = cgroup::make_container(&spec.name, spec.memory_bytes, spec.cpu_shares)?;
    let cgroup_folder = open_cgroup(cgroup.path())?;
    let (stdout, stdout_writer) = pipe()?;
    let (stderr, stderr_writer) = pipe()?;
    let (start_pipe, start_writer) = pipe()?;
    let launch = Launch {
        spec,
        hostname: &surroundings.hostname,
        root: &root,
        capabilities,
        stdout: stdout_writer.as_fd(),
        stderr: stderr_writer.as_fd(),
        start_pipe: start_writer.as_fd(),
    };
    match clone_into(&cgroup_folder, NAMESPACES)? {
        None => child::run(&launch),
        Some(pid) => Ok(Started {
            pid,
            cgroup,
            stdout,
            stderr,
            start_pipe,
        }),
    }
}

/// A pipe whose reading end does not block; the writing end is a program's standard stream, and does.
fn pipe() -> Result<(OwnedFd, OwnedFd), StartError> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(StartError::Pipe)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(StartError::Pipe)?;
    Ok((reader, writer))
}

/// Of each container its own.
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

pub(super) fn open_cgroup(path: &Path) -> Result<File, StartError> {
    File::open(path).map_err(|source| StartError::OpenCgroup {
        path: path.to_owned(),
        source,
    })
}

/// A fork into a cgroup, and into new namespaces (clone3(2)); none in the child.
pub(super) fn clone_into(cgroup: &File, namespaces: i32) -> Result<Option<Pid>, StartError> {
    // SAFETY: `clone_args` is plain data, and zero means "not asked for" in each of its fields.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.unsigned_abs()) | CLONE_INTO_CGROUP;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM the child has its own copy of the memory and stack, as after fork(2); this process
    // has one thread, so no lock is held by a thread that the child lacks.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(Pid::from_raw(pid as libc::pid_t))),
        _ => Err(StartError::Clone(Errno::last())),
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
