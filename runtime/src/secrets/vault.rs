//! Secrets: created, read, given new versions, marked for deletion, restored, and deleted when their time is up. Names and
//! values are checked by the API before they get here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seal::fill;
use super::{SecretBytes, SecretError, SecretStore};
use crate::model::secret::{CURRENT, Secret, SecretDeletion, SecretVersion};
use crate::model::{Tag, Timestamp};
use crate::state::keys as names;
use crate::store::{Record, Transaction};

const MAX_SECRETS: usize = 10_000;
/// Of one secret; versions without a label go first.
const MAX_VERSIONS: usize = 100;
const SUFFIX_CHARS: usize = 6;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What CreateSecret says.
#[derive(Clone, Debug)]
pub struct CreateSecret {
    pub name: String,
    pub description: Option<String>,
    pub tags: Vec<Tag>,
    pub value: Option<NewValue>,
}

/// A value for a new version.
#[derive(Clone, Debug)]
pub struct NewValue {
    /// The version's id. The same id with the same value changes nothing.
    pub version: String,
    pub binary: bool,
    pub bytes: SecretBytes,
    /// Empty means AWSCURRENT.
    pub stages: BTreeSet<String>,
}

/// Which version of a secret; AWSCURRENT unless said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionSelector {
    pub id: Option<String>,
    pub stage: Option<String>,
}

/// A version with its value.
#[derive(Clone, Debug)]
pub struct SecretValue {
    pub id: String,
    pub version: SecretVersion,
    pub binary: bool,
    pub bytes: SecretBytes,
}

/// What is stored with a sealed value.
#[derive(Serialize, Deserialize)]
struct About {
    binary: bool,
}

impl SecretStore {
    /// A secret that the same request has made before is no error.
    pub async fn create_secret(&self, create: CreateSecret) -> Result<Secret, SecretError> {
        let _writing = self.writing.lock().await;
        let key = names::secret(&create.name);
        if let Some(there) = self.records.get::<Secret>(&key).await? {
            let there = there.value;
            if there.deletion.is_some() {
                return Err(SecretError::SecretDeleted(create.name));
            }
            return match &create.value {
                Some(value) if self.has_value(&there, value).await? == Some(true) => Ok(there),
                _ => Err(SecretError::SecretExists(create.name)),
            };
        }
        let there = self.records.store().list(names::SECRETS).await?.len();
        if there >= MAX_SECRETS {
            return Err(SecretError::SecretLimit(there));
        }
        let now = self.clock.now();
        let mut secret = Secret {
            name: create.name,
            suffix: random_suffix()?,
            description: create.description,
            tags: create.tags,
            created_at: now,
            changed_at: now,
            accessed_at: None,
            deletion: None,
            versions: BTreeMap::new(),
        };
        let mut transaction = Transaction::default();
        if let Some(value) = create.value {
            transaction = self.add_version(transaction, &mut secret, value, now)?;
        }
        self.records.commit(transaction.create(key, &secret)?).await?;
        Ok(secret)
    }

    /// Gives a secret a new version; one that is there with this very value stays as it is.
    pub async fn put_secret_value(&self, id: &str, value: NewValue) -> Result<Secret, SecretError> {
        self.update_secret(id, None, Some(value)).await
    }

    /// Changes the description, or the value, or both.
    pub async fn update_secret(
        &self,
        id: &str,
        description: Option<String>,
        value: Option<NewValue>,
    ) -> Result<Secret, SecretError> {
        let _writing = self.writing.lock().await;
        let Record {
            value: mut secret,
            revision,
        } = self.live(id).await?;
        let now = self.clock.now();
        let mut transaction = Transaction::default();
        if let Some(value) = value {
            match self.has_value(&secret, &value).await? {
                Some(false) => return Err(SecretError::SecretVersionExists(secret.name, value.version)),
                Some(true) => {}
                None => transaction = self.add_version(transaction, &mut secret, value, now)?,
            }
        }
        if description.is_some() {
            secret.description = description;
            secret.changed_at = now;
        }
        self.records
            .commit(transaction.replace(names::secret(&secret.name), revision, &secret)?)
            .await?;
        Ok(secret)
    }

    /// Moves a label: onto a version, off one, or from one to the other.
    pub async fn move_secret_stage(
        &self,
        id: &str,
        stage: &str,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<Secret, SecretError> {
        let _writing = self.writing.lock().await;
        let Record {
            value: mut secret,
            revision,
        } = self.live(id).await?;
        for version in from.iter().chain(&to) {
            if !secret.versions.contains_key(*version) {
                return Err(SecretError::SecretVersionNotFound(
                    secret.name,
                    (*version).to_owned(),
                ));
            }
        }
        let has = secret.version_of(stage).map(str::to_owned);
        match (&has, from) {
            (Some(has), None) if to != Some(has) => {
                return Err(SecretError::SecretStageTaken(
                    secret.name,
                    stage.to_owned(),
                    has.clone(),
                ));
            }
            (has, Some(from)) if has.as_deref() != Some(from) => {
                return Err(SecretError::SecretStageElsewhere(
                    secret.name,
                    from.to_owned(),
                    stage.to_owned(),
                ));
            }
            _ => {}
        }
        match (to, from) {
            (Some(to), _) => secret.move_stage(stage, to),
            (None, Some(from)) => {
                if let Some(version) = secret.versions.get_mut(from) {
                    version.stages.remove(stage);
                }
            }
            (None, None) => {}
        }
        secret.changed_at = self.clock.now();
        let transaction = Transaction::default().replace(names::secret(&secret.name), revision, &secret)?;
        self.records.commit(transaction).await?;
        Ok(secret)
    }

    pub async fn tag_secret(
        &self,
        id: &str,
        change: impl FnOnce(Vec<Tag>) -> Vec<Tag> + Send,
    ) -> Result<(), SecretError> {
        let _writing = self.writing.lock().await;
        let Record { mut value, revision } = self.live(id).await?;
        value.tags = change(value.tags);
        let transaction = Transaction::default().replace(names::secret(&value.name), revision, &value)?;
        self.records.commit(transaction).await?;
        Ok(())
    }

    /// All secrets, those marked for deletion too, by name.
    pub async fn secrets(&self) -> Result<Vec<Secret>, SecretError> {
        let records = self.records.list(names::SECRETS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    /// A secret by its name, or by its name and suffix; also one that is marked for deletion.
    pub async fn secret(&self, id: &str) -> Result<Secret, SecretError> {
        Ok(self.secret_record(id).await?.value)
    }

    pub async fn secret_value(
        &self,
        id: &str,
        selector: &VersionSelector,
    ) -> Result<(Secret, SecretValue), SecretError> {
        let Record {
            value: secret,
            revision,
        } = self.live(id).await?;
        let version = match selector {
            VersionSelector {
                id: Some(version),
                stage,
            } => {
                let there = secret.versions.get(version).ok_or_else(|| {
                    SecretError::SecretVersionNotFound(secret.name.clone(), version.clone())
                })?;
                if let Some(stage) = stage.as_ref().filter(|stage| !there.stages.contains(*stage)) {
                    let name = secret.name.clone();
                    return Err(SecretError::SecretStageElsewhere(
                        name,
                        version.clone(),
                        stage.clone(),
                    ));
                }
                version.clone()
            }
            VersionSelector { id: None, stage } => {
                let stage = stage.as_deref().unwrap_or(CURRENT);
                let found = secret.version_of(stage).map(str::to_owned);
                found
                    .ok_or_else(|| SecretError::SecretStageNotFound(secret.name.clone(), stage.to_owned()))?
            }
        };
        let not_found = || SecretError::SecretVersionNotFound(secret.name.clone(), version.clone());
        let sealed = self
            .get_sealed::<About>(&names::sealed_secret(&secret.resource(), &version))
            .await?;
        let (about, bytes) = sealed.ok_or_else(not_found)?;
        let value = SecretValue {
            version: secret.versions.get(&version).ok_or_else(not_found)?.clone(),
            id: version,
            binary: about.binary,
            bytes,
        };
        self.note_access(&secret, revision).await;
        Ok((secret, value))
    }

    /// Marks a secret for deletion after `window`; without one it goes at once. The time at which it is gone.
    pub async fn delete_secret(
        &self,
        id: &str,
        window: Option<Duration>,
    ) -> Result<(Secret, Timestamp), SecretError> {
        let _writing = self.writing.lock().await;
        let Record {
            value: mut secret,
            revision,
        } = self.secret_record(id).await?;
        let now = self.clock.now();
        let Some(window) = window else {
            self.remove(&secret, revision).await?;
            return Ok((secret, now));
        };
        if secret.deletion.is_some() {
            return Err(SecretError::SecretDeleted(secret.name));
        }
        let due_at = now.plus_millis(u64::try_from(window.as_millis()).unwrap_or(u64::MAX));
        secret.deletion = Some(SecretDeletion {
            asked_at: now,
            due_at,
        });
        let transaction = Transaction::default().replace(names::secret(&secret.name), revision, &secret)?;
        self.records.commit(transaction).await?;
        Ok((secret, due_at))
    }

    /// Takes the mark away; nothing for a secret that has none.
    pub async fn restore_secret(&self, id: &str) -> Result<Secret, SecretError> {
        let _writing = self.writing.lock().await;
        let Record {
            value: mut secret,
            revision,
        } = self.secret_record(id).await?;
        secret.deletion = None;
        let transaction = Transaction::default().replace(names::secret(&secret.name), revision, &secret)?;
        self.records.commit(transaction).await?;
        Ok(secret)
    }

    /// Deletes every secret whose time is up.
    pub(crate) async fn sweep(&self) -> Result<(), SecretError> {
        let now = self.clock.now();
        for secret in self.secrets().await? {
            if secret.deletion.is_some_and(|deletion| deletion.due_at <= now) {
                let _writing = self.writing.lock().await;
                // It may have been restored just now.
                let record = self.secret_record(&secret.resource()).await;
                let Ok(Record { value, revision }) = record else {
                    continue;
                };
                if value.deletion.is_some_and(|deletion| deletion.due_at <= now) {
                    self.remove(&value, revision).await?;
                    tracing::info!(
                        secret = value.name,
                        "a secret is deleted: its recovery window is over"
                    );
                }
            }
        }
        Ok(())
    }

    async fn remove(&self, secret: &Secret, revision: u64) -> Result<(), SecretError> {
        let key = names::secret(&secret.name);
        let mut transaction = Transaction::default()
            .replace(key.clone(), revision, secret)?
            .delete(key);
        let values = names::sealed_secrets_of(&secret.resource());
        for version in self.records.store().list(&values).await? {
            transaction = transaction.delete(version.key);
        }
        self.records.commit(transaction).await?;
        Ok(())
    }

    /// Whether the version is there with this value; none if it is not there at all.
    async fn has_value(&self, secret: &Secret, value: &NewValue) -> Result<Option<bool>, SecretError> {
        if !secret.versions.contains_key(&value.version) {
            return Ok(None);
        }
        let key = names::sealed_secret(&secret.resource(), &value.version);
        let there = self.get_sealed::<About>(&key).await?;
        let same =
            |(about, bytes): &(About, SecretBytes)| *bytes == value.bytes && about.binary == value.binary;
        Ok(Some(there.as_ref().is_some_and(same)))
    }

    fn add_version(
        &self,
        mut transaction: Transaction,
        secret: &mut Secret,
        value: NewValue,
        now: Timestamp,
    ) -> Result<Transaction, SecretError> {
        let NewValue {
            version,
            binary,
            bytes,
            mut stages,
        } = value;
        // A secret that has a value has a current one.
        if stages.is_empty() || secret.versions.is_empty() {
            stages.insert(CURRENT.to_owned());
        }
        let key = names::sealed_secret(&secret.resource(), &version);
        transaction = self.put_sealed(transaction, key, bytes.expose(), &About { binary })?;
        let made = SecretVersion {
            created_at: now,
            stages: BTreeSet::new(),
        };
        secret.versions.insert(version.clone(), made);
        for stage in &stages {
            secret.move_stage(stage, &version);
        }
        while secret.versions.len() > MAX_VERSIONS {
            let deprecated = secret.versions.iter().filter(|(_, it)| it.stages.is_empty());
            let oldest = deprecated.min_by_key(|(_, it)| it.created_at);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                return Err(SecretError::SecretVersionLimit(MAX_VERSIONS));
            };
            secret.versions.remove(&oldest);
            transaction = transaction.delete(names::sealed_secret(&secret.resource(), &oldest));
        }
        secret.changed_at = now;
        Ok(transaction)
    }

    /// Once a day is enough; and a reader does not fail for it.
    async fn note_access(&self, secret: &Secret, revision: u64) {
        // A writer has read the record already, and must not find it changed.
        let Ok(_writing) = self.writing.try_lock() else {
            return;
        };
        let now = self.clock.now();
        let day = |at: Timestamp| at.0 / DAY_MS;
        if secret.accessed_at.is_some_and(|at| day(at) == day(now)) {
            return;
        }
        let noted = Secret {
            accessed_at: Some(now),
            ..secret.clone()
        };
        let transaction = Transaction::default().replace(names::secret(&secret.name), revision, &noted);
        if let Ok(transaction) = transaction {
            drop(self.records.commit(transaction).await);
        }
    }

    /// A secret that is not marked for deletion.
    async fn live(&self, id: &str) -> Result<Record<Secret>, SecretError> {
        let record = self.secret_record(id).await?;
        match record.value.deletion {
            Some(_) => Err(SecretError::SecretDeleted(record.value.name)),
            None => Ok(record),
        }
    }

    async fn secret_record(&self, id: &str) -> Result<Record<Secret>, SecretError> {
        // A whole name comes first: a name may end like another one's suffix.
        if let Some(record) = self.records.get::<Secret>(&names::secret(id)).await? {
            return Ok(record);
        }
        let not_found = || SecretError::SecretNotFound(id.to_owned());
        let (name, suffix) = id.rsplit_once('-').ok_or_else(not_found)?;
        let record = self.records.get::<Secret>(&names::secret(name)).await?;
        record
            .filter(|record| record.value.suffix == suffix)
            .ok_or_else(not_found)
    }
}

fn random_suffix() -> Result<String, SecretError> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut suffix = String::with_capacity(SUFFIX_CHARS);
    while suffix.len() < SUFFIX_CHARS {
        let mut byte = [0];
        fill(&mut byte)?;
        // What would make the first letters likelier is drawn again.
        if let Some(letter) = ALPHABET.get(usize::from(byte[0] & 63)) {
            suffix.push(char::from(*letter));
        }
    }
    Ok(suffix)
}
