//! The root file system of a container: the overlay, what is mounted in it, and the step into it. Runs in the child,
//! in its own mount namespace, so that everything vanishes with the container.
//!
//! Every mount has `nodev` but the six device nodes themselves: a container may make device nodes, as `CAP_MKNOD` is
//! among the default capabilities, but can open none that it made, and so not the drives of the machine.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{fchdir, pivot_root};

use berth_protocol::message::{Mount, Tmpfs};

use crate::container::handover::handed;
use crate::container::inside::{InsideError, Links, Root, handle_path, kind};
use crate::guest::drives::{SCRATCH, volume_mount};

/// The volumes of the task, on the scratch drive. No container has such a name.
const VOLUMES: &str = ".volumes";

/// Where each child mounts its overlay, in its own mount namespace.
const MOUNT_POINT: &str = "/run/berth/root";

/// What the root is made of.
#[derive(Clone, Debug)]
pub(crate) struct RootPlan {
    /// The mounted image.
    pub(crate) lower: PathBuf,
    /// The container's folder on the scratch drive, made by [`prepare`].
    pub(crate) folder: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) working_dir: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) tmpfs: Vec<Tmpfs>,
}

handed!(RootPlan {
    lower,
    folder,
    readonly,
    working_dir,
    mounts,
    tmpfs,
});

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("cannot make {path}: {source}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot mount {what} on {path}: {source}")]
    Mount {
        what: &'static str,
        path: PathBuf,
        source: Errno,
    },
    #[error("{0:?} is no option of a tmpfs")]
    Option(String),
    #[error("cannot make device {path}: {source}")]
    Device { path: PathBuf, source: Errno },
    #[error("cannot link {path}: {source}")]
    Link { path: PathBuf, source: io::Error },
    #[error("cannot enter the root file system: {0}")]
    Enter(Errno),
    #[error("cannot enter the working directory {path}: {source}")]
    WorkingDir { path: PathBuf, source: Errno },
    #[error(transparent)]
    Inside(#[from] InsideError),
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const CLOSED: MsFlags = QUIET.union(MsFlags::MS_NODEV);

/// Files that tell the network, by their names in the container's folder; mounted over those of the image.
pub(crate) const NETWORK_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Paths that tell about, or reach into, the machine rather than the container; the lists are those of container
/// engines.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Makes the mount point of all roots. Once, in the parent.
pub(crate) fn prepare_mount_point() -> Result<(), RootError> {
    fs::create_dir_all(MOUNT_POINT).map_err(|source| RootError::Prepare {
        path: PathBuf::from(MOUNT_POINT),
        source,
    })
}

/// Makes the folders of the task's volumes. Once, in the parent.
pub(crate) fn prepare_volumes(names: &[String]) -> Result<(), RootError> {
    for name in names {
        let path = volume(name);
        fs::create_dir_all(&path).map_err(|source| RootError::Prepare { path, source })?;
    }
    Ok(())
}

/// Where a volume is: a file system of its own, or a folder on the scratch drive.
fn volume(name: &str) -> PathBuf {
    let own = volume_mount(name);
    if own.exists() {
        own
    } else {
        Path::new(SCRATCH).join(VOLUMES).join(name)
    }
}

/// Makes the container's folder on the scratch drive, with its network files. In the parent.
pub(crate) fn prepare(folder: &Path, network_files: &[String; 3]) -> Result<(), RootError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RootError::Prepare { path, source }
    };
    for name in ["upper", "work"] {
        let path = folder.join(name);
        fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    for (name, text) in NETWORK_FILES.iter().zip(network_files) {
        let path = folder.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed(&path))?;
    }
    Ok(())
}

/// Builds the root, makes it this process's, and stands in the working directory.
pub(crate) fn enter(plan: &RootPlan) -> Result<Root, RootError> {
    mount_overlay(plan)?;
    let root = Root::open(Path::new(MOUNT_POINT))?;
    mount_kernel_filesystems(&root)?;
    fill_dev()?;
    mount_network_files(&root, plan)?;
    for path in MASKED {
        mask(&root, path)?;
    }
    for path in READ_ONLY {
        if let Some(target) = root.existing(Path::new(path), Links::Refuse)? {
            let target = handle_path(&target);
            bind("read-only path", &target, &target)?;
        }
    }
    for path in READ_ONLY {
        // A handle from before the bind would be on the mount below it.
        if let Some(target) = root.existing(Path::new(path), Links::Refuse)? {
            remount(
                "read-only path",
                &handle_path(&target),
                CLOSED | MsFlags::MS_RDONLY,
            )?;
        }
    }
    mount_own(&root, plan)?;
    let working_dir = root.directory(&plan.working_dir, Links::Follow)?;
    if plan.readonly {
        remount(
            "read-only root",
            Path::new(MOUNT_POINT),
            MsFlags::MS_NODEV | MsFlags::MS_RDONLY,
        )?;
    }
    pivot().map_err(RootError::Enter)?;
    fchdir(&working_dir).map_err(|source| RootError::WorkingDir {
        path: plan.working_dir.clone(),
        source,
    })?;
    Ok(root)
}

/// Makes a root without anything this process's.
pub(crate) fn enter_empty() -> Result<(), RootError> {
    prepare_mount_point()?;
    let flags = CLOSED | MsFlags::MS_RDONLY;
    attach("tmpfs", Path::new(MOUNT_POINT), flags, "size=4k,nr_inodes=2")?;
    pivot().map_err(RootError::Enter)
}

fn mount_overlay(plan: &RootPlan) -> Result<(), RootError> {
    // Names of drives and containers are plain, so nothing needs escaping. Without an index or metacopies the upper
    // layer is ordinary files, whatever defaults the kernel was built with.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off",
        plan.lower.display(),
        plan.folder.join("upper").display(),
        plan.folder.join("work").display(),
    );
    attach("overlay", Path::new(MOUNT_POINT), MsFlags::MS_NODEV, &options)
}

fn mount_kernel_filesystems(root: &Root) -> Result<(), RootError> {
    let read_only = CLOSED | MsFlags::MS_RDONLY;
    for (fstype, path, flags, options) in [
        ("proc", "/proc", CLOSED, ""),
        ("sysfs", "/sys", read_only, ""),
        ("cgroup2", "/sys/fs/cgroup", read_only, ""),
        // Device nodes are made here before `nodev` is set.
        ("tmpfs", "/dev", QUIET, "mode=755,size=65536k"),
        (
            "devpts",
            "/dev/pts",
            QUIET,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        ("tmpfs", "/dev/shm", CLOSED, "mode=1777,size=65536k"),
        ("mqueue", "/dev/mqueue", CLOSED, ""),
    ] {
        // Links in their place would put them anywhere in the image; no image of good faith has any.
        let target = root.directory(Path::new(path), Links::Refuse)?;
        attach(fstype, &handle_path(&target), flags, options)?;
    }
    Ok(())
}

fn fill_dev() -> Result<(), RootError> {
    // No link, or mounting there had been refused.
    let dev = Path::new(MOUNT_POINT).join("dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)).map_err(|source| RootError::Device {
            path: path.clone(),
            source,
        })?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(|source| {
            RootError::Prepare {
                path: path.clone(),
                source,
            }
        })?;
        bind("device", &path, &path)?;
    }
    for (name, target) in LINKS {
        let path = dev.join(name);
        symlink(target, &path).map_err(|source| RootError::Link { path, source })?;
    }
    remount("/dev", &dev, CLOSED)
}

fn mount_network_files(root: &Root, plan: &RootPlan) -> Result<(), RootError> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    if plan.readonly {
        flags |= MsFlags::MS_RDONLY;
    }
    for name in NETWORK_FILES {
        let path = Path::new("/etc").join(name);
        bind(
            "network file",
            &plan.folder.join(name),
            &handle_path(&root.file(&path)?),
        )?;
        remount("network file", &handle_path(&root.file(&path)?), flags)?;
    }
    Ok(())
}

/// Volumes and file systems in memory, those nearer to the root first.
fn mount_own(root: &Root, plan: &RootPlan) -> Result<(), RootError> {
    let mut paths: Vec<&str> = plan.mounts.iter().map(|mount| mount.path.as_str()).collect();
    paths.extend(plan.tmpfs.iter().map(|tmpfs| tmpfs.path.as_str()));
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        let target = || {
            root.directory(Path::new(path), Links::Follow)
                .map_err(RootError::from)
        };
        // Later ones lie over earlier ones.
        for mount in plan.mounts.iter().filter(|mount| mount.path == path) {
            let source = volume(&mount.volume);
            take_over(&source, &target()?)?;
            bind("volume", &source, &handle_path(&target()?))?;
            let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
            if mount.readonly {
                flags |= MsFlags::MS_RDONLY;
            }
            remount("volume", &handle_path(&target()?), flags)?;
        }
        for tmpfs in plan.tmpfs.iter().filter(|tmpfs| tmpfs.path == path) {
            let (flags, data) = tmpfs_options(tmpfs)?;
            attach("tmpfs", &handle_path(&target()?), flags, &data)?;
        }
    }
    Ok(())
}

/// A volume that nobody has written to belongs to whom the folder that it hides belongs.
fn take_over(volume: &Path, hidden: &OwnedFd) -> Result<(), RootError> {
    let prepare = |source| RootError::Prepare {
        path: volume.to_owned(),
        source,
    };
    if fs::read_dir(volume).map_err(prepare)?.next().is_some() {
        return Ok(());
    }
    let stat = nix::sys::stat::fstat(hidden).map_err(|errno| prepare(errno.into()))?;
    std::os::unix::fs::chown(volume, Some(stat.st_uid), Some(stat.st_gid)).map_err(prepare)?;
    let mode = stat.st_mode & 0o7777;
    fs::set_permissions(volume, fs::Permissions::from_mode(mode)).map_err(prepare)
}

/// What mount(8) knows of a tmpfs, as mount(2) takes it. Device nodes are never allowed.
fn tmpfs_options(tmpfs: &Tmpfs) -> Result<(MsFlags, String), RootError> {
    let mut flags = CLOSED;
    let mut data = format!("size={}", tmpfs.bytes);
    for option in &tmpfs.options {
        let number = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match option.split_once('=') {
            Some(("mode" | "uid" | "gid" | "nr_inodes", value)) if number(value) => {
                data.push(',');
                data.push_str(option);
                continue;
            }
            Some(_) => return Err(RootError::Option(option.clone())),
            None => {}
        }
        match option.as_str() {
            "defaults" | "rw" | "nodev" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            _ => return Err(RootError::Option(option.clone())),
        }
    }
    Ok((flags, data))
}

/// Hides what is there: a file behind the container's `/dev/null`, a folder behind an empty one.
fn mask(root: &Root, path: &str) -> Result<(), RootError> {
    let Some(target) = root.existing(Path::new(path), Links::Refuse)? else {
        return Ok(());
    };
    let is_directory = kind(&target).map_err(RootError::Enter)? == SFlag::S_IFDIR;
    if is_directory {
        return attach(
            "tmpfs",
            &handle_path(&target),
            CLOSED | MsFlags::MS_RDONLY,
            "size=4k,nr_inodes=2",
        );
    }
    let null: Option<OwnedFd> = root.existing(Path::new("/dev/null"), Links::Refuse)?;
    match null {
        Some(null) => bind("mask", &handle_path(&null), &handle_path(&target)),
        None => Err(RootError::Device {
            path: PathBuf::from("/dev/null"),
            source: Errno::ENOENT,
        }),
    }
}

fn attach(what: &'static str, target: &Path, flags: MsFlags, options: &str) -> Result<(), RootError> {
    mount(Some(what), target, Some(what), flags, Some(options)).map_err(|source| RootError::Mount {
        what,
        path: target.to_owned(),
        source,
    })
}

fn bind(what: &'static str, source: &Path, target: &Path) -> Result<(), RootError> {
    let none: Option<&str> = None;
    mount(
        Some(source),
        target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .map_err(|source| RootError::Mount {
        what,
        path: target.to_owned(),
        source,
    })
}

/// Changes the flags of this one mount, not of the file system.
fn remount(what: &'static str, target: &Path, flags: MsFlags) -> Result<(), RootError> {
    let none: Option<&str> = None;
    mount(
        none,
        target,
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
        none,
    )
    .map_err(|source| RootError::Mount {
        what,
        path: target.to_owned(),
        source,
    })
}

/// Swaps the roots without a folder for the old one: it comes to lie over the new one, and goes (pivot_root(2)).
fn pivot() -> Result<(), Errno> {
    nix::unistd::chdir(MOUNT_POINT)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(options: &[&str]) -> Result<(MsFlags, String), RootError> {
        tmpfs_options(&Tmpfs {
            path: "/t".into(),
            bytes: 4096,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        })
    }

    #[test]
    fn a_tmpfs_is_closed_unless_its_options_open_it() {
        assert_eq!(options(&[]).unwrap(), (CLOSED, "size=4096".to_owned()));
        let (flags, data) = options(&["rw", "exec", "mode=1777", "uid=7"]).unwrap();
        assert_eq!(
            (flags, data.as_str()),
            (CLOSED - MsFlags::MS_NOEXEC, "size=4096,mode=1777,uid=7")
        );
    }

    #[test]
    fn options_that_are_none_or_say_more_than_one_thing_are_refused() {
        for option in ["dev", "mode=7,size=1g", "mode=", "size=1", "huge", ""] {
            assert!(
                matches!(options(&[option]), Err(RootError::Option(_))),
                "{option:?}"
            );
        }
    }
}
