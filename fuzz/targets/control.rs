//! Clients of the control socket that send what they like, and a guest that connects in between. Whatever the server sends
//! is a message of the protocol.
#![no_main]

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use berth_fuzz::Input;
use berth_vmm::client::{Client, ClientError};
use berth_vmm::control::server::{
    ConnectDone, ConnectionListener, ControlServer, Controlled, GuestStreams, MAX_CLIENTS,
};
use berth_vmm::control::{Command, Info, Metrics, Request};
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
}

impl Controlled for Machine {
    fn info(&self) -> Info {
        Info {
            control_version: 1,
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
    let machine = Machine {
        vsock: !input.flag(),
        listener: Mutex::default(),
        callers: Mutex::default(),
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
            0..=2 => _ = send(client, input.some_bytes(), None),
            3 => _ = send(client, input.some_bytes(), Some(stream())),
            4..=7 => {
                let request = Request {
                    id: input.number(),
                    command: command(&mut input),
                };
                let message = serde_json::to_vec(&request).expect("a request can be encoded");
                _ = send(client, &message, None);
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
            12 => receive_all(client),
            _ => server.turn(&machine).expect("events can be waited for"),
        }
    }
    server.turn(&machine).expect("events can be waited for");
    server.finish(&machine);
    clients.values().for_each(receive_all);
});

fn connect(server: &mut ControlServer) -> Client {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (near, far) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a socket pair can be made");
    server.adopt(near);
    Client::from_fd(far)
}

fn command(input: &mut Input) -> Command {
    match input.u8() % 9 {
        0 => Command::Info,
        1 => Command::Metrics,
        2 => Command::Nmi,
        3 => Command::Pause,
        4 => Command::Resume,
        5 => Command::Snapshot,
        6 => Command::Stop,
        7 => Command::Attach,
        _ => Command::VsockConnect {
            port: input.number() as u32,
        },
    }
}

fn send(client: &Client, bytes: &[u8], descriptor: Option<OwnedFd>) -> nix::Result<usize> {
    let raw: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(client.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
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
