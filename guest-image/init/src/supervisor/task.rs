//! The task: a checked specification, and the machine made ready for its containers.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use berth_protocol::message::{ContainerSpec, TaskSpec, VolumeDrive};

use crate::container::limits::{self, LimitError};
use crate::container::pids::SharedPids;
use crate::container::plan;
use crate::container::root::{self, RootError};
use crate::container::start::{StartError, Surroundings};
use crate::container::stop_signal::{self, UnknownSignal};
use crate::container::terminal::{self, TerminalError};
use crate::guest::cgroup::{self, CgroupError};
use crate::guest::drives::{self, DriveError};
use crate::guest::network::{self, NetworkError};
use crate::supervisor::order;

/// More containers than any task may have; what counts here is that there is a bound.
const MAX_CONTAINERS: usize = 64;
const MAX_NAME_BYTES: usize = 255;
/// No time of a container is longer than a day.
const MOST_MS: u64 = 24 * 60 * 60 * 1000;
/// `HOST_NAME_MAX`
const MAX_HOSTNAME_BYTES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("a task of {0} containers is not within 1 to {MAX_CONTAINERS}")]
    Count(usize),
    #[error("container name {0:?} is not 1 to {MAX_NAME_BYTES} letters, digits, dashes or underscores")]
    Name(String),
    #[error("two containers are named {0:?}")]
    Duplicate(String),
    #[error("container {0:?} has no command")]
    NoCommand(String),
    #[error("the working directory {directory:?} of container {container:?} is not absolute")]
    WorkingDir { container: String, directory: String },
    #[error(
        "environment variable {variable:?} of container {container:?} has no name or an equals sign in it"
    )]
    Variable { container: String, variable: String },
    #[error("the stop signal of container {container:?}: {source}")]
    StopSignal {
        container: String,
        source: UnknownSignal,
    },
    #[error("container {container:?} depends on {other:?}, which is not there")]
    Dependency { container: String, other: String },
    #[error("container {0:?} waits for itself")]
    Circle(String),
    #[error("a time of container {container:?} is {ms} ms, more than {MOST_MS}")]
    Time { container: String, ms: u64 },
    #[error("the health check of container {0:?} has no command")]
    NoCheck(String),
    #[error("{path:?}, where container {container:?} mounts something, is no plain absolute path")]
    MountPath { container: String, path: String },
    #[error("container {container:?} mounts {volume:?}, which is no volume of the task")]
    Volume { container: String, volume: String },
    #[error("volume {0:?} has a drive, and is no volume of the task or has another drive as well")]
    VolumeDrive(String),
    #[error("volume name {0:?} is not 1 to {MAX_NAME_BYTES} letters, digits, dashes or underscores")]
    VolumeName(String),
    #[error("hostname {0:?} is not 1 to {MAX_HOSTNAME_BYTES} letters, digits, dots or dashes")]
    Hostname(String),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("container {container:?}: {source}")]
    Limit { container: String, source: LimitError },
    #[error("{name:?}, which container {container:?} sets, is no kernel parameter")]
    Control { container: String, name: String },
}

/// Refuses what could not be carried out, or could not even be reported under its name.
pub(crate) fn check(task: &TaskSpec) -> Result<(), TaskError> {
    if !(1..=MAX_CONTAINERS).contains(&task.containers.len()) {
        return Err(TaskError::Count(task.containers.len()));
    }
    if !plain(&task.hostname, MAX_HOSTNAME_BYTES, &['.', '-']) {
        return Err(TaskError::Hostname(task.hostname.clone()));
    }
    if let Some(name) = task
        .volumes
        .iter()
        .find(|name| !plain(name, MAX_NAME_BYTES, &['-', '_']))
    {
        return Err(TaskError::VolumeName(name.clone()));
    }
    let mut with_drives = BTreeSet::new();
    for VolumeDrive { volume, .. } in &task.volume_drives {
        if !task.volumes.contains(volume) || !with_drives.insert(volume) {
            return Err(TaskError::VolumeDrive(volume.clone()));
        }
    }
    let mut names = BTreeSet::new();
    for spec in &task.containers {
        check_container(spec)?;
        check_relations(spec, task)?;
        if !names.insert(spec.name.as_str()) {
            return Err(TaskError::Duplicate(spec.name.clone()));
        }
    }
    match order::in_a_circle(&task.containers) {
        Some(name) => Err(TaskError::Circle(name.to_owned())),
        None => Ok(()),
    }
}

/// What a container says of others, of time and of what it mounts.
fn check_relations(spec: &ContainerSpec, task: &TaskSpec) -> Result<(), TaskError> {
    let container = || spec.name.clone();
    let known = |name: &str| task.containers.iter().any(|other| other.name == name);
    if let Some(dependency) = spec.depends_on.iter().find(|it| !known(&it.container)) {
        return Err(TaskError::Dependency {
            container: container(),
            other: dependency.container.clone(),
        });
    }
    let mut times = vec![spec.start_timeout_ms, spec.stop_timeout_ms];
    if let Some(check) = &spec.health_check {
        if check.argv.is_empty() {
            return Err(TaskError::NoCheck(container()));
        }
        times.extend([check.interval_ms, check.timeout_ms, check.start_period_ms]);
    }
    times.extend(spec.restart.iter().map(|policy| policy.attempt_period_ms));
    if let Some(ms) = times.into_iter().find(|ms| *ms > MOST_MS) {
        return Err(TaskError::Time {
            container: container(),
            ms,
        });
    }
    let paths = spec.mounts.iter().map(|mount| &mount.path);
    for path in paths.chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.path)) {
        if !mountable(path) {
            return Err(TaskError::MountPath {
                container: container(),
                path: path.clone(),
            });
        }
    }
    match spec
        .mounts
        .iter()
        .find(|mount| !task.volumes.contains(&mount.volume))
    {
        Some(mount) => Err(TaskError::Volume {
            container: container(),
            volume: mount.volume.clone(),
        }),
        None => Ok(()),
    }
}

/// Absolute, below the root, and straight.
fn mountable(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn check_container(spec: &ContainerSpec) -> Result<(), TaskError> {
    let container = spec.name.clone();
    if !plain(&spec.name, MAX_NAME_BYTES, &['-', '_']) {
        return Err(TaskError::Name(container));
    }
    if spec.argv.is_empty() {
        return Err(TaskError::NoCommand(container));
    }
    if !spec.working_dir.starts_with('/') {
        return Err(TaskError::WorkingDir {
            container,
            directory: spec.working_dir.clone(),
        });
    }
    if let Some(variable) = spec.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(TaskError::Variable {
            container,
            variable: variable.clone(),
        });
    }
    if let Some(control) = spec
        .system_controls
        .iter()
        .find(|control| plan::control_path(&control.name).is_none())
    {
        return Err(TaskError::Control {
            container,
            name: control.name.clone(),
        });
    }
    if let Err(source) = limits::of_container(spec) {
        return Err(TaskError::Limit { container, source });
    }
    match stop_signal::parse(&spec.stop_signal) {
        Ok(_) => Ok(()),
        Err(source) => Err(TaskError::StopSignal { container, source }),
    }
}

fn plain(text: &str, limit: usize, also: &[char]) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || also.contains(&c);
    (1..=limit).contains(&text.len()) && text.chars().all(allowed)
}

/// Makes the machine ready for the task's containers: network, caps, writable drive.
pub(crate) fn make_ready(task: &TaskSpec) -> Result<Surroundings, TaskError> {
    if let Some(network) = &task.network {
        network::configure(network)?;
    }
    cgroup::make_task(task.memory_bytes, task.pids)?;
    drives::mount_scratch(&task.scratch_drive)?;
    for VolumeDrive { volume, drive } in &task.volume_drives {
        drives::mount_volume(volume, drive)?;
    }
    root::prepare_mount_point()?;
    root::prepare_volumes(&task.volumes)?;
    if task.containers.iter().any(|container| container.terminal) {
        terminal::prepare()?;
    }
    let mut surroundings = Surroundings::new(&task.hostname, task.network.as_ref());
    if task.share_pids {
        surroundings.pids = Some(SharedPids::new()?);
    }
    Ok(surroundings)
}

/// A task of one container that is checked well.
#[cfg(test)]
pub(crate) fn example() -> TaskSpec {
    let container = ContainerSpec {
        name: "web".into(),
        image_drive: "image0".into(),
        argv: vec!["true".into()],
        env: std::collections::BTreeMap::new(),
        working_dir: "/".into(),
        user: String::new(),
        stop_signal: String::new(),
        readonly_root: false,
        capabilities_add: vec![],
        capabilities_drop: vec![],
        limits: vec![],
        system_controls: vec![],
        memory_bytes: None,
        memory_reservation_bytes: None,
        cpu_shares: None,
        init_process: false,
        open_stdin: false,
        terminal: false,
        essential: true,
        depends_on: vec![],
        start_timeout_ms: 1000,
        stop_timeout_ms: 1000,
        health_check: None,
        restart: None,
        mounts: vec![],
        tmpfs: vec![],
        output_buffer_bytes: None,
    };
    TaskSpec {
        task_id: "t".into(),
        session: "s".into(),
        hostname: "box".into(),
        network: None,
        memory_bytes: 1 << 20,
        pids: 10,
        scratch_drive: "scratch".into(),
        volumes: vec!["shared".into()],
        volume_drives: vec![],
        share_pids: false,
        containers: vec![container],
    }
}

#[cfg(test)]
mod tests {
    use berth_protocol::message::{
        Condition, Dependency, HealthCheck, Mount, ResourceLimit, SystemControl, Tmpfs,
    };

    use super::*;

    fn task(change: impl FnOnce(&mut TaskSpec)) -> TaskSpec {
        let mut task = example();
        change(&mut task);
        task
    }

    fn mount(volume: &str, path: &str) -> Mount {
        Mount {
            volume: volume.into(),
            path: path.into(),
            readonly: false,
        }
    }

    fn drive(volume: &str) -> VolumeDrive {
        VolumeDrive {
            volume: volume.into(),
            drive: "volume".into(),
        }
    }

    #[test]
    fn an_ordinary_task_is_accepted() {
        assert!(check(&task(|task| task.volume_drives = vec![drive("shared")])).is_ok());
        assert!(check(&task(|_| ())).is_ok());
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a,b", "a b", "\u{e9}"] {
            let refused = check(&task(|task| task.containers[0].name = name.into()));
            assert!(matches!(refused, Err(TaskError::Name(_))), "{name:?}");
        }
        let refused = check(&task(|task| task.hostname = "a\nb".into()));
        assert!(matches!(refused, Err(TaskError::Hostname(_))));
    }

    #[test]
    fn what_cannot_run_is_refused() {
        type Change = fn(&mut TaskSpec);
        let changes: [(Change, &str); 18] = [
            (|task| task.containers.clear(), "a task of 0 containers"),
            (
                |task| task.containers.push(task.containers[0].clone()),
                "two containers are named",
            ),
            (|task| task.containers[0].argv.clear(), "has no command"),
            (
                |task| task.containers[0].working_dir = "tmp".into(),
                "is not absolute",
            ),
            (
                |task| drop(task.containers[0].env.insert("A=B".into(), "c".into())),
                "equals sign",
            ),
            (
                |task| task.containers[0].stop_signal = "SIGNOPE".into(),
                "unknown signal",
            ),
            (
                |task| {
                    task.containers[0].depends_on.push(Dependency {
                        container: "db".into(),
                        condition: Condition::Start,
                    });
                },
                "depends on \"db\", which is not there",
            ),
            (
                |task| {
                    task.containers[0].depends_on.push(Dependency {
                        container: "web".into(),
                        condition: Condition::Start,
                    });
                },
                "waits for itself",
            ),
            (
                |task| task.containers[0].stop_timeout_ms = u64::MAX,
                "more than 86400000",
            ),
            (
                |task| {
                    task.containers[0].health_check = Some(HealthCheck {
                        argv: vec![],
                        interval_ms: 1,
                        timeout_ms: 1,
                        retries: 1,
                        start_period_ms: 0,
                    });
                },
                "has no command",
            ),
            (
                |task| task.containers[0].mounts.push(mount("other", "/a")),
                "no volume of the task",
            ),
            (
                |task| task.containers[0].mounts.push(mount("shared", "/a/../b")),
                "no plain absolute path",
            ),
            (
                |task| {
                    task.containers[0].tmpfs.push(Tmpfs {
                        path: "/".into(),
                        bytes: 1,
                        options: vec![],
                    });
                },
                "no plain absolute path",
            ),
            (|task| task.volumes.push("../etc".into()), "volume name"),
            (
                |task| task.volume_drives.push(drive("other")),
                "is no volume of the task",
            ),
            (
                |task| task.volume_drives = vec![drive("shared"), drive("shared")],
                "has another drive as well",
            ),
            (
                |task| {
                    task.containers[0].system_controls.push(SystemControl {
                        name: "net/../kernel.panic".into(),
                        value: "1".into(),
                    });
                },
                "is no kernel parameter",
            ),
            (
                |task| {
                    task.containers[0].limits.push(ResourceLimit {
                        name: "as".into(),
                        soft: None,
                        hard: None,
                    });
                },
                "there is no resource limit \"as\"",
            ),
        ];
        for (change, text) in changes {
            let message = check(&task(change)).unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
    }
}
