//! The conversation with one guest: hands it the task, stores its containers' output, tells what they do.
//!
//! A session outlives connections: when one breaks, the guest connects again, both say where they are, and it goes on.
//! Everything that the guest says is checked against what it was asked to run.

mod door;
mod rehearsal;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_protocol::frame::{Decoder, encode_message};
use berth_protocol::message::{TaskSpec, ToGuest, ToHost};
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::rehearsal::rehearse;
use self::worker::Worker;
use super::endpoint::TaskEndpoint;
use super::host::{GuestPort, GuestStream, HostError, Machine};
use super::lifecycle::Event;
use super::read_buffer::ReadBuffer;
use super::secrets::TaskSecrets;
use super::usage::History;
use crate::clock::Clock;
use crate::logs::OutputWriter;
use crate::model::Timestamp;

/// Events that nobody has taken yet. While there are so many, the guest is not listened to.
pub const MOST_EVENTS: usize = 32;

/// What the supervisor wants of the guest now; said again on every connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    stop: bool,
    power_off: bool,
}

/// What a session has to do with beside its machine.
pub struct Ties {
    pub clock: Arc<dyn Clock>,
    /// When an earlier daemon last followed the task.
    pub last_seen: Option<Timestamp>,
    /// The last one is `MachineEnded`.
    pub events: mpsc::Sender<Event>,
    pub endpoint: TaskEndpoint,
    pub history: Arc<History>,
}

/// What a guest that has no task yet is given with it.
pub struct HandOver {
    pub secrets: TaskSecrets,
    /// Ends once it is written down for good that the guest has been given its task. Nothing is sent before.
    pub mark: BoxFuture<'static, ()>,
}

/// A session that runs in the background until its machine ends or it is dropped.
pub struct Session {
    wanted: watch::Sender<Wanted>,
    recognized: watch::Receiver<bool>,
    containers_ended: watch::Receiver<bool>,
    machine: Arc<dyn Machine>,
    running: AbortOnDropHandle<()>,
}

impl Session {
    /// With `hand_over`, a guest that has no task yet is given `task`, once. `writers` holds one per container, by name.
    pub fn start(
        machine: Arc<dyn Machine>,
        task: TaskSpec,
        hand_over: Option<HandOver>,
        writers: BTreeMap<String, OutputWriter>,
        ties: Ties,
    ) -> Session {
        let (wanted, wanted_rx) = watch::channel(Wanted::default());
        let (ended, containers_ended) = watch::channel(false);
        let (known, recognized) = watch::channel(false);
        let (links, mut door) = door::open(task.session.clone());
        let (events, endpoint) = (ties.events.clone(), ties.endpoint.clone());
        let clock = Arc::clone(&ties.clock);
        let mut worker = Worker::new(task, hand_over, writers, ties, wanted_rx, known, ended);
        let of = Arc::clone(&machine);
        let running = tokio::spawn(async move {
            let connections = async {
                tokio::join!(
                    links.take(of.as_ref(), &endpoint),
                    worker.serve_connections(&mut door)
                )
            };
            let end = tokio::select! {
                end = of.ended() => end,
                _ = connections => of.ended().await,
            };
            let at = Some(clock.now());
            worker.finish().await;
            let event = Event::MachineEnded {
                reason: end.reason,
                at,
                at_last_heartbeat: false,
            };
            // Nobody is left to hear it only when the daemon stops.
            drop(events.send(event).await);
        });
        Session {
            wanted,
            recognized,
            containers_ended,
            machine,
            running: AbortOnDropHandle::new(running),
        }
    }

    /// Asks the containers to stop, each within its own time.
    pub fn stop_containers(&self) {
        self.wanted.send_modify(|wanted| wanted.stop = true);
    }

    pub fn power_off(&self) {
        self.wanted.send_modify(|wanted| wanted.power_off = true);
    }

    /// Waits until every container has ended.
    pub async fn containers_ended(&self) {
        let mut ended = self.containers_ended.clone();
        // The sender is gone only when the machine has ended, and the containers with it.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// Waits until the guest has shown that it has its task.
    pub async fn recognized(&self) {
        let mut recognized = self.recognized.clone();
        // A machine that has ended shows nothing any more.
        if recognized.wait_for(|known| *known).await.is_err() {
            std::future::pending().await
        }
    }

    /// Gives the machine up: nothing of it is told any more.
    pub async fn end(self) {
        self.running.abort();
        // It was broken off, which is no failure.
        drop(self.running.await);
    }

    pub fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }
}

/// Why a connection is given up; the guest makes another.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] berth_protocol::frame::FrameError),
    #[error("the guest did not say hello in time")]
    Silent,
    #[error("it is not the guest's init that connects")]
    Stranger,
    #[error("the guest speaks protocol version {0}, not {version}", version = berth_protocol::PROTOCOL_VERSION)]
    Version(u32),
    #[error("the guest broke the protocol: {0}")]
    Protocol(String),
}

/// Waits until the guest's init has said hello, which it does when it is ready for a task.
pub(crate) async fn wait_for_hello(machine: &impl Machine) -> Result<(), HostError> {
    greet(machine).await.map(drop)
}

/// The connection over which the guest's init has said hello.
async fn greet(machine: &impl Machine) -> Result<(Box<dyn GuestStream>, Decoder), HostError> {
    let (GuestPort::Init, mut stream) = machine.accept().await? else {
        return Err(HostError("a guest without a task has no containers".to_owned()));
    };
    let (mut decoder, mut buffer) = (Decoder::new(), ReadBuffer::new());
    let hello = tokio::select! {
        hello = door::read_hello(stream.as_mut(), &mut decoder, buffer.room()) => hello,
        end = machine.ended() => return Err(HostError(end.reason)),
    };
    match hello.map_err(|error| HostError(error.to_string()))? {
        ToHost::Hello { version, .. } if version == berth_protocol::PROTOCOL_VERSION => Ok((stream, decoder)),
        _ => Err(HostError("the guest's first words are not its hello".to_owned())),
    }
}

async fn send(stream: &mut dyn GuestStream, message: &ToGuest) -> Result<(), Broken> {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes)?;
    stream.write_all(&bytes).await?;
    Ok(())
}
