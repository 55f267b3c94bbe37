//! Images: OCI images by reference become one read-only EROFS file each, verified, cached by content and shared.
//!
//! The way in is [`ImageStore`]. Everything that comes from a registry, a layout or a layer is hostile: it is bounded
//! before it is used, and verified by digest. What is not here: the overlay in which a container sees an image, and
//! who uses an image (the caller of [`ImageStore::pull_for`] says so).

mod auth;
mod bandwidth;
mod cache;
mod digest;
mod docker_config;
mod download;
pub(crate) mod erofs;
mod error;
mod evict;
mod layer;
mod layout;
mod manifest;
mod pull;
mod reference;
mod registry;
mod retry;
mod room;
mod rootfs;
mod source;
mod store;
mod tar_reader;
mod tar_sparse;
mod tree;
mod turns;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use layer::LayerError;
pub use reference::{Reference, ReferenceError, RegistryReference};
pub use store::ImageStore;

/// An image that is ready to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The reference in canonical form, with registry and tag.
    pub reference: String,
    /// Of the manifest for linux/amd64.
    pub digest: Digest,
    pub config: ImageConfig,
    /// The EROFS file; images with the same layers share it.
    pub rootfs: PathBuf,
    /// Size of the EROFS file.
    pub size_bytes: u64,
}

/// What an image says about how it is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty means `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    pub stop_signal: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    pub image: Image,
    pub last_used: SystemTime,
    /// Who works with it.
    pub users: Vec<String>,
}

/// Settings of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// Registries (`host` or `host:port`, as references name them) that are spoken to in plain http.
    pub insecure_registries: BTreeSet<String>,
    /// Most bytes to download for one image.
    pub max_compressed_bytes: u64,
    /// Most bytes on disk of all images together, and of what pulls write meanwhile.
    pub budget_bytes: u64,
    /// Of all downloads together.
    pub bytes_per_second: Option<NonZeroU64>,
    /// A `config.json` as Docker writes it, with credentials of registries; it need not be there.
    pub docker_config: Option<PathBuf>,
    pub behavior: PullBehavior,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            insecure_registries: BTreeSet::new(),
            max_compressed_bytes: 32 << 30,
            budget_bytes: u64::MAX,
            bytes_per_second: None,
            docker_config: None,
            behavior: PullBehavior::Default,
        }
    }
}

/// When a registry is asked what a tag stands for (the names are the ECS agent's). A digest needs no asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullBehavior {
    /// Each time; if no registry answers, what was pulled last is used.
    #[default]
    Default,
    /// Each time, and without an answer the pull fails.
    Always,
    /// Only if the image is not here.
    PreferCached,
}

impl FromStr for PullBehavior {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            "always" => Ok(Self::Always),
            "prefer-cached" => Ok(Self::PreferCached),
            _ => Err("it is `default`, `always` or `prefer-cached`"),
        }
    }
}

/// Limits of one pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullLimits {
    /// Most bytes of files in all layers of all images of the user together; the disk of the task.
    pub max_unpacked_bytes: u64,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullProgress {
    pub phase: PullPhase,
    /// Of the current phase.
    pub layers_done: usize,
    pub layers_total: usize,
    /// Downloaded, and to be downloaded.
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// What a pull is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullPhase {
    Resolving,
    Downloading,
    Unpacking,
    Packing,
}

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
