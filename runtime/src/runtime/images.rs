//! The images of this host: what there is, pulls that no task asked for, and what is to go.

use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::{PullStatus, Runtime, RuntimeError};
use crate::image::{Image, ImageError, ImageStore, PullLimits, StoredImage};
use crate::model::definition::DEFAULT_EPHEMERAL_STORAGE_GIB;

/// Of an image that no task asked for: what fits a task of the default size.
const MAX_UNPACKED_BYTES: u64 = (DEFAULT_EPHEMERAL_STORAGE_GIB as u64) << 30;
/// How long the end of a pull is kept for the one who asked for it, and for nobody else.
const KEPT: Duration = Duration::from_secs(30);
/// Pulls that go on at once, and whose end nobody has asked for yet.
const MAX_PULLS: usize = 64;

/// A pull that goes on whether somebody waits for it or not.
#[derive(Clone)]
pub(super) struct Asked {
    status: Arc<Mutex<Option<PullStatus>>>,
    end: watch::Receiver<Option<End>>,
}

/// When a pull ended, and how.
#[derive(Clone)]
struct End {
    at: Instant,
    result: Result<Image, String>,
}

impl Asked {
    /// Whoever asked for it has gone away.
    fn is_forgotten(&self) -> bool {
        let end = self.end.borrow();
        end.as_ref().is_some_and(|end| end.at.elapsed() > KEPT)
    }
}

/// How a pull stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullState {
    /// It goes on; how far it is, once that is known.
    Underway(Option<PullStatus>),
    Done(Box<Image>),
}

/// What all images take on disk, and the most that they are to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    pub used_bytes: u64,
    pub budget_bytes: u64,
}

impl Runtime {
    pub async fn images(&self) -> Result<(Vec<StoredImage>, ImageUsage), RuntimeError> {
        let store = self.image_store()?;
        let images = store.list().await.map_err(refusal)?;
        let (used_bytes, budget_bytes) = store.usage().await.map_err(refusal)?;
        let usage = ImageUsage {
            used_bytes,
            budget_bytes,
        };
        Ok((images, usage))
    }

    /// Begins to pull an image, or finds the pull that is under way, and waits so long for its end. The one who is told of
    /// the end is the last: who asks after that begins a new pull.
    pub async fn pull_image(&self, reference: &str, wait: Duration) -> Result<PullState, RuntimeError> {
        let mut asked = self.asked(reference)?;
        let ended = tokio::time::timeout(wait, asked.end.wait_for(Option::is_some)).await;
        let end = match ended {
            Err(_) => {
                let status = *asked.status.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok(PullState::Underway(status));
            }
            Ok(Ok(end)) => end.clone(),
            // It panicked, or the daemon ends.
            Ok(Err(_)) => None,
        };
        self.asked_pulls().remove(reference);
        match end {
            Some(End {
                result: Ok(image), ..
            }) => Ok(PullState::Done(Box::new(image))),
            Some(End {
                result: Err(reason), ..
            }) => Err(RuntimeError::Image(reason)),
            None => Err(RuntimeError::Internal(format!(
                "the pull of {reference} was interrupted"
            ))),
        }
    }

    /// The bytes won; none if the image is not known.
    pub async fn remove_image(&self, reference: &str) -> Result<Option<u64>, RuntimeError> {
        self.image_store()?.remove(reference).await.map_err(refusal)
    }

    /// Removes what no task uses and no task has used for so long; gives the references, and the bytes won.
    pub async fn prune_images(&self, unused_for: Duration) -> Result<(Vec<String>, u64), RuntimeError> {
        let since = SystemTime::now()
            .checked_sub(unused_for)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        self.image_store()?.prune(since).await.map_err(refusal)
    }

    fn asked(&self, reference: &str) -> Result<Asked, RuntimeError> {
        let store = self.image_store()?.clone();
        let mut pulls = self.asked_pulls();
        pulls.retain(|_, asked| !asked.is_forgotten());
        let full = pulls.len() >= MAX_PULLS;
        let place = match pulls.entry(reference.to_owned()) {
            Entry::Occupied(found) => return Ok(found.get().clone()),
            Entry::Vacant(_) if full => {
                return Err(RuntimeError::Image(format!(
                    "{MAX_PULLS} images are being pulled; try again later"
                )));
            }
            Entry::Vacant(place) => place,
        };
        let (tell, end) = watch::channel(None);
        let status = Arc::new(Mutex::new(None));
        let asked = Asked {
            status: Arc::clone(&status),
            end,
        };
        let reference = reference.to_owned();
        tokio::spawn(async move {
            let progress = |progress| {
                *status.lock().unwrap_or_else(PoisonError::into_inner) = Some(PullStatus::from(progress));
            };
            let limits = PullLimits {
                max_unpacked_bytes: MAX_UNPACKED_BYTES,
            };
            let pulled = store.pull(&reference, None, limits, &progress).await;
            tell.send_replace(Some(End {
                at: Instant::now(),
                result: pulled.map_err(|error| error.to_string()),
            }));
        });
        Ok(place.insert(asked).clone())
    }

    fn asked_pulls(&self) -> MutexGuard<'_, std::collections::HashMap<String, Asked>> {
        self.shared.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_store(&self) -> Result<&ImageStore, RuntimeError> {
        let images = self.shared.context.host.images();
        images.ok_or_else(|| RuntimeError::Internal("there are no images on this host".to_owned()))
    }
}

fn refusal(error: ImageError) -> RuntimeError {
    match error {
        ImageError::InUse { image, users } => RuntimeError::ImageInUse { image, users },
        error @ ImageError::Reference { .. } => RuntimeError::Image(error.to_string()),
        error => RuntimeError::Internal(error.to_string()),
    }
}
