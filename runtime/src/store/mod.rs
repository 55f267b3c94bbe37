//! Where state is kept: keys, values, revisions. Nothing above this trait may assume one host.
//!
//! A [`Store`] gets, lists, commits compare-and-swap transactions and watches from a revision. Values are opaque bytes
//! here; [`records`] puts types on them. Logs and usage samples do not go through it.

mod records;
mod sqlite;
#[cfg(test)]
mod tests;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

pub use records::{Record, Records};
pub use sqlite::SqliteStore;

/// Grows by one with every committed transaction.
pub type Revision = u64;

/// A key and its value, as of the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub revision: Revision,
}

/// A change that a watch delivers; no value means that the key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Absent { key: String },
    Unchanged { key: String, revision: Revision },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

/// All checks hold and all writes happen, or nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{key} was changed by somebody else")]
    Conflict { key: String },
    #[error("changes since revision {0} are no longer kept")]
    Compacted(Revision),
    #[error("the store is of schema {found}, this version reads {expected}")]
    Schema { found: i64, expected: i64 },
    #[error("{key} does not hold what it should: {cause}")]
    Corrupt { key: String, cause: String },
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A durable key-value store with transactions. A commit that was answered survives `kill -9` and a power cut.
pub trait Store: Send + Sync {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>>;
    /// All entries whose key starts with `prefix`, by key.
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>>;
    /// Every change after `from` under `prefix`, in order. The receiver ends when the store does.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Change>, StoreError>>;
    /// The revision of the last commit.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;
}
