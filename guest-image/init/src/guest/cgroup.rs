//! The cgroups of the task and of its containers (cgroup v2; Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_protocol::message::ContainerSpec;

const ROOT: &str = "/sys/fs/cgroup";
/// The parent of all containers. `berth-init` itself stays outside, so that no task can starve it.
const TASK: &str = "/sys/fs/cgroup/berth";

/// Beside the containers' own; none has such a name.
const COMMANDS: &str = ".commands";

#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("cannot make cgroup {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {path}: {source}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
}

/// Lets the children of the root have every controller that the kernel has.
pub(crate) fn enable_controllers() -> Result<(), CgroupError> {
    delegate(Path::new(ROOT))
}

/// Makes the parent of all containers, with the caps of the whole task.
pub(crate) fn make_task(memory_bytes: u64, pids: u64) -> Result<(), CgroupError> {
    let path = Path::new(TASK);
    make(path)?;
    set(path, "memory.max", &memory_bytes.to_string())?;
    forbid_swap(path)?;
    set(path, "pids.max", &pids.to_string())?;
    delegate(path)
}

/// Makes the cgroup of one container.
pub(crate) fn make_container(spec: &ContainerSpec) -> Result<ContainerCgroup, CgroupError> {
    let path = path_of(&spec.name);
    // One that starts again has it already.
    if !path.exists() {
        make(&path)?;
    }
    if let Some(bytes) = spec.memory_bytes {
        set(&path, "memory.max", &bytes.to_string())?;
    }
    if let Some(bytes) = spec.memory_reservation_bytes {
        set(&path, "memory.low", &bytes.to_string())?;
    }
    forbid_swap(&path)?;
    if let Some(shares) = spec.cpu_shares {
        set(&path, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let mut cgroup = ContainerCgroup {
        path,
        kills_before: 0,
    };
    cgroup.kills_before = cgroup.oom_kills()?;
    Ok(cgroup)
}

/// Moves the calling process into the cgroup of those that serve commands in containers: the task pays for it, and it does
/// not end with a container.
pub(crate) fn enter_commands() -> Result<(), CgroupError> {
    let path = path_of(COMMANDS);
    match make(&path) {
        Err(CgroupError::Make { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    set(&path, "cgroup.procs", "0")
}

/// Of a container that was started.
pub(crate) fn path_of(container: &str) -> PathBuf {
    Path::new(TASK).join(container)
}

/// The cgroup of a container as the kernel names it.
pub(crate) fn name_of(container: &str) -> String {
    format!("{}/{container}", TASK.trim_start_matches(ROOT))
}

/// Kills every process of every container.
pub(crate) fn kill_task() -> Result<(), CgroupError> {
    match fs::exists(TASK) {
        Ok(false) => Ok(()),
        _ => set(Path::new(TASK), "cgroup.kill", "1"),
    }
}

/// The cgroup of one container.
#[derive(Debug)]
pub(crate) struct ContainerCgroup {
    path: PathBuf,
    /// In earlier runs of the container.
    kills_before: u64,
}

impl ContainerCgroup {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        set(&self.path, "cgroup.kill", "1")
    }

    /// Whether the kernel killed a process of this run of the container for memory, its own cap's or the task's.
    pub(crate) fn oom_killed(&self) -> Result<bool, CgroupError> {
        Ok(self.oom_kills()? > self.kills_before)
    }

    fn oom_kills(&self) -> Result<u64, CgroupError> {
        let path = self.path.join("memory.events");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(oom_kills(&text)),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }
}

fn oom_kills(memory_events: &str) -> u64 {
    let mut counts = memory_events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "));
    counts
        .next()
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// `cpu.weight` (1 to 10000) of CPU shares (2 to 262144), by the linear mapping that OCI runtimes agree on.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn delegate(path: &Path) -> Result<(), CgroupError> {
    let available = path.join("cgroup.controllers");
    let controllers = fs::read_to_string(&available).map_err(|source| CgroupError::Read {
        path: available,
        source,
    })?;
    let wanted: Vec<String> = controllers
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    set(path, "cgroup.subtree_control", &wanted.join(" "))
}

fn make(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::Make {
        path: path.to_owned(),
        source,
    })
}

/// A kernel without swap has no such file, and needs none.
fn forbid_swap(path: &Path) -> Result<(), CgroupError> {
    if path.join("memory.swap.max").exists() {
        set(path, "memory.swap.max", "0")
    } else {
        Ok(())
    }
}

fn set(path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = path.join(file);
    fs::write(&path, value).map_err(|source| CgroupError::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_the_whole_range_of_weights() {
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn kills_are_told_from_mere_shortage() {
        let events = |kills| format!("low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n");
        assert_eq!(oom_kills(&events(0)), 0);
        assert_eq!(oom_kills(&events(2)), 2);
        assert_eq!(oom_kills("garbage"), 0);
    }
}
