//! Control groups on a real cgroup2 hierarchy. Needs root and one with the cpu, memory, pids and io controllers; what
//! is missing is said loudly.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use berth_runtime::cgroup::{Caps, CgroupError, Cgroups};

const CAPS: Caps = Caps {
    cpu_units: 512,
    memory_bytes: 64 << 20,
    pids: 32,
};

fn groups(parent: &str) -> Option<Cgroups> {
    match Cgroups::open(parent) {
        Ok(groups) => Some(groups),
        Err(error @ (CgroupError::NoController { .. } | CgroupError::NoHierarchy)) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
}

#[tokio::test]
async fn a_group_caps_what_joins_it_and_takes_it_along_when_it_goes() {
    let Some(groups) = groups("berth-test-caps") else {
        return;
    };
    let group = groups.create("machine-1", &CAPS).unwrap();
    groups.create("machine-1", &CAPS).unwrap();
    assert_eq!(groups.list().unwrap(), ["machine-1"]);

    let mut child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut procs = fs::File::from(group.procs_fd().unwrap());
    procs.write_all(child.id().to_string().as_bytes()).unwrap();
    let joined = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    assert!(joined.contains("berth-test-caps/machine-1"), "{joined}");
    let usage = group.usage().unwrap();
    assert_eq!((usage.pids, usage.oom_kills), (1, 0));

    group.remove().await.unwrap();
    group.remove().await.unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(groups.list().unwrap().is_empty());
}

#[tokio::test]
async fn memory_over_the_cap_kills_the_group() {
    let Some(groups) = groups("berth-test-memory") else {
        return;
    };
    let group = groups
        .create(
            "machine-1",
            &Caps {
                memory_bytes: 16 << 20,
                ..CAPS
            },
        )
        .unwrap();
    // Waits to be in the group before it takes the memory.
    let script = "read line; exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    fs::File::from(group.procs_fd().unwrap())
        .write_all(child.id().to_string().as_bytes())
        .unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(group.usage().unwrap().oom_kills > 0);
    group.remove().await.unwrap();
}
