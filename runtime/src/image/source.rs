//! Where the documents and blobs of one image come from: a registry, or a layout on this host. What they mean, and
//! whether a blob is what its digest says, is for the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::auth::Login;
use super::digest::Digest;
use super::error::ImageError;
use super::layout::Layout;
use super::manifest;
use super::reference::Reference;
use super::registry::{Clients, Repository};

const READ_BYTES: usize = 128 * 1024;

pub(super) enum Source {
    Registry {
        repository: Box<Repository>,
        selector: String,
    },
    Layout {
        layout: Arc<Layout>,
        image: String,
        tag: Option<String>,
    },
}

/// A manifest or index as it was given, and the media type it was given under.
pub(super) type Served = (Vec<u8>, Option<String>);

impl Source {
    /// `client` is asked for only if the image is in a registry.
    pub(super) async fn open(
        reference: &Reference,
        login: Option<Login>,
        insecure_registries: &BTreeSet<String>,
        client: impl FnOnce() -> Result<Clients, ImageError>,
    ) -> Result<Self, ImageError> {
        let (layout, tag) = match reference {
            Reference::Registry(reference) => {
                let selector = reference.selector();
                let repository = Repository::new(client()?, reference.clone(), login, insecure_registries);
                return Ok(Self::Registry {
                    repository: Box::new(repository),
                    selector,
                });
            }
            Reference::Layout { path, tag } => (Layout::directory(path)?, tag),
            Reference::Archive { path, tag } => {
                let path = path.clone();
                (blocking("reading", move || Layout::archive(&path)).await?, tag)
            }
        };
        Ok(Self::Layout {
            layout: Arc::new(layout),
            image: reference.to_string(),
            tag: tag.clone(),
        })
    }

    /// The document that the reference stands for.
    pub(super) async fn root(&self) -> Result<Served, ImageError> {
        match self {
            Self::Registry { repository, selector } => repository.manifest(selector).await,
            Self::Layout { layout, image, tag } => {
                let entry = manifest::layout_entry(image, &layout.index()?, tag.as_deref())?;
                let (bytes, _) = self.document(entry.digest).await?;
                Ok((bytes, Some(entry.media_type)))
            }
        }
    }

    /// A manifest or index by digest, which is verified.
    pub(super) async fn document(&self, digest: Digest) -> Result<Served, ImageError> {
        match self {
            Self::Registry { repository, .. } => repository.manifest(&digest.to_string()).await,
            Self::Layout { layout, .. } => {
                let bytes = layout.manifest(digest)?.ok_or_else(|| missing(layout, digest))?;
                let actual = Digest::of(&bytes);
                if actual != digest {
                    let what = format!("manifest in {}", layout.path().display());
                    return Err(ImageError::Digest {
                        what,
                        expected: digest,
                        actual,
                    });
                }
                Ok((bytes, None))
            }
        }
    }

    /// What a tag stands for, if that can be had without the document itself.
    pub(super) async fn look_up(&self) -> Result<Option<Digest>, ImageError> {
        match self {
            Self::Registry { repository, selector } => repository.look_up(selector).await,
            Self::Layout { .. } => Ok(None),
        }
    }

    /// Whether reading it takes from what all downloads share.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Registry { .. })
    }

    /// The content of a blob, not verified: from this byte on if that can be had, else from the first. Also says which.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        from: u64,
        size: u64,
    ) -> Result<(u64, BoxStream<'_, Result<Bytes, ImageError>>), ImageError> {
        match self {
            Self::Registry { repository, .. } => repository.blob(digest, from, size).await,
            Self::Layout { layout, .. } => {
                let content = layout.blob(digest)?.ok_or_else(|| missing(layout, digest))?;
                let limit = content.limit();
                let file = tokio::fs::File::from_std(content.into_inner()).take(limit);
                let failed = |source| ImageError::Io {
                    path: layout.path().to_owned(),
                    source,
                };
                let stream = ReaderStream::with_capacity(file, READ_BYTES).map_err(failed);
                Ok((0, stream.boxed()))
            }
        }
    }
}

fn missing(layout: &Layout, digest: Digest) -> ImageError {
    ImageError::Layout {
        path: layout.path().to_owned(),
        reason: format!("the layout has no blob {digest}"),
    }
}

/// Runs what blocks away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|source| Err(ImageError::Interrupted { step, source }))
}
