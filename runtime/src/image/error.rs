//! Why an image cannot be had. Each message gives the whole cause in one line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
        /// It may go better next time.
        transient: bool,
        source: Box<reqwest::Error>,
    },
    /// It answered that it cannot answer now.
    #[error("registry {registry}: {detail}")]
    Busy {
        registry: String,
        detail: String,
        retry_after: Option<Duration>,
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
    #[error(
        "image and the task's other images, of {}, are together larger than the {} of disk the task has",
        bytes_of(*others_bytes), gibibytes(*limit_bytes)
    )]
    TogetherLargerThanDisk { others_bytes: u64, limit_bytes: u64 },
    #[error(
        "no room for {what}: at least {} are needed, and {} are free of the image budget of {}; delete images with \
         `berth images prune`, or set a larger `berth serve --image-budget`",
        at_least(*needed_bytes), bytes_of(*free_bytes), bytes_of(*budget_bytes)
    )]
    OverBudget {
        what: &'static str,
        needed_bytes: u64,
        /// After all that may go was deleted.
        free_bytes: u64,
        budget_bytes: u64,
    },
    #[error(
        "no room for {what}: at least {} more are needed, and {} are left of the file system of {path} beside the {} that images \
         leave free; delete images with `berth images prune`, or other files there",
        at_least(*needed_bytes), bytes_of(*free_bytes), bytes_of(*reserve_bytes), path = path.display()
    )]
    DiskFull {
        what: &'static str,
        needed_bytes: u64,
        /// Beside the reserve and what other pulls may still write.
        free_bytes: u64,
        reserve_bytes: u64,
        path: PathBuf,
    },
    #[error("layer {layer}: {source}")]
    Layer { layer: Digest, source: LayerError },
    #[error("mkfs.erofs is not installed; it comes with the package erofs-utils")]
    PackerMissing,
    #[error("mkfs.erofs failed ({status}): {output}")]
    Pack { status: String, output: String },
    #[error("{image} is in use by {users}")]
    InUse { image: String, users: String },
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
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
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

/// In the largest unit that is exact or of which there are a hundred, rounded down.
fn bytes_of(bytes: u64) -> String {
    in_units(bytes, |bytes, unit| bytes / unit)
}

/// The same, rounded up.
fn at_least(bytes: u64) -> String {
    in_units(bytes, u64::div_ceil)
}

fn in_units(bytes: u64, round: impl Fn(u64, u64) -> u64) -> String {
    let units = [(GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fits = |unit| bytes >= 100 * unit || (bytes > 0 && bytes.is_multiple_of(unit));
    let unit = units.into_iter().find(|(unit, _)| fits(*unit));
    let (unit, name) = unit.unwrap_or((1, "bytes"));
    format!("{} {name}", round(bytes, unit))
}

/// `20 GiB`, or bytes where the number is no whole GiB.
fn gibibytes(bytes: u64) -> String {
    if bytes >= GIB && bytes.is_multiple_of(GIB) {
        format!("{} GiB", bytes / GIB)
    } else {
        format!("{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_said_too_good() {
        for (bytes, down, up) in [
            (0, "0 bytes", "0 bytes"),
            (20 * GIB, "20 GiB", "20 GiB"),
            (19 * GIB + 1, "19456 MiB", "19457 MiB"),
            (200 * GIB + 1, "200 GiB", "201 GiB"),
            (3 << 19, "1536 KiB", "1536 KiB"),
            (1025, "1025 bytes", "1025 bytes"),
        ] {
            assert_eq!((bytes_of(bytes).as_str(), at_least(bytes).as_str()), (down, up));
        }
    }
}
