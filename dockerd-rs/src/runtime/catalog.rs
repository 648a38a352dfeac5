//! What the store holds, kept in memory for reading: names, blobs and unpacked layers.
//!
//! Invariant: a reading begun after a change has ended shows it. Changes of the engine's own are noted when their call returns; changes of
//! others (`ctr`, the collector) are heard from containerd's events, and while those are not heard nothing is kept. Only what changed is read
//! again: by key if it is little, else the whole table. A table costs about as much memory as its list had cost on the wire.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_api::any;
use containerd_api::{event, images};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use oci::Digest;

use super::Runtime;
use super::content::{BlobInfo, DISTRIBUTION_SOURCE, ImageRecord, SnapshotInfo};
use crate::error::Result;

/// So many changes are asked for one by one; more are a new list.
const ONE_BY_ONE: usize = 16;
/// Between two attempts to hear containerd.
const RETRY: Duration = Duration::from_millis(500);
const TOPICS: &[&str] = &[
    "/images/create",
    "/images/update",
    "/images/delete",
    "/content/create",
    "/content/delete",
    "/snapshot/commit",
    "/snapshot/remove",
];

/// What reading needs to know of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Bytes.
    pub size: u64,
    /// The repositories it was pulled from, full names, sorted.
    pub sources: Box<[String]>,
}

impl From<&BlobInfo> for Blob {
    fn from(info: &BlobInfo) -> Self {
        let mut sources = Vec::new();
        for (key, value) in &info.labels {
            let Some(host) = key.strip_prefix(DISTRIBUTION_SOURCE) else { continue };
            let paths = value.split(',').filter(|path| !path.is_empty());
            sources.extend(paths.map(|path| format!("{host}/{path}")));
        }
        sources.sort();
        Self { size: info.size, sources: sources.into() }
    }
}

/// The store at one moment; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Images by name.
    pub names: Arc<HashMap<String, ImageRecord>>,
    /// Names by what they point to, sorted.
    pub targets: Arc<HashMap<Digest, Vec<String>>>,
    /// Blobs that are here.
    pub blobs: Arc<HashMap<Digest, Blob>>,
    /// Unpacked layers (their chain ids), each with the one below.
    pub chains: Arc<HashMap<String, String>>,
}

impl View {
    /// The records that point to `target`, by name.
    pub fn records(&self, target: &Digest) -> Vec<ImageRecord> {
        let names = self.targets.get(target).into_iter().flatten();
        names.filter_map(|name| self.names.get(name).cloned()).collect()
    }

    /// Whether the bytes of `digest` are here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }
}

/// Which rows of a table have to be read again.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<K> {
    Nothing,
    Some(Vec<K>),
    All,
}

/// What was read: rows that are there or not, or all there are.
enum Fresh<K, V> {
    Nothing,
    Some(Vec<(K, Option<V>)>),
    All(HashMap<K, V>),
}

struct Table<K, V> {
    rows: Arc<HashMap<K, V>>,
    /// Keys whose rows changed, and at which tick of the clock.
    changed: HashMap<K, u64>,
    /// When the whole table was last in doubt.
    doubted: Option<u64>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: Arc::default(), changed: HashMap::new(), doubted: Some(0) }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Table<K, V> {
    fn is_current(&self) -> bool {
        self.doubted.is_none() && self.changed.is_empty()
    }

    fn note(&mut self, key: K, now: u64) {
        self.changed.insert(key, now);
        if self.changed.len() > ONE_BY_ONE {
            self.doubt(now);
        }
    }

    fn doubt(&mut self, now: u64) {
        self.doubted = Some(now);
        self.changed.clear();
    }

    fn wanted(&self) -> Wanted<K> {
        match (&self.doubted, self.changed.is_empty()) {
            (Some(_), _) => Wanted::All,
            (None, true) => Wanted::Nothing,
            (None, false) => Wanted::Some(self.changed.keys().cloned().collect()),
        }
    }

    /// Takes what was read from `since` on. What changed after that stays to be read again.
    fn put(&mut self, fresh: Fresh<K, V>, since: u64) {
        match fresh {
            Fresh::Nothing => {}
            Fresh::Some(rows) => {
                let table = Arc::make_mut(&mut self.rows);
                for (key, row) in rows {
                    if self.changed.get(&key).is_some_and(|at| *at <= since) {
                        self.changed.remove(&key);
                    }
                    match row {
                        Some(row) => table.insert(key, row),
                        None => table.remove(&key),
                    };
                }
            }
            Fresh::All(rows) => {
                self.rows = Arc::new(rows);
                self.doubted = self.doubted.filter(|at| *at > since);
                self.changed.retain(|_, at| *at > since);
            }
        }
    }
}

#[derive(Default)]
struct State {
    /// Whether containerd's events are heard.
    heard: bool,
    clock: u64,
    names: Table<String, ImageRecord>,
    targets: Arc<HashMap<Digest, Vec<String>>>,
    blobs: Table<Digest, Blob>,
    chains: Table<String, String>,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn doubt_all(&mut self) {
        let now = self.tick();
        self.names.doubt(now);
        self.blobs.doubt(now);
        self.chains.doubt(now);
    }

    fn view(&self) -> View {
        View {
            names: Arc::clone(&self.names.rows),
            targets: Arc::clone(&self.targets),
            blobs: Arc::clone(&self.blobs.rows),
            chains: Arc::clone(&self.chains.rows),
        }
    }

    fn current(&self) -> Option<View> {
        let current =
            self.heard && self.names.is_current() && self.blobs.is_current() && self.chains.is_current();
        current.then(|| self.view())
    }
}

/// What is remembered of the store.
#[derive(Default)]
pub(super) struct Catalog {
    state: Mutex<State>,
    /// Held while tables are read, so that many readers read once.
    reading: tokio::sync::Mutex<()>,
}

impl Catalog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name was given or taken away.
    pub(super) fn name_changed(&self, name: &str) {
        let mut state = self.state();
        let now = state.tick();
        state.names.note(name.to_owned(), now);
    }

    /// A blob came, went or was labelled.
    pub(super) fn blob_changed(&self, digest: &Digest) {
        let mut state = self.state();
        let now = state.tick();
        state.blobs.note(digest.clone(), now);
    }

    /// A committed snapshot came or went. Writable ones have other keys and are not kept here.
    pub(super) fn snapshot_changed(&self, key: &str) {
        if is_chain(key) {
            let mut state = self.state();
            let now = state.tick();
            state.chains.note(key.to_owned(), now);
        }
    }

    /// Something large happened: a transfer, a collection.
    pub(super) fn content_changed(&self) {
        let mut state = self.state();
        let now = state.tick();
        state.blobs.doubt(now);
        state.chains.doubt(now);
    }

    fn listening(&self, heard: bool) {
        let mut state = self.state();
        state.heard = heard;
        state.doubt_all();
    }

    fn note(&self, event: &prost_types::Any) {
        if let Ok(Some(event)) = any::unpack::<event::ContentCreate>(event) {
            self.blob_named(&event.digest);
        } else if let Ok(Some(event)) = any::unpack::<event::ContentDelete>(event) {
            self.blob_named(&event.digest);
        } else if let Ok(Some(event)) = any::unpack::<event::SnapshotCommit>(event) {
            self.snapshot_changed(&event.name);
        } else if let Ok(Some(event)) = any::unpack::<event::SnapshotRemove>(event) {
            self.snapshot_changed(&event.key);
        } else if let Ok(Some(event)) = any::unpack::<images::ImageCreate>(event) {
            self.name_changed(&event.name);
        } else if let Ok(Some(event)) = any::unpack::<images::ImageUpdate>(event) {
            self.name_changed(&event.name);
        } else if let Ok(Some(event)) = any::unpack::<images::ImageDelete>(event) {
            self.name_changed(&event.name);
        }
    }

    fn blob_named(&self, digest: &str) {
        if let Ok(digest) = Digest::parse(digest) {
            self.blob_changed(&digest);
        }
    }
}

/// Whether a snapshot's key is the chain id of unpacked layers.
fn is_chain(key: &str) -> bool {
    key.starts_with("sha256:")
}

fn chain(info: SnapshotInfo) -> Option<(String, String)> {
    is_chain(&info.name).then_some((info.name, info.parent))
}

fn by_target(names: &HashMap<String, ImageRecord>) -> HashMap<Digest, Vec<String>> {
    let mut targets: HashMap<Digest, Vec<String>> = HashMap::new();
    for (name, record) in names {
        targets.entry(record.target.digest.clone()).or_default().push(name.clone());
    }
    for names in targets.values_mut() {
        names.sort();
    }
    targets
}

impl Runtime {
    /// The store as it is now. Asks containerd only for what changed since the last time.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn view(&self) -> Result<View> {
        if let Some(view) = self.catalog.state().current() {
            return Ok(view);
        }
        let _one_reads = self.catalog.reading.lock().await;
        let (names, blobs, chains, since) = {
            let mut state = self.catalog.state();
            if let Some(view) = state.current() {
                return Ok(view);
            }
            if !state.heard {
                state.doubt_all();
            }
            (state.names.wanted(), state.blobs.wanted(), state.chains.wanted(), state.clock)
        };
        let (names, blobs, chains) =
            tokio::try_join!(self.fresh_names(names), self.fresh_blobs(blobs), self.fresh_chains(chains))?;
        let mut state = self.catalog.state();
        let renamed = !matches!(names, Fresh::Nothing);
        state.names.put(names, since);
        if renamed {
            state.targets = Arc::new(by_target(&state.names.rows));
        }
        state.blobs.put(blobs, since);
        state.chains.put(chains, since);
        Ok(state.view())
    }

    async fn fresh_names(&self, wanted: Wanted<String>) -> Result<Fresh<String, ImageRecord>> {
        Ok(match wanted {
            Wanted::Nothing => Fresh::Nothing,
            Wanted::Some(keys) => {
                let asked = keys.into_iter().map(|key| async move {
                    let row = self.image(&key).await?;
                    Ok::<_, crate::error::Error>((key, row))
                });
                Fresh::Some(try_join_all(asked).await?)
            }
            Wanted::All => {
                let all = self.image_list(&[]).await?;
                Fresh::All(all.into_iter().map(|record| (record.name.clone(), record)).collect())
            }
        })
    }

    async fn fresh_blobs(&self, wanted: Wanted<Digest>) -> Result<Fresh<Digest, Blob>> {
        Ok(match wanted {
            Wanted::Nothing => Fresh::Nothing,
            Wanted::Some(keys) => {
                let asked = keys.into_iter().map(|key| async move {
                    let row = self.blob(&key).await?.as_ref().map(Blob::from);
                    Ok::<_, crate::error::Error>((key, row))
                });
                Fresh::Some(try_join_all(asked).await?)
            }
            Wanted::All => {
                let all = self.blob_list(&[]).await?;
                Fresh::All(all.iter().map(|info| (info.digest.clone(), Blob::from(info))).collect())
            }
        })
    }

    async fn fresh_chains(&self, wanted: Wanted<String>) -> Result<Fresh<String, String>> {
        Ok(match wanted {
            Wanted::Nothing => Fresh::Nothing,
            Wanted::Some(keys) => {
                let asked = keys.into_iter().map(|key| async move {
                    let row = self.snapshot(&key).await?.map(|info| info.parent);
                    Ok::<_, crate::error::Error>((key, row))
                });
                Fresh::Some(try_join_all(asked).await?)
            }
            Wanted::All => {
                let all = self.snapshot_list(&["kind==committed".to_owned()]).await?;
                Fresh::All(all.into_iter().filter_map(chain).collect())
            }
        })
    }

    /// Hears what others change in the store, for as long as the engine lives.
    pub async fn keep_hearing(self) {
        loop {
            match self.subscribe(TOPICS).await {
                Ok(mut stream) => {
                    self.catalog.listening(true);
                    // Either daemon may have been killed in the middle of something.
                    if let Err(err) = self.forget_lost_work().await {
                        tracing::warn!(error = %err, "what was begun and not ended is kept until it expires");
                    }
                    while let Some(Ok(envelope)) = stream.next().await {
                        if envelope.namespace == self.namespace()
                            && let Some(event) = &envelope.event
                        {
                            self.catalog.note(event);
                        }
                    }
                    self.catalog.listening(false);
                }
                Err(err) => tracing::debug!(error = %err, "subscribe to changes of the store"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<&'static str, u32> {
        let mut table = Table::default();
        table.put(Fresh::All(HashMap::from([("a", 1), ("b", 2)])), 0);
        table
    }

    #[test]
    fn only_what_changed_is_wanted_again() {
        let mut table = table();
        assert!(table.is_current());
        table.note("b", 1);
        assert_eq!(table.wanted(), Wanted::Some(vec!["b"]));
        table.put(Fresh::Some(vec![("b", None)]), 1);
        assert_eq!((table.is_current(), table.rows.len()), (true, 1));
    }

    #[test]
    fn a_change_during_a_reading_is_read_again() {
        let mut table = table();
        table.note("b", 1);
        // Read from tick 1 on, and changed once more before the answer came.
        table.note("b", 2);
        table.put(Fresh::Some(vec![("b", Some(3))]), 1);
        assert_eq!(table.wanted(), Wanted::Some(vec!["b"]));
        table.doubt(3);
        table.put(Fresh::All(HashMap::new()), 2);
        assert_eq!(table.wanted(), Wanted::All);
        table.note("a", 4);
        table.put(Fresh::All(HashMap::new()), 3);
        assert_eq!(table.wanted(), Wanted::Some(vec!["a"]));
    }

    #[test]
    fn many_changes_are_a_new_list() {
        let mut table: Table<u64, u32> = Table::default();
        table.put(Fresh::All(HashMap::new()), 0);
        for key in 0..=ONE_BY_ONE as u64 {
            table.note(key, key + 1);
        }
        assert_eq!(table.wanted(), Wanted::All);
        assert!(table.changed.is_empty(), "nothing is kept that nobody reads");
    }

    #[test]
    fn events_name_what_changed() {
        let catalog = Catalog::default();
        catalog.listening(true);
        {
            let mut state = catalog.state();
            let since = state.clock;
            state.names.put(Fresh::All(HashMap::new()), since);
            state.blobs.put(Fresh::All(HashMap::new()), since);
            state.chains.put(Fresh::All(HashMap::new()), since);
            assert!(state.current().is_some());
        }
        let digest = Digest::of(b"x");
        catalog.note(&any::pack(&images::ImageDelete { name: "n".into() }));
        catalog.note(&any::pack(&event::ContentDelete { digest: digest.to_string() }));
        catalog.note(&any::pack(&event::SnapshotRemove { key: "a-container".into(), ..Default::default() }));
        let state = catalog.state();
        assert_eq!(state.names.wanted(), Wanted::Some(vec!["n".to_owned()]));
        assert_eq!(state.blobs.wanted(), Wanted::Some(vec![digest]));
        assert_eq!(state.chains.wanted(), Wanted::Nothing);
        assert!(state.current().is_none());
    }
}
