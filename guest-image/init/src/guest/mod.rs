//! The machine-wide part: kernel command line, first mounts, drives, network, the task's cgroup, power. Nothing of
//! one container.

pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod cmdline;
pub(crate) mod drives;
pub(crate) mod early;
pub(crate) mod endpoint;
pub(crate) mod network;
pub(crate) mod power;
pub(crate) mod random;
pub(crate) mod usage;
