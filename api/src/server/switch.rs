//! A connection that stops being HTTP's.

use berth_runtime::GuestStream;
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::HeaderValue;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use super::ServeUpgraded;
use super::stall::StallGuard;

pub(super) fn response(protocol: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", HeaderValue::from_static(protocol));
    response
}

/// Gives the connection to whoever serves it now.
pub(super) async fn hand_over(upgrade: OnUpgrade, serve: ServeUpgraded) {
    match upgrade.await {
        Ok(upgraded) => serve(upgraded).await,
        Err(error) => tracing::debug!("a connection was not switched: {error}"),
    }
}

/// Passes on what comes, both ways, until either side ends. The caller may take its time: it holds up nobody but itself.
pub(super) async fn relay(upgrade: OnUpgrade, mut stream: Box<dyn GuestStream>) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!("a connection was not switched: {error}"),
    };
    let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<StallGuard<TcpStream>>>() else {
        return tracing::error!("a connection is not what it was made of");
    };
    let mut caller = io.into_inner().into_inner();
    let passed = async {
        stream.write_all(&read_buf).await?;
        copy_bidirectional(&mut caller, &mut stream).await
    };
    if let Err(error) = passed.await {
        tracing::debug!("a switched connection ended early: {error}");
    }
}
