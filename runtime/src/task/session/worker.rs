//! The conversation on one connection after the other, with who has shown to be the guest's init: what is heard is stored
//! and told, what is wanted is said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use berth_protocol::frame::{Decoder, Frame, OutputFrame};
use berth_protocol::message::{
    ContainerState, ContainerStatus, Health, OutputPosition, Stream, TaskSpec, ToGuest, ToHost,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::door::{Door, Greeting};
use super::{Broken, HandOver, Ties, Wanted, send};
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::logs::OutputWriter;
use crate::model::Timestamp;
use crate::model::log::OutputStream;
use crate::model::task::HealthStatus;
use crate::task::host::GuestStream;
use crate::task::lifecycle::Event;
use crate::task::read_buffer::ReadBuffer;
use crate::task::usage::{self, History};

const FRAMES_AT_ONCE: u32 = 64;
/// Longest reason of a guest that is passed on, in characters.
const MAX_REASON_CHARS: usize = 512;
/// A guest's errors that are logged; an honest one has few.
const MOST_COMPLAINTS: u32 = 100;
const RETRY: Duration = Duration::from_secs(1);
const FINISH_TRIES: u32 = 60;
/// For so long after a daemon took a task over, a guest may bring news from before.
const TAKE_OVER_MS: u64 = 30_000;
/// The health and restarts of a container are told no more often, and only the last ones: each change is stored.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 1000 });
const STREAMS: [(Stream, OutputStream); 2] = [
    (Stream::Stdout, OutputStream::Stdout),
    (Stream::Stderr, OutputStream::Stderr),
];

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
    /// When its end and all of its output were here, stored or not.
    over_at: Option<Timestamp>,
    /// It ended while nobody listened.
    unseen: bool,
    acknowledged: [u64; 2],
    /// Its health and restarts, where they are not told yet, and from when on they may be.
    report: Option<(HealthStatus, u32)>,
    next_report: Instant,
}

impl Container {
    /// It has ended, or never begun, and its output is here to the last byte.
    fn is_over(&self) -> bool {
        match &self.exited {
            Some(ContainerState::Exited {
                stdout_bytes,
                stderr_bytes,
                ..
            }) => {
                self.writer.received(OutputStream::Stdout) >= *stdout_bytes
                    && self.writer.received(OutputStream::Stderr) >= *stderr_bytes
            }
            Some(ContainerState::StartFailed { .. } | ContainerState::NotStarted { .. }) => true,
            _ => false,
        }
    }

    fn new(writer: OutputWriter) -> Container {
        Container {
            writer,
            told: Told::Nothing,
            exited: None,
            over_at: None,
            unseen: false,
            acknowledged: [0; 2],
            report: None,
            next_report: Instant::now(),
        }
    }

    fn take_report(&mut self, name: &str) -> Option<Event> {
        let (health, restarts) = self.report.take()?;
        Some(Event::ContainerReported {
            name: name.to_owned(),
            health,
            restarts,
        })
    }
}

pub(super) struct Worker {
    task: TaskSpec,
    hand_over: Option<HandOver>,
    containers: BTreeMap<String, Container>,
    clock: Arc<dyn Clock>,
    /// When an earlier daemon last followed this task, and since when this one does.
    last_seen: Option<Timestamp>,
    followed_since: Timestamp,
    events: mpsc::Sender<Event>,
    /// What happened, until there is room for it: a few for each container, since nothing is heard meanwhile.
    untold: VecDeque<Event>,
    wanted: watch::Receiver<Wanted>,
    measurements: usage::Wanted,
    history: Arc<History>,
    complaints: u32,
    /// The guest has shown that it has its task.
    known: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

impl Worker {
    pub fn new(
        task: TaskSpec,
        hand_over: Option<HandOver>,
        writers: BTreeMap<String, OutputWriter>,
        ties: Ties,
        wanted: watch::Receiver<Wanted>,
        known: watch::Sender<bool>,
        ended: watch::Sender<bool>,
    ) -> Worker {
        let containers = writers
            .into_iter()
            .map(|(name, writer)| (name, Container::new(writer)));
        Worker {
            task,
            hand_over,
            containers: containers.collect(),
            followed_since: ties.clock.now(),
            clock: ties.clock,
            last_seen: ties.last_seen,
            events: ties.events,
            untold: VecDeque::new(),
            wanted,
            measurements: ties.history.wanted(),
            history: ties.history,
            complaints: 0,
            known,
            ended,
        }
    }

    /// One at a time, which is all that an init has: a newer one of its takes the place of the one that is served.
    pub async fn serve_connections(&mut self, door: &mut Door) {
        let mut greeting = door.next(self.hand_over.is_some()).await;
        loop {
            greeting = tokio::select! {
                newer = door.next(false) => newer,
                served = self.serve(greeting) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a guest's connection broke");
                    }
                    door.next(self.hand_over.is_some()).await
                }
            };
        }
    }

    /// May be broken off at any time: the next connection goes on from where this one came.
    async fn serve(&mut self, greeting: Greeting) -> Result<(), Broken> {
        let Greeting {
            mut stream,
            mut decoder,
            session,
            containers,
        } = greeting;
        let stream = stream.as_mut();
        let mut buffer = ReadBuffer::new();
        tracing::debug!(task = self.task.task_id, "its guest says hello");
        self.say_hello(stream).await?;
        // A guest is given its task once.
        match (session, self.hand_over.take()) {
            (None, Some(HandOver { secrets, mark })) => {
                mark.await;
                faults::pass(Point::HandOverMarked);
                let run = secrets.run_message(&self.task, self.clock.now().0, rand::random())?;
                drop(secrets);
                stream.write_all(&run).await?;
                faults::pass(Point::HandedOver);
                tracing::debug!(task = self.task.task_id, "its guest has it");
            }
            _ => {
                self.known.send_replace(true);
                for status in containers {
                    self.hear_status(status)?;
                }
            }
        }
        let mut said = Wanted::default();
        self.measurements.begin();
        loop {
            self.take_frames(&mut decoder).await?;
            self.note_reports();
            self.store_the_last().await;
            self.note_exits();
            self.tell().await;
            self.acknowledge(stream).await?;
            let wanted = *self.wanted.borrow_and_update();
            Self::say_wanted(stream, &mut said, wanted).await?;
            if let Some(seconds) = self.measurements.due() {
                send(stream, &ToGuest::Measure { seconds }).await?;
            }
            let next_report = self.next_report();
            tokio::select! {
                read = stream.read(buffer.room()) => match read? {
                    0 => return Ok(()),
                    length => {
                        decoder.push(&buffer.room()[..length]);
                        buffer.used(length);
                    }
                },
                changed = self.wanted.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = self.measurements.changed() => {}
                () = until(next_report) => {}
            }
        }
    }

    /// Passes on what happened, as soon as there is room for it.
    async fn tell(&mut self) {
        while !self.untold.is_empty() {
            // Where nobody listens any more, nobody is told.
            let Ok(room) = self.events.reserve().await else {
                return self.untold.clear();
            };
            if let Some(event) = self.untold.pop_front() {
                room.send(event);
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

    async fn say_wanted(
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
        let mut taken = 0_u32;
        while let Some(frame) = decoder.next::<ToHost>()? {
            taken = taken.wrapping_add(1);
            // A guest may send many small ones; others get their turn in between.
            if taken.is_multiple_of(FRAMES_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            match frame {
                Frame::Output(output) => self.store(output).await?,
                Frame::Data(_) => return Err(Broken::Protocol("data of no command".to_owned())),
                Frame::Message(ToHost::Container { status }) => self.hear_status(status)?,
                Frame::Message(ToHost::Usage { usage }) => {
                    let known: Vec<&str> = self.containers.keys().map(String::as_str).collect();
                    self.history.keep(usage, &known, self.clock.as_ref());
                }
                Frame::Message(ToHost::Error { message }) => {
                    self.complaints = self.complaints.saturating_add(1);
                    if self.complaints <= MOST_COMPLAINTS {
                        tracing::warn!(message = one_line(&message), "a guest reports an error");
                    }
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
                    self.untold
                        .push_back(Event::ContainerStarted { name: status.name });
                }
                let health = match health {
                    Health::Unknown => HealthStatus::Unknown,
                    Health::Healthy => HealthStatus::Healthy,
                    Health::Unhealthy => HealthStatus::Unhealthy,
                };
                if container.told == Told::Started {
                    container.report = Some((health, restarts));
                }
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

    /// When the next health of a container may be told.
    fn next_report(&self) -> Option<Instant> {
        let containers = self.containers.values();
        let waiting = containers.filter(|container| container.report.is_some());
        waiting.map(|container| container.next_report).min()
    }

    fn note_reports(&mut self) {
        let now = Instant::now();
        for (name, container) in &mut self.containers {
            if container.next_report <= now && container.report.is_some() {
                container.next_report = now + REPORT_INTERVAL;
                self.untold.extend(container.take_report(name));
            }
        }
    }

    /// What containers that have ended said last.
    async fn store_the_last(&mut self) {
        for container in self.containers.values_mut() {
            if container.told != Told::Stopped && container.is_over() {
                // What waits for room on a disk is not billed.
                container.over_at.get_or_insert(self.clock.now());
                finish(&mut container.writer, self.clock.as_ref()).await;
            }
        }
    }

    /// The end of every container whose output is here to the last byte.
    fn note_exits(&mut self) {
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
                        self.untold
                            .push_back(Event::ContainerStarted { name: name.clone() });
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
                        at: match unseen && self.last_seen.is_some() {
                            true => Some(finished),
                            false => container.over_at,
                        },
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
                    self.untold
                        .extend(reason.clone().map(|reason| Event::Failed { reason }));
                    never_ran(name, reason)
                }
                _ => continue,
            };
            self.untold.extend(container.take_report(name));
            container.told = Told::Stopped;
            if let Err(error) = container.writer.finish(now) {
                tracing::warn!(%error, "the last output of a container is lost");
            }
            self.untold.push_back(event);
        }
        if self
            .containers
            .values()
            .all(|container| container.told == Told::Stopped)
        {
            self.ended.send_replace(true);
        }
    }

    /// Nothing comes any more: what was heard is stored and told.
    pub async fn finish(&mut self) {
        for container in self
            .containers
            .values_mut()
            .filter(|container| container.told != Told::Stopped)
        {
            finish(&mut container.writer, self.clock.as_ref()).await;
        }
        // An end that was heard, and waited for its output to be stored.
        self.note_exits();
        self.ended.send_replace(true);
        self.tell().await;
    }
}

/// Stores what a container said last. A full disk has time to get room again; what finds none is lost, which is said.
async fn finish(writer: &mut OutputWriter, clock: &dyn Clock) {
    for _ in 0..FINISH_TRIES {
        match writer.finish(clock.now()) {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot store the last output of a container"),
        }
        tokio::time::sleep(RETRY).await;
    }
    tracing::warn!("the last output of a container is lost");
}

/// Never where there is nothing to wait for.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
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

/// A guest's own words, made fit for a record: one line, bounded.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_REASON_CHARS)
        .collect()
}
