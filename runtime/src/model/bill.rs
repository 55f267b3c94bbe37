//! What tasks cost. Money is integer nano-units of the currency, never a float.

use serde::{Deserialize, Serialize};

use super::task::{Pauses, TaskId};
use super::{Tag, Timestamp};

/// One task's time on the machine, from the start of its image pull to the end of its execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerLine {
    pub task: TaskId,
    pub cluster: String,
    pub family: String,
    pub revision: u32,
    pub region: String,
    pub architecture: Architecture,
    pub purchase: Purchase,
    pub cpu_units: u32,
    pub memory_mib: u32,
    pub ephemeral_storage_gib: u32,
    pub tags: Vec<Tag>,
    pub opened_at: Timestamp,
    pub closed: Option<Closing>,
    #[serde(default)]
    pub pauses: Pauses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    pub at: Timestamp,
    /// The true end was not seen (the host or the machine died while the daemon was away): closed at the last heartbeat.
    pub at_last_heartbeat: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    X86_64,
    Arm64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purchase {
    OnDemand,
    Spot,
}

/// A ledger line with its price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BilledLine {
    pub line: LedgerLine,
    /// Still running: billed up to now.
    pub open: bool,
    /// The interval rounded up to the second, at least the minimum.
    pub billed_seconds: u64,
    /// Of these, the whole seconds in which the task was paused.
    pub paused_seconds: u64,
    pub vcpu_nanos: u64,
    pub memory_nanos: u64,
    pub storage_nanos: u64,
    /// Sum of the three.
    pub total_nanos: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// ISO 4217; amounts are in 10^-9 of it.
    pub currency: String,
    pub minimum_seconds: u64,
    pub lines: Vec<BilledLine>,
    /// Sum over the lines.
    pub total_nanos: u64,
}

/// Which lines to bill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BillQuery {
    pub task: Option<TaskId>,
    /// Only lines that opened at or after this time.
    pub since: Option<Timestamp>,
}
