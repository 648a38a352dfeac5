//! One file of records: cheap reads anywhere, writes through one thread that shares a sync among all who wait.
//!
//! A record is a protobuf message under `namespace NUL kind NUL id`, nearly always the very message clients see. Records that belong to no
//! namespace have an empty one.
//!
//! Reading ([`Db::read`], [`Db::get`]) takes a snapshot of the last commit and blocks for microseconds: call it from async code as it is.
//! Writing ([`Db::write`]) sends a closure to the writer thread. Closures run one after another, so each sees a state that nobody changes
//! under it; this is where uniqueness is checked and where files are put in their final place. One that fails leaves nothing behind. All
//! closures that arrived while the last commit was being synced share the next one. After the commit, in this order: events are published,
//! [`WriteTx::after_commit`] work is done, callers are answered.
//!
//! After a failure of the disk the library refuses everything until the file is opened anew, so it is closed then, and opened by whoever
//! needs it next: a full disk is over when there is room again, without a restart.
//!
//! Invariant: when [`Db::write`] answers `Ok`, the change is on disk (unless the closure called [`WriteTx::relaxed`]).

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use containerd_api::error::{Error, Kind};
use prost::Message;
use prost_types::Any;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::events::Exchange;

const RECORDS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("records");
const ABOUT: TableDefinition<'static, &'static str, u64> = TableDefinition::new("about");

/// The layout described above. A file of a later one is refused; an earlier one would be migrated in [`Db::open`].
const SCHEMA: u64 = 1;
/// Page cache. The operating system caches the file as well; this one only saves it being asked.
const CACHE_BYTES: usize = 2 << 20;
/// Writers that wait for their turn; more wait in [`Db::write`].
const QUEUE: usize = 256;
/// Closures that share one commit at most.
const BATCH: usize = 128;

/// A message that is stored under its own kind.
pub trait Record: Message + Default {
    /// Short, stable, without NUL: part of the key on disk.
    const KIND: &'static str;
}

/// Reading records, from a snapshot or inside a write.
pub trait Reader {
    /// The bytes under `key`.
    fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// All entries whose keys start with `prefix`, in key order, until `each` answers `false`.
    fn scan(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error>;

    /// The record of that kind and name.
    fn get<R: Record>(&self, namespace: &str, id: &str) -> Result<Option<R>, Error> {
        match self.raw(&key(namespace, R::KIND, id))? {
            Some(bytes) => decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    fn has<R: Record>(&self, namespace: &str, id: &str) -> Result<bool, Error> {
        Ok(self.raw(&key(namespace, R::KIND, id))?.is_some())
    }

    /// All records of a kind whose names start with `prefix`, in the order of their names.
    fn list<R: Record>(&self, namespace: &str, prefix: &str) -> Result<Vec<(String, R)>, Error> {
        let mut found = Vec::new();
        self.each::<R>(namespace, prefix, &mut |id, record| {
            found.push((id.to_owned(), record));
            Ok(true)
        })?;
        Ok(found)
    }

    /// Like [`Reader::list`], one at a time, until `each` answers `false`.
    fn each<R: Record>(
        &self,
        namespace: &str,
        prefix: &str,
        each: &mut dyn FnMut(&str, R) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let start = key(namespace, R::KIND, prefix);
        let id_at = start.len() - prefix.len();
        self.scan(&start, &mut |key, value| {
            let id = std::str::from_utf8(&key[id_at..]).map_err(|_| corrupt("key"))?;
            each(id, decode(value)?)
        })
    }
}

/// A consistent view of the last commit.
pub struct ReadTx {
    table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Reader for ReadTx {
    fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.table.get(key).map_err(storage)?.map(|value| value.value().to_vec()))
    }

    fn scan(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        for entry in self.table.range(prefix..).map_err(storage)? {
            let (key, value) = entry.map_err(storage)?;
            if !key.value().starts_with(prefix) || !each(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

/// A write being made. Nothing of it is seen by others before the commit, nor at all when its closure fails.
pub struct WriteTx<'a> {
    base: &'a redb::Table<'a, &'static [u8], &'static [u8]>,
    /// Changes by key; `None` is a removal.
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    counters: BTreeMap<&'static str, u64>,
    counter_base: &'a redb::Table<'a, &'static str, u64>,
    effects: Effects,
}

/// What follows a commit.
#[derive(Default)]
struct Effects {
    events: Vec<(String, &'static str, Any)>,
    after: Vec<Box<dyn FnOnce(&Db) + Send>>,
    undo: Vec<Box<dyn FnOnce() + Send>>,
    relaxed: bool,
}

impl Reader for WriteTx<'_> {
    fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(changed) = self.changes.get(key) {
            return Ok(changed.clone());
        }
        Ok(self.base.get(key).map_err(storage)?.map(|value| value.value().to_vec()))
    }

    fn scan(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut changed = self.changes.range(prefix.to_vec()..).peekable();
        let mut stored = self.base.range(prefix..).map_err(storage)?;
        let mut next = stored.next().transpose().map_err(storage)?;
        loop {
            let stored_key = next.as_ref().map(|(key, _)| key.value()).filter(|key| key.starts_with(prefix));
            let changed_key =
                changed.peek().map(|(key, _)| key.as_slice()).filter(|key| key.starts_with(prefix));
            let (take_changed, skip_stored) = match (stored_key, changed_key) {
                (None, None) => return Ok(()),
                (Some(_), None) => (false, false),
                (None, Some(_)) => (true, false),
                (Some(stored), Some(changed)) => (changed <= stored, changed == stored),
            };
            let go_on = if take_changed {
                match changed.next() {
                    Some((key, Some(value))) => each(key, value)?,
                    Some((_, None)) | None => true,
                }
            } else {
                match &next {
                    Some((key, value)) => each(key.value(), value.value())?,
                    None => true,
                }
            };
            if !go_on {
                return Ok(());
            }
            if !take_changed || skip_stored {
                next = stored.next().transpose().map_err(storage)?;
            }
        }
    }
}

impl WriteTx<'_> {
    /// Stores `record`, over an earlier one of that name.
    pub fn put<R: Record>(&mut self, namespace: &str, id: &str, record: &R) {
        self.changes.insert(key(namespace, R::KIND, id), Some(record.encode_to_vec()));
    }

    /// Removes the record, if it is there.
    pub fn delete<R: Record>(&mut self, namespace: &str, id: &str) {
        self.changes.insert(key(namespace, R::KIND, id), None);
    }

    /// Removes whatever is under a raw key from [`Reader::scan`].
    pub fn delete_raw(&mut self, key: &[u8]) {
        self.changes.insert(key.to_vec(), None);
    }

    /// The next number of a sequence, starting at 1. A number of a failed write is used again: take care of what it left behind.
    pub fn next_number(&mut self, sequence: &'static str) -> Result<u64, Error> {
        let last = match self.counters.get(sequence) {
            Some(last) => *last,
            None => self.counter_base.get(sequence).map_err(storage)?.map_or(0, |value| value.value()),
        };
        self.counters.insert(sequence, last + 1);
        Ok(last + 1)
    }

    /// Publishes an event once the change is on disk.
    pub fn publish(&mut self, namespace: &str, topic: &'static str, event: Any) {
        self.effects.events.push((namespace.to_owned(), topic, event));
    }

    /// Runs `work` on the writer thread once the change is on disk, before anything else is written. It must be quick.
    pub fn after_commit(&mut self, work: impl FnOnce(&Db) + Send + 'static) {
        self.effects.after.push(Box::new(work));
    }

    /// Runs `work` when this write does not come about: to take back what the closure did outside the database.
    pub fn on_failure(&mut self, work: impl FnOnce() + Send + 'static) {
        self.effects.undo.push(Box::new(work));
    }

    /// This change may be lost when the machine stops: do not wait for the disk.
    pub fn relaxed(&mut self) {
        self.effects.relaxed = true;
    }
}

/// The open file; nothing after a failure of the disk, until somebody needs it.
struct Slot {
    path: PathBuf,
    open: RwLock<Option<Arc<Database>>>,
}

impl Slot {
    fn get(&self) -> Result<Arc<Database>, Error> {
        if let Some(database) = &*self.open.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(database));
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*open {
            return Ok(Arc::clone(database));
        }
        let database = Arc::new(open_file(&self.path)?);
        *open = Some(Arc::clone(&database));
        Ok(database)
    }

    /// Closes the file, as soon as those who are reading are done.
    fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn open_file(path: &Path) -> Result<Database, Error> {
    let at = |err: &dyn std::fmt::Display| Error::internal(format_args!("open {}", path.display()), err);
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|err| at(&err))?;
    prepare(&database).map_err(|err| at(&err))?;
    Ok(database)
}

/// The database. Dropping the last handle ends the writer thread after it wrote what is queued.
pub struct Db {
    slot: Arc<Slot>,
    queue: mpsc::Sender<Box<dyn Job>>,
    writer: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// Opens or makes the database at `path`.
    ///
    /// # Errors
    /// Another process has it open, it is damaged, or of a later version.
    pub fn open(path: &Path, events: Arc<Exchange>) -> Result<Arc<Self>, Error> {
        let at = |err: &dyn std::fmt::Display| Error::internal(format_args!("open {}", path.display()), err);
        let slot = Arc::new(Slot { path: path.to_owned(), open: RwLock::new(None) });
        slot.get()?;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (reader_queue, _) = mpsc::channel(1);
        // What the writer thread hands to after-commit work: a handle that reads and cannot write, so that it cannot wait for itself.
        let reader = Db { slot: Arc::clone(&slot), queue: reader_queue, writer: std::sync::Mutex::new(None) };
        let writer = std::thread::Builder::new()
            .name("meta-writer".to_owned())
            .spawn(move || Writer { db: reader, events }.run(jobs))
            .map_err(|err| at(&err))?;
        Ok(Arc::new(Self { slot, queue, writer: std::sync::Mutex::new(Some(writer)) }))
    }

    /// Reads from a snapshot of the last commit.
    pub fn read<T>(&self, read: impl FnOnce(&ReadTx) -> Result<T, Error>) -> Result<T, Error> {
        let tx = self.slot.get()?.begin_read().map_err(storage)?;
        let table = tx.open_table(RECORDS).map_err(storage)?;
        read(&ReadTx { table })
    }

    /// One record.
    pub fn get<R: Record>(&self, namespace: &str, id: &str) -> Result<Option<R>, Error> {
        self.read(|tx| tx.get(namespace, id))
    }

    /// Makes a change: see the module's description. The closure runs to its end even if the caller stops waiting.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job = TypedJob { change: Some(change), outcome: None, reply };
        self.queue.send(Box::new(job)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// [`Db::write`] for threads that may block. Panics inside an async task, as all blocking waits of tokio do.
    pub fn write_blocking<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job = TypedJob { change: Some(change), outcome: None, reply };
        self.queue.blocking_send(Box::new(job)).map_err(|_| closed())?;
        answer.blocking_recv().map_err(|_| closed())?
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.queue, closed));
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(writer) = writer.filter(|writer| writer.thread().id() != std::thread::current().id()) {
            // A writer that panicked has said so already.
            let _ = writer.join();
        }
    }
}

/// Makes the tables and checks the version.
fn prepare(database: &Database) -> Result<(), Error> {
    let tx = database.begin_write().map_err(storage)?;
    {
        let mut about = tx.open_table(ABOUT).map_err(storage)?;
        let found = about.get("schema").map_err(storage)?.map(|value| value.value());
        match found {
            None => {
                about.insert("schema", SCHEMA).map_err(storage)?;
            }
            Some(SCHEMA) => {}
            Some(other) => {
                return Err(Error::new(
                    Kind::FailedPrecondition,
                    format!("the file has layout {other}, this version knows {SCHEMA}"),
                ));
            }
        }
        tx.open_table(RECORDS).map_err(storage)?;
    }
    tx.commit().map_err(storage)
}

/// A queued change whose result type is its own affair.
trait Job: Send {
    /// Runs the closure; whether it wants to be committed.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool;
    /// Tells the caller. `commit` is what became of the batch.
    fn answer(self: Box<Self>, commit: Result<(), Error>);
}

struct TypedJob<T, F> {
    change: Option<F>,
    outcome: Option<Result<T, Error>>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Job for TypedJob<T, F>
where
    T: Send + 'static,
    F: FnOnce(&mut WriteTx<'_>) -> Result<T, Error> + Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool {
        let Some(change) = self.change.take() else { return false };
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| change(tx)))
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a metadata change panicked")));
        let ok = outcome.is_ok();
        self.outcome = Some(outcome);
        ok
    }

    fn answer(self: Box<Self>, commit: Result<(), Error>) {
        let outcome = match (self.outcome, commit) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)), Err(err)) => Err(err),
            (Some(Err(err)), _) => Err(err),
            (None, _) => Err(closed()),
        };
        // The caller may have gone; the change is made all the same.
        let _ = self.reply.send(outcome);
    }
}

struct Writer {
    db: Db,
    events: Arc<Exchange>,
}

impl Writer {
    fn run(self, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match jobs.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            self.commit(batch);
        }
    }

    fn commit(&self, mut batch: Vec<Box<dyn Job>>) {
        let mut effects = Vec::with_capacity(batch.len());
        let result = self.apply(&mut batch, &mut effects);
        match &result {
            Ok(()) => {
                for effect in &mut effects {
                    for (namespace, topic, event) in effect.events.drain(..) {
                        self.events.publish_own(&namespace, topic, event);
                    }
                }
                for work in effects.into_iter().flat_map(|effect| effect.after) {
                    if std::panic::catch_unwind(AssertUnwindSafe(|| work(&self.db))).is_err() {
                        tracing::error!("work after a metadata change panicked");
                    }
                }
            }
            Err(err) => {
                tracing::error!(%err, "metadata was not written");
                self.db.slot.close();
                effects.into_iter().flat_map(|effect| effect.undo).for_each(|undo| undo());
            }
        }
        for job in batch {
            job.answer(result.clone());
        }
    }

    fn apply(&self, batch: &mut [Box<dyn Job>], effects: &mut Vec<Effects>) -> Result<(), Error> {
        let database = self.db.slot.get()?;
        let mut tx = database.begin_write().map_err(storage)?;
        let mut changed = false;
        let mut relaxed = true;
        {
            let mut records = tx.open_table(RECORDS).map_err(storage)?;
            let mut about = tx.open_table(ABOUT).map_err(storage)?;
            for job in batch {
                let mut write = WriteTx {
                    base: &records,
                    changes: BTreeMap::new(),
                    counters: BTreeMap::new(),
                    counter_base: &about,
                    effects: Effects::default(),
                };
                let ok = job.run(&mut write);
                let WriteTx { changes, counters, effects: mut effect, .. } = write;
                if !ok {
                    effect.undo.drain(..).for_each(|undo| undo());
                    continue;
                }
                // From here on a failure fails the batch, and everybody's outside work is taken back.
                let durable = !effect.relaxed;
                let writes = !changes.is_empty() || !counters.is_empty();
                effects.push(effect);
                changed |= writes;
                relaxed &= !(durable && writes);
                for (key, value) in changes {
                    match value {
                        Some(value) => records.insert(key.as_slice(), value.as_slice()).map_err(storage)?,
                        None => records.remove(key.as_slice()).map_err(storage)?,
                    };
                }
                for (sequence, last) in counters {
                    about.insert(sequence, last).map_err(storage)?;
                }
            }
        }
        if !changed {
            return tx.abort().map_err(storage);
        }
        if relaxed {
            tx.set_durability(Durability::None).map_err(storage)?;
        }
        tx.commit().map_err(storage)
    }
}

/// `namespace NUL kind NUL id`.
pub fn key(namespace: &str, kind: &str, id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(namespace.len() + kind.len() + id.len() + 2);
    key.extend_from_slice(namespace.as_bytes());
    key.push(0);
    key.extend_from_slice(kind.as_bytes());
    key.push(0);
    key.extend_from_slice(id.as_bytes());
    key
}

fn decode<R: Record>(bytes: &[u8]) -> Result<R, Error> {
    R::decode(bytes).map_err(|_| corrupt(R::KIND))
}

fn corrupt(what: &str) -> Error {
    Error::new(Kind::DataLoss, format!("metadata: a {what} record cannot be read"))
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the daemon is shutting down")
}

fn storage(err: impl std::fmt::Display) -> Error {
    Error::internal("metadata", err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_api::namespaces::Namespace;
    use proptest::prelude::*;

    fn db(dir: &Path) -> Arc<Db> {
        Db::open(&dir.join("meta.redb"), Arc::new(Exchange::new())).unwrap()
    }

    fn record(name: &str) -> Namespace {
        Namespace { name: name.to_owned(), ..Namespace::default() }
    }

    #[test]
    fn a_change_is_read_back_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = db(dir.path());
            db.write_blocking(|tx| {
                tx.put("a", "x", &record("one"));
                tx.put("ab", "x", &record("other"));
                Ok(())
            })
            .unwrap();
            assert_eq!(db.get::<Namespace>("a", "x").unwrap().unwrap().name, "one");
        }
        let db = db(dir.path());
        let all = db.read(|tx| tx.list::<Namespace>("a", "")).unwrap();
        assert_eq!(all.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn a_change_that_fails_or_panics_leaves_nothing_and_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let db = db(dir.path());
        let (undone, was_undone) = std::sync::mpsc::channel();
        let failed: Result<(), Error> = db.write_blocking(move |tx| {
            tx.put("a", "x", &record("one"));
            tx.on_failure(move || undone.send(()).unwrap());
            Err(Error::precondition("no"))
        });
        assert_eq!(failed.unwrap_err().kind(), Kind::FailedPrecondition);
        was_undone.recv().unwrap();
        let panicked: Result<(), Error> = db.write_blocking(|tx| {
            tx.put("a", "y", &record("two"));
            panic!("on purpose");
        });
        assert_eq!(panicked.unwrap_err().kind(), Kind::Internal);
        assert!(db.read(|tx| tx.list::<Namespace>("a", "")).unwrap().is_empty());
        // A number nobody took is given again.
        assert_eq!(db.write_blocking(|tx| tx.next_number("n")).unwrap(), 1);
        assert_eq!(db.write_blocking(|tx| tx.next_number("n")).unwrap(), 2);
    }

    #[test]
    fn work_after_a_commit_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = db(dir.path());
        let (tell, told) = std::sync::mpsc::channel();
        db.write_blocking(move |tx| {
            tx.put("a", "x", &record("one"));
            tx.after_commit(move |db| tell.send(db.get::<Namespace>("a", "x").unwrap().is_some()).unwrap());
            Ok(())
        })
        .unwrap();
        assert!(told.recv().unwrap());
    }

    #[test]
    fn a_later_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        {
            let database = Database::create(&path).unwrap();
            let tx = database.begin_write().unwrap();
            tx.open_table(ABOUT).unwrap().insert("schema", SCHEMA + 1).unwrap();
            tx.commit().unwrap();
        }
        let err = Db::open(&path, Arc::new(Exchange::new())).err().unwrap();
        assert!(err.message().contains("layout 2"), "{err}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        /// A scan inside a write sees what a plain map would hold.
        #[test]
        fn scans_merge_changes_with_what_is_stored(
            stored in prop::collection::btree_map("[a-c]{1,2}", "[x-z]", 0..8),
            changes in prop::collection::btree_map("[a-c]{1,2}", prop::option::of("[x-z]"), 0..8),
            prefix in "[a-c]{0,1}",
        ) {
            let dir = tempfile::tempdir().unwrap();
            let db = db(dir.path());
            let first = stored.clone();
            db.write_blocking(move |tx| {
                first.iter().for_each(|(id, name)| tx.put("n", id, &record(name)));
                Ok(())
            }).unwrap();
            let mut model = stored;
            for (id, change) in &changes {
                match change {
                    Some(name) => model.insert(id.clone(), name.clone()),
                    None => model.remove(id),
                };
            }
            let wanted: Vec<_> = model.into_iter().filter(|(id, _)| id.starts_with(&prefix)).collect();
            let found = db.write_blocking(move |tx| {
                for (id, change) in &changes {
                    match change {
                        Some(name) => tx.put("n", id, &record(name)),
                        None => tx.delete::<Namespace>("n", id),
                    }
                }
                tx.list::<Namespace>("n", &prefix)
            }).unwrap();
            let found: Vec<_> = found.into_iter().map(|(id, record)| (id, record.name)).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
