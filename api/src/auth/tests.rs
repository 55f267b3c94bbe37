//! Signing and verifying, against AWS's published example and against what botocore signed
//! (`signed_by_botocore.json`: requests made with the key of AWS's examples).

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_runtime::clock::{Clock, SimulatedClock};
use berth_runtime::model::Timestamp;
use hyper::Request;
use hyper::http::request::Parts;
use proptest::prelude::*;
use serde::Deserialize;

use super::canonical::{CanonicalRequest, sha256_hex, signature, signing_key, string_to_sign};
use super::*;
use crate::credentials::Credentials;
use crate::error::ApiError;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

#[test]
fn the_example_of_the_aws_documentation_comes_out_as_printed() {
    let headers = [
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("host", "iam.amazonaws.com"),
        ("x-amz-date", "20150830T123600Z"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), vec![value.to_owned()]));
    let canonical = CanonicalRequest {
        method: "GET",
        path: "/",
        path_as_it_is: false,
        query: "Action=ListUsers&Version=2010-05-08",
        headers: &headers,
        payload_hash: &sha256_hex(b""),
    };
    let text = canonical.text();
    assert_eq!(
        sha256_hex(text.as_bytes()),
        "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
    );
    assert_eq!(
        hex::encode(signing_key(SECRET, "20150830", "us-east-1", "iam")),
        "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    );
    let to_sign = string_to_sign("20150830T123600Z", "20150830/us-east-1/iam/aws4_request", &text);
    assert_eq!(
        signature(SECRET, "20150830", "us-east-1", "iam", &to_sign),
        "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    );
}

#[derive(Deserialize)]
struct Signed {
    name: String,
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: String,
    service: String,
    region: String,
    time: String,
}

impl Signed {
    fn all() -> Vec<Signed> {
        serde_json::from_str(include_str!("signed_by_botocore.json")).unwrap()
    }

    fn head(&self) -> Parts {
        let uri = if self.query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, self.query)
        };
        let mut request = Request::builder().method(self.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn gate(&self) -> (Gate, Arc<SimulatedClock>) {
        gate(&self.region, time(&self.time))
    }
}

fn time(text: &str) -> Timestamp {
    let time = jiff::civil::DateTime::strptime(DATE_FORMAT, text).unwrap();
    let time = time
        .to_zoned(jiff::tz::TimeZone::UTC)
        .unwrap()
        .timestamp()
        .as_millisecond();
    Timestamp(u64::try_from(time).unwrap())
}

fn gate(region: &str, now: Timestamp) -> (Gate, Arc<SimulatedClock>) {
    let clock = Arc::new(SimulatedClock::at(now));
    let credentials = Credentials::new("AKIDEXAMPLE", SECRET);
    (
        Gate {
            credentials,
            region: region.to_owned(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
        },
        clock,
    )
}

fn verify(gate: &Gate, head: &Parts, service: &str, body: &[u8]) -> Result<(), ApiError> {
    let claim = gate.admit(head, Some(service))?;
    gate.verify(&claim, head, body)
}

#[test]
fn what_botocore_signs_is_taken() {
    for signed in Signed::all() {
        let verified = verify(
            &signed.gate().0,
            &signed.head(),
            &signed.service,
            signed.body.as_bytes(),
        );
        assert_eq!(verified, Ok(()), "{}", signed.name);
    }
}

#[test]
fn what_botocore_signs_is_refused_once_anything_is_changed() {
    for signed in Signed::all() {
        let (gate, _) = signed.gate();
        let refused = |what: &str, head: &Parts, body: &[u8]| {
            let refused = verify(&gate, head, &signed.service, body);
            assert!(
                matches!(refused, Err(ApiError::InvalidSignature(_))),
                "{}: {what}: {refused:?}",
                signed.name
            );
        };
        let (head, body) = (signed.head(), signed.body.as_bytes());
        refused("body", &head, &[body, b" "].concat());
        for name in signed
            .headers
            .keys()
            .filter(|name| !["authorization", "user-agent"].contains(&name.as_str()))
        {
            let mut changed = head.clone();
            changed.headers.insert(
                hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                "20261101T120001Z".parse().unwrap(),
            );
            if verify(&gate, &changed, &signed.service, body).is_ok() {
                panic!("{}: {name} could be changed", signed.name);
            }
        }
        let mut changed = head.clone();
        changed.uri = "/other".parse().unwrap();
        refused("path", &changed, body);
        let mut changed = head.clone();
        changed.uri = format!("{}?a=2", signed.path).parse().unwrap();
        refused("query", &changed, body);
        let mut changed = head;
        changed.method = hyper::Method::PUT;
        refused("method", &changed, body);
    }
}

fn first() -> (Signed, Gate, Arc<SimulatedClock>) {
    let signed = Signed::all().swap_remove(0);
    let (gate, clock) = signed.gate();
    (signed, gate, clock)
}

#[test]
fn a_request_is_good_for_five_minutes_in_either_direction() {
    let (signed, gate, clock) = first();
    let check = || verify(&gate, &signed.head(), "ecs", signed.body.as_bytes());
    clock.advance_millis(5 * 60_000);
    assert_eq!(check(), Ok(()));
    clock.advance_millis(1000);
    assert_eq!(
        check().unwrap_err().to_string(),
        "Signature expired: 20261101T120000Z is now earlier than 20261101T120001Z (20261101T120501Z - 5 min.)"
    );
    clock.advance_millis(10 * 60_000);
    assert!(
        check().is_err(),
        "it could be replayed after a quarter of an hour"
    );

    let (gate, clock) = super::tests::gate("us-east-1", time("20261101T115500Z"));
    let check = || verify(&gate, &signed.head(), "ecs", signed.body.as_bytes());
    assert_eq!(check(), Ok(()));
    let (early, _) = super::tests::gate("us-east-1", Timestamp(clock.now().0 - 1000));
    let refused = verify(&early, &signed.head(), "ecs", signed.body.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("Signature not yet current: 20261101T120000Z is still later than"),
        "{refused}"
    );
}

#[test]
fn each_refusal_has_the_name_that_aws_gives_it() {
    let (signed, gate, _) = first();
    let code = |change: &dyn Fn(&mut Parts)| {
        let mut head = signed.head();
        change(&mut head);
        verify(&gate, &head, "ecs", signed.body.as_bytes())
            .unwrap_err()
            .code()
    };
    let authorization = signed.headers["authorization"].clone();
    let replaced = |from: &str, to: &str| {
        let value = authorization.replace(from, to);
        assert_ne!(value, authorization);
        code(&move |head: &mut Parts| {
            head.headers.insert("authorization", value.parse().unwrap());
        })
    };
    let missing = code(&|head| {
        head.headers.remove("authorization");
    });
    assert_eq!(missing, "MissingAuthenticationTokenException");
    assert_eq!(
        replaced("AWS4-HMAC-SHA256", "Basic"),
        "IncompleteSignatureException"
    );
    assert_eq!(replaced("Signature=", "Sig="), "IncompleteSignatureException");
    assert_eq!(replaced("/us-east-1/", "/"), "IncompleteSignatureException");
    assert_eq!(
        replaced("AKIDEXAMPLE", "AKIDOTHER"),
        "UnrecognizedClientException"
    );
    assert_eq!(
        replaced("/us-east-1/", "/eu-west-1/"),
        "InvalidSignatureException"
    );
    assert_eq!(replaced("/ecs/", "/logs/"), "InvalidSignatureException");
    assert_eq!(replaced("/20261101/", "/20261102/"), "InvalidSignatureException");
    assert_eq!(
        replaced("aws4_request", "aws5_request"),
        "InvalidSignatureException"
    );
    assert_eq!(replaced("host;", ""), "InvalidSignatureException");
    assert_eq!(replaced(";x-amz-target", ""), "InvalidSignatureException");
    assert_eq!(
        replaced("content-type;host", "host;content-type"),
        "InvalidSignatureException"
    );
    assert_eq!(
        replaced("content-type;", "content-type;no-such-header;"),
        "InvalidSignatureException"
    );
    let undated = code(&|head| {
        head.headers.remove("x-amz-date");
    });
    assert_eq!(undated, "IncompleteSignatureException");
    let unsigned_payload = code(&|head| {
        head.headers
            .insert("x-amz-content-sha256", "UNSIGNED-PAYLOAD".parse().unwrap());
    });
    assert_eq!(unsigned_payload, "InvalidSignatureException");
    let twice = code(&|head| {
        head.headers.append("authorization", "x".parse().unwrap());
    });
    assert_eq!(twice, "IncompleteSignatureException");
}

#[test]
fn another_secret_does_not_fit() {
    let (signed, mut gate, _) = first();
    gate.credentials = Credentials::new("AKIDEXAMPLE", "another");
    let refused = verify(&gate, &signed.head(), "ecs", signed.body.as_bytes());
    assert!(matches!(refused, Err(ApiError::InvalidSignature(_))));
}

/// A request as our own client makes it.
fn signed_by_us(path: &str, query: &str, extra: &str, body: &[u8], now: Timestamp) -> Parts {
    let headers = [("Host", "localhost:7070"), ("X-Extra", extra)];
    let request = Unsigned {
        method: "POST",
        path,
        query,
        headers: &headers,
        body,
    };
    let credentials = Credentials::new("AKIDEXAMPLE", SECRET);
    let added = sign(
        &request,
        &credentials,
        Scope {
            region: "us-east-1",
            service: "berth",
        },
        now,
    );
    let mut request = Request::builder().method("POST").uri(format!("{path}?{query}"));
    for (name, value) in headers
        .into_iter()
        .chain(added.iter().map(|(name, value)| (*name, value.as_str())))
    {
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

/// A request of a task that has been given temporary credentials, with this token.
fn signed_by_a_task(given: &temporary::Temporary, token: Option<&str>, now: Timestamp) -> Parts {
    let mut headers = vec![("host", "localhost:7070")];
    headers.extend(token.map(|token| ("x-amz-security-token", token)));
    let request = Unsigned {
        method: "POST",
        path: "/",
        query: "",
        headers: &headers,
        body: b"{}",
    };
    let scope = Scope {
        region: "us-east-1",
        service: "ecs",
    };
    let added = sign(&request, &given.credentials, scope, now);
    let mut request = Request::builder().method("POST").uri("/");
    for (name, value) in headers
        .into_iter()
        .chain(added.iter().map(|(name, value)| (*name, value.as_str())))
    {
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn temporary_credentials_are_taken_with_their_token_until_they_expire_and_tell_the_task() {
    let (gate, clock) = gate("us-east-1", Timestamp(1_793_534_400_000));
    let task = berth_runtime::model::task::TaskId::random();
    let given = temporary::issue(&gate.credentials, &task, clock.now());
    let token = Some(given.token.as_str());
    let head = signed_by_a_task(&given, token, clock.now());
    let claim = gate.admit(&head, Some("ecs")).unwrap();
    assert_eq!(claim.principal, Principal::Task(task.clone()));
    assert_eq!(gate.verify(&claim, &head, b"{}"), Ok(()));
    assert!(!format!("{claim:?}").contains(given.credentials.secret_access_key()));
    let code = |head: &Parts| verify(&gate, head, "ecs", b"{}").unwrap_err().code();
    let without = signed_by_a_task(&given, None, clock.now());
    assert_eq!(code(&without), "UnrecognizedClientException");
    let mut unsigned = without;
    unsigned
        .headers
        .insert("x-amz-security-token", given.token.parse().unwrap());
    assert_eq!(code(&unsigned), "InvalidSignatureException");
    let guessed = temporary::Temporary {
        credentials: Credentials::new(given.credentials.access_key_id(), "guessed"),
        ..given.clone()
    };
    assert_eq!(
        code(&signed_by_a_task(&guessed, token, clock.now())),
        "InvalidSignatureException"
    );
    clock.advance_millis(temporary::LIFE_MS);
    assert_eq!(
        code(&signed_by_a_task(&given, token, clock.now())),
        "ExpiredTokenException"
    );
}

proptest! {
    #[test]
    fn what_we_sign_is_taken_and_nothing_else(
        path in "/[a-z%0-9~.]{0,12}",
        query in "([a-z]{1,3}=[a-z0-9~.]{0,4}&?){0,4}",
        extra in "[!-~]([ -~]{0,12}[!-~])?",
        body: Vec<u8>,
        other: Vec<u8>,
        now in 0u64..4_000_000_000_000,
    ) {
        let (gate, _) = gate("us-east-1", Timestamp(now));
        let head = signed_by_us(&path, &query, &extra, &body, Timestamp(now));
        prop_assert_eq!(verify(&gate, &head, "berth", &body), Ok(()));
        prop_assert!(verify(&gate, &head, "ecs", &body).is_err());
        if other != body {
            prop_assert!(verify(&gate, &head, "berth", &other).is_err());
        }
    }

    #[test]
    fn no_header_is_too_strange_to_be_refused(
        authorization in "(AWS4-HMAC-SHA256 )?((Credential|SignedHeaders|Signature)=[ -~é]{0,60},? ?){0,4}",
        date in "[0-9TZé]{0,17}",
    ) {
        let (gate, _) = gate("us-east-1", Timestamp(1_793_534_400_000));
        let mut head = signed_by_us("/", "", "x", b"", Timestamp(1_793_534_400_000));
        head.headers.insert("authorization", hyper::http::HeaderValue::from_bytes(authorization.as_bytes()).unwrap());
        prop_assert!(verify(&gate, &head, "berth", b"").is_err());
        let mut head = signed_by_us("/", "", "x", b"", Timestamp(1_793_534_400_000));
        head.headers.insert("x-amz-date", hyper::http::HeaderValue::from_bytes(date.as_bytes()).unwrap());
        prop_assert!(verify(&gate, &head, "berth", b"").is_err());
    }
}
