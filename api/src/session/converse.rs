//! A data channel from its token to its end: messages of the client on one side, frames of the command on the other. How the
//! command is begun is the caller's. Both sides are hostile: all that waits for either of them is bounded.

use std::future::{Future, pending};
use std::time::Instant;

use berth_runtime::GuestStream;
use berth_runtime::protocol::MAX_OUTPUT_BYTES;
use berth_runtime::protocol::exec::{FromCommand, STDIN, STDOUT, TerminalSize, ToCommand};
use berth_runtime::protocol::frame::{Decoder, Frame, FrameError, encode_data, encode_message};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message as WebSocketMessage};

use super::channel::{Channel, alone, whole_characters};
use super::message::{Message, MessageType, PayloadType};
use super::offers::{Offers, SessionCommand, Taken};
use super::payload::{self, Acknowledged, OpenDataChannel};
use super::times::Times;

/// Longest payload of output.
const OUTPUT_PIECE_BYTES: usize = 1024;
/// Input that waits for the command; beyond it none is acknowledged, so that the client sends it again.
const MAX_INPUT_BYTES: usize = 64 * 1024;
/// Messages that wait for the connection: more than a window of output and the acknowledgements of as much input. A client
/// that lets them wait takes nothing.
const OUTBOX: usize = 1024;
/// Most of a guest's words that the user is told.
const MAX_REASON_CHARS: usize = 500;
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It never began: no token came, or a wrong one.
    Refused,
    /// The client went away, or takes nothing.
    Gone,
    /// The client was told to close, and this; nothing where the command has ended.
    Told(String),
}

/// Serves a websocket. `start` begins the command, or says why it cannot.
pub(crate) async fn serve<S, F, R>(
    mut socket: WebSocketStream<S>,
    offers: &Offers,
    session: &str,
    waiting: OwnedSemaphorePermit,
    times: &Times,
    start: F,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(SessionCommand, TerminalSize) -> R,
    R: Future<Output = Result<Box<dyn GuestStream>, String>>,
{
    let opened = timeout(times.token, token(&mut socket)).await;
    let taken = opened.ok().flatten();
    let taken = taken.and_then(|token| offers.take(session, &token, Instant::now()));
    drop(waiting);
    let Some(Taken {
        command,
        place: _place,
    }) = taken
    else {
        let close = CloseFrame {
            code: CloseCode::Policy,
            reason: "no valid token".into(),
        };
        let _ = timeout(times.close, socket.close(Some(close))).await;
        return Ended::Refused;
    };
    tracing::info!(session, task = %command.task, container = command.container, "a session begins");
    let (sink, mut frames) = socket.split();
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let conversation = Conversation::new(session, times, outbox);
    let ended = {
        let writer = write(sink, messages);
        tokio::pin!(writer);
        let ended = tokio::select! {
            ended = conversation.run(&mut frames, |size| start(command, size)) => ended,
            _ = &mut writer => return Ended::Gone,
        };
        if ended != Ended::Gone {
            let _ = timeout(times.close, writer).await;
        }
        ended
    };
    // What the client still says is read, or it might not see the last that it was told.
    let closed = async { while let Some(Ok(_)) = frames.next().await {} };
    let _ = timeout(times.close, closed).await;
    ended
}

/// What the client shows first.
async fn token<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Option<String> {
    loop {
        match socket.next().await?.ok()? {
            WebSocketMessage::Ping(_) | WebSocketMessage::Pong(_) => {}
            WebSocketMessage::Text(text) => {
                let open: OpenDataChannel = serde_json::from_str(&text).ok()?;
                return Some(open.token_value);
            }
            _ => return None,
        }
    }
}

/// Sends what is in the outbox, and closes once nobody puts anything in.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, WebSocketMessage>,
    mut messages: mpsc::Receiver<Bytes>,
) -> Result<(), Error> {
    while let Some(message) = messages.recv().await {
        sink.feed(WebSocketMessage::Binary(message)).await?;
        if messages.is_empty() {
            sink.flush().await?;
        }
    }
    sink.close().await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshake,
    /// The handshake is complete; the terminal's size is waited for.
    Size,
    Running,
    /// The command has ended; its output is not all acknowledged.
    Over,
}

type Guest = (ReadHalf<Box<dyn GuestStream>>, WriteHalf<Box<dyn GuestStream>>);

struct Conversation<'a> {
    session: &'a str,
    times: &'a Times,
    channel: Channel,
    outbox: mpsc::Sender<Bytes>,
    phase: Phase,
    began: Instant,
    /// When the phase is over; of a command that runs, none.
    deadline: Option<Instant>,
    /// When the terminal last said or was told something.
    active: Instant,
    size: Option<TerminalSize>,
    /// Frames for the command.
    input: Vec<u8>,
    /// Output that has not been sent: the beginning of a character.
    output: Vec<u8>,
    /// What the client is told at the end.
    outcome: String,
}

impl<'a> Conversation<'a> {
    fn new(session: &'a str, times: &'a Times, outbox: mpsc::Sender<Bytes>) -> Conversation<'a> {
        let now = Instant::now();
        Conversation {
            session,
            times,
            channel: Channel::default(),
            outbox,
            phase: Phase::Handshake,
            began: now,
            deadline: Some(now + times.handshake),
            active: now,
            size: None,
            input: Vec::new(),
            output: Vec::new(),
            outcome: String::new(),
        }
    }

    /// To the end, which the client is told where it is there.
    async fn run<S, F, R>(mut self, frames: &mut SplitStream<WebSocketStream<S>>, start: F) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
        F: FnOnce(TerminalSize) -> R,
        R: Future<Output = Result<Box<dyn GuestStream>, String>>,
    {
        let Err(ended) = self.converse(frames, start).await;
        if let Ended::Told(text) = &ended {
            let closed = payload::channel_closed(self.session, text);
            let _ = self.outbox.try_send(alone(MessageType::ChannelClosed, closed));
        }
        ended
    }

    async fn converse<S, F, R>(
        &mut self,
        frames: &mut SplitStream<WebSocketStream<S>>,
        start: F,
    ) -> Result<std::convert::Infallible, Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        F: FnOnce(TerminalSize) -> R,
        R: Future<Output = Result<Box<dyn GuestStream>, String>>,
    {
        let mut start = Some(start);
        let mut guest: Option<Guest> = None;
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; MAX_OUTPUT_BYTES];
        self.stream(PayloadType::HANDSHAKE_REQUEST, payload::handshake_request())?;
        loop {
            let wake = self.on_time(Instant::now())?;
            if self.phase == Phase::Running
                && let Some(start) = start.take()
            {
                let begun = timeout(self.times.start, start(self.size.unwrap_or(DEFAULT_SIZE))).await;
                let begun = begun.unwrap_or_else(|_| Err("the task does not answer".to_owned()));
                guest = Some(tokio::io::split(
                    begun.map_err(|reason| Ended::Told(cannot_start(&reason)))?,
                ));
            }
            let reads = self.channel.has_room();
            let (from, to) = match &mut guest {
                Some((from, to)) => (Some(from), Some(to)),
                None => (None, None),
            };
            tokio::select! {
                frame = frames.next() => self.frame(frame)?,
                read = read(from, &mut buffer), if reads => match read {
                    Ok(count @ 1..) => {
                        decoder.push(&buffer[..count]);
                        self.said(&mut decoder)?;
                    }
                    _ => self.over("the container has stopped".to_owned())?,
                },
                written = write_some(to, &self.input), if !self.input.is_empty() => match written {
                    Ok(count) => drop(self.input.drain(..count)),
                    // Its end is seen where its output is read.
                    Err(_) => self.input.clear(),
                },
                () = sleep_until(wake.into()) => {}
            }
            if self.phase == Phase::Over {
                guest = None;
            }
        }
    }

    /// Does what is due, and says when to be asked again.
    fn on_time(&mut self, now: Instant) -> Result<Instant, Ended> {
        if self.phase == Phase::Over && self.channel.is_settled() {
            return Err(self.told());
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            match self.phase {
                Phase::Handshake => {
                    return Err(Ended::Told(
                        "Handshake timed out. Please ensure that you have the latest version of the session manager plugin."
                            .to_owned(),
                    ));
                }
                Phase::Size => self.runs(now),
                Phase::Running => {}
                Phase::Over => return Err(self.told()),
            }
        }
        let idle = self.active + self.times.idle;
        if idle <= now {
            return Err(Ended::Told(
                "Your session timed out due to inactivity.".to_owned(),
            ));
        }
        let unacknowledged = self
            .channel
            .waits_since()
            .map(|since| since + self.times.unacknowledged);
        if unacknowledged.is_some_and(|at| at <= now) {
            return Err(Ended::Gone);
        }
        if let Some(message) = self.channel.resend(now) {
            self.send(message)?;
        }
        let times = [
            Some(idle),
            self.deadline,
            unacknowledged,
            self.channel.resend_at(),
        ];
        Ok(times.into_iter().flatten().min().unwrap_or(idle))
    }

    fn told(&mut self) -> Ended {
        Ended::Told(std::mem::take(&mut self.outcome))
    }

    fn runs(&mut self, now: Instant) {
        self.phase = Phase::Running;
        self.deadline = None;
        self.active = now;
    }

    fn frame(&mut self, frame: Option<Result<WebSocketMessage, Error>>) -> Result<(), Ended> {
        match frame {
            Some(Ok(WebSocketMessage::Binary(bytes))) => {
                let message = Message::decode(&bytes).map_err(|error| Ended::Told(error.to_string()))?;
                self.message(message)
            }
            Some(Ok(WebSocketMessage::Close(_)) | Err(_)) | None => Err(Ended::Gone),
            // Pings are answered where they are read.
            Some(Ok(_)) => Ok(()),
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Ended> {
        match message.message_type {
            Some(MessageType::InputStreamData) => {
                let received = self.channel.receive(message, self.input.len() < MAX_INPUT_BYTES);
                if let Some(acknowledge) = received.acknowledge {
                    self.send(acknowledge)?;
                }
                received
                    .ready
                    .into_iter()
                    .try_for_each(|message| self.input(&message))
            }
            Some(MessageType::Acknowledge) => {
                if let Ok(Acknowledged { sequence }) = serde_json::from_slice(&message.payload) {
                    self.channel.acknowledged(sequence, Instant::now());
                }
                Ok(())
            }
            Some(MessageType::ChannelClosed) => Err(Ended::Gone),
            Some(MessageType::PausePublication) => {
                self.channel.pause(true);
                Ok(())
            }
            Some(MessageType::StartPublication) => {
                self.channel.pause(false);
                Ok(())
            }
            Some(MessageType::OutputStreamData) | None => Ok(()),
        }
    }

    /// A message of the client's stream, in order.
    fn input(&mut self, message: &Message) -> Result<(), Ended> {
        let now = Instant::now();
        match message.payload_type {
            PayloadType::HANDSHAKE_RESPONSE if self.phase == Phase::Handshake => {
                payload::handshake_response(&message.payload).map_err(Ended::Told)?;
                let took = now.saturating_duration_since(self.began).as_nanos();
                let took = u64::try_from(took).unwrap_or(u64::MAX);
                self.stream(PayloadType::HANDSHAKE_COMPLETE, payload::handshake_complete(took))?;
                self.phase = Phase::Size;
                self.deadline = Some(now + self.times.size);
                if self.size.is_some() {
                    self.runs(now);
                }
            }
            PayloadType::SIZE => {
                let Some(size) = payload::terminal_size(&message.payload) else {
                    return Ok(());
                };
                match self.phase {
                    Phase::Size => self.runs(now),
                    Phase::Running if self.size != Some(size) => {
                        encode_message(&ToCommand::Resize { size }, &mut self.input).map_err(broken)?;
                    }
                    _ => {}
                }
                self.size = Some(size);
            }
            // Before that the client does not know what it speaks with.
            PayloadType::OUTPUT if matches!(self.phase, Phase::Size | Phase::Running) => {
                self.active = now;
                for piece in message.payload.chunks(MAX_OUTPUT_BYTES) {
                    encode_data(STDIN, piece, &mut self.input).map_err(broken)?;
                }
            }
            PayloadType::FLAG if payload::terminates(&message.payload) => {
                return Err(Ended::Told(String::new()));
            }
            _ => {}
        }
        Ok(())
    }

    /// What the command has said.
    fn said(&mut self, decoder: &mut Decoder) -> Result<(), Ended> {
        while let Some(frame) = decoder.next::<FromCommand>().map_err(broken)? {
            match frame {
                Frame::Data(data) if data.stream == STDOUT => {
                    self.active = Instant::now();
                    self.output.extend(&data.bytes);
                }
                Frame::Message(FromCommand::Exited { .. }) => return self.over(String::new()),
                Frame::Message(FromCommand::Failed { reason }) => return self.over(cannot_start(&reason)),
                Frame::Data(_) | Frame::Output(_) => {}
            }
        }
        // Together: a message for each short line would be more than a client is given at a time.
        self.pass_output(whole_characters(&self.output))
    }

    /// Sends so many bytes of the output, in pieces that end with characters.
    fn pass_output(&mut self, count: usize) -> Result<(), Ended> {
        let ready = Bytes::copy_from_slice(&self.output[..count]);
        self.output.drain(..count);
        let mut rest = ready;
        while !rest.is_empty() {
            let most = rest.len().min(OUTPUT_PIECE_BYTES);
            let whole = whole_characters(&rest[..most]);
            let piece = rest.split_to(if whole == 0 { most } else { whole });
            self.stream(PayloadType::OUTPUT, piece)?;
        }
        Ok(())
    }

    /// The command has ended.
    fn over(&mut self, outcome: String) -> Result<(), Ended> {
        self.pass_output(self.output.len())?;
        self.phase = Phase::Over;
        self.deadline = Some(Instant::now() + self.times.settle);
        self.input.clear();
        self.outcome = outcome;
        Ok(())
    }

    fn stream(&mut self, payload_type: PayloadType, payload: Bytes) -> Result<(), Ended> {
        let message = self.channel.stream(payload_type, payload, Instant::now());
        self.send(message)
    }

    fn send(&mut self, message: Bytes) -> Result<(), Ended> {
        self.outbox.try_send(message).map_err(|_| Ended::Gone)
    }
}

/// A guest that does not speak as it should, or a piece that is larger than was looked at: neither is the client's.
fn broken(error: FrameError) -> Ended {
    tracing::warn!("a session ends: {error}");
    Ended::Told("the task does not answer as it should".to_owned())
}

/// As the agent says it. The guest's words go to the user's terminal.
fn cannot_start(reason: &str) -> String {
    let reason: String = reason
        .chars()
        .filter(|it| !it.is_control())
        .take(MAX_REASON_CHARS)
        .collect();
    format!("\n----------ERROR-------\nUnable to start command: Failed to start pty: {reason}")
}

async fn read(
    from: Option<&mut ReadHalf<Box<dyn GuestStream>>>,
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => pending().await,
    }
}

async fn write_some(
    to: Option<&mut WriteHalf<Box<dyn GuestStream>>>,
    bytes: &[u8],
) -> std::io::Result<usize> {
    match to {
        Some(to) => to.write(bytes).await,
        None => pending().await,
    }
}
