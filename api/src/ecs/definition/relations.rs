//! What a container says of the others and of the volumes of its task: order, health, restarts, mounts. The rules, and the
//! way to the runtime's definition and back. Pure.

use std::collections::BTreeSet;

use berth_runtime::model::definition::{
    ContainerDefinition, Dependency, DependencyCondition, HealthCheck, MountPoint, RestartPolicy, Tmpfs,
    VolumeFrom,
};
use serde_json::{Map, Value, json};

use super::validate::{refuse, unsupported_value};
use crate::arn::is_name;
use crate::ecs::shapes::{
    self, ContainerShape, HealthCheckShape, MountPointShape, RegisterTaskDefinition, TmpfsShape,
};
use crate::ecs::values::{put, unsigned};
use crate::error::ApiError;

const DEFAULT_INTERVAL_S: u32 = 30;
const DEFAULT_TIMEOUT_S: u32 = 5;
const DEFAULT_RETRIES: u32 = 3;
const DEFAULT_ATTEMPT_PERIOD_S: u32 = 300;
const MAX_IGNORED_EXIT_CODES: usize = 50;
/// The host's own paths in a container: nothing else is mounted there.
const RESERVED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Options of a tmpfs that mean the same here as on Fargate.
const TMPFS_FLAGS: [&str; 11] = [
    "defaults", "ro", "rw", "suid", "nosuid", "nodev", "exec", "noexec", "sync", "noatime", "relatime",
];
const TMPFS_NUMBERS: [&str; 4] = ["mode", "uid", "gid", "nr_inodes"];

pub(super) fn errors(container: &ContainerShape, input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    depends_on(container, input, errors);
    mounts(container, input, errors);
    if let Some(check) = &container.health_check {
        health_check_errors(check, errors);
    }
    if let Some(policy) = &container.restart_policy {
        restart_policy_errors(policy, errors);
    }
}

fn depends_on(container: &ContainerShape, input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    let containers = input.container_definitions.as_deref().unwrap_or_default();
    for dependency in container.depends_on.as_deref().unwrap_or_default() {
        let name = dependency.container_name.as_deref().unwrap_or_default();
        let condition = dependency.condition.as_deref().unwrap_or_default();
        let Some(condition) = parse_condition(condition) else {
            errors.push(format!(
                "Invalid 'condition' setting '{}': must be START, COMPLETE, SUCCESS or HEALTHY.",
                shortened(condition)
            ));
            continue;
        };
        let other = containers
            .iter()
            .find(|container| container.name.as_deref() == Some(name));
        let Some(other) = other else {
            errors.push(format!(
                "Cannot depend on container + '{}' because it does not exist",
                shortened(name)
            ));
            continue;
        };
        match condition {
            DependencyCondition::Complete | DependencyCondition::Success
                if other.essential.unwrap_or(true) =>
            {
                errors.push(
                    "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container"
                        .to_owned(),
                );
            }
            DependencyCondition::Healthy if other.health_check.is_none() => errors.push(format!(
                "Container '{}' is depended on with the HEALTHY condition and has no 'healthCheck'.",
                shortened(name)
            )),
            _ => {}
        }
    }
}

fn mounts(container: &ContainerShape, input: &RegisterTaskDefinition, errors: &mut Vec<String>) {
    let volumes = input.volumes.as_deref().unwrap_or_default();
    let mut paths = BTreeSet::new();
    for point in container.mount_points.as_deref().unwrap_or_default() {
        let source = point.source_volume.as_deref().unwrap_or_default();
        if !volumes
            .iter()
            .any(|volume| volume.name.as_deref() == Some(source))
        {
            errors.push(format!("Unknown volume '{}'", shortened(source)));
        }
        let path = point.container_path.as_deref().unwrap_or_default();
        mount_path("mountPoints", path, errors);
        if !paths.insert(path) {
            errors.push(format!("Duplicate mount point '{}'.", shortened(path)));
        }
    }
    let containers = input.container_definitions.as_deref().unwrap_or_default();
    for from in container.volumes_from.as_deref().unwrap_or_default() {
        let name = from.source_container.as_deref().unwrap_or_default();
        let known = containers
            .iter()
            .any(|other| other.name.as_deref() == Some(name) && other.name != container.name);
        if !known {
            errors.push(format!(
                "Container '{}' in 'volumesFrom' is no other container of the task.",
                shortened(name)
            ));
        }
    }
}

/// Absolute, straight, below the root, and none of the host's own.
fn mount_path(member: &str, path: &str, errors: &mut Vec<String>) {
    let straight = path.starts_with('/')
        && path.len() > 1
        && !path.contains('\0')
        && path[1..]
            .trim_end_matches('/')
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    let reserved = RESERVED
        .iter()
        .any(|own| path == *own || path.strip_prefix(own).is_some_and(|rest| rest.starts_with('/')));
    if !straight {
        errors.push(format!(
            "Invalid 'containerPath' setting '{}' in '{member}': must be an absolute path without '.', '..' or empty \
             parts, and not '/'.",
            shortened(path)
        ));
    } else if reserved && path != "/dev/shm" {
        errors.push(format!(
            "Invalid 'containerPath' setting '{}' in '{member}': /dev, /proc and /sys are the task's own.",
            shortened(path)
        ));
    }
}

fn health_check_errors(check: &HealthCheckShape, errors: &mut Vec<String>) {
    let command = check.command.as_deref().unwrap_or_default();
    let words = match command.first().map(String::as_str) {
        Some("CMD" | "CMD-SHELL") => &command[1..],
        _ => command,
    };
    if words.is_empty() || words.iter().any(|word| word.contains('\0')) {
        errors.push("Container.healthCheck.command should not be null or empty.".to_owned());
    }
    for (member, value, range) in [
        ("interval", check.interval, 5..=300),
        ("timeout", check.timeout, 2..=60),
        ("retries", check.retries, 1..=10),
        ("startPeriod", check.start_period, 0..=300),
    ] {
        if value.is_some_and(|value| !range.contains(&value)) {
            errors.push(format!(
                "Container.healthCheck.{member} must be between {} and {}.",
                range.start(),
                range.end()
            ));
        }
    }
}

fn restart_policy_errors(policy: &shapes::RestartPolicy, errors: &mut Vec<String>) {
    if policy.enabled.is_none() {
        errors.push("Container.restartPolicy.enabled should not be null.".to_owned());
    }
    if policy
        .restart_attempt_period
        .is_some_and(|period| !(60..=1800).contains(&period))
    {
        errors.push("Container.restartPolicy.restartAttemptPeriod must be between 60 and 1800.".to_owned());
    }
    let ignored = policy.ignored_exit_codes.as_deref().unwrap_or_default();
    if ignored.len() > MAX_IGNORED_EXIT_CODES {
        errors.push(format!(
            "Container.restartPolicy.ignoredExitCodes can have at most {MAX_IGNORED_EXIT_CODES} items."
        ));
    }
}

pub(super) fn volume_errors(volumes: &[shapes::Volume], errors: &mut Vec<String>) {
    let at_launch = volumes
        .iter()
        .filter(|volume| volume.configured_at_launch == Some(true));
    if at_launch.count() > 1 {
        errors.push("Only one volume of a task definition can have 'configuredAtLaunch'.".to_owned());
    }
    let mut names = BTreeSet::new();
    for volume in volumes {
        let name = volume.name.as_deref().unwrap_or_default();
        if !is_name(name) {
            errors.push(format!(
                "Invalid volume name '{}': up to 255 letters, digits, underscores and hyphens.",
                shortened(name)
            ));
        } else if !names.insert(name) {
            errors.push(format!("Duplicate volume '{name}'."));
        }
        refuse(
            &[
                ("efsVolumeConfiguration", &volume.efs_volume_configuration),
                ("s3filesVolumeConfiguration", &volume.s3files_volume_configuration),
                (
                    "fsxWindowsFileServerVolumeConfiguration",
                    &volume.fsx_windows_file_server_volume_configuration,
                ),
            ],
            errors,
        );
    }
}

/// The one volume that a task can say more of.
pub(super) fn launch_volume(volumes: &[shapes::Volume]) -> Option<&str> {
    let mut at_launch = volumes
        .iter()
        .filter(|volume| volume.configured_at_launch == Some(true));
    at_launch.next()?.name.as_deref()
}

pub(super) fn tmpfs_errors(all: &[TmpfsShape], errors: &mut Vec<String>) {
    for tmpfs in all {
        mount_path(
            "tmpfs",
            tmpfs.container_path.as_deref().unwrap_or_default(),
            errors,
        );
        if tmpfs.size.is_none_or(|size| size < 1) {
            errors.push("Container.linuxParameters.tmpfs.size must be at least 1 MiB.".to_owned());
        }
        for option in tmpfs.mount_options.iter().flatten() {
            let known = match option.split_once('=') {
                Some((name, value)) => {
                    TMPFS_NUMBERS.contains(&name)
                        && !value.is_empty()
                        && value.bytes().all(|byte| byte.is_ascii_digit())
                }
                None => TMPFS_FLAGS.contains(&option.as_str()),
            };
            if !known {
                errors.push(unsupported_value("mountOptions", option));
            }
        }
    }
}

/// A container that waits for itself, over whichever others.
pub(super) fn circle(containers: &[ContainerShape], errors: &mut Vec<String>) {
    let mut left: Vec<&ContainerShape> = containers.iter().collect();
    loop {
        let names: BTreeSet<&str> = left
            .iter()
            .filter_map(|container| container.name.as_deref())
            .collect();
        let before = left.len();
        left.retain(|container| {
            container
                .depends_on
                .iter()
                .flatten()
                .any(|other| names.contains(other.container_name.as_deref().unwrap_or_default()))
        });
        if left.len() == before {
            break;
        }
    }
    if !left.is_empty() {
        errors.push("Container dependencies must not form a circle.".to_owned());
    }
}

fn parse_condition(text: &str) -> Option<DependencyCondition> {
    DependencyCondition::ALL
        .into_iter()
        .find(|condition| condition.as_str() == text)
}

/// Somebody else's text, as an error repeats it.
fn shortened(text: &str) -> String {
    text.chars().take(crate::arn::MAX_NAME_CHARS).collect()
}

pub(super) fn dependencies(input: &ContainerShape) -> Vec<Dependency> {
    let given = input.depends_on.iter().flatten();
    given
        .filter_map(|dependency| {
            Some(Dependency {
                container: dependency.container_name.clone()?,
                condition: parse_condition(dependency.condition.as_deref()?)?,
            })
        })
        .collect()
}

pub(super) fn health_check(input: &HealthCheckShape) -> Result<HealthCheck, ApiError> {
    Ok(HealthCheck {
        command: input.command.clone().unwrap_or_default(),
        interval_s: unsigned("interval", input.interval)?.unwrap_or(DEFAULT_INTERVAL_S),
        timeout_s: unsigned("timeout", input.timeout)?.unwrap_or(DEFAULT_TIMEOUT_S),
        retries: unsigned("retries", input.retries)?.unwrap_or(DEFAULT_RETRIES),
        start_period_s: unsigned("startPeriod", input.start_period)?,
    })
}

pub(super) fn restart_policy(input: &shapes::RestartPolicy) -> Option<Result<RestartPolicy, ApiError>> {
    (input.enabled == Some(true)).then(|| {
        let period = unsigned("restartAttemptPeriod", input.restart_attempt_period)?;
        Ok(RestartPolicy {
            ignored_exit_codes: input.ignored_exit_codes.clone().unwrap_or_default(),
            attempt_period_s: period.unwrap_or(DEFAULT_ATTEMPT_PERIOD_S),
        })
    })
}

pub(super) fn mount_points(input: &ContainerShape) -> Vec<MountPoint> {
    let point = |point: &MountPointShape| MountPoint {
        volume: point.source_volume.clone().unwrap_or_default(),
        path: straightened(point.container_path.as_deref()),
        read_only: point.read_only.unwrap_or(false),
    };
    input.mount_points.iter().flatten().map(point).collect()
}

fn straightened(path: Option<&str>) -> String {
    path.unwrap_or_default().trim_end_matches('/').to_owned()
}

pub(super) fn volumes_from(input: &ContainerShape) -> Vec<VolumeFrom> {
    let given = input.volumes_from.iter().flatten();
    given
        .map(|from| VolumeFrom {
            container: from.source_container.clone().unwrap_or_default(),
            read_only: from.read_only.unwrap_or(false),
        })
        .collect()
}

pub(super) fn tmpfs(input: &[TmpfsShape]) -> Result<Vec<Tmpfs>, ApiError> {
    let one = |tmpfs: &TmpfsShape| {
        Ok(Tmpfs {
            path: straightened(tmpfs.container_path.as_deref()),
            size_mib: unsigned("size", tmpfs.size)?.unwrap_or(0),
            options: tmpfs.mount_options.clone().unwrap_or_default(),
        })
    };
    input.iter().map(one).collect()
}

/// The members of a described container that are of this file.
pub(super) fn encode(container: &ContainerDefinition, shape: &mut Map<String, Value>) {
    let points = container.mount_points.iter().map(|point| {
        json!({ "sourceVolume": point.volume, "containerPath": point.path, "readOnly": point.read_only })
    });
    put(shape, "mountPoints", Some(points.collect::<Vec<_>>()));
    let from = container
        .volumes_from
        .iter()
        .map(|from| json!({ "sourceContainer": from.container, "readOnly": from.read_only }));
    put(shape, "volumesFrom", Some(from.collect::<Vec<_>>()));
    if !container.depends_on.is_empty() {
        let depends_on = container.depends_on.iter().map(|dependency| {
            json!({ "containerName": dependency.container, "condition": dependency.condition.as_str() })
        });
        put(shape, "dependsOn", Some(depends_on.collect::<Vec<_>>()));
    }
    if let Some(check) = &container.health_check {
        let mut described = json!({
            "command": check.command,
            "interval": check.interval_s,
            "timeout": check.timeout_s,
            "retries": check.retries,
        });
        if let Some(period) = check.start_period_s {
            described["startPeriod"] = period.into();
        }
        put(shape, "healthCheck", Some(described));
    }
    if let Some(policy) = &container.restart_policy {
        let described = json!({
            "enabled": true,
            "ignoredExitCodes": policy.ignored_exit_codes,
            "restartAttemptPeriod": policy.attempt_period_s,
        });
        put(shape, "restartPolicy", Some(described));
    }
}

/// `linuxParameters.tmpfs`, where there is one.
pub(super) fn encode_tmpfs(container: &ContainerDefinition) -> Option<Vec<Value>> {
    let described = container.tmpfs.iter().map(
        |tmpfs| json!({ "containerPath": tmpfs.path, "size": tmpfs.size_mib, "mountOptions": tmpfs.options }),
    );
    (!container.tmpfs.is_empty()).then(|| described.collect())
}
