//! Packs a directory tree into a read-only EROFS image with `mkfs.erofs`: not compressed, blocks of 4096 bytes, and the
//! same bytes for the same tree.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use super::digest::Digest;
use super::error::ImageError;
use super::rootfs::Stop;

/// The time of the build in the superblock, 2100-01-01. A constant makes images reproducible; mkfs.erofs sets later
/// file times to it, so it is far away.
pub(super) const BUILD_TIME_SECONDS: u64 = 4_102_444_800;
const MAX_OUTPUT_BYTES: u64 = 4096;

/// Packs a small tree of our own. Blocks.
pub(crate) fn pack_own(tree: &Path, image: &Path, key: Digest) -> Result<(), ImageError> {
    pack(tree, image, key, &Stop::default())
}

/// Packs a tree into a file, which is on disk when this returns, unless it is stopped. Blocks.
pub(super) fn pack(tree: &Path, image: &Path, key: Digest, stop: &Stop) -> Result<(), ImageError> {
    let mut child = Command::new("mkfs.erofs")
        .args(["--quiet", "-U", &uuid(key)])
        .arg(image)
        // From within, so that the paths that the tool makes are no longer than they have to be.
        .arg(".")
        .current_dir(tree)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("SOURCE_DATE_EPOCH", BUILD_TIME_SECONDS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::PackerMissing,
            _ => ImageError::Io {
                path: "mkfs.erofs".into(),
                source,
            },
        })?;
    let mut output = Vec::new();
    let stderr = child.stderr.take();
    stop.ends(child);
    if let Some(mut stderr) = stderr {
        // What cannot be read of the messages is missing from a message; the exit status decides.
        let _ = stderr.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut output);
        let _ = io::copy(&mut stderr, &mut io::sink());
    }
    let status = match stop.child() {
        Some(mut child) => child.wait(),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    let status = status.map_err(ImageError::io(Path::new("mkfs.erofs")))?;
    if !status.success() {
        let output = super::manifest::shown(String::from_utf8_lossy(&output).trim());
        return Err(ImageError::Pack {
            status: status.to_string(),
            output,
        });
    }
    std::fs::File::open(image)
        .and_then(|file| file.sync_all())
        .map_err(ImageError::io(image))
}

/// A volume id made from the content's digest (RFC 9562 version 8: vendor-defined).
fn uuid(key: Digest) -> String {
    let hex = key.hex();
    format!(
        "{}-{}-8{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}
