//! Both ends of a session for tests: a client, and a command that does as a test says. No tests.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_runtime::GuestStream;
use berth_runtime::model::task::TaskId;
use berth_runtime::protocol::exec::{FromCommand, STDIN, STDOUT, TerminalSize, ToCommand};
use berth_runtime::protocol::frame::{Decoder, Frame, encode_data, encode_message};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Ws;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::converse::{Ended, serve};
use super::super::message::{Message, MessageType, PayloadType};
use super::super::offers::{Offers, SessionCommand};
use super::super::times::Times;
use super::super::{payload, websocket};

/// The client's side, and what became of the server's.
pub(super) struct Client {
    pub(super) socket: WebSocketStream<DuplexStream>,
    pub(super) served: JoinHandle<Ended>,
    pub(super) session: String,
    pub(super) token: String,
    pub(super) offers: Arc<Offers>,
    /// The next message that it sends.
    pub(super) next: i64,
    /// The next message that it has not had: one that is slow to acknowledge gets some twice.
    pub(super) expected: i64,
    pub(super) acknowledges: bool,
    /// What the command was begun with.
    pub(super) size: Arc<Mutex<Option<TerminalSize>>>,
}

/// The other side of a command's connection.
pub(super) struct Guest {
    pub(super) stream: DuplexStream,
    pub(super) decoder: Decoder,
    pub(super) buffer: Vec<u8>,
}

impl Guest {
    pub(super) async fn hears(&mut self) -> Frame<ToCommand> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return frame;
            }
            let count = self.stream.read(&mut self.buffer).await.unwrap();
            assert!(count > 0, "the connection has ended");
            self.decoder.push(&self.buffer[..count]);
        }
    }

    pub(super) async fn hears_input(&mut self, bytes: usize) -> Vec<u8> {
        let mut input = Vec::new();
        while input.len() < bytes {
            match self.hears().await {
                Frame::Data(data) if data.stream == STDIN => input.extend(data.bytes),
                other => panic!("{other:?}"),
            }
        }
        input
    }

    pub(super) async fn says(&mut self, bytes: &[u8]) {
        let mut frames = Vec::new();
        for piece in bytes.chunks(64 * 1024) {
            encode_data(STDOUT, piece, &mut frames).unwrap();
        }
        self.stream.write_all(&frames).await.unwrap();
    }

    pub(super) async fn ends(&mut self, outcome: FromCommand) {
        let mut frame = Vec::new();
        encode_message(&outcome, &mut frame).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }
}

pub(super) fn start(times: Times) -> (Client, Guest) {
    start_with(times, 4096)
}

/// With a connection to the guest that holds so many bytes.
pub(super) fn start_with(times: Times, held: usize) -> (Client, Guest) {
    let offers = Arc::new(Offers::default());
    let command = SessionCommand {
        task: TaskId::random(),
        container: "app".to_owned(),
        argv: vec!["sh".to_owned()],
    };
    let ticket = offers.offer(command, Instant::now()).unwrap();
    let (stream, guest) = duplex(held);
    let (near, far) = duplex(64 * 1024);
    let size = Arc::new(Mutex::new(None));
    let (in_server, begun, session) = (Arc::clone(&offers), Arc::clone(&size), ticket.session.clone());
    let served = tokio::spawn(async move {
        let waiting = in_server.wait(&session, Instant::now()).unwrap();
        let begin = |_, size| async move {
            *begun.lock().unwrap() = Some(size);
            Ok(Box::new(stream) as Box<dyn GuestStream>)
        };
        serve(
            websocket::server(near).await,
            &in_server,
            &session,
            waiting,
            &times,
            begin,
        )
        .await
    });
    let client = Client {
        socket: futures_util::FutureExt::now_or_never(WebSocketStream::from_raw_socket(
            far,
            Role::Client,
            None,
        ))
        .unwrap(),
        served,
        session: ticket.session,
        token: ticket.token,
        offers,
        next: 0,
        expected: 0,
        acknowledges: true,
        size,
    };
    let guest = Guest {
        stream: guest,
        decoder: Decoder::new(),
        buffer: vec![0; 4096],
    };
    (client, guest)
}

impl Client {
    pub(super) async fn open(&mut self) {
        let token = self.token.clone();
        self.open_with(&token).await;
    }

    pub(super) async fn open_with(&mut self, token: &str) {
        let open =
            json!({ "MessageSchemaVersion": "1.0", "RequestId": "r", "TokenValue": token, "ClientId": "c" });
        self.socket.send(Ws::text(open.to_string())).await.unwrap();
    }

    pub(super) async fn sends(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let message = self.message(payload_type, payload);
        self.socket.send(Ws::binary(message.encode())).await.unwrap();
    }

    pub(super) fn message(&mut self, payload_type: PayloadType, payload: &[u8]) -> Message {
        self.next += 1;
        let payload = Bytes::copy_from_slice(payload);
        Message::new(
            MessageType::InputStreamData,
            self.next - 1,
            0,
            payload_type,
            payload,
        )
    }

    pub(super) async fn acknowledge(&mut self, message: &Message) {
        let content = payload::acknowledge(message);
        let answer = Message::new(MessageType::Acknowledge, 0, 3, PayloadType::NONE, content);
        self.socket.send(Ws::binary(answer.encode())).await.unwrap();
    }

    /// The next message that is no acknowledgement; none at the end.
    pub(super) async fn hears(&mut self) -> Option<Message> {
        loop {
            let frame = tokio::time::timeout(Duration::from_secs(60), self.socket.next()).await;
            match frame.expect("something comes")?.ok()? {
                Ws::Binary(bytes) => {
                    let message = Message::decode(&bytes).unwrap();
                    match message.message_type.unwrap() {
                        MessageType::Acknowledge => continue,
                        MessageType::OutputStreamData if self.acknowledges => {
                            self.acknowledge(&message).await;
                            if message.sequence < self.expected {
                                continue;
                            }
                            assert_eq!(message.sequence, self.expected);
                            self.expected += 1;
                        }
                        _ => {}
                    }
                    return Some(message);
                }
                Ws::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Up to the end of the handshake.
    pub(super) async fn shakes_hands(&mut self) {
        self.open().await;
        let request = self.hears().await.unwrap();
        assert_eq!(
            (request.payload_type, request.sequence, request.flags),
            (PayloadType::HANDSHAKE_REQUEST, 0, 1)
        );
        let request: Value = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(
            request["RequestedClientActions"][0]["ActionParameters"]["SessionType"],
            "InteractiveCommands"
        );
        let action =
            json!({ "ActionType": "SessionType", "ActionStatus": 1, "ActionResult": null, "Error": "" });
        let response =
            json!({ "ClientVersion": "1.2.0.0", "ProcessedClientActions": [action], "Errors": [] });
        self.sends(PayloadType::HANDSHAKE_RESPONSE, response.to_string().as_bytes())
            .await;
        assert_eq!(
            self.hears().await.unwrap().payload_type,
            PayloadType::HANDSHAKE_COMPLETE
        );
    }

    pub(super) async fn hears_output(&mut self, bytes: usize) -> Vec<u8> {
        let mut output = Vec::new();
        while output.len() < bytes {
            let message = self.hears().await.unwrap();
            assert_eq!(message.payload_type, PayloadType::OUTPUT);
            output.extend(&message.payload);
        }
        output
    }

    /// What the last message says to the user.
    pub(super) async fn hears_the_end(&mut self) -> String {
        loop {
            let message = self.hears().await.unwrap();
            if message.message_type == Some(MessageType::ChannelClosed) {
                let closed: Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(closed["SessionId"], self.session);
                assert_eq!(self.hears().await, None);
                return closed["Output"].as_str().unwrap().to_owned();
            }
        }
    }
}
