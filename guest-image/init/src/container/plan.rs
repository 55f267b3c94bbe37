//! What a process of a container has to know: as whom it runs, and what the first one has to make. Without what the others of
//! the task are told, since a container may be able to read the memory of its own processes.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use berth_protocol::message::{ContainerSpec, SystemControl};

use crate::container::capability::{CapabilityError, CapabilitySet};
use crate::container::handover::{Handed, handed};
use crate::container::limits::{self, Limit, LimitError};
use crate::container::root::RootPlan;

/// As whom a program of a container is run.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// Of the container.
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) limits: Vec<Limit>,
}

handed!(Who {
    name,
    hostname,
    env,
    working_dir,
    user,
    capabilities,
    limits,
});

#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Limit(#[from] LimitError),
}

impl Who {
    pub(crate) fn new(spec: &ContainerSpec, hostname: &str) -> Result<Self, PlanError> {
        Ok(Self {
            name: spec.name.clone(),
            hostname: hostname.to_owned(),
            env: spec.env.clone(),
            working_dir: spec.working_dir.clone(),
            user: spec.user.clone(),
            capabilities: CapabilitySet::of_container(&spec.capabilities_add, &spec.capabilities_drop)?,
            limits: limits::of_container(spec)?,
        })
    }
}

impl Handed for CapabilitySet {
    fn put(&self, to: &mut Vec<u8>) {
        self.bits().put(to);
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        u64::take(from).map(Self::of_bits)
    }
}

/// A container, for its first process.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) who: Who,
    pub(crate) argv: Vec<String>,
    pub(crate) root: RootPlan,
    pub(crate) system_controls: Vec<SystemControl>,
    pub(crate) init_process: bool,
    pub(crate) terminal: bool,
}

handed!(Plan {
    who,
    argv,
    root,
    system_controls,
    init_process,
    terminal,
});

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("{0:?} is no kernel parameter")]
    Name(String),
    #[error("cannot set the kernel parameter {name} to {value:?}: {source}")]
    Set {
        name: String,
        value: String,
        source: io::Error,
    },
}

/// Where a kernel parameter is (proc_sys(5)); none where the name could lead elsewhere.
pub(crate) fn control_path(name: &str) -> Option<String> {
    let in_a_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let plain = |part: &str| !part.is_empty() && part.bytes().all(in_a_part);
    name.split('.')
        .all(plain)
        .then(|| format!("/proc/sys/{}", name.replace('.', "/")))
}

/// Those of the network are the task's, and the last word counts; those of IPC are of the namespace that this process is in.
pub(crate) fn set_controls(controls: &[SystemControl]) -> Result<(), ControlError> {
    for control in controls {
        let path = control_path(&control.name).ok_or_else(|| ControlError::Name(control.name.clone()))?;
        fs::write(path, &control.value).map_err(|source| ControlError::Set {
            name: control.name.clone(),
            value: control.value.clone(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_kernel_parameter_stays_below_its_folder() {
        assert_eq!(
            control_path("net.core.somaxconn").as_deref(),
            Some("/proc/sys/net/core/somaxconn")
        );
        for name in [
            "",
            ".",
            "net.",
            "net..a",
            "net/core",
            "net.../kernel",
            "net.a\0",
            "net.a b",
        ] {
            assert_eq!(control_path(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_plan_arrives_as_it_was() {
        let mut spec = crate::supervisor::task_example().containers.remove(0);
        spec.env.insert("A".into(), "b".into());
        spec.capabilities_drop.push("ALL".into());
        let plan = Plan {
            who: Who::new(&spec, "box").unwrap(),
            argv: spec.argv.clone(),
            root: RootPlan {
                lower: PathBuf::from("/lower"),
                folder: PathBuf::from("/folder"),
                readonly: true,
                working_dir: PathBuf::from("/"),
                mounts: vec![],
                tmpfs: vec![],
            },
            system_controls: vec![],
            init_process: true,
            terminal: false,
        };
        let mut bytes = Vec::new();
        plan.put(&mut bytes);
        let arrived = Plan::take(&mut bytes.as_slice()).unwrap();
        assert_eq!(format!("{arrived:?}"), format!("{plan:?}"));
    }
}
