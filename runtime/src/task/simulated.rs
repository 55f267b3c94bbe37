//! A host and machines that are not there, for tests of thousands of tasks, faults and clocks. The guests speak the real
//! protocol over an in-memory stream.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use berth_protocol::frame::{Decoder, Frame, encode_message, encode_output};
use berth_protocol::message::{
    ContainerState, ContainerStatus, ContainerUsage, Health, Stream, TaskSpec, TaskUsage, ToGuest, ToHost,
};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

use super::host::*;
use crate::image::Credentials;
use crate::model::Timestamp;
use crate::model::isolation::Isolation;
use crate::model::task::{Eni, TaskId};
use crate::model::volume::VolumeId;
use crate::runtime::PullStatus;

/// What the container of a simulated guest does.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub output: Vec<u8>,
    /// None runs until it is stopped.
    pub exit_code: Option<i32>,
}

#[derive(Default)]
struct State {
    machines: HashMap<TaskId, Arc<SimulatedMachine>>,
    attached: HashMap<String, Ipv4Addr>,
    booted: usize,
    volumes: HashSet<VolumeId>,
    /// The disk of the volume of each machine.
    disks: HashMap<TaskId, PathBuf>,
    /// What the machine of each task was asked to share.
    isolation: HashMap<TaskId, Isolation>,
}

/// What pulling an image of this name comes to.
pub(crate) type SimulatedPull =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<(), HostError>> + Send + Sync>;

/// Outlives the runtime that uses it, as a real host does.
pub(crate) struct SimulatedHost {
    pub script: Script,
    pub pull: SimulatedPull,
    pub resources: Resources,
    /// The tasks that guests were given.
    pub told: Arc<Mutex<Vec<TaskSpec>>>,
    state: Mutex<State>,
}

impl SimulatedHost {
    pub(crate) fn new(script: Script) -> SimulatedHost {
        SimulatedHost {
            script,
            pull: Box::new(|_| Box::pin(async { Ok(()) })),
            resources: Resources {
                cpu_units: 64 << 10,
                memory_bytes: 8 << 30,
                disk_bytes: 1 << 40,
            },
            told: Arc::default(),
            state: Mutex::default(),
        }
    }

    pub(crate) fn kill(&self, task: &TaskId) {
        self.state.lock().unwrap().machines[task].end("killed by signal 9");
    }

    /// The container of a guest ends, at this time by the guest's clock; the guest says so twice.
    pub(crate) fn exit(&self, task: &TaskId, exit_code: i32, at: Timestamp) {
        let state = self.state.lock().unwrap();
        state.machines[task].exit.send_replace(Some((exit_code, at)));
    }

    /// As a daemon would that did not come so far as to pause it.
    pub(crate) fn resume(&self, task: &TaskId) {
        let state = self.state.lock().unwrap();
        state.machines[task].paused.store(false, Ordering::SeqCst);
    }

    /// A container of this task connects to its endpoint.
    pub(crate) async fn connect_endpoint(&self, task: &TaskId) -> DuplexStream {
        let (mine, theirs) = tokio::io::duplex(1 << 16);
        let connect = self.state.lock().unwrap().machines[task].connect.clone();
        connect.send((GuestPort::Endpoint, theirs)).await.unwrap();
        mine
    }

    pub(crate) fn is_paused(&self, task: &TaskId) -> bool {
        self.state.lock().unwrap().machines[task]
            .paused
            .load(Ordering::SeqCst)
    }

    /// Machines that were started.
    pub(crate) fn booted(&self) -> usize {
        self.state.lock().unwrap().booted
    }

    /// What the task's machine was asked to share when it was started.
    pub(crate) fn isolation(&self, task: &TaskId) -> Isolation {
        self.state.lock().unwrap().isolation[task]
    }

    /// A machine for the task, whose guest has no task yet.
    pub(crate) fn boot(&self, task: TaskId) -> Arc<dyn Machine> {
        let machine = SimulatedMachine::boot(self.script.clone(), Arc::clone(&self.told));
        let mut state = self.state.lock().unwrap();
        state.booted += 1;
        state.machines.insert(task, Arc::clone(&machine));
        machine
    }

    /// The disks of volumes that are there.
    pub(crate) fn volumes(&self) -> HashSet<VolumeId> {
        self.state.lock().unwrap().volumes.clone()
    }

    /// Machines and interfaces that are there.
    pub(crate) fn left(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.machines.len(), state.attached.len())
    }
}

impl Host for SimulatedHost {
    fn attach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<Option<OwnedFd>, HostError>> {
        self.state
            .lock()
            .unwrap()
            .attached
            .insert(eni.id.clone(), eni.address);
        Box::pin(async { Ok(None) })
    }

    fn detach_network<'a>(&'a self, eni: &'a Eni) -> BoxFuture<'a, Result<(), HostError>> {
        self.state.lock().unwrap().attached.remove(&eni.id);
        Box::pin(async { Ok(()) })
    }

    fn pull_image<'a>(
        &'a self,
        _task: &'a TaskId,
        image: &'a str,
        _credentials: Option<Credentials>,
        _max_bytes: u64,
        _progress: &'a (dyn Fn(PullStatus) + Send + Sync),
    ) -> BoxFuture<'a, Result<PulledImage, HostError>> {
        Box::pin(async move {
            (self.pull)(image.to_owned()).await?;
            Ok(PulledImage {
                digest: format!("sha256:{}", hex::encode(Sha256::digest(image.as_bytes()))),
                rootfs: "/image".into(),
                entrypoint: vec![],
                cmd: vec!["run".into()],
                env: vec![],
                working_dir: String::new(),
                user: String::new(),
                stop_signal: None,
            })
        })
    }

    fn start_machine(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, HostError>> {
        let mut state = self.state.lock().unwrap();
        if let Some(disk) = &spec.volume {
            assert!(
                state.volumes.iter().any(|id| self.volume_path(id) == *disk),
                "the disk {disk:?} is not there"
            );
            assert!(
                state.disks.values().all(|other| other != disk),
                "the disk {disk:?} is another machine's"
            );
            state.disks.insert(spec.task.clone(), disk.clone());
        }
        state.isolation.insert(spec.task.clone(), spec.isolation);
        drop(state);
        let machine = self.boot(spec.task);
        Box::pin(async { Ok(machine) })
    }

    fn find_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<Found, HostError>> {
        let found = match self.state.lock().unwrap().machines.get(task) {
            None => Found::Nothing,
            Some(machine) => match machine.ended.borrow().clone() {
                Some(end) => Found::Ended(end),
                None => Found::Running(Arc::clone(machine) as Arc<dyn Machine>),
            },
        };
        Box::pin(async { Ok(found) })
    }

    fn machine_metrics<'a>(
        &'a self,
        task: &'a TaskId,
    ) -> BoxFuture<'a, Result<Option<MachineMetrics>, HostError>> {
        let there = self.state.lock().unwrap().machines.contains_key(task);
        Box::pin(async move { Ok(there.then(MachineMetrics::default)) })
    }

    fn connect_guest<'a>(
        &'a self,
        _: &'a TaskId,
        _: u32,
    ) -> BoxFuture<'a, Result<Option<Box<dyn GuestStream>>, HostError>> {
        Box::pin(async { Ok(None) })
    }

    fn remove_machine<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), HostError>> {
        let mut state = self.state.lock().unwrap();
        state.disks.remove(task);
        if let Some(machine) = state.machines.remove(task) {
            machine.end("removed");
        }
        Box::pin(async { Ok(()) })
    }

    fn make_volume(&self, disk: VolumeDisk) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            // A daemon may end in the middle.
            tokio::task::yield_now().await;
            let mut state = self.state.lock().unwrap();
            if let Some(source) = &disk.source {
                if !state.volumes.contains(source) {
                    return Err(HostError(format!("cannot open {source}")));
                }
                let path = self.volume_path(source);
                assert!(
                    state.disks.values().all(|other| *other != path),
                    "{source} is copied while a machine writes to it"
                );
            }
            state.volumes.insert(disk.id);
            Ok(())
        })
    }

    fn remove_volume<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.state.lock().unwrap();
            let path = self.volume_path(id);
            assert!(
                state.disks.values().all(|other| *other != path),
                "{id} is removed under a machine"
            );
            state.volumes.remove(id);
            Ok(())
        })
    }

    fn volume_path(&self, id: &VolumeId) -> PathBuf {
        Path::new("/volumes").join(id.as_str())
    }

    fn volume_used_bytes(&self, _: &VolumeId) -> u64 {
        1 << 20
    }

    fn resources(&self) -> BoxFuture<'_, Result<Resources, HostError>> {
        Box::pin(std::future::ready(Ok(self.resources)))
    }

    fn dns_servers(&self) -> Vec<Ipv4Addr> {
        Vec::new()
    }

    fn mtu(&self) -> u16 {
        1500
    }
}

struct SimulatedMachine {
    connections: tokio::sync::Mutex<mpsc::Receiver<(GuestPort, DuplexStream)>>,
    connect: mpsc::Sender<(GuestPort, DuplexStream)>,
    paused: AtomicBool,
    exit: watch::Sender<Option<(i32, Timestamp)>>,
    ended: watch::Sender<Option<MachineEnd>>,
}

impl SimulatedMachine {
    fn boot(script: Script, told: Arc<Mutex<Vec<TaskSpec>>>) -> Arc<SimulatedMachine> {
        let (connect, connections) = mpsc::channel(1);
        let machine = Arc::new(SimulatedMachine {
            connections: tokio::sync::Mutex::new(connections),
            connect: connect.clone(),
            paused: AtomicBool::new(false),
            exit: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        });
        let ended = machine.ended.clone();
        let exit = machine.exit.subscribe();
        tokio::spawn(async move {
            let mut unplugged = ended.subscribe();
            tokio::select! {
                () = Guest::new(script, told, exit).run(connect) => { ended.send_replace(Some(end("the guest powered off"))); }
                _ = unplugged.wait_for(Option::is_some) => {}
            }
        });
        machine
    }

    fn end(&self, reason: &str) {
        self.ended
            .send_if_modified(|ended| ended.is_none() && ended.replace(end(reason)).is_none());
    }
}

fn end(reason: &str) -> MachineEnd {
    MachineEnd {
        reason: reason.to_owned(),
        at: None,
    }
}

impl Machine for SimulatedMachine {
    fn accept(&self) -> BoxFuture<'_, Result<Accepted, HostError>> {
        Box::pin(async {
            let connection = self.connections.lock().await.recv().await;
            let (port, stream) = connection.ok_or_else(|| HostError("gone".to_owned()))?;
            Ok((port, Box::new(stream) as Box<dyn GuestStream>))
        })
    }

    fn ended(&self) -> BoxFuture<'_, MachineEnd> {
        Box::pin(async {
            let mut ended = self.ended.subscribe();
            let ended = ended.wait_for(Option::is_some).await.unwrap();
            ended.clone().unwrap()
        })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), HostError>> {
        self.paused.store(true, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), HostError>> {
        self.paused.store(false, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.end("killed") })
    }
}

/// A guest with one container.
struct Guest {
    script: Script,
    told: Arc<Mutex<Vec<TaskSpec>>>,
    exit: watch::Receiver<Option<(i32, Timestamp)>>,
    container: Option<String>,
    session: Option<String>,
    state: Option<ContainerState>,
    acknowledged: usize,
}

impl Guest {
    fn new(
        script: Script,
        told: Arc<Mutex<Vec<TaskSpec>>>,
        exit: watch::Receiver<Option<(i32, Timestamp)>>,
    ) -> Guest {
        Guest {
            script,
            told,
            exit,
            container: None,
            session: None,
            state: None,
            acknowledged: 0,
        }
    }

    /// Until it is told to power off.
    async fn run(mut self, connect: mpsc::Sender<(GuestPort, DuplexStream)>) {
        loop {
            let (mine, theirs) = tokio::io::duplex(1 << 16);
            if connect.send((GuestPort::Init, theirs)).await.is_err() {
                return std::future::pending().await;
            }
            if self.talk(mine).await.is_ok() {
                return;
            }
        }
    }

    fn statuses(&self) -> Vec<ContainerStatus> {
        let pair = self.container.clone().zip(self.state.clone());
        pair.map(|(name, state)| ContainerStatus { name, state })
            .into_iter()
            .collect()
    }

    fn exited(&self, exit_code: i32) -> ContainerState {
        ContainerState::Exited {
            exit_code,
            signal: None,
            oom_killed: false,
            started_at_ms: 0,
            finished_at_ms: 0,
            stdout_bytes: self.script.output.len() as u64,
            stderr_bytes: 0,
        }
    }

    async fn talk(&mut self, mut stream: DuplexStream) -> std::io::Result<()> {
        let mut decoder = Decoder::new();
        let mut buffer = [0; 4096];
        let hello = ToHost::Hello {
            version: berth_protocol::PROTOCOL_VERSION,
            init_version: "simulated".into(),
            ready_ms: 1,
            session: self.session.clone(),
            containers: self.statuses(),
        };
        say(&mut stream, &hello).await?;
        loop {
            match decoder.next::<ToGuest>().unwrap() {
                Some(Frame::Message(message)) => match message {
                    ToGuest::Hello { outputs, .. } => {
                        let stdout = outputs.iter().find(|output| output.stream == Stream::Stdout);
                        self.acknowledged = stdout.map_or(0, |output| output.offset as usize);
                        if self.container.is_some() {
                            self.send_output(&mut stream).await?;
                        }
                    }
                    ToGuest::Run { task, .. } => {
                        self.told.lock().unwrap().push(*task.clone());
                        self.container = Some(task.containers[0].name.clone());
                        self.session = Some(task.session.clone());
                        self.change(
                            &mut stream,
                            ContainerState::Running {
                                pid: 1,
                                started_at_ms: 0,
                                health: Health::Unknown,
                                restarts: 0,
                            },
                        )
                        .await?;
                        self.send_output(&mut stream).await?;
                        if let Some(code) = self.script.exit_code {
                            self.change(&mut stream, self.exited(code)).await?;
                        }
                    }
                    ToGuest::Stop if matches!(self.state, Some(ContainerState::Running { .. })) => {
                        self.change(&mut stream, self.exited(143)).await?;
                    }
                    ToGuest::Measure { .. } => {
                        let usage = TaskUsage {
                            containers: vec![ContainerUsage {
                                name: self.container.clone().unwrap_or_default(),
                                ..ContainerUsage::default()
                            }],
                            ..TaskUsage::default()
                        };
                        say(&mut stream, &ToHost::Usage { usage }).await?;
                    }
                    ToGuest::PowerOff => return Ok(()),
                    _ => {}
                },
                Some(Frame::Output(_) | Frame::Data(_)) => panic!("the host sends no output"),
                None => tokio::select! {
                    read = stream.read(&mut buffer) => match read? {
                        0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                        length => decoder.push(&buffer[..length]),
                    },
                    Ok(()) = self.exit.changed() => {
                        let (code, at) = self.exit.borrow_and_update().expect("an exit is never taken back");
                        let mut exited = self.exited(code);
                        if let ContainerState::Exited { finished_at_ms, .. } = &mut exited {
                            *finished_at_ms = at.0;
                        }
                        self.change(&mut stream, exited.clone()).await?;
                        self.change(&mut stream, exited).await?;
                    }
                },
            }
        }
    }

    async fn change(&mut self, stream: &mut DuplexStream, state: ContainerState) -> std::io::Result<()> {
        self.state = Some(state);
        for status in self.statuses() {
            say(stream, &ToHost::Container { status }).await?;
        }
        Ok(())
    }

    async fn send_output(&self, stream: &mut DuplexStream) -> std::io::Result<()> {
        let Some(name) = &self.container else {
            return Ok(());
        };
        let mut frame = Vec::new();
        for (index, piece) in self.script.output[self.acknowledged..].chunks(1000).enumerate() {
            let offset = (self.acknowledged + index * 1000) as u64;
            encode_output(name, Stream::Stdout, offset, piece, &mut frame).unwrap();
        }
        stream.write_all(&frame).await
    }
}

async fn say(stream: &mut DuplexStream, message: &ToHost) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes).unwrap();
    stream.write_all(&bytes).await
}
