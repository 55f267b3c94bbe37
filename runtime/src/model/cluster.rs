//! Clusters: names under which tasks run.

use serde::{Deserialize, Serialize};

use super::isolation::Isolation;
use super::{NameValue, Tag, Timestamp};

/// The cluster that exists from the start.
pub const DEFAULT_CLUSTER: &str = "default";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub status: ClusterStatus,
    pub settings: Vec<NameValue>,
    pub tags: Vec<Tag>,
    pub created_at: Timestamp,
}

impl Cluster {
    /// What its tasks may share with others, from now on. A choice that is none, which nobody can make, is the stricter one.
    pub fn isolation(&self) -> Isolation {
        let chosen = Isolation::chosen(&self.tags).unwrap_or(Some(Isolation::Strict));
        chosen.unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterStatus {
    Active,
    /// Deleted; still described for a while, as AWS does.
    Inactive,
}

/// How many tasks of a cluster are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterCounts {
    pub running: u32,
    pub pending: u32,
}
