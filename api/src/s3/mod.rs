//! As much of S3 as environment files need: buckets, and small objects in them, by path-style addresses. For the clients
//! that put such files there: `aws s3`, boto3, Terraform. Objects are sealed, and kept where secrets are.

pub(crate) mod names;
mod refusal;
mod request;

use berth_runtime::model::Timestamp;
use berth_runtime::model::object::Object;
use berth_runtime::secrets::{PutObject, SecretBytes, SecretStore};
use hyper::HeaderMap;
use hyper::http::request::Parts;

use self::refusal::Refusal;
use self::request::{Call, Listing};
use crate::app::App;
use crate::auth::encode;
use crate::other::{XML, escape};
use crate::reply::Reply;

/// In the credential scope.
pub(crate) const SIGNING_NAME: &str = "s3";
/// Of one object.
const MAX_OBJECT_BYTES: usize = 256 * 1024;
const MAX_TYPE_CHARS: usize = 256;
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const DEFAULT_TYPE: &str = "binary/octet-stream";
/// What a bucket in this region says of its location.
const FIRST_REGION: &str = "us-east-1";

/// Answers a request whose signature is good.
pub(crate) async fn answer(app: &App, head: &Parts, body: &[u8]) -> Reply {
    let call = request::parse(
        &head.method,
        head.uri.path(),
        head.uri.query().unwrap_or_default(),
    );
    let answer = match call {
        Ok(call) => carry_out(app, call, &head.headers, body).await,
        Err(refusal) => Err(refusal),
    };
    tracing::debug!(
        service = SIGNING_NAME,
        method = %head.method,
        error = answer.as_ref().err().map(|refusal| refusal.code),
        "answered"
    );
    answer.unwrap_or_else(|refusal| refusal.to_reply())
}

async fn carry_out(app: &App, call: Call, headers: &HeaderMap, body: &[u8]) -> Result<Reply, Refusal> {
    let store = app.runtime.secrets();
    Ok(match call {
        Call::ListBuckets => list_buckets(app).await?,
        Call::CreateBucket(bucket) => {
            store.create_bucket(&bucket).await?;
            empty(200).with_header("location", format!("/{bucket}"))
        }
        Call::HeadBucket(bucket) => {
            store.bucket(&bucket).await?;
            empty(200).with_header("x-amz-bucket-region", &app.owner.region)
        }
        Call::GetBucketLocation(bucket) => {
            store.bucket(&bucket).await?;
            let region = Some(app.owner.region.as_str()).filter(|region| *region != FIRST_REGION);
            let region = escape(region.unwrap_or_default());
            Reply::xml(200, |_| {
                format!("{XML}<LocationConstraint xmlns=\"{NAMESPACE}\">{region}</LocationConstraint>")
            })
        }
        Call::DeleteBucket(bucket) => {
            store.delete_bucket(&bucket).await?;
            empty(204)
        }
        Call::ListObjects(bucket, listing) => list_objects(store, &bucket, &listing).await?,
        Call::PutObject(bucket, key) => put(store, bucket, key, headers, body).await?,
        Call::GetObject(bucket, key) => {
            let (object, content) = store.object(&bucket, &key).await?;
            let kind = object
                .content_type
                .clone()
                .unwrap_or_else(|| DEFAULT_TYPE.to_owned());
            Reply::other(200, kind, content.expose().to_vec())
                .with_header("etag", quoted(&object))
                .with_header("last-modified", http_time(object.modified_at))
        }
        Call::DeleteObject(bucket, key) => {
            store.delete_object(&bucket, &key).await?;
            empty(204)
        }
    })
}

async fn list_buckets(app: &App) -> Result<Reply, Refusal> {
    let buckets = app.runtime.secrets().buckets().await?;
    let account = escape(&app.owner.account_id);
    let listed: String = buckets
        .iter()
        .map(|bucket| {
            let created = iso_time(bucket.created_at);
            format!(
                "<Bucket><Name>{}</Name><CreationDate>{created}</CreationDate></Bucket>",
                bucket.name
            )
        })
        .collect();
    Ok(Reply::xml(200, |_| {
        format!(
            "{XML}<ListAllMyBucketsResult xmlns=\"{NAMESPACE}\"><Owner><ID>{account}</ID></Owner>\
             <Buckets>{listed}</Buckets></ListAllMyBucketsResult>"
        )
    }))
}

async fn put(
    store: &SecretStore,
    bucket: String,
    key: String,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Reply, Refusal> {
    if headers.contains_key("x-amz-copy-source") {
        return Err(Refusal::not_implemented("CopyObject"));
    }
    if body.len() > MAX_OBJECT_BYTES {
        return Err(Refusal::too_large(body.len(), MAX_OBJECT_BYTES));
    }
    let kind = headers
        .get("content-type")
        .map(|kind| kind.to_str().unwrap_or_default());
    if kind.is_some_and(|kind| kind.len() > MAX_TYPE_CHARS) {
        return Err(Refusal::invalid_argument(
            "Content-Type has at most 256 characters.",
        ));
    }
    let object = store
        .put_object(PutObject {
            bucket,
            key,
            content: SecretBytes::new(body.to_vec()),
            etag: hex::encode(rand::random::<[u8; 16]>()),
            content_type: kind.filter(|kind| !kind.is_empty()).map(str::to_owned),
        })
        .await?;
    Ok(empty(200).with_header("etag", quoted(&object)))
}

/// One line of a list.
enum Listed<'a> {
    Object(&'a Object),
    /// All keys that go on like this are told in one.
    Prefix(&'a str),
}

impl Listed<'_> {
    /// What the next page comes after.
    fn last(&self) -> String {
        match self {
            Listed::Object(object) => object.key.clone(),
            // No key that starts like this comes after it.
            Listed::Prefix(prefix) => format!("{prefix}{}", char::MAX),
        }
    }
}

/// The page of these objects, which are in order, and whether there are more.
fn page<'a>(objects: &'a [Object], listing: &Listing) -> (Vec<Listed<'a>>, bool) {
    let mut listed: Vec<Listed<'a>> = Vec::new();
    for object in objects {
        let key = object.key.as_str();
        let Some(rest) = key
            .strip_prefix(&listing.prefix)
            .filter(|_| *key > *listing.after)
        else {
            continue;
        };
        let folder = match listing.delimiter.as_str() {
            "" => None,
            delimiter => rest.find(delimiter).map(|at| at + delimiter.len()),
        };
        let folder = folder.map(|length| &key[..listing.prefix.len() + length]);
        match (folder, listed.last()) {
            (Some(folder), Some(Listed::Prefix(last))) if *last == folder => continue,
            _ if listed.len() == listing.max_keys => return (listed, true),
            (Some(folder), _) => listed.push(Listed::Prefix(folder)),
            (None, _) => listed.push(Listed::Object(object)),
        }
    }
    (listed, false)
}

async fn list_objects(store: &SecretStore, bucket: &str, listing: &Listing) -> Result<Reply, Refusal> {
    let objects = store.objects(bucket).await?;
    let (listed, truncated) = page(&objects, listing);
    let shown = |text: &str| match listing.encoded {
        true => encode(text.as_bytes(), b"/"),
        false => escape(text),
    };
    let (mut contents, mut prefixes) = (String::new(), String::new());
    for one in &listed {
        match one {
            Listed::Object(object) => {
                let (key, time) = (shown(&object.key), iso_time(object.modified_at));
                contents += &format!(
                    "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{}</ETag><Size>{}</Size>\
                     <StorageClass>STANDARD</StorageClass></Contents>",
                    escape(&quoted(object)),
                    object.bytes
                );
            }
            Listed::Prefix(prefix) => {
                prefixes += &format!(
                    "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
                    shown(prefix)
                );
            }
        }
    }
    let next = listed.last().filter(|_| truncated).map(Listed::last);
    let next = next.map(|key| {
        let token = hex::encode(key);
        format!("<NextContinuationToken>{token}</NextContinuationToken>")
    });
    let encoding = if listing.encoded {
        "<EncodingType>url</EncodingType>"
    } else {
        ""
    };
    Ok(Reply::xml(200, |_| {
        format!(
            "{XML}<ListBucketResult xmlns=\"{NAMESPACE}\"><Name>{bucket}</Name><Prefix>{}</Prefix>\
             <Delimiter>{}</Delimiter><MaxKeys>{}</MaxKeys><KeyCount>{}</KeyCount><IsTruncated>{truncated}</IsTruncated>\
             {encoding}{}{contents}{prefixes}</ListBucketResult>",
            shown(&listing.prefix),
            shown(&listing.delimiter),
            listing.max_keys,
            listed.len(),
            next.unwrap_or_default(),
        )
    }))
}

fn empty(status: u16) -> Reply {
    Reply::other(status, "application/xml", Vec::new())
}

fn quoted(object: &Object) -> String {
    format!("\"{}\"", object.etag)
}

fn iso_time(at: Timestamp) -> String {
    time(at, "%Y-%m-%dT%H:%M:%S.000Z")
}

fn http_time(at: Timestamp) -> String {
    time(at, "%a, %d %b %Y %H:%M:%S GMT")
}

fn time(at: Timestamp, format: &str) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    time.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(keys: &[&str]) -> Vec<Object> {
        let object = |key: &&str| Object {
            bucket: "config".to_owned(),
            key: (*key).to_owned(),
            bytes: 1,
            etag: "e".to_owned(),
            content_type: None,
            modified_at: Timestamp(0),
        };
        keys.iter().map(object).collect()
    }

    /// All pages, each with what it lists; a prefix ends with the delimiter.
    fn pages(objects: &[Object], prefix: &str, delimiter: &str, max_keys: usize) -> Vec<Vec<String>> {
        let mut listing = Listing {
            prefix: prefix.to_owned(),
            delimiter: delimiter.to_owned(),
            max_keys,
            ..Listing::default()
        };
        let mut pages = Vec::new();
        loop {
            let (listed, more) = page(objects, &listing);
            pages.push(
                listed
                    .iter()
                    .map(|one| match one {
                        Listed::Object(object) => object.key.clone(),
                        Listed::Prefix(prefix) => (*prefix).to_owned(),
                    })
                    .collect(),
            );
            match listed.last() {
                Some(last) if more => listing.after = last.last(),
                _ => return pages,
            }
        }
    }

    #[test]
    fn keys_are_listed_in_pages_and_folders_once() {
        let objects = objects(&["a", "d/1", "d/2", "d/e/3", "d0", "z"]);
        assert_eq!(
            pages(&objects, "", "", 1000),
            [["a", "d/1", "d/2", "d/e/3", "d0", "z"]]
        );
        assert_eq!(
            pages(&objects, "", "/", 2),
            vec![vec!["a", "d/"], vec!["d0", "z"]]
        );
        assert_eq!(
            pages(&objects, "d/", "/", 2),
            vec![vec!["d/1", "d/2"], vec!["d/e/"]]
        );
        assert_eq!(pages(&objects, "d/e/", "/", 1), [["d/e/3"]]);
        assert_eq!(pages(&objects, "none", "/", 1), [Vec::<String>::new()]);
        assert_eq!(pages(&objects, "", "/", 0), [Vec::<String>::new()]);
    }

    #[test]
    fn times_are_written_as_s3_writes_them() {
        let at = Timestamp(1_700_000_000_123);
        assert_eq!(iso_time(at), "2023-11-14T22:13:20.000Z");
        assert_eq!(http_time(at), "Tue, 14 Nov 2023 22:13:20 GMT");
    }
}
