//! Blobs that another process keeps: a `proxy_plugins` entry of type `content`, in place of our own store.
//!
//! As with containerd, what there is, whose it is and its labels are recorded here; the other process has the bytes. A write is gathered and checked
//! in a file of ours first and then handed over; a read fetches the blob into a file without a name.
//!
//! Invariant: a blob at the other end that we put there has a [`Blob`] record or a [`Doomed`] one, from before it is there until it is gone. The
//! doomed are removed after the change that forgot them, and at every start; a kill loses track of none.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_api::client::connect_lazy;
use containerd_api::content::content_client::ContentClient;
use containerd_api::content::{
    AbortRequest, DeleteContentRequest, ReadContentRequest, WriteAction, WriteContentRequest,
};
use containerd_api::error::{Error, Kind};
use containerd_api::{MAX_MESSAGE_BYTES, ns};
use oci::digest::Digest;
use tokio::sync::{Notify, OwnedMutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::meta::records::{Blob, Doomed, GLOBAL};
use crate::meta::{Db, Reader};
use crate::transfer::keyed::Keyed;

/// Bytes of one message of a write.
const CHUNK_BYTES: usize = 1 << 20;
/// A whole containerd at the other end must not collect what nobody there refers to.
const ROOT: &str = "containerd.io/gc.root";
/// How long until a removal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// How long one removal may take.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(30);

/// The other end.
pub struct Remote {
    client: ContentClient<Channel>,
    db: Arc<Db>,
    /// Where files without a name are made.
    scratch: PathBuf,
    /// One digest is put there or removed there at a time.
    turns: Keyed,
    wanted: Notify,
}

impl Remote {
    /// The content store of whoever listens, now or later, at `address`. Needs a runtime.
    pub fn open(address: &Path, scratch: &Path, db: Arc<Db>) -> Arc<Self> {
        let client = ContentClient::new(connect_lazy(address, Duration::ZERO))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let remote = Arc::new(Self {
            client,
            db,
            scratch: scratch.to_owned(),
            turns: Keyed::default(),
            wanted: Notify::new(),
        });
        remote.wanted.notify_one();
        let removing = Arc::downgrade(&remote);
        tokio::spawn(async move {
            while let Some(remote) = removing.upgrade() {
                let wanted = tokio::time::timeout(AGAIN, remote.wanted.notified()).await;
                if let Err(err) = remote.remove_doomed().await {
                    // Said when somebody has removed something, not every minute that it lasts.
                    if wanted.is_ok() {
                        tracing::warn!(%err, "removed blobs wait for the content store");
                    }
                }
            }
        });
        remote
    }

    /// The right to put a blob there and to record it, or to remove it.
    pub async fn turn(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        self.turns.lock(digest.as_str()).await
    }

    /// Some blob is doomed. Never blocks.
    pub fn removed(&self) {
        self.wanted.notify_one();
    }

    /// Hands a blob over, going on where an earlier attempt stopped, and says in which namespace the other end has it. For who has the turn of
    /// the digest.
    ///
    /// # Errors
    /// The file cannot be read, or what the other end says.
    pub async fn put(
        &self,
        namespace: &str,
        digest: &Digest,
        file: &mut File,
        size: u64,
    ) -> Result<String, Error> {
        let (doomed, namespace) = (digest.as_str().to_owned(), namespace.to_owned());
        let home = self
            .db
            .write(move |tx| {
                // It may be there still, from another namespace that had it.
                if let Some(doomed) = tx.get::<Doomed>(GLOBAL, &doomed)? {
                    return Ok(doomed.home);
                }
                tx.put(GLOBAL, &doomed, &Doomed { home: namespace.clone() });
                Ok(namespace)
            })
            .await?;
        match self.write(&home, digest, file, size).await {
            Err(err) if !err.is_already_exists() => Err(err),
            _ => Ok(home),
        }
    }

    async fn write(&self, namespace: &str, digest: &Digest, file: &mut File, size: u64) -> Result<(), Error> {
        let failed = |err: std::io::Error| Error::internal(format_args!("read content {digest}"), err);
        let reference = format!("containerd-rs-{}", digest.hex());
        let message = |action: WriteAction, offset: u64, data: Bytes| WriteContentRequest {
            action: action.into(),
            r#ref: reference.clone(),
            total: i64::try_from(size).unwrap_or(0),
            expected: digest.as_str().to_owned(),
            offset: i64::try_from(offset).unwrap_or(0),
            data,
            labels: [(ROOT.to_owned(), "containerd-rs".to_owned())].into(),
        };
        let (requests, receive) = mpsc::channel(2);
        let gone = |_| Error::new(Kind::Unavailable, "the content store ended the write");
        requests.send(message(WriteAction::Stat, 0, Bytes::new())).await.map_err(gone)?;
        let stream = ns::request(ReceiverStream::new(receive), namespace, None);
        let mut answers = self.client.clone().write(stream).await.map_err(unreachable)?.into_inner();
        let missing = || Error::new(Kind::Unavailable, "the content store ended the write");
        let there = answers.message().await?.ok_or_else(missing)?.offset;
        let mut offset = u64::try_from(there).unwrap_or(0);
        if offset > size {
            let message = AbortRequest { r#ref: reference.clone() };
            self.client.clone().abort(ns::request(message, namespace, None)).await?;
            return Err(Error::new(Kind::Unavailable, "the content store had another write of that name"));
        }
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        while offset < size {
            let length = CHUNK_BYTES.min(usize::try_from(size - offset).unwrap_or(CHUNK_BYTES));
            let mut data = vec![0; length];
            file.read_exact(&mut data).map_err(failed)?;
            requests.send(message(WriteAction::Write, offset, data.into())).await.map_err(gone)?;
            offset += length as u64;
            // Each is answered; a failure is found here, not at the end.
            answers.message().await?.ok_or_else(missing)?;
        }
        requests.send(message(WriteAction::Commit, offset, Bytes::new())).await.map_err(gone)?;
        answers.message().await?.ok_or_else(missing)?;
        Ok(())
    }

    /// A blob's bytes in a file that has no name, to be read from its beginning. What is not what its digest says is refused.
    ///
    /// # Errors
    /// What the other end says, or the disk is full.
    pub async fn fetch(&self, home: &str, digest: &Digest) -> Result<File, Error> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let failed = |err: std::io::Error| match err.kind() {
            std::io::ErrorKind::StorageFull => {
                Error::new(Kind::ResourceExhausted, "fetch content: no space left on device")
            }
            _ => Error::internal(format_args!("fetch content {digest}"), err),
        };
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(&self.scratch)
            .map_err(failed)?;
        let message = ReadContentRequest { digest: digest.as_str().to_owned(), offset: 0, size: 0 };
        let mut pieces = self
            .client
            .clone()
            .read(ns::request(message, home, None))
            .await
            .map_err(unreachable)?
            .into_inner();
        let mut hasher = oci::Hasher::new(digest.algorithm());
        while let Some(piece) = pieces.message().await? {
            hasher.update(&piece.data);
            file.write_all(&piece.data).map_err(failed)?;
        }
        let found = hasher.finish();
        if found != *digest {
            let what = format!("content {digest} is {found} in the content store");
            return Err(Error::new(Kind::DataLoss, what));
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    async fn remove_doomed(&self) -> Result<(), Error> {
        let doomed = self.db.read(|tx| tx.list::<Doomed>(GLOBAL, ""))?;
        let mut outcome = Ok(());
        for (digest, doomed) in doomed {
            if let Err(err) = self.remove(&digest, &doomed.home).await {
                outcome = Err(err);
            }
        }
        outcome
    }

    async fn remove(&self, digest: &str, home: &str) -> Result<(), Error> {
        let _turn = self.turns.lock(digest).await;
        let (known, doomed) =
            self.db.read(|tx| Ok((tx.has::<Blob>(GLOBAL, digest)?, tx.has::<Doomed>(GLOBAL, digest)?)))?;
        if !doomed {
            return Ok(());
        }
        if !known {
            let message = DeleteContentRequest { digest: digest.to_owned() };
            let mut client = self.client.clone();
            let removal = client.delete(ns::request(message, home, None));
            let late = |_| Error::new(Kind::DeadlineExceeded, "the content store does not answer");
            let removed = tokio::time::timeout(REMOVAL_DEADLINE, removal).await.map_err(late)?;
            match removed.map_err(Error::from) {
                Err(err) if !err.is_not_found() => return Err(err),
                _ => {}
            }
        }
        let digest = digest.to_owned();
        self.db
            .write(move |tx| {
                tx.delete::<Doomed>(GLOBAL, &digest);
                Ok(())
            })
            .await
    }
}

/// What the other end said, or that nobody is there to say anything.
fn unreachable(status: tonic::Status) -> Error {
    match Error::from(status) {
        err if err.kind() == Kind::Unavailable => Error::of(
            Kind::Unavailable,
            format_args!("the content store cannot be reached: {}", err.message()),
        ),
        err => err,
    }
}
