//! Turns: work on one digest is done by one at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::digest::Digest;

/// One piece of work at a time for each digest.
#[derive(Default)]
pub(super) struct Turns {
    waiting: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits until nobody else works on this digest; the turn ends when the guard is dropped.
    pub(super) async fn take(&self, digest: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|_, turn| turn.strong_count() > 0);
            let turn = waiting.get(&digest).and_then(Weak::upgrade).unwrap_or_default();
            waiting.insert(digest, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}
