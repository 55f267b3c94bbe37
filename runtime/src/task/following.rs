//! A task and its machine: starts it, or finds the one that an earlier daemon started, and follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_protocol::message::TaskSpec;
use tokio::sync::mpsc;

use super::host::{Found, HostError, Machine, MachineSpec, PulledImage};
use super::lifecycle::Event;
use super::session::{HandOver, Session, Ties};
use super::spec::{self, NetworkFacts, Prepared};
use super::supervisor::{Context, Holdings, RETRY, failed_start, to_host_error};
use crate::logs::OutputWriter;
use crate::model::Timestamp;
use crate::model::definition::TaskDefinition;
use crate::model::log::OutputStream;
use crate::model::network::Subnet;
use crate::model::task::{Container, ContainerStatus, Task, TaskId, TaskStatus};
use crate::state::keys;
use crate::store::{Records, Transaction};

/// A guest that was given its task by an earlier daemon shows at once that it has it, and has the time of a slow machine for
/// that.
const RECOGNITION_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 60_000 });

impl Context {
    pub(super) async fn run_machine(
        &self,
        task: &Task,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        if let Some(session) = &holdings.session {
            return self.resume(task, session.machine()).await;
        }
        // Once it runs, its guest has them.
        if task.status == TaskStatus::Activating {
            match self.secrets_of(task).await {
                Ok(secrets) => holdings.secrets = secrets,
                Err(error) => return Some(failed_start(&error)),
            }
        }
        let found = match self.host.find_machine(&task.id).await {
            Ok(found) => found,
            Err(error) => return Some(failed_start(&error)),
        };
        let resumed = std::mem::take(&mut holdings.resumed);
        match found {
            Found::Running(machine) => match self.prepare(task).await {
                Ok((spec, _)) => match self.resume(task, machine.as_ref()).await {
                    None => self.adopt(task, machine, spec, holdings, events).await,
                    failed => failed,
                },
                Err(error) => Some(failed_start(&error)),
            },
            Found::Ended(end) => Some(self.ended_unseen(end.reason, end.at, resumed)),
            // It ran, and nothing of it is left.
            Found::Nothing if task.status == TaskStatus::Running => {
                Some(self.ended_unseen("the machine of the task is gone".to_owned(), None, resumed))
            }
            Found::Nothing => match self.start_machine(task, holdings).await {
                Ok((machine, spec)) => self.begin(task, machine, spec, holdings, events),
                Err(error) => Some(failed_start(&error)),
            },
        }
    }

    /// Follows a machine that an earlier daemon started for a task that does not run yet.
    ///
    /// Whether its guest was given the task is in the store, since the guest's word for it may be that of a process which
    /// came with the task. Where the earlier daemon ended between writing that down and sending the task, nobody has
    /// anything: such a machine gives way to a new one.
    async fn adopt(
        &self,
        task: &Task,
        machine: Arc<dyn Machine>,
        spec: TaskSpec,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        let handed_over = match task.status {
            TaskStatus::Activating => self.records.get::<bool>(&keys::handed_over(&task.id)).await,
            _ => return self.follow(task, machine, spec, None, holdings, events),
        };
        match handed_over {
            Ok(None) => return self.begin(task, machine, spec, holdings, events),
            Ok(Some(_)) => {}
            Err(error) => return Some(failed_start(&to_host_error(error))),
        }
        let seen = match self.has_been_seen(task) {
            Ok(seen) => seen,
            Err(error) => return Some(failed_start(&error)),
        };
        let failed = self.follow(task, Arc::clone(&machine), spec, None, holdings, events);
        let Some(session) = holdings.session.as_ref().filter(|_| !seen) else {
            return failed;
        };
        let recognized = tokio::time::timeout(RECOGNITION_TIMEOUT, session.recognized()).await;
        if recognized.is_ok() {
            return None;
        }
        tracing::warn!(task = %task.id, "its machine was never given the task: it begins again on another one");
        if let Some(session) = holdings.session.take() {
            session.end().await;
        }
        machine.kill().await;
        machine.ended().await;
        match self.start_machine(task, holdings).await {
            Ok((machine, spec)) => self.begin(task, machine, spec, holdings, events),
            Err(error) => Some(failed_start(&error)),
        }
    }

    /// Whether a container has been heard of.
    fn has_been_seen(&self, task: &Task) -> Result<bool, HostError> {
        let mut writers = self.writers(task)?;
        let started = |container: &Container| container.status != ContainerStatus::Pending;
        let stored = |writer: &mut OutputWriter| {
            writer.stored(OutputStream::Stdout) > 0 || writer.stored(OutputStream::Stderr) > 0
        };
        Ok(task.containers.iter().any(started) || writers.values_mut().any(stored))
    }

    fn ended_unseen(&self, reason: String, at: Option<Timestamp>, resumed: bool) -> Event {
        let heartbeat = self.last_heartbeat.filter(|_| resumed && at.is_none());
        Event::MachineEnded {
            reason,
            at: at.or(heartbeat),
            at_last_heartbeat: heartbeat.is_some(),
        }
    }

    /// What the guest is told, and the images that the machine is given.
    async fn prepare(&self, task: &Task) -> Result<(TaskSpec, Vec<PulledImage>), HostError> {
        let missing = |what: &str| HostError(format!("the record of its {what} is missing"));
        let prepared = self.records.get::<Prepared>(&keys::prepared(&task.id)).await;
        let prepared = prepared
            .map_err(to_host_error)?
            .ok_or_else(|| missing("images"))?
            .value;
        let definition = self
            .records
            .get::<TaskDefinition>(&keys::definition(&task.definition))
            .await;
        let definition = definition
            .map_err(to_host_error)?
            .ok_or_else(|| missing("definition"))?
            .value;
        let subnet = self
            .records
            .get::<Subnet>(&keys::subnet(&task.eni.subnet_id))
            .await;
        let subnet = subnet
            .map_err(to_host_error)?
            .ok_or_else(|| missing("subnet"))?
            .value;
        let network = NetworkFacts {
            subnet: subnet.cidr,
            dns_servers: self.host.dns_servers(),
            mtu: self.host.mtu(),
            region: self.region.clone(),
        };
        let spec = spec::task_spec(task, &definition.spec, &prepared, &network).map_err(HostError)?;
        Ok((spec, prepared.images))
    }

    async fn start_machine(
        &self,
        task: &Task,
        holdings: &mut Holdings,
    ) -> Result<(Arc<dyn Machine>, TaskSpec), HostError> {
        let (spec, images) = self.prepare(task).await?;
        tracing::debug!(task = %task.id, "its machine is to be started");
        let tap = match holdings.tap.take() {
            Some(tap) => Some(tap),
            None => self.host.attach_network(&task.eni).await?,
        };
        let images = images
            .into_iter()
            .enumerate()
            .map(|(index, image)| (spec::image_drive(index), image.rootfs))
            .collect();
        let machine = self.host.start_machine(MachineSpec {
            task: task.id.clone(),
            isolation: task.isolation,
            cpu_units: task.cpu_units,
            memory_mib: task.memory_mib,
            scratch_gib: task.ephemeral_storage_gib,
            images,
            volume: task
                .volume
                .as_ref()
                .map(|volume| self.host.volume_path(&volume.id)),
            tap,
            mac: task.eni.mac.clone(),
            mtu: self.host.mtu(),
        });
        let machine = machine.await?;
        tracing::debug!(task = %task.id, "its machine is started");
        Ok((machine, spec))
    }

    fn writers(&self, task: &Task) -> Result<BTreeMap<String, OutputWriter>, HostError> {
        let open = |container: &Container| {
            let writer = self.outputs.writer(&task.id, &container.name);
            writer.map(|writer| (container.name.clone(), writer))
        };
        let writers = task.containers.iter().map(open).collect::<Result<_, _>>();
        writers.map_err(|error| HostError(error.to_string()))
    }

    /// Follows a machine whose guest has no task yet.
    fn begin(
        &self,
        task: &Task,
        machine: Arc<dyn Machine>,
        spec: TaskSpec,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        // Once it runs, a guest without a task is none that was started for it.
        let hand_over = (task.status == TaskStatus::Activating).then(|| HandOver {
            secrets: std::mem::take(&mut holdings.secrets),
            mark: Box::pin(mark_handed_over(self.records.clone(), task.id.clone())),
        });
        self.follow(task, machine, spec, hand_over, holdings, events)
    }

    fn follow(
        &self,
        task: &Task,
        machine: Arc<dyn Machine>,
        spec: TaskSpec,
        hand_over: Option<HandOver>,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        let writers = match self.writers(task) {
            Ok(writers) => writers,
            Err(error) => return Some(failed_start(&error)),
        };
        holdings.session = Some(Session::start(
            machine,
            spec,
            hand_over,
            writers,
            Ties {
                clock: Arc::clone(&self.clock),
                last_seen: self.last_heartbeat,
                events: events.clone(),
                endpoint: self.endpoints.of(task.id.clone()),
                history: self.usages.of(&task.id),
            },
        ));
        None
    }

    /// A machine that does not answer does not go on either: it has failed.
    pub(super) async fn resume(&self, task: &Task, machine: &dyn Machine) -> Option<Event> {
        let error = machine.resume().await.err()?;
        tracing::warn!(task = %task.id, %error, "a machine cannot be resumed");
        machine.kill().await;
        None
    }

    /// Follows the machine that an earlier daemon started, unless this one does already; the task's end if there is none.
    pub(super) async fn take_over(
        &self,
        task: &Task,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        let resumed = std::mem::take(&mut holdings.resumed);
        if holdings.session.is_some() {
            return None;
        }
        match self.host.find_machine(&task.id).await {
            Ok(Found::Running(machine)) => match self.prepare(task).await {
                Ok((spec, _)) => self.follow(task, machine, spec, None, holdings, events),
                // Nobody can speak to it: it goes without being asked.
                Err(error) => Some(self.ended_unseen(error.to_string(), None, resumed)),
            },
            Ok(Found::Ended(end)) => Some(self.ended_unseen(end.reason, end.at, resumed)),
            Ok(Found::Nothing) => {
                Some(self.ended_unseen("the task had no machine".to_owned(), None, resumed))
            }
            Err(error) => Some(self.ended_unseen(error.to_string(), None, resumed)),
        }
    }
}

/// Writes down that a machine of the task is about to be given it.
async fn mark_handed_over(records: Records, task: TaskId) {
    loop {
        let marked = match Transaction::default().put(keys::handed_over(&task), &true) {
            Ok(transaction) => records.commit(transaction).await.map(drop),
            Err(error) => Err(error),
        };
        match marked {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(%task, %error, "cannot store that a task is handed over, trying again")
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
