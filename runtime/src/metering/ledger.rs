//! The ledger line of a task, which follows from the task's record alone, so both are always written together.

use crate::model::bill::{Architecture, Closing, LedgerLine, Purchase};
use crate::model::task::{Task, TaskStatus};

/// None as long as the task's image pull has not begun, and for a task that never got so far.
pub fn line(task: &Task, region: &str) -> Option<LedgerLine> {
    let opened_at = task.pull_started_at?;
    // A task that ends before it ran is closed when it began to stop.
    let ended = match task.status {
        TaskStatus::Stopped | TaskStatus::Deprovisioning => {
            task.execution_stopped_at.or(task.stopping_at).or(task.stopped_at)
        }
        _ => task.execution_stopped_at,
    };
    let closed = ended.map(|at| Closing {
        at: at.max(opened_at),
        at_last_heartbeat: task.ended_at_heartbeat,
    });
    Some(LedgerLine {
        task: task.id.clone(),
        cluster: task.cluster.clone(),
        family: task.definition.family.clone(),
        revision: task.definition.revision,
        region: region.to_owned(),
        architecture: Architecture::X86_64,
        purchase: Purchase::OnDemand,
        cpu_units: task.cpu_units,
        memory_mib: task.memory_mib,
        ephemeral_storage_gib: task.ephemeral_storage_gib,
        tags: task.tags.clone(),
        opened_at,
        closed,
        pauses: task.pauses,
    })
}
