//! What a request asks of S3, by its method, its path and its query. Pure.

use hyper::Method;

use super::names::{is_bucket, is_key};
use super::refusal::Refusal;
use crate::auth::decode;

/// Of a page of keys.
pub(super) const MAX_KEYS: usize = 1000;
/// Parameters that name something of a bucket or an object that there is not here, so that nobody takes the whole for it.
const PARTS: &[&str] = &[
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "partNumber",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    ListBuckets,
    CreateBucket(String),
    HeadBucket(String),
    GetBucketLocation(String),
    DeleteBucket(String),
    ListObjects(String, Listing),
    PutObject(String, String),
    /// HeadObject is the same without a body.
    GetObject(String, String),
    DeleteObject(String, String),
}

/// What ListObjectsV2 is to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) prefix: String,
    pub(super) delimiter: String,
    /// The last key of the page before.
    pub(super) after: String,
    pub(super) max_keys: usize,
    /// Whether keys are to be percent-encoded in the answer.
    pub(super) encoded: bool,
}

pub(super) fn parse(method: &Method, path: &str, query: &str) -> Result<Call, Refusal> {
    let query = parameters(query)?;
    let get = |name: &str| {
        query
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    if let Some((part, _)) = query.iter().find(|(name, _)| PARTS.contains(&name.as_str())) {
        return Err(Refusal::not_implemented(&format!("'{part}'")));
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let (bucket, key) = (text(bucket)?, text(key)?);
    if bucket.is_empty() {
        return match *method {
            Method::GET => Ok(Call::ListBuckets),
            _ => Err(Refusal::method_not_allowed()),
        };
    }
    if !is_bucket(&bucket) {
        return Err(Refusal::invalid_bucket_name());
    }
    if key.is_empty() {
        return match *method {
            Method::PUT => Ok(Call::CreateBucket(bucket)),
            Method::HEAD => Ok(Call::HeadBucket(bucket)),
            Method::DELETE => Ok(Call::DeleteBucket(bucket)),
            Method::GET if get("location").is_some() => Ok(Call::GetBucketLocation(bucket)),
            Method::GET if get("list-type").as_deref() == Some("2") => {
                Ok(Call::ListObjects(bucket, listing(get)?))
            }
            Method::GET => Err(Refusal::not_implemented("ListObjects (ListObjectsV2 is there)")),
            _ => Err(Refusal::method_not_allowed()),
        };
    }
    if !is_key(&key) {
        return Err(Refusal::invalid_key());
    }
    match *method {
        Method::PUT => Ok(Call::PutObject(bucket, key)),
        Method::GET | Method::HEAD => Ok(Call::GetObject(bucket, key)),
        Method::DELETE => Ok(Call::DeleteObject(bucket, key)),
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn listing(get: impl Fn(&str) -> Option<String>) -> Result<Listing, Refusal> {
    let said = |name: &str| get(name).unwrap_or_default();
    let max_keys = match said("max-keys").as_str() {
        "" => MAX_KEYS,
        number => number
            .parse::<usize>()
            .map_err(|_| Refusal::invalid_argument("max-keys must be a number from 0 on."))?
            .min(MAX_KEYS),
    };
    // Where a page ended is no secret: the token is the key itself.
    let token = get("continuation-token").map(|token| {
        let key = hex::decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        key.ok_or_else(|| Refusal::invalid_argument("The continuation token provided is incorrect"))
    });
    Ok(Listing {
        prefix: said("prefix"),
        delimiter: said("delimiter"),
        after: token.transpose()?.unwrap_or_else(|| said("start-after")),
        max_keys,
        encoded: match said("encoding-type").as_str() {
            "" => false,
            "url" => true,
            _ => {
                return Err(Refusal::invalid_argument(
                    "Invalid Encoding Method specified in Request",
                ));
            }
        },
    })
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let parameters = parameters.map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        Ok((text(name)?, text(value)?))
    });
    parameters.collect()
}

fn text(encoded: &str) -> Result<String, Refusal> {
    String::from_utf8(decode(encoded))
        .map_err(|_| Refusal::invalid_argument("The request's URI is no UTF-8."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_asks() {
        let bucket = || "config".to_owned();
        let of = |method: Method, uri: &str| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            parse(&method, path, query).map_err(|refusal| refusal.code)
        };
        assert_eq!(of(Method::GET, "/?x-id=ListBuckets"), Ok(Call::ListBuckets));
        assert_eq!(of(Method::PUT, "/config"), Ok(Call::CreateBucket(bucket())));
        assert_eq!(of(Method::HEAD, "/config/"), Ok(Call::HeadBucket(bucket())));
        assert_eq!(
            of(Method::GET, "/config?location"),
            Ok(Call::GetBucketLocation(bucket()))
        );
        assert_eq!(
            of(Method::PUT, "/config/a%20b/%C3%A9.env"),
            Ok(Call::PutObject(bucket(), "a b/é.env".to_owned()))
        );
        assert_eq!(
            of(Method::HEAD, "/config/k"),
            Ok(Call::GetObject(bucket(), "k".to_owned()))
        );
        let listed = Listing {
            prefix: "a/".to_owned(),
            delimiter: "/".to_owned(),
            after: "a/b".to_owned(),
            max_keys: 7,
            encoded: true,
        };
        assert_eq!(
            of(
                Method::GET,
                "/config?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=7&encoding-type=url&continuation-token=612f62"
            ),
            Ok(Call::ListObjects(bucket(), listed))
        );
        for (method, uri, code) in [
            (Method::GET, "/config", "NotImplemented"),
            (Method::GET, "/config/k?acl", "NotImplemented"),
            (Method::POST, "/config?delete", "NotImplemented"),
            (Method::POST, "/config/k", "MethodNotAllowed"),
            (Method::PUT, "/", "MethodNotAllowed"),
            (Method::PUT, "/UPPER", "InvalidBucketName"),
            (Method::PUT, "/config/a%00b", "InvalidArgument"),
            (Method::PUT, "/config/%ff", "InvalidArgument"),
            (Method::GET, "/config?list-type=2&max-keys=-1", "InvalidArgument"),
            (
                Method::GET,
                "/config?list-type=2&continuation-token=zz",
                "InvalidArgument",
            ),
        ] {
            assert_eq!(of(method, uri), Err(code), "{uri}");
        }
    }
}
