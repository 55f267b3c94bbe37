//! What goes on beside the tasks: the heartbeat, which bounds what a power cut can lose of the ledger, forgetting
//! tasks that stopped long ago, and secrets whose recovery window is over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Runtime, RuntimeError, Shared};
use crate::model::task::{Task, TaskStatus};
use crate::runtime::tasks::{CLIENT_TOKEN_LIFE, UsedToken};
use crate::state::keys;
use crate::store::Transaction;

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

impl Runtime {
    /// Goes on until the last handle is dropped.
    pub(super) fn start_background(&self) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(every(HEARTBEAT_INTERVAL, shared.clone(), async |runtime| {
            runtime.beat().await
        }));
        tokio::spawn(every(SWEEP_INTERVAL, shared, async |runtime| {
            runtime.sweep().await
        }));
    }

    async fn beat(&self) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let transaction = Transaction::default().put(keys::HEARTBEAT.to_owned(), &context.clock.now())?;
        context.records.commit(transaction).await?;
        Ok(())
    }

    /// Ends what is left of a rotation, and forgets secrets, stopped tasks and client tokens whose time is over. What log groups keep no
    /// longer is freed. Ledger lines and log streams stay.
    pub(super) async fn sweep(&self) -> Result<(), RuntimeError> {
        let context = &self.shared.context;
        let now = context.clock.now();
        // What is wrong with a secret keeps nothing else from being done.
        for done in [
            context.secrets.finish_rotation().await,
            context.secrets.sweep().await,
        ] {
            if let Err(error) = done {
                tracing::error!(%error, "parameters and secrets cannot be looked after");
            }
        }
        let kept = u64::try_from(self.shared.settings.stopped_task_retention.as_millis()).unwrap_or(u64::MAX);
        for task in context.records.list::<Task>(keys::TASKS).await? {
            let task = task.value;
            let over = task.stopped_at.is_some_and(|at| now.millis_since(at) > kept);
            if task.status == TaskStatus::Stopped && over {
                if !self.has_log_streams(&task).await? {
                    context.outputs.remove(&task.id)?;
                }
                context
                    .records
                    .commit(Transaction::default().delete(keys::task(&task.id)))
                    .await?;
            }
        }
        if let Err(error) = self.sweep_logs().await {
            tracing::error!(%error, "old logs cannot be freed");
        }
        for token in context.records.list::<UsedToken>(keys::CLIENT_TOKENS).await? {
            let token = token.value;
            if now.millis_since(token.used_at) > CLIENT_TOKEN_LIFE.as_millis() as u64 {
                let key = keys::client_token(&token.cluster, &token.token);
                context.records.commit(Transaction::default().delete(key)).await?;
            }
        }
        Ok(())
    }
}

async fn every(
    interval: Duration,
    shared: Weak<Shared>,
    work: impl AsyncFn(Runtime) -> Result<(), RuntimeError>,
) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = work(Runtime { shared }).await {
            tracing::error!(%error, "background work failed");
        }
        tokio::time::sleep(interval).await;
    }
}
