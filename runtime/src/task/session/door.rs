//! Who comes to the host's port for a guest's init: anybody in the guest can. Every connection is taken at once and heard
//! beside the others, so that nobody holds up the one that the session is for.

use std::collections::VecDeque;
use std::time::Duration;

use berth_protocol::frame::{Decoder, Frame};
use berth_protocol::message::{ContainerStatus, ToHost};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::Broken;
use crate::task::endpoint::TaskEndpoint;
use crate::task::host::{GuestPort, GuestStream, Machine};
use crate::task::read_buffer::ReadBuffer;

/// Any process in the guest can connect and say nothing; its init says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// What ten containers that could not be started have to say, and more.
const MAX_HELLO_BYTES: usize = 64 * 1024;
/// Connections that are heard at once; one more, and the one that has been silent for longest goes. Init says hello long
/// before others can make so many.
pub(super) const MOST_HEARD: usize = 128;
/// Connections that were taken and are not heard yet, which they are at once.
const MOST_TAKEN: usize = 4;

/// A connection and what its guest said first.
pub(super) struct Greeting {
    pub stream: Box<dyn GuestStream>,
    /// It may hold more than the hello.
    pub decoder: Decoder,
    /// None of a guest that has no task yet.
    pub session: Option<String>,
    pub containers: Vec<ContainerStatus>,
}

/// Where the connections come in.
pub(super) struct Links(mpsc::Sender<Box<dyn GuestStream>>);

/// Hears what they say first.
pub(super) struct Door {
    /// Only the guest's init knows it.
    session: String,
    taken: mpsc::Receiver<Box<dyn GuestStream>>,
    hearing: JoinSet<Result<Greeting, Broken>>,
    /// Those that are heard, oldest first, and some that were.
    oldest: VecDeque<AbortHandle>,
}

pub(super) fn open(session: String) -> (Links, Door) {
    let (links, taken) = mpsc::channel(MOST_TAKEN);
    let door = Door {
        session,
        taken,
        hearing: JoinSet::new(),
        oldest: VecDeque::new(),
    };
    (Links(links), door)
}

impl Links {
    /// Takes every connection that the guest makes: its init's to the door, its containers' to the endpoint.
    pub async fn take(&self, machine: &dyn Machine, endpoint: &TaskEndpoint) {
        loop {
            match machine.accept().await {
                Ok((GuestPort::Init, stream)) => drop(self.0.send(stream).await),
                Ok((GuestPort::Endpoint, stream)) => endpoint.call(stream),
                Err(error) => {
                    tracing::debug!(%error, "cannot take a guest's connection");
                    return;
                }
            }
        }
    }
}

impl Door {
    /// The next connection of the guest's init: of who knows the session, or with `without_task` of who says that there is
    /// none yet. Pends for ever once none can come. Nothing is lost when this is dropped.
    pub async fn next(&mut self, without_task: bool) -> Greeting {
        loop {
            let heard = tokio::select! {
                Some(stream) = self.taken.recv() => {
                    self.hear(stream);
                    continue;
                }
                Some(heard) = self.hearing.join_next() => heard,
                else => std::future::pending().await,
            };
            let error = match heard {
                Ok(Ok(greeting)) if self.may_enter(&greeting, without_task) => return greeting,
                Ok(Ok(_)) => Broken::Stranger,
                Ok(Err(error)) => error,
                // It made room for another.
                Err(_) => Broken::Silent,
            };
            tracing::debug!(%error, "a guest's connection is refused");
        }
    }

    fn may_enter(&self, greeting: &Greeting, without_task: bool) -> bool {
        match &greeting.session {
            Some(session) => *session == self.session,
            None => without_task,
        }
    }

    fn hear(&mut self, stream: Box<dyn GuestStream>) {
        self.oldest.retain(|heard| !heard.is_finished());
        if self.oldest.len() >= MOST_HEARD
            && let Some(oldest) = self.oldest.pop_front()
        {
            oldest.abort();
        }
        let heard = async {
            let heard = tokio::time::timeout(HELLO_TIMEOUT, hear(stream)).await;
            heard.map_err(|_| Broken::Silent)?
        };
        self.oldest.push_back(self.hearing.spawn(heard));
    }
}

async fn hear(mut stream: Box<dyn GuestStream>) -> Result<Greeting, Broken> {
    let (mut decoder, mut buffer) = (Decoder::new(), ReadBuffer::new());
    let hello = read_hello(stream.as_mut(), &mut decoder, buffer.room()).await?;
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
    Ok(Greeting {
        stream,
        decoder,
        session,
        containers,
    })
}

pub(super) async fn read_hello(
    stream: &mut dyn GuestStream,
    decoder: &mut Decoder,
    buffer: &mut [u8],
) -> Result<ToHost, Broken> {
    let mut said = 0;
    loop {
        match decoder.next::<ToHost>()? {
            Some(Frame::Message(message)) => return Ok(message),
            Some(Frame::Output(_) | Frame::Data(_)) => {
                return Err(Broken::Protocol("output before its hello".to_owned()));
            }
            None if said > MAX_HELLO_BYTES => {
                return Err(Broken::Protocol(format!(
                    "its hello is longer than {MAX_HELLO_BYTES} bytes"
                )));
            }
            None => {}
        }
        match stream.read(buffer).await? {
            0 => return Err(Broken::Protocol("it hung up before its hello".to_owned())),
            length => {
                said += length;
                decoder.push(&buffer[..length]);
            }
        }
    }
}
