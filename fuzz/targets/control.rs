//! Clients of the control socket that send what they like, and a guest that connects in between: whatever the server sends
//! is a message of the protocol. The other way round, a machine that sends its client what it likes.
#![no_main]

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use berth_fuzz::Input;
use berth_vmm::client::{Client, ClientError};
use berth_vmm::config::LimitsConfig;
use berth_vmm::control::server::{
    BalloonDone, ConnectDone, ConnectionListener, ControlServer, Controlled, GuestStreams, MAX_CLIENTS,
};
use berth_vmm::control::{BalloonReport, Command, Info, LimitedDevice, Metrics, Request};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use vmm_sys_util::eventfd::EventFd;

/// A machine that does as it is told, and has vsock or not.
struct Machine {
    vsock: bool,
    listener: Mutex<Option<ConnectionListener>>,
    callers: Mutex<Vec<ConnectDone>>,
    askers: Mutex<Vec<BalloonDone>>,
}

impl Controlled for Machine {
    fn info(&self) -> Info {
        Info {
            control_version: 3,
            vmm_version: "fuzz".into(),
            pid: 7,
            vcpus: 1,
            memory_mib: 64,
            exiting: None,
        }
    }
    fn metrics(&self) -> Metrics {
        Metrics::default()
    }
    fn inject_nmi(&self) -> Result<(), String> {
        Err("there is no vcpu".into())
    }
    fn streams(&self) -> Option<&dyn GuestStreams> {
        self.vsock.then_some(self)
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn snapshot(&self) -> Result<(), String> {
        Ok(())
    }
    fn set_limits(&self, _device: &LimitedDevice, _limits: Option<LimitsConfig>) -> Result<(), String> {
        Ok(())
    }
    fn set_balloon(&self, target_mib: u32) -> Result<(), String> {
        (target_mib < 64).then_some(()).ok_or("too much".into())
    }
    fn balloon(&self, wait: Duration, done: BalloonDone) {
        match wait.as_millis() % 4 {
            0 => done(Ok(BalloonReport::default())),
            1 => done(Err("there is none".into())),
            _ => self.askers.lock().expect("no target panics").push(done),
        }
    }
    fn stop(&self) {}
}

impl GuestStreams for Machine {
    fn connect(&self, port: u32, done: ConnectDone) {
        match port % 4 {
            0 => done(Err("refused".into())),
            1 => done(Ok(stream())),
            _ => self.callers.lock().expect("no target panics").push(done),
        }
    }
    fn set_listener(&self, listener: Option<ConnectionListener>) {
        *self.listener.lock().expect("no target panics") = listener;
    }
}

fn stream() -> OwnedFd {
    UnixStream::pair().expect("a socket pair can be made").0.into()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => hostile_machine(&mut input),
        shape => hostile_clients(&mut input, shape == 1),
    }
});

/// Messages and descriptors before a client asks for anything.
fn hostile_machine(input: &mut Input) {
    let (machine, client) = pair();
    let client = Client::from_fd(client);
    while let Some(step) = input.step() {
        let descriptors: Vec<_> = (0..step & 3).map(|_| stream()).collect();
        let message = match step >> 2 & 3 {
            0 => input.some_bytes().to_vec(),
            1 => br#"{"message":"vsock_connection","port":7}"#.to_vec(),
            2 => br#"{"message":"reply","id":1,"outcome":"done"}"#.to_vec(),
            _ => {
                let mut message = br#"{"message":"reply","id":1,"outcome":"#.to_vec();
                message.extend(input.some_bytes());
                message
            }
        };
        let _ = send(&machine, &message, &descriptors);
    }
    if client.request(Command::Info).is_ok() {
        while client.recv().is_ok() {}
    }
}

fn hostile_clients(input: &mut Input, no_vsock: bool) {
    let machine = Machine {
        vsock: !no_vsock,
        listener: Mutex::default(),
        callers: Mutex::default(),
        askers: Mutex::default(),
    };
    let ending = EventFd::new(libc::EFD_NONBLOCK).expect("an event can be made");
    // Nobody comes by the listener, so anything that can be waited for stands in for it.
    let (listener, _quiet) = UnixStream::pair().expect("a socket pair can be made");
    let mut server = ControlServer::new(listener.into(), &ending).expect("events can be made");
    let mut clients: BTreeMap<u8, Client> = BTreeMap::new();
    while let Some(step) = input.step() {
        let name = step >> 4;
        if !clients.contains_key(&name) && clients.len() <= MAX_CLIENTS {
            clients.insert(name, connect(&mut server));
        }
        let client = &clients[&name];
        match step % 16 {
            0..=2 => _ = send(client, input.some_bytes(), &[]),
            3 => _ = send(client, input.some_bytes(), &[stream()]),
            4..=7 => {
                let request = Request {
                    id: input.number(),
                    command: command(input),
                };
                let message = serde_json::to_vec(&request).expect("a request can be encoded");
                _ = send(client, &message, &[]);
            }
            8 => drop(clients.remove(&name)),
            9 => {
                let mut callers = machine.callers.lock().expect("no target panics");
                let caller = (!callers.is_empty()).then(|| callers.remove(0));
                drop(callers);
                match (caller, input.u8() % 4) {
                    (Some(caller), 0) => caller(Err("no".into())),
                    (Some(_forgotten), 1) => {}
                    (Some(caller), _) => caller(Ok(stream())),
                    (None, _) => {}
                }
            }
            10 | 11 => {
                if let Some(listener) = &*machine.listener.lock().expect("no target panics") {
                    drop(listener(input.u8().into(), stream()));
                }
            }
            12 => {
                let mut askers = machine.askers.lock().expect("no target panics");
                let asker = (!askers.is_empty()).then(|| askers.remove(0));
                drop(askers);
                match (asker, input.flag()) {
                    (Some(asker), true) => asker(Ok(BalloonReport::default())),
                    (forgotten, _) => drop(forgotten),
                }
            }
            13 => receive_all(client),
            _ => server.turn(&machine).expect("events can be waited for"),
        }
    }
    server.turn(&machine).expect("events can be waited for");
    server.finish(&machine);
    clients.values().for_each(receive_all);
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a socket pair can be made")
}

fn connect(server: &mut ControlServer) -> Client {
    let (near, far) = pair();
    server.adopt(near);
    Client::from_fd(far)
}

fn command(input: &mut Input) -> Command {
    match input.u8() % 11 {
        0 => Command::Info,
        1 => Command::Metrics,
        2 => Command::Nmi,
        3 => Command::Pause,
        4 => Command::Resume,
        5 => Command::Snapshot,
        6 => Command::Stop,
        7 => Command::Attach,
        8 => Command::SetBalloon {
            target_mib: input.u8().into(),
        },
        9 => Command::Balloon {
            wait_ms: input.u16().into(),
        },
        _ => Command::VsockConnect {
            port: input.number() as u32,
        },
    }
}

fn send(to: &impl AsRawFd, bytes: &[u8], descriptors: &[OwnedFd]) -> nix::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
}

fn receive_all(client: &Client) {
    loop {
        match client.recv() {
            Ok(_) => {}
            Err(ClientError::Closed | ClientError::Io(_)) => return,
            Err(error) => panic!("the server sent what is no message: {error}"),
        }
    }
}
