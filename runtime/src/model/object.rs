//! Buckets and the objects in them: what environment files are kept as. Values only; contents are sealed (`secrets`).

use serde::{Deserialize, Serialize};

use super::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub name: String,
    pub created_at: Timestamp,
}

/// Everything of an object but its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub bucket: String,
    pub key: String,
    pub bytes: u64,
    /// Random, as a digest would tell of the content.
    pub etag: String,
    pub content_type: Option<String>,
    pub modified_at: Timestamp,
}

/// `environmentFiles` of a container: an object with lines `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentFile {
    /// As it was given: the object's ARN.
    pub value: String,
    pub bucket: String,
    pub key: String,
}
