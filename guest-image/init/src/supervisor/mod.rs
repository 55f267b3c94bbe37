//! The loop between the containers and the host: one thread, one epoll, nothing that blocks.

mod commands;
mod container;
mod endpoint;
mod events;
mod health;
mod host;
mod order;
mod output;
mod task;
mod usage;

#[cfg(test)]
pub(crate) use task::example as task_example;

use std::time::{Duration, Instant};

use berth_protocol::frame::Frame;
use berth_protocol::message::{OutputPosition, Stream, TaskSpec, ToGuest, ToHost};
use berth_protocol::{MAX_OUTPUT_BYTES, PROTOCOL_VERSION};
use nix::errno::Errno;

use crate::container::command::Target;
use crate::container::start::Surroundings;
use crate::container::{join, start, stop_signal};
use crate::guest::{cgroup, clock, early, endpoint::listen_inside, power, random};
use crate::supervisor::commands::Commands;
use crate::supervisor::container::Container;
use crate::supervisor::endpoint::Endpoint;
use crate::supervisor::events::{Event, Events};
use crate::supervisor::host::{Link, LinkError};
use crate::supervisor::order::{Member, Readiness};
use crate::supervisor::usage::Measurements;
use crate::wait::reap_one;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a dying machine waits for its last words to leave, and for its containers to be gone.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LAST_REAPING: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum SupervisorError {
    #[error(transparent)]
    Early(#[from] early::EarlyError),
    #[error("cannot wait for events: {0}")]
    Events(#[from] Errno),
}

/// Why the connection cannot go on, beside errors of the link itself.
#[derive(Debug, thiserror::Error)]
enum ConversationError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the host speaks version {0} of the protocol, not {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("the host did not begin with a hello")]
    NoHello,
    #[error("the host said hello twice")]
    SecondHello,
    #[error("the host sent output")]
    Output,
}

/// Prepares the machine and serves the host until it says to power off.
pub(crate) fn run() -> i32 {
    let failure = match prepare() {
        Ok(mut supervisor) => match supervisor.serve() {
            Ok(()) => None,
            Err(error) => Some(supervisor.last_words(error.to_string())),
        },
        Err(error) => Some(error.to_string()),
    };
    if let Some(message) = failure {
        power::log(&message);
    }
    power::power_off()
}

fn prepare() -> Result<Supervisor, SupervisorError> {
    early::prepare()?;
    let endpoint = Endpoint::new(listen_inside());
    Ok(Supervisor {
        events: Events::new()?,
        link: Link::new(),
        greeted: false,
        session: None,
        ready_ms: clock::uptime_ms(),
        containers: Vec::new(),
        surroundings: None,
        commands: Commands::default(),
        endpoint,
        measurements: Measurements::default(),
        stopping: false,
        next_sender: 0,
        powering_off: false,
        buffer: vec![0; BUFFER_BYTES],
    })
}

struct Supervisor {
    events: Events,
    link: Link,
    /// Whether the host said hello on this connection.
    greeted: bool,
    /// Of the task that was given, which shows the host who speaks.
    session: Option<String>,
    ready_ms: u64,
    containers: Vec<Container>,
    /// Of the containers, once the machine is ready for them.
    surroundings: Option<Surroundings>,
    commands: Commands,
    endpoint: Endpoint,
    measurements: Measurements,
    /// All containers are to end.
    stopping: bool,
    /// Which of the streams is first to send, so that none starves.
    next_sender: usize,
    powering_off: bool,
    buffer: Vec<u8>,
}

impl Supervisor {
    fn serve(&mut self) -> Result<(), SupervisorError> {
        while !self.powering_off {
            self.converse(|this, now| this.connect(now));
            self.events.watch(
                &self.link,
                self.commands.listener(),
                self.endpoint.listener(),
                &self.containers,
            )?;
            for event in self.events.wait(self.deadline())? {
                self.handle(event);
            }
            self.look_at_the_clock();
            self.converse(|this, now| this.measure(now));
            self.drain_dead();
            self.advance();
            self.converse(|this, _| this.send_output());
            self.converse(|this, _| Ok(this.link.flush()?));
        }
        self.stop_everything();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let members = members(&self.containers);
        let now = Instant::now();
        let waits = self
            .containers
            .iter()
            .filter(|container| container.waits() && !self.stopping)
            .filter_map(
                |container| match order::readiness(&container.spec, &members, now) {
                    Readiness::Wait(until) => until,
                    Readiness::Ready | Readiness::Never(_) => Some(now),
                },
            );
        let own = self.containers.iter().filter_map(Container::deadline);
        let measurement = self.measurements.deadline().filter(|_| self.greeted);
        own.chain(waits)
            .chain(self.link.deadline())
            .chain(measurement)
            .min()
    }

    /// Kills what has had its time, and begins the health checks that are due.
    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        for index in 0..self.containers.len() {
            let Some(container) = self.containers.get_mut(index) else {
                return;
            };
            let mut changed = container.kill_if_due(now);
            let due = container.due_check(now);
            let begun = due
                .zip(self.surroundings.as_ref())
                .map(|((pid, cgroup, argv), surroundings)| {
                    join::run(pid, cgroup, &container.spec, &surroundings.hostname, argv)
                });
            match begun {
                None => {}
                Some(Ok(pid)) => container.check_began(pid, now),
                Some(Err(error)) => {
                    power::log(&format!("health check of {:?}: {error}", container.spec.name));
                    changed |= container.check_ended(false, now);
                }
            }
            if changed {
                self.report(index);
            }
        }
    }

    /// Starts the containers whose time has come; once all are to end, stops those on which no other one depends.
    fn advance(&mut self) {
        loop {
            self.stopping |= self.containers.iter().any(Container::has_ended_the_task);
            let members = members(&self.containers);
            let now = Instant::now();
            let next = self.containers.iter().enumerate().find_map(|(index, container)| {
                let step = if self.stopping {
                    let may_stop = container.waits() || order::may_stop(&container.spec.name, &members);
                    (container.is_to_be_stopped() && may_stop).then_some(Step::Stop)
                } else if container.waits() {
                    match order::readiness(&container.spec, &members, now) {
                        Readiness::Ready => Some(Step::Start),
                        Readiness::Never(reason) => Some(Step::GiveUp(reason)),
                        Readiness::Wait(_) => None,
                    }
                } else {
                    None
                };
                step.map(|step| (index, step))
            });
            let Some((index, step)) = next else { return };
            match step {
                Step::Start => self.begin(index),
                Step::Stop => self.containers[index].stop(now),
                Step::GiveUp(reason) => {
                    self.containers[index].give_up(Some(reason));
                    self.stopping = true;
                }
            }
            self.report(index);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Child => self.reap(),
            Event::Host => self.converse(|this, _| this.listen()),
            Event::Command => self.accept_command(),
            Event::Endpoint => self.endpoint.accept(),
            Event::Start(index) => {
                if self
                    .containers
                    .get_mut(index)
                    .is_some_and(Container::read_start_pipe)
                {
                    self.report(index);
                }
            }
            Event::Output(index, stream) => {
                if let Some(container) = self.containers.get_mut(index) {
                    container.output(stream).read(&mut self.buffer);
                }
            }
            Event::Ended(index) => {
                if let Some(container) = self.containers.get_mut(index) {
                    container.has_ended(Instant::now());
                }
                self.reap();
            }
        }
    }

    /// Does something with the connection; when that fails the connection is lost, and nothing else.
    fn converse(&mut self, step: impl FnOnce(&mut Self, Instant) -> Result<(), ConversationError>) {
        let now = Instant::now();
        if let Err(error) = step(self, now) {
            if !matches!(error, ConversationError::Link(_)) {
                // The reason is worth a try; a broken link has none to give.
                let _ = self.link.send(&ToHost::Error {
                    message: error.to_string(),
                });
                let _ = self.link.flush();
            }
            self.greeted = false;
            self.events.forget_host();
            self.link.lose(now);
        }
    }

    fn connect(&mut self, now: Instant) -> Result<(), ConversationError> {
        if self.link.advance(now)? {
            self.link.send(&ToHost::Hello {
                version: PROTOCOL_VERSION,
                init_version: env!("CARGO_PKG_VERSION").to_owned(),
                ready_ms: self.ready_ms,
                session: self.session.clone(),
                containers: self.containers.iter().filter_map(Container::status).collect(),
            })?;
            self.link.flush()?;
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), ConversationError> {
        if !self.link.connected() {
            return Ok(());
        }
        self.link.receive(&mut self.buffer)?;
        while let Some(frame) = self.link.next_frame()? {
            match frame {
                Frame::Message(message) => self.obey(message)?,
                Frame::Output(_) | Frame::Data(_) => return Err(ConversationError::Output),
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: ToGuest) -> Result<(), ConversationError> {
        match message {
            ToGuest::Hello { .. } if self.greeted => return Err(ConversationError::SecondHello),
            ToGuest::Hello {
                version: PROTOCOL_VERSION,
                outputs,
            } => {
                self.greeted = true;
                self.link.greeted();
                self.resume(&outputs)?;
            }
            ToGuest::Hello { version, .. } => return Err(ConversationError::Version(version)),
            _ if !self.greeted => return Err(ConversationError::NoHello),
            ToGuest::Run { .. } if self.session.is_some() => self.complain("there is a task already")?,
            ToGuest::Run { task, unix_ms, seed } => {
                let made = clock::set_unix_ms(unix_ms)
                    .map_err(|error| error.to_string())
                    .and_then(|()| random::reseed(&seed).map_err(|error| error.to_string()));
                match made {
                    Ok(()) => self.run_task(&task)?,
                    Err(error) => self.complain(&format!("the task is refused: {error}"))?,
                }
            }
            ToGuest::Ack {
                container,
                stream,
                offset,
            } => {
                let outcome = self
                    .find(&container)
                    .map(|c| c.output(stream).acknowledge(offset));
                match outcome {
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        self.complain(&format!("acknowledgement for {container:?}: {error}"))?
                    }
                    None => self.complain_of_unknown(&container)?,
                }
            }
            ToGuest::Stop => self.stopping = true,
            ToGuest::Signal { container, signal } => {
                match (self.find(&container), stop_signal::check(signal)) {
                    (Some(found), Some(signal)) => found.signal(signal),
                    (Some(_), None) => self.complain(&format!("{signal} is no signal"))?,
                    (None, _) => self.complain_of_unknown(&container)?,
                }
            }
            ToGuest::Measure { seconds } => self.measurements.ask(seconds, Instant::now()),
            ToGuest::PowerOff => self.powering_off = true,
        }
        Ok(())
    }

    fn find(&mut self, name: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.spec.name == name)
    }

    fn complain(&mut self, message: &str) -> Result<(), LinkError> {
        self.link.send(&ToHost::Error {
            message: message.to_owned(),
        })
    }

    fn complain_of_unknown(&mut self, container: &str) -> Result<(), LinkError> {
        self.complain(&format!("there is no container {container:?}"))
    }

    /// Every stream goes on where the host has it; one that the host does not know, from its beginning.
    fn resume(&mut self, positions: &[OutputPosition]) -> Result<(), LinkError> {
        let mut complaints = Vec::new();
        for container in &mut self.containers {
            for stream in STREAMS {
                let known = positions
                    .iter()
                    .find(|p| p.container == container.spec.name && p.stream == stream);
                let offset = known.map_or(0, |position| position.offset);
                if let Err(error) = container.output(stream).window.resume(offset) {
                    complaints.push(format!("{stream:?} of {:?}: {error}", container.spec.name));
                }
            }
        }
        complaints
            .iter()
            .try_for_each(|complaint| self.complain(complaint))
    }

    fn run_task(&mut self, task: &TaskSpec) -> Result<(), LinkError> {
        if let Err(error) = task::check(task) {
            return self.complain(&format!("the task is refused: {error}"));
        }
        self.session = Some(task.session.clone());
        let buffers = output::buffers(&task.containers);
        let containers = task.containers.iter().zip(buffers);
        self.containers = containers
            .map(|(spec, buffer_bytes)| Container::new(spec, buffer_bytes, task.share_pids))
            .collect();
        match task::make_ready(task) {
            Ok(surroundings) => {
                self.surroundings = Some(surroundings);
                if let Err(error) = self.commands.listen() {
                    power::log(&format!("no command can be run: {error}"));
                }
            }
            Err(error) => {
                for index in 0..self.containers.len() {
                    self.containers[index].failed(error.to_string());
                    self.report(index);
                }
            }
        }
        self.advance();
        Ok(())
    }

    /// Tells the host what the containers use, if it wants to know and it is time.
    fn measure(&mut self, now: Instant) -> Result<(), ConversationError> {
        if self.greeted && self.measurements.due(now) {
            // What a slow connection has not taken yet is not added to.
            if self.link.takes_output() {
                let usage = usage::of(&self.containers);
                self.link.send(&ToHost::Usage { usage })?;
            }
        }
        Ok(())
    }

    /// The host wants to run a command in one of the containers that run.
    fn accept_command(&mut self) {
        let Some(surroundings) = &self.surroundings else {
            return;
        };
        let running = self.containers.iter().filter_map(|container| {
            let first = container.running_pid()?;
            // It runs, so there is nothing wrong with its plan.
            Target::new(&container.spec, &surroundings.hostname, first).ok()
        });
        let targets: Vec<Target> = running.collect();
        self.commands.accept(&targets);
    }

    /// Starts a container, for the first time or again.
    fn begin(&mut self, index: usize) {
        let Some(container) = self.containers.get_mut(index) else {
            return;
        };
        // Without surroundings none is left that could begin.
        let Some(surroundings) = &self.surroundings else {
            return container.give_up(None);
        };
        match start::start(&container.spec, surroundings) {
            Ok(started) => container.started(started, Instant::now()),
            Err(error) => container.failed(error.to_string()),
        }
    }

    fn reap(&mut self) {
        while let Some((pid, ending)) = reap_one() {
            self.commands.ended(pid);
            self.endpoint.ended(pid);
            if let Some(index) = self
                .containers
                .iter()
                .position(|container| container.check_pid() == Some(pid))
            {
                let passed = ending.exit_code() == 0;
                if self.containers[index].check_ended(passed, Instant::now()) {
                    self.report(index);
                }
                continue;
            }
            let owner = self
                .containers
                .iter()
                .position(|container| container.pid() == Some(pid));
            // Others are orphans, or containers whose start failed.
            let Some(index) = owner else { continue };
            let Some(container) = self.containers.get_mut(index) else {
                continue;
            };
            let was_starting = container.start_pipe().is_some();
            container.ended(ending);
            if was_starting {
                self.report(index);
            }
        }
    }

    fn drain_dead(&mut self) {
        for index in 0..self.containers.len() {
            if !self.containers[index].drain(&mut self.buffer) {
                continue;
            }
            if self.containers[index].starts_again() && !self.stopping {
                self.begin(index);
            }
            self.report(index);
        }
    }

    /// Tells the host what a container is doing now. Before its hello too: the two sides' first words may cross.
    fn report(&mut self, index: usize) {
        if let Some(status) = self.containers.get(index).and_then(Container::status) {
            self.converse(|this, _| Ok(this.link.send(&ToHost::Container { status })?));
        }
    }

    /// Frames output while the connection takes it, the streams in turn.
    fn send_output(&mut self) -> Result<(), ConversationError> {
        let senders = self.containers.len() * STREAMS.len();
        let mut idle = 0;
        while self.greeted && idle < senders && self.link.takes_output() {
            let sender = self.next_sender % senders;
            self.next_sender = sender + 1;
            let stream = STREAMS[sender % STREAMS.len()];
            let Some(container) = self.containers.get_mut(sender / STREAMS.len()) else {
                break;
            };
            let name = container.spec.name.clone();
            let window = &mut container.output(stream).window;
            let Some((offset, bytes)) = window.unsent(MAX_OUTPUT_BYTES) else {
                idle += 1;
                continue;
            };
            self.link.send_output(&name, stream, offset, bytes)?;
            let count = bytes.len();
            window.mark_sent(count);
            idle = 0;
            // What the socket takes at once makes room for more.
            self.link.flush()?;
        }
        Ok(())
    }

    /// Kills what still runs and waits, within bounds, until it is gone, so that the drives can be released.
    fn stop_everything(&mut self) {
        if let Err(error) = cgroup::kill_task() {
            power::log(&error.to_string());
        }
        let until = Instant::now() + LAST_REAPING;
        while self.containers.iter().any(|container| container.pid().is_some()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            self.reap();
        }
        self.flush_until(Instant::now() + LAST_WORDS);
    }

    /// Tries to tell the host why the machine is about to die.
    fn last_words(&mut self, message: String) -> String {
        let _ = self.link.send(&ToHost::Error {
            message: message.clone(),
        });
        self.flush_until(Instant::now() + LAST_WORDS);
        message
    }

    fn flush_until(&mut self, until: Instant) {
        while self.link.flush().is_ok() && !self.link.flushed() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is to be done with a container next.
enum Step {
    Start,
    Stop,
    GiveUp(String),
}

fn members(containers: &[Container]) -> Vec<Member<'_>> {
    containers
        .iter()
        .map(|container| Member {
            spec: &container.spec,
            progress: container.progress(),
        })
        .collect()
}
