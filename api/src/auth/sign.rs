//! Signing a request, for our own client.

use berth_runtime::model::Timestamp;

use super::canonical::{CanonicalRequest, scope, sha256_hex, signature, signed_headers, string_to_sign};
use super::{ALGORITHM, DATE_FORMAT};
use crate::credentials::Credentials;

/// A request before it is signed. `path` and `query` are as they go on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    /// All of them are signed; `host` must be among them.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// For which service, and where, a signature is good.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
}

/// The headers to add: `x-amz-date` and `authorization`.
pub fn sign(
    request: &Unsigned<'_>,
    credentials: &Credentials,
    target: Scope<'_>,
    now: Timestamp,
) -> [(&'static str, String); 2] {
    let time = format_time(now);
    let date = &time[..8];
    let mut headers: Vec<(String, Vec<String>)> = vec![("x-amz-date".to_owned(), vec![time.clone()])];
    for (name, value) in request.headers {
        let name = name.to_ascii_lowercase();
        match headers.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push((*value).to_owned()),
            None => headers.push((name, vec![(*value).to_owned()])),
        }
    }
    headers.sort();
    let canonical = CanonicalRequest {
        method: request.method,
        path: request.path,
        path_as_it_is: false,
        query: request.query,
        headers: &headers,
        payload_hash: &sha256_hex(request.body),
    };
    let scope = scope(date, target.region, target.service);
    let to_sign = string_to_sign(&time, &scope, &canonical.text());
    let signature = signature(
        credentials.secret_access_key(),
        date,
        target.region,
        target.service,
        &to_sign,
    );
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
        credentials.access_key_id(),
        signed_headers(&headers),
    );
    [("x-amz-date", time), ("authorization", authorization)]
}

/// `20150830T123600Z`; a time beyond the calendar's end is its last second.
pub(super) fn format_time(time: Timestamp) -> String {
    let time = i64::try_from(time.0)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    time.unwrap_or(jiff::Timestamp::MAX)
        .strftime(DATE_FORMAT)
        .to_string()
}
