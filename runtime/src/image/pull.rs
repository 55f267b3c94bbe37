//! One pull: from a source to a record in the cache, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::cache::{Leases, Record, RootfsSize, touch};
use super::digest::Digest;
use super::download::Download;
use super::error::ImageError;
use super::evict::Kind;
use super::layer::LayerError;
use super::manifest::{self, Configuration, Document, Layer, Manifest};
use super::reference::{Reference, RegistryReference};
use super::retry::transient;
use super::rootfs::Rootfs;
use super::source::{Served, Source, blocking};
use super::store::{Inner, image};
use super::{Image, PullBehavior, PullLimits, PullPhase, PullProgress};

/// How deep indexes may be nested.
const MAX_INDEX_DEPTH: usize = 3;
const CONCURRENT_DOWNLOADS: usize = 3;
/// How often a pull that waits for another one looks how far that is.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often a registry is asked what a tag stands for, where an image is here that can be used without an answer.
const LOOK_UP_ATTEMPTS: u32 = 2;
const LOOK_UP_PAUSE: Duration = Duration::from_millis(500);
/// Progress is told every so many bytes.
const PROGRESS_BYTES: u64 = 1 << 20;

pub(super) type OnProgress<'a> = &'a (dyn Fn(PullProgress) + Send + Sync);

/// One call of `ImageStore::pull`.
pub(super) struct Pull<'a> {
    inner: &'a Arc<Inner>,
    source: Source,
    /// Who will use the image, and keeps it from being deleted until it says that it does not any more.
    user: Option<&'a str>,
    /// What the reference stands for, while this pull works on it.
    root: Option<Digest>,
    /// The canonical reference.
    image: String,
    leases: Leases,
    limits: PullLimits,
    progress: OnProgress<'a>,
}

impl<'a> Pull<'a> {
    pub(super) fn new(
        inner: &'a Arc<Inner>,
        source: Source,
        user: Option<&'a str>,
        reference: &Reference,
        limits: PullLimits,
        progress: OnProgress<'a>,
    ) -> Self {
        let leases = Leases::new(Arc::clone(&inner.cache));
        Self {
            inner,
            source,
            user,
            root: None,
            image: reference.to_string(),
            leases,
            limits,
            progress,
        }
    }

    pub(super) async fn run(mut self, reference: &Reference) -> Result<Image, ImageError> {
        self.tell(PullPhase::Resolving, (0, 0), (0, 0));
        let behavior = self.inner.options.behavior;
        if behavior == PullBehavior::PreferCached
            && let Some(image) = self.cached()?
        {
            return Ok(image);
        }
        let (root, served) = match self.root(reference).await {
            Err(error) if behavior == PullBehavior::Default && transient(&error).is_some() => {
                let Some(image) = self.cached()? else {
                    return Err(error);
                };
                tracing::warn!(%error, image = self.image, "what is here of the image is used");
                return Ok(image);
            }
            root => root?,
        };
        let _turn = self.turn(root).await;
        self.root = Some(root);
        let (digest, manifest, mut blobs) = self.resolve(root, served).await?;
        let Configuration { config, diff_ids } = self.configuration(&manifest).await?;
        let chain_id = manifest::chain_id(&diff_ids);
        self.leases.hold(chain_id);
        let size = match self.inner.cache.rootfs_size(chain_id) {
            Some(size) => size,
            None => self.make_rootfs(&manifest, &diff_ids, chain_id).await?,
        };
        self.check_size(chain_id, size)?;
        let cache = &self.inner.cache;
        let rootfs = cache.rootfs(chain_id);
        let size_bytes = rootfs.metadata().map_err(ImageError::io(&rootfs))?.len();
        let layers: BTreeSet<_> = manifest.layers.iter().map(|layer| layer.digest).collect();
        blobs.insert(manifest.config);
        blobs.extend(&layers);
        let record = Record {
            reference: self.image.clone(),
            manifest: digest,
            config: manifest.config,
            rootfs: chain_id,
            blobs,
            layers,
        };
        if cache.record(&self.image).as_ref() != Some(&record) {
            cache.put_record(&record)?;
        }
        self.use_now(chain_id, size)?;
        let image = Image {
            reference: std::mem::take(&mut self.image),
            digest,
            config,
            rootfs,
            size_bytes,
        };
        let room = Arc::clone(&self.inner.room);
        // What is not needed any more goes; the image is here either way.
        if let Err(error) = blocking("eviction", move || room.trim()).await {
            tracing::error!(%error, "images that are not used cannot be deleted");
        }
        Ok(image)
    }

    /// What the reference stood for when it was pulled last, if all of that is here.
    fn cached(&mut self) -> Result<Option<Image>, ImageError> {
        let cache = &self.inner.cache;
        let Some(record) = cache.record(&self.image) else {
            return Ok(None);
        };
        for digest in [record.manifest, record.config, record.rootfs] {
            self.leases.hold(digest);
        }
        let (Some(image), Some(size)) = (image(cache, &record), cache.rootfs_size(record.rootfs)) else {
            return Ok(None);
        };
        self.use_now(record.rootfs, size)?;
        Ok(Some(image))
    }

    /// Before the leases end.
    fn use_now(&self, chain_id: Digest, size: RootfsSize) -> Result<(), ImageError> {
        let (cache, limit) = (&self.inner.cache, self.limits.max_unpacked_bytes);
        match self.user {
            Some(user) if !cache.hold_within(user, chain_id, size.unpacked_bytes, limit) => {
                return Err(self.too_large(chain_id));
            }
            Some(_) => {}
            None => self.check_size(chain_id, size)?,
        }
        touch(&cache.rootfs(chain_id));
        Ok(())
    }

    fn check_size(&self, chain_id: Digest, size: RootfsSize) -> Result<(), ImageError> {
        match size.unpacked_bytes > self.max_unpacked_bytes(chain_id) {
            true => Err(self.too_large(chain_id)),
            false => Ok(()),
        }
    }

    /// What the user's other images leave for this one.
    fn max_unpacked_bytes(&self, chain_id: Digest) -> u64 {
        let limit = self.limits.max_unpacked_bytes;
        limit.saturating_sub(self.others_bytes(chain_id))
    }

    fn others_bytes(&self, chain_id: Digest) -> u64 {
        self.user
            .map_or(0, |user| self.inner.cache.unpacked_bytes_of(user, chain_id))
    }

    fn too_large(&self, chain_id: Digest) -> ImageError {
        let limit_bytes = self.limits.max_unpacked_bytes;
        match self.others_bytes(chain_id) {
            0 => ImageError::LargerThanDisk { limit_bytes },
            others_bytes => ImageError::TogetherLargerThanDisk {
                others_bytes,
                limit_bytes,
            },
        }
    }

    /// Of several pulls of one thing, one works; the others tell of what it does, and find it done.
    async fn turn(&self, root: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let mut turn = pin!(self.inner.turns.take(root));
        loop {
            match tokio::time::timeout(WATCH_INTERVAL, &mut turn).await {
                Ok(turn) => return turn,
                Err(_) => self.inner.progress(root).into_iter().for_each(self.progress),
            }
        }
    }

    /// The digest that the reference stands for; the document itself, where it came with that.
    async fn root(&self, reference: &Reference) -> Result<(Digest, Option<Served>), ImageError> {
        if let Reference::Registry(RegistryReference {
            digest: Some(digest), ..
        }) = reference
        {
            return Ok((*digest, None));
        }
        let mut failures = 0;
        loop {
            match self.source.look_up().await {
                Ok(Some(digest)) => return Ok((digest, None)),
                Err(error) if self.can_do_without(&error) => {
                    failures += 1;
                    if failures == LOOK_UP_ATTEMPTS {
                        return Err(error);
                    }
                    tokio::time::sleep(LOOK_UP_PAUSE).await;
                }
                Ok(None) | Err(_) => break,
            }
        }
        let served = self.source.root().await?;
        Ok((Digest::of(&served.0), Some(served)))
    }

    /// Whether what is here of the image will be used if the registry goes on to fail like this.
    fn can_do_without(&self, error: &ImageError) -> bool {
        self.inner.options.behavior == PullBehavior::Default
            && transient(error).is_some()
            && self.inner.cache.record(&self.image).is_some()
    }

    /// From there to the manifest for this platform; also every document on the way.
    async fn resolve(
        &mut self,
        root: Digest,
        served: Option<Served>,
    ) -> Result<(Digest, Manifest, BTreeSet<Digest>), ImageError> {
        let (mut bytes, mut media_type) = match served {
            Some(served) => served,
            None => self.document(root).await?,
        };
        let mut documents = BTreeSet::new();
        for _ in 0..MAX_INDEX_DEPTH {
            let digest = Digest::of(&bytes);
            let document = manifest::document(&self.image, &bytes, media_type.as_deref())?;
            self.leases.hold(digest);
            self.keep_document(digest, &bytes).await?;
            documents.insert(digest);
            match document {
                Document::Manifest(manifest) => return Ok((digest, manifest, documents)),
                Document::Index(entry) => {
                    (bytes, media_type) = self.document(entry.digest).await?;
                    if bytes.len() as u64 != entry.size {
                        let what = format!("manifest {}", entry.digest);
                        let actual = format!("{} bytes", bytes.len());
                        return Err(ImageError::Size {
                            what,
                            expected: entry.size,
                            actual,
                        });
                    }
                    media_type = media_type.or(Some(entry.media_type));
                }
            }
        }
        Err(ImageError::manifest(&self.image, "indexes nested too deep"))
    }

    /// A document by digest, from the cache or the source.
    async fn document(&mut self, digest: Digest) -> Result<(Vec<u8>, Option<String>), ImageError> {
        self.leases.hold(digest);
        match self.inner.cache.document(digest) {
            Some(bytes) => Ok((bytes, None)),
            None => self.source.document(digest).await,
        }
    }

    async fn keep_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if !self.inner.cache.blob(digest).exists() {
            let named = Some((Kind::Blob, digest));
            let room = self.inner.room.reserve("the manifest", named, None);
            room.grow(bytes.len() as u64).await?;
            self.inner.cache.put_blob(bytes)?;
        }
        Ok(())
    }

    async fn configuration(&mut self, manifest: &Manifest) -> Result<Configuration, ImageError> {
        self.leases.hold(manifest.config);
        let bytes = match self.inner.cache.document(manifest.config) {
            Some(bytes) => bytes,
            None => {
                self.fetch(manifest.config, manifest.config_size, &|_| {}).await?;
                let path = self.inner.cache.blob(manifest.config);
                std::fs::read(&path).map_err(ImageError::io(&path))?
            }
        };
        manifest::configuration(&self.image, &bytes, manifest.layers.len())
    }

    async fn make_rootfs(
        &mut self,
        manifest: &Manifest,
        diff_ids: &[Digest],
        chain_id: Digest,
    ) -> Result<RootfsSize, ImageError> {
        let downloaded = self.download(&manifest.layers).await?;
        // Another image with the same layers may be at this very point.
        let _turn = self.inner.turns.take(chain_id).await;
        if let Some(size) = self.inner.cache.rootfs_size(chain_id) {
            return Ok(size);
        }
        let layers = manifest.layers.len();
        let rootfs = Rootfs {
            inner: self.inner,
            chain_id,
            layers: &manifest.layers,
            diff_ids,
            max_bytes: self.max_unpacked_bytes(chain_id),
        };
        let bytes = (downloaded, downloaded);
        let tree = rootfs
            .unpack(|done| self.tell(PullPhase::Unpacking, (done, layers), bytes))
            .await
            .map_err(|error| match error {
                ImageError::Layer {
                    source: LayerError::TooLarge,
                    ..
                } => self.too_large(chain_id),
                error => error,
            })?;
        // They may go now, where there is no room for both.
        for layer in &manifest.layers {
            self.leases.release(layer.digest);
        }
        self.tell(PullPhase::Packing, (layers, layers), bytes);
        tree.pack(self.inner, chain_id).await
    }

    /// Downloads the layers that are not there, and gives the number of bytes that took.
    async fn download(&mut self, layers: &[Layer]) -> Result<u64, ImageError> {
        let mut missing = BTreeMap::new();
        for layer in layers {
            self.leases.hold(layer.digest);
            if !self.inner.cache.use_blob(layer.digest, layer.size) {
                missing.insert(layer.digest, layer.size);
            }
        }
        let limit = self.inner.options.max_compressed_bytes;
        let total = missing
            .values()
            .fold(0_u64, |sum, size| sum.saturating_add(*size));
        if total > limit {
            return Err(ImageError::DownloadTooLarge {
                image: self.image.clone(),
                bytes: total,
                limit,
            });
        }
        let (room, digests) = (Arc::clone(&self.inner.room), missing.clone().into_keys());
        blocking("counting", move || room.check("the download", total, digests)).await?;
        let count = missing.len();
        let (bytes_done, told, layers_done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));
        let tell = |force: bool| {
            let bytes = bytes_done.load(Ordering::Relaxed);
            if force || bytes.abs_diff(told.load(Ordering::Relaxed)) >= PROGRESS_BYTES {
                told.store(bytes, Ordering::Relaxed);
                self.tell(
                    PullPhase::Downloading,
                    (layers_done.load(Ordering::Relaxed), count),
                    (bytes, total),
                );
            }
        };
        tell(true);
        let on_bytes = |change: i64| {
            bytes_done.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
            tell(false);
        };
        stream::iter(missing)
            .map(|(digest, size)| {
                let (on_bytes, tell, layers_done, this) = (&on_bytes, &tell, &layers_done, &*self);
                async move {
                    this.fetch(digest, size, on_bytes).await?;
                    layers_done.fetch_add(1, Ordering::Relaxed);
                    tell(true);
                    Ok(())
                }
            })
            .buffer_unordered(CONCURRENT_DOWNLOADS)
            .try_collect::<()>()
            .await?;
        Ok(total)
    }

    async fn fetch(
        &self,
        digest: Digest,
        size: u64,
        on_bytes: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let download = Download {
            inner: self.inner,
            source: &self.source,
            image: &self.image,
            digest,
            size,
            on_bytes,
        };
        download.run().await
    }

    fn tell(&self, phase: PullPhase, layers: (usize, usize), bytes: (u64, u64)) {
        let progress = PullProgress {
            phase,
            layers_done: layers.0,
            layers_total: layers.1,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
        };
        if let Some(root) = self.root {
            self.inner.set_progress(root, Some(progress));
        }
        (self.progress)(progress);
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        if let Some(root) = self.root {
            self.inner.set_progress(root, None);
        }
    }
}
