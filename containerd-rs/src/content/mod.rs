//! Blobs by digest, and the resumable writes that become blobs.
//!
//! A blob is one file under `blobs/<algorithm>/<hex>`, shared by all namespaces that have a record of it. A namespace sees the blobs it has
//! a record of; writing one that another namespace has costs no bytes.
//!
//! Invariant: a file under `blobs/` is whole and has the digest it is named after. It is put there by a rename, inside the metadata change
//! that records it, and taken away after the change that forgets the last record of it. A kill between the two leaves a file without record,
//! which the next start removes; never a record without file. Another process can have the bytes instead, see [`remote`].

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_api::any::pack;
use containerd_api::content::{Info, Status};
use containerd_api::error::{Error, Kind};
use containerd_api::event::ContentDelete;
use containerd_api::namespaces::Namespace as NamespaceRecord;
use oci::digest::Digest;

mod ingest;
mod remote;
mod writer;

pub use writer::Writer;

use crate::events::now;
use crate::filters::Filters;
use crate::meta::gcsched::Collector;
use crate::meta::labels::{self, MaskPath};
use crate::meta::records::{Blob, Doomed, GLOBAL};
use crate::meta::{Db, Reader, WriteTx};
use crate::trash::Trash;
use ingest::Ingests;
use remote::Remote;

/// The content store.
pub struct Store {
    blobs: PathBuf,
    db: Arc<Db>,
    collector: Collector,
    trash: Trash,
    ingests: Ingests,
    /// Who has the bytes of what is written from now on, when it is not us.
    remote: Option<Arc<Remote>>,
}

impl Store {
    /// Opens the store at `root` and removes what a killed daemon left half done. Bytes are kept by the process at `remote`, if there is one.
    ///
    /// # Errors
    /// Its directories cannot be made or read.
    pub fn open(
        root: &Path,
        db: Arc<Db>,
        collector: Collector,
        remote: Option<&Path>,
    ) -> Result<Arc<Self>, Error> {
        let io = |err: std::io::Error| Error::internal(format_args!("content store {}", root.display()), err);
        let blobs = root.join("blobs");
        std::fs::create_dir_all(blobs.join("sha256")).map_err(io)?;
        crate::daemon::private_directory(root, 0o711).map_err(io)?;
        let trash = Trash::open(root.join("trash")).map_err(io)?;
        let ingests = Ingests::open(root.join("ingest")).map_err(io)?;
        let remote = remote.map(|address| Remote::open(address, root, Arc::clone(&db)));
        let store = Self { blobs, db, collector, trash, ingests, remote };
        store.reconcile().map_err(|err| err.context("content store"))?;
        Ok(Arc::new(store))
    }

    /// Where the blob's file is, whether it exists or not.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// # Errors
    /// `NotFound` when the namespace has no such blob.
    pub fn info(&self, namespace: &str, digest: &Digest) -> Result<Info, Error> {
        self.db.get::<Info>(namespace, digest.as_str())?.ok_or_else(|| not_found(digest))
    }

    /// Whether the namespace has the blob.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has(&self, namespace: &str, digest: &Digest) -> Result<bool, Error> {
        self.db.read(|tx| tx.has::<Info>(namespace, digest.as_str()))
    }

    /// The blob's file and size.
    ///
    /// # Errors
    /// `NotFound` when the namespace has no such blob.
    pub fn open_blob(&self, namespace: &str, digest: &Digest) -> Result<(File, u64), Error> {
        let info = self.info(namespace, digest)?;
        let size = u64::try_from(info.size).unwrap_or(0);
        match File::open(self.path(digest)) {
            Ok(file) => Ok((file, size)),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok((self.fetch(digest)?, size)),
            Err(err) => Err(Error::internal(format_args!("open content {digest}"), err)),
        }
    }

    /// A blob whose bytes are not here: from the process that has them.
    fn fetch(&self, digest: &Digest) -> Result<File, Error> {
        let home = self.db.get::<Blob>(GLOBAL, digest.as_str())?.map(|blob| blob.home).unwrap_or_default();
        match &self.remote {
            _ if home.is_empty() => Err(not_found(digest)),
            None => {
                let what = format!("content {digest} is in a content store that is not configured any more");
                Err(Error::new(Kind::Unavailable, what))
            }
            Some(remote) => {
                // The calling thread waits, and the runtime goes on without it.
                let fetch = || tokio::runtime::Handle::current().block_on(remote.fetch(&home, digest));
                tokio::task::block_in_place(fetch)
            }
        }
    }

    /// A blob small enough to be held in memory: a manifest or a configuration.
    ///
    /// # Errors
    /// `NotFound`, or `ResourceExhausted` when it is larger than `limit_bytes`.
    pub fn read_small(&self, namespace: &str, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>, Error> {
        use std::io::Read as _;
        let size = u64::try_from(self.info(namespace, digest)?.size).unwrap_or(0);
        if size > limit_bytes {
            let what = format!("content {digest} has {size} bytes, more than {limit_bytes}");
            return Err(Error::new(Kind::ResourceExhausted, what));
        }
        let (file, size) = self.open_blob(namespace, digest)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(limit_bytes)
            .read_to_end(&mut bytes)
            .map_err(|err| Error::internal(format_args!("read content {digest}"), err))?;
        Ok(bytes)
    }

    /// All blobs of the namespace that match.
    ///
    /// # Errors
    /// A filter does not parse.
    pub fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<Info>, Error> {
        let filters = Filters::parse(filters)?;
        self.db.read(|tx| {
            let mut found = Vec::new();
            tx.each::<Info>(namespace, "", &mut |_, info| {
                if filters.matches(&info) {
                    found.push(info);
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }

    /// Changes a blob's labels: those the paths name, or all of them without paths.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` for a field that cannot be changed.
    pub async fn update(&self, namespace: &str, wanted: Info, paths: Vec<String>) -> Result<Info, Error> {
        labels::validate(&wanted.labels)?;
        let digest = parse(&wanted.digest)?;
        let (namespace, collector) = (namespace.to_owned(), self.collector.clone());
        self.db
            .write(move |tx| {
                let mut info =
                    tx.get::<Info>(&namespace, digest.as_str())?.ok_or_else(|| not_found(&digest))?;
                if paths.is_empty() {
                    labels::replace(&mut info.labels, wanted.labels);
                } else {
                    for path in &paths {
                        match labels::mask_path(path, "labels") {
                            MaskPath::All => labels::replace(&mut info.labels, wanted.labels.clone()),
                            MaskPath::One(key) => labels::update_one(&mut info.labels, &wanted.labels, key),
                            MaskPath::Other(path) => {
                                return Err(labels::cannot_update(path, "content info", digest.as_str()));
                            }
                        }
                    }
                }
                info.updated_at = Some(now());
                tx.put(&namespace, digest.as_str(), &info);
                // A label less may be a reference less.
                tx.after_commit(move |_| collector.request());
                Ok(info)
            })
            .await
    }

    /// Makes the namespace forget the blob. The file goes with the last namespace that had it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(self: &Arc<Self>, namespace: &str, digest: &Digest) -> Result<(), Error> {
        let (namespace, digest, store) = (namespace.to_owned(), digest.clone(), Arc::clone(self));
        self.db
            .write(move |tx| {
                if !tx.has::<Info>(&namespace, digest.as_str())? {
                    return Err(not_found(&digest));
                }
                store.forget(tx, &namespace, &digest)?;
                let collector = store.collector.clone();
                tx.after_commit(move |_| collector.request());
                Ok(())
            })
            .await
    }

    /// Inside a change: takes the blob from a namespace, and its file when nobody else has it.
    pub(crate) fn forget(
        self: &Arc<Self>,
        tx: &mut WriteTx<'_>,
        namespace: &str,
        digest: &Digest,
    ) -> Result<(), Error> {
        tx.delete::<Info>(namespace, digest.as_str());
        tx.publish(namespace, "/content/delete", pack(&ContentDelete { digest: digest.as_str().to_owned() }));
        for (other, _) in tx.list::<NamespaceRecord>(GLOBAL, "")? {
            if tx.has::<Info>(&other, digest.as_str())? {
                return Ok(());
            }
        }
        let home = tx.get::<Blob>(GLOBAL, digest.as_str())?.map(|blob| blob.home).unwrap_or_default();
        tx.delete::<Blob>(GLOBAL, digest.as_str());
        if !home.is_empty() {
            tx.put(GLOBAL, digest.as_str(), &Doomed { home });
            let store = Arc::clone(self);
            tx.after_commit(move |_| store.remote.iter().for_each(|remote| remote.removed()));
            return Ok(());
        }
        let (store, digest) = (Arc::clone(self), digest.clone());
        tx.after_commit(move |db| {
            // A later change of the same commit may have written it anew.
            if matches!(db.get::<Blob>(GLOBAL, digest.as_str()), Ok(None)) {
                store.trash.take(&store.path(&digest));
            }
        });
        Ok(())
    }

    /// How far the write under `reference` is.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn status(&self, namespace: &str, reference: &str) -> Result<Status, Error> {
        let what = || format!("could not get status for ref {}", containerd_api::error::quote(reference));
        self.ingests.status(namespace, reference).map_err(|err| err.context(what()))
    }

    /// All unfinished writes of the namespace that match.
    ///
    /// # Errors
    /// A filter does not parse.
    pub fn statuses(&self, namespace: &str, filters: &[String]) -> Result<Vec<Status>, Error> {
        let filters = Filters::parse(filters)?;
        Ok(self.ingests.list(namespace).into_iter().filter(|status| filters.matches(status)).collect())
    }

    /// Throws an unfinished write away.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Unavailable` while somebody writes.
    pub fn abort(&self, namespace: &str, reference: &str) -> Result<(), Error> {
        let directory = self.ingests.remove(namespace, reference)?;
        self.trash.take(&directory);
        Ok(())
    }

    /// Unfinished writes that `keep` does not want and that are past their time.
    pub(crate) fn expire_ingests(&self, namespace: &str, keep: &dyn Fn(&str) -> bool) -> usize {
        let expired = self.ingests.expired(namespace, keep);
        expired.iter().filter(|reference| self.abort(namespace, reference).is_ok()).count()
    }

    /// Whether the namespace has unfinished writes.
    pub fn has_ingests(&self, namespace: &str) -> bool {
        !self.ingests.list(namespace).is_empty()
    }

    /// Makes files and records agree after a kill or a crash of the machine.
    fn reconcile(&self) -> Result<(), Error> {
        let io = |err: std::io::Error| Error::internal("read the blobs", err);
        let mut files = BTreeSet::new();
        for algorithm in std::fs::read_dir(&self.blobs).map_err(io)? {
            let algorithm = algorithm.map_err(io)?;
            let Ok(entries) = std::fs::read_dir(algorithm.path()) else { continue };
            for entry in entries {
                let entry = entry.map_err(io)?;
                let name = [algorithm.file_name(), entry.file_name()]
                    .map(|part| part.to_string_lossy().into_owned());
                files.insert(format!("{}:{}", name[0], name[1]));
            }
        }
        let mut lost = Vec::new();
        self.db.read(|tx| {
            tx.each::<Blob>(GLOBAL, "", &mut |digest, blob| {
                if !files.remove(digest) && blob.home.is_empty() {
                    lost.push(digest.to_owned());
                }
                Ok(true)
            })
        })?;
        for unknown in files {
            let (algorithm, hex) = unknown.split_once(':').unwrap_or_default();
            self.trash.take(&self.blobs.join(algorithm).join(hex));
        }
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(count = lost.len(), "blobs are recorded whose files are gone, they are forgotten");
        let db = Arc::clone(&self.db);
        // Not on this thread: it may belong to a runtime.
        let forgotten = std::thread::scope(|scope| {
            let forget = scope.spawn(move || {
                db.write_blocking(move |tx| {
                    let namespaces = tx.list::<NamespaceRecord>(GLOBAL, "")?;
                    for digest in &lost {
                        tx.delete::<Blob>(GLOBAL, digest);
                        namespaces.iter().for_each(|(namespace, _)| tx.delete::<Info>(namespace, digest));
                    }
                    Ok(())
                })
            });
            forget.join()
        });
        forgotten.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "forgetting lost blobs panicked")))
    }
}

/// `content <digest>: not found`.
pub(crate) fn not_found(digest: &Digest) -> Error {
    Error::of(Kind::NotFound, format_args!("content digest {digest}"))
}

/// A digest from a request.
///
/// # Errors
/// `InvalidArgument`.
pub fn parse(digest: &str) -> Result<Digest, Error> {
    Digest::parse(digest).map_err(|err| Error::new(Kind::InvalidArgument, format!("{digest}: {err}")))
}

#[cfg(test)]
mod tests;
