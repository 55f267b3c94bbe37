//! Sessions with guests that are not what they should be.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_protocol::PROTOCOL_VERSION;
use berth_protocol::frame::Frame;
use berth_protocol::message::{ContainerState, ContainerStatus, Health, SEED_BYTES};
use tokio::io::{AsyncReadExt, DuplexStream};

use super::door::MOST_HEARD;
use super::worker::REPORT_INTERVAL;
use super::*;
use crate::clock::SimulatedClock;
use crate::logs::Outputs;
use crate::model::task::TaskId;
use crate::task::endpoint::Endpoints;
use crate::task::host::{Accepted, MachineEnd};

const SESSION: &str = "only init knows it";
/// Long enough for what must not happen to happen now and then, and for a flood to come to a stand.
const A_WHILE: Duration = Duration::from_millis(300);

/// A machine that is nothing but its guest's connections.
struct Connections(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

impl Machine for Connections {
    fn accept(&self) -> BoxFuture<'_, Result<Accepted, HostError>> {
        Box::pin(async {
            let stream = self.0.lock().await.recv().await;
            let stream = stream.ok_or_else(|| HostError("gone".to_owned()))?;
            Ok((GuestPort::Init, Box::new(stream) as Box<dyn GuestStream>))
        })
    }

    fn ended(&self) -> BoxFuture<'_, MachineEnd> {
        Box::pin(std::future::pending())
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A session with one container, and everything around it.
struct World {
    session: Session,
    connect: mpsc::Sender<DuplexStream>,
    events: mpsc::Receiver<Event>,
    marked: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl World {
    /// With `marking`, a guest without its task is given it once that has ended.
    fn new(marking: Option<BoxFuture<'static, ()>>) -> World {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path()).unwrap();
        let id = TaskId::random();
        let writers = BTreeMap::from([("app".to_owned(), outputs.writer(&id, "app").unwrap())]);
        let task = TaskSpec {
            session: SESSION.to_owned(),
            hostname: "task".to_owned(),
            memory_bytes: 1 << 29,
            pids: 64,
            network: None,
            containers: vec![],
            volumes: vec![],
            volume_drives: vec![],
            share_pids: false,
            task_id: id.to_string(),
            scratch_drive: "scratch".to_owned(),
        };
        let marked = Arc::new(AtomicBool::new(false));
        let hand_over = marking.map(|marking| {
            let marked = Arc::clone(&marked);
            HandOver {
                secrets: TaskSecrets::default(),
                mark: Box::pin(async move {
                    marking.await;
                    marked.store(true, Ordering::SeqCst);
                }),
            }
        });
        let (connect, connections) = mpsc::channel(1);
        let (tell, events) = mpsc::channel(MOST_EVENTS);
        let ties = Ties {
            clock: Arc::new(SimulatedClock::at(Timestamp(1_700_000_000_000))),
            last_seen: None,
            events: tell,
            endpoint: Endpoints::default().of(id),
            history: Arc::default(),
        };
        let machine = Arc::new(Connections(tokio::sync::Mutex::new(connections)));
        World {
            session: Session::start(machine, task, hand_over, writers, ties),
            connect,
            events,
            marked,
            _dir: dir,
        }
    }

    async fn connect(&self) -> DuplexStream {
        let (mine, theirs) = tokio::io::duplex(4096);
        self.connect.send(theirs).await.unwrap();
        mine
    }

    /// A connection whose first word is a hello with this session.
    async fn greet(&self, session: Option<&str>) -> DuplexStream {
        let mut stream = self.connect().await;
        let hello = ToHost::Hello {
            version: PROTOCOL_VERSION,
            init_version: "a test".to_owned(),
            ready_ms: 1,
            session: session.map(str::to_owned),
            containers: vec![],
        };
        say(&mut stream, &hello).await.unwrap();
        stream
    }
}

async fn say(stream: &mut DuplexStream, message: &ToHost) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes).unwrap();
    stream.write_all(&bytes).await
}

/// What the host says; none once it has hung up.
async fn hear(stream: &mut DuplexStream, decoder: &mut Decoder) -> Option<ToGuest> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(Frame::Message(message)) = decoder.next::<ToGuest>().unwrap() {
            return Some(message);
        }
        match stream.read(&mut buffer).await.unwrap_or(0) {
            0 => return None,
            length => decoder.push(&buffer[..length]),
        }
    }
}

async fn is_greeted(stream: &mut DuplexStream) -> bool {
    matches!(
        hear(stream, &mut Decoder::new()).await,
        Some(ToGuest::Hello { .. })
    )
}

fn running(health: Health, restarts: u32) -> ToHost {
    status(ContainerState::Running {
        pid: 1,
        started_at_ms: 0,
        health,
        restarts,
    })
}

fn exited(exit_code: i32, stdout_bytes: u64) -> ToHost {
    status(ContainerState::Exited {
        exit_code,
        signal: None,
        oom_killed: false,
        started_at_ms: 0,
        finished_at_ms: 0,
        stdout_bytes,
        stderr_bytes: 0,
    })
}

fn status(state: ContainerState) -> ToHost {
    let name = "app".to_owned();
    ToHost::Container {
        status: ContainerStatus { name, state },
    }
}

#[tokio::test]
async fn a_guest_is_given_its_task_once_and_not_before_that_is_written_down() {
    let (written, write) = tokio::sync::oneshot::channel::<()>();
    let world = World::new(Some(Box::pin(async { drop(write.await) })));
    let mut init = world.greet(None).await;
    let mut decoder = Decoder::new();
    let hello = hear(&mut init, &mut decoder).await;
    assert!(matches!(hello, Some(ToGuest::Hello { .. })), "{hello:?}");
    let run = tokio::time::timeout(A_WHILE, hear(&mut init, &mut decoder)).await;
    assert!(run.is_err(), "given before it was written down: {run:?}");
    written.send(()).unwrap();
    match hear(&mut init, &mut decoder).await {
        Some(ToGuest::Run { task, seed, .. }) => {
            assert_eq!((task.session.as_str(), seed.len()), (SESSION, SEED_BYTES));
        }
        other => panic!("{other:?}"),
    }
    assert!(world.marked.load(Ordering::SeqCst));

    // Whoever is in there now may say the same.
    let mut stranger = world.greet(None).await;
    assert_eq!(hear(&mut stranger, &mut Decoder::new()).await, None);
    let mut init = world.greet(Some(SESSION)).await;
    assert!(is_greeted(&mut init).await);
    world.session.recognized().await;
}

#[tokio::test]
async fn a_guest_that_had_its_task_from_somebody_else_shows_it_or_is_not_heard() {
    let world = World::new(None);
    for session in [None, Some(""), Some("a guess")] {
        let mut stranger = world.greet(session).await;
        assert_eq!(
            hear(&mut stranger, &mut Decoder::new()).await,
            None,
            "{session:?}"
        );
    }
    let known = tokio::time::timeout(A_WHILE, world.session.recognized()).await;
    assert!(known.is_err());
    assert!(is_greeted(&mut world.greet(Some(SESSION)).await).await);
    world.session.recognized().await;
}

#[tokio::test]
async fn nobody_who_says_nothing_holds_up_the_guests_init() {
    let world = World::new(None);
    let mut silent = Vec::new();
    for _ in 0..3 * MOST_HEARD {
        silent.push(world.connect().await);
    }
    let mut init = world.greet(Some(SESSION)).await;
    assert!(is_greeted(&mut init).await);
    // Those who came last are not through with their silence; who came first had to make room.
    let mut last = silent.pop().unwrap();
    let last = tokio::time::timeout(A_WHILE, last.read(&mut [0])).await;
    assert!(last.is_err(), "{last:?}");
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);

    // Init's next connection takes the place of one that hangs.
    let mut next = world.greet(Some(SESSION)).await;
    assert!(is_greeted(&mut next).await);
    let mut rest = Vec::new();
    init.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_hello_that_never_ends_is_not_heard_to_its_end() {
    let world = World::new(None);
    let mut stream = world.connect().await;
    stream.write_all(&(1024 * 1024_u32).to_le_bytes()).await.unwrap();
    let written = async {
        let mut written = 0;
        while stream.write_all(&[b' '; 1024]).await.is_ok() {
            written += 1024;
        }
        written
    };
    let written = written.await;
    assert!((50_000..100_000).contains(&written), "{written}");
}

#[tokio::test]
async fn a_guest_that_floods_is_not_listened_to_and_its_exit_code_arrives() {
    let mut world = World::new(None);
    let mut init = world.greet(Some(SESSION)).await;
    assert!(is_greeted(&mut init).await);
    // Nobody takes what happens: the store of a full disk.
    let flood = async {
        for round in 0..1_000_000 {
            let health = [Health::Healthy, Health::Unhealthy][round as usize % 2];
            let message = running(health, round);
            let said = say(&mut init, &message);
            if tokio::time::timeout(A_WHILE, said).await.is_err() {
                return round;
            }
        }
        panic!("it was listened to for ever");
    };
    let said = flood.await;
    assert_eq!(world.events.len(), MOST_EVENTS, "after {said} messages");

    // A message that was broken off is lost with its connection.
    drop(init);
    let tail = tokio::spawn(async move {
        let mut events = Vec::new();
        while let Some(event) = world.events.recv().await {
            let is_end = matches!(event, Event::ContainerStopped { .. });
            events.push(event);
            if is_end {
                break;
            }
        }
        events
    });
    let mut init = loop {
        let (mut mine, theirs) = tokio::io::duplex(4096);
        world.connect.send(theirs).await.unwrap();
        let hello = ToHost::Hello {
            version: PROTOCOL_VERSION,
            init_version: "a test".to_owned(),
            ready_ms: 1,
            session: Some(SESSION.to_owned()),
            containers: vec![],
        };
        say(&mut mine, &hello).await.unwrap();
        if is_greeted(&mut mine).await {
            break mine;
        }
    };
    say(&mut init, &running(Health::Healthy, 7)).await.unwrap();
    let mut output = Vec::new();
    berth_protocol::frame::encode_output(
        "app",
        berth_protocol::message::Stream::Stdout,
        0,
        b"last\n",
        &mut output,
    )
    .unwrap();
    say(&mut init, &exited(3, 5)).await.unwrap();
    init.write_all(&output).await.unwrap();
    let events = tail.await.unwrap();
    assert!(events.len() < MOST_EVENTS + 8, "{}", events.len());
    let [
        ..,
        Event::ContainerReported { restarts, .. },
        Event::ContainerStopped { exit_code, .. },
    ] = events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert_eq!((*restarts, *exit_code), (7, Some(3)));
}

#[tokio::test]
async fn of_many_changes_of_health_few_are_told_and_the_last_one_counts() {
    let mut world = World::new(None);
    let mut init = world.greet(Some(SESSION)).await;
    assert!(is_greeted(&mut init).await);
    let mut said = Vec::new();
    for round in 0..=1000 {
        let health = [Health::Healthy, Health::Unhealthy][round as usize % 2];
        encode_message(&running(health, round), &mut said).unwrap();
    }
    let telling = async {
        init.write_all(&said).await.unwrap();
        // The connection stays.
        init
    };
    let hearing = async {
        let mut told = Vec::new();
        while let Some(event) = world.events.recv().await {
            let is_last = matches!(event, Event::ContainerReported { restarts: 1000, .. });
            told.push(event);
            if is_last {
                break;
            }
        }
        told
    };
    let before = Instant::now();
    let (_init, told) = tokio::join!(telling, hearing);
    assert_eq!(told[0], Event::ContainerStarted { name: "app".into() });
    let most = before.elapsed().div_duration_f64(REPORT_INTERVAL) + 3.0;
    assert!(told.len() as f64 <= most, "{} of at most {most}", told.len());
}
