//! The HTTP/1.1 server: connections, limits and timeouts. It knows requests and replies, not what they mean: that is
//! a [`Handler`]'s. TLS is not spoken.

mod body;
mod stall;
mod switch;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::GuestStream;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::body::{Pieces, ReplyBody};
use self::stall::StallGuard;
use crate::app::App;
use crate::error::ApiError;
use crate::reply::Reply;

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// What the head alone can decide, and the body need not come for.
    type Admission: Send + 'static;
    fn admit(&self, head: &Parts) -> Result<Self::Admission, Reply>;
    /// Most bytes of the request's body.
    fn body_bytes(&self, _admission: &Self::Admission, limits: &Limits) -> usize {
        limits.body_bytes
    }
    /// Runs to its end even if the caller goes away.
    fn handle(
        self: Arc<Self>,
        admission: Self::Admission,
        head: Parts,
        body: Bytes,
    ) -> impl Future<Output = Answer> + Send;
}

/// What a request comes to.
pub enum Answer {
    Reply(Reply),
    /// A body that comes piece by piece, until its sender is dropped. When the caller goes away, its receiver is.
    Stream {
        content_type: &'static str,
        pieces: mpsc::Receiver<Bytes>,
    },
    /// The connection is no longer HTTP's: what comes over it goes to the stream, and back, until either ends.
    Switch {
        protocol: &'static str,
        stream: Box<dyn GuestStream>,
    },
    /// The connection becomes a websocket, and `serve` has it from then on. It still gives up on a peer that takes nothing.
    WebSocket {
        accept: HeaderValue,
        serve: ServeUpgraded,
    },
}

/// Serves a connection that is no longer HTTP's.
pub type ServeUpgraded = Box<dyn FnOnce(Upgraded) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// How much of the server one caller can hold, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Time for the head of a request, and for an idle connection until the next one.
    pub head: Duration,
    pub body: Duration,
    pub body_bytes: usize,
    /// Places for bodies that may be larger, and say so: those who send them have proved nothing yet.
    pub large_bodies: Arc<Semaphore>,
    /// Time in which a caller must take some part of an answer.
    pub write_stall: Duration,
    /// Time for which the rest of a refused body is read, and thrown away, so that its sender sees the answer.
    pub linger: Duration,
    /// Time for requests under way when the server stops.
    pub shutdown: Duration,
    /// Whether a caller that has said all, and closed its side, is still answered. One that has gone altogether looks the
    /// same, and holds its place until the answer.
    pub half_closed: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            body_bytes: 1024 * 1024,
            large_bodies: Arc::new(Semaphore::new(8)),
            write_stall: Duration::from_secs(30),
            linger: Duration::from_secs(5),
            shutdown: Duration::from_secs(5),
            half_closed: false,
        }
    }
}

/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Pause after the system refused to accept (it is out of descriptors), so as not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` completes, and then until the requests under way are answered.
pub async fn serve(listener: TcpListener, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    serve_with(listener, app, Limits::default(), shutdown).await;
}

/// Like [`serve`], for any handler and limits.
pub async fn serve_with<H: Handler>(
    listener: TcpListener,
    handler: Arc<H>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let limits = Arc::new(limits);
    let places = Arc::new(Semaphore::new(limits.connections));
    let stopping = CancellationToken::new();
    let connections = TaskTracker::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            // Only once there is a place: what comes before waits in the kernel's queue, which is bounded too.
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (accepted, place) = accepted => match (accepted, place) {
                (Ok((stream, _)), Ok(place)) => {
                    // Answers are small and written at once; without this they wait for the caller's delayed
                    // acknowledgement.
                    let _ = stream.set_nodelay(true);
                    let connection =
                        connection(stream, Arc::clone(&handler), Arc::clone(&limits), stopping.clone(), place);
                    connections.spawn(connection);
                }
                (Err(error), _) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
                // The semaphore is never closed.
                (Ok(_), Err(_)) => break,
            },
        }
    }
    drop(listener);
    stopping.cancel();
    connections.close();
    if tokio::time::timeout(limits.shutdown, connections.wait())
        .await
        .is_err()
    {
        tracing::info!("{} connections were still busy at the end", connections.len());
    }
}

/// Serves one connection to its end. Only one that [`serve_with`] took can be switched to another protocol.
pub(crate) async fn connection<H: Handler, S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    handler: Arc<H>,
    limits: Arc<Limits>,
    stopping: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request| {
        let handler = Arc::clone(&handler);
        let limits = Arc::clone(&limits);
        async move { Ok::<_, Infallible>(answer(handler, &limits, request).await) }
    });
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(limits.half_closed)
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended early: {error}");
    }
}

async fn answer<H: Handler>(
    handler: Arc<H>,
    limits: &Limits,
    mut request: Request<Incoming>,
) -> Response<ReplyBody> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, incoming) = request.into_parts();
    let admission = match handler.admit(&head) {
        Ok(admission) => admission,
        Err(reply) => {
            body::linger(incoming, limits.linger);
            return response(reply);
        }
    };
    let limit = handler.body_bytes(&admission, limits);
    let body = match body::read(incoming, limits, limit).await {
        Ok(body) => body,
        Err(error) => return response(error.to_reply()),
    };
    // A task of its own: what it began it ends, whether or not the caller waits; and a panic in it stays in it.
    match tokio::spawn(handler.handle(admission, head, body)).await {
        Ok(Answer::Reply(reply)) => response(reply),
        Ok(Answer::Stream { content_type, pieces }) => {
            let mut response = Response::new(Either::Right(Pieces(pieces)));
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static(content_type));
            response
        }
        Ok(Answer::Switch { protocol, stream }) => {
            tokio::spawn(switch::relay(upgrade, stream));
            switch::response(protocol).map(Either::Left)
        }
        Ok(Answer::WebSocket { accept, serve }) => {
            tokio::spawn(switch::hand_over(upgrade, serve));
            let mut response = switch::response("websocket");
            response.headers_mut().insert("sec-websocket-accept", accept);
            response.map(Either::Left)
        }
        Err(error) => response(ApiError::server(&error).to_reply()),
    }
}

fn response(reply: Reply) -> Response<ReplyBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(reply.body))));
    *response.status_mut() =
        hyper::StatusCode::from_u16(reply.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let more = reply.headers.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in more.chain([("content-type", reply.content_type.as_ref())]) {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    if let Ok(request_id) = HeaderValue::from_str(&reply.request_id) {
        headers.insert("x-amzn-requestid", request_id);
    }
    response
}
