//! Events that clients put: each brings a time of its own.

use std::path::Path;

use super::LogError;
use super::record::{Header, Origin, PUT_AT};
use super::tail::Tail;
use crate::model::Timestamp;

/// Appends events to the log at `path`, all or none.
pub fn put(path: &Path, events: &[(Timestamp, &str)], now: Timestamp) -> Result<(), LogError> {
    let (mut tail, last) = Tail::open(path)?;
    let mut order = last.map_or(Timestamp(0), |header| header.order);
    let mut disorder_ms = last.map_or(0, |header| header.disorder_ms());
    let put_at = now.0.to_le_bytes();
    for &(timestamp, message) in events {
        order = order.max(timestamp);
        disorder_ms = disorder_ms.max(order.millis_since(timestamp));
        let origin = Origin::Event {
            timestamp,
            disorder_ms,
        };
        let header = Header {
            text_len: PUT_AT + message.len(),
            order,
            origin,
        };
        tail.push(&header, &[&put_at, message.as_bytes()]);
    }
    tail.write()
}
