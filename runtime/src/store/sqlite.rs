//! The store on SQLite: one file, write-ahead log, every commit synced. One thread owns the connection; commits that
//! wait at the same time share one sync.

use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::thread;

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Check, Entry, Revision, Store, StoreError, Transaction, Write};
use crate::faults::{self, Point};

const SCHEMA: i64 = 1;
/// Most commits that share one sync.
const MAX_BATCH: usize = 64;
/// How many revisions of history are kept for watches.
const HISTORY: u64 = 10_000;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Get(String, Answer<Option<Entry>>),
    List(String, Answer<Vec<Entry>>),
    Commit(Transaction, Answer<Revision>),
    Watch(String, Revision, Answer<mpsc::UnboundedReceiver<Change>>),
    Revision(Answer<Revision>),
}

/// A handle to the thread that owns the database.
pub struct SqliteStore {
    jobs: std_mpsc::Sender<Job>,
}

impl SqliteStore {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        let connection = Connection::open(path).map_err(failed)?;
        let mut worker = Worker::new(connection)?;
        let (jobs, inbox) = std_mpsc::channel();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(SqliteStore { jobs })
    }

    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(Answer<T>) -> Job,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (answer, reply) = oneshot::channel();
        let sent = self.jobs.send(job(answer));
        Box::pin(async move {
            let gone = || StoreError::Failed("its thread has ended".to_owned());
            sent.map_err(|_| gone())?;
            reply.await.map_err(|_| gone())?
        })
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.ask(|answer| Job::Get(key.to_owned(), answer))
    }
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.ask(|answer| Job::List(prefix.to_owned(), answer))
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask(|answer| Job::Commit(transaction, answer))
    }
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Change>, StoreError>> {
        self.ask(|answer| Job::Watch(prefix.to_owned(), from, answer))
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask(Job::Revision)
    }
}

struct Watcher {
    prefix: String,
    changes: mpsc::UnboundedSender<Change>,
}

struct Worker {
    connection: Connection,
    revision: Revision,
    watchers: Vec<Watcher>,
}

impl Worker {
    fn new(connection: Connection) -> Result<Worker, StoreError> {
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;",
            )
            .map_err(failed)?;
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(failed)?;
        if found != 0 && found != SCHEMA {
            return Err(StoreError::Schema {
                found,
                expected: SCHEMA,
            });
        }
        connection
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS entry (
                     key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS change (
                     revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB,
                     PRIMARY KEY (revision, key)) WITHOUT ROWID;
                 PRAGMA user_version = {SCHEMA};
                 COMMIT;"
            ))
            .map_err(failed)?;
        let revision = connection
            .query_row("SELECT COALESCE(MAX(revision), 0) FROM change", [], |row| {
                row.get(0)
            })
            .map_err(failed)?;
        Ok(Worker {
            connection,
            revision,
            watchers: Vec::new(),
        })
    }

    fn run(&mut self, inbox: &std_mpsc::Receiver<Job>) {
        while let Ok(first) = inbox.recv() {
            let mut commits = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Commit(transaction, answer) => commits.push((transaction, answer)),
                    other => {
                        // What was asked earlier is answered earlier.
                        self.commit_all(std::mem::take(&mut commits));
                        self.answer(other);
                    }
                }
                if commits.len() < MAX_BATCH {
                    next = inbox.try_recv().ok();
                }
            }
            self.commit_all(commits);
        }
    }

    // A receiver that has gone away no longer wants the answer, so failed sends are ignored throughout.
    fn answer(&mut self, job: Job) {
        match job {
            Job::Get(key, answer) => drop(answer.send(self.get(&key))),
            Job::List(prefix, answer) => drop(answer.send(self.list(&prefix))),
            Job::Watch(prefix, from, answer) => drop(answer.send(self.watch(prefix, from))),
            Job::Revision(answer) => drop(answer.send(Ok(self.revision))),
            Job::Commit(transaction, answer) => self.commit_all(vec![(transaction, answer)]),
        }
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.connection
            .prepare_cached("SELECT key, value, revision FROM entry WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], to_entry).optional())
            .map_err(failed)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT key, value, revision FROM entry
                 WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 AND key < ?1 || char(1114111) ORDER BY key",
            )
            .map_err(failed)?;
        let rows = statement.query_map([prefix], to_entry).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    fn watch(
        &mut self,
        prefix: String,
        from: Revision,
    ) -> Result<mpsc::UnboundedReceiver<Change>, StoreError> {
        let oldest: Option<Revision> = self
            .connection
            .query_row("SELECT MIN(revision) FROM change", [], |row| row.get(0))
            .map_err(failed)?;
        if oldest.is_some_and(|oldest| from.saturating_add(1) < oldest) {
            return Err(StoreError::Compacted(from));
        }
        let (changes, receiver) = mpsc::unbounded_channel();
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT revision, key, value FROM change WHERE revision > ?1 ORDER BY revision, key",
            )
            .map_err(failed)?;
        let rows = statement
            .query_map([from], |row| {
                Ok(Change {
                    revision: row.get(0)?,
                    key: row.get(1)?,
                    value: row.get(2)?,
                })
            })
            .map_err(failed)?;
        for change in rows {
            let change = change.map_err(failed)?;
            if change.key.starts_with(&prefix) {
                drop(changes.send(change));
            }
        }
        drop(statement);
        self.watchers.push(Watcher { prefix, changes });
        Ok(receiver)
    }

    /// Carries out all transactions with one sync; each succeeds or fails by its own checks.
    fn commit_all(&mut self, commits: Vec<(Transaction, Answer<Revision>)>) {
        if commits.is_empty() {
            return;
        }
        let mut done = Vec::with_capacity(commits.len());
        let result = self.try_commit_all(commits, &mut done);
        for (answer, outcome) in done {
            // A failed sync undoes also what had passed its checks.
            drop(answer.send(match &result {
                Ok(()) => outcome,
                Err(error) => Err(error.clone()),
            }));
        }
    }

    fn try_commit_all(
        &mut self,
        commits: Vec<(Transaction, Answer<Revision>)>,
        done: &mut Vec<(Answer<Revision>, Result<Revision, StoreError>)>,
    ) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut revision = self.revision;
        let mut first_error = None;
        let batch = self.connection.transaction().map_err(failed);
        let batch = match batch {
            Ok(batch) => Some(batch),
            Err(error) => {
                first_error = Some(error);
                None
            }
        };
        for (transaction, answer) in commits {
            let outcome = match (&batch, &first_error) {
                (Some(batch), None) => match apply(batch, transaction, revision + 1) {
                    Ok(applied) => {
                        revision += 1;
                        changes.extend(applied);
                        Ok(revision)
                    }
                    Err(error @ StoreError::Conflict { .. }) => Err(error),
                    Err(error) => {
                        first_error = Some(error.clone());
                        Err(error)
                    }
                },
                (_, Some(error)) => Err(error.clone()),
                (None, None) => Err(StoreError::Failed("no transaction".to_owned())),
            };
            done.push((answer, outcome));
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        if let Some(batch) = batch {
            batch
                .execute(
                    "DELETE FROM change WHERE revision + ?1 < ?2",
                    params![HISTORY, revision],
                )
                .map_err(failed)?;
            faults::write(Point::StateCommit).map_err(|error| StoreError::Failed(error.to_string()))?;
            batch.commit().map_err(failed)?;
        }
        self.revision = revision;
        for watcher in &self.watchers {
            for change in changes
                .iter()
                .filter(|change| change.key.starts_with(&watcher.prefix))
            {
                drop(watcher.changes.send(change.clone()));
            }
        }
        self.watchers.retain(|watcher| !watcher.changes.is_closed());
        Ok(())
    }
}

/// Checks all, then writes all. A conflict leaves the batch untouched.
fn apply(
    batch: &rusqlite::Transaction<'_>,
    transaction: Transaction,
    revision: Revision,
) -> Result<Vec<Change>, StoreError> {
    for check in transaction.checks {
        let (key, expected) = match check {
            Check::Absent { key } => (key, None),
            Check::Unchanged { key, revision } => (key, Some(revision)),
        };
        let found: Option<Revision> = batch
            .prepare_cached("SELECT revision FROM entry WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([&key], |row| row.get(0)).optional())
            .map_err(failed)?;
        if found != expected {
            return Err(StoreError::Conflict { key });
        }
    }
    let mut changes = Vec::with_capacity(transaction.writes.len());
    for write in transaction.writes {
        let (key, value) = match write {
            Write::Put { key, value } => (key, Some(value)),
            Write::Delete { key } => (key, None),
        };
        match &value {
            Some(value) => batch
                .prepare_cached("INSERT OR REPLACE INTO entry (key, value, revision) VALUES (?1, ?2, ?3)")
                .and_then(|mut statement| statement.execute(params![key, value, revision])),
            None => batch
                .prepare_cached("DELETE FROM entry WHERE key = ?1")
                .and_then(|mut statement| statement.execute([&key])),
        }
        .map_err(failed)?;
        batch
            .prepare_cached("INSERT OR REPLACE INTO change (revision, key, value) VALUES (?1, ?2, ?3)")
            .and_then(|mut statement| statement.execute(params![revision, key, value]))
            .map_err(failed)?;
        changes.push(Change { revision, key, value });
    }
    Ok(changes)
}

fn to_entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: row.get(2)?,
    })
}

fn failed(error: rusqlite::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}
