//! The canonical request, the string to sign and the signature, as AWS's "Signature Version 4 signing process"
//! describes them. Pure; no clock and no key store.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{ALGORITHM, TERMINATOR};

/// What is signed. `path` and `query` are as on the wire.
pub(super) struct CanonicalRequest<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// S3 signs the path as it is on the wire; the other services encode it once more.
    pub(super) path_as_it_is: bool,
    pub(super) query: &'a str,
    /// The signed headers: lower-case names in order, each with its values.
    pub(super) headers: &'a [(String, Vec<String>)],
    pub(super) payload_hash: &'a str,
}

impl CanonicalRequest<'_> {
    pub(super) fn text(&self) -> String {
        let path = if self.path.is_empty() { "/" } else { self.path };
        let path = match self.path_as_it_is {
            // However the client wrote it.
            true => encode(&decode(path), b"/"),
            false => encode(path.as_bytes(), b"/"),
        };
        let mut text = format!("{}\n{path}\n{}\n", self.method, query(self.query));
        for (name, values) in self.headers {
            let values: Vec<String> = values.iter().map(|value| squeeze(value)).collect();
            let _ = writeln!(text, "{name}:{}", values.join(","));
        }
        let _ = write!(text, "\n{}\n{}", signed_headers(self.headers), self.payload_hash);
        text
    }
}

/// Names of the signed headers, joined by semicolons.
pub(super) fn signed_headers(headers: &[(String, Vec<String>)]) -> String {
    headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>()
        .join(";")
}

/// `time` is `20150830T123600Z`, `scope` is `20150830/us-east-1/iam/aws4_request`.
pub(super) fn string_to_sign(time: &str, scope: &str, canonical_request: &str) -> String {
    format!(
        "{ALGORITHM}\n{time}\n{scope}\n{}",
        sha256_hex(canonical_request.as_bytes())
    )
}

pub(super) fn scope(date: &str, region: &str, service: &str) -> String {
    format!("{date}/{region}/{service}/{TERMINATOR}")
}

/// Lower-case hex of the signature of `string_to_sign`.
pub(super) fn signature(
    secret: &str,
    date: &str,
    region: &str,
    service: &str,
    string_to_sign: &str,
) -> String {
    hex::encode(hmac(
        &signing_key(secret, date, region, service),
        string_to_sign.as_bytes(),
    ))
}

pub(super) fn signing_key(secret: &str, date: &str, region: &str, service: &str) -> [u8; 32] {
    let mut key = hmac(format!("AWS4{secret}").as_bytes(), date.as_bytes());
    for part in [region, service, TERMINATOR] {
        key = hmac(&key, part.as_bytes());
    }
    key
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// Percent-encodes everything but unreserved characters and `keep`.
pub(crate) fn encode(bytes: &[u8], keep: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A percent sign that two hex digits do not follow stays as it is.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes[at] == b'%' && at + 2 < bytes.len();
        match escaped.then(|| hex::decode(&bytes[at + 1..at + 3])) {
            Some(Ok(byte)) => {
                decoded.extend(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Parameters sorted by name and then value, each encoded the same way however the client wrote it.
fn query(raw: &str) -> String {
    let mut parameters: Vec<(String, String)> = raw
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (encode(&decode(name), b""), encode(&decode(value), b""))
        })
        .collect();
    parameters.sort();
    parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join("&")
}

/// Without space at the ends, and with single spaces between the words.
fn squeeze(value: &str) -> String {
    value
        .split([' ', '\t'])
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_sorted_and_encoded_in_one_way() {
        assert_eq!(query("b=2&a=%7E&a=1&c"), "a=1&a=~&b=2&c=");
        assert_eq!(query("x=%zz&y=%4"), "x=%25zz&y=%254");
        assert_eq!(query(""), "");
    }

    #[test]
    fn a_path_is_encoded_once_more_but_for_s3() {
        let mut request = CanonicalRequest {
            method: "GET",
            path: "/a%20b/~c'",
            path_as_it_is: false,
            query: "",
            headers: &[],
            payload_hash: "",
        };
        assert!(request.text().starts_with("GET\n/a%2520b/~c%27\n"));
        request.path_as_it_is = true;
        assert!(request.text().starts_with("GET\n/a%20b/~c%27\n"));
    }

    #[test]
    fn header_values_lose_superfluous_space() {
        assert_eq!(squeeze("  a   b \t c "), "a b c");
    }
}
