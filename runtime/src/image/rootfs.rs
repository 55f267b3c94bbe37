//! From the layers of an image in the cache to its root file system there: unpacked in a folder of its own, packed, and
//! taken in. A few at a time on a host, in the order in which they came; one that nobody waits for any more ends soon.

use std::fs::File;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::{RootfsSize, Scratch};
use super::digest::Digest;
use super::erofs;
use super::error::ImageError;
use super::evict::Kind;
use super::layer::LayerError;
use super::manifest::Layer;
use super::room::{Reservation, blocks_of};
use super::source::blocking;
use super::store::Inner;
use super::unpack::Unpacker;

/// Images of all pulls that are unpacked and packed at once.
const MAX_UNPACKING: usize = 2;

/// The places for unpacking. Who waits longest is next.
pub(super) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_UNPACKING)))
    }
}

impl Places {
    /// None never comes: the semaphore is not closed.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// Tells work on other threads that nobody waits for it any more.
#[derive(Default)]
pub(super) struct Stop {
    stopped: AtomicBool,
    /// A program that does the work.
    child: Mutex<Option<Child>>,
}

impl Stop {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The program ends with this, or at once.
    pub(super) fn ends(&self, mut child: Child) {
        let mut place = self.lock();
        if self.is_stopped() {
            kill(&mut child);
        }
        *place = Some(child);
    }

    /// The program, to wait for it.
    pub(super) fn child(&self) -> Option<Child> {
        self.lock().take()
    }

    fn stop(&self) {
        let mut child = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(child) = child.as_mut() {
            kill(child);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It fails only for one that has ended already.
fn kill(child: &mut Child) {
    if let Err(error) = child.kill() {
        tracing::debug!(%error, "a program cannot be ended");
    }
}

/// Held by the one who waits for the work.
#[derive(Default)]
struct Waiting(Arc<Stop>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A tree that is being unpacked. When it is dropped, in this order, it is deleted, its room is given back, and the next one
/// has its place.
struct Staging {
    unpacker: Unpacker,
    directory: Scratch,
    _room: Arc<Reservation>,
    _place: Option<OwnedSemaphorePermit>,
}

/// A root file system to be made.
pub(super) struct Rootfs<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) chain_id: Digest,
    pub(super) layers: &'a [Layer],
    pub(super) diff_ids: &'a [Digest],
    /// Most bytes of files in all layers together.
    pub(super) max_bytes: u64,
}

impl Rootfs<'_> {
    /// Unpacks the layers, checking each against its `diff_id`; `on_layer` is told how many are done. What they unpack to
    /// beyond the limit is [`LayerError::TooLarge`].
    pub(super) async fn unpack(self, on_layer: impl Fn(usize)) -> Result<UnpackedTree, ImageError> {
        on_layer(0);
        let place = self.inner.places.place().await;
        let waiting = Waiting::default();
        let (limit, chain_id) = (self.max_bytes, self.chain_id);
        let directory = self.inner.cache.scratch();
        let room = self.inner.room.reserve("the unpacked image", None, None);
        let (stop, counted) = (Arc::clone(&waiting.0), Arc::clone(&room));
        let mut staging = blocking("unpacking", move || {
            let path = directory.path();
            std::fs::create_dir(path).map_err(ImageError::io(path))?;
            let allow = move |bytes| match stop.is_stopped() {
                true => Err(LayerError::Stopped),
                false => counted
                    .grow_now(bytes)
                    .map_err(|error| LayerError::NoRoom(Box::new(error))),
            };
            let unpacker = Unpacker::new(path, limit, Box::new(allow)).map_err(error_of(chain_id))?;
            Ok(Staging {
                unpacker,
                directory,
                _room: room,
                _place: place,
            })
        })
        .await?;
        for (index, (layer, &diff_id)) in self.layers.iter().zip(self.diff_ids).enumerate() {
            on_layer(index);
            let path = self.inner.cache.blob(layer.digest);
            let (digest, compression) = (layer.digest, layer.compression);
            staging = blocking("unpacking", move || {
                let file = File::open(&path).map_err(ImageError::io(&path))?;
                let unpacked = staging.unpacker.layer(file, compression);
                let actual = unpacked.map_err(error_of(digest))?;
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
        Ok(UnpackedTree { staging, waiting })
    }
}

/// The tree of an image.
pub(super) struct UnpackedTree {
    staging: Staging,
    waiting: Waiting,
}

impl UnpackedTree {
    /// Packs it, and takes it into the cache.
    pub(super) async fn pack(self, inner: &Arc<Inner>, chain_id: Digest) -> Result<RootfsSize, ImageError> {
        let (inner, staging, stop) = (Arc::clone(inner), self.staging, Arc::clone(&self.waiting.0));
        blocking("packing", move || {
            let Staging {
                unpacker,
                directory,
                _room,
                _place,
            } = staging;
            let unpacked = unpacker.finish().map_err(error_of(chain_id))?;
            if unpacked.skipped_devices > 0 {
                tracing::info!(rootfs = %chain_id, devices = unpacked.skipped_devices, "device nodes left out");
            }
            let packed = inner.cache.scratch();
            let room = inner
                .room
                .reserve("the packed image", Some((Kind::Rootfs, chain_id)), Some(packed.path()));
            room.grow_now(unpacked.packed_bytes)?;
            erofs::pack(directory.path(), packed.path(), chain_id, &stop)?;
            room.grow_now(blocks_of(packed.path()).saturating_sub(unpacked.packed_bytes))?;
            let size = RootfsSize::from(unpacked);
            inner.cache.put_rootfs(chain_id, &packed, size)?;
            Ok(size)
        })
        .await
    }
}

fn error_of(layer: Digest) -> impl FnOnce(LayerError) -> ImageError {
    move |source| match source {
        LayerError::NoRoom(error) => *error,
        source => ImageError::Layer { layer, source },
    }
}

#[cfg(test)]
#[path = "rootfs_tests.rs"]
mod tests;
