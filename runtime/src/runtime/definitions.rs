//! Task definitions.

use super::{Runtime, RuntimeError};
use crate::model::Tag;
use crate::model::definition::{DefinitionId, DefinitionSpec, DefinitionStatus, TaskDefinition};
use crate::state::keys;
use crate::store::{Record, StoreError, Transaction};

impl Runtime {
    /// Registers the next revision of the family.
    pub async fn register(
        &self,
        family: &str,
        spec: DefinitionSpec,
        tags: Vec<Tag>,
        registered_by: &str,
    ) -> Result<TaskDefinition, RuntimeError> {
        let context = &self.shared.context;
        loop {
            let last: Option<Record<u32>> = context.records.get(&keys::family(family)).await?;
            let revision = last.as_ref().map_or(0, |last| last.value).saturating_add(1);
            let definition = TaskDefinition {
                id: DefinitionId {
                    family: family.to_owned(),
                    revision,
                },
                status: DefinitionStatus::Active,
                spec: spec.clone(),
                tags: tags.clone(),
                registered_at: context.clock.now(),
                registered_by: registered_by.to_owned(),
                deregistered_at: None,
            };
            let transaction = Transaction::default().create(keys::definition(&definition.id), &definition)?;
            let transaction = match last {
                Some(last) => transaction.replace(keys::family(family), last.revision, &revision)?,
                None => transaction.create(keys::family(family), &revision)?,
            };
            match context.records.commit(transaction).await {
                Ok(_) => return Ok(definition),
                // Another registration took the number.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The given revision, or the latest active one.
    pub async fn definition(
        &self,
        family: &str,
        revision: Option<u32>,
    ) -> Result<TaskDefinition, RuntimeError> {
        let records = &self.shared.context.records;
        let found = match revision {
            Some(revision) => {
                let id = DefinitionId {
                    family: family.to_owned(),
                    revision,
                };
                records.get::<TaskDefinition>(&keys::definition(&id)).await?
            }
            None => {
                let mut all = records
                    .list::<TaskDefinition>(&keys::definitions_of(family))
                    .await?;
                all.retain(|record| record.value.status == DefinitionStatus::Active);
                all.pop()
            }
        };
        found.map(|record| record.value).ok_or_else(|| {
            RuntimeError::DefinitionNotFound(match revision {
                Some(revision) => format!("{family}:{revision}"),
                None => family.to_owned(),
            })
        })
    }

    /// Changes a definition, whatever its status.
    pub async fn change_definition<E: From<RuntimeError>>(
        &self,
        id: &DefinitionId,
        change: impl Fn(&mut TaskDefinition) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = &self.shared.context.records;
        let key = keys::definition(id);
        loop {
            let found: Option<Record<TaskDefinition>> =
                records.get(&key).await.map_err(RuntimeError::from)?;
            let Record { mut value, revision } =
                found.ok_or_else(|| RuntimeError::DefinitionNotFound(id.to_string()))?;
            change(&mut value)?;
            let transaction = Transaction::default().replace(key.clone(), revision, &value);
            match records.commit(transaction.map_err(RuntimeError::from)?).await {
                Err(StoreError::Conflict { .. }) => {}
                done => return Ok(done.map(drop).map_err(RuntimeError::from)?),
            }
        }
    }

    /// All of them, by family and revision.
    pub async fn definitions(&self) -> Result<Vec<TaskDefinition>, RuntimeError> {
        let records = self.shared.context.records.list(keys::DEFINITIONS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    /// Deregistering again changes nothing.
    pub async fn deregister(&self, id: &DefinitionId) -> Result<TaskDefinition, RuntimeError> {
        let context = &self.shared.context;
        let key = keys::definition(id);
        let record: Option<Record<TaskDefinition>> = context.records.get(&key).await?;
        let record = record.ok_or_else(|| RuntimeError::DefinitionNotFound(id.to_string()))?;
        let mut definition = record.value;
        if definition.status == DefinitionStatus::Active {
            definition.status = DefinitionStatus::Inactive;
            definition.deregistered_at = Some(context.clock.now());
            let transaction = Transaction::default().replace(key, record.revision, &definition)?;
            context.records.commit(transaction).await?;
        }
        Ok(definition)
    }
}
