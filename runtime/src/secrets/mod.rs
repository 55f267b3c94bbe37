//! Parameters, secrets and objects, sealed. What is known of them in clear is in records of their own (`parameter/…`,
//! `secret/…`, `object/…`); each value is a record under `sealed/…`, sealed for that very key, and opens nowhere else.
//!
//! Not here: AWS's rules for names and sizes, ARNs, and the names of errors (`berth-api`); what a task gets of them
//! (`task/secrets.rs`).

mod keys;
mod objects;
mod parameters;
mod rotation;
mod seal;
#[cfg(test)]
mod tests;
mod text;
mod vault;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock};
use crate::model::parameter::ParameterType;
use crate::model::secret::Secret;
use crate::state::keys as names;
use crate::store::{Record, Records, SqliteStore, StoreError, Transaction};
pub use keys::KeyFileError;
use keys::KeyRing;
pub use objects::PutObject;
pub use parameters::PutParameter;
pub use rotation::Rotation;
pub use seal::{KeyId, SealError, Sealed};
pub use text::{SecretBytes, SecretText};
pub use vault::{CreateSecret, NewValue, SecretValue, VersionSelector};

/// Name of the key file in a data directory.
pub(crate) const KEY_FILE: &str = "secrets.keys";

/// What cannot be done with a parameter, a secret or an object. No text has a value in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("parameter {0} does not exist")]
    ParameterNotFound(String),
    #[error("parameter {name} has no version {version}")]
    ParameterVersionNotFound { name: String, version: u64 },
    #[error("parameter {0} exists already")]
    ParameterExists(String),
    #[error("there are {0} parameters already")]
    ParameterLimit(usize),
    #[error("parameter {name} is a {}", .is.as_str())]
    ParameterTypeChange { name: String, is: ParameterType },
    #[error("parameter {0} is of the advanced tier")]
    ParameterTierChange(String),
    #[error("a new parameter needs a type")]
    ParameterWithoutType,
    #[error("secret {0} does not exist")]
    SecretNotFound(String),
    #[error("secret {0} exists already")]
    SecretExists(String),
    #[error("secret {0} is marked for deletion")]
    SecretDeleted(String),
    #[error("secret {0} has no version {1}")]
    SecretVersionNotFound(String, String),
    #[error("secret {0} has no version with the label {1}")]
    SecretStageNotFound(String, String),
    #[error("version {1} of secret {0} does not have the label {2}")]
    SecretStageElsewhere(String, String, String),
    #[error("version {1} of secret {0} exists already, with another value")]
    SecretVersionExists(String, String),
    #[error("the label {1} of secret {0} must be taken from the version that has it: {2}")]
    SecretStageTaken(String, String, String),
    #[error("there are {0} secrets already")]
    SecretLimit(usize),
    #[error("a secret has at most {0} versions with labels")]
    SecretVersionLimit(usize),
    #[error("bucket {0} does not exist")]
    BucketNotFound(String),
    #[error("bucket {0} exists already")]
    BucketExists(String),
    #[error("bucket {0} has objects")]
    BucketNotEmpty(String),
    #[error("there are {0} buckets already")]
    BucketLimit(usize),
    #[error("object {key} does not exist in bucket {bucket}")]
    ObjectNotFound { bucket: String, key: String },
    #[error("there are {0} objects already")]
    ObjectLimit(usize),
    #[error(
        "{} is missing, and values are sealed with its keys: put the file back; or, if it is lost for good, make an \
         empty one of mode 0600, and put every value anew", .0.display()
    )]
    KeyFileMissing(PathBuf),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A sealed value, and what else its version has.
#[derive(Serialize, Deserialize)]
struct SealedRecord<M> {
    sealed: Sealed,
    about: M,
}

/// All parameters, secrets and objects.
pub struct SecretStore {
    records: Records,
    clock: Arc<dyn Clock>,
    key_file: PathBuf,
    keys: RwLock<Arc<KeyRing>>,
    /// From sealing a value until it is stored, so that no key is dropped in between.
    writing: tokio::sync::Mutex<()>,
    rotating: tokio::sync::Mutex<()>,
}

impl SecretStore {
    /// A key file that is not there is made when the first value is sealed; one that is lost is an error.
    pub(crate) async fn open(
        records: Records,
        clock: Arc<dyn Clock>,
        key_file: PathBuf,
    ) -> Result<SecretStore, SecretError> {
        let keys = match KeyRing::load(&key_file)? {
            Some(keys) => keys,
            None => {
                let secrets = records.list::<Secret>(names::SECRETS).await?;
                let sealed = secrets.iter().any(|secret| !secret.value.versions.is_empty());
                let store = records.store();
                if sealed
                    || !store.list(names::PARAMETERS).await?.is_empty()
                    || !store.list(names::SEALED_OBJECTS).await?.is_empty()
                {
                    return Err(SecretError::KeyFileMissing(key_file));
                }
                KeyRing::default()
            }
        };
        Ok(SecretStore {
            records,
            clock,
            key_file,
            keys: RwLock::new(Arc::new(keys)),
            writing: tokio::sync::Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
        })
    }

    /// A store of its own in a folder. The daemon's is [`crate::Runtime::secrets`].
    pub async fn open_in(dir: &Path) -> Result<SecretStore, SecretError> {
        let store = SqliteStore::open(&dir.join("state.db"))?;
        let records = Records::new(Arc::new(store));
        SecretStore::open(records, Arc::new(SystemClock), dir.join(KEY_FILE)).await
    }

    fn keys(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The file first: nothing is ever sealed with a key that is not on the disk.
    fn change_keys(&self, keys: KeyRing) -> Result<(), SecretError> {
        keys.store(&self.key_file)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Adds a sealed value to a transaction. `writing` is held until that is committed.
    fn put_sealed<M: Serialize>(
        &self,
        transaction: Transaction,
        key: String,
        value: &[u8],
        about: &M,
    ) -> Result<Transaction, SecretError> {
        if self.keys().current().is_none() {
            self.change_keys(self.keys().with_new_key()?)?;
        }
        let keys = self.keys();
        let failed = || SealError::Seal { about: key.clone() };
        let sealed = keys.current().ok_or_else(failed)?.seal(&key, value)?;
        Ok(transaction.put(key, &SealedRecord { sealed, about })?)
    }

    /// A value and what is stored with it.
    async fn get_sealed<M: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<(M, SecretBytes)>, SecretError> {
        let mut again = true;
        loop {
            let record: Option<Record<SealedRecord<M>>> = self.records.get(key).await?;
            let Some(record) = record else { return Ok(None) };
            let SealedRecord { sealed, about } = record.value;
            match self.keys().open(key, &sealed) {
                Ok(value) => return Ok(Some((about, value))),
                // A rotation may have ended since the record was read.
                Err(SealError::UnknownKey { .. }) if again => again = false,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
