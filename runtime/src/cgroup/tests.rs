//! Groups over a folder that stands for the hierarchy. On a real one they are tried by `tests/cgroup.rs`.

use super::*;

/// A folder with the files that the kernel would put into a group.
fn fake_group(path: &Path, controllers: &str) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("cgroup.controllers"), controllers).unwrap();
    fs::write(path.join("cgroup.subtree_control"), "").unwrap();
}

#[test]
fn a_missing_controller_is_named() {
    let mount = tempfile::tempdir().unwrap();
    fake_group(mount.path(), "cpuset cpu io hugetlb pids");
    let error = Cgroups::open_at(mount.path(), "berth").unwrap_err();
    assert!(
        matches!(
            error,
            CgroupError::NoController {
                controller: "memory",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn only_groups_are_listed() {
    let mount = tempfile::tempdir().unwrap();
    fake_group(mount.path(), "cpu io memory pids");
    fake_group(&mount.path().join("berth"), "cpu io memory pids");
    fake_group(&mount.path().join("berth/machine-2"), "");
    fake_group(&mount.path().join("berth/machine-1"), "");
    let groups = Cgroups::open_at(mount.path(), "/berth").unwrap();
    assert_eq!(groups.list().unwrap(), ["machine-1", "machine-2"]);
}

#[test]
fn use_is_read_from_the_files_of_the_kernel() {
    let mount = tempfile::tempdir().unwrap();
    let group = Cgroup {
        path: mount.path().to_owned(),
    };
    let files = [
        ("cpu.stat", "usage_usec 1234\nuser_usec 1000\n"),
        ("memory.current", "4096\n"),
        ("pids.current", "3\n"),
        ("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n"),
    ];
    for (file, content) in files {
        fs::write(mount.path().join(file), content).unwrap();
    }
    let usage = group.usage().unwrap();
    let expected = Usage {
        cpu_usec: 1234,
        memory_bytes: 4096,
        memory_peak_bytes: None,
        pids: 3,
        oom_kills: 1,
    };
    assert_eq!(usage, expected);
    fs::write(mount.path().join("memory.current"), "many").unwrap();
    assert!(matches!(group.usage(), Err(CgroupError::Content { .. })));
}

#[test]
fn names_that_could_leave_the_parent_are_refused() {
    let groups = Cgroups {
        root: PathBuf::from("/nonexistent"),
    };
    for name in ["", "..", "a/b", "cpu.max", &"x".repeat(65)] {
        assert!(
            matches!(groups.group(name), Err(CgroupError::Name(_))),
            "{name:?} was taken"
        );
    }
}

#[tokio::test]
async fn removing_what_is_not_there_is_no_error() {
    let groups = Cgroups {
        root: PathBuf::from("/nonexistent"),
    };
    groups.group("gone").unwrap().remove().await.unwrap();
}

#[test]
fn an_empty_group_is_removed_and_one_that_is_gone_is_no_error() {
    let mount = tempfile::tempdir().unwrap();
    fake_group(mount.path(), "cpu io memory pids");
    fake_group(&mount.path().join("berth"), "cpu io memory pids");
    let groups = Cgroups::open_at(mount.path(), "berth").unwrap();
    let group = groups.group("machine").unwrap();
    group.remove_empty().unwrap();
    fs::create_dir(mount.path().join("berth/machine")).unwrap();
    // Stands for what the kernel refuses: the file is none of its.
    fs::write(mount.path().join("berth/machine/cgroup.procs"), "77").unwrap();
    assert!(matches!(group.remove_empty(), Err(CgroupError::Remove { .. })));
    let procs = mount.path().join("berth/machine/cgroup.procs");
    fs::remove_file(procs).unwrap();
    group.remove_empty().unwrap();
    assert_eq!(groups.list().unwrap(), [""; 0]);
}
