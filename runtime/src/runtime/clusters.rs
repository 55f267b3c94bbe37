//! Clusters.

use super::{Runtime, RuntimeError};
use crate::model::cluster::{Cluster, ClusterCounts, ClusterStatus};
use crate::model::task::TaskStatus;
use crate::model::{NameValue, Tag};
use crate::state::keys;
use crate::store::{Record, StoreError, Transaction};

impl Runtime {
    /// An existing active cluster of this name is returned as it is.
    pub async fn create_cluster(
        &self,
        name: &str,
        settings: Vec<NameValue>,
        tags: Vec<Tag>,
    ) -> Result<Cluster, RuntimeError> {
        let context = &self.shared.context;
        let key = keys::cluster(name);
        let existing: Option<Record<Cluster>> = context.records.get(&key).await?;
        if let Some(existing) = &existing
            && existing.value.status == ClusterStatus::Active
        {
            return Ok(existing.value.clone());
        }
        let cluster = Cluster {
            name: name.to_owned(),
            status: ClusterStatus::Active,
            settings,
            tags,
            created_at: context.clock.now(),
        };
        let transaction = Transaction::default();
        let transaction = match existing {
            Some(inactive) => transaction.replace(key, inactive.revision, &cluster)?,
            None => transaction.create(key, &cluster)?,
        };
        context.records.commit(transaction).await?;
        Ok(cluster)
    }

    /// Changes an active cluster; tasks that it has already stay as they are.
    pub async fn change_cluster<E: From<RuntimeError>>(
        &self,
        name: &str,
        change: impl Fn(&mut Cluster) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = &self.shared.context.records;
        loop {
            let (mut cluster, revision) = self.active_cluster(name).await?;
            change(&mut cluster)?;
            let transaction = Transaction::default().replace(keys::cluster(name), revision, &cluster);
            match records.commit(transaction.map_err(RuntimeError::from)?).await {
                Err(StoreError::Conflict { .. }) => {}
                done => return Ok(done.map(drop).map_err(RuntimeError::from)?),
            }
        }
    }

    /// All clusters, inactive ones too, by name.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, RuntimeError> {
        let records = self.shared.context.records.list(keys::CLUSTERS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn cluster_counts(&self, name: &str) -> Result<ClusterCounts, RuntimeError> {
        let mut counts = ClusterCounts::default();
        for task in self.tasks().await?.iter().filter(|task| task.cluster == name) {
            match task.status {
                TaskStatus::Running => counts.running += 1,
                TaskStatus::Provisioning | TaskStatus::Pending | TaskStatus::Activating => {
                    counts.pending += 1
                }
                _ => {}
            }
        }
        Ok(counts)
    }

    /// Refused while the cluster has tasks that are not stopped.
    pub async fn delete_cluster(&self, name: &str) -> Result<Cluster, RuntimeError> {
        // No task is admitted meanwhile.
        let _admission = self.shared.admission.lock().await;
        let (mut cluster, revision) = self.active_cluster(name).await?;
        let tasks = self.tasks().await?;
        let left = tasks
            .iter()
            .filter(|task| task.cluster == name && task.status != TaskStatus::Stopped)
            .count();
        if left > 0 {
            return Err(RuntimeError::ClusterHasTasks {
                cluster: name.to_owned(),
                tasks: left,
            });
        }
        cluster.status = ClusterStatus::Inactive;
        let transaction = Transaction::default().replace(keys::cluster(name), revision, &cluster)?;
        self.shared.context.records.commit(transaction).await?;
        Ok(cluster)
    }

    pub(super) async fn active_cluster(&self, name: &str) -> Result<(Cluster, u64), RuntimeError> {
        let record: Option<Record<Cluster>> = self.shared.context.records.get(&keys::cluster(name)).await?;
        record
            .filter(|record| record.value.status == ClusterStatus::Active)
            .map(|record| (record.value, record.revision))
            .ok_or_else(|| RuntimeError::ClusterNotFound(name.to_owned()))
    }
}
