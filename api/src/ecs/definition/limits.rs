//! `ulimits` and `systemControls` of a container: which are taken, and the way to the runtime's definition and back. Pure.

use berth_runtime::model::NameValue;
use berth_runtime::model::definition::{ContainerDefinition, Ulimit};
use serde_json::{Value, json};

use crate::arn::MAX_NAME_CHARS;
use crate::ecs::shapes::{SystemControlShape, UlimitShape};

/// Every limit that a process has (getrlimit(2)) but for the size of its address space, as the API names them.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// What the kernel has as the most open files of a process (`fs.nr_open`).
const MAX_OPEN_FILES: i32 = 1_048_576;
/// Kernel parameters of a container's own IPC namespace.
const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
const MAX_CONTROLS: usize = 64;
const MAX_NAMESPACE_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 256;

pub(super) fn ulimit_errors(ulimits: &[UlimitShape], errors: &mut Vec<String>) {
    for (index, ulimit) in ulimits.iter().enumerate() {
        let name = ulimit.name.as_deref().unwrap_or_default();
        if !ULIMITS.contains(&name) {
            errors.push(format!(
                "Invalid 'ulimits' name '{}': must be one of {}.",
                shown(name),
                ULIMITS.join(", ")
            ));
            continue;
        }
        if ulimits[..index].iter().any(|other| other.name == ulimit.name) {
            errors.push(format!("Duplicate name '{name}' in 'ulimits'."));
        }
        let (Some(soft), Some(hard)) = (ulimit.soft_limit, ulimit.hard_limit) else {
            errors.push(format!(
                "Invalid ulimit '{name}': softLimit and hardLimit should not be null."
            ));
            continue;
        };
        if name == "nofile" && !(0..=MAX_OPEN_FILES).contains(&hard) {
            errors.push(format!(
                "Invalid ulimit 'nofile': hardLimit must be 0 to {MAX_OPEN_FILES}."
            ));
        }
        if soft < -1 || hard < -1 || order(soft) > order(hard) {
            errors.push(format!(
                "Invalid ulimit '{name}': softLimit must be 0 to hardLimit, or -1 for no limit."
            ));
        }
    }
}

/// No limit is above every limit.
fn order(limit: i32) -> i64 {
    if limit == -1 { i64::MAX } else { i64::from(limit) }
}

pub(super) fn system_control_errors(controls: &[SystemControlShape], errors: &mut Vec<String>) {
    if controls.len() > MAX_CONTROLS {
        errors.push(format!(
            "Container.systemControls can have at most {MAX_CONTROLS} items."
        ));
        return;
    }
    for control in controls {
        let namespace = control.namespace.as_deref().unwrap_or_default();
        if !is_settable(namespace) {
            errors.push(format!(
                "Invalid 'namespace' setting '{}' in 'systemControls': must be net.*, fs.mqueue.* or one of {}.",
                shown(namespace),
                OF_IPC.join(", ")
            ));
        }
        let value = control.value.as_deref().unwrap_or_default();
        let in_a_value = |byte: u8| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t';
        if !(1..=MAX_VALUE_BYTES).contains(&value.len()) || !value.bytes().all(in_a_value) {
            errors.push(format!(
                "Invalid 'value' setting of '{}' in 'systemControls': must be 1 to {MAX_VALUE_BYTES} printable \
                 characters.",
                shown(namespace)
            ));
        }
    }
}

/// A kernel parameter that is the container's or the task's own. Its parts become parts of a path, so they are plain.
fn is_settable(namespace: &str) -> bool {
    let in_a_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let plain = |part: &str| !part.is_empty() && part.bytes().all(in_a_part);
    let own =
        OF_IPC.contains(&namespace) || namespace.starts_with("net.") || namespace.starts_with("fs.mqueue.");
    own && namespace.len() <= MAX_NAMESPACE_BYTES && namespace.split('.').all(plain)
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(MAX_NAME_CHARS).collect()
}

pub(super) fn ulimit(input: &UlimitShape) -> Ulimit {
    Ulimit {
        name: input.name.clone().unwrap_or_default(),
        soft: i64::from(input.soft_limit.unwrap_or(0)),
        hard: i64::from(input.hard_limit.unwrap_or(0)),
    }
}

pub(super) fn system_control(input: &SystemControlShape) -> NameValue {
    NameValue {
        name: input.namespace.clone().unwrap_or_default(),
        value: input.value.clone().unwrap_or_default(),
    }
}

/// `ulimits`, where there are any.
pub(super) fn encode_ulimits(container: &ContainerDefinition) -> Option<Vec<Value>> {
    let described = container
        .ulimits
        .iter()
        .map(|limit| json!({ "name": limit.name, "softLimit": limit.soft, "hardLimit": limit.hard }));
    (!container.ulimits.is_empty()).then(|| described.collect())
}

pub(super) fn encode_system_controls(container: &ContainerDefinition) -> Vec<Value> {
    let controls = container.system_controls.iter();
    controls
        .map(|control| json!({ "namespace": control.name, "value": control.value }))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_of_the_tasks_own_are_settable_and_no_others() {
        for own in [
            "net.core.somaxconn",
            "net.ipv4.conf.eth0.rp_filter",
            "net.ipv4.tcp_keepalive_time",
            "fs.mqueue.msg_max",
            "kernel.shmmax",
        ] {
            assert!(is_settable(own), "{own}");
        }
        for other in [
            "",
            "net",
            "net.",
            "net..ipv4",
            "net.ipv4/../../kernel.panic",
            "net/ipv4/ip_forward",
            "net.ipv4.\0",
            "net.ipv4.é",
            "kernel.panic",
            "kernel.core_pattern",
            "vm.swappiness",
            "fs.file-max",
            "fs.mqueue",
            "network.x",
        ] {
            assert!(!is_settable(other), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_settable_stays_below_its_folder(name in "(net|fs\\.mqueue)[./a-z\\\\\0]{0,12}") {
            if is_settable(&name) {
                let path = name.replace('.', "/");
                prop_assert!(path.split('/').all(|part| !part.is_empty()) && !name.contains('/'));
            }
        }

        #[test]
        fn a_limit_that_is_taken_has_an_order(soft: i32, hard: i32, small: bool) {
            let (soft, hard) = if small { (soft % 3, hard % 3) } else { (soft, hard) };
            let shape = UlimitShape {
                name: Some("stack".to_owned()),
                soft_limit: Some(soft),
                hard_limit: Some(hard),
            };
            let mut errors = Vec::new();
            ulimit_errors(&[shape], &mut errors);
            let good = (hard == -1 && soft >= -1) || (soft >= 0 && soft <= hard);
            prop_assert_eq!(errors.is_empty(), good);
        }
    }
}
