//! The engine's one store: every record the engine must not lose, in one redb file, as JSON under a table and a key.
//!
//! Invariants: a record is on disk when [`Store::apply`] returns; several changes given together appear together or not at all; a damaged
//! record harms nobody but itself (it is handed back as an error with its text). One writer thread owns all write transactions and commits
//! whatever has queued up at once, so that concurrent requests share one fsync.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};

/// Layout version of the file. A change of any record's meaning that an older engine would misread raises it.
const VERSION: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Changes that may wait for the writer before senders are held up.
const QUEUE: usize = 256;
/// redb's page cache, in bytes: records are small and read once at start.
const CACHE_BYTES: usize = 2 << 20;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Containers by id.
    Containers,
    /// Networks by id.
    Networks,
    /// Endpoints and their addresses, by `network id/container id`.
    Endpoints,
    /// Volumes by name.
    Volumes,
    /// What the engine knows of images beyond containerd's records (last use, parents), by image reference or digest.
    Images,
    /// The event journal by sequence number (16 hex digits).
    Events,
    /// Single values: engine id, counters.
    Values,
}

impl Table {
    const ALL: [Self; 7] = [
        Self::Containers,
        Self::Networks,
        Self::Endpoints,
        Self::Volumes,
        Self::Images,
        Self::Events,
        Self::Values,
    ];

    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(match self {
            Self::Containers => "containers",
            Self::Networks => "networks",
            Self::Endpoints => "endpoints",
            Self::Volumes => "volumes",
            Self::Images => "images",
            Self::Events => "events",
            Self::Values => "values",
        })
    }
}

/// One change.
#[derive(Debug)]
pub enum Change {
    /// Writes a record.
    Put(Table, String, Vec<u8>),
    /// Removes a record, if it is there.
    Delete(Table, String),
}

impl Change {
    /// A change that writes `value` as JSON.
    ///
    /// # Errors
    /// The value does not serialise.
    pub fn put<T: Serialize>(table: Table, key: impl Into<String>, value: &T) -> Result<Self> {
        let bytes =
            serde_json::to_vec(value).map_err(|err| Error::system(format!("encode record: {err}")))?;
        Ok(Self::Put(table, key.into(), bytes))
    }
}

struct Job {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<()>>,
}

/// A handle on the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<Database>,
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens or creates the store at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, is in use by another engine, or was written by a newer one.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |err: &dyn std::fmt::Display| Error::system(format!("open {}: {err}", path.display()));
        let db = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|err| failed(&err))?;
        let transaction = db.begin_write().map_err(|err| failed(&err))?;
        {
            let mut meta = transaction.open_table(META).map_err(|err| failed(&err))?;
            let found = meta.get("version").map_err(|err| failed(&err))?.map(|value| value.value());
            match found {
                Some(found) if found > VERSION => {
                    return Err(Error::system(format!(
                        "{} has layout version {found}, this engine knows {VERSION}: it was written by a newer engine",
                        path.display()
                    )));
                }
                Some(_) => {}
                None => {
                    meta.insert("version", VERSION).map_err(|err| failed(&err))?;
                }
            }
            for table in Table::ALL {
                transaction.open_table(table.definition()).map_err(|err| failed(&err))?;
            }
        }
        transaction.commit().map_err(|err| failed(&err))?;
        let db = Arc::new(db);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Arc::clone(&db);
        std::thread::Builder::new()
            .name("store".into())
            .stack_size(256 << 10)
            .spawn(move || write_loop(&writer, queue))
            .map_err(|err| failed(&err))?;
        Ok(Self { db, jobs })
    }

    /// Makes the changes, all or none, and returns when they are on disk.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let gone = || Error::system("the store has stopped");
        self.jobs.send(Job { changes, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Writes one record.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub async fn put<T: Serialize>(&self, table: Table, key: impl Into<String>, value: &T) -> Result<()> {
        self.apply(vec![Change::put(table, key, value)?]).await
    }

    /// Removes one record.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub async fn delete(&self, table: Table, key: impl Into<String>) -> Result<()> {
        self.apply(vec![Change::Delete(table, key.into())]).await
    }

    /// Reads one record. Blocks for a page read at most.
    ///
    /// # Errors
    /// The file cannot be read or the record is damaged.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let failed = |err: &dyn std::fmt::Display| Error::system(format!("read {table:?} {key}: {err}"));
        let transaction = self.db.begin_read().map_err(|err| failed(&err))?;
        let rows = match transaction.open_table(table.definition()) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(err) => return Err(failed(&err)),
        };
        let Some(row) = rows.get(key).map_err(|err| failed(&err))? else { return Ok(None) };
        serde_json::from_slice(row.value()).map(Some).map_err(|err| failed(&err))
    }

    /// Reads all records with keys in `from..`, in key order. A damaged record is an `Err` with its key and raw bytes' error.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn list<T: DeserializeOwned>(&self, table: Table, from: &str) -> Result<Vec<(String, Result<T>)>> {
        let failed = |err: &dyn std::fmt::Display| Error::system(format!("read {table:?}: {err}"));
        let transaction = self.db.begin_read().map_err(|err| failed(&err))?;
        let rows = match transaction.open_table(table.definition()) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(err) => return Err(failed(&err)),
        };
        let mut found = Vec::new();
        for row in rows.range(from..).map_err(|err| failed(&err))? {
            let (key, value) = row.map_err(|err| failed(&err))?;
            let parsed = serde_json::from_slice(value.value())
                .map_err(|err| Error::system(format!("damaged record {table:?} {}: {err}", key.value())));
            found.push((key.value().to_owned(), parsed));
        }
        Ok(found)
    }
}

fn write_loop(db: &Database, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < QUEUE {
            match queue.try_recv() {
                Ok(job) => jobs.push(job),
                Err(_) => break,
            }
        }
        let outcome = commit(db, jobs.iter().flat_map(|job| &job.changes));
        for job in jobs {
            // The asker may have gone away; the change stands all the same.
            let _ = job.done.send(outcome.clone());
        }
    }
}

fn commit<'a>(db: &Database, changes: impl Iterator<Item = &'a Change>) -> Result<()> {
    let failed = |err: &dyn std::fmt::Display| Error::system(format!("write to the store: {err}"));
    let transaction = db.begin_write().map_err(|err| failed(&err))?;
    for change in changes {
        match change {
            Change::Put(table, key, value) => {
                let mut rows = transaction.open_table(table.definition()).map_err(|err| failed(&err))?;
                rows.insert(key.as_str(), value.as_slice()).map_err(|err| failed(&err))?;
            }
            Change::Delete(table, key) => {
                let mut rows = transaction.open_table(table.definition()).map_err(|err| failed(&err))?;
                rows.remove(key.as_str()).map_err(|err| failed(&err))?;
            }
        }
    }
    transaction.commit().map_err(|err| failed(&err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.redb");
        let store = Store::open(&path).unwrap();
        store.put(Table::Volumes, "a", &"one").await.unwrap();
        store
            .apply(vec![
                Change::put(Table::Volumes, "b", &"two").unwrap(),
                Change::Delete(Table::Volumes, "a".into()),
            ])
            .await
            .unwrap();
        drop(store);
        // The writer thread lets go of the file when the last handle is gone.
        let store = loop {
            match Store::open(&path) {
                Ok(store) => break store,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let rows: Vec<_> = store.list::<String>(Table::Volumes, "").unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1.as_ref().unwrap(), "two");
    }

    #[tokio::test]
    async fn a_damaged_record_harms_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("engine.redb")).unwrap();
        let bad = Change::Put(Table::Volumes, "bad".into(), b"{".to_vec());
        store.apply(vec![bad, Change::put(Table::Volumes, "good", &1).unwrap()]).await.unwrap();
        let rows = store.list::<u32>(Table::Volumes, "").unwrap();
        assert!(rows[0].1.is_err());
        assert_eq!(*rows[1].1.as_ref().unwrap(), 1);
    }
}
