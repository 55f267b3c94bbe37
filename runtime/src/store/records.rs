//! Types on top of the store's bytes: every record is JSON.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Check, Entry, Revision, Store, StoreError, Transaction, Write};

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<T> {
    pub value: T,
    pub revision: Revision,
}

/// A store seen through types.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    pub fn new(store: Arc<dyn Store>) -> Records {
        Records { store }
    }

    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Record<T>>, StoreError> {
        self.store.get(key).await?.map(|entry| decode(&entry)).transpose()
    }

    /// All records under `prefix`, by key.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<Record<T>>, StoreError> {
        self.store.list(prefix).await?.iter().map(decode).collect()
    }

    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.store.commit(transaction).await
    }
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<Record<T>, StoreError> {
    let value = serde_json::from_slice(&entry.value).map_err(|error| StoreError::Corrupt {
        key: entry.key.clone(),
        cause: error.to_string(),
    })?;
    Ok(Record {
        value,
        revision: entry.revision,
    })
}

impl Transaction {
    /// Writes only if the key does not exist.
    pub fn create<T: Serialize>(self, key: String, value: &T) -> Result<Transaction, StoreError> {
        let mut created = self.put(key.clone(), value)?;
        created.checks.push(Check::Absent { key });
        Ok(created)
    }

    /// Writes only if the key was not written since `revision`.
    pub fn replace<T: Serialize>(
        self,
        key: String,
        revision: Revision,
        value: &T,
    ) -> Result<Transaction, StoreError> {
        let mut replaced = self.put(key.clone(), value)?;
        replaced.checks.push(Check::Unchanged { key, revision });
        Ok(replaced)
    }

    /// Writes only if the key does not exist.
    pub fn absent(mut self, key: String) -> Transaction {
        self.checks.push(Check::Absent { key });
        self
    }

    /// Writes only if the key was not written since `revision`.
    pub fn unchanged(mut self, key: String, revision: Revision) -> Transaction {
        self.checks.push(Check::Unchanged { key, revision });
        self
    }

    /// Writes whatever was there.
    pub fn put<T: Serialize>(mut self, key: String, value: &T) -> Result<Transaction, StoreError> {
        let value = serde_json::to_vec(value).map_err(|error| StoreError::Corrupt {
            key: key.clone(),
            cause: error.to_string(),
        })?;
        self.writes.push(Write::Put { key, value });
        Ok(self)
    }

    pub fn delete(mut self, key: String) -> Transaction {
        self.writes.push(Write::Delete { key });
        self
    }
}
