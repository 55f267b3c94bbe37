//! One pull: from a source to a record in the cache, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use super::cache::{Leases, Record, RootfsSize, Scratch};
use super::digest::{Digest, Hasher};
use super::erofs;
use super::error::ImageError;
use super::layer::LayerError;
use super::manifest::{self, Configuration, Document, Layer, Manifest};
use super::reference::Reference;
use super::source::{Source, blocking};
use super::store::Inner;
use super::unpack::Unpacker;
use super::{Image, PullLimits, PullPhase, PullProgress};

/// How deep indexes may be nested.
const MAX_INDEX_DEPTH: usize = 3;
const CONCURRENT_DOWNLOADS: usize = 3;
/// How often the download of a blob is begun, if the connection breaks.
const DOWNLOAD_ATTEMPTS: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Progress is told every so many bytes.
const PROGRESS_BYTES: u64 = 1 << 20;

pub(super) type OnProgress<'a> = &'a (dyn Fn(PullProgress) + Send + Sync);

/// One call of `ImageStore::pull`.
pub(super) struct Pull<'a> {
    inner: &'a Inner,
    source: Source,
    /// The canonical reference.
    image: String,
    leases: Leases,
    limits: PullLimits,
    progress: OnProgress<'a>,
}

impl<'a> Pull<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        source: Source,
        reference: &Reference,
        limits: PullLimits,
        progress: OnProgress<'a>,
    ) -> Self {
        let leases = Leases::new(Arc::clone(&inner.cache));
        Self {
            inner,
            source,
            image: reference.to_string(),
            leases,
            limits,
            progress,
        }
    }

    pub(super) async fn run(mut self, reference: &Reference) -> Result<Image, ImageError> {
        self.tell(PullPhase::Resolving, (0, 0), (0, 0));
        let (digest, manifest, mut blobs) = self.resolve(reference).await?;
        let _turn = self.inner.turns.take(digest).await;
        let Configuration { config, diff_ids } = self.configuration(&manifest).await?;
        let chain_id = manifest::chain_id(&diff_ids);
        self.leases.hold(chain_id);
        let size = match self.inner.cache.rootfs_size(chain_id) {
            Some(size) => size,
            None => self.make_rootfs(&manifest, &diff_ids, chain_id).await?,
        };
        if size.unpacked_bytes > self.limits.max_unpacked_bytes {
            return Err(ImageError::LargerThanDisk {
                limit_bytes: self.limits.max_unpacked_bytes,
            });
        }
        let cache = &self.inner.cache;
        let rootfs = cache.rootfs(chain_id);
        let size_bytes = rootfs.metadata().map_err(ImageError::io(&rootfs))?.len();
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        cache.put_record(&Record {
            reference: self.image.clone(),
            manifest: digest,
            config: manifest.config,
            rootfs: chain_id,
            blobs,
        })?;
        Ok(Image {
            reference: self.image,
            digest,
            config,
            rootfs,
            size_bytes,
        })
    }

    /// From the reference to the manifest for this platform; also every document on the way.
    async fn resolve(
        &mut self,
        reference: &Reference,
    ) -> Result<(Digest, Manifest, BTreeSet<Digest>), ImageError> {
        let pinned = match reference {
            Reference::Registry(reference) => reference.digest,
            _ => None,
        };
        let (mut bytes, mut media_type) = match pinned {
            Some(digest) => self.document(digest).await?,
            None => self.source.root().await?,
        };
        let mut documents = BTreeSet::new();
        for _ in 0..MAX_INDEX_DEPTH {
            let digest = Digest::of(&bytes);
            let document = manifest::document(&self.image, &bytes, media_type.as_deref())?;
            self.leases.hold(digest);
            self.inner.cache.put_blob(&bytes)?;
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
        let staging = self.unpack(&manifest.layers, diff_ids, downloaded).await?;
        let layers = manifest.layers.len();
        self.tell(PullPhase::Packing, (layers, layers), (downloaded, downloaded));
        let cache = Arc::clone(&self.inner.cache);
        blocking("packing", move || {
            let unpacked = staging.unpacker.finish().map_err(|source| layer_error(chain_id, 0, source))?;
            if unpacked.skipped_devices > 0 {
                tracing::info!(rootfs = %chain_id, devices = unpacked.skipped_devices, "device nodes left out");
            }
            let packed = cache.scratch();
            erofs::pack(staging.directory.path(), packed.path(), chain_id)?;
            let size = RootfsSize::from(unpacked);
            cache.put_rootfs(chain_id, &packed, size)?;
            Ok(size)
        })
        .await
    }

    /// Downloads the layers that are not there, and gives the number of bytes that took.
    async fn download(&mut self, layers: &[Layer]) -> Result<u64, ImageError> {
        let mut missing = BTreeMap::new();
        for layer in layers {
            self.leases.hold(layer.digest);
            if !self.inner.cache.has_blob(layer.digest, layer.size) {
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

    /// Brings one blob into the cache. `on_bytes` is told of bytes got, and (negative) of bytes got in vain.
    async fn fetch(
        &self,
        digest: Digest,
        size: u64,
        on_bytes: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let _turn = self.inner.turns.take(digest).await;
        if self.inner.cache.has_blob(digest, size) {
            on_bytes(size.cast_signed());
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            let got = AtomicU64::new(0);
            let counted = |bytes: u64| {
                got.fetch_add(bytes, Ordering::Relaxed);
                on_bytes(bytes.cast_signed());
            };
            match self.fetch_once(digest, size, &counted).await {
                Err(error @ ImageError::Unreachable { .. }) if attempt < DOWNLOAD_ATTEMPTS => {
                    tracing::debug!(%digest, %error, attempt, "download broke off");
                    on_bytes(-got.load(Ordering::Relaxed).cast_signed());
                    tokio::time::sleep(RETRY_AFTER * attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn fetch_once(
        &self,
        digest: Digest,
        size: u64,
        counted: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let cache = &self.inner.cache;
        let what = || format!("blob {digest} of {}", self.image);
        let scratch = cache.scratch();
        let io = |source| ImageError::Io {
            path: scratch.path().to_owned(),
            source,
        };
        let mut content = self.source.blob(digest).await?;
        let mut file = tokio::fs::File::create_new(scratch.path()).await.map_err(io)?;
        let mut hasher = Hasher::default();
        let mut got = 0_u64;
        while let Some(piece) = content.try_next().await? {
            got = got.saturating_add(piece.len() as u64);
            if got > size {
                return Err(ImageError::Size {
                    what: what(),
                    expected: size,
                    actual: "more".to_owned(),
                });
            }
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(io)?;
            counted(piece.len() as u64);
        }
        let actual = hasher.finish();
        if got != size {
            return Err(ImageError::Size {
                what: what(),
                expected: size,
                actual: got.to_string(),
            });
        }
        if actual != digest {
            return Err(ImageError::Digest {
                what: what(),
                expected: digest,
                actual,
            });
        }
        file.sync_all().await.map_err(io)?;
        cache.put(&scratch, &cache.blob(digest))
    }

    /// Unpacks the layers into a folder of their own, checking each against its `diff_id`.
    async fn unpack(
        &self,
        layers: &[Layer],
        diff_ids: &[Digest],
        downloaded: u64,
    ) -> Result<Staging, ImageError> {
        let limit = self.limits.max_unpacked_bytes;
        let directory = self.inner.cache.scratch();
        let mut staging = blocking("unpacking", move || {
            let path = directory.path();
            std::fs::create_dir(path).map_err(ImageError::io(path))?;
            let unpacker =
                Unpacker::new(path, limit).map_err(|source| layer_error(Digest::of(b""), limit, source))?;
            Ok(Staging { unpacker, directory })
        })
        .await?;
        for (index, (layer, &diff_id)) in layers.iter().zip(diff_ids).enumerate() {
            self.tell(
                PullPhase::Unpacking,
                (index, layers.len()),
                (downloaded, downloaded),
            );
            let path = self.inner.cache.blob(layer.digest);
            let (digest, compression) = (layer.digest, layer.compression);
            staging = blocking("unpacking", move || {
                let file = File::open(&path).map_err(ImageError::io(&path))?;
                let unpacked = staging.unpacker.layer(file, compression);
                let actual = unpacked.map_err(|source| layer_error(digest, limit, source))?;
                if actual != diff_id {
                    let what = format!("layer {digest}, unpacked");
                    return Err(ImageError::Digest {
                        what,
                        expected: diff_id,
                        actual,
                    });
                }
                Ok(staging)
            })
            .await?;
        }
        Ok(staging)
    }

    fn tell(&self, phase: PullPhase, layers: (usize, usize), bytes: (u64, u64)) {
        (self.progress)(PullProgress {
            phase,
            layers_done: layers.0,
            layers_total: layers.1,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
        });
    }
}

/// A tree that is being unpacked; dropping it deletes it.
struct Staging {
    unpacker: Unpacker,
    directory: Scratch,
}

fn layer_error(layer: Digest, limit_bytes: u64, source: LayerError) -> ImageError {
    match source {
        LayerError::TooLarge => ImageError::LargerThanDisk { limit_bytes },
        source => ImageError::Layer { layer, source },
    }
}
