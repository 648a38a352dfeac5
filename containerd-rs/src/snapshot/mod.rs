//! Snapshots: layered directories, handed out as mounts.
//!
//! ```text
//! prepare ──► Active ──commit──► Committed ◄── parent of ── Active, View
//! view ─────► View
//! ```
//! A snapshot is a record under `snapshotter NUL name` in its namespace, and a directory `snapshots/<number>` that no other snapshot ever
//! had. What the directory holds is the business of the snapshotter: [`overlay`] keeps one layer, [`native`] a whole copy.
//!
//! Invariant: a record always has its directory. The directory is made inside the change that records it, and taken away after the change
//! that forgets it; what a kill leaves between the two has no record, and the next start removes it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use containerd_api::any::pack;
use containerd_api::error::{Error, Kind, quote};
use containerd_api::event::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use containerd_api::namespaces::Namespace as NamespaceRecord;
use containerd_api::snapshots::{Info, Kind as SnapshotKind};
use containerd_api::types::Mount;

pub mod native;
pub mod overlay;
pub mod usage;

use crate::config::Config;
use crate::events::now;
use crate::filters::Filters;
use crate::meta::gcsched::Collector;
use crate::meta::labels::{self, MaskPath};
use crate::meta::leases::{Holdable, hold, release, touch_namespace};
use crate::meta::records::{Child, GLOBAL, Snapshot, Usage, child_id, snapshot_id};
use crate::meta::{Db, Reader, WriteTx};
use crate::trash::Trash;

/// A prepare with this label is for making the committed snapshot it names: it fails when that exists already.
const TARGET: &str = "containerd.io/snapshot.ref";

/// Whose snapshot, of which snapshotter, and the lease a request came under.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub namespace: &'a str,
    pub lease: Option<&'a str>,
    /// `overlayfs` or `native`.
    pub snapshotter: &'a str,
}

/// All snapshotters.
pub struct Snapshots {
    db: Arc<Db>,
    collector: Collector,
    stores: BTreeMap<&'static str, Arc<Store>>,
}

/// One snapshotter's directory.
pub struct Store {
    name: &'static str,
    layout: Layout,
    /// `snapshots/` below the snapshotter's root.
    directory: PathBuf,
    trash: Trash,
}

/// What is in a snapshot's directory.
enum Layout {
    Overlay(overlay::Options),
    Native,
}

impl Store {
    /// The directory of a snapshot.
    pub fn directory(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    /// The directory that holds what the snapshot itself adds.
    fn data(&self, number: u64) -> PathBuf {
        match &self.layout {
            Layout::Overlay(_) => overlay::upper(&self.directory(number)),
            Layout::Native => self.directory(number),
        }
    }

    fn mounts(&self, number: u64, kind: SnapshotKind, parents: &[u64]) -> Vec<Mount> {
        match &self.layout {
            Layout::Overlay(options) => overlay::mounts(self, options, number, kind, parents),
            Layout::Native => vec![native::mount(&self.directory(number), kind)],
        }
    }
}

impl Snapshots {
    /// Opens the snapshotters and removes what a killed daemon left half done.
    ///
    /// # Errors
    /// Their directories cannot be made or read.
    pub fn open(config: &Config, db: Arc<Db>, collector: Collector) -> Result<Arc<Self>, Error> {
        let mut stores = BTreeMap::new();
        for name in ["native", "overlayfs"] {
            let root = config.plugin_root(&format!("io.containerd.snapshotter.v1.{name}"));
            let io =
                |err: std::io::Error| Error::internal(format_args!("snapshotter {}", root.display()), err);
            let directory = root.join("snapshots");
            crate::daemon::private_directory(&root, 0o700).map_err(io)?;
            crate::daemon::private_directory(&directory, 0o700).map_err(io)?;
            let trash = Trash::open(root.join("trash")).map_err(io)?;
            let layout = match name {
                "native" => Layout::Native,
                _ => Layout::Overlay(overlay::Options::detect()),
            };
            let store = Arc::new(Store { name, layout, directory, trash });
            sweep(&db, &store)?;
            stores.insert(name, store);
        }
        Ok(Arc::new(Self { db, collector, stores }))
    }

    /// The names of the snapshotters there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stores.keys().copied()
    }

    /// # Errors
    /// `InvalidArgument` when there is no such snapshotter.
    pub fn store(&self, name: &str) -> Result<&Arc<Store>, Error> {
        if name.is_empty() {
            return Err(Error::invalid("snapshotter argument missing"));
        }
        self.stores.get(name).ok_or_else(|| Error::invalid(format_args!("snapshotter not loaded: {name}")))
    }

    /// Makes a snapshot that can be written to, on `parent` (empty: on nothing).
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` for the parent or the lease, `InvalidArgument` when the parent is not committed.
    pub async fn prepare(
        &self,
        scope: Scope<'_>,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        self.create(scope, key, parent, labels, SnapshotKind::Active).await
    }

    /// Makes a snapshot that can only be read.
    ///
    /// # Errors
    /// As with [`Snapshots::prepare`].
    pub async fn view(
        &self,
        scope: Scope<'_>,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        self.create(scope, key, parent, labels, SnapshotKind::View).await
    }

    async fn create(
        &self,
        scope: Scope<'_>,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        kind: SnapshotKind,
    ) -> Result<Vec<Mount>, Error> {
        let store = Arc::clone(self.store(scope.snapshotter)?);
        labels::validate(&labels)?;
        validate_name(key)?;
        let copy = match &store.layout {
            Layout::Native => Some(self.copy_parent(&store, scope.namespace, parent).await?),
            Layout::Overlay(_) => None,
        };
        let (namespace, lease) = (scope.namespace.to_owned(), scope.lease.map(str::to_owned));
        let (key, parent) = (key.to_owned(), parent.to_owned());
        self.db
            .write(move |tx| {
                let id = snapshot_id(store.name, &key);
                if let Some(target) = labels.get(TARGET)
                    && tx.has::<Snapshot>(&namespace, &snapshot_id(store.name, target))?
                {
                    return Err(Error::of(
                        Kind::AlreadyExists,
                        format_args!("target snapshot {}", quote(target)),
                    ));
                }
                if tx.has::<Snapshot>(&namespace, &id)? {
                    return Err(Error::already_exists("snapshot", &key));
                }
                let parents = if parent.is_empty() {
                    Vec::new()
                } else {
                    committed_chain(tx, &namespace, store.name, &parent)?
                };
                touch_namespace(tx, &namespace)?;
                hold(tx, &namespace, lease.as_deref(), Holdable::Snapshot(store.name), &key)?;
                let number = tx.next_number(store.name)?;
                let directory = store.directory(number);
                // A number is given again when a change failed; what it left is nobody's.
                store.trash.take(&directory);
                let (undo, path) = (Arc::clone(&store), directory.clone());
                tx.on_failure(move || undo.trash.take(&path));
                match &copy {
                    Some(copy) => std::fs::rename(copy.path(), &directory),
                    None => overlay::make(
                        &directory,
                        kind,
                        parents.first().map(|parent| store.data(*parent)).as_deref(),
                    ),
                }
                .map_err(|err| Error::internal("failed to create snapshot", err))?;
                let at = Some(now());
                let record = Snapshot {
                    number,
                    parent: parent.clone(),
                    kind: kind as i32,
                    created_at: at,
                    updated_at: at,
                    labels: labels.into_iter().collect(),
                    usage: None,
                };
                tx.put(&namespace, &id, &record);
                if !parent.is_empty() {
                    tx.put(&namespace, &child_id(store.name, &parent, &key), &Child {});
                }
                if kind == SnapshotKind::Active {
                    let event = SnapshotPrepare { key, parent, snapshotter: store.name.to_owned() };
                    tx.publish(&namespace, "/snapshot/prepare", pack(&event));
                }
                Ok(store.mounts(number, kind, &parents))
            })
            .await
    }

    /// A copy of the parent's directory for the native snapshotter; an empty one without parent.
    async fn copy_parent(
        &self,
        store: &Arc<Store>,
        namespace: &str,
        parent: &str,
    ) -> Result<native::Copy, Error> {
        let from = match parent {
            "" => None,
            parent => {
                let chain = self.db.read(|tx| committed_chain(tx, namespace, store.name, parent))?;
                chain.first().map(|number| store.directory(*number))
            }
        };
        let (store, trash) = (Arc::clone(store), store.trash.clone());
        tokio::task::spawn_blocking(move || native::copy(&store.directory, from.as_deref(), trash))
            .await
            .map_err(|err| Error::internal("copy the parent snapshot", err))?
            .map_err(|err| Error::internal("copy the parent snapshot", err))
    }

    /// How the snapshot is mounted. Only an active snapshot or a view is.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition` for a committed snapshot.
    pub fn mounts(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Error> {
        let store = self.store(snapshotter)?;
        self.db.read(|tx| {
            let snapshot = get(tx, namespace, store.name, key)?;
            let kind = snapshot_kind(&snapshot);
            if kind == SnapshotKind::Committed {
                let what = format!("failed to get active mount: requested snapshot {key} not active or view");
                return Err(Error::precondition(what));
            }
            let parents = match snapshot.parent.as_str() {
                "" => Vec::new(),
                parent => committed_chain(tx, namespace, store.name, parent)?,
            };
            Ok(store.mounts(snapshot.number, kind, &parents))
        })
    }

    /// Makes an active snapshot a committed one with a name of its own. `rebase` puts it on another parent, which only a snapshot that was
    /// prepared on nothing can be. `usage` saves measuring what the caller has counted.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` for the name, `FailedPrecondition` when it is not active.
    pub async fn commit(
        &self,
        scope: Scope<'_>,
        name: &str,
        key: &str,
        labels: HashMap<String, String>,
        rebase: Option<&str>,
        usage: Option<Usage>,
    ) -> Result<(), Error> {
        let store = Arc::clone(self.store(scope.snapshotter)?);
        labels::validate(&labels)?;
        validate_name(name)?;
        let usage = match usage {
            Some(usage) => usage,
            None => {
                let snapshot = self.db.read(|tx| {
                    if tx.has::<Snapshot>(scope.namespace, &snapshot_id(store.name, name))? {
                        return Err(Error::already_exists("snapshot", name));
                    }
                    get(tx, scope.namespace, store.name, key)
                })?;
                measure(store.data(snapshot.number)).await?
            }
        };
        let (namespace, lease) = (scope.namespace.to_owned(), scope.lease.map(str::to_owned));
        let (key, name) = (key.to_owned(), name.to_owned());
        let rebase = rebase.filter(|parent| !parent.is_empty()).map(str::to_owned);
        self.db
            .write(move |tx| {
                if tx.has::<Snapshot>(&namespace, &snapshot_id(store.name, &name))? {
                    return Err(Error::already_exists("snapshot", &name));
                }
                let mut snapshot = get(tx, &namespace, store.name, &key)?;
                if snapshot_kind(&snapshot) != SnapshotKind::Active {
                    return Err(Error::precondition(format_args!(
                        "failed to commit snapshot {key}: snapshot {} is not active",
                        quote(&key)
                    )));
                }
                if let Some(parent) = rebase {
                    if !snapshot.parent.is_empty() && snapshot.parent != parent {
                        return Err(Error::invalid(format_args!(
                            "snapshot {} has a parent already",
                            quote(&key)
                        )));
                    }
                    committed_chain(tx, &namespace, store.name, &parent)?;
                    snapshot.parent = parent;
                }
                touch_namespace(tx, &namespace)?;
                release(tx, &namespace, lease.as_deref(), Holdable::Snapshot(store.name), &key);
                hold(tx, &namespace, lease.as_deref(), Holdable::Snapshot(store.name), &name)?;
                let at = Some(now());
                tx.delete::<Snapshot>(&namespace, &snapshot_id(store.name, &key));
                let record = Snapshot {
                    kind: SnapshotKind::Committed as i32,
                    created_at: at,
                    updated_at: at,
                    labels: labels.into_iter().collect(),
                    usage: Some(usage),
                    ..snapshot
                };
                if !record.parent.is_empty() {
                    tx.delete::<Child>(&namespace, &child_id(store.name, &record.parent, &key));
                    tx.put(&namespace, &child_id(store.name, &record.parent, &name), &Child {});
                }
                tx.put(&namespace, &snapshot_id(store.name, &name), &record);
                let event = SnapshotCommit { key, name, snapshotter: store.name.to_owned() };
                tx.publish(&namespace, "/snapshot/commit", pack(&event));
                Ok(())
            })
            .await
    }

    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Info, Error> {
        let store = self.store(snapshotter)?;
        self.db.read(|tx| get(tx, namespace, store.name, key)).map(|snapshot| info(key, snapshot))
    }

    /// Changes labels: those the paths name, or all of them without paths.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` for a field that cannot be changed.
    pub async fn update(
        &self,
        namespace: &str,
        snapshotter: &str,
        wanted: Info,
        paths: Vec<String>,
    ) -> Result<Info, Error> {
        let store = Arc::clone(self.store(snapshotter)?);
        labels::validate(&wanted.labels)?;
        let (namespace, collector) = (namespace.to_owned(), self.collector.clone());
        self.db
            .write(move |tx| {
                let key = wanted.name;
                let mut snapshot = get(tx, &namespace, store.name, &key)?;
                let mut labels: HashMap<_, _> = std::mem::take(&mut snapshot.labels).into_iter().collect();
                if paths.is_empty() {
                    labels::replace(&mut labels, wanted.labels);
                } else {
                    for path in &paths {
                        match labels::mask_path(path, "labels") {
                            MaskPath::All => labels::replace(&mut labels, wanted.labels.clone()),
                            MaskPath::One(label) => labels::update_one(&mut labels, &wanted.labels, label),
                            MaskPath::Other(path) => {
                                return Err(labels::cannot_update(path, "snapshot", &key));
                            }
                        }
                    }
                }
                snapshot.labels = labels.into_iter().collect();
                snapshot.updated_at = Some(now());
                tx.put(&namespace, &snapshot_id(store.name, &key), &snapshot);
                tx.after_commit(move |_| collector.request());
                Ok(info(&key, snapshot))
            })
            .await
    }

    /// All snapshots that match.
    ///
    /// # Errors
    /// A filter does not parse.
    pub fn list(&self, namespace: &str, snapshotter: &str, filters: &[String]) -> Result<Vec<Info>, Error> {
        let store = self.store(snapshotter)?;
        let filters = Filters::parse(filters)?;
        let prefix = snapshot_id(store.name, "");
        self.db.read(|tx| {
            let mut found = Vec::new();
            tx.each::<Snapshot>(namespace, &prefix, &mut |id, snapshot| {
                let info = info(&id[prefix.len()..], snapshot);
                if filters.matches(&info) {
                    found.push(info);
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }

    /// What the snapshot takes on disk without its parents: measured now while it is active, known once it is committed.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn usage(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Usage, Error> {
        let store = self.store(snapshotter)?;
        let snapshot = self.db.read(|tx| get(tx, namespace, store.name, key))?;
        match (snapshot.usage, snapshot_kind(&snapshot), &store.layout) {
            (Some(usage), _, _) => Ok(usage),
            // A view of the overlay adds nothing of its own.
            (None, SnapshotKind::View, Layout::Overlay(_)) => Ok(Usage::default()),
            (None, _, _) => measure(store.data(snapshot.number)).await,
        }
    }

    /// Forgets the snapshot; its directory goes without anybody waiting for it.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition` while it is the parent of another.
    pub async fn remove(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<(), Error> {
        let store = Arc::clone(self.store(snapshotter)?);
        let (namespace, key, collector) = (namespace.to_owned(), key.to_owned(), self.collector.clone());
        self.db
            .write(move |tx| {
                let snapshot = get(tx, &namespace, store.name, &key)?;
                if has_children(tx, &namespace, store.name, &key)? {
                    return Err(Error::precondition("cannot remove snapshot with child"));
                }
                forget(tx, &store, &namespace, &key, &snapshot);
                tx.after_commit(move |_| collector.request());
                Ok(())
            })
            .await
    }

    /// Inside a change of the garbage collector: forgets a snapshot if nothing is built on it.
    pub(crate) fn collect(
        &self,
        tx: &mut WriteTx<'_>,
        namespace: &str,
        snapshotter: &str,
        key: &str,
    ) -> Result<bool, Error> {
        let Some(store) = self.stores.get(snapshotter) else { return Ok(false) };
        let snapshot = get(tx, namespace, store.name, key)?;
        if has_children(tx, namespace, store.name, key)? {
            return Ok(false);
        }
        forget(tx, store, namespace, key, &snapshot);
        Ok(true)
    }

    /// Waits until what was removed is off the disk.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such snapshotter.
    pub async fn cleanup(&self, snapshotter: &str) -> Result<(), Error> {
        let trash = self.store(snapshotter)?.trash.clone();
        tokio::task::spawn_blocking(move || trash.empty_now())
            .await
            .map_err(|err| Error::internal("remove snapshots", err))
    }
}

fn forget(tx: &mut WriteTx<'_>, store: &Arc<Store>, namespace: &str, key: &str, snapshot: &Snapshot) {
    tx.delete::<Snapshot>(namespace, &snapshot_id(store.name, key));
    if !snapshot.parent.is_empty() {
        tx.delete::<Child>(namespace, &child_id(store.name, &snapshot.parent, key));
    }
    let event = SnapshotRemove { key: key.to_owned(), snapshotter: store.name.to_owned() };
    tx.publish(namespace, "/snapshot/remove", pack(&event));
    let (store, directory) = (Arc::clone(store), store.directory(snapshot.number));
    tx.after_commit(move |_| store.trash.take(&directory));
}

fn get(tx: &impl Reader, namespace: &str, snapshotter: &str, key: &str) -> Result<Snapshot, Error> {
    tx.get::<Snapshot>(namespace, &snapshot_id(snapshotter, key))?
        .ok_or_else(|| Error::of(Kind::NotFound, format_args!("snapshot {key} does not exist")))
}

fn has_children(tx: &impl Reader, namespace: &str, snapshotter: &str, key: &str) -> Result<bool, Error> {
    let mut found = false;
    tx.each::<Child>(namespace, &child_id(snapshotter, key, ""), &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// The numbers of `parent` and what it is built on, topmost first.
fn committed_chain(
    tx: &impl Reader,
    namespace: &str,
    snapshotter: &str,
    parent: &str,
) -> Result<Vec<u64>, Error> {
    let missing =
        |name: &str| Error::of(Kind::NotFound, format_args!("parent snapshot {name} does not exist"));
    let mut chain = Vec::new();
    let mut name = parent.to_owned();
    while !name.is_empty() {
        let snapshot =
            tx.get::<Snapshot>(namespace, &snapshot_id(snapshotter, &name))?.ok_or_else(|| missing(&name))?;
        if snapshot_kind(&snapshot) != SnapshotKind::Committed {
            let what =
                format!("failed to create snapshot: parent {} is not committed snapshot", quote(&name));
            return Err(Error::invalid(what));
        }
        if chain.contains(&snapshot.number) {
            return Err(Error::new(Kind::DataLoss, format!("snapshot {name} is its own ancestor")));
        }
        chain.push(snapshot.number);
        name = snapshot.parent;
    }
    Ok(chain)
}

fn snapshot_kind(snapshot: &Snapshot) -> SnapshotKind {
    SnapshotKind::try_from(snapshot.kind).unwrap_or(SnapshotKind::Unknown)
}

fn info(name: &str, snapshot: Snapshot) -> Info {
    Info {
        name: name.to_owned(),
        parent: snapshot.parent,
        kind: snapshot.kind,
        created_at: snapshot.created_at,
        updated_at: snapshot.updated_at,
        labels: snapshot.labels.into_iter().collect(),
    }
}

/// Names are any text that can be part of a key.
fn validate_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid("snapshot key must not be empty"));
    }
    if name.contains('\0') {
        return Err(Error::invalid("snapshot key must not contain NUL"));
    }
    Ok(())
}

async fn measure(directory: PathBuf) -> Result<Usage, Error> {
    tokio::task::spawn_blocking(move || usage::of(&directory))
        .await
        .map_err(|err| Error::internal("measure the snapshot", err))?
        .map_err(|err| Error::internal("measure the snapshot", err))
}

/// Removes directories without record.
fn sweep(db: &Db, store: &Store) -> Result<(), Error> {
    let io = |err: std::io::Error| Error::internal(format_args!("read {}", store.directory.display()), err);
    let mut known = std::collections::HashSet::new();
    db.read(|tx| {
        let prefix = snapshot_id(store.name, "");
        for (namespace, _) in tx.list::<NamespaceRecord>(GLOBAL, "")? {
            tx.each::<Snapshot>(&namespace, &prefix, &mut |_, snapshot| {
                known.insert(snapshot.number.to_string());
                Ok(true)
            })?;
        }
        Ok(())
    })?;
    for entry in std::fs::read_dir(&store.directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            store.trash.take(&entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
