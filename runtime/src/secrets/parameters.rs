//! Parameters: put, looked up, listed, deleted. Names and values are checked by the API before they get here.

use super::{SecretError, SecretStore, SecretText};
use crate::model::Tag;
use crate::model::parameter::{Parameter, ParameterTier, ParameterType, ParameterVersion};
use crate::state::keys as names;
use crate::store::{Record, Transaction};

const MAX_PARAMETERS: usize = 10_000;
/// Older ones are dropped.
const MAX_VERSIONS: u64 = 100;

/// What PutParameter says; what is not said of a parameter that exists stays as it is.
#[derive(Clone, Debug)]
pub struct PutParameter {
    pub name: String,
    pub value: SecretText,
    pub kind: Option<ParameterType>,
    pub tier: Option<ParameterTier>,
    pub data_type: Option<String>,
    pub description: Option<String>,
    pub allowed_pattern: Option<String>,
    pub overwrite: bool,
    pub tags: Vec<Tag>,
    pub by: String,
}

impl SecretStore {
    pub async fn put_parameter(&self, put: PutParameter) -> Result<Parameter, SecretError> {
        let _writing = self.writing.lock().await;
        let key = names::parameter(&put.name);
        let old: Option<Record<Parameter>> = self.records.get(&key).await?;
        let before = old.as_ref().map(|old| &old.value.newest);
        match before {
            Some(_) if !put.overwrite => return Err(SecretError::ParameterExists(put.name)),
            Some(before) if put.kind.is_some_and(|kind| kind != before.kind) => {
                let is = before.kind;
                return Err(SecretError::ParameterTypeChange { name: put.name, is });
            }
            Some(before) if put.tier.is_some_and(|tier| tier < before.tier) => {
                return Err(SecretError::ParameterTierChange(put.name));
            }
            Some(_) => {}
            None => {
                let there = self.records.store().list(names::PARAMETERS).await?.len();
                if there >= MAX_PARAMETERS {
                    return Err(SecretError::ParameterLimit(there));
                }
            }
        }
        let kind = put.kind.or(before.map(|before| before.kind));
        let newest = ParameterVersion {
            version: before.map_or(1, |before| before.version.saturating_add(1)),
            kind: kind.ok_or(SecretError::ParameterWithoutType)?,
            tier: put
                .tier
                .or(before.map(|before| before.tier))
                .unwrap_or(ParameterTier::Standard),
            data_type: put
                .data_type
                .or(before.map(|before| before.data_type.clone()))
                .unwrap_or_else(|| "text".to_owned()),
            description: put
                .description
                .or_else(|| before.and_then(|before| before.description.clone())),
            allowed_pattern: put
                .allowed_pattern
                .or_else(|| before.and_then(|before| before.allowed_pattern.clone())),
            modified_at: self.clock.now(),
            modified_by: put.by,
        };
        let version = newest.version;
        let sealed_key = names::sealed_parameter(&put.name, version);
        let value = put.value.expose().as_bytes();
        let mut transaction = self.put_sealed(Transaction::default(), sealed_key, value, &newest)?;
        if let Some(oldest) = version.checked_sub(MAX_VERSIONS).filter(|oldest| *oldest > 0) {
            transaction = transaction.delete(names::sealed_parameter(&put.name, oldest));
        }
        let parameter = Parameter {
            name: put.name,
            tags: old.as_ref().map_or(put.tags, |old| old.value.tags.clone()),
            newest,
        };
        let transaction = match old {
            Some(old) => transaction.replace(key, old.revision, &parameter)?,
            None => transaction.create(key, &parameter)?,
        };
        self.records.commit(transaction).await?;
        Ok(parameter)
    }

    /// All parameters, by name.
    pub async fn parameters(&self) -> Result<Vec<Parameter>, SecretError> {
        let records = self.records.list(names::PARAMETERS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn parameter(&self, name: &str) -> Result<Parameter, SecretError> {
        Ok(self.parameter_record(name).await?.value)
    }

    /// A version with its value; the newest unless said.
    pub async fn parameter_value(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(ParameterVersion, SecretText), SecretError> {
        let newest = self.parameter_record(name).await?.value.newest.version;
        let version = version.unwrap_or(newest);
        let found = self
            .get_sealed::<ParameterVersion>(&names::sealed_parameter(name, version))
            .await?;
        let not_found = || SecretError::ParameterVersionNotFound {
            name: name.to_owned(),
            version,
        };
        let (about, value) = found.ok_or_else(not_found)?;
        Ok((about, value.to_text().ok_or_else(not_found)?))
    }

    /// The numbers of the versions that are kept, oldest first.
    pub async fn parameter_versions(&self, name: &str) -> Result<Vec<u64>, SecretError> {
        let newest = self.parameter_record(name).await?.value.newest.version;
        Ok((newest.saturating_sub(MAX_VERSIONS).saturating_add(1)..=newest).collect())
    }

    pub async fn delete_parameter(&self, name: &str) -> Result<(), SecretError> {
        let _writing = self.writing.lock().await;
        let Record { value, revision } = self.parameter_record(name).await?;
        // With a check, so that a put on another host is not half deleted.
        let key = names::parameter(name);
        let mut transaction = Transaction::default()
            .replace(key.clone(), revision, &value)?
            .delete(key);
        for version in self
            .records
            .store()
            .list(&names::sealed_parameters_of(name))
            .await?
        {
            transaction = transaction.delete(version.key);
        }
        self.records.commit(transaction).await?;
        Ok(())
    }

    pub async fn tag_parameter(
        &self,
        name: &str,
        change: impl FnOnce(Vec<Tag>) -> Vec<Tag> + Send,
    ) -> Result<(), SecretError> {
        let _writing = self.writing.lock().await;
        let Record { mut value, revision } = self.parameter_record(name).await?;
        value.tags = change(value.tags);
        let transaction = Transaction::default().replace(names::parameter(name), revision, &value)?;
        self.records.commit(transaction).await?;
        Ok(())
    }

    async fn parameter_record(&self, name: &str) -> Result<Record<Parameter>, SecretError> {
        let record = self.records.get(&names::parameter(name)).await?;
        record.ok_or_else(|| SecretError::ParameterNotFound(name.to_owned()))
    }
}
