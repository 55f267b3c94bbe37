//! S3's errors: status, code and message, in XML.

use berth_runtime::secrets::SecretError;

use crate::other::{XML, escape};
use crate::reply::Reply;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        let message = message.into();
        Refusal {
            status,
            code,
            message,
        }
    }

    pub(super) fn not_implemented(what: &str) -> Refusal {
        Refusal::new(501, "NotImplemented", format!("Berth's S3 does not have {what}."))
    }

    pub(super) fn method_not_allowed() -> Refusal {
        let message = "The specified method is not allowed against this resource.";
        Refusal::new(405, "MethodNotAllowed", message)
    }

    pub(super) fn invalid_bucket_name() -> Refusal {
        Refusal::new(
            400,
            "InvalidBucketName",
            "The specified bucket is not valid: 3 to 63 small letters, digits, hyphens and dots.",
        )
    }

    pub(super) fn invalid_key() -> Refusal {
        Refusal::invalid_argument("A key has 1 to 1024 bytes of UTF-8 without control characters.")
    }

    pub(super) fn invalid_argument(message: &str) -> Refusal {
        Refusal::new(400, "InvalidArgument", message)
    }

    pub(super) fn too_large(bytes: usize, limit: usize) -> Refusal {
        let message = format!(
            "Your proposed upload exceeds the maximum allowed size: it has {bytes} bytes, and an object here has at most {limit}."
        );
        Refusal::new(400, "EntityTooLarge", message)
    }

    pub(super) fn to_reply(&self) -> Reply {
        let message = escape(&self.message);
        let code = self.code;
        Reply::xml(self.status, |id| {
            format!(
                "{XML}<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{id}</RequestId></Error>"
            )
        })
    }
}

impl From<SecretError> for Refusal {
    fn from(error: SecretError) -> Refusal {
        match error {
            SecretError::BucketNotFound(_) => {
                Refusal::new(404, "NoSuchBucket", "The specified bucket does not exist")
            }
            SecretError::ObjectNotFound { .. } => {
                Refusal::new(404, "NoSuchKey", "The specified key does not exist.")
            }
            SecretError::BucketExists(_) => Refusal::new(
                409,
                "BucketAlreadyOwnedByYou",
                "Your previous request to create the named bucket succeeded and you already own it.",
            ),
            SecretError::BucketNotEmpty(_) => Refusal::new(
                409,
                "BucketNotEmpty",
                "The bucket you tried to delete is not empty",
            ),
            error @ (SecretError::BucketLimit(_) | SecretError::ObjectLimit(_)) => {
                Refusal::new(400, "TooManyBuckets", error.to_string())
            }
            error => {
                tracing::error!("a request failed: {error}");
                Refusal::new(
                    500,
                    "InternalError",
                    "We encountered an internal error. Please try again.",
                )
            }
        }
    }
}
