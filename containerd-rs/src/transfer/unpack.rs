//! Layers becoming snapshots.
//!
//! Overlay layers do not need the ones below while they are extracted: each goes into a snapshot of its own without a
//! parent, several at once, and gets its parent when it is committed, in chain order. Native snapshots are whole
//! copies, so there each layer waits for the one below.
//!
//! Invariant: a committed snapshot holds a layer whose digests, packed and unpacked, have been checked. A failed or
//! cancelled unpack leaves only uncommitted snapshots, which are removed here or by the collector.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use containerd_api::error::{Error, Kind};
use containerd_api::transfer_types::ImageStore;
use layer::{Applied, ApplyOptions, LayerError, RootDir, Unpacked, Whiteouts};
use oci::{Descriptor, Digest, ImageConfig, PlatformMatcher, mediatype};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::mounts::Place;
use super::progress::{Item, Progress};
use super::scope::Scope;
use super::walk::{self, Found};
use super::{Transfer, TransferConfig};
use crate::content::Writer;
use crate::snapshot;

/// The snapshotter when the client names none.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// The label that says which finished snapshot an extraction is for.
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// What keys of snapshots being filled begin with, and of those only looked at. No client uses these.
const UNPACK_KEY: &str = "transfer-unpack-";
const LOOK_KEY: &str = "transfer-look-";

/// Removes snapshots a killed daemon was filling. For before the first transfer.
pub(super) async fn remove_leftovers(
    db: &crate::meta::Db,
    snapshots: &snapshot::Snapshots,
) -> Result<(), Error> {
    use crate::meta::Reader as _;
    use crate::meta::records::GLOBAL;
    let namespaces = db.read(|tx| tx.list::<containerd_api::namespaces::Namespace>(GLOBAL, ""))?;
    let snapshotters: Vec<String> = snapshots.names().map(str::to_owned).collect();
    for (namespace, _) in namespaces {
        for snapshotter in &snapshotters {
            for info in snapshots.list(&namespace, snapshotter, &[])? {
                if info.name.starts_with(UNPACK_KEY) || info.name.starts_with(LOOK_KEY) {
                    snapshots.remove(&namespace, snapshotter, &info.name).await?;
                }
            }
        }
    }
    Ok(())
}

/// Which layers to unpack, and where.
pub(super) struct Plan {
    snapshotter: String,
    diff_ids: Vec<Digest>,
    chain_ids: Vec<Digest>,
}

impl Plan {
    /// What the client wants unpacked of a manifest; `None` if nothing.
    pub fn new(
        config: &TransferConfig,
        found: &Found,
        image_config: &[u8],
        store: &ImageStore,
    ) -> Result<Option<Self>, Error> {
        if store.unpacks.is_empty() {
            return Ok(None);
        }
        if found.manifest.config.kind() != mediatype::Kind::Config {
            return Ok(None);
        }
        let platform = match &found.descriptor.platform {
            Some(platform) => platform.clone(),
            None => {
                ImageConfig::read(image_config).map_err(|err| Error::invalid(err.to_string()))?.platform()
            }
        };
        let wanted = store.unpacks.iter().find(|unpack| match &unpack.platform {
            Some(wanted) => PlatformMatcher::only(&super::pull::platform(wanted)).matches(&platform),
            None => PlatformMatcher::host().matches(&platform),
        });
        let Some(wanted) = wanted else { return Ok(None) };
        // Only now: records of builds call their configuration an image's, and are for no platform.
        let image = walk::image_config(&found.manifest, image_config)?;
        if !image.os.is_empty() && image.os != "linux" {
            let what = format!(
                "image operating system {:?} cannot be used on this platform: operating system is not supported",
                image.os
            );
            return Err(Error::invalid(what));
        }
        let snapshotter = match wanted.snapshotter.as_str() {
            "" => config.snapshotter.clone().unwrap_or_else(|| DEFAULT_SNAPSHOTTER.into()),
            name => name.to_owned(),
        };
        let diff_ids = image.rootfs.diff_ids;
        let chain_ids = (1..=diff_ids.len()).filter_map(|n| oci::config::chain_id(&diff_ids[..n])).collect();
        Ok(Some(Self { snapshotter, diff_ids, chain_ids }))
    }
}

/// The layers of one image on their way into snapshots.
pub(super) struct Chain<'a> {
    transfer: &'a Arc<Transfer>,
    scope: &'a Scope,
    plan: Plan,
    /// Per layer, whether its snapshot is committed.
    committed: Vec<watch::Sender<bool>>,
    /// Extractions going on in threads, which outlive a future that is dropped.
    busy: TaskTracker,
    /// Snapshots made and not yet committed.
    open: Mutex<Vec<String>>,
}

/// A layer's snapshot while it is filled.
pub(super) struct Incoming {
    key: String,
    diff_id: Digest,
    directory: PathBuf,
    place: Place,
    unpacked: Option<Unpacked>,
    /// Nobody else makes this snapshot meanwhile.
    _turn: OwnedMutexGuard<()>,
    _busy: TaskTrackerToken,
}

impl<'a> Chain<'a> {
    pub fn new(transfer: &'a Arc<Transfer>, scope: &'a Scope, plan: Plan) -> Self {
        let committed = plan.chain_ids.iter().map(|_| watch::channel(false).0).collect();
        Self { transfer, scope, plan, committed, busy: TaskTracker::new(), open: Mutex::new(Vec::new()) }
    }

    /// Whether layers are directories of their own that we lay on each other: our overlay snapshotter.
    fn is_overlay(&self) -> bool {
        self.plan.snapshotter == "overlayfs" && self.scope.snapshots.is_ours("overlayfs")
    }

    fn target(&self) -> snapshot::Scope<'_> {
        snapshot::Scope {
            namespace: &self.scope.namespace,
            lease: self.scope.lease.as_deref(),
            snapshotter: &self.plan.snapshotter,
        }
    }

    /// A snapshot to extract a layer into; `None` if the finished one is there.
    pub async fn begin(&self, at: usize) -> Result<Option<Incoming>, Error> {
        let chain = self.plan.chain_ids[at].as_str();
        let (namespace, snapshotter) = (&self.scope.namespace, &self.plan.snapshotter);
        let turn = self.transfer.unpacking.lock(&format!("{namespace}\0{snapshotter}\0{chain}")).await;
        if self.exists(chain)? {
            self.hold(chain).await?;
            self.mark(at);
            return Ok(None);
        }
        let parent = if self.is_overlay() || at == 0 {
            ""
        } else {
            self.wait_below(at).await?;
            self.plan.chain_ids[at - 1].as_str()
        };
        let mut random = [0u8; 6];
        getrandom::fill(&mut random).map_err(|err| Error::internal("name a snapshot", err))?;
        let key = format!("{UNPACK_KEY}{} {chain}", hex::encode(random));
        let labels = HashMap::from([(SNAPSHOT_REF.to_owned(), chain.to_owned())]);
        let mounts = match self.scope.snapshots.prepare(self.target(), &key, parent, labels).await {
            Ok(mounts) => mounts,
            Err(err) if err.is_already_exists() && self.exists(chain)? => {
                self.mark(at);
                return Ok(None);
            }
            Err(err) => return Err(err),
        };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
        let scratch = self.transfer.scratch.clone();
        // Another process's snapshotter may hand out what has to be mounted, which takes a moment.
        let place = tokio::task::spawn_blocking(move || super::mounts::place(&mounts, &scratch)).await;
        let mut place = place.map_err(|err| Error::internal("unpack", err))??;
        if at > 0 && self.is_overlay() {
            // It gets its parent later.
            place.whiteouts = Whiteouts::Overlay { userxattr: false };
        }
        let directory = place.directory.clone();
        let busy = self.busy.token();
        let diff_id = self.plan.diff_ids[at].clone();
        Ok(Some(Incoming { key, diff_id, directory, place, unpacked: None, _turn: turn, _busy: busy }))
    }

    /// Extracts what has not been extracted on the way, and commits.
    pub async fn end(
        &self,
        at: usize,
        layer: &Descriptor,
        incoming: Option<Incoming>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let diff_id = &self.plan.diff_ids[at];
        if let Some(mut incoming) = incoming {
            let item = Arc::new(progress.quiet_item(layer));
            item.step("extracting", 0).await;
            if incoming.unpacked.is_none() {
                incoming = self.extract(layer, incoming, Arc::clone(&item), diff_id).await?;
            }
            let unpacked =
                incoming.unpacked.take().ok_or_else(|| Error::internal("unpack", "nothing unpacked"))?;
            if unpacked.diff_id != *diff_id {
                let what = "layers from manifest don't match image configuration";
                return Err(Error::invalid(format!(
                    "{what}: layer {} has diff id {}",
                    layer.digest, unpacked.diff_id
                )));
            }
            if at > 0 {
                self.wait_below(at).await?;
                self.fix_implied(at, &incoming.directory, &unpacked.applied).await?;
            }
            let key = incoming.key.clone();
            tokio::task::spawn_blocking(move || incoming.place.close())
                .await
                .map_err(|err| Error::internal("unpack", err))??;
            self.commit(at, &key).await?;
            item.done("extracted").await;
        }
        let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), diff_id.to_string())]);
        self.scope.label(&layer.digest, labels).await
    }

    async fn extract(
        &self,
        layer: &Descriptor,
        mut incoming: Incoming,
        item: Arc<Item>,
        diff_id: &Digest,
    ) -> Result<Incoming, Error> {
        let _permit = self.transfer.unpacks.acquire().await.map_err(|err| Error::internal("unpack", err))?;
        let (file, _) = self.scope.open(&layer.digest)?;
        let worked = tokio::task::spawn_blocking(move || {
            let source = Counted { inner: file, read: 0, item };
            let unpacked = incoming.fill(source);
            (incoming, unpacked)
        });
        let (incoming, unpacked) = worked.await.map_err(|err| Error::internal("unpack", err))?;
        unpacked.map_err(|err| from_layer(err, diff_id))?;
        Ok(incoming)
    }

    /// Gives directories that the layer implied, and its root, the looks they have below.
    async fn fix_implied(&self, at: usize, directory: &Path, applied: &Applied) -> Result<(), Error> {
        let mut implied = applied.implied_dirs.clone();
        if !applied.has_root {
            implied.push(Vec::new());
        }
        if !self.is_overlay() || implied.is_empty() {
            return Ok(());
        }
        let parent = self.plan.chain_ids[at - 1].as_str();
        let mut random = [0u8; 6];
        getrandom::fill(&mut random).map_err(|err| Error::internal("name a snapshot", err))?;
        let key = format!("{LOOK_KEY}{} {parent}", hex::encode(random));
        let mounts = self.scope.snapshots.view(self.target(), &key, parent, HashMap::new()).await?;
        let directory = directory.to_owned();
        let fixed = tokio::task::spawn_blocking(move || {
            let upper = RootDir::open(&directory)?;
            let lowers: Result<Vec<RootDir>, _> =
                super::mounts::lower_dirs(&mounts).iter().map(|dir| RootDir::open(dir)).collect();
            layer::fix_implied_dirs(&upper, &implied, &lowers?)
        })
        .await;
        self.scope.snapshots.remove(&self.scope.namespace, &self.plan.snapshotter, &key).await?;
        let fixed = fixed.map_err(|err| Error::internal("unpack", err))?;
        fixed.map_err(|err| from_layer(err, &self.plan.diff_ids[at]))
    }

    async fn commit(&self, at: usize, key: &str) -> Result<(), Error> {
        let chain = self.plan.chain_ids[at].as_str();
        let labels = HashMap::from([(SNAPSHOT_REF.to_owned(), chain.to_owned())]);
        let parent = match at {
            0 => None,
            _ if self.is_overlay() => Some(self.plan.chain_ids[at - 1].as_str()),
            _ => None,
        };
        let result = self.scope.snapshots.commit(self.target(), chain, key, labels, parent, None).await;
        match result {
            Ok(()) => {}
            // Made by a client of the snapshots service meanwhile.
            Err(err) if err.is_already_exists() => {
                self.scope.snapshots.remove(&self.scope.namespace, &self.plan.snapshotter, key).await?;
                self.hold(chain).await?;
            }
            Err(err) => return Err(err),
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|open| open != key);
        self.mark(at);
        Ok(())
    }

    /// Ties the finished snapshots to the image's configuration.
    pub async fn finish(&self, config: &Descriptor) -> Result<(), Error> {
        let Some(top) = self.plan.chain_ids.last() else { return Ok(()) };
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.plan.snapshotter);
        self.scope.label(&config.digest, HashMap::from([(key, top.to_string())])).await
    }

    /// Waits for extractions that still run and removes what they filled.
    pub async fn abandon(&self) {
        self.busy.close();
        // They end soon: their sources have ended.
        if tokio::time::timeout(std::time::Duration::from_secs(30), self.busy.wait()).await.is_err() {
            tracing::warn!("an extraction does not end; its snapshot is left to the collector");
            return;
        }
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for key in open {
            if let Err(err) =
                self.scope.snapshots.remove(&self.scope.namespace, &self.plan.snapshotter, &key).await
            {
                tracing::debug!(%err, key, "an unfinished snapshot is left to the collector");
            }
        }
    }

    fn exists(&self, chain: &str) -> Result<bool, Error> {
        match self.scope.snapshots.stat(&self.scope.namespace, &self.plan.snapshotter, chain) {
            Ok(_) => Ok(true),
            Err(err) if err.is_not_found() => Ok(false),
            Err(err) => Err(err),
        }
    }

    async fn hold(&self, chain: &str) -> Result<(), Error> {
        use crate::meta::leases::{Holdable, hold};
        let (namespace, lease) = (self.scope.namespace.clone(), self.scope.lease.clone());
        let (snapshotter, chain) = (self.plan.snapshotter.clone(), chain.to_owned());
        self.scope
            .db
            .write(move |tx| {
                tx.relaxed();
                hold(tx, &namespace, lease.as_deref(), Holdable::Snapshot(&snapshotter), &chain)
            })
            .await
    }

    fn mark(&self, at: usize) {
        self.committed[at].send_replace(true);
    }

    /// Waits for the snapshot below. It comes, or the whole unpack is dropped.
    async fn wait_below(&self, at: usize) -> Result<(), Error> {
        let mut below = self.committed[at - 1].subscribe();
        let done = below.wait_for(|done| *done).await;
        done.map(drop).map_err(|err| Error::internal("unpack", err))
    }
}

impl Incoming {
    /// Extracts a layer. Blocks.
    fn fill(&mut self, source: impl Read + Send) -> Result<(), LayerError> {
        let root = RootDir::open(&self.directory)?;
        let unpacked = layer::unpack(&root, source, &ApplyOptions::layer(self.place.whiteouts))?;
        if !self.place.lowers.is_empty() {
            // It lies on its parents already.
            let lowers: Result<Vec<RootDir>, _> =
                self.place.lowers.iter().map(|dir| RootDir::open(dir)).collect();
            layer::fix_implied_dirs(&root, &unpacked.applied.implied_dirs, &lowers?)?;
        }
        self.unpacked = Some(unpacked);
        Ok(())
    }
}

/// Writes what comes from the network into the store, and into a snapshot on the way.
///
/// Gives back the writer, not committed, and how extraction went. An extraction that fails does not stop the
/// download: whether the layer or the transport is to blame is known only from the digest.
pub(super) async fn store(
    writer: Writer,
    pieces: mpsc::Receiver<Bytes>,
    target: Option<Incoming>,
) -> Result<(Writer, Option<Incoming>, Result<(), Error>), Error> {
    let work = move || {
        let mut tee = Tee { writer, pieces, piece: Bytes::new(), failed: None };
        let mut extracted = Ok(());
        let target = target.map(|mut target| {
            if let Err(err) = target.fill(&mut tee) {
                extracted = Err(from_layer(err, &target.diff_id));
            }
            target
        });
        while tee.failed.is_none() && tee.next_piece() {}
        match tee.failed {
            Some(err) => Err(err),
            None => Ok((tee.writer, target, extracted)),
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(|err| Error::internal("store content", err))?
}

/// Everything read from it has been written to the store.
struct Tee {
    writer: Writer,
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    failed: Option<Error>,
}

impl Tee {
    /// Gets and stores the next piece. False at the end, or if storing failed.
    fn next_piece(&mut self) -> bool {
        let Some(piece) = self.pieces.blocking_recv() else { return false };
        if let Err(err) = self.writer.append(&piece) {
            self.failed = Some(err);
            return false;
        }
        self.piece = piece;
        true
    }
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            if !self.next_piece() {
                return match &self.failed {
                    Some(err) => Err(std::io::Error::other(err.to_string())),
                    None => Ok(0),
                };
            }
        }
        let take = buffer.len().min(self.piece.len());
        buffer[..take].copy_from_slice(&self.piece.split_to(take));
        Ok(take)
    }
}

/// Counts what is read, for the client to see.
struct Counted<R> {
    inner: R,
    read: u64,
    item: Arc<Item>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.read += got as u64;
        self.item.figure("extracting", self.read);
        Ok(got)
    }
}

/// The class of a layer's error.
pub(super) fn layer_kind(err: &LayerError) -> Kind {
    match err.kind() {
        layer::Kind::Invalid => Kind::InvalidArgument,
        layer::Kind::Full => Kind::ResourceExhausted,
        layer::Kind::System => Kind::Internal,
    }
}

/// A layer's error as the API has it.
pub(super) fn from_layer(err: LayerError, diff_id: &Digest) -> Error {
    Error::new(layer_kind(&err), format!("failed to extract layer {diff_id}: {err}"))
}
