//! One supervisor per task that is not stopped: carries out what the task's state asks for, and stores every step
//! before it acts on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::endpoint::Endpoints;
use super::host::{Host, HostError};
use super::lifecycle::{self, Action, Event};
use super::secrets::TaskSecrets;
use super::session::{MOST_EVENTS, Session};
use super::usage::Usages;
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::logs::Outputs;
use crate::metering;
use crate::model::Timestamp;
use crate::model::definition::{ContainerDefinition, DEFAULT_STOP_TIMEOUT_S, TaskDefinition};
use crate::model::task::{Container, StopCause, Task, TaskId, TaskStatus};
use crate::runtime::PullStatus;
use crate::secrets::SecretStore;
use crate::state::keys;
use crate::store::{Record, Records, StoreError, Transaction};

/// How long the guest may take beyond the containers' grace time, and for powering off.
const STOP_MARGIN: Duration = Duration::from_secs(10);
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where a volume is to have all that was written to it.
const VOLUME_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the start of the machine until its containers run, for each of them; after that the start has failed.
const START_TIMEOUT: Duration = Duration::from_secs(180);
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// What every supervisor shares.
pub struct Context {
    pub records: Records,
    pub host: Arc<dyn Host>,
    pub outputs: Arc<Outputs>,
    pub secrets: Arc<SecretStore>,
    pub clock: Arc<dyn Clock>,
    pub region: String,
    /// When an earlier daemon was last seen alive.
    pub last_heartbeat: Option<Timestamp>,
    pub pulls: Mutex<HashMap<TaskId, PullStatus>>,
    pub(crate) endpoints: Endpoints,
    pub(crate) usages: Usages,
}

/// What a supervisor is asked for. It answers with the task as it is then.
pub struct Request {
    pub wish: Wish,
    pub reply: oneshot::Sender<Task>,
}

pub enum Wish {
    Stop(StopCause),
    Pause,
    Resume,
    Protect(Option<Timestamp>),
}

impl From<Wish> for Event {
    fn from(wish: Wish) -> Event {
        match wish {
            Wish::Stop(cause) => Event::StopRequested { cause },
            Wish::Pause => Event::PauseRequested,
            Wish::Resume => Event::ResumeRequested,
            Wish::Protect(until) => Event::ProtectionSet { until },
        }
    }
}

/// What a supervisor holds for its task while it runs; all of it can be found or made again.
pub(super) struct Holdings {
    pub tap: Option<OwnedFd>,
    pub session: Option<Session>,
    /// Until the session has them.
    pub secrets: TaskSecrets,
    /// This supervisor took the task over from an earlier daemon and has not found its machine yet.
    pub resumed: bool,
}

/// Supervises one task to its end.
pub async fn supervise(
    context: Arc<Context>,
    record: Record<Task>,
    resumed: bool,
    mut inbox: mpsc::UnboundedReceiver<Request>,
) {
    let Record {
        value: mut task,
        mut revision,
    } = record;
    let (events, mut happened) = mpsc::channel(MOST_EVENTS);
    let mut holdings = Holdings {
        tap: None,
        session: None,
        secrets: TaskSecrets::default(),
        resumed,
    };
    while let Some(action) = lifecycle::action(&task) {
        let of = task.clone();
        let mut work = pin!(context.carry_out(action, &of, &mut holdings, &events));
        let mut working = true;
        while lifecycle::action(&task) == Some(action) {
            let (event, reply) = tokio::select! {
                event = &mut work, if working => {
                    working = false;
                    match event {
                        Some(event) => (event, None),
                        None => continue,
                    }
                }
                Some(event) = happened.recv() => (event, None),
                request = inbox.recv() => match request {
                    Some(Request { wish, reply }) => (wish.into(), Some(reply)),
                    // The runtime is going away; the task goes on, and the next daemon takes it up.
                    None => return,
                },
            };
            let next = lifecycle::step(&task, &event, context.clock.now());
            if next != task {
                tracing::info!(task = %task.id, from = task.status.as_str(), to = next.status.as_str(), ?event);
                revision = if next.status == task.status {
                    context.store(&next, revision).await
                } else {
                    faults::pass(Point::unstored(next.status));
                    let stored = context.store(&next, revision).await;
                    faults::pass(Point::stored(next.status));
                    stored
                };
                task = next;
            }
            if let Some(reply) = reply {
                drop(reply.send(task.clone()));
            }
        }
    }
    // What was asked for in the last moment still gets its answer.
    inbox.close();
    while let Some(request) = inbox.recv().await {
        drop(request.reply.send(task.clone()));
    }
}

impl Context {
    /// Stores the task and its ledger line together. A store that fails is asked again: nothing is done unstored.
    async fn store(&self, task: &Task, revision: u64) -> u64 {
        loop {
            let stored = match self.transaction(task, revision) {
                Ok(transaction) => self.records.commit(transaction).await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(revision) => return revision,
                Err(error) => tracing::error!(task = %task.id, %error, "cannot store a task, trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn transaction(&self, task: &Task, revision: u64) -> Result<Transaction, StoreError> {
        let mut transaction = Transaction::default().replace(keys::task(&task.id), revision, task)?;
        if let Some(line) = metering::line(task, &self.region) {
            transaction = transaction.put(keys::ledger(&task.id), &line)?;
        }
        if task.status == TaskStatus::Stopped {
            transaction = transaction
                .delete(keys::address(&task.eni.subnet_id, task.eni.address))
                .delete(keys::prepared(&task.id))
                .delete(keys::handed_over(&task.id));
            // Its machine is gone: only now may another one have its volume.
            if let Some(volume) = &task.volume {
                transaction = transaction.delete(keys::attachment(&volume.id));
            }
        }
        Ok(transaction)
    }

    /// Carries out an action; the event that ends it, if the session does not bring it.
    async fn carry_out(
        &self,
        action: Action,
        task: &Task,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        match action {
            Action::AttachNetwork => Some(match self.attach_network(task).await {
                Ok(tap) => {
                    holdings.tap = tap;
                    Event::NetworkAttached
                }
                Err(error) => failed_start(&error),
            }),
            Action::PullImages => Some(match self.pull_images(task).await {
                Ok(digests) => Event::ImagesPulled { digests },
                Err(error) if is_own(&error) => failed_start(&error),
                Err(error) => Event::Failed {
                    reason: format!("CannotPullContainerError: {error}"),
                },
            }),
            Action::RunMachine => match self.run_machine(task, holdings, events).await {
                Some(event) => Some(event),
                None => {
                    // The session brings what happens; a guest that never says a word ends here.
                    tokio::time::sleep(start_timeout(task)).await;
                    Some(Event::StartTimedOut {
                        reason: "ContainerRuntimeTimeoutError: Could not transition to running; timed out after waiting 3m"
                            .to_owned(),
                    })
                }
            },
            Action::PauseMachine => self.pause_machine(task, holdings, events).await,
            Action::StopMachine => self.stop_machine(task, holdings, events).await,
            Action::Release => {
                // A machine's session holds its descriptors.
                holdings.session = None;
                holdings.tap = None;
                self.release(task).await;
                Some(Event::Released)
            }
        }
    }

    async fn attach_network(&self, task: &Task) -> Result<Option<OwnedFd>, HostError> {
        // A task that will not have its secrets is not begun, and not billed.
        self.secrets_of(task).await?;
        self.registry_credentials(task).await?;
        self.make_volume(task).await?;
        self.host.attach_network(&task.eni).await
    }

    async fn pause_machine(
        &self,
        task: &Task,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        if let Some(event) = self.take_over(task, holdings, events).await {
            return Some(event);
        }
        let error = holdings.session.as_ref()?.machine().pause().await.err()?;
        tracing::warn!(task = %task.id, %error, "a machine cannot be paused");
        Some(Event::PauseFailed)
    }

    async fn stop_machine(
        &self,
        task: &Task,
        holdings: &mut Holdings,
        events: &mpsc::Sender<Event>,
    ) -> Option<Event> {
        if let Some(event) = self.take_over(task, holdings, events).await {
            return Some(event);
        }
        let session = holdings.session.as_ref()?;
        // Its containers are to hear that they should stop.
        self.resume(task, session.machine()).await;
        let grace = self.stop_timeout(task).await;
        session.stop_containers();
        // A guest that has not said what its containers do within the time is not asked any longer.
        if tokio::time::timeout(grace + STOP_MARGIN, session.containers_ended())
            .await
            .is_ok()
        {
            session.power_off();
            let ran = |container: &Container| container.exit_code.is_some();
            let has_written = task.started_at.is_some() || task.containers.iter().any(ran);
            let time = match task.volume {
                Some(_) if has_written => VOLUME_WRITE_TIMEOUT,
                _ => POWER_OFF_TIMEOUT,
            };
            tokio::time::sleep(time).await;
            tracing::warn!(task = %task.id, "its guest does not power off, and is ended");
        }
        session.machine().kill().await;
        // The session tells the machine's end, here and above.
        None
    }

    /// The time that all containers together may take, one after the other.
    async fn stop_timeout(&self, task: &Task) -> Duration {
        let definition = self
            .records
            .get::<TaskDefinition>(&keys::definition(&task.definition))
            .await;
        let containers = definition
            .ok()
            .flatten()
            .map(|definition| definition.value.spec.containers);
        let seconds = containers.map_or(DEFAULT_STOP_TIMEOUT_S, |containers| {
            let each = containers.iter().map(ContainerDefinition::stop_timeout_s);
            each.fold(0, u32::saturating_add)
        });
        Duration::from_secs(seconds.into())
    }

    async fn release(&self, task: &Task) {
        self.outputs.close(&task.id);
        self.usages.forget(&task.id);
        self.pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&task.id);
        loop {
            let machine = match self.host.remove_machine(&task.id).await {
                // Nobody writes to it any more.
                Ok(()) => self.release_volume(task).await,
                failed => failed,
            };
            faults::pass(Point::MachineRemoved);
            let network = self.host.detach_network(&task.eni).await;
            match machine.and(network) {
                Ok(()) => return,
                Err(error) => tracing::warn!(task = %task.id, %error, "cannot clean up, trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Containers may wait for each other; how long, they say themselves, and the guest sees to it.
fn start_timeout(task: &Task) -> Duration {
    START_TIMEOUT * u32::try_from(task.containers.len()).unwrap_or(1)
}

pub(super) fn failed_start(error: &HostError) -> Event {
    let reason = match is_own(error) {
        true => error.0.clone(),
        false => format!("ResourceInitializationError: {error}"),
    };
    Event::Failed { reason }
}

/// Some causes bring their own prefix.
fn is_own(error: &HostError) -> bool {
    let own = [
        "CannotStartContainerError",
        "ResourceInitializationError",
        "CannotCreateVolumeError",
    ];
    own.iter().any(|prefix| error.0.starts_with(prefix))
}

pub(super) fn to_host_error(error: StoreError) -> HostError {
    HostError(error.to_string())
}
