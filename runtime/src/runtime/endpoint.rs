//! What a task is told inside, and what it uses.

use tokio::sync::mpsc;

use super::{Runtime, RuntimeError};
use crate::model::task::{TaskId, TaskStatus};
use crate::state::keys;
use crate::task::endpoint::{self, EndpointCall};
use crate::task::spec::Prepared;
use crate::task::usage::Measurement;

/// Whose credentials a task's containers get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRole {
    pub arn: String,
    /// The last part of the path where its containers ask for them, which only they know.
    pub credentials_id: String,
}

impl Runtime {
    /// The connections of all tasks to their endpoints. Whoever takes them first answers them; later ones get nothing.
    pub fn endpoint_calls(&self) -> Option<mpsc::Receiver<EndpointCall>> {
        self.shared.context.endpoints.take()
    }

    /// The role of a task whose machine is there; none for a task without one, or that has ended.
    pub async fn task_role(&self, id: &TaskId) -> Result<Option<TaskRole>, RuntimeError> {
        let task = self.task(id).await?;
        let over = task.status >= TaskStatus::Deprovisioning;
        let records = &self.shared.context.records;
        let prepared = records.get::<Prepared>(&keys::prepared(id)).await?;
        let Some(prepared) = prepared.filter(|_| !over) else {
            return Ok(None);
        };
        let definition = self
            .definition(&task.definition.family, Some(task.definition.revision))
            .await?;
        let role = endpoint::role(&task, &definition.spec).map(|arn| TaskRole {
            arn: arn.to_owned(),
            credentials_id: endpoint::credentials_id(&prepared.value.session),
        });
        Ok(role)
    }

    /// The newest of that, without waiting for it.
    pub fn newest_usage(&self, id: &TaskId) -> Option<Measurement> {
        self.shared.context.usages.newest(id)
    }

    /// What the task's containers have used in the last seconds, oldest first. The guest measures because of this call; what
    /// is known comes at once, and where nothing is, within seconds. Empty for a task that does not run.
    pub async fn usage(&self, id: &TaskId) -> Result<Vec<Measurement>, RuntimeError> {
        let task = self.task(id).await?;
        if task.status != TaskStatus::Running {
            return Ok(Vec::new());
        }
        Ok(match self.shared.context.usages.find(id) {
            Some(history) => history.look().await,
            None => Vec::new(),
        })
    }
}
