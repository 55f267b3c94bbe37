//! Leaving the host behind: namespaces, the file system, privileges. In this order, since each step needs what a later
//! one gives up.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Gid, Uid, fchdir, pivot_root, setgroups, setresgid, setresuid};

use super::JailError;
use crate::config::JailConfig;

/// Open descriptors: those handed over, and two for each connection of the guest and of its host.
const MAX_DESCRIPTORS: u64 = 4096;
const LAST_CAPABILITY: libc::c_int = 63;

// <linux/mount.h>, which the C library's crate does not have.
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOUNT_ATTR_RDONLY: libc::c_uint = 0x1;
const MOUNT_ATTR_NOSUID: libc::c_uint = 0x2;
const MOUNT_ATTR_NODEV: libc::c_uint = 0x4;
const MOUNT_ATTR_NOEXEC: libc::c_uint = 0x8;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, JailError>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: &'static str) -> Result<T, JailError> {
        self.map_err(|source| JailError::Enter { doing, source })
    }
}

pub(super) fn enter(config: &JailConfig) -> Result<(), JailError> {
    one_heap();
    first_random_bytes()?;
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS)?;
    // Whatever the host has: less can be said later.
    limit_files(RLIM_INFINITY)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).doing("make namespaces")?;
    empty_root()?;
    drop_privileges(config)
}

/// All threads share the first heap. The allocator (glibc) looks into a file of /proc before it gives back memory of any
/// other, which no thread may do later, and a heap a thread costs more memory than the lock of one costs time.
fn one_heap() {
    // SAFETY: takes numbers only, and there is one thread. It fails for a parameter that the allocator does not know.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Newer C libraries make a pool for random numbers at the first use, and look at the processors in /sys for its size.
fn first_random_bytes() -> Result<(), JailError> {
    let mut bytes = [0u8; 1];
    // SAFETY: the pointer and the length are those of one live, writable array.
    Errno::result(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) })
        .map(drop)
        .doing("get random bytes")
}

/// No file may grow beyond so many bytes. Who has no privileges any more can make it less, and never more.
pub(super) fn limit_files(largest: u64) -> Result<(), JailError> {
    limit(Resource::RLIMIT_FSIZE, largest)
}

fn limit(resource: Resource, value: u64) -> Result<(), JailError> {
    setrlimit(resource, value, value).doing("set a resource limit")
}

/// Exchanges the file system for an empty folder that nothing can be written to. Needs no path of the host: the new
/// root is mounted over the old one, which is then taken away.
fn empty_root() -> Result<(), JailError> {
    use nix::fcntl::{OFlag, open};
    use nix::mount::{MsFlags, mount};
    use nix::sys::stat::Mode;

    let nothing = None::<&str>;
    // What is unmounted here must not go on the host.
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .doing("make mounts private")?;
    let empty = empty_file_system()?;
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).doing("open the root")?;
    // SAFETY: both descriptors are open, and the paths are empty strings that live as long as the program.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            empty.as_raw_fd(),
            c"".as_ptr(),
            root.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .doing("mount an empty folder")?;
    fchdir(&empty).doing("enter the empty folder")?;
    pivot_root(".", ".").doing("exchange the root")?;
    umount2(".", MntFlags::MNT_DETACH).doing("leave the old root")?;
    nix::unistd::chdir("/").doing("enter the new root")
}

/// A mounted, read-only file system without a single file, reachable by its descriptor alone.
fn empty_file_system() -> Result<OwnedFd, JailError> {
    let flags: libc::c_uint = FSMOUNT_CLOEXEC;
    // SAFETY: the name lives as long as the program.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), flags) })?;
    let configure = |command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>| {
        // SAFETY: the descriptor is open, and key and value are strings that live as long as the program, or null.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key.map_or(std::ptr::null(), CStr::as_ptr),
                value.map_or(std::ptr::null(), CStr::as_ptr),
                0,
            )
        };
        Errno::result(result).map(drop).doing("configure an empty folder")
    };
    configure(FSCONFIG_SET_STRING, Some(c"mode"), Some(c"0555"))?;
    configure(FSCONFIG_SET_STRING, Some(c"nr_inodes"), Some(c"1"))?;
    configure(FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    configure(FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    // SAFETY: the descriptor is open.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

/// The new descriptor that a system call returned.
fn owned(result: libc::c_long) -> Result<OwnedFd, JailError> {
    let fd = Errno::result(result).doing("make an empty folder")?;
    // A descriptor's number has 31 bits. SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn drop_privileges(config: &JailConfig) -> Result<(), JailError> {
    for capability in 0..=LAST_CAPABILITY {
        // SAFETY: takes numbers only.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            // The kernel knows no capability of this number, nor any above.
            Err(Errno::EINVAL) => break,
            result => result.map(drop).doing("drop a capability")?,
        }
    }
    let (user, group) = (Uid::from_raw(config.uid), Gid::from_raw(config.gid));
    setgroups(&[]).doing("leave all groups")?;
    setresgid(group, group, group).doing("change the group")?;
    // From root to anybody else: capabilities go with it, unless the parent's secure bits say otherwise.
    setresuid(user, user, user).doing("change the user")?;
    no_capabilities()?;
    prctl::set_no_new_privs().doing("forbid new privileges")?;
    prctl::set_dumpable(false).doing("forbid core dumps")
}

/// Empties every set of capabilities (capset(2)).
fn no_capabilities() -> Result<(), JailError> {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    const NONE: [u32; 6] = [0; 6];
    // SAFETY: header and data are laid out as the call has them, and live as long as the program.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), NONE.as_ptr()) })
        .map(drop)
        .doing("drop capabilities")
}
