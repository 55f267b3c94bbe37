//! From an HTTP request to a websocket (RFC 6455): the address of a data channel, the opening handshake, and the limits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::message::MAX_MESSAGE_BYTES;
use crate::error::ApiError;

const PATH: &str = "/v1/data-channel/";
/// What both sides put behind the client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const READ_BUFFER_BYTES: usize = 8 * 1024;
const WRITE_BUFFER_BYTES: usize = 64 * 1024;

/// The session whose data channel is asked for, if the request is for one.
pub(crate) fn session(head: &Parts) -> Option<&str> {
    head.uri.path().strip_prefix(PATH)
}

/// Where the client of this request finds a session: at the same host, which its signature covers. A proxy that spoke TLS
/// with it says so.
pub(crate) fn url(headers: &HeaderMap, session: &str) -> Result<String, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host: Option<Authority> = text("host").and_then(|host| host.parse().ok());
    let host = host.filter(|host| !host.as_str().contains('@'));
    let host =
        host.ok_or_else(|| ApiError::InvalidParameter("The header 'Host' is not a host.".to_owned()))?;
    let tls = text("x-forwarded-proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let scheme = if tls { "wss" } else { "ws" };
    Ok(format!("{scheme}://{host}{PATH}{session}?role=publish_subscribe"))
}

/// `Sec-WebSocket-Accept` for a request that opens a websocket as it should.
pub(crate) fn accept(head: &Parts) -> Result<HeaderValue, ApiError> {
    let refused = |what: &str| ApiError::Validation(format!("This is for websockets: {what}."));
    let has = |name: &str, token: &str| {
        let values = head
            .headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let mut tokens = values.flat_map(|value| value.split(','));
        tokens.any(|it| it.trim().eq_ignore_ascii_case(token))
    };
    if head.method != Method::GET || !has("connection", "upgrade") || !has("upgrade", "websocket") {
        return Err(refused("GET with 'Connection: Upgrade' and 'Upgrade: websocket'"));
    }
    if !has("sec-websocket-version", "13") {
        return Err(refused("version 13"));
    }
    let key = head
        .headers
        .get("sec-websocket-key")
        .map_or(&b""[..], HeaderValue::as_bytes);
    if STANDARD.decode(key).ok().is_none_or(|key| key.len() != 16) {
        return Err(refused("'Sec-WebSocket-Key' has 16 bytes as base64"));
    }
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    HeaderValue::try_from(accept).map_err(|error| ApiError::server(&error))
}

/// This side of a connection that has become a websocket.
pub(crate) async fn server<S: AsyncRead + AsyncWrite + Unpin>(connection: S) -> WebSocketStream<S> {
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(4 * WRITE_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(limits)).await
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/v1/data-channel/s-1?role=publish_subscribe");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// The example of RFC 6455, section 1.2.
    const OPENING: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn an_opening_handshake_is_answered_as_the_standard_says() {
        assert_eq!(accept(&head(&OPENING)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(session(&head(&OPENING)), Some("s-1"));
        for missing in 0..OPENING.len() {
            let rest: Vec<_> = (0..4).filter(|it| *it != missing).map(|it| OPENING[it]).collect();
            assert!(accept(&head(&rest)).is_err(), "{missing}");
        }
        let short = [OPENING[0], OPENING[1], OPENING[2], ("sec-websocket-key", "AAAA")];
        assert!(accept(&head(&short)).is_err());
    }

    #[test]
    fn the_address_is_where_the_client_came_to() {
        let url = |headers: &[(&str, &str)]| url(&head(headers).headers, "s-1");
        let path = "/v1/data-channel/s-1?role=publish_subscribe";
        assert_eq!(
            url(&[("host", "127.0.0.1:7070")]),
            Ok(format!("ws://127.0.0.1:7070{path}"))
        );
        assert_eq!(
            url(&[("host", "[::1]:7070")]),
            Ok(format!("ws://[::1]:7070{path}"))
        );
        let behind = [("host", "berth.example"), ("x-forwarded-proto", "https")];
        assert_eq!(url(&behind), Ok(format!("wss://berth.example{path}")));
        for bad in ["", "a b", "u@h", "h/p", "h?x"] {
            assert!(url(&[("host", bad)]).is_err(), "{bad}");
        }
    }
}
