//! Rotation of the keys: a new key is written, every value is sealed anew with it, and only then are the old keys
//! dropped. Cut off anywhere, every value still opens, and the next rotation, or the daemon by itself, ends it.

use serde::Serialize;
use serde_json::Value;

use super::{KeyId, SealError, SealedRecord, SecretError, SecretStore};
use crate::faults::{self, Point};
use crate::model::parameter::Parameter;
use crate::model::secret::Secret;
use crate::state::keys as names;
use crate::store::{Record, Transaction};

/// Bounds of one transaction.
const MAX_VALUES: usize = 64;
const MAX_BYTES: usize = 1 << 20;

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// The key that seals from now on; none where nothing was ever sealed.
    pub key: Option<KeyId>,
    /// How many values were sealed anew.
    pub values: usize,
}

impl SecretStore {
    /// Ids of the keys that are live, oldest first. More than one means that a rotation was cut off.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.keys().ids().cloned().collect()
    }

    /// A new key for everything.
    pub async fn rotate(&self) -> Result<Rotation, SecretError> {
        let _one_at_a_time = self.rotating.lock().await;
        {
            let _writing = self.writing.lock().await;
            self.change_keys(self.keys().with_new_key()?)?;
        }
        faults::pass(Point::KeyAdded);
        self.finish().await
    }

    /// Ends a rotation that was cut off, if there is one.
    pub(crate) async fn finish_rotation(&self) -> Result<(), SecretError> {
        let _one_at_a_time = self.rotating.lock().await;
        if self.keys().ids().count() > 1 {
            let done = self.finish().await?;
            tracing::info!(
                values = done.values,
                "a rotation of the secrets' keys that was cut off is done"
            );
        }
        Ok(())
    }

    /// What is put meanwhile is sealed with the newest key already.
    async fn finish(&self) -> Result<Rotation, SecretError> {
        let mut values = 0;
        for parameter in self.records.list::<Parameter>(names::PARAMETERS).await? {
            values += self
                .reseal(&names::sealed_parameters_of(&parameter.value.name))
                .await?;
        }
        for secret in self.records.list::<Secret>(names::SECRETS).await? {
            values += self
                .reseal(&names::sealed_secrets_of(&secret.value.resource()))
                .await?;
        }
        values += self.reseal(names::SEALED_OBJECTS).await?;
        faults::pass(Point::SecretsResealed);
        let _writing = self.writing.lock().await;
        self.change_keys(self.keys().newest_only())?;
        Ok(Rotation {
            key: self.keys().current().map(|key| key.id.clone()),
            values,
        })
    }

    /// Seals what is under this prefix with the newest key; how many values that were.
    async fn reseal(&self, prefix: &str) -> Result<usize, SecretError> {
        let _writing = self.writing.lock().await;
        let keys = self.keys();
        let Some(current) = keys.current() else {
            return Ok(0);
        };
        let (mut transaction, mut values, mut bytes) = (Transaction::default(), 0, 0);
        for entry in self.records.store().list(prefix).await? {
            let key = entry.key;
            let record: Option<Record<SealedRecord<Value>>> = self.records.get(&key).await?;
            let Some(Record {
                value: record,
                revision,
            }) = record
            else {
                continue;
            };
            if record.sealed.key == current.id {
                continue;
            }
            let value = match keys.open(&key, &record.sealed) {
                Ok(value) => value,
                // Its key was lost before; no key that is here is of use to it.
                Err(error @ SealError::UnknownKey { .. }) => {
                    tracing::warn!(%error, "a value is left as it is");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let sealed = SealedRecord {
                sealed: current.seal(&key, value.expose())?,
                about: record.about,
            };
            transaction = transaction.replace(key, revision, &sealed)?;
            values += 1;
            bytes += value.expose().len();
            if transaction.writes.len() >= MAX_VALUES || bytes >= MAX_BYTES {
                self.records.commit(std::mem::take(&mut transaction)).await?;
                bytes = 0;
            }
        }
        if !transaction.writes.is_empty() {
            self.records.commit(transaction).await?;
        }
        Ok(values)
    }
}
