//! The server against callers that are slow, greedy, broken or gone; over loopback, with a handler of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::http::request::Parts;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{Answer, Handler, Limits, serve_with};
use crate::error::ApiError;
use crate::reply::Reply;

/// Answers with the length of the body; some paths do other things.
struct Echo;

impl Handler for Echo {
    type Admission = ();

    fn admit(&self, head: &Parts) -> Result<(), Reply> {
        if head.uri.path() == "/unsigned" {
            Err(ApiError::MissingAuthenticationToken.to_reply())
        } else {
            Ok(())
        }
    }

    async fn handle(self: Arc<Self>, (): (), head: Parts, body: Bytes) -> Answer {
        match head.uri.path() {
            "/panic" => panic!("as asked"),
            "/slow" => tokio::time::sleep(Duration::from_millis(300)).await,
            "/large" => return Answer::Reply(Reply::json(200, &json!("x".repeat(64 * 1024 * 1024)))),
            "/pieces" => {
                let (sender, pieces) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    for piece in ["one ", "two ", "three"] {
                        sender.send(Bytes::from(piece)).await.unwrap();
                    }
                });
                return Answer::Stream {
                    content_type: "text/pieces",
                    pieces,
                };
            }
            "/switch" => {
                // What comes is said again.
                let (stream, mut other) = tokio::io::duplex(1024);
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(&mut other);
                    tokio::io::copy(&mut from, &mut to).await
                });
                return Answer::Switch {
                    protocol: "echo",
                    stream: Box::new(stream),
                };
            }
            _ => {}
        }
        Answer::Reply(Reply::json(200, &json!({ "length": body.len() })))
    }
}

struct Server {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let ended = tokio::spawn(serve_with(listener, Arc::new(Echo), limits, shutdown));
        Server { address, stop, ended }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends raw bytes and reads until the server closes.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        read_all(&mut stream).await
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn quick() -> Limits {
    Limits {
        connections: 64,
        head: Duration::from_millis(500),
        body: Duration::from_millis(500),
        write_stall: Duration::from_millis(500),
        shutdown: Duration::from_secs(2),
        ..Limits::default()
    }
}

fn request(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn an_answer_says_its_type_and_has_a_request_id() {
    let server = Server::start(quick()).await;
    let answer = server
        .exchange(&request("/", "content-length: 3\r\n", "abc"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-type: application/x-amz-json-1.1\r\n"),
        "{answer}"
    );
    assert!(answer.contains("x-amzn-requestid: "), "{answer}");
    assert!(answer.ends_with("{\"length\":3}"), "{answer}");
}

#[tokio::test]
async fn an_answer_can_come_piece_by_piece() {
    let server = Server::start(quick()).await;
    let answer = server
        .exchange(&request("/pieces", "content-length: 0\r\n", ""))
        .await;
    assert!(answer.contains("content-type: text/pieces"), "{answer}");
    let text: String = answer
        .split("\r\n")
        .filter(|line| line.ends_with(' ') || *line == "three")
        .collect();
    assert_eq!(text, "one two three");
}

#[tokio::test]
async fn a_connection_that_sends_nothing_is_closed() {
    let server = Server::start(quick()).await;
    let started = Instant::now();
    let mut stream = server.connect().await;
    read_all(&mut stream).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "it was open for {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_answer() {
    let server = Server::start(quick()).await;
    let started = Instant::now();
    let answer = server
        .exchange(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert!(answer.contains("{\"length\":0}"), "{answer}");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "it was open for {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_head_that_comes_drop_by_drop_is_cut_off() {
    let server = Server::start(quick()).await;
    let mut stream = server.connect().await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        if stream.write_all(b"P").await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it went on for ten seconds");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = Server::start(quick()).await;
    let answer = server
        .exchange(&request("/", "content-length: 10\r\n", "abc"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("RequestTimeoutException"), "{answer}");
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_and_their_sender_hears_why() {
    let server = Server::start(quick()).await;
    let mut stream = server.connect().await;
    stream
        .write_all(&request("/", "content-length: 104857600\r\n", ""))
        .await
        .unwrap();
    let block = vec![b'x'; 1024 * 1024];
    for _ in 0..100 {
        if stream.write_all(&block).await.is_err() {
            break;
        }
    }
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("RequestEntityTooLargeException"), "{answer}");
}

#[tokio::test]
async fn a_body_without_a_declared_length_is_bounded_too() {
    let server = Server::start(quick()).await;
    let mut stream = server.connect().await;
    stream
        .write_all(&request("/", "transfer-encoding: chunked\r\n", ""))
        .await
        .unwrap();
    let block = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    for _ in 0..64 {
        if stream.write_all(&block).await.is_err() {
            break;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn the_largest_body_is_taken_whole() {
    let server = Server::start(quick()).await;
    let body = "x".repeat(1024 * 1024);
    let answer = server
        .exchange(&request("/", "content-length: 1048576\r\n", &body))
        .await;
    assert!(answer.ends_with("{\"length\":1048576}"), "{answer}");
}

#[tokio::test]
async fn a_refused_head_is_answered_before_the_body_comes() {
    let server = Server::start(quick()).await;
    let mut stream = server.connect().await;
    let head = b"POST /unsigned HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = [0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("MissingAuthenticationTokenException"), "{answer}");
}

#[tokio::test]
async fn a_panic_is_an_error_of_one_request_only() {
    let server = Server::start(quick()).await;
    let answer = server.exchange(&request("/panic", "", "")).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(
        answer.contains("ServerException") && !answer.contains("as asked"),
        "{answer}"
    );
    let answer = server.exchange(&request("/", "", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = Server::start(quick()).await;
    let answer = server
        .exchange(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        .await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
        "{answer}"
    );
    let huge = format!("x: {}\r\n", "y".repeat(1024 * 1024));
    let mut stream = server.connect().await;
    let _ = stream.write_all(&request("/", &huge, "")).await;
    let answer = read_all(&mut stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

#[tokio::test]
async fn a_caller_that_takes_nothing_of_its_answer_is_left() {
    let server = Server::start(Limits {
        connections: 1,
        ..quick()
    })
    .await;
    let mut stuck = server.connect().await;
    stuck.write_all(&request("/large", "", "")).await.unwrap();
    // The one place is free again, while the first caller still holds its end.
    let answer = server.exchange(&request("/", "", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(stuck);
}

#[tokio::test]
async fn two_hundred_silent_connections_keep_nobody_out() {
    let server = Server::start(Limits {
        head: Duration::from_secs(20),
        ..Limits::default()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(server.connect().await);
    }
    let answer = tokio::time::timeout(Duration::from_secs(5), server.exchange(&request("/", "", ""))).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_their_turn() {
    let server = Server::start(Limits {
        connections: 2,
        ..quick()
    })
    .await;
    let _silent = [server.connect().await, server.connect().await];
    let answer = server.exchange(&request("/", "", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_request_under_way_is_answered_when_the_server_stops() {
    let server = Server::start(quick()).await;
    let mut busy = server.connect().await;
    busy.write_all(&request("/slow", "", "")).await.unwrap();
    let _idle = server.connect().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let Server { address, stop, ended } = server;
    stop.send(()).unwrap();
    let stopped = Instant::now();
    let answer = read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .unwrap()
        .unwrap();
    assert!(
        stopped.elapsed() < Duration::from_millis(1500),
        "idle connections held it up"
    );
    assert!(TcpStream::connect(address).await.is_err(), "it still listens");
}

#[tokio::test]
async fn a_switched_connection_carries_bytes_both_ways_and_outlasts_the_stall_guard() {
    let server = Server::start(quick()).await;
    let mut stream = server.connect().await;
    // The first bytes of the other protocol come with the request already.
    let head = "POST /switch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\ncontent-length: 0\r\n\r\nfirst";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let mut text = String::new();
    while !text.ends_with("first") {
        let count = stream.read(&mut answer).await.unwrap();
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&answer[..count]));
    }
    assert!(
        text.starts_with("HTTP/1.1 101 Switching Protocols\r\n") && text.contains("upgrade: echo\r\n"),
        "{text}"
    );
    // More than all buffers on the way hold, and nobody reads for longer than a stalled answer may take.
    let sent = vec![7; 16 * 1024 * 1024];
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    });
    tokio::time::sleep(Duration::from_millis(800)).await;
    let mut received = Vec::new();
    from.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), 16 * 1024 * 1024);
    writing.await.unwrap();
}

#[tokio::test]
async fn a_caller_that_has_closed_its_side_is_answered_where_that_is_said() {
    let server = Server::start(Limits {
        half_closed: true,
        ..quick()
    })
    .await;
    let mut stream = server.connect().await;
    stream.write_all(&request("/slow", "", "")).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
