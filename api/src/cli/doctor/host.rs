//! The host beside KVM and the network: who runs this, control groups, programs, disk space.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use super::Check;

/// What the daemon needs of cgroup v2.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// Programs that are run, and the Debian package of each.
const PROGRAMS: [(&str, &str); 2] = [("mkfs.erofs", "erofs-utils"), ("mkfs.ext4", "e2fsprogs")];
const GIB: u64 = 1 << 30;
/// Below this no task can start; a task's disk is sparse, but its image must fit.
const LEAST_DISK: u64 = GIB;
/// Below this it gets tight soon.
const GOOD_DISK: u64 = 10 * GIB;

pub(super) fn root() -> Check {
    if Uid::effective().is_root() {
        Check::fine("root", "runs as root")
    } else {
        Check::missing(
            "root",
            format!("runs as uid {}", Uid::effective()),
            "run it with sudo, as the daemon must be",
        )
    }
}

pub(super) fn cgroups() -> Vec<Check> {
    const NAME: &str = "cgroups";
    const BOOT: &str = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup";
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let Some(mount) = cgroup2_mount(&mounts) else {
        return vec![Check::missing(NAME, "no cgroup v2 is mounted", BOOT)];
    };
    let controllers = match std::fs::read_to_string(mount.join("cgroup.controllers")) {
        Ok(controllers) => controllers,
        Err(error) => {
            return vec![Check::missing(
                NAME,
                format!("cannot read {}: {error}", mount.display()),
                BOOT,
            )];
        }
    };
    let missing = missing_controllers(&controllers);
    vec![if missing.is_empty() {
        Check::fine(
            NAME,
            format!("v2 at {} with {}", mount.display(), CONTROLLERS.join(", ")),
        )
    } else {
        Check::missing(
            NAME,
            format!(
                "v2 at {} has no controller {}",
                mount.display(),
                missing.join(", ")
            ),
            "boot without cgroup_disable=, and unmount cgroup v1 hierarchies that hold it",
        )
    }]
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
}

fn missing_controllers(controllers: &str) -> Vec<&'static str> {
    let there: Vec<&str> = controllers.split_whitespace().collect();
    CONTROLLERS
        .into_iter()
        .filter(|controller| !there.contains(controller))
        .collect()
}

pub(super) fn tools() -> Vec<Check> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let check = |(program, package): (&'static str, &'static str)| match folders
        .iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
    {
        Some(file) => Check::fine(program, file.display().to_string()),
        None => Check::missing(program, "is not in PATH", format!("apt-get install {package}")),
    };
    PROGRAMS.into_iter().map(check).collect()
}

/// Free space where the data is or would be.
pub(super) fn disk(data_dir: &Path) -> Check {
    const NAME: &str = "disk";
    let Some(existing) = data_dir.ancestors().find(|path| path.exists()) else {
        return Check::missing(
            NAME,
            format!("{} is nowhere", data_dir.display()),
            "name another --data-dir",
        );
    };
    let free = match statvfs(existing) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => {
            let found = format!("cannot tell the free space of {}: {error}", existing.display());
            return Check::missing(NAME, found, "name another --data-dir");
        }
    };
    judge_disk(
        free,
        &format!("{} MiB free for {}", free >> 20, data_dir.display()),
    )
}

fn judge_disk(free: u64, found: &str) -> Check {
    match free {
        ..LEAST_DISK => Check::missing("disk", found, "free some space, or name another --data-dir"),
        LEAST_DISK..GOOD_DISK => Check::note("disk", found, "images and the disks of tasks may fill it soon"),
        GOOD_DISK.. => Check::fine("disk", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_the_mounts() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(
            cgroup2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"),
            None
        );
    }

    #[test]
    fn missing_controllers_are_named() {
        assert!(missing_controllers("cpuset cpu io memory hugetlb pids\n").is_empty());
        assert_eq!(missing_controllers("cpuset memory\n"), ["cpu", "pids", "io"]);
    }

    #[test]
    fn little_space_is_noted_and_none_is_a_miss() {
        assert!(judge_disk(GIB - 1, "").is_missing());
        assert_eq!(judge_disk(GIB, "").parts().0, "note");
        assert_eq!(judge_disk(10 * GIB, "").parts().0, "ok");
    }
}
