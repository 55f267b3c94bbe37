//! The real host and its machines: one `berth-vmm` process per task, found again by its control socket.
//!
//! All of a machine is under `<data>/machines/<task id>/`, in its cgroup and its tap. What a VMM is started with is in
//! `launch`, the writable disk in `scratch`, a running one in `running`.

mod extents;
mod husk;
mod husks;
mod launch;
mod process;
mod rates;
mod rehearsal;
mod rehearsal_program;
mod resources;
mod running;
mod scratch;
mod starter;
mod templates;
#[cfg(test)]
mod tests;
mod users;
mod volumes;
mod working_set;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use berth_vmm::config::HugePages;
use futures_util::future::BoxFuture;

use crate::cgroup::Cgroups;
use crate::image::{Credentials, ImageStore, PullLimits};
use crate::model::isolation::Isolation;
use crate::model::task::{Eni, TaskId};
use crate::model::volume::VolumeId;
use crate::network::{EniSpec, MacAddr, Network};
use crate::runtime::PullStatus;
use crate::task::host::{
    Found, GuestStream, Host, HostError, Machine, MachineMetrics, MachineSpec, PulledImage, Resources,
    VolumeDisk,
};

pub use berth_vmm::config::DriveEngine;
use husks::Husks;
pub use husks::MOST_HUSKS;
pub use launch::Binaries;
use launch::Start;
pub use rates::Rates;
use running::RunningMachine;
use scratch::ScratchDisks;
use starter::Starter;
use templates::{Shape, Templates};
pub use users::UserRange;
use users::Users;
use volumes::VolumeDisks;

pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const EXIT_FILE: &str = "exit.json";
pub(crate) const PID_FILE: &str = "vmm.pid";
pub(crate) const USER_FILE: &str = "user";
pub(crate) const GROUP_FILE: &str = "group";
pub(crate) const LOG_FILE: &str = "vmm.log";
pub(crate) const SCRATCH_FILE: &str = "scratch.img";

/// What machines are like, as the operator has it.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Whom they run as.
    pub users: UserRange,
    /// What tasks share with each other at most.
    pub isolation: Isolation,
    /// How many of them wait, for each template, to be given their task; 0 to [`MOST_HUSKS`].
    pub waiting: usize,
    /// How fast their devices are.
    pub rates: Rates,
    /// How the requests of their drives are carried out.
    pub drive_engine: DriveEngine,
    /// Of what pages their memory is.
    pub huge_pages: HugePages,
}

/// This host.
pub struct LocalHost {
    starter: Starter,
    templates: Arc<Templates>,
    husks: Arc<Husks>,
    network: Network,
    images: ImageStore,
    volumes: VolumeDisks,
    /// Starting, finding and removing one machine exclude each other, even if the asker has gone away meanwhile.
    locks: Mutex<HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
}

impl LocalHost {
    /// Within a Tokio runtime.
    pub fn open(
        data_dir: &Path,
        binaries: Binaries,
        options: MachineOptions,
        cgroups: Cgroups,
        network: Network,
        images: ImageStore,
    ) -> Result<LocalHost, HostError> {
        let machines_dir = data_dir.join("machines");
        std::fs::create_dir_all(&machines_dir).map_err(|error| at(&machines_dir, "make", &error))?;
        let scratch = ScratchDisks::open(&data_dir.join("scratch"))?;
        let users = Arc::new(Users::open(options.users, &machines_dir)?);
        let templates = Arc::new(Templates::open(data_dir.join("templates"), options.isolation)?);
        let starter = Starter {
            machines_dir,
            binaries,
            cgroups,
            scratch,
            users,
            rates: options.rates,
            drive_engine: options.drive_engine,
            huge_pages: options.huge_pages,
        };
        let husks = Arc::new(Husks::new(options.waiting));
        tokio::spawn(Arc::clone(&husks).keep(Arc::clone(&templates), starter.clone()));
        Ok(LocalHost {
            starter,
            templates,
            husks,
            network,
            images,
            volumes: VolumeDisks::open(data_dir.join("volumes"))?,
            locks: Mutex::default(),
        })
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Removes every machine and cgroup that no task of `kept` owns.
    pub async fn remove_leftovers(&self, kept: &[TaskId]) -> Result<(), HostError> {
        let mut names = self.starter.cgroups.list().map_err(host_error)?;
        // Husks of an earlier daemon have ended with it, or are about to: nobody may have their users before.
        let mut machines = Vec::new();
        for task in kept {
            // One that was not noted as started is started anew.
            if self.starter.dir(task).join(PID_FILE).exists() {
                machines.push(self.starter.group(task)?);
            }
        }
        for name in names.iter().filter(|name| name.starts_with(husk::GROUP_PREFIX)) {
            let group = self.starter.cgroups.group(name).map_err(host_error)?;
            if !machines.contains(&group) {
                group.remove().await.map_err(host_error)?;
            }
        }
        let dir = &self.starter.machines_dir;
        for entry in std::fs::read_dir(dir)
            .map_err(|error| at(dir, "read", &error))?
            .flatten()
        {
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        names.dedup();
        for task in names
            .iter()
            .filter_map(|name| TaskId::parse(name))
            .filter(|task| !kept.contains(task))
        {
            tracing::warn!(%task, "removing a machine that no task owns");
            self.remove_machine(&task).await?;
        }
        Ok(())
    }

    /// The machine of a task: a husk, else a clone, else one that boots.
    async fn start(
        &self,
        spec: MachineSpec,
        guard: &Arc<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Result<RunningMachine, HostError> {
        let spec = Arc::new(spec);
        let shape = Shape::of(&spec);
        let shared = spec.isolation == Isolation::Shared;
        let template = match shared {
            true => self.templates.find(&shape, &self.starter.binaries),
            false => None,
        };
        if let Some(template) = &template {
            if let Some(husk) = template.take_husk() {
                match self.starter.adopt(spec.clone(), husk, guard.clone()).await {
                    Ok(machine) => {
                        tracing::debug!(task = %spec.task, "a husk goes on as the machine");
                        return Ok(machine);
                    }
                    Err(error) => {
                        tracing::warn!(task = %spec.task, %error, "a husk did not go on; another clone is started");
                    }
                }
            }
            let cloned = match template.clone_start() {
                Ok(start) => self.starter.start(spec.clone(), start, guard.clone()).await,
                Err(error) => Err(error),
            };
            match cloned {
                Ok(machine) => return Ok(machine),
                Err(error) => {
                    tracing::warn!(task = %spec.task, %error, "a clone did not start; the machine boots instead");
                }
            }
        }
        let machine = self.starter.start(spec, Start::Boot, guard.clone()).await?;
        match template {
            // What boots and does not start as a clone has a bad template.
            Some(template) => self.templates.give_up(&shape, &template),
            None if shared => self.templates.make_in_background(shape, &self.starter),
            None => {}
        }
        Ok(machine)
    }

    async fn lock(&self, task: &TaskId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(task.clone()).or_default())
        };
        lock.lock_owned().await
    }
}

impl Host for LocalHost {
    fn attach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<Option<OwnedFd>, HostError>> {
        Box::pin(async move {
            let spec = eni_spec(eni)?;
            self.network.attach(&spec).await.map(Some).map_err(host_error)
        })
    }

    fn detach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move { self.network.detach(&eni.id).await.map_err(host_error) })
    }

    fn pull_image<'a>(
        &'a self,
        task: &'a TaskId,
        image: &'a str,
        credentials: Option<Credentials>,
        max_bytes: u64,
        progress: &'a (dyn Fn(PullStatus) + Send + Sync),
    ) -> BoxFuture<'a, Result<PulledImage, HostError>> {
        Box::pin(async move {
            let report = |status| progress(PullStatus::from(status));
            let limits = PullLimits {
                max_unpacked_bytes: max_bytes,
            };
            let pulled = self
                .images
                .pull_for(task.as_str(), image, credentials, limits, &report)
                .await
                .map_err(host_error)?;
            Ok(PulledImage {
                digest: pulled.digest.to_string(),
                rootfs: pulled.rootfs,
                entrypoint: pulled.config.entrypoint,
                cmd: pulled.config.cmd,
                env: pulled.config.env,
                working_dir: pulled.config.working_dir,
                user: pulled.config.user,
                stop_signal: pulled.config.stop_signal,
            })
        })
    }

    fn start_machine(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, HostError>> {
        Box::pin(async move {
            // Held until the VMM is started, even if the asker goes away.
            let guard = Arc::new(self.lock(&spec.task).await);
            self.husks.note_start();
            let started = self.start(spec, &guard).await;
            self.husks.note_start();
            self.templates.changed.notify_one();
            started.map(|machine| Arc::new(machine) as Arc<dyn Machine>)
        })
    }

    fn find_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<Found, HostError>> {
        Box::pin(async move {
            let _guard = self.lock(task).await;
            let dir = self.starter.dir(task);
            let Some(process) = process::Process::from_pid_file(&dir.join(PID_FILE))? else {
                let started = dir.join(PID_FILE).exists();
                return Ok(match started {
                    true => Found::Ended(running::end_of(&dir, None)),
                    false => Found::Nothing,
                });
            };
            match RunningMachine::adopt(dir.clone(), process).await {
                Ok(machine) => Ok(Found::Running(Arc::new(machine))),
                // It ended while it was being looked at, or does not answer: what does not answer is not left running.
                Err(error) => {
                    tracing::warn!(%task, %error, "a machine does not answer");
                    self.starter.group(task)?.kill().map_err(host_error)?;
                    Ok(Found::Ended(running::end_of(&dir, Some(&error.0))))
                }
            }
        })
    }

    fn machine_metrics<'a>(
        &'a self,
        task: &'a TaskId,
    ) -> BoxFuture<'a, Result<Option<MachineMetrics>, HostError>> {
        Box::pin(async move {
            let dir = self.starter.dir(task);
            if !dir.join(PID_FILE).exists() || dir.join(EXIT_FILE).metadata().is_ok_and(|exit| exit.len() > 0)
            {
                return Ok(None);
            }
            let usage = self.starter.group(task)?.usage().map_err(host_error)?;
            let counters = tokio::task::spawn_blocking(move || running::counters(&dir)).await;
            let (counters, guest) = counters.map_err(|error| HostError(error.to_string()))??;
            Ok(Some(MachineMetrics {
                counters,
                guest,
                usage,
            }))
        })
    }

    fn connect_guest<'a>(
        &'a self,
        task: &'a TaskId,
        port: u32,
    ) -> BoxFuture<'a, Result<Option<Box<dyn GuestStream>>, HostError>> {
        Box::pin(async move {
            let dir = self.starter.dir(task);
            if !dir.join(PID_FILE).exists() || dir.join(EXIT_FILE).metadata().is_ok_and(|exit| exit.len() > 0)
            {
                return Ok(None);
            }
            let connected = tokio::task::spawn_blocking(move || running::connect_guest(&dir, port)).await;
            let connected = connected.map_err(|error| HostError(error.to_string()))??;
            let stream = connected.map(running::stream).transpose().map_err(host_error)?;
            Ok(stream.map(|stream| Box::new(stream) as Box<dyn GuestStream>))
        })
    }

    fn remove_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            let guard = self.lock(task).await;
            self.starter.remove(task).await?;
            // It is released in any case; what cannot be deleted now goes later.
            if let Err(error) = self.images.release(task.as_str()).await {
                tracing::error!(%error, "images that are not used cannot be deleted");
            }
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // The map's and the guard's own: nobody waits, so whoever comes next may make a new lock.
            if locks.get(task).is_some_and(|lock| Arc::strong_count(lock) == 2) {
                locks.remove(task);
            }
            drop(locks);
            drop(guard);
            Ok(())
        })
    }

    fn make_volume(&self, disk: VolumeDisk) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(self.volumes.make(disk))
    }

    fn remove_volume<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(self.volumes.remove(id))
    }

    fn volume_path(&self, id: &VolumeId) -> PathBuf {
        self.volumes.path(id)
    }

    fn volume_used_bytes(&self, id: &VolumeId) -> u64 {
        self.volumes.used_bytes(id)
    }

    fn resources(&self) -> BoxFuture<'_, Result<Resources, HostError>> {
        let (images, volumes) = (self.images.clone(), self.volumes.clone());
        let machines_dir = self.starter.machines_dir.clone();
        Box::pin(async move {
            // Counts files, and waits for images that are being deleted.
            let counted = tokio::task::spawn_blocking(move || {
                let kept = images.promised_bytes().map_err(host_error)?;
                resources::of_this_host(&machines_dir, volumes.dir(), kept)
            });
            let counted = counted.await;
            counted.map_err(|error| HostError(error.to_string())).flatten()
        })
    }

    fn images(&self) -> Option<&ImageStore> {
        Some(&self.images)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.husks.close(&self.templates))
    }

    fn dns_servers(&self) -> Vec<Ipv4Addr> {
        self.network.dns_servers()
    }

    fn mtu(&self) -> u16 {
        self.network.mtu()
    }
}

/// The stored interface as the network wants it.
pub fn eni_spec(eni: &Eni) -> Result<EniSpec, HostError> {
    let mac: MacAddr = eni
        .mac
        .parse()
        .map_err(|error: crate::network::NetworkError| host_error(error))?;
    Ok(EniSpec {
        id: eni.id.clone(),
        subnet_id: eni.subnet_id.clone(),
        vpc_id: eni.vpc_id.clone(),
        address: eni.address,
        mac,
        security_groups: eni.security_groups.clone(),
        internet: eni.internet,
    })
}

/// An error and what caused it, in one line.
fn host_error(error: impl std::error::Error) -> HostError {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_line = cause.to_string();
        if !line.contains(&cause_line) {
            line.push_str(": ");
            line.push_str(&cause_line);
        }
        source = cause.source();
    }
    HostError(line)
}

fn at(path: &Path, what: &str, error: &io::Error) -> HostError {
    HostError(format!("cannot {what} {}: {error}", path.display()))
}

/// Memory of the host that a task of this size may come to hold, in bytes.
pub fn memory_bytes(task_mib: u32) -> u64 {
    launch::machine_bytes(launch::guest_mib(task_mib))
}
