//! The image store: what there is, and one pull at a time of each thing, however many ask for it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::auth::Login;
use super::bandwidth::Bandwidth;
use super::cache::{Cache, Record};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{self, Document};
use super::pull::{OnProgress, Pull};
use super::reference::{Reference, RegistryReference};
use super::room::Room;
use super::rootfs::Places;
use super::source::{Source, blocking};
use super::turns::Turns;
use super::{
    Credentials, Image, ImageOptions, PullLimits, PullProgress, StoredImage, docker_config, registry,
};

/// A folder of images, shared by all its clones.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

/// What every pull works with.
pub(super) struct Inner {
    pub(super) options: ImageOptions,
    pub(super) cache: Arc<Cache>,
    pub(super) turns: Turns,
    pub(super) bandwidth: Bandwidth,
    pub(super) room: Arc<Room>,
    pub(super) places: Places,
    /// How far the pulls are that work, by what their reference stands for.
    progress: Mutex<HashMap<Digest, PullProgress>>,
    client: Mutex<Option<registry::Clients>>,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if need be, and clears away what a crash has left. One process at a
    /// time can have a store open.
    pub fn open(dir: &Path, options: ImageOptions) -> Result<Self, ImageError> {
        let cache = Arc::new(Cache::open(dir)?);
        let inner = Inner {
            bandwidth: Bandwidth::new(options.bytes_per_second),
            room: Room::new(Arc::clone(&cache), options.budget_bytes),
            places: Places::default(),
            options,
            cache,
            client: Mutex::new(None),
            turns: Turns::default(),
            progress: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Gets an image ready. The registry is asked what a tag stands for, unless the options say otherwise; what is there
    /// already by digest is not fetched again, and one that is named by digest needs no registry at all then. Of several
    /// calls for one image, one works and the others wait for it; if it fails or is dropped, the next one goes on.
    /// Without `credentials`, those of the Docker configuration are used.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        limits: PullLimits,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        self.pull_as(None, reference, credentials, limits, progress).await
    }

    /// [`Self::pull`] for a user, for whom the image stays until [`Self::release`].
    pub async fn pull_for(
        &self,
        user: &str,
        reference: &str,
        credentials: Option<Credentials>,
        limits: PullLimits,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        self.pull_as(Some(user), reference, credentials, limits, progress)
            .await
    }

    async fn pull_as(
        &self,
        user: Option<&str>,
        reference: &str,
        credentials: Option<Credentials>,
        limits: PullLimits,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        let parsed = parsed(reference)?;
        let inner = &self.inner;
        let client = || inner.client();
        let login = match (credentials, &parsed) {
            (Some(credentials), _) => Some(Login::Password(credentials)),
            (None, Reference::Registry(reference)) => inner.login(reference).await?,
            (None, _) => None,
        };
        let source = Source::open(&parsed, login, &inner.options.insecure_registries, client).await?;
        Pull::new(inner, source, user, &parsed, limits, progress)
            .run(&parsed)
            .await
    }

    /// An image stays for a user who has it since an earlier process: `rootfs` as [`Image`] had it.
    pub fn hold(&self, user: &str, rootfs: &Path) {
        let name = rootfs
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Ok(chain_id) = format!("sha256:{name}").parse() {
            self.inner.cache.hold(user, chain_id);
        }
    }

    /// A user works with no image any more.
    pub async fn release(&self, user: &str) -> Result<(), ImageError> {
        if self.inner.cache.release(user) && self.inner.room.is_over_budget() {
            self.make_room().await?;
        }
        Ok(())
    }

    /// Deletes what was used least recently, as far as there is more than the budget allows.
    pub async fn make_room(&self) -> Result<u64, ImageError> {
        let room = Arc::clone(&self.inner.room);
        blocking("eviction", move || room.trim()).await
    }

    /// Every image that was pulled and not removed, by reference.
    pub async fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        let cache = Arc::clone(&self.inner.cache);
        blocking("listing", move || {
            let stored = |record: Record| {
                let last_used = cache.rootfs(record.rootfs).metadata().ok()?.modified().ok()?;
                Some(StoredImage {
                    image: image(&cache, &record)?,
                    last_used,
                    users: cache.users_of(record.rootfs),
                })
            };
            Ok(cache.records()?.into_iter().filter_map(stored).collect())
        })
        .await
    }

    /// Bytes on disk of all that is kept and of what pulls may write at the moment, and the most there are to be.
    pub async fn usage(&self) -> Result<(u64, u64), ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking("listing", move || {
            Ok((inner.room.taken_bytes()?, inner.options.budget_bytes))
        })
        .await
    }

    /// What of the file system's free bytes is not for anybody else: what is left of the budget, and what images leave
    /// free themselves. Blocks.
    pub fn promised_bytes(&self) -> Result<u64, ImageError> {
        self.inner.room.promised_bytes()
    }

    /// Forgets a reference, deletes what no other image shares, and gives the bytes won; none if it was not known. One
    /// that a user works with stays, with an error that says who.
    pub async fn remove(&self, reference: &str) -> Result<Option<u64>, ImageError> {
        let parsed = parsed(reference)?;
        let cache = Arc::clone(&self.inner.cache);
        blocking("removal", move || cache.forget(&parsed.to_string())).await
    }

    /// Forgets every image that no user works with and that was not used since then, deletes what is not shared with one
    /// that stays or needed by a pull under way, and gives the references and the bytes won.
    pub async fn prune(&self, unused_since: SystemTime) -> Result<(Vec<String>, u64), ImageError> {
        let cache = Arc::clone(&self.inner.cache);
        blocking("removal", move || cache.prune(unused_since)).await
    }
}

fn parsed(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(|source| ImageError::Reference {
        reference: manifest::shown(reference),
        source,
    })
}

impl Inner {
    pub(super) fn progress(&self, root: Digest) -> Option<PullProgress> {
        self.all_progress().get(&root).copied()
    }

    pub(super) fn set_progress(&self, root: Digest, progress: Option<PullProgress>) {
        let mut all = self.all_progress();
        match progress {
            Some(progress) => drop(all.insert(root, progress)),
            None => drop(all.remove(&root)),
        }
    }

    fn all_progress(&self) -> MutexGuard<'_, HashMap<Digest, PullProgress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the Docker configuration says of a registry. It is read each time, so that it can change.
    async fn login(&self, reference: &RegistryReference) -> Result<Option<Login>, ImageError> {
        let Some(path) = self.options.docker_config.clone() else {
            return Ok(None);
        };
        let (registry, name) = (reference.registry.clone(), reference.name.clone());
        blocking("reading", move || docker_config::login(&path, &registry, &name)).await
    }

    /// Made when first needed, so that a host without trusted certificates can still use layouts.
    fn client(&self) -> Result<registry::Clients, ImageError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(registry::clients()?).clone()),
        }
    }
}

/// An image from its record; none if a part of it is gone.
pub(super) fn image(cache: &Cache, record: &Record) -> Option<Image> {
    let document = cache.document(record.manifest)?;
    let Ok(Document::Manifest(manifest)) = manifest::document(&record.reference, &document, None) else {
        return None;
    };
    let config = cache.document(record.config)?;
    let config = manifest::configuration(&record.reference, &config, manifest.layers.len())
        .ok()?
        .config;
    let rootfs = cache.rootfs(record.rootfs);
    let size_bytes = rootfs.metadata().ok()?.len();
    Some(Image {
        reference: record.reference.clone(),
        digest: record.manifest,
        config,
        rootfs,
        size_bytes,
    })
}
