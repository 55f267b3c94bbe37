//! Starting a VMM: opens everything it may touch, puts it into its cgroup and a session of its own, and leaves it the
//! descriptors and nothing else. Or hands them to one that waits (`husk`).

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use berth_vmm::config::{
    CONFIG_VERSION, DriveConfig, DriveEngine, HandOver, HugePages, JailConfig, MachineConfig, MemoryConfig,
    NetConfig, StartConfig, VsockConfig, WorkingSet,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use serde::Serialize;

use super::husk::Husk;
use super::process;
use super::rates::{self, Rates};
use super::scratch::ScratchDisks;
use super::{
    CONTROL_SOCKET, EXIT_FILE, GROUP_FILE, LOG_FILE, PID_FILE, SCRATCH_FILE, USER_FILE, at, host_error,
};
use crate::cgroup::{Caps, Cgroup, Cgroups};
use crate::faults::{self, Point};
use crate::model::task::TaskId;
use crate::network::MacAddr;
use crate::task::host::{HostError, MachineSpec};
use crate::task::spec::{SCRATCH_DRIVE, VOLUME_DRIVE};

/// Guest memory that the kernel, its tables and `berth-init` take before the task gets any, in MiB: a fixed part and
/// one MiB in so many of the task's (page structures are 1/64).
const GUEST_OVERHEAD_MIB: u32 = 48;
const GUEST_OVERHEAD_FRACTION: u32 = 56;
/// Memory of the VMM and of KVM's own tables for it, outside the guest's, in MiB: measured, and one in so many.
const VMM_ALLOWANCE_MIB: u64 = 24;
const VMM_ALLOWANCE_FRACTION: u64 = 256;
/// Threads of one VMM: its vCPUs, its devices and some.
const VMM_PIDS: u32 = 128;
pub(super) const UNITS_PER_VCPU: u32 = 1024;
const GUEST_CID: u64 = 3;
/// Quiet, no driver probing that a microVM needs not, a panic ends the machine.
const KERNEL_ARGUMENTS: &str =
    "quiet loglevel=1 panic=-1 unknown_nmi_panic=1 pci=off i8042.noaux nomodule random.trust_cpu=on";

/// What machines are started from.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub vmm: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

pub(super) struct Launch {
    pub dir: PathBuf,
    pub binaries: Binaries,
    pub cgroups: Cgroups,
    pub scratch: ScratchDisks,
    /// Whom the machine runs as.
    pub user: u32,
    pub rates: Rates,
    pub drive_engine: DriveEngine,
    pub huge_pages: HugePages,
    pub spec: Arc<MachineSpec>,
}

/// Where a machine starts.
pub(super) enum Start {
    /// At its kernel's entry.
    Boot,
    /// The same, with its memory in a file, and to be written down.
    Template { memory: File, state: File },
    /// Where a template was written down.
    Clone(TemplateFiles),
}

/// What clones of a template start from.
pub(super) struct TemplateFiles {
    pub memory: File,
    pub state: File,
    pub working_set: WorkingSet,
    /// It is to be seen which pages the machine touches.
    pub trial: bool,
}

/// Guest memory for a task that paid for `task_mib`.
pub(super) fn guest_mib(task_mib: u32) -> u32 {
    task_mib + GUEST_OVERHEAD_MIB + task_mib / GUEST_OVERHEAD_FRACTION
}

/// The kernel's tables of file names and inodes by their hashes have a bucket for each so much memory, and not the sixteenfold
/// that it would take by itself: whatever a clone looks up is on another page of them, of which it needs a copy of its own.
const KIB_FOR_A_NAME: u32 = 128;
const LEAST_NAMES: u32 = 16 * 1024;

pub(super) fn cmdline(guest_mib: u32) -> String {
    let names = (guest_mib * 1024 / KIB_FOR_A_NAME)
        .max(LEAST_NAMES)
        .next_power_of_two();
    let inodes = names / 2;
    let marker = berth_protocol::GUEST_MARKER;
    format!("{KERNEL_ARGUMENTS} dhash_entries={names} ihash_entries={inodes} {marker}")
}

/// Most memory that the VMM of such a guest may hold, in bytes.
pub(super) fn machine_bytes(guest_mib: u32) -> u64 {
    let guest = u64::from(guest_mib);
    (guest + VMM_ALLOWANCE_MIB + guest / VMM_ALLOWANCE_FRACTION) << 20
}

impl Launch {
    /// The started VMM. Its folder holds its pid before this returns.
    pub(super) fn run(self, start: &Start) -> Result<Child, HostError> {
        self.prepare()?;
        let caps = caps(self.spec.cpu_units, self.spec.memory_mib);
        let group = self
            .cgroups
            .create(self.spec.task.as_str(), &caps)
            .map_err(host_error)?;
        faults::pass(Point::MachineGroupMade);
        let mut handed = Handed::default();
        let config = self.config(start, &mut handed)?;
        let log = self.log()?;
        let child = spawn(&self.binaries.vmm, "--config-fd", &config, handed, &group, log)?;
        faults::pass(Point::MachineSpawned);
        self.note(&child)?;
        Ok(child)
    }

    /// The same with a VMM that waits, of a template of the spec's shape, in the cgroup that it waits in: to move a process takes
    /// the kernel longer than all else here.
    pub(super) fn adopt(self, husk: Husk) -> Result<Child, HostError> {
        self.prepare()?;
        let group_file = self.dir.join(GROUP_FILE);
        fs::write(&group_file, husk.group()).map_err(|error| at(&group_file, "write", &error))?;
        let mut handed = Handed::default();
        let mut rest = self.rest(&mut handed)?;
        rest.log_fd = Some(handed.take(self.log()?.into()));
        let caps = caps(self.spec.cpu_units, self.spec.memory_mib);
        let child = husk.go_on(&self.cgroups, &caps, rest)?;
        self.note(&child)?;
        Ok(child)
    }

    /// A folder for the machine.
    fn prepare(&self) -> Result<(), HostError> {
        // Whatever an earlier try left; its processes are in the cgroup.
        let group = group(&self.cgroups, &self.dir, &self.spec.task)?;
        group.kill().map_err(host_error)?;
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at(&self.dir, "remove", &error));
            }
            _ => {}
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| at(&self.dir, "make", &error))?;
        let user_file = self.dir.join(USER_FILE);
        fs::write(&user_file, format!("{}\n", self.user)).map_err(|error| at(&user_file, "write", &error))?;
        faults::pass(Point::MachineFolderMade);
        Ok(())
    }

    fn log(&self) -> Result<File, HostError> {
        create(&self.dir.join(LOG_FILE))
    }

    fn note(&self, child: &Child) -> Result<(), HostError> {
        process::write_pid_file(&self.dir.join(PID_FILE), child.id())?;
        faults::pass(Point::MachineNoted);
        Ok(())
    }

    fn config(&self, start: &Start, handed: &mut Handed) -> Result<MachineConfig, HostError> {
        let mut memory = None;
        let mut snapshot_fd = None;
        let start = match start {
            Start::Clone(files) => {
                memory = Some(MemoryConfig {
                    fd: handed.take(copy(&files.memory)?),
                    shared: false,
                    page_by_page: files.trial,
                });
                StartConfig::Restore {
                    state_fd: handed.take(copy(&files.state)?),
                    working_set: files.working_set.clone(),
                }
            }
            booting => {
                if let Start::Template { memory: of, state } = booting {
                    memory = Some(MemoryConfig {
                        fd: handed.take(copy(of)?),
                        shared: true,
                        page_by_page: false,
                    });
                    snapshot_fd = Some(handed.take(copy(state)?));
                }
                StartConfig::Boot {
                    kernel_fd: handed.take(open(&self.binaries.kernel, false)?.into()),
                    initrd_fd: Some(handed.take(open(&self.binaries.initrd, false)?.into())),
                    cmdline: cmdline(guest_mib(self.spec.memory_mib)),
                }
            }
        };
        let rest = self.rest(handed)?;
        Ok(MachineConfig {
            version: CONFIG_VERSION,
            vcpus: vcpus(self.spec.cpu_units)?,
            memory_mib: guest_mib(self.spec.memory_mib),
            kvm_fd: handed.take(kvm()?),
            start,
            memory,
            huge_pages: self.huge_pages,
            snapshot_fd,
            control_fd: rest.control_fd,
            exit_fd: rest.exit_fd,
            drives: rest.drives,
            nets: rest.nets,
            vsock: rest.vsock,
            balloon: rest.balloon,
            entropy: rest.entropy,
            entropy_limits: rest.entropy_limits,
            serial_fd: rest.serial_fd,
            serial_limits: rest.serial_limits,
            jail: Some(jail(self.user)),
        })
    }

    /// What only this task's machine has.
    fn rest(&self, handed: &mut Handed) -> Result<HandOver, HostError> {
        let spec = &self.spec;
        let scratch = self
            .scratch
            .make(&self.dir.join(SCRATCH_FILE), spec.scratch_gib)?;
        let mut drives = Vec::new();
        for (id, path) in &spec.images {
            let fd = handed.take(open(path, false)?.into());
            drives.push(DriveConfig {
                id: id.clone(),
                fd,
                read_only: true,
                limits: self.rates.drive(spec.cpu_units),
                engine: self.drive_engine,
            });
        }
        let fd = handed.take(scratch.into());
        drives.push(DriveConfig {
            id: SCRATCH_DRIVE.to_owned(),
            fd,
            read_only: false,
            limits: self.rates.drive(spec.cpu_units),
            engine: self.drive_engine,
        });
        if let Some(path) = &spec.volume {
            drives.push(DriveConfig {
                id: VOLUME_DRIVE.to_owned(),
                fd: handed.take(open(path, true)?.into()),
                read_only: false,
                limits: self.rates.drive(spec.cpu_units),
                engine: self.drive_engine,
            });
        }
        let mac: MacAddr = spec
            .mac
            .parse()
            .map_err(|error: crate::network::NetworkError| host_error(error))?;
        let nets = match &spec.tap {
            Some(tap) => {
                let tap = tap
                    .try_clone()
                    .map_err(|error| HostError(format!("cannot hand on the tap: {error}")))?;
                vec![NetConfig {
                    tap_fd: handed.take(tap),
                    mac: mac.octets(),
                    mtu: Some(spec.mtu),
                    rx_limits: self.rates.network(spec.cpu_units),
                    tx_limits: self.rates.network(spec.cpu_units),
                }]
            }
            None => Vec::new(),
        };
        Ok(HandOver {
            log_fd: None,
            control_fd: handed.take(control_socket(&self.dir.join(CONTROL_SOCKET))?),
            exit_fd: Some(handed.take(create(&self.dir.join(EXIT_FILE))?.into())),
            drives,
            nets,
            vsock: Some(VsockConfig { guest_cid: GUEST_CID }),
            balloon: true,
            entropy: true,
            entropy_limits: rates::entropy(),
            serial_fd: None,
            serial_limits: None,
        })
    }
}

/// The cgroup of the machine of a task with this folder, there or not: of the task's name, or the husk's that the machine was.
pub(super) fn group(cgroups: &Cgroups, dir: &Path, task: &TaskId) -> Result<Cgroup, HostError> {
    let file = dir.join(GROUP_FILE);
    let name = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => task.as_str().to_owned(),
        name => name.map_err(|error| at(&file, "read", &error))?,
    };
    cgroups.group(&name).map_err(host_error)
}

/// Those of the machine of a task of this size.
pub(super) fn caps(cpu_units: u32, task_mib: u32) -> Caps {
    Caps {
        cpu_units,
        memory_bytes: machine_bytes(guest_mib(task_mib)),
        pids: VMM_PIDS,
    }
}

pub(super) fn vcpus(cpu_units: u32) -> Result<u8, HostError> {
    let vcpus = cpu_units.div_ceil(UNITS_PER_VCPU).max(1);
    u8::try_from(vcpus).map_err(|_| HostError(format!("{vcpus} vCPUs are too many")))
}

pub(super) fn jail(user: u32) -> JailConfig {
    JailConfig { uid: user, gid: user }
}

pub(super) fn kvm() -> Result<OwnedFd, HostError> {
    Ok(open(Path::new("/dev/kvm"), true)?.into())
}

/// A file of a template, for one more machine.
fn copy(file: &File) -> Result<OwnedFd, HostError> {
    let copy = file.try_clone().map(OwnedFd::from);
    copy.map_err(|error| HostError(format!("cannot hand on a template: {error}")))
}

/// The descriptors that a VMM is handed; its numbers are the same as here.
#[derive(Default)]
pub(super) struct Handed(Vec<OwnedFd>);

impl Handed {
    pub(super) fn take(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.0.push(fd);
        number
    }
}

/// Starts a VMM in its cgroup, with this configuration, the descriptors that it names, and a file for what it has to say.
pub(super) fn spawn(
    vmm: &Path,
    part: &str,
    config: &impl Serialize,
    mut handed: Handed,
    group: &Cgroup,
    log: File,
) -> Result<Child, HostError> {
    let config_fd = handed.take(config_file(config)?);
    let join = group.procs_fd().map_err(host_error)?;
    let mut command = Command::new(vmm);
    command
        .arg(part)
        .arg(config_fd.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let fds: Vec<RawFd> = handed.0.iter().map(AsRawFd::as_raw_fd).collect();
    fork(command, &join, fds).map_err(|error| at(vmm, "start", &error))
}

fn fork(mut command: Command, join: &OwnedFd, fds: Vec<RawFd>) -> io::Result<Child> {
    let join = join.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls (write, setsid, close_range, fcntl) on
    // descriptors that are open until this function returns; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let done = |result: libc::c_int| {
                if result < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(())
                }
            };
            if libc::write(join, c"0".as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
            done(libc::setsid())?;
            // Nothing but what is handed over stays open, whoever opened it.
            let closed = libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            done(if closed < 0 { -1 } else { 0 })?;
            for fd in &fds {
                done(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
            Ok(())
        });
    }
    // The process is to be the first of a process id namespace. That is a trait of the thread that forks, and one that it
    // cannot lay down again; so it is a thread for this alone.
    thread::scope(|scope| {
        let forks = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWPID)?;
            command.spawn()
        });
        forks.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

fn open(path: &Path, write: bool) -> Result<File, HostError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|error| at(path, "open", &error))
}

fn create(path: &Path) -> Result<File, HostError> {
    let options = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    options.map_err(|error| at(path, "make", &error))
}

fn config_file(config: &impl Serialize) -> Result<OwnedFd, HostError> {
    let failed = |error: io::Error| HostError(format!("cannot hand on the machine's configuration: {error}"));
    let name = CString::from(c"berth-config");
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(fd);
    let json = serde_json::to_vec(config).map_err(|error| failed(error.into()))?;
    file.write_all(&json).map_err(failed)?;
    io::Seek::rewind(&mut file).map_err(failed)?;
    Ok(file.into())
}

/// A listening socket at `path`, whose directory only root can enter.
fn control_socket(path: &Path) -> Result<OwnedFd, HostError> {
    let failed = |error: nix::Error| at(path, "listen on", &error.into());
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    // A socket's path may have 107 bytes only; through the directory's descriptor it is always short.
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = File::open(parent).map_err(|error| at(parent, "open", &error))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd()));
    bind(listener.as_raw_fd(), &UnixAddr::new(&short).map_err(failed)?).map_err(failed)?;
    listen(&listener, Backlog::new(16).map_err(failed)?).map_err(failed)?;
    Ok(listener)
}
