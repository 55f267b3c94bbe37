//! The first steps of PID 1: its root, its mounts, its standard descriptors. Nothing that depends on a task.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::mount::{MsFlags, mount};

use crate::guest::{cgroup, network};

/// Where a new root is built before it moves over the initramfs.
const BASE: &str = "/base";

#[derive(Debug, thiserror::Error)]
pub(crate) enum EarlyError {
    #[error("cannot make {path}: {source}")]
    Directory { path: String, source: io::Error },
    #[error("cannot mount {fstype} on {path}: {source}")]
    Mount {
        fstype: &'static str,
        path: String,
        source: nix::Error,
    },
    #[error("cannot make the new root the root: {0}")]
    Root(nix::Error),
    #[error("cannot open /dev/null: {0}")]
    Null(io::Error),
    #[error("cannot write {path}: {source}")]
    Write { path: &'static str, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
}

/// Prepares the machine up to the point where it can wait for a task.
///
/// The initramfs stays below, read-only: pivot_root(2) cannot leave an initramfs, so every container would be stuck
/// in it; a tmpfs moved over it can be left.
pub(crate) fn prepare() -> Result<(), EarlyError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let closed = quiet | MsFlags::MS_NODEV;
    make_directory(BASE)?;
    attach("tmpfs", BASE, closed, "mode=755,size=1m")?;
    for (fstype, name, flags, options) in [
        ("devtmpfs", "dev", quiet, "mode=755"),
        ("proc", "proc", closed, ""),
        ("sysfs", "sys", closed, ""),
        ("tmpfs", "run", closed, "mode=755"),
    ] {
        let path = format!("{BASE}/{name}");
        make_directory(&path)?;
        attach(fstype, &path, flags, options)?;
    }
    attach("cgroup2", &format!("{BASE}/sys/fs/cgroup"), closed, "")?;
    enter_base().map_err(EarlyError::Root)?;
    fill_standard_descriptors().map_err(EarlyError::Null)?;
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "-1000").map_err(|source| EarlyError::Write { path, source })?;
    cgroup::enable_controllers()?;
    network::raise_loopback()?;
    Ok(())
}

fn make_directory(path: &str) -> Result<(), EarlyError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(EarlyError::Directory {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn attach(fstype: &'static str, path: &str, flags: MsFlags, options: &str) -> Result<(), EarlyError> {
    mount(Some(fstype), path, Some(fstype), flags, Some(options)).map_err(|source| EarlyError::Mount {
        fstype,
        path: path.to_owned(),
        source,
    })
}

fn enter_base() -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)?;
    mount(
        none,
        BASE,
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
        none,
    )?;
    nix::unistd::chdir(BASE)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

/// A machine without a console starts PID 1 with descriptors 0 to 2 closed; whatever is opened next would then be
/// taken for a standard stream.
fn fill_standard_descriptors() -> io::Result<()> {
    loop {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        std::mem::forget::<File>(null);
    }
}
