//! Starting machines and removing them, whoever they are for: tasks, or the templates that tasks start from.

use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;

use berth_vmm::config::HugePages;

use super::husk::Husk;
use super::launch::{self, Binaries, Launch, Start};
use super::running::RunningMachine;
use super::scratch::ScratchDisks;
use super::users::Users;
use super::{DriveEngine, Rates};
use super::{at, host_error};
use crate::cgroup::{Cgroup, Cgroups};
use crate::model::task::TaskId;
use crate::task::host::{HostError, MachineSpec};

/// What machines are made with.
#[derive(Clone)]
pub(super) struct Starter {
    pub machines_dir: PathBuf,
    pub binaries: Binaries,
    pub cgroups: Cgroups,
    pub scratch: ScratchDisks,
    pub users: Arc<Users>,
    pub rates: Rates,
    pub drive_engine: DriveEngine,
    pub huge_pages: HugePages,
}

impl Starter {
    pub fn dir(&self, task: &TaskId) -> PathBuf {
        self.machines_dir.join(task.as_str())
    }

    /// A machine that runs, attached to. `held` is kept until the VMM is started, even if the asker goes away.
    pub async fn start(
        &self,
        spec: Arc<MachineSpec>,
        start: Start,
        held: impl Send + 'static,
    ) -> Result<RunningMachine, HostError> {
        let user = self.users.take(&spec.task)?;
        let launch = self.launch(spec, user);
        attach(launch.dir.clone(), held, move || launch.run(&start)).await
    }

    /// The same, where a VMM waits that can be the machine.
    pub async fn adopt(
        &self,
        spec: Arc<MachineSpec>,
        husk: Husk,
        held: impl Send + 'static,
    ) -> Result<RunningMachine, HostError> {
        let user = self.users.hand_on(husk.id(), &spec.task)?;
        let launch = self.launch(spec, user);
        attach(launch.dir.clone(), held, move || launch.adopt(husk)).await
    }

    /// The control group of a task's machine, there or not.
    pub fn group(&self, task: &TaskId) -> Result<Cgroup, HostError> {
        launch::group(&self.cgroups, &self.dir(task), task)
    }

    fn launch(&self, spec: Arc<MachineSpec>, user: u32) -> Launch {
        Launch {
            dir: self.dir(&spec.task),
            binaries: self.binaries.clone(),
            cgroups: self.cgroups.clone(),
            scratch: self.scratch.clone(),
            user,
            rates: self.rates,
            drive_engine: self.drive_engine,
            huge_pages: self.huge_pages,
            spec,
        }
    }

    /// Ends the machine if it runs and removes everything of it.
    pub async fn remove(&self, task: &TaskId) -> Result<(), HostError> {
        self.group(task)?.remove().await.map_err(host_error)?;
        let dir = self.dir(task);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&dir, "remove", &error)),
            _ => {}
        }
        self.users.release(task);
        Ok(())
    }
}

/// Has a VMM started, and attaches to it.
async fn attach(
    dir: PathBuf,
    held: impl Send + 'static,
    start: impl FnOnce() -> Result<Child, HostError> + Send + 'static,
) -> Result<RunningMachine, HostError> {
    let started = tokio::task::spawn_blocking(move || {
        let _held = held;
        start()
    });
    let child = started
        .await
        .map_err(|error| HostError(format!("the start broke off: {error}")))??;
    RunningMachine::connect(dir, Some(child)).await
}
