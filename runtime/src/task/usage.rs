//! What tasks use, second by second: a short history in memory. A guest measures while somebody looks, and for a minute after
//! that; otherwise an idle task is left alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_protocol::message::TaskUsage;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::model::Timestamp;
use crate::model::task::TaskId;

/// How much is kept, which is a minute's.
const MOST: usize = 60;
/// For how long a guest measures after somebody looked.
pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// A guest that measures is told to go on not before so much of it is over.
const RENEW_AFTER: Duration = Duration::from_secs(20);
/// Who tells more often is not heard.
const LEAST_MS: u64 = 300;
/// Newer than this is news.
const FRESH: Duration = Duration::from_millis(2500);
/// Longest wait for a measurement.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a guest said its containers had used by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// By the host's clock.
    pub at: Timestamp,
    /// The guest's word: any number can be in there.
    pub usage: TaskUsage,
}

/// Of every task that runs.
#[derive(Default)]
pub(crate) struct Usages(Mutex<HashMap<TaskId, Arc<History>>>);

impl Usages {
    /// For whoever follows the task.
    pub(crate) fn of(&self, task: &TaskId) -> Arc<History> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(task.clone()).or_default())
    }

    /// None for a task that nobody follows.
    pub(crate) fn find(&self, task: &TaskId) -> Option<Arc<History>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(task).map(Arc::clone)
    }

    /// None for a task that does not run, or at which nobody has looked.
    pub(crate) fn newest(&self, task: &TaskId) -> Option<Measurement> {
        let history = self.find(task)?;
        let kept = history.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.back().cloned()
    }

    pub(crate) fn forget(&self, task: &TaskId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(task);
    }
}

/// Of one task.
#[derive(Default)]
pub(crate) struct History {
    kept: Mutex<VecDeque<Measurement>>,
    asked: watch::Sender<Option<Instant>>,
    /// When the last one came.
    came: watch::Sender<Option<Instant>>,
}

impl History {
    /// What is known, oldest first, once the newest two are of now; or what there is if they do not come.
    pub(crate) async fn look(&self) -> Vec<Measurement> {
        self.asked.send_replace(Some(Instant::now()));
        let mut came = self.came.subscribe();
        let mut heard = 0;
        let enough = async {
            loop {
                let fresh = came
                    .borrow_and_update()
                    .is_some_and(|came| came.elapsed() < FRESH);
                // The first one after a while has nothing of now before it.
                if fresh && (heard > 0 || self.is_steady()) {
                    return;
                }
                if came.changed().await.is_err() {
                    return;
                }
                heard += usize::from(fresh);
            }
        };
        // A guest that is paused, or busy, does not tell.
        let _ = tokio::time::timeout(PATIENCE, enough).await;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    fn is_steady(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = kept.back().map(|newest| newest.at);
        let before = kept.iter().nth_back(1).map(|before| before.at);
        let apart = newest
            .zip(before)
            .map(|(newest, before)| newest.millis_since(before));
        apart.is_some_and(|apart| u128::from(apart) < FRESH.as_millis())
    }

    /// Keeps what a guest told of these containers.
    pub(crate) fn keep(&self, mut usage: TaskUsage, containers: &[&str], clock: &dyn Clock) {
        let at = clock.now();
        let mut known = std::mem::take(&mut usage.containers);
        known.retain(|container| containers.contains(&container.name.as_str()));
        known.sort_by(|a, b| a.name.cmp(&b.name));
        known.dedup_by(|a, b| a.name == b.name);
        known.shrink_to_fit();
        usage.containers = known;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept
            .back()
            .is_some_and(|last| at.millis_since(last.at) < LEAST_MS)
        {
            return;
        }
        if kept.len() == MOST {
            kept.pop_front();
        }
        kept.push_back(Measurement { at, usage });
        drop(kept);
        self.came.send_replace(Some(Instant::now()));
    }

    /// For who tells the guest.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            asked: self.asked.subscribe(),
            told: None,
        }
    }
}

/// Whether a guest should measure.
pub(crate) struct Wanted {
    asked: watch::Receiver<Option<Instant>>,
    /// When this guest was told, on this connection.
    told: Option<Instant>,
}

impl Wanted {
    /// A new connection: what was said on the old one may be lost.
    pub(crate) fn begin(&mut self) {
        self.told = None;
    }

    /// Waits until somebody looks.
    pub(crate) async fn changed(&mut self) {
        if self.asked.changed().await.is_err() {
            // The history is gone, and with it the task.
            std::future::pending::<()>().await;
        }
    }

    /// For how many seconds the guest is to be told to measure, if it is to be told now.
    pub(crate) fn due(&mut self) -> Option<u32> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Option<u32> {
        let recent = |asked: &Instant| now.saturating_duration_since(*asked) < LEASE;
        let asked = (*self.asked.borrow_and_update()).filter(recent)?;
        let renew = |told: Instant| asked.saturating_duration_since(told) >= RENEW_AFTER;
        if self.told.is_none_or(renew) {
            self.told = Some(now);
            return u32::try_from(LEASE.as_secs()).ok();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use berth_protocol::message::ContainerUsage;

    use super::*;
    use crate::clock::SimulatedClock;

    fn usage(cpu_us: u64, names: &[&str]) -> TaskUsage {
        let container = |name: &&str| ContainerUsage {
            name: (*name).to_owned(),
            cpu_us,
            ..ContainerUsage::default()
        };
        TaskUsage {
            containers: names.iter().map(container).collect(),
            ..TaskUsage::default()
        }
    }

    #[tokio::test]
    async fn who_looks_first_waits_for_two_measurements_and_who_looks_next_for_none() {
        let (history, clock) = (Arc::new(History::default()), SimulatedClock::at(Timestamp(0)));
        let mut wanted = history.wanted();
        let looking = tokio::spawn({
            let history = Arc::clone(&history);
            async move { history.look().await }
        });
        wanted.changed().await;
        for second in 0..2 {
            clock.advance_millis(1000);
            history.keep(usage(second, &["web"]), &["web"], &clock);
            tokio::task::yield_now().await;
        }
        assert_eq!(looking.await.unwrap().len(), 2);
        let mut looking = std::pin::pin!(history.look());
        let at_once = std::future::poll_fn(|context| std::task::Poll::Ready(looking.as_mut().poll(context)));
        assert!(at_once.await.is_ready());
    }

    #[test]
    fn a_guest_is_told_to_measure_while_somebody_looks() {
        let history = History::default();
        let mut wanted = history.wanted();
        let start = Instant::now();
        let looks = |seconds| {
            history
                .asked
                .send_replace(Some(start + Duration::from_secs(seconds)))
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(wanted.due_at(start), None, "nobody looked");
        looks(0);
        assert_eq!(wanted.due_at(at(0)), Some(60));
        looks(10);
        assert_eq!(wanted.due_at(at(10)), None, "it measures already");
        looks(20);
        assert_eq!(wanted.due_at(at(20)), Some(60));
        wanted.begin();
        assert_eq!(wanted.due_at(at(30)), Some(60), "a new connection");
        wanted.begin();
        assert_eq!(wanted.due_at(at(80)), None, "nobody looks any more");
    }

    #[test]
    fn a_guest_can_fill_it_neither_by_talking_nor_with_names() {
        let (history, clock) = (History::default(), SimulatedClock::at(Timestamp(0)));
        for second in 0..200 {
            clock.advance_millis(1000);
            for _ in 0..10 {
                history.keep(usage(second, &["web", "forged", "web"]), &["web", "db"], &clock);
            }
        }
        let kept = history.kept.lock().unwrap();
        assert_eq!(kept.len(), MOST);
        assert_eq!(kept.back().unwrap().usage.containers.len(), 1);
        assert_eq!(kept.back().unwrap().usage.containers[0].cpu_us, 199);
        assert_eq!(kept.front().unwrap().at, Timestamp(141_000));
    }
}
