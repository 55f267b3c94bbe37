//! Why an image cannot be had. Each message gives the whole cause in one line.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::layer::LayerError;
use super::reference::ReferenceError;

const GIB: u64 = 1 << 30;

/// Any failure of the image store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("invalid image reference \"{reference}\": {source}")]
    Reference {
        reference: String,
        source: ReferenceError,
    },
    #[error("{image}: manifest unknown: not found")]
    NotFound { image: String },
    #[error("{image}: access denied by the registry: {detail}")]
    Denied { image: String, detail: String },
    /// No usable answer came: no connection, no name, no trust, or silence.
    #[error("registry {registry}: {cause}")]
    Unreachable {
        registry: String,
        cause: String,
        source: Box<reqwest::Error>,
    },
    #[error(
        "registry {registry}: it speaks plain http, which is allowed only for registries in the list of insecure registries"
    )]
    PlainHttp { registry: String },
    #[error("registry {registry}: {detail}")]
    Registry { registry: String, detail: String },
    #[error("{image}: no image for linux/amd64, only for {found}")]
    Platform { image: String, found: String },
    #[error("{image}: {reason}")]
    Manifest { image: String, reason: String },
    #[error("{what}: expected digest {expected}, got {actual}")]
    Digest {
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{what}: expected {expected} bytes, got {actual}")]
    Size {
        what: String,
        expected: u64,
        actual: String,
    },
    #[error("{image}: {bytes} bytes to download, more than the limit of {limit}")]
    DownloadTooLarge { image: String, bytes: u64, limit: u64 },
    #[error("image is larger than the {} of disk the task has", gibibytes(*limit_bytes))]
    LargerThanDisk { limit_bytes: u64 },
    #[error("layer {layer}: {source}")]
    Layer { layer: Digest, source: LayerError },
    #[error("mkfs.erofs is not installed; it comes with the package erofs-utils")]
    PackerMissing,
    #[error("mkfs.erofs failed ({status}): {output}")]
    Pack { status: String, output: String },
    #[error("{path}: {reason}", path = path.display())]
    Layout { path: PathBuf, reason: String },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the http client could not be made: {cause}")]
    HttpClient {
        cause: String,
        source: Box<reqwest::Error>,
    },
    /// A blocking step ended without a result: a panic, or the end of the async runtime.
    #[error("{step} of the image was interrupted: {source}")]
    Interrupted {
        step: &'static str,
        source: tokio::task::JoinError,
    },
}

impl ImageError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(super) fn manifest(image: &str, reason: impl Into<String>) -> Self {
        Self::Manifest {
            image: image.to_owned(),
            reason: reason.into(),
        }
    }
}

/// `20 GiB`, or bytes where the number is no whole GiB.
fn gibibytes(bytes: u64) -> String {
    if bytes >= GIB && bytes.is_multiple_of(GIB) {
        format!("{} GiB", bytes / GIB)
    } else {
        format!("{bytes} bytes")
    }
}
