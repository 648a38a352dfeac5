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
//! that forgets it; what a kill leaves between the two has no record, and the next start removes it. Snapshotters in other processes keep it the
//! same way, see [`proxy`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use containerd_api::any::pack;
use containerd_api::error::{Error, Kind, quote};
use containerd_api::event::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use containerd_api::leases::Lease;
use containerd_api::namespaces::Namespace as NamespaceRecord;
use containerd_api::snapshots::{Info, Kind as SnapshotKind};
use containerd_api::types::Mount;

pub mod native;
pub mod overlay;
pub mod proxy;
pub mod usage;

use self::proxy::Proxy;
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
/// The sequence of numbers for snapshots that other processes make.
const ELSEWHERE: &str = "proxy";

/// Whose snapshot, of which snapshotter, and the lease a request came under.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub namespace: &'a str,
    pub lease: Option<&'a str>,
    /// `overlayfs`, `native`, or the name of a proxy plugin.
    pub snapshotter: &'a str,
}

/// All snapshotters.
pub struct Snapshots {
    db: Arc<Db>,
    collector: Collector,
    snapshotters: BTreeMap<&'static str, Backing>,
}

/// Where a snapshotter's directories are made.
#[derive(Clone)]
enum Backing {
    Here(Arc<Store>),
    Elsewhere(Arc<Proxy>),
}

impl Backing {
    fn name(&self) -> &'static str {
        match self {
            Self::Here(store) => store.name,
            Self::Elsewhere(proxy) => proxy.name,
        }
    }
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
        let mut snapshotters = BTreeMap::new();
        for name in ["native", "overlayfs"] {
            let uri = format!("io.containerd.snapshotter.v1.{name}");
            if config.disabled_plugins.contains(&uri) {
                continue;
            }
            let root = config.plugin_root(&uri);
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
            snapshotters.insert(name, Backing::Here(store));
        }
        for (name, plugin) in config.proxy_plugins.iter().filter(|(_, plugin)| plugin.kind == "snapshot") {
            if snapshotters.contains_key(name.as_str()) {
                return Err(Error::invalid(format_args!(
                    "proxy plugin {name}: there is a snapshotter of that name; disable it to replace it"
                )));
            }
            let proxy = Proxy::open(name, &plugin.address, Arc::clone(&db))?;
            snapshotters.insert(proxy.name, Backing::Elsewhere(proxy));
        }
        Ok(Arc::new(Self { db, collector, snapshotters }))
    }

    /// The names of the snapshotters there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.snapshotters.keys().copied()
    }

    /// Whether a snapshotter is our own of that name, not another process's.
    pub fn is_ours(&self, name: &str) -> bool {
        matches!(self.snapshotters.get(name), Some(Backing::Here(_)))
    }

    /// # Errors
    /// `InvalidArgument` when there is no such snapshotter.
    fn backing(&self, name: &str) -> Result<&Backing, Error> {
        if name.is_empty() {
            return Err(Error::invalid("snapshotter argument missing"));
        }
        let found = self.snapshotters.get(name);
        found.ok_or_else(|| Error::invalid(format_args!("snapshotter not loaded: {name}")))
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
        labels::validate(&labels)?;
        validate_name(key)?;
        let store = match self.backing(scope.snapshotter)? {
            Backing::Here(store) => Arc::clone(store),
            Backing::Elsewhere(proxy) => {
                return self.create_elsewhere(proxy, scope, key, parent, labels, kind).await;
            }
        };
        let copy = match &store.layout {
            Layout::Native => Some(self.copy_parent(&store, scope.namespace, parent).await?),
            Layout::Overlay(_) => None,
        };
        let (namespace, lease) = (scope.namespace.to_owned(), scope.lease.map(str::to_owned));
        let (key, parent) = (key.to_owned(), parent.to_owned());
        self.db
            .write(move |tx| {
                is_new(tx, &namespace, store.name, &key, &labels)?;
                let parents = if parent.is_empty() {
                    Vec::new()
                } else {
                    committed_chain(tx, &namespace, store.name, &parent)?
                };
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
                let made = Snapshot {
                    number,
                    parent,
                    kind: kind as i32,
                    labels: labels.into_iter().collect(),
                    ..Snapshot::default()
                };
                record(tx, &namespace, lease.as_deref(), store.name, key, made)?;
                Ok(store.mounts(number, kind, &parents))
            })
            .await
    }

    async fn create_elsewhere(
        &self,
        proxy: &Arc<Proxy>,
        scope: Scope<'_>,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        kind: SnapshotKind,
    ) -> Result<Vec<Mount>, Error> {
        let (namespace, name) = (scope.namespace, proxy.name);
        let _making = proxy.making(namespace).await;
        let (number, below) = {
            let (namespace, key, parent) = (namespace.to_owned(), key.to_owned(), parent.to_owned());
            let labels = labels.clone();
            self.db
                .write(move |tx| {
                    is_new(tx, &namespace, name, &key, &labels)?;
                    let below = match parent.as_str() {
                        "" => String::new(),
                        parent => {
                            committed_chain(tx, &namespace, name, parent)?;
                            get(tx, &namespace, name, parent)?.remote
                        }
                    };
                    Ok((tx.next_number(ELSEWHERE)?, below))
                })
                .await?
        };
        let remote = Proxy::remote_name(namespace, number, key);
        let made = proxy.create(namespace, kind, &remote, &below, &labels).await;
        let target = labels.get(TARGET).cloned();
        let mut snapshot = Snapshot {
            number,
            parent: parent.to_owned(),
            kind: kind as i32,
            labels: labels.into_iter().collect(),
            remote,
            ..Snapshot::default()
        };
        let (mounts, key) = match (made, target) {
            (Ok(mounts), _) => (Ok(mounts), key.to_owned()),
            // Some have what is to be unpacked already: it is a committed snapshot, and the client need not go on.
            (Err(err), Some(target)) if err.is_already_exists() => {
                let found = proxy.made_for(namespace, &target, &below).await?;
                snapshot.remote = found.ok_or(err)?.name;
                snapshot.kind = SnapshotKind::Committed as i32;
                let exists =
                    Error::of(Kind::AlreadyExists, format_args!("target snapshot {}", quote(&target)));
                (Err(exists), target)
            }
            (Err(err), _) => return Err(err),
        };
        let (namespace, lease) = (namespace.to_owned(), scope.lease.map(str::to_owned));
        let undo = Arc::clone(proxy);
        self.db
            .write(move |tx| {
                let at = namespace.clone();
                tx.on_failure(move || undo.removed(&at));
                // Another request may have been quicker, and the parent may be gone.
                is_new(tx, &namespace, name, &key, &HashMap::new())?;
                if !snapshot.parent.is_empty() {
                    committed_chain(tx, &namespace, name, &snapshot.parent)?;
                }
                record(tx, &namespace, lease.as_deref(), name, key, snapshot)
            })
            .await?;
        mounts
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
    pub async fn mounts(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Error> {
        let backing = self.backing(snapshotter)?;
        let known = self.db.read(|tx| {
            let snapshot = get(tx, namespace, backing.name(), key)?;
            let kind = snapshot_kind(&snapshot);
            if kind == SnapshotKind::Committed {
                let what = format!("failed to get active mount: requested snapshot {key} not active or view");
                return Err(Error::precondition(what));
            }
            let parents = match snapshot.parent.as_str() {
                "" => Vec::new(),
                parent => committed_chain(tx, namespace, backing.name(), parent)?,
            };
            Ok((snapshot, kind, parents))
        });
        let (snapshot, kind, parents) = known?;
        match backing {
            Backing::Here(store) => Ok(store.mounts(snapshot.number, kind, &parents)),
            Backing::Elsewhere(proxy) => proxy.mounts(namespace, &snapshot.remote).await,
        }
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
        labels::validate(&labels)?;
        validate_name(name)?;
        let backing = self.backing(scope.snapshotter)?.clone();
        let snapshotter = backing.name();
        let rebase = rebase.filter(|parent| !parent.is_empty());
        let _making = match &backing {
            Backing::Here(_) => None,
            Backing::Elsewhere(proxy) => Some(proxy.making(scope.namespace).await),
        };
        let planned = match &backing {
            Backing::Here(_) if usage.is_some() => None,
            _ => Some(self.db.read(|tx| {
                if tx.has::<Snapshot>(scope.namespace, &snapshot_id(snapshotter, name))? {
                    return Err(Error::already_exists("snapshot", name));
                }
                // What the other end has committed cannot be taken back.
                if let Some(lease) = scope.lease
                    && !tx.has::<Lease>(scope.namespace, lease)?
                {
                    return Err(Error::of(Kind::NotFound, "lease does not exist"));
                }
                get(tx, scope.namespace, snapshotter, key)
            })?),
        };
        let (usage, committed) = match (&backing, planned) {
            (Backing::Here(_), None) => (usage, None),
            (Backing::Here(store), Some(snapshot)) => {
                (Some(measure(store.data(snapshot.number)).await?), None)
            }
            (Backing::Elsewhere(proxy), snapshot) => {
                let snapshot = snapshot.unwrap_or_default();
                is_active(key, &snapshot)?;
                let remote = self.commit_elsewhere(proxy, scope, name, &snapshot, rebase, &labels).await?;
                (None, Some(remote))
            }
        };
        let (namespace, lease) = (scope.namespace.to_owned(), scope.lease.map(str::to_owned));
        let (key, name) = (key.to_owned(), name.to_owned());
        let rebase = rebase.map(str::to_owned);
        let elsewhere = match &backing {
            Backing::Here(_) => None,
            Backing::Elsewhere(proxy) => Some((Arc::clone(proxy), namespace.clone())),
        };
        self.db
            .write(move |tx| {
                if let Some((proxy, namespace)) = elsewhere {
                    tx.on_failure(move || proxy.removed(&namespace));
                }
                if tx.has::<Snapshot>(&namespace, &snapshot_id(snapshotter, &name))? {
                    return Err(Error::already_exists("snapshot", &name));
                }
                let mut snapshot = get(tx, &namespace, snapshotter, &key)?;
                is_active(&key, &snapshot)?;
                if let Some((number, remote)) = committed {
                    (snapshot.number, snapshot.remote) = (number, remote);
                }
                if let Some(parent) = rebase {
                    if !snapshot.parent.is_empty() && snapshot.parent != parent {
                        return Err(Error::invalid(format_args!(
                            "snapshot {} has a parent already",
                            quote(&key)
                        )));
                    }
                    committed_chain(tx, &namespace, snapshotter, &parent)?;
                    snapshot.parent = parent;
                }
                touch_namespace(tx, &namespace)?;
                release(tx, &namespace, lease.as_deref(), Holdable::Snapshot(snapshotter), &key);
                hold(tx, &namespace, lease.as_deref(), Holdable::Snapshot(snapshotter), &name)?;
                let at = Some(now());
                tx.delete::<Snapshot>(&namespace, &snapshot_id(snapshotter, &key));
                let record = Snapshot {
                    kind: SnapshotKind::Committed as i32,
                    created_at: at,
                    updated_at: at,
                    labels: labels.into_iter().collect(),
                    usage,
                    ..snapshot
                };
                if !record.parent.is_empty() {
                    tx.delete::<Child>(&namespace, &child_id(snapshotter, &record.parent, &key));
                    tx.put(&namespace, &child_id(snapshotter, &record.parent, &name), &Child {});
                }
                tx.put(&namespace, &snapshot_id(snapshotter, &name), &record);
                let event = SnapshotCommit { key, name, snapshotter: snapshotter.to_owned() };
                tx.publish(&namespace, "/snapshot/commit", pack(&event));
                Ok(())
            })
            .await
    }

    /// Commits at the other end, under a name of its own, before it is recorded here.
    async fn commit_elsewhere(
        &self,
        proxy: &Arc<Proxy>,
        scope: Scope<'_>,
        name: &str,
        snapshot: &Snapshot,
        rebase: Option<&str>,
        labels: &HashMap<String, String>,
    ) -> Result<(u64, String), Error> {
        let (namespace, snapshotter) = (scope.namespace, proxy.name);
        let below = match rebase {
            // It lies there already.
            Some(parent) if parent != snapshot.parent => self.db.read(|tx| {
                committed_chain(tx, namespace, snapshotter, parent)?;
                Ok(get(tx, namespace, snapshotter, parent)?.remote)
            })?,
            _ => String::new(),
        };
        let number = self.db.write(|tx| tx.next_number(ELSEWHERE)).await?;
        let remote = Proxy::remote_name(namespace, number, name);
        proxy.commit(namespace, &remote, &snapshot.remote, &below, labels).await?;
        Ok((number, remote))
    }

    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Info, Error> {
        let snapshotter = self.backing(snapshotter)?.name();
        self.db.read(|tx| get(tx, namespace, snapshotter, key)).map(|snapshot| info(key, snapshot))
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
        let backing = self.backing(snapshotter)?.clone();
        let snapshotter = backing.name();
        labels::validate(&wanted.labels)?;
        let (within, collector) = (namespace.to_owned(), self.collector.clone());
        let (info, remote) = self
            .db
            .write(move |tx| {
                let namespace = within;
                let key = wanted.name;
                let mut snapshot = get(tx, &namespace, snapshotter, &key)?;
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
                tx.put(&namespace, &snapshot_id(snapshotter, &key), &snapshot);
                tx.after_commit(move |_| collector.request());
                let remote = snapshot.remote.clone();
                Ok((info(&key, snapshot), remote))
            })
            .await?;
        if let Backing::Elsewhere(proxy) = backing {
            proxy.update(namespace, &remote, &info.labels).await?;
        }
        Ok(info)
    }

    /// All snapshots that match.
    ///
    /// # Errors
    /// A filter does not parse.
    pub fn list(&self, namespace: &str, snapshotter: &str, filters: &[String]) -> Result<Vec<Info>, Error> {
        let snapshotter = self.backing(snapshotter)?.name();
        let filters = Filters::parse(filters)?;
        let prefix = snapshot_id(snapshotter, "");
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
        let backing = self.backing(snapshotter)?;
        let snapshot = self.db.read(|tx| get(tx, namespace, backing.name(), key))?;
        let store = match backing {
            Backing::Here(store) => store,
            Backing::Elsewhere(proxy) => return proxy.usage(namespace, &snapshot.remote).await,
        };
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
        let backing = self.backing(snapshotter)?.clone();
        let (namespace, key, collector) = (namespace.to_owned(), key.to_owned(), self.collector.clone());
        self.db
            .write(move |tx| {
                let snapshot = get(tx, &namespace, backing.name(), &key)?;
                if has_children(tx, &namespace, backing.name(), &key)? {
                    return Err(Error::precondition("cannot remove snapshot with child"));
                }
                forget(tx, &backing, &namespace, &key, &snapshot);
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
        let Some(backing) = self.snapshotters.get(snapshotter) else { return Ok(false) };
        let snapshot = get(tx, namespace, snapshotter, key)?;
        if has_children(tx, namespace, snapshotter, key)? {
            return Ok(false);
        }
        forget(tx, backing, namespace, key, &snapshot);
        Ok(true)
    }

    /// Waits until what was removed is off the disk.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such snapshotter.
    pub async fn cleanup(&self, namespace: &str, snapshotter: &str) -> Result<(), Error> {
        let trash = match self.backing(snapshotter)? {
            Backing::Here(store) => store.trash.clone(),
            Backing::Elsewhere(proxy) => return proxy.cleanup(namespace).await,
        };
        tokio::task::spawn_blocking(move || trash.empty_now())
            .await
            .map_err(|err| Error::internal("remove snapshots", err))
    }
}

/// Inside a change: refuses a key that is taken, and work for a committed snapshot that is there.
fn is_new(
    tx: &impl Reader,
    namespace: &str,
    snapshotter: &str,
    key: &str,
    labels: &HashMap<String, String>,
) -> Result<(), Error> {
    if let Some(target) = labels.get(TARGET)
        && tx.has::<Snapshot>(namespace, &snapshot_id(snapshotter, target))?
    {
        return Err(Error::of(Kind::AlreadyExists, format_args!("target snapshot {}", quote(target))));
    }
    if tx.has::<Snapshot>(namespace, &snapshot_id(snapshotter, key))? {
        return Err(Error::already_exists("snapshot", key));
    }
    Ok(())
}

/// Inside a change: records a snapshot that is new, for its namespace and lease.
fn record(
    tx: &mut WriteTx<'_>,
    namespace: &str,
    lease: Option<&str>,
    snapshotter: &'static str,
    key: String,
    mut made: Snapshot,
) -> Result<(), Error> {
    touch_namespace(tx, namespace)?;
    hold(tx, namespace, lease, Holdable::Snapshot(snapshotter), &key)?;
    let at = Some(now());
    (made.created_at, made.updated_at) = (at, at);
    tx.put(namespace, &snapshot_id(snapshotter, &key), &made);
    if !made.parent.is_empty() {
        tx.put(namespace, &child_id(snapshotter, &made.parent, &key), &Child {});
    }
    if snapshot_kind(&made) == SnapshotKind::Active {
        let event = SnapshotPrepare { key, parent: made.parent, snapshotter: snapshotter.to_owned() };
        tx.publish(namespace, "/snapshot/prepare", pack(&event));
    }
    Ok(())
}

fn is_active(key: &str, snapshot: &Snapshot) -> Result<(), Error> {
    if snapshot_kind(snapshot) == SnapshotKind::Active {
        return Ok(());
    }
    let what = format_args!("failed to commit snapshot {key}: snapshot {} is not active", quote(key));
    Err(Error::precondition(what))
}

fn forget(tx: &mut WriteTx<'_>, backing: &Backing, namespace: &str, key: &str, snapshot: &Snapshot) {
    let snapshotter = backing.name();
    tx.delete::<Snapshot>(namespace, &snapshot_id(snapshotter, key));
    if !snapshot.parent.is_empty() {
        tx.delete::<Child>(namespace, &child_id(snapshotter, &snapshot.parent, key));
    }
    let event = SnapshotRemove { key: key.to_owned(), snapshotter: snapshotter.to_owned() };
    tx.publish(namespace, "/snapshot/remove", pack(&event));
    match backing {
        Backing::Here(store) => {
            let (store, directory) = (Arc::clone(store), store.directory(snapshot.number));
            tx.after_commit(move |_| store.trash.take(&directory));
        }
        Backing::Elsewhere(proxy) => {
            let (proxy, namespace) = (Arc::clone(proxy), namespace.to_owned());
            tx.after_commit(move |_| proxy.removed(&namespace));
        }
    }
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
