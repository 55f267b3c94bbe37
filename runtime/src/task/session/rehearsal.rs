//! A task that is nobody's, given to a machine to see what its guest does with one.

use berth_protocol::PROTOCOL_VERSION;
use berth_protocol::frame::Frame;
use berth_protocol::message::{ContainerState, TaskSpec, ToGuest, ToHost};
use rand::random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Broken, GuestStream, HostError, Machine, greet, send};
use crate::clock::{Clock, SystemClock};
use crate::task::read_buffer::ReadBuffer;
use crate::task::secrets::TaskSecrets;
use berth_protocol::frame::Decoder;

/// Gives the guest the task and waits until all of its containers have run and ended.
pub(crate) async fn rehearse(machine: &impl Machine, task: &TaskSpec) -> Result<(), HostError> {
    let (mut stream, mut decoder) = greet(machine).await?;
    tokio::select! {
        done = converse(stream.as_mut(), &mut decoder, task) => done.map_err(|error| HostError(error.to_string())),
        end = machine.ended() => Err(HostError(end.reason)),
    }
}

async fn converse(
    stream: &mut dyn GuestStream,
    decoder: &mut Decoder,
    task: &TaskSpec,
) -> Result<(), Broken> {
    let hello = ToGuest::Hello {
        version: PROTOCOL_VERSION,
        outputs: Vec::new(),
    };
    send(stream, &hello).await?;
    let now = SystemClock.now().0;
    let run = TaskSecrets::default().run_message(task, now, random())?;
    stream.write_all(&run).await?;
    let mut left = task.containers.len();
    let mut buffer = ReadBuffer::new();
    loop {
        while let Some(frame) = decoder.next::<ToHost>()? {
            match frame {
                Frame::Message(ToHost::Container { status }) => match status.state {
                    ContainerState::Exited { exit_code: 0, .. } => left = left.saturating_sub(1),
                    ContainerState::Running { .. } => {}
                    other => return Err(Broken::Protocol(format!("a container did not run: {other:?}"))),
                },
                Frame::Message(ToHost::Error { message }) => return Err(Broken::Protocol(message)),
                // It is kept for a host that acknowledges it, for as long as this machine lasts.
                Frame::Output(_) | Frame::Message(_) => {}
                Frame::Data(_) => return Err(Broken::Protocol("data of no command".to_owned())),
            }
        }
        if left == 0 {
            return Ok(());
        }
        match stream.read(buffer.room()).await? {
            0 => return Err(Broken::Protocol("it hung up".to_owned())),
            length => {
                decoder.push(&buffer.room()[..length]);
                buffer.used(length);
            }
        }
    }
}
