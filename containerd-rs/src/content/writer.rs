//! A write that becomes a blob.
//!
//! ```text
//! Store::writer ──► append, append, … ──► commit ──► blob
//!       ▲              │ drop
//!       └──────────────┘ the same reference goes on where it stopped
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_api::any::pack;
use containerd_api::content::Info;
use containerd_api::error::{Error, Kind};
use containerd_api::event::ContentCreate;
use oci::digest::{Algorithm, Digest, Hasher};
use prost_types::Timestamp;
use tokio::sync::OwnedMutexGuard;

use super::Store;
use super::ingest::Lock;
use crate::events::now;
use crate::meta::leases::{Holdable, hold, release, touch_namespace};
use crate::meta::records::{Blob, Doomed, GLOBAL};
use crate::meta::{Reader, labels};

/// One writer has the right to write under its reference until it is dropped.
pub struct Writer {
    store: Arc<Store>,
    namespace: String,
    lease: Option<String>,
    lock: Lock,
    expected: Option<Digest>,
    body: Body,
    updated_at: SystemTime,
}

/// Where the bytes are.
enum Body {
    /// Being written.
    File { file: File, offset: u64, hasher: Option<Hasher> },
    /// Another namespace has them all.
    Shared { digest: Digest, size: u64 },
}

/// Whether the bytes were given to another process.
enum Handed {
    /// We keep them.
    No,
    /// It has them in this namespace, for us to record.
    Over(String),
    /// They were recorded before, by others.
    Known,
}

impl Store {
    /// Begins or resumes the write under `reference`.
    ///
    /// `expected` and `total` (0: unknown) are what the client announces. What is written belongs to `lease` at once.
    ///
    /// # Errors
    /// `AlreadyExists` when the namespace has the expected blob, `Unavailable` while somebody else writes, `NotFound` without that lease.
    pub async fn writer(
        self: &Arc<Self>,
        namespace: &str,
        lease: Option<&str>,
        reference: &str,
        total: i64,
        expected: Option<Digest>,
    ) -> Result<Writer, Error> {
        if reference.is_empty() {
            return Err(Error::invalid("ref must not be empty"));
        }
        if let Some(digest) = &expected
            && self.has(namespace, digest)?
        {
            return Err(Error::of(Kind::AlreadyExists, format_args!("content {digest}")));
        }
        let lock = self.ingests.lock(namespace, reference, total, expected.as_ref())?;
        let (owner, held, name) = (namespace.to_owned(), lease.map(str::to_owned), reference.to_owned());
        self.db
            .write(move |tx| {
                tx.relaxed();
                touch_namespace(tx, &owner)?;
                hold(tx, &owner, held.as_deref(), Holdable::Ingest, &name)
            })
            .await?;
        let elsewhere = match &expected {
            Some(digest) => {
                self.db.get::<Blob>(GLOBAL, digest.as_str())?.map(|blob| (digest.clone(), blob.size_bytes))
            }
            None => None,
        };
        let body = match elsewhere {
            Some((digest, size)) if total == 0 || u64::try_from(total) == Ok(size) => {
                Body::Shared { digest, size }
            }
            _ => {
                let path = lock.data();
                let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
                tokio::task::spawn_blocking(move || resume(&path, algorithm))
                    .await
                    .map_err(|err| Error::internal("open the write", err))?
                    .map_err(|err| Error::internal(format_args!("open write {reference}"), err))?
            }
        };
        Ok(Writer {
            store: Arc::clone(self),
            namespace: namespace.to_owned(),
            lease: lease.map(str::to_owned),
            lock,
            expected,
            body,
            updated_at: SystemTime::now(),
        })
    }
}

/// Opens the data and hashes what is there already.
fn resume(path: &std::path::Path, algorithm: Algorithm) -> std::io::Result<Body> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut hasher = Hasher::new(algorithm);
    let mut offset = 0;
    if file.metadata()?.len() > 0 {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    offset += n as u64;
                }
            }
        }
    }
    Ok(Body::File { file, offset, hasher: Some(hasher) })
}

impl Writer {
    /// Bytes written so far; all of them when another namespace has the blob.
    pub fn offset(&self) -> u64 {
        match &self.body {
            Body::File { offset, .. } => *offset,
            Body::Shared { size, .. } => *size,
        }
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Option<Digest> {
        match &self.body {
            Body::File { hasher, .. } => hasher.clone().map(Hasher::finish),
            Body::Shared { digest, .. } => Some(digest.clone()),
        }
    }

    /// Whether the bytes are here already, because another namespace has them: nothing need be written before the commit.
    pub fn is_shared(&self) -> bool {
        matches!(self.body, Body::Shared { .. })
    }

    /// The size that was announced; 0 if none was.
    pub fn total(&self) -> i64 {
        self.lock.about.total
    }

    pub fn started_at(&self) -> Option<Timestamp> {
        self.lock.about.started_at
    }

    pub fn updated_at(&self) -> Timestamp {
        Timestamp::from(self.updated_at)
    }

    /// Appends `bytes`. Blocks for as long as hashing and copying them to the page cache takes.
    ///
    /// # Errors
    /// The disk is full (`ResourceExhausted`) or faulty; what the file holds afterwards counts as not written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.own()?;
        let Body::File { file, offset, hasher } = &mut self.body else { return Err(shared()) };
        let Some(hasher) = hasher else {
            return Err(Error::new(Kind::FailedPrecondition, "the write's bytes were put there by offset"));
        };
        file.write_all(bytes).map_err(|err| {
            let _ = file.set_len(*offset);
            let _ = file.seek(SeekFrom::Start(*offset));
            if err.kind() == std::io::ErrorKind::StorageFull {
                return Error::new(Kind::ResourceExhausted, "write content: no space left on device");
            }
            Error::internal("write content", err)
        })?;
        hasher.update(bytes);
        *offset += bytes.len() as u64;
        self.updated_at = SystemTime::now();
        Ok(())
    }

    /// Begins again with nothing.
    ///
    /// # Errors
    /// The file cannot be changed.
    pub fn restart(&mut self) -> Result<(), Error> {
        let algorithm = self.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let path = self.lock.data();
        let open = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            Ok(Body::File { file, offset: 0, hasher: Some(Hasher::new(algorithm)) })
        };
        self.body = open().map_err(|err: std::io::Error| Error::internal("restart the write", err))?;
        Ok(())
    }

    /// The file itself, for writing at offsets from several threads. Whoever does vouches for the digest: see
    /// [`Writer::commit_verified`]. [`Writer::append`] fails from now on.
    ///
    /// # Errors
    /// `FailedPrecondition` when another namespace has the bytes.
    pub fn file(&mut self) -> Result<File, Error> {
        match &mut self.body {
            Body::File { file, hasher, .. } => {
                *hasher = None;
                file.try_clone().map_err(|err| Error::internal("write content", err))
            }
            Body::Shared { .. } => Err(shared()),
        }
    }

    /// Makes the blob: checks size and digest (0 and `None`: whatever was written), syncs the file, and records it with `labels`.
    ///
    /// # Errors
    /// `FailedPrecondition` when size or digest are not as expected: the write stays as it is. `AlreadyExists` when the namespace got the
    /// blob from elsewhere meanwhile: the write is gone.
    pub async fn commit(
        &mut self,
        size: u64,
        expected: Option<&Digest>,
        labels: HashMap<String, String>,
    ) -> Result<Digest, Error> {
        let digest =
            self.digest().ok_or_else(|| Error::new(Kind::FailedPrecondition, "the digest is not known"))?;
        let expected = expected.or(self.expected.as_ref());
        if size > 0 && size != self.offset() {
            let reference = containerd_api::error::quote(&self.lock.about.reference);
            let what = format!("{reference} failed size validation: {} != {size}", self.offset());
            return Err(Error::precondition(what));
        }
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(Error::precondition(format_args!(
                "unexpected commit digest {digest}, expected {expected}"
            )));
        }
        self.record(digest, labels).await
    }

    /// Like [`Writer::commit`], for bytes written through [`Writer::file`] whose digest the caller has checked.
    ///
    /// # Errors
    /// `FailedPrecondition` when the file has not `size` bytes, `AlreadyExists` as with [`Writer::commit`].
    pub async fn commit_verified(
        &mut self,
        size: u64,
        digest: Digest,
        labels: HashMap<String, String>,
    ) -> Result<Digest, Error> {
        if let Body::File { file, offset, .. } = &mut self.body {
            *offset = file.metadata().map_err(|err| Error::internal("commit content", err))?.len();
        }
        if size != self.offset() {
            return Err(Error::precondition(format_args!(
                "unexpected commit size {}, expected {size}",
                self.offset()
            )));
        }
        self.record(digest, labels).await
    }

    async fn record(&mut self, digest: Digest, labels: HashMap<String, String>) -> Result<Digest, Error> {
        labels::validate(&labels)?;
        if let Body::File { file, .. } = &self.body {
            let file = file.try_clone().map_err(|err| Error::internal("commit content", err))?;
            let sync = move || {
                file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
                file.sync_data()
            };
            tokio::task::spawn_blocking(sync)
                .await
                .map_err(|err| Error::internal("commit content", err))?
                .map_err(|err| Error::internal("commit content", err))?;
        }
        let size = self.offset();
        let (_turn, bytes) = self.hand_over(&digest, size).await?;
        let (data, own_file) = (self.lock.data(), matches!(self.body, Body::File { .. }));
        let (store, namespace, lease) = (Arc::clone(&self.store), self.namespace.clone(), self.lease.clone());
        let reference = self.lock.about.reference.clone();
        let recorded = digest.clone();
        let result = self
            .store
            .db
            .write(move |tx| {
                if tx.has::<Info>(&namespace, recorded.as_str())? {
                    return Err(Error::of(Kind::AlreadyExists, format_args!("content {recorded}")));
                }
                let at = Some(now());
                if tx.has::<Blob>(GLOBAL, recorded.as_str())? {
                    // The file is there, from another namespace; ours goes with the write.
                } else if let Handed::Over(home) = bytes {
                    tx.delete::<Doomed>(GLOBAL, recorded.as_str());
                    tx.put(GLOBAL, recorded.as_str(), &Blob { size_bytes: size, created_at: at, home });
                } else if own_file && matches!(bytes, Handed::No) {
                    let home = String::new();
                    let path = store.path(&recorded);
                    let place = || {
                        if let Some(directory) = path.parent() {
                            std::fs::create_dir_all(directory)?;
                        }
                        std::fs::rename(&data, &path)
                    };
                    place().map_err(|err| Error::internal(format_args!("place content {recorded}"), err))?;
                    let (back, path) = (data.clone(), path.clone());
                    tx.on_failure(move || {
                        let _ = std::fs::rename(path, back);
                    });
                    tx.put(GLOBAL, recorded.as_str(), &Blob { size_bytes: size, created_at: at, home });
                } else {
                    // It was there when the write began and was collected since.
                    return Err(Error::of(
                        Kind::Unavailable,
                        format_args!("content {recorded} went away, write it"),
                    ));
                }
                let info = Info {
                    digest: recorded.as_str().to_owned(),
                    size: i64::try_from(size).unwrap_or(i64::MAX),
                    created_at: at,
                    updated_at: at,
                    labels,
                };
                touch_namespace(tx, &namespace)?;
                hold(tx, &namespace, lease.as_deref(), Holdable::Content, recorded.as_str())?;
                release(tx, &namespace, lease.as_deref(), Holdable::Ingest, &reference);
                tx.put(&namespace, recorded.as_str(), &info);
                let event =
                    ContentCreate { digest: info.digest, size: info.size, ..ContentCreate::default() };
                tx.publish(&namespace, "/content/create", pack(&event));
                Ok(())
            })
            .await;
        match result {
            Ok(()) => self.finish(),
            Err(err) => {
                if err.is_already_exists() {
                    self.finish();
                }
                return Err(err);
            }
        }
        Ok(digest)
    }

    /// Gives the bytes to the process that keeps them, if there is one and it has not got them for another namespace.
    /// Nobody else puts this blob there or removes it before the lock is dropped, once the blob is recorded.
    async fn hand_over(
        &mut self,
        digest: &Digest,
        size: u64,
    ) -> Result<(Option<OwnedMutexGuard<()>>, Handed), Error> {
        let store = Arc::clone(&self.store);
        let (Some(remote), Body::File { file, .. }) = (&store.remote, &mut self.body) else {
            return Ok((None, Handed::No));
        };
        let turn = remote.turn(digest).await;
        let known = store.db.read(|tx| {
            Ok(tx.has::<Blob>(GLOBAL, digest.as_str())?
                || tx.has::<Info>(&self.namespace, digest.as_str())?)
        })?;
        if known {
            return Ok((Some(turn), Handed::Known));
        }
        let put = remote.put(&self.namespace, digest, file, size).await;
        let home = put.map_err(|err| err.context("hand the content over"))?;
        Ok((Some(turn), Handed::Over(home)))
    }

    /// The write is over: its reference is free, its directory goes.
    fn finish(&self) {
        self.lock.finish();
        self.store.trash.take(&self.lock.directory);
    }

    /// Turns a shared body into one of our own: the client sends bytes after all.
    fn own(&mut self) -> Result<(), Error> {
        if self.is_shared() { self.restart() } else { Ok(()) }
    }
}

fn shared() -> Error {
    Error::new(Kind::FailedPrecondition, "another namespace has these bytes")
}
