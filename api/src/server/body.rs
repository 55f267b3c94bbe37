//! Reading a request's body, within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::Limits;
use crate::error::ApiError;

/// The whole body. A body that is too large is refused by its declared length, or else where it passes the limit.
pub(super) async fn read(mut incoming: Incoming, limits: &Limits) -> Result<Bytes, ApiError> {
    let declared = incoming.size_hint().lower();
    if declared > limits.body_bytes as u64 {
        linger(incoming, limits.linger);
        return Err(ApiError::RequestTooLarge {
            limit: limits.body_bytes,
        });
    }
    let collected = tokio::time::timeout(limits.body, collect(&mut incoming, limits.body_bytes)).await;
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
