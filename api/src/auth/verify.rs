//! Verifying a request's signature, in two steps: what the head alone can decide comes before the body is read.

use std::sync::Arc;

use berth_runtime::clock::Clock;
use berth_runtime::model::Timestamp;
use berth_runtime::model::task::TaskId;
use hyper::HeaderMap;
use hyper::http::request::Parts;
use subtle::ConstantTimeEq;

use super::canonical::{CanonicalRequest, scope, sha256_hex, signature, string_to_sign};
use super::sign::format_time;
use super::{ALGORITHM, DATE_FORMAT, TERMINATOR, temporary};
use crate::credentials::Credentials;
use crate::error::ApiError;
use crate::s3;

/// How far the caller's clock may be from ours; also how long a request can be replayed.
const MAX_SKEW_MINUTES: u64 = 5;
const SECURITY_TOKEN: &str = "x-amz-security-token";
const MISMATCH: &str = "The request signature we calculated does not match the signature you provided. Check your \
                        AWS Secret Access Key and signing method. Consult the service documentation for details.";
/// Longest piece of a caller's header that is repeated in an answer.
const MAX_ECHO_CHARS: usize = 200;

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Who has the key pair of the data directory.
    Account,
    /// A container of this task, or whoever it gave its credentials to.
    Task(TaskId),
}

/// Who may come in.
#[derive(Clone)]
pub struct Gate {
    pub credentials: Credentials,
    pub region: String,
    pub clock: Arc<dyn Clock>,
}

/// What the `Authorization` header says, checked but for the signature itself.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The signing name of the service in the credential scope.
    pub service: String,
    pub principal: Principal,
    credentials: Credentials,
    time: String,
    signed_headers: Vec<String>,
    signature: String,
}

impl Gate {
    /// Checks the head of a request. With `service`, the signature must be scoped to that service.
    pub fn admit(&self, head: &Parts, service: Option<&str>) -> Result<Claim, ApiError> {
        let header = single(&head.headers, "authorization")?.ok_or(ApiError::MissingAuthenticationToken)?;
        let authorization = Authorization::parse(header)?;
        let [key, date, region, scoped_service] = authorization.credential;
        let (principal, credentials) = self.holder(key, &head.headers)?;
        if region != self.region {
            return Err(ApiError::InvalidSignature(format!(
                "Credential should be scoped to a valid region, not '{}'. This is '{}'.",
                echo(region),
                self.region
            )));
        }
        if let Some(service) = service.filter(|service| *service != scoped_service) {
            return Err(ApiError::InvalidSignature(format!(
                "Credential should be scoped to correct service: '{service}'. "
            )));
        }
        let time = single(&head.headers, "x-amz-date")?.ok_or_else(|| {
            ApiError::IncompleteSignature(
                "Authorization header requires existence of a 'X-Amz-Date' header.".to_owned(),
            )
        })?;
        self.check_time(time, date)?;

        let signed_headers: Vec<String> = authorization
            .signed_headers
            .split(';')
            .map(str::to_owned)
            .collect();
        // A header that decides what is done must not be open to change on the way.
        for required in ["host", "x-amz-date", "x-amz-target", SECURITY_TOKEN] {
            let missing = !signed_headers.iter().any(|name| name == required);
            if missing && (head.headers.contains_key(required) || required == "host") {
                return Err(ApiError::InvalidSignature(format!(
                    "'{required}' must be a 'SignedHeader' in the AWS Authorization."
                )));
            }
        }
        if !signed_headers.is_sorted_by(|a, b| a < b) {
            return Err(ApiError::InvalidSignature(MISMATCH.to_owned()));
        }
        Ok(Claim {
            service: scoped_service.to_owned(),
            principal,
            credentials,
            time: time.to_owned(),
            signed_headers,
            signature: authorization.signature.to_owned(),
        })
    }

    /// Checks the signature over the whole request.
    pub fn verify(&self, claim: &Claim, head: &Parts, body: &[u8]) -> Result<(), ApiError> {
        let mismatch = || ApiError::InvalidSignature(MISMATCH.to_owned());
        let payload_hash = sha256_hex(body);
        match single(&head.headers, "x-amz-content-sha256")? {
            None => {}
            Some(said) if said == payload_hash => {}
            // For channels that protect the body themselves; this one does not.
            Some(said) if said == "UNSIGNED-PAYLOAD" || said.starts_with("STREAMING-") => {
                return Err(ApiError::InvalidSignature(format!(
                    "'X-Amz-Content-Sha256' must be the SHA-256 of the body here, not '{}' (in the client's \
                     configuration: payload_signing_enabled = true, request_checksum_calculation = when_required).",
                    echo(said)
                )));
            }
            Some(_) => return Err(mismatch()),
        }
        let mut headers = Vec::with_capacity(claim.signed_headers.len());
        for name in &claim.signed_headers {
            let values: Option<Vec<String>> = head
                .headers
                .get_all(name.as_str())
                .iter()
                .map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            let values = values.filter(|values| !values.is_empty()).ok_or_else(mismatch)?;
            headers.push((name.clone(), values));
        }
        let canonical = CanonicalRequest {
            method: head.method.as_str(),
            path: head.uri.path(),
            path_as_it_is: claim.service == s3::SIGNING_NAME,
            query: head.uri.query().unwrap_or(""),
            headers: &headers,
            payload_hash: &payload_hash,
        };
        let date = &claim.time[..8];
        let scope = scope(date, &self.region, &claim.service);
        let to_sign = string_to_sign(&claim.time, &scope, &canonical.text());
        let secret = claim.credentials.secret_access_key();
        let expected = signature(secret, date, &self.region, &claim.service, &to_sign);
        if bool::from(expected.as_bytes().ct_eq(claim.signature.as_bytes())) {
            Ok(())
        } else {
            Err(mismatch())
        }
    }

    /// Whose access key it is, and the credentials it belongs to.
    fn holder(&self, key: &str, headers: &HeaderMap) -> Result<(Principal, Credentials), ApiError> {
        if key == self.credentials.access_key_id() {
            return Ok((Principal::Account, self.credentials.clone()));
        }
        if !temporary::is_temporary(key) {
            return Err(ApiError::UnrecognizedClient);
        }
        let token = single(headers, SECURITY_TOKEN)?.ok_or(ApiError::UnrecognizedClient)?;
        let (task, credentials) = temporary::redeem(&self.credentials, key, token, self.clock.now())?;
        Ok((Principal::Task(task), credentials))
    }

    fn check_time(&self, time: &str, scope_date: &str) -> Result<(), ApiError> {
        let signed_at = parse_time(time).ok_or_else(|| {
            ApiError::IncompleteSignature(format!(
                "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
                echo(time)
            ))
        })?;
        if scope_date != &time[..8] {
            return Err(ApiError::InvalidSignature(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{}', from '{time}'.",
                echo(scope_date),
                &time[..8]
            )));
        }
        let now = self.clock.now();
        let skew_ms = MAX_SKEW_MINUTES * 60 * 1000;
        let earliest = Timestamp(now.0.saturating_sub(skew_ms));
        let latest = now.plus_millis(skew_ms);
        let refused = if signed_at < Timestamp(earliest.0 / 1000 * 1000) {
            format!(
                "Signature expired: {time} is now earlier than {} ({} - {MAX_SKEW_MINUTES} min.)",
                format_time(earliest),
                format_time(now)
            )
        } else if signed_at > latest {
            format!(
                "Signature not yet current: {time} is still later than {} ({} + {MAX_SKEW_MINUTES} min.)",
                format_time(latest),
                format_time(now)
            )
        } else {
            return Ok(());
        };
        Err(ApiError::InvalidSignature(refused))
    }
}

/// The parts of an `Authorization` header.
struct Authorization<'a> {
    /// Key id, date, region, service.
    credential: [&'a str; 4],
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Result<Authorization<'a>, ApiError> {
        let (algorithm, parameters) = header.trim().split_once(' ').unwrap_or((header, ""));
        if algorithm != ALGORITHM {
            return Err(ApiError::IncompleteSignature(format!(
                "Unsupported AWS 'algorithm': '{}'.",
                echo(algorithm)
            )));
        }
        let parameter = |wanted: &str| {
            parameters
                .split(',')
                .filter_map(|parameter| parameter.trim().split_once('='))
                .find_map(|(name, value)| (name == wanted && !value.is_empty()).then_some(value))
        };
        let (Some(credential), Some(signed_headers), Some(signature)) = (
            parameter("Credential"),
            parameter("SignedHeaders"),
            parameter("Signature"),
        ) else {
            let missing: String = ["Credential", "SignedHeaders", "Signature"]
                .iter()
                .filter(|name| parameter(name).is_none())
                .map(|name| format!("Authorization header requires '{name}' parameter. "))
                .collect();
            return Err(ApiError::IncompleteSignature(missing.trim_end().to_owned()));
        };
        let elements: Vec<&str> = credential.split('/').collect();
        match elements[..] {
            [key, date, region, service, TERMINATOR] => Ok(Authorization {
                credential: [key, date, region, service],
                signed_headers,
                signature,
            }),
            [_, _, _, _, terminator] => Err(ApiError::InvalidSignature(format!(
                "Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{}'.",
                echo(terminator)
            ))),
            _ => Err(ApiError::IncompleteSignature(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{}'",
                echo(credential)
            ))),
        }
    }
}

/// The value of a header that may come at most once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match (value.to_str(), values.next()) {
        (Ok(value), None) => Ok(Some(value)),
        _ => Err(ApiError::IncompleteSignature(format!(
            "Header '{name}' must come once, in ASCII."
        ))),
    }
}

/// Only the one form, of 16 ASCII bytes, so that its first eight are the date.
fn parse_time(text: &str) -> Option<Timestamp> {
    let digits = |range: std::ops::Range<usize>| text.as_bytes()[range].iter().all(u8::is_ascii_digit);
    let well_formed = text.len() == 16
        && text.is_ascii()
        && digits(0..8)
        && text.as_bytes()[8] == b'T'
        && digits(9..15)
        && text.ends_with('Z');
    if !well_formed {
        return None;
    }
    let time = jiff::civil::DateTime::strptime(DATE_FORMAT, text).ok()?;
    let time = time
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?
        .timestamp()
        .as_millisecond();
    u64::try_from(time).ok().map(Timestamp)
}

fn echo(text: &str) -> String {
    text.chars().take(MAX_ECHO_CHARS).collect()
}
