//! The image store: what there is, and one pull at a time of each thing, however many ask for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::{Cache, Record};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{self, Document};
use super::pull::{OnProgress, Pull};
use super::reference::Reference;
use super::source::{Source, blocking};
use super::turns::Turns;
use super::{Credentials, Image, ImageOptions, PullLimits, registry};

/// A folder of images, shared by all its clones.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

/// What every pull works with.
pub(super) struct Inner {
    pub(super) options: ImageOptions,
    pub(super) cache: Arc<Cache>,
    pub(super) turns: Turns,
    client: Mutex<Option<reqwest::Client>>,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if need be, and clears away what a crash has left. One process at a
    /// time can have a store open.
    pub fn open(dir: &Path, options: ImageOptions) -> Result<Self, ImageError> {
        let cache = Arc::new(Cache::open(dir)?);
        let inner = Inner {
            options,
            cache,
            client: Mutex::new(None),
            turns: Turns::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Gets an image ready. The registry is always asked what a tag stands for; what is there already by digest is not
    /// fetched again, and one that is named by digest needs no registry at all then. Of several calls for one image,
    /// one works and the others wait for it; if it fails or is dropped, the next one goes on.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        limits: PullLimits,
        progress: OnProgress<'_>,
    ) -> Result<Image, ImageError> {
        let parsed: Reference = reference.parse().map_err(|source| ImageError::Reference {
            reference: manifest::shown(reference),
            source,
        })?;
        let inner = &self.inner;
        let client = || inner.client();
        let source = Source::open(&parsed, credentials, &inner.options.insecure_registries, client).await?;
        Pull::new(inner, source, &parsed, limits, progress)
            .run(&parsed)
            .await
    }

    /// Every image that was pulled and not removed, by reference.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let cache = Arc::clone(&self.inner.cache);
        blocking("listing", move || {
            Ok(cache
                .records()?
                .into_iter()
                .filter_map(|record| image(&cache, &record))
                .collect())
        })
        .await
    }

    /// Forgets a reference, and deletes what no other image shares. Says whether it was known.
    pub async fn remove(&self, reference: &str) -> Result<bool, ImageError> {
        let parsed: Reference = reference.parse().map_err(|source| ImageError::Reference {
            reference: manifest::shown(reference),
            source,
        })?;
        let cache = Arc::clone(&self.inner.cache);
        blocking("removal", move || {
            let known = cache.remove_record(&parsed.to_string())?;
            cache.sweep()?;
            Ok(known)
        })
        .await
    }

    /// Forgets every image but those with these digests, deletes what is not shared with them or needed by a pull under
    /// way, and gives the bytes won. A file that is open stays readable.
    pub async fn prune(&self, keep: &BTreeSet<Digest>) -> Result<u64, ImageError> {
        let cache = Arc::clone(&self.inner.cache);
        let keep = keep.clone();
        blocking("removal", move || {
            for record in cache
                .records()?
                .iter()
                .filter(|record| !keep.contains(&record.manifest))
            {
                cache.remove_record(&record.reference)?;
            }
            cache.sweep()
        })
        .await
    }
}

impl Inner {
    /// Made when first needed, so that a host without trusted certificates can still use layouts.
    fn client(&self) -> Result<reqwest::Client, ImageError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(registry::client()?).clone()),
        }
    }
}

/// An image from its record; none if a part of it is gone.
fn image(cache: &Cache, record: &Record) -> Option<Image> {
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
