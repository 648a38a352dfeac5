//! Snapshotters that are other processes: `proxy_plugins` of type `snapshot`.
//!
//! Which snapshots there are, whose they are and what refers to them is recorded here as for our own snapshotters, so that namespaces, leases
//! and the garbage collector mean the same. The other process makes, commits and measures directories, under the names that containerd gives
//! them too: `<namespace>/<number>/<key>`.
//!
//! Invariant: a snapshot is made at the other end before it is recorded and removed there after its record is gone. What is there without a
//! record, because of a removal or of a kill between the two, goes when the namespace is next swept: after removals, at the start, and
//! when a client asks for a clean-up. While the other end does not answer, namespaces wait for their sweep.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_api::client::connect_lazy;
use containerd_api::error::{Error, Kind};
use containerd_api::snapshots::snapshots_client::SnapshotsClient;
use containerd_api::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as SnapshotKind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use containerd_api::types::Mount;
use containerd_api::{MAX_MESSAGE_BYTES, ns};
use prost_types::FieldMask;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tonic::transport::Channel;

use super::TARGET;
use crate::meta::records::{GLOBAL, Snapshot, Usage, snapshot_id};
use crate::meta::{Db, Reader};

/// Labels the other process is told of, beside [`TARGET`]; the rest is our business.
const INHERITED: &str = "containerd.io/snapshot/";
/// A whole containerd at the other end must not collect what nobody there refers to.
const ROOT: &str = "containerd.io/gc.root";
/// How long one call of a sweep may take. Other calls take as long as the client who made us make them waits.
const SWEEP_DEADLINE: Duration = Duration::from_secs(30);
/// How long until a sweep that failed is tried again.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// The other end of one proxy snapshotter.
pub struct Proxy {
    pub name: &'static str,
    client: SnapshotsClient<Channel>,
    db: Arc<Db>,
    /// Held for reading from before something is made until it is recorded, and for writing while what has no record is removed.
    making: RwLock<()>,
    /// Namespaces to sweep.
    dirty: Mutex<BTreeSet<String>>,
    wanted: Notify,
}

impl Proxy {
    /// The snapshotter `name` of whoever listens, now or later, at `address`. Needs a runtime.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open(name: &str, address: &Path, db: Arc<Db>) -> Result<Arc<Self>, Error> {
        let client = SnapshotsClient::new(connect_lazy(address, Duration::ZERO))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let namespaces = db.read(|tx| tx.list::<containerd_api::namespaces::Namespace>(GLOBAL, ""))?;
        let proxy = Arc::new(Self {
            // Names come from the configuration and are known as long as the process lives, as those of our own are.
            name: name.to_owned().leak(),
            client,
            db,
            making: RwLock::default(),
            dirty: Mutex::new(namespaces.into_iter().map(|(namespace, _)| namespace).collect()),
            wanted: Notify::new(),
        });
        proxy.wanted.notify_one();
        let sweeping = Arc::downgrade(&proxy);
        tokio::spawn(async move {
            while let Some(proxy) = sweeping.upgrade() {
                let wanted = tokio::time::timeout(SWEEP_AGAIN, proxy.wanted.notified()).await;
                // One slow request is not to hold up all others: what is in the way now is swept the next time.
                let Ok(alone) = proxy.making.try_write() else { continue };
                let swept = proxy.sweep(&alone).await;
                drop(alone);
                if let Err(err) = swept {
                    // Said when somebody has removed something, not every minute that it lasts.
                    if wanted.is_ok() {
                        tracing::warn!(snapshotter = proxy.name, %err, "removed snapshots wait for the snapshotter");
                    }
                }
            }
        });
        Ok(proxy)
    }

    /// What a snapshot is called at the other end.
    pub fn remote_name(namespace: &str, number: u64, key: &str) -> String {
        format!("{namespace}/{number}/{key}")
    }

    /// Keeps sweeps away while something is made. Should it never be recorded, because its client leaves, a later sweep finds it.
    pub async fn making(&self, namespace: &str) -> RwLockReadGuard<'_, ()> {
        let making = self.making.read().await;
        self.dirty().insert(namespace.to_owned());
        making
    }

    /// Something of the namespace has lost its record. Never blocks.
    pub fn removed(&self, namespace: &str) {
        self.dirty().insert(namespace.to_owned());
        self.wanted.notify_one();
    }

    /// Makes an active snapshot or a view.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn create(
        &self,
        namespace: &str,
        kind: SnapshotKind,
        name: &str,
        parent: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        let (snapshotter, key, parent) = (self.name.to_owned(), name.to_owned(), parent.to_owned());
        let labels = inherited(labels);
        let mut client = self.client.clone();
        if kind == SnapshotKind::View {
            let message = ViewSnapshotRequest { snapshotter, key, parent, labels };
            Ok(client
                .view(ns::request(message, namespace, None))
                .await
                .map_err(|err| self.unreachable(err))?
                .into_inner()
                .mounts)
        } else {
            let message = PrepareSnapshotRequest { snapshotter, key, parent, labels };
            Ok(client
                .prepare(ns::request(message, namespace, None))
                .await
                .map_err(|err| self.unreachable(err))?
                .into_inner()
                .mounts)
        }
    }

    /// The committed snapshot that was made for `target` on `parent` by the other end itself, if it did so.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn made_for(&self, namespace: &str, target: &str, parent: &str) -> Result<Option<Info>, Error> {
        let found = self.list(namespace).await?;
        Ok(found.into_iter().find(|info| {
            info.kind() == SnapshotKind::Committed
                && info.parent == parent
                && info.labels.get(TARGET).is_some_and(|made| made == target)
        }))
    }

    /// How an active snapshot or a view is mounted.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn mounts(&self, namespace: &str, name: &str) -> Result<Vec<Mount>, Error> {
        let message = MountsRequest { snapshotter: self.name.to_owned(), key: name.to_owned() };
        let answer = self
            .client
            .clone()
            .mounts(ns::request(message, namespace, None))
            .await
            .map_err(|err| self.unreachable(err))?;
        Ok(answer.into_inner().mounts)
    }

    /// Commits `key` as `name`, onto `parent` if that is not empty.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn commit(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        parent: &str,
        labels: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let message = CommitSnapshotRequest {
            snapshotter: self.name.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: inherited(labels),
            parent: parent.to_owned(),
        };
        self.client
            .clone()
            .commit(ns::request(message, namespace, None))
            .await
            .map_err(|err| self.unreachable(err))?;
        Ok(())
    }

    /// Passes on the labels that concern the other end.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn update(
        &self,
        namespace: &str,
        name: &str,
        labels: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let info = Info { name: name.to_owned(), labels: inherited(labels), ..Info::default() };
        let message = UpdateSnapshotRequest {
            snapshotter: self.name.to_owned(),
            info: Some(info),
            update_mask: Some(FieldMask { paths: vec!["labels".to_owned()] }),
        };
        self.client
            .clone()
            .update(ns::request(message, namespace, None))
            .await
            .map_err(|err| self.unreachable(err))?;
        Ok(())
    }

    /// What a snapshot takes without its parents.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn usage(&self, namespace: &str, name: &str) -> Result<Usage, Error> {
        let message = UsageRequest { snapshotter: self.name.to_owned(), key: name.to_owned() };
        let usage = self
            .client
            .clone()
            .usage(ns::request(message, namespace, None))
            .await
            .map_err(|err| self.unreachable(err))?
            .into_inner();
        Ok(Usage { size_bytes: usage.size, inodes: usage.inodes })
    }

    /// Sweeps, and has the other end clean up after itself if it can.
    ///
    /// # Errors
    /// What the other end says.
    pub async fn cleanup(&self, namespace: &str) -> Result<(), Error> {
        self.dirty().insert(namespace.to_owned());
        self.sweep(&self.making.write().await).await?;
        let message = CleanupRequest { snapshotter: self.name.to_owned() };
        match self.client.clone().cleanup(ns::request(message, namespace, None)).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
            answer => answer.map(drop).map_err(|err| self.unreachable(err)),
        }
    }

    async fn list(&self, namespace: &str) -> Result<Vec<Info>, Error> {
        let message = ListSnapshotsRequest { snapshotter: self.name.to_owned(), filters: Vec::new() };
        let mut pages = self
            .client
            .clone()
            .list(ns::request(message, namespace, None))
            .await
            .map_err(|err| self.unreachable(err))?
            .into_inner();
        let mut found = Vec::new();
        while let Some(page) = pages.message().await? {
            found.extend(page.info);
        }
        Ok(found)
    }

    /// Removes what has no record, in the namespaces where that may be. For who keeps others from making anything meanwhile.
    async fn sweep(&self, _alone: &RwLockWriteGuard<'_, ()>) -> Result<(), Error> {
        loop {
            let Some(namespace) = self.dirty().pop_first() else { return Ok(()) };
            if let Err(err) = self.sweep_one(&namespace).await {
                self.dirty().insert(namespace);
                return Err(err);
            }
        }
    }

    async fn sweep_one(&self, namespace: &str) -> Result<(), Error> {
        let late = |_| Error::new(Kind::DeadlineExceeded, "the snapshotter does not answer");
        let there = tokio::time::timeout(SWEEP_DEADLINE, self.list(namespace)).await.map_err(late)??;
        let mut known = HashSet::new();
        self.db.read(|tx| {
            tx.each::<Snapshot>(namespace, &snapshot_id(self.name, ""), &mut |_, snapshot| {
                known.insert(snapshot.remote);
                Ok(true)
            })
        })?;
        let mut left: Vec<String> = there
            .into_iter()
            .map(|info| info.name)
            .filter(|name| is_ours(name, namespace) && !known.contains(name))
            .collect();
        // Children go before their parents; each round frees the next.
        loop {
            let before = left.len();
            let mut refused = Vec::new();
            let mut why = None;
            for name in left {
                let message = RemoveSnapshotRequest { snapshotter: self.name.to_owned(), key: name.clone() };
                let mut client = self.client.clone();
                let removal = client.remove(ns::request(message, namespace, None));
                match tokio::time::timeout(SWEEP_DEADLINE, removal).await.map_err(late)?.map_err(Error::from)
                {
                    Err(err) if !err.is_not_found() => {
                        refused.push(name);
                        why = Some(err);
                    }
                    _ => {}
                }
            }
            left = refused;
            match why {
                None => return Ok(()),
                Some(err) if left.len() == before => return Err(err),
                Some(_) => {}
            }
        }
    }

    /// What the other end said, or that nobody is there to say anything.
    fn unreachable(&self, status: tonic::Status) -> Error {
        match Error::from(status) {
            err if err.kind() == Kind::Unavailable => {
                let what = format_args!("snapshotter {} cannot be reached: {}", self.name, err.message());
                Error::of(Kind::Unavailable, what)
            }
            err => err,
        }
    }

    fn dirty(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a name at the other end is one of those we give.
fn is_ours(name: &str, namespace: &str) -> bool {
    let number = name.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
    number.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The labels that the other end is told of.
fn inherited(labels: &HashMap<String, String>) -> HashMap<String, String> {
    let mut told: HashMap<_, _> = labels
        .iter()
        .filter(|(label, _)| *label == TARGET || label.starts_with(INHERITED))
        .map(|(label, value)| (label.clone(), value.clone()))
        .collect();
    told.insert(ROOT.to_owned(), "containerd-rs".to_owned());
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_gave_are_ours() {
        assert!(is_ours(&Proxy::remote_name("n", 12, "a/b"), "n"));
        for other in ["n", "n/", "n/12", "n//a", "n/x/a", "nn/12/a", "12/a", "sha256:ab"] {
            assert!(!is_ours(other, "n"), "{other}");
        }
    }
}
