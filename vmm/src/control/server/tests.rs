//! The server with real sockets and real clients; only the machine behind it is made up.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockType, UnixAddr, bind, listen, socket};

use super::*;
use crate::client::{Client, ClientError};
use crate::config::{ExitReason, RateConfig};
use crate::ending::Ending;

/// A machine whose guest answers on every port but 9, and never answers on port 8.
struct FakeMachine {
    ending: Ending,
    listener: Mutex<Option<ConnectionListener>>,
    unanswered: Mutex<Vec<ConnectDone>>,
    listeners_set: mpsc::Sender<bool>,
}

impl Controlled for Arc<FakeMachine> {
    fn info(&self) -> Info {
        Info {
            control_version: 1,
            vmm_version: "test".into(),
            pid: 7,
            vcpus: 2,
            memory_mib: 64,
            exiting: self.ending.report().map(|report| report.reason),
        }
    }
    fn metrics(&self) -> Metrics {
        Metrics {
            exits_io: 5,
            ..Metrics::default()
        }
    }
    fn inject_nmi(&self) -> Result<(), String> {
        Err("no".into())
    }
    fn streams(&self) -> Option<&dyn GuestStreams> {
        Some(&**self)
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn snapshot(&self) -> Result<(), String> {
        Err("no file".into())
    }
    fn set_limits(&self, device: &LimitedDevice, limits: Option<LimitsConfig>) -> Result<(), String> {
        Err(format!("{device:?} {limits:?}"))
    }
    fn set_balloon(&self, target_mib: u32) -> Result<(), String> {
        (target_mib < 64).then_some(()).ok_or("too much".into())
    }
    fn balloon(&self, wait: Duration, done: BalloonDone) {
        match u64::try_from(wait.as_millis()).unwrap() {
            0 => done(Err("there is none".into())),
            // Never, and not even that is said.
            1 => {}
            // From another thread, as the device's is.
            target_bytes => drop(std::thread::spawn(move || {
                done(Ok(BalloonReport {
                    target_bytes,
                    ..BalloonReport::default()
                }));
            })),
        }
    }
    fn stop(&self) {
        self.ending.end(ExitReason::Stopped, None);
    }
}

impl GuestStreams for FakeMachine {
    fn connect(&self, port: u32, done: ConnectDone) {
        match port {
            8 => self.unanswered.lock().unwrap().push(done),
            9 => done(Err("refused".into())),
            _ => {
                let (mut guest, host) = UnixStream::pair().unwrap();
                write!(guest, "port {port}").unwrap();
                done(Ok(host.into()));
            }
        }
    }
    fn set_listener(&self, listener: Option<ConnectionListener>) {
        let set = listener.is_some();
        *self.listener.lock().unwrap() = listener;
        self.listeners_set.send(set).unwrap();
    }
}

struct Bench {
    machine: Arc<FakeMachine>,
    listeners_set: mpsc::Receiver<bool>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(64).unwrap()).unwrap();
        let (sender, listeners_set) = mpsc::channel();
        let machine = Arc::new(FakeMachine {
            ending: Ending::new().unwrap(),
            listener: Mutex::default(),
            unanswered: Mutex::default(),
            listeners_set: sender,
        });
        let mut server = ControlServer::new(listener, machine.ending.event()).unwrap();
        let served = machine.clone();
        let thread = std::thread::spawn(move || {
            server.run(&served).unwrap();
            served.unanswered.lock().unwrap().clear();
            server.finish(&served);
        });
        Self {
            machine,
            listeners_set,
            path,
            thread: Some(thread),
            _folder: folder,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, Duration::from_secs(10)).unwrap()
    }

    fn listener_was_set(&self) -> bool {
        self.listeners_set.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// Offers a connection of the guest to whoever is attached.
    fn guest_connects(&self, port: u32) -> Result<(), OwnedFd> {
        let stream = UnixStream::pair().unwrap().0.into();
        match &*self.machine.listener.lock().unwrap() {
            Some(listener) => listener(port, stream),
            None => Err(stream),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.machine.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn outcome(client: &Client, command: Command) -> Outcome {
    client.request(command).unwrap().0
}

#[test]
fn a_client_waits_for_the_guests_answer_and_others_do_not() {
    let bench = Bench::new();
    let (patient, other) = (bench.client(), bench.client());
    let forgotten = patient.send(Command::Balloon { wait_ms: 1 }).unwrap();
    let sent = other.send(Command::Balloon { wait_ms: 7 }).unwrap();
    let report = BalloonReport {
        target_bytes: 7,
        ..BalloonReport::default()
    };
    assert_eq!(other.reply(sent).unwrap().0, Outcome::Balloon(report));
    let error = |error: &str| Outcome::Error { error: error.into() };
    assert_eq!(
        patient.reply(forgotten).unwrap().0,
        error("the guest was not waited for")
    );
    for (command, expected) in [
        (Command::Balloon { wait_ms: 0 }, error("there is none")),
        (
            Command::Balloon { wait_ms: 10_001 },
            error("wait_ms is 10001, more than 10000"),
        ),
        (Command::SetBalloon { target_mib: 63 }, Outcome::Done),
        (Command::SetBalloon { target_mib: 64 }, error("too much")),
    ] {
        assert_eq!(patient.request(command).unwrap().0, expected);
    }
}

#[test]
fn requests_are_answered() {
    let bench = Bench::new();
    let client = bench.client();
    assert!(matches!(
        outcome(&client, Command::Info),
        Outcome::Info(Info {
            vcpus: 2,
            exiting: None,
            ..
        })
    ));
    assert!(matches!(
        outcome(&client, Command::Metrics),
        Outcome::Metrics(Metrics { exits_io: 5, .. })
    ));
    assert_eq!(
        outcome(&client, Command::Nmi),
        Outcome::Error { error: "no".into() }
    );
    let limits = Some(LimitsConfig {
        bytes: Some(RateConfig {
            per_second: 1,
            burst: u64::MAX,
        }),
        ops: None,
    });
    for device in [
        LimitedDevice::Drive("root".into()),
        LimitedDevice::NetRx(1),
        LimitedDevice::NetTx(0),
        LimitedDevice::Entropy,
        LimitedDevice::Serial,
    ] {
        for limits in [limits, None] {
            let error = format!("{device:?} {limits:?}");
            let device = device.clone();
            assert_eq!(
                outcome(&client, Command::SetLimits { device, limits }),
                Outcome::Error { error }
            );
        }
    }
}

#[test]
fn a_stop_is_answered_before_the_machine_ends() {
    let bench = Bench::new();
    let client = bench.client();
    let _ = client.send(Command::Stop).unwrap();
    let _ = client.send(Command::Info).unwrap();
    assert!(matches!(
        client.recv(),
        Ok((
            ServerMessage::Reply {
                id: 1,
                outcome: Outcome::Done
            },
            None
        ))
    ));
    let (message, _) = client.recv().unwrap();
    let ServerMessage::Reply {
        id: 2,
        outcome: Outcome::Info(info),
    } = message
    else {
        panic!("{message:?}");
    };
    assert_eq!(info.exiting, Some(ExitReason::Stopped));
    assert!(matches!(client.recv(), Err(ClientError::Closed)));
}

#[test]
fn a_connection_to_the_guest_comes_as_a_descriptor() {
    let bench = Bench::new();
    let client = bench.client();
    let (answer, stream) = client.request(Command::VsockConnect { port: 5 }).unwrap();
    assert_eq!(answer, Outcome::Done);
    let mut said = String::new();
    UnixStream::from(stream.unwrap())
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "port 5");
    let refused = client.request(Command::VsockConnect { port: 9 }).unwrap();
    assert!(matches!(refused, (Outcome::Error { error }, None) if error == "refused"));
}

#[test]
fn replies_keep_the_order_of_requests() {
    let bench = Bench::new();
    let client = bench.client();
    client.send(Command::VsockConnect { port: 8 }).unwrap();
    client.send(Command::Info).unwrap();
    // Another client is served meanwhile, and is proof that the server had the time to do it wrong.
    assert!(matches!(
        outcome(&bench.client(), Command::Info),
        Outcome::Info(_)
    ));
    bench.machine.unanswered.lock().unwrap().pop().unwrap()(Err("late".into()));
    let ids: Vec<u64> = (0..2)
        .map(|_| match client.recv().unwrap().0 {
            ServerMessage::Reply { id, .. } => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn a_connection_that_is_forgotten_is_answered() {
    let bench = Bench::new();
    let client = bench.client();
    client.send(Command::VsockConnect { port: 8 }).unwrap();
    assert!(matches!(
        outcome(&bench.client(), Command::Info),
        Outcome::Info(_)
    ));
    bench.machine.unanswered.lock().unwrap().clear();
    let (message, _) = client.recv().unwrap();
    assert!(matches!(
        message,
        ServerMessage::Reply {
            outcome: Outcome::Error { .. },
            ..
        }
    ));
}

#[test]
fn the_attached_client_gets_the_connections_of_the_guest() {
    let bench = Bench::new();
    let client = bench.client();
    assert_eq!(outcome(&client, Command::Attach), Outcome::Done);
    assert!(bench.listener_was_set());
    assert!(bench.guest_connects(1024).is_ok());
    let (message, stream) = client.recv().unwrap();
    assert_eq!(message, ServerMessage::VsockConnection { port: 1024 });
    assert!(stream.is_some());
}

#[test]
fn events_that_come_during_a_request_are_kept() {
    let bench = Bench::new();
    let client = bench.client();
    outcome(&client, Command::Attach);
    assert!(bench.listener_was_set());
    assert!(bench.guest_connects(1).is_ok());
    assert!(matches!(outcome(&client, Command::Info), Outcome::Info(_)));
    assert!(matches!(
        client.recv().unwrap(),
        (ServerMessage::VsockConnection { port: 1 }, Some(_))
    ));
}

#[test]
fn the_last_to_attach_wins_and_a_client_that_leaves_leaves_nobody() {
    let bench = Bench::new();
    let (first, second) = (bench.client(), bench.client());
    outcome(&first, Command::Attach);
    assert!(bench.listener_was_set());
    outcome(&second, Command::Attach);
    assert!(bench.listener_was_set());
    assert!(bench.guest_connects(2).is_ok());
    assert!(matches!(
        second.recv().unwrap().0,
        ServerMessage::VsockConnection { port: 2 }
    ));
    drop(first);
    assert!(matches!(outcome(&second, Command::Info), Outcome::Info(_)));
    assert!(
        bench.guest_connects(3).is_ok(),
        "the other one leaving changes nothing"
    );
    drop(second);
    assert!(!bench.listener_was_set());
    assert!(bench.guest_connects(4).is_err(), "the connection is given back");
}

#[test]
fn a_client_that_does_not_read_loses_its_attachment_and_no_connection() {
    let bench = Bench::new();
    let client = bench.client();
    outcome(&client, Command::Attach);
    assert!(bench.listener_was_set());
    let refused = (0..100_000).find(|_| bench.guest_connects(1).is_err());
    assert!(refused.is_some());
    assert!(!bench.listener_was_set());
}

#[test]
fn clients_that_talk_nonsense_are_dropped_and_others_are_not() {
    let bench = Bench::new();
    let good = bench.client();
    for nonsense in [
        &b"{"[..],
        b"{\"id\":1}",
        b"{\"id\":-1,\"command\":\"info\"}",
        &[b' '; 70_000],
    ] {
        let bad = bench.client();
        nix::unistd::write(&bad, nonsense).unwrap();
        assert!(
            matches!(bad.recv(), Err(ClientError::Closed)),
            "{}",
            nonsense.len()
        );
        assert!(matches!(outcome(&good, Command::Info), Outcome::Info(_)));
    }
}

#[test]
fn clients_beyond_the_most_are_turned_away() {
    let bench = Bench::new();
    let clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| bench.client()).collect();
    for client in &clients {
        assert!(matches!(outcome(client, Command::Info), Outcome::Info(_)));
    }
    assert!(matches!(bench.client().recv(), Err(ClientError::Closed)));
    assert!(matches!(outcome(&clients[0], Command::Info), Outcome::Info(_)));
}

#[test]
fn a_nonblocking_client_would_block() {
    let bench = Bench::new();
    let client = bench.client();
    client.set_nonblocking(true).unwrap();
    assert!(client.recv().unwrap_err().would_block());
}
