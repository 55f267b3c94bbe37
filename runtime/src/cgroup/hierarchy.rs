//! The cgroup2 hierarchy of the host: where it is, and a group in it whose children can have caps.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::CgroupError;

const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
const MOUNTS: &str = "/proc/self/mountinfo";

/// Where the cgroup2 file system is mounted.
pub(super) fn mount_point() -> Result<PathBuf, CgroupError> {
    let mounts = fs::read_to_string(MOUNTS).map_err(|source| CgroupError::Read {
        path: MOUNTS.into(),
        source,
    })?;
    find_mount(&mounts).ok_or(CgroupError::NoHierarchy)
}

/// The mount point of the first cgroup2 file system (proc_pid_mountinfo(5): the mount point is the fifth field, the
/// file system's type follows the lone dash).
fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (file_system.split(' ').next() == Some("cgroup2"))
            .then(|| mount.split(' ').nth(4).map(unescape))
            .flatten()
    })
}

/// Blanks in a path are written as octal escapes.
fn unescape(path: &str) -> PathBuf {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
        .into()
}

/// Creates the group, and enables the controllers for its children: from the root down, as each group can hand on only
/// what it was given.
pub(super) fn prepare(mount_point: &Path, parent: &str) -> Result<PathBuf, CgroupError> {
    let parent = Path::new(parent.trim_start_matches('/'));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if parent.as_os_str().is_empty() || !parent.components().all(plain) {
        return Err(CgroupError::Name(
            parent.display().to_string().chars().take(80).collect(),
        ));
    }
    let mut path = mount_point.to_owned();
    enable_controllers(&path)?;
    for part in parent.components() {
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Create { path, source: error });
            }
            _ => enable_controllers(&path)?,
        }
    }
    Ok(path)
}

fn enable_controllers(group: &Path) -> Result<(), CgroupError> {
    let read = |file: &str| {
        let path = group.join(file);
        fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })
    };
    let available = read("cgroup.controllers")?;
    let enabled = read("cgroup.subtree_control")?;
    let lists = |text: &str, controller| text.split_whitespace().any(|word| word == controller);
    for controller in CONTROLLERS {
        if !lists(&available, controller) {
            return Err(CgroupError::NoController {
                controller,
                path: group.to_owned(),
            });
        }
        if lists(&enabled, controller) {
            continue;
        }
        let path = group.join("cgroup.subtree_control");
        let value = format!("+{controller}");
        match fs::write(&path, &value) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(CgroupError::Occupied {
                    controller,
                    path: group.to_owned(),
                });
            }
            Err(source) => return Err(CgroupError::Write { path, value, source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroup2_is_found_among_others() {
        let mounts = "22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                      30 22 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      31 22 0:27 / /sys/fs/cgroup/my\\040place rw shared:10 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/my place")));
        assert_eq!(find_mount("22 1 0:20 / /sys rw - sysfs cgroup2 rw\n"), None);
    }

    #[test]
    fn a_parent_cannot_leave_the_hierarchy() {
        for parent in ["", "/", "..", "a/../../b", "./a"] {
            let prepared = prepare(Path::new("/nonexistent"), parent);
            assert!(
                matches!(prepared, Err(CgroupError::Name(_))),
                "{parent:?} was taken"
            );
        }
    }
}
