//! Pulling the images of a task: some of them at once, told of as one pull.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::host::{HostError, PulledImage};
use super::spec::Prepared;
use super::supervisor::{Context, to_host_error};
use crate::faults::{self, Point};
use crate::image::Credentials;
use crate::model::task::Task;
use crate::runtime::PullStatus;
use crate::state::keys;
use crate::store::Transaction;

/// Of one task.
const CONCURRENT_PULLS: usize = 3;
/// In their order.
const PHASES: [&str; 4] = ["resolving", "downloading", "unpacking", "packing"];

/// How far each of a task's images is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// None before its pull has begun.
    told: Option<PullStatus>,
    done: bool,
}

impl Context {
    /// The digest of each container's image.
    pub(super) async fn pull_images(&self, task: &Task) -> Result<BTreeMap<String, String>, HostError> {
        let pulled = self.pull_all(task).await;
        self.pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&task.id);
        let images = pulled?;
        let digests = task.containers.iter().zip(&images);
        let digests = digests
            .map(|(container, image)| (container.name.clone(), image.digest.clone()))
            .collect();
        let prepared = Prepared {
            images,
            session: format!("{:032x}", rand::random::<u128>()),
        };
        faults::pass(Point::ImagesPulled);
        // Stays known to a daemon that starts in the middle, even if the registry is gone by then.
        let transaction = Transaction::default()
            .put(keys::prepared(&task.id), &prepared)
            .map_err(to_host_error)?;
        self.records.commit(transaction).await.map_err(to_host_error)?;
        Ok(digests)
    }

    /// In the order of the containers; or why that of the first one that has none could not be pulled, and then the others
    /// are given up.
    async fn pull_all(&self, task: &Task) -> Result<Vec<PulledImage>, HostError> {
        let mut credentials = self.registry_credentials(task).await?;
        let progress = Mutex::new(vec![Progress::default(); task.containers.len()]);
        let pulls = Pulls {
            context: self,
            task,
            progress,
        };
        let each = task.containers.iter().enumerate().map(|(index, container)| {
            let credentials = credentials.remove(&container.name);
            pulls.pull(index, &container.image, credentials).boxed()
        });
        let each: Vec<_> = each.collect();
        stream::iter(each).buffered(CONCURRENT_PULLS).try_collect().await
    }
}

/// What is under way for one task.
struct Pulls<'a> {
    context: &'a Context,
    task: &'a Task,
    progress: Mutex<Vec<Progress>>,
}

impl Pulls<'_> {
    async fn pull(
        &self,
        index: usize,
        image: &str,
        credentials: Option<Credentials>,
    ) -> Result<PulledImage, HostError> {
        let max_bytes = u64::from(self.task.ephemeral_storage_gib) << 30;
        let tell = |status| self.report(index, |progress| progress.told = Some(status));
        let host = &self.context.host;
        let pulled = host.pull_image(&self.task.id, image, credentials, max_bytes, &tell);
        let image = pulled.await?;
        self.report(index, |progress| progress.done = true);
        Ok(image)
    }

    fn report(&self, index: usize, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = progress.get_mut(index) {
            change(progress);
        }
        if let Some(status) = together(&progress) {
            // Under the lock above, so that what was told last is what stays.
            let mut pulls = self.context.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.insert(self.task.id.clone(), status);
        }
    }
}

/// All of them as one pull: in the phase of the one that is furthest behind, with the layers of those that are in it, and
/// everybody's bytes. None before any has begun.
fn together(images: &[Progress]) -> Option<PullStatus> {
    let rank = |status: &PullStatus| PHASES.iter().position(|phase| *phase == status.phase);
    let begun = || {
        images
            .iter()
            .filter_map(|image| image.told.map(|told| (told, image.done)))
    };
    let underway = begun().filter(|(_, done)| !done).map(|(told, _)| told);
    let last = begun().map(|(told, _)| told).max_by_key(rank);
    let phase = underway.min_by_key(rank).or(last)?.phase;
    let mut sum = PullStatus {
        phase,
        layers_done: 0,
        layers_total: 0,
        bytes_done: 0,
        bytes_total: 0,
    };
    for (told, done) in begun() {
        if told.phase == phase && !done {
            sum.layers_done = sum.layers_done.saturating_add(told.layers_done);
            sum.layers_total = sum.layers_total.saturating_add(told.layers_total);
        }
        sum.bytes_done = sum.bytes_done.saturating_add(told.bytes_done);
        sum.bytes_total = sum.bytes_total.saturating_add(told.bytes_total);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(phase: &'static str, layers: (u32, u32), bytes: (u64, u64), done: bool) -> Progress {
        let told = PullStatus {
            phase,
            layers_done: layers.0,
            layers_total: layers.1,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
        };
        Progress {
            told: Some(told),
            done,
        }
    }

    #[test]
    fn several_pulls_are_told_of_as_the_one_that_is_furthest_behind() {
        assert_eq!(together(&[Progress::default(); 2]), None);
        let unpacking = image("unpacking", (1, 4), (100, 100), false);
        let downloading = image("downloading", (1, 2), (30, 60), false);
        let also_downloading = image("downloading", (0, 3), (0, 40), false);
        let all = [unpacking, Progress::default(), downloading, also_downloading];
        let expected = image("downloading", (1, 5), (130, 200), false).told;
        assert_eq!(together(&all), expected);
        let done = image("downloading", (2, 2), (60, 60), true);
        let expected = image("unpacking", (1, 4), (160, 160), false).told;
        assert_eq!(together(&[unpacking, done]), expected);
        assert_eq!(
            together(&[done]),
            image("downloading", (0, 0), (60, 60), true).told
        );
    }
}
