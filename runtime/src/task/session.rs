//! The conversation with one guest: hands it the task, stores its containers' output, tells what they do.
//!
//! A session outlives connections: when one breaks, the guest connects again, both say where they are, and it goes on.
//! Everything that the guest says is checked against what it was asked to run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_protocol::frame::{Decoder, Frame, OutputFrame, encode_message};
use berth_protocol::message::{
    ContainerState, ContainerStatus, Health, OutputPosition, Stream, TaskSpec, ToGuest, ToHost,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::host::{GuestStream, HostError, Machine};
use super::lifecycle::Event;
use super::secrets::TaskSecrets;
use crate::clock::Clock;
use crate::logs::OutputWriter;
use crate::model::Timestamp;
use crate::model::log::OutputStream;
use crate::model::task::HealthStatus;

const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 128 * 1024;
/// Longest reason of a guest that is passed on, in characters.
const MAX_REASON_CHARS: usize = 512;
const RETRY: Duration = Duration::from_secs(1);
/// For so long after a daemon took a task over, a guest may bring news from before.
const TAKE_OVER_MS: u64 = 30_000;
const STREAMS: [(Stream, OutputStream); 2] = [
    (Stream::Stdout, OutputStream::Stdout),
    (Stream::Stderr, OutputStream::Stderr),
];

/// What the supervisor wants of the guest now; said again on every connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    stop: bool,
    power_off: bool,
}

/// A session that runs in the background until its machine ends or it is dropped.
pub struct Session {
    wanted: watch::Sender<Wanted>,
    containers_ended: watch::Receiver<bool>,
    machine: Arc<dyn Machine>,
    _running: AbortOnDropHandle<()>,
}

impl Session {
    /// With `hand_over`, a guest that has no task yet is given `task` and these secrets. `writers` holds one per container,
    /// by name. Events go to `events`, the last of which is `MachineEnded`.
    pub fn start(
        machine: Arc<dyn Machine>,
        task: TaskSpec,
        hand_over: Option<TaskSecrets>,
        writers: BTreeMap<String, OutputWriter>,
        clock: Arc<dyn Clock>,
        last_seen: Option<Timestamp>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Session {
        let (wanted, wanted_rx) = watch::channel(Wanted::default());
        let (ended, containers_ended) = watch::channel(false);
        let followed_since = clock.now();
        let containers = writers
            .into_iter()
            .map(|(name, writer)| (name, Container::new(writer)))
            .collect();
        let mut worker = Worker {
            task,
            hand_over,
            containers,
            clock,
            last_seen,
            followed_since,
            events: events.clone(),
            wanted: wanted_rx,
            ended,
        };
        let of = Arc::clone(&machine);
        let running = tokio::spawn(async move {
            let end = tokio::select! {
                end = of.ended() => end,
                () = worker.serve_connections(of.as_ref()) => of.ended().await,
            };
            worker.finish_logs();
            let event = Event::MachineEnded {
                reason: end.reason,
                at: None,
                at_last_heartbeat: false,
            };
            // Nobody is left to hear it only when the daemon stops.
            drop(events.send(event));
        });
        Session {
            wanted,
            containers_ended,
            machine,
            _running: AbortOnDropHandle::new(running),
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

    pub fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Started,
    Stopped,
}

/// One container, as far as this session knows it.
struct Container {
    writer: OutputWriter,
    told: Told,
    /// The guest says it ended; told once its output is here.
    exited: Option<ContainerState>,
    /// It ended while nobody listened.
    unseen: bool,
    acknowledged: [u64; 2],
}

impl Container {
    fn new(writer: OutputWriter) -> Container {
        Container {
            writer,
            told: Told::Nothing,
            exited: None,
            unseen: false,
            acknowledged: [0; 2],
        }
    }
}

struct Worker {
    task: TaskSpec,
    hand_over: Option<TaskSecrets>,
    containers: BTreeMap<String, Container>,
    clock: Arc<dyn Clock>,
    /// When an earlier daemon last followed this task, and since when this one does.
    last_seen: Option<Timestamp>,
    followed_since: Timestamp,
    events: mpsc::UnboundedSender<Event>,
    wanted: watch::Receiver<Wanted>,
    ended: watch::Sender<bool>,
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

impl Worker {
    async fn serve_connections(&mut self, machine: &dyn Machine) {
        loop {
            match machine.accept().await {
                Ok(mut stream) => {
                    if let Err(error) = self.serve(stream.as_mut()).await {
                        tracing::debug!(%error, "a guest's connection broke");
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot take a guest's connection");
                    return;
                }
            }
        }
    }

    async fn serve(&mut self, stream: &mut dyn GuestStream) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; READ_BYTES];
        self.say_hello(stream).await?;
        let hello = tokio::time::timeout(HELLO_TIMEOUT, read_hello(stream, &mut decoder, &mut buffer));
        if let Some(secrets) = self.hear_hello(hello.await.map_err(|_| Broken::Silent)??)? {
            let run = secrets.run_message(&self.task, self.clock.now().0, rand::random())?;
            drop(secrets);
            stream.write_all(&run).await?;
        }
        let mut said = Wanted::default();
        loop {
            self.take_frames(&mut decoder).await?;
            self.tell_exits();
            self.acknowledge(stream).await?;
            let wanted = *self.wanted.borrow_and_update();
            self.say_wanted(stream, &mut said, wanted).await?;
            tokio::select! {
                read = stream.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    length => decoder.push(&buffer[..length]),
                },
                changed = self.wanted.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    async fn say_hello(&mut self, stream: &mut dyn GuestStream) -> Result<(), Broken> {
        let mut outputs = Vec::new();
        for (name, container) in &mut self.containers {
            for (index, (stream, output)) in STREAMS.into_iter().enumerate() {
                // Not what has merely arrived: the guest forgets what it is told here.
                let offset = container.writer.stored(output);
                container.acknowledged[index] = offset;
                outputs.push(OutputPosition {
                    container: name.clone(),
                    stream,
                    offset,
                });
            }
        }
        send(
            stream,
            &ToGuest::Hello {
                version: berth_protocol::PROTOCOL_VERSION,
                outputs,
            },
        )
        .await
    }

    /// What a guest without its task gets with it. Any process in the guest can connect; only its init knows the session.
    fn hear_hello(&mut self, hello: ToHost) -> Result<Option<TaskSecrets>, Broken> {
        let ToHost::Hello {
            version,
            session,
            containers,
            ..
        } = hello
        else {
            return Err(Broken::Protocol("its first message is not a hello".to_owned()));
        };
        if version != berth_protocol::PROTOCOL_VERSION {
            return Err(Broken::Version(version));
        }
        let fresh = session.is_none() && self.hand_over.is_some();
        if !fresh && session.as_ref() != Some(&self.task.session) {
            return Err(Broken::Stranger);
        }
        // A guest is given its task once.
        let secrets = self.hand_over.take();
        if fresh {
            return Ok(secrets);
        }
        for status in containers {
            self.hear_status(status)?;
        }
        Ok(None)
    }

    async fn say_wanted(
        &self,
        stream: &mut dyn GuestStream,
        said: &mut Wanted,
        wanted: Wanted,
    ) -> Result<(), Broken> {
        if wanted.stop && !said.stop {
            send(stream, &ToGuest::Stop).await?;
        }
        if wanted.power_off && !said.power_off {
            send(stream, &ToGuest::PowerOff).await?;
        }
        *said = wanted;
        Ok(())
    }

    async fn take_frames(&mut self, decoder: &mut Decoder) -> Result<(), Broken> {
        while let Some(frame) = decoder.next::<ToHost>()? {
            match frame {
                Frame::Output(output) => self.store(output).await?,
                Frame::Data(_) => return Err(Broken::Protocol("data of no command".to_owned())),
                Frame::Message(ToHost::Container { status }) => self.hear_status(status)?,
                Frame::Message(ToHost::Error { message }) => {
                    tracing::warn!(message = one_line(&message), "a guest reports an error");
                }
                Frame::Message(ToHost::Hello { .. }) => {
                    return Err(Broken::Protocol("a second hello".to_owned()));
                }
            }
        }
        Ok(())
    }

    async fn store(&mut self, output: OutputFrame) -> Result<(), Broken> {
        let Some(container) = self.containers.get_mut(&output.container) else {
            return Err(Broken::Protocol(
                "output of a container that it was not given".to_owned(),
            ));
        };
        if container.told == Told::Stopped {
            return Ok(());
        }
        let stream = match output.stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        // A full disk holds the guest back; no line is lost.
        while let Err(error) = container
            .writer
            .append(stream, output.offset, &output.bytes, self.clock.now())
        {
            tracing::warn!(%error, "cannot store output, trying again");
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    async fn acknowledge(&mut self, stream: &mut dyn GuestStream) -> Result<(), Broken> {
        for (name, container) in &mut self.containers {
            for (index, (guest_stream, output)) in STREAMS.into_iter().enumerate() {
                let offset = container.writer.stored(output);
                if container.acknowledged[index] != offset {
                    container.acknowledged[index] = offset;
                    let ack = ToGuest::Ack {
                        container: name.clone(),
                        stream: guest_stream,
                        offset,
                    };
                    send(stream, &ack).await?;
                }
            }
        }
        Ok(())
    }

    fn hear_status(&mut self, status: ContainerStatus) -> Result<(), Broken> {
        let Some(container) = self.containers.get_mut(&status.name) else {
            return Err(Broken::Protocol(
                "news of a container that it was not given".to_owned(),
            ));
        };
        match status.state {
            ContainerState::Running { health, restarts, .. } => {
                if container.told == Told::Nothing {
                    container.told = Told::Started;
                    let name = status.name.clone();
                    drop(self.events.send(Event::ContainerStarted { name }));
                }
                drop(self.events.send(Event::ContainerReported {
                    name: status.name,
                    health: match health {
                        Health::Unknown => HealthStatus::Unknown,
                        Health::Healthy => HealthStatus::Healthy,
                        Health::Unhealthy => HealthStatus::Unhealthy,
                    },
                    restarts,
                }));
            }
            // Guests repeat themselves; what counts is when it was first heard.
            _ if container.exited.is_some() => {}
            ended => {
                // Said at once after a daemon took over: it may have ended while nobody listened.
                let followed_ms = self.clock.now().millis_since(self.followed_since);
                container.unseen = followed_ms <= TAKE_OVER_MS;
                container.exited = Some(ended);
            }
        }
        Ok(())
    }

    /// Tells the end of every container whose output is here to the last byte.
    fn tell_exits(&mut self) {
        let now = self.clock.now();
        for (name, container) in &mut self.containers {
            if container.told == Told::Stopped {
                continue;
            }
            let event = match &container.exited {
                Some(ContainerState::Exited {
                    exit_code,
                    oom_killed,
                    finished_at_ms,
                    stdout_bytes,
                    stderr_bytes,
                    ..
                }) if container.writer.received(OutputStream::Stdout) >= *stdout_bytes
                    && container.writer.received(OutputStream::Stderr) >= *stderr_bytes =>
                {
                    if container.told == Told::Nothing {
                        drop(self.events.send(Event::ContainerStarted { name: name.clone() }));
                    }
                    let reason = oom_killed
                        .then(|| "OutOfMemoryError: Container killed due to memory usage".to_owned());
                    let exit_code = Some((*exit_code).clamp(0, 255));
                    // The guest's word counts only for a time when nobody looked.
                    let finished = Timestamp(*finished_at_ms);
                    let unseen = container.unseen && finished < self.followed_since;
                    let finished = finished.max(self.last_seen.unwrap_or(Timestamp(0)));
                    Event::ContainerStopped {
                        name: name.clone(),
                        exit_code,
                        reason,
                        at: (unseen && self.last_seen.is_some()).then_some(finished),
                    }
                }
                Some(ContainerState::StartFailed { reason }) => never_ran(
                    name,
                    Some(format!("CannotStartContainerError: {}", one_line(reason))),
                ),
                Some(ContainerState::NotStarted { reason }) => {
                    // Essential or not, a container that cannot come to its start ends the task.
                    let reason = reason
                        .as_ref()
                        .map(|reason| format!("CannotStartContainerError: {}", one_line(reason)));
                    drop(
                        reason
                            .clone()
                            .map(|reason| self.events.send(Event::Failed { reason })),
                    );
                    never_ran(name, reason)
                }
                _ => continue,
            };
            container.told = Told::Stopped;
            if let Err(error) = container.writer.finish(now) {
                tracing::warn!(%error, "the last line of a container's output is lost");
            }
            drop(self.events.send(event));
        }
        if self
            .containers
            .values()
            .all(|container| container.told == Told::Stopped)
        {
            self.ended.send_replace(true);
        }
    }

    fn finish_logs(&mut self) {
        let now = self.clock.now();
        for container in self
            .containers
            .values_mut()
            .filter(|container| container.told != Told::Stopped)
        {
            if let Err(error) = container.writer.finish(now) {
                tracing::warn!(%error, "the last line of a container's output is lost");
            }
        }
        self.ended.send_replace(true);
    }
}

fn never_ran(name: &str, reason: Option<String>) -> Event {
    Event::ContainerStopped {
        name: name.to_owned(),
        exit_code: None,
        reason,
        at: None,
    }
}

/// Waits until the guest's init has said hello, which it does when it is ready for a task.
pub(crate) async fn wait_for_hello(machine: &impl Machine) -> Result<(), HostError> {
    let mut stream = machine.accept().await?;
    let (mut decoder, mut buffer) = (Decoder::new(), vec![0; READ_BYTES]);
    let hello = tokio::select! {
        hello = read_hello(stream.as_mut(), &mut decoder, &mut buffer) => hello,
        end = machine.ended() => return Err(HostError(end.reason)),
    };
    match hello.map_err(|error| HostError(error.to_string()))? {
        ToHost::Hello { version, .. } if version == berth_protocol::PROTOCOL_VERSION => Ok(()),
        _ => Err(HostError("the guest's first words are not its hello".to_owned())),
    }
}

async fn read_hello(
    stream: &mut dyn GuestStream,
    decoder: &mut Decoder,
    buffer: &mut [u8],
) -> Result<ToHost, Broken> {
    loop {
        match decoder.next::<ToHost>()? {
            Some(Frame::Message(message)) => return Ok(message),
            Some(Frame::Output(_) | Frame::Data(_)) => {
                return Err(Broken::Protocol("output before its hello".to_owned()));
            }
            None => {}
        }
        match stream.read(buffer).await? {
            0 => return Err(Broken::Protocol("it hung up before its hello".to_owned())),
            length => decoder.push(&buffer[..length]),
        }
    }
}

async fn send(stream: &mut dyn GuestStream, message: &ToGuest) -> Result<(), Broken> {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes)?;
    stream.write_all(&bytes).await?;
    Ok(())
}

/// A guest's own words, made fit for a record: one line, bounded.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_REASON_CHARS)
        .collect()
}
