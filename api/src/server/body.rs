//! Reading a request's body, within bounds of size and time, and the body of an answer that comes piece by piece.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;

use super::Limits;
use crate::error::ApiError;

/// The body of an answer.
pub(super) type ReplyBody = Either<Full<Bytes>, Pieces>;

/// A body that comes piece by piece.
pub(super) struct Pieces(pub(super) mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// The whole body. A body that is too large is refused by its declared length, or else where it passes the limit.
pub(super) async fn read(mut incoming: Incoming, limits: &Limits, limit: usize) -> Result<Bytes, ApiError> {
    let declared = incoming.size_hint().lower();
    if declared > limit as u64 {
        linger(incoming, limits.linger);
        return Err(ApiError::RequestTooLarge { limit });
    }
    let large = declared > limits.body_bytes as u64;
    let limit = if large {
        limit
    } else {
        limit.min(limits.body_bytes)
    };
    let collected = tokio::time::timeout(limits.body, async {
        let _place = match large {
            true => limits.large_bodies.acquire().await.ok(),
            false => None,
        };
        collect(&mut incoming, limit).await
    });
    let collected = collected.await;
    let result = collected.unwrap_or(Err(ApiError::RequestTimeout {
        seconds: limits.body.as_secs(),
    }));
    if matches!(result, Err(ApiError::RequestTooLarge { .. })) {
        linger(incoming, limits.linger);
    }
    result
}

async fn collect(incoming: &mut Incoming, limit: usize) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame
            .map_err(|_| ApiError::Serialization("The request body ended before it was whole.".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - body.len() {
            return Err(ApiError::RequestTooLarge { limit });
        }
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// Reads the rest of a body and throws it away, for a while. A connection closed with bytes unread is reset, and then
/// a caller that is still sending may never see the answer.
pub(super) fn linger(mut incoming: Incoming, time: Duration) {
    if incoming.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(time, async move {
        while let Some(Ok(_)) = incoming.frame().await {}
    }));
}
