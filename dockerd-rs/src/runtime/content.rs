//! Images, blobs, snapshots, diffs and leases of containerd, as typed calls.
//!
//! Invariant: every call carries the engine's namespace and a deadline, so an engine whose containerd hangs answers with an error instead of
//! hanging too. "Not there" is `None`, any other refusal an [`Error`] with containerd's class and words.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use containerd_api::{content, diff, images, introspection, leases, ns, snapshots, types, version};
use futures_util::{Stream, StreamExt, TryStreamExt};
use oci::{Descriptor, Digest};
use prost_types::{FieldMask, Timestamp};
use tonic::{Code, Request, Status};

use super::{OURS, Runtime};
use crate::error::{Error, Kind, Result};

pub use containerd_api::snapshots::{Info as SnapshotInfo, Kind as SnapshotKind};
pub use containerd_api::types::Mount;

/// The snapshotter of the image store.
pub const SNAPSHOTTER: &str = "overlayfs";
/// Keeps a snapshot or blob although nothing refers to it.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// Ties content to content (`.m.0`, `.config`, `.l.0` …).
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// Ties a configuration blob to the snapshot of its layers.
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";
/// What a layer's tar hashes to; on the layer's blob.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Where a blob came from, by registry (`….docker.io` = `library/busybox`).
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";

/// Calls that only touch records.
const QUICK: Duration = Duration::from_secs(60);
/// Calls that move a layer's bytes.
const LONG: Duration = Duration::from_secs(3600);
/// How much one message of a blob write carries.
const WRITE_CHUNK: usize = 512 << 10;

/// Labels of an object.
pub type Labels = HashMap<String, String>;

/// One name of the image store.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    /// The full reference, or `moby-dangling@sha256:…`.
    pub name: String,
    /// The manifest or index it names.
    pub target: Descriptor,
    /// Labels of the record.
    pub labels: Labels,
    /// When the record was made.
    pub created_at: jiff::Timestamp,
    /// When the record was last changed.
    pub updated_at: jiff::Timestamp,
}

/// What is known of a blob without reading it.
#[derive(Clone, Debug)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Labels.
    pub labels: Labels,
    /// When it was committed.
    pub created_at: jiff::Timestamp,
}

/// A lease: what was made under it stays until it is dropped or expires. Dropping tells containerd in the background.
pub struct Lease {
    id: String,
    runtime: Runtime,
    _held: Held,
}

/// A name of a lease or a write that is in use until this is dropped.
struct Held {
    name: String,
    names: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Lease {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Lease {
    /// Drops it, and has containerd collect what only it kept before this returns: for work that failed, on a disk that may be full.
    pub async fn give_back(&self) {
        let message = leases::DeleteRequest { id: self.id.clone(), sync: true };
        let request = self.runtime.leased_request(message, None, LONG);
        let deleted = leases::leases_client::LeasesClient::new(self.runtime.channel()).delete(request).await;
        self.runtime.catalog.content_changed();
        if let Err(err) = deleted
            && err.code() != Code::NotFound
        {
            tracing::warn!(lease = self.id, error = %err, "lease not deleted; it expires by itself");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (runtime, id) = (self.runtime.clone(), std::mem::take(&mut self.id));
        // An engine that ends now leaves the lease to its expiry.
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move {
                let message = leases::DeleteRequest { id: id.clone(), sync: false };
                let request = runtime.leased_request(message, None, QUICK);
                if let Err(err) =
                    leases::leases_client::LeasesClient::new(runtime.channel()).delete(request).await
                    && err.code() != Code::NotFound
                {
                    tracing::warn!(lease = id, error = %err, "lease not deleted; it expires by itself");
                }
            });
        }
    }
}

/// The time of a record. One outside the calendar becomes the epoch.
pub fn timestamp(at: Option<Timestamp>) -> jiff::Timestamp {
    at.and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

fn found<T>(answer: Result<T, Status>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// A descriptor as containerd's messages have it.
pub fn to_wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}

/// A descriptor from containerd.
///
/// # Errors
/// Its digest is none, or its size is negative.
pub fn from_wire(descriptor: types::Descriptor) -> Result<Descriptor> {
    let digest = Digest::parse(&descriptor.digest)
        .map_err(|err| Error::system(format!("containerd named a digest {}: {err}", descriptor.digest)))?;
    let size =
        u64::try_from(descriptor.size).map_err(|_| Error::system("containerd named a negative size"))?;
    let mut made = Descriptor::new(&descriptor.media_type, digest, size);
    made.annotations = descriptor.annotations.into_iter().collect();
    Ok(made)
}

fn image_record(image: images::Image) -> Result<ImageRecord> {
    let target = image.target.ok_or_else(|| Error::system(format!("image {} has no target", image.name)))?;
    Ok(ImageRecord {
        name: image.name,
        target: from_wire(target)?,
        labels: image.labels,
        created_at: timestamp(image.created_at),
        updated_at: timestamp(image.updated_at),
    })
}

fn blob_info(info: content::Info) -> Result<BlobInfo> {
    Ok(BlobInfo {
        digest: Digest::parse(&info.digest)
            .map_err(|err| Error::system(format!("containerd named a digest {}: {err}", info.digest)))?,
        size: u64::try_from(info.size).unwrap_or(0),
        labels: info.labels,
        created_at: timestamp(info.created_at),
    })
}

type ImagesClient = images::images_client::ImagesClient<tonic::transport::Channel>;
type ContentClient = content::content_client::ContentClient<tonic::transport::Channel>;
type SnapshotsClient = snapshots::snapshots_client::SnapshotsClient<tonic::transport::Channel>;

impl Runtime {
    /// A message for containerd in the engine's namespace, under `lease` if there is one, with a deadline.
    pub fn leased_request<T>(&self, message: T, lease: Option<&Lease>, deadline: Duration) -> Request<T> {
        let mut request = ns::request(message, self.namespace(), lease.map(Lease::id));
        request.set_timeout(deadline);
        request
    }

    fn images(&self) -> ImagesClient {
        ImagesClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    fn content(&self) -> ContentClient {
        ContentClient::new(self.channel()).max_decoding_message_size(containerd_api::MAX_MESSAGE_BYTES)
    }

    fn snapshots(&self) -> SnapshotsClient {
        SnapshotsClient::new(self.channel()).max_decoding_message_size(containerd_api::MAX_MESSAGE_BYTES)
    }

    // --- leases ---------------------------------------------------------------------------------------------------------------

    /// A new lease that containerd drops by itself after `expires`, in case the engine dies.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn lease(&self, expires: Duration) -> Result<Lease> {
        let held = self.hold()?;
        let id = held.name.clone();
        let until = jiff::Timestamp::now() + jiff::SignedDuration::try_from(expires).unwrap_or_default();
        let labels = Labels::from([("containerd.io/gc.expire".to_owned(), until.to_string())]);
        let message = leases::CreateRequest { id: id.clone(), labels };
        leases::leases_client::LeasesClient::new(self.channel())
            .create(self.leased_request(message, None, QUICK))
            .await?;
        Ok(Lease { id, runtime: self.clone(), _held: held })
    }

    /// A new name for a lease or a write, in use until it is dropped.
    fn hold(&self) -> Result<Held> {
        let mut random = [0_u8; 12];
        getrandom::fill(&mut random).map_err(|err| Error::system(format!("random bytes: {err}")))?;
        let name = format!("{OURS}{}", hex::encode(random));
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(Held { name, names: Arc::clone(&self.held) })
    }

    /// Gives back what is called ours and in nobody's use: leases and unfinished writes of an engine that was killed, or whose end
    /// containerd did not hear of. What they kept is collected.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn forget_lost_work(&self) -> Result<()> {
        let lost = |name: &str| {
            name.starts_with(OURS) && !self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
        };
        let mut client = leases::leases_client::LeasesClient::new(self.channel());
        let message = leases::ListRequest { filters: Vec::new() };
        let all = client.list(self.leased_request(message, None, QUICK)).await?.into_inner().leases;
        let former: Vec<String> = all.into_iter().map(|lease| lease.id).filter(|id| lost(id)).collect();
        for (at, id) in former.iter().enumerate() {
            let sync = at + 1 == former.len();
            let message = leases::DeleteRequest { id: id.clone(), sync };
            found(client.delete(self.leased_request(message, None, LONG)).await)?;
        }
        if !former.is_empty() {
            self.catalog.content_changed();
        }
        let message = content::ListStatusesRequest { filters: Vec::new() };
        let writes = self.content().list_statuses(self.leased_request(message, None, QUICK)).await?;
        for write in writes.into_inner().statuses.into_iter().filter(|write| lost(&write.r#ref)) {
            let message = content::AbortRequest { r#ref: write.r#ref };
            found(self.content().abort(self.leased_request(message, None, QUICK)).await)?;
        }
        Ok(())
    }

    /// Keeps a resource (`content`, `snapshots/overlayfs`, …) while `lease` lives.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn lease_add(&self, lease: &Lease, kind: &str, id: &str) -> Result<()> {
        let resource = leases::Resource { id: id.to_owned(), r#type: kind.to_owned() };
        let message = leases::AddResourceRequest { id: lease.id.clone(), resource: Some(resource) };
        leases::leases_client::LeasesClient::new(self.channel())
            .add_resource(self.leased_request(message, None, QUICK))
            .await?;
        Ok(())
    }

    // --- names ----------------------------------------------------------------------------------------------------------------

    /// The image called exactly `name`.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn image(&self, name: &str) -> Result<Option<ImageRecord>> {
        let message = images::GetImageRequest { name: name.to_owned() };
        let answer = found(self.images().get(self.leased_request(message, None, QUICK)).await)?;
        answer.and_then(|answer| answer.into_inner().image).map(image_record).transpose()
    }

    /// Images that match any of containerd's `filters`; all without one.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn image_list(&self, filters: &[String]) -> Result<Vec<ImageRecord>> {
        let message = images::ListImagesRequest { filters: filters.to_vec() };
        let answer = self.images().list(self.leased_request(message, None, QUICK)).await?;
        answer.into_inner().images.into_iter().map(image_record).collect()
    }

    /// Makes `name` mean `target`, new or not. `labels` replace those of an existing record. `true` if the record is new.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn image_put(
        &self,
        name: &str,
        target: &Descriptor,
        labels: Labels,
        lease: Option<&Lease>,
    ) -> Result<bool> {
        let image = images::Image {
            name: name.to_owned(),
            labels,
            target: Some(to_wire(target)),
            ..Default::default()
        };
        let message = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        let created = self.images().create(self.leased_request(message, lease, QUICK)).await;
        self.catalog.name_changed(name);
        match created {
            Ok(_) => return Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(status.into()),
        }
        let mask = FieldMask { paths: vec!["target".into(), "labels".into()] };
        let message = images::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(mask),
            source_date_epoch: None,
        };
        let updated = self.images().update(self.leased_request(message, lease, QUICK)).await;
        self.catalog.name_changed(name);
        updated?;
        Ok(false)
    }

    /// Forgets `name`. With `sync` the space is given back before the answer. `false` if it was not there.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn image_delete(&self, name: &str, sync: bool) -> Result<bool> {
        let message = images::DeleteImageRequest { name: name.to_owned(), sync, target: None };
        let deleted = self.images().delete(self.leased_request(message, None, LONG)).await;
        self.catalog.name_changed(name);
        if sync {
            self.catalog.content_changed();
        }
        Ok(found(deleted)?.is_some())
    }

    // --- blobs ----------------------------------------------------------------------------------------------------------------

    /// What is known of a blob.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let message = content::InfoRequest { digest: digest.to_string() };
        let answer = found(self.content().info(self.leased_request(message, None, QUICK)).await)?;
        answer.and_then(|answer| answer.into_inner().info).map(blob_info).transpose()
    }

    /// All blobs that match any of the filters.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob_list(&self, filters: &[String]) -> Result<Vec<BlobInfo>> {
        let message = content::ListContentRequest { filters: filters.to_vec() };
        let mut stream = self.content().list(self.leased_request(message, None, QUICK)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = stream.message().await? {
            for info in part.info {
                all.push(blob_info(info)?);
            }
        }
        Ok(all)
    }

    /// A blob of at most `limit` bytes, whole. `None` if it is not there.
    ///
    /// # Errors
    /// containerd refused, or the blob is larger.
    pub async fn blob_read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        let message = content::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let Some(answer) = found(self.content().read(self.leased_request(message, None, QUICK)).await)?
        else {
            return Ok(None);
        };
        let mut stream = answer.into_inner();
        let mut all = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(part)) => all.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(all)),
                Err(status) if status.code() == Code::NotFound && all.is_empty() => return Ok(None),
                Err(status) => return Err(status.into()),
            }
            if all.len() as u64 > limit {
                return Err(Error::system(format!("blob {digest} is larger than {limit} bytes")));
            }
        }
    }

    /// A blob, piece by piece.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob_stream(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let message = content::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let stream = self.content().read(self.leased_request(message, None, LONG)).await?.into_inner();
        Ok(stream.map_ok(|part| part.data).map_err(Error::from))
    }

    /// Sets the given labels of a blob; the others stay. An empty value removes one.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob_label(&self, digest: &Digest, labels: Labels) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = content::Info { digest: digest.to_string(), labels, ..Default::default() };
        let message = content::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let updated = self.content().update(self.leased_request(message, None, QUICK)).await;
        self.catalog.blob_changed(digest);
        updated?;
        Ok(())
    }

    /// Writes a blob that is known whole, under `lease`. A blob that is there already gets the labels too.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob_write(&self, bytes: &[u8], labels: Labels, lease: &Lease) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let chunks: Vec<Bytes> = bytes.chunks(WRITE_CHUNK).map(Bytes::copy_from_slice).collect();
        let source = futures_util::stream::iter(chunks.into_iter().map(Ok));
        self.blob_write_stream(source, Some((&digest, bytes.len() as u64)), labels, lease).await?;
        Ok(digest)
    }

    /// Writes a blob from a stream, under `lease`; gives its digest and size. `expected` is checked by containerd.
    ///
    /// # Errors
    /// The source failed, containerd refused, or what came is not what was expected.
    pub async fn blob_write_stream(
        &self,
        source: impl Stream<Item = Result<Bytes>> + Send + Unpin,
        expected: Option<(&Digest, u64)>,
        labels: Labels,
        lease: &Lease,
    ) -> Result<(Digest, u64)> {
        let held = self.hold()?;
        let reference = held.name.clone();
        let written = self.write_ingest(&reference, source, expected, &labels, lease).await;
        match written {
            Ok(done) => Ok(done),
            Err(failure) => {
                let message = content::AbortRequest { r#ref: reference };
                // Not there is the usual answer: the commit found the blob present and dropped the ingest.
                let _ = self.content().abort(self.leased_request(message, None, QUICK)).await;
                match (failure.kind(), expected) {
                    (Kind::Conflict, Some((digest, size))) => {
                        self.lease_add(lease, "content", digest.as_str()).await?;
                        if !labels.is_empty() {
                            self.blob_label(digest, labels).await?;
                        }
                        Ok((digest.clone(), size))
                    }
                    _ => Err(failure),
                }
            }
        }
    }

    async fn write_ingest(
        &self,
        reference: &str,
        mut source: impl Stream<Item = Result<Bytes>> + Send + Unpin,
        expected: Option<(&Digest, u64)>,
        labels: &Labels,
        lease: &Lease,
    ) -> Result<(Digest, u64)> {
        let (send, queue) = tokio::sync::mpsc::channel::<content::WriteContentRequest>(2);
        let messages = tokio_stream::wrappers::ReceiverStream::new(queue);
        let (digest_text, total) =
            expected.map_or((String::new(), 0), |(digest, size)| (digest.to_string(), size.cast_signed()));
        let first = content::WriteContentRequest {
            action: content::WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total,
            expected: digest_text.clone(),
            ..Default::default()
        };
        let gone = || Error::system("containerd closed the write");
        send.send(first).await.map_err(|_| gone())?;
        let mut answers =
            self.content().write(self.leased_request(messages, Some(lease), LONG)).await?.into_inner();
        answers.message().await?.ok_or_else(gone)?;
        let mut hasher = oci::Hasher::new(oci::Algorithm::Sha256);
        let mut offset = 0_i64;
        while let Some(chunk) = source.next().await {
            let mut chunk = chunk?;
            hasher.update(&chunk);
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(WRITE_CHUNK));
                let size = part.len() as i64;
                let message = content::WriteContentRequest {
                    action: content::WriteAction::Write as i32,
                    r#ref: reference.to_owned(),
                    offset,
                    data: part,
                    ..Default::default()
                };
                send.send(message).await.map_err(|_| gone())?;
                offset += size;
                let answer = answers.message().await?.ok_or_else(gone)?;
                if answer.offset != offset {
                    return Err(Error::system(format!(
                        "containerd wrote {} bytes of {offset}",
                        answer.offset
                    )));
                }
            }
        }
        let digest = hasher.finish();
        let commit = content::WriteContentRequest {
            action: content::WriteAction::Commit as i32,
            r#ref: reference.to_owned(),
            total: offset,
            expected: if digest_text.is_empty() { digest.to_string() } else { digest_text },
            offset,
            labels: labels.clone(),
            ..Default::default()
        };
        send.send(commit).await.map_err(|_| gone())?;
        let committed = answers.message().await;
        self.catalog.blob_changed(&digest);
        match committed {
            Ok(_) => Ok((digest, offset.cast_unsigned())),
            // The same bytes are there already.
            Err(status) if status.code() == Code::AlreadyExists => {
                self.lease_add(lease, "content", digest.as_str()).await?;
                if !labels.is_empty() {
                    self.blob_label(&digest, labels.clone()).await?;
                }
                Ok((digest, offset.cast_unsigned()))
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Removes a blob at once, used or not. `false` if it was not there.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn blob_delete(&self, digest: &Digest) -> Result<bool> {
        let message = content::DeleteContentRequest { digest: digest.to_string() };
        let deleted = self.content().delete(self.leased_request(message, None, QUICK)).await;
        self.catalog.blob_changed(digest);
        Ok(found(deleted)?.is_some())
    }

    // --- snapshots ------------------------------------------------------------------------------------------------------------

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn snapshot(&self, key: &str) -> Result<Option<SnapshotInfo>> {
        let message = snapshots::StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        let answer = found(self.snapshots().stat(self.leased_request(message, None, QUICK)).await)?;
        Ok(answer.and_then(|answer| answer.into_inner().info))
    }

    /// All snapshots that match any of the filters.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn snapshot_list(&self, filters: &[String]) -> Result<Vec<SnapshotInfo>> {
        let message =
            snapshots::ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters: filters.to_vec() };
        let mut stream = self.snapshots().list(self.leased_request(message, None, QUICK)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = stream.message().await? {
            all.extend(part.info);
        }
        Ok(all)
    }

    /// A writable snapshot `key` over `parent` (empty: over nothing).
    ///
    /// # Errors
    /// `key` is taken, `parent` is missing, or containerd refused.
    pub async fn snapshot_prepare(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&Lease>,
    ) -> Result<Vec<Mount>> {
        let message = snapshots::PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        Ok(self.snapshots().prepare(self.leased_request(message, lease, QUICK)).await?.into_inner().mounts)
    }

    /// A read-only snapshot `key` of `parent`.
    ///
    /// # Errors
    /// As [`Runtime::snapshot_prepare`].
    pub async fn snapshot_view(&self, key: &str, parent: &str, lease: Option<&Lease>) -> Result<Vec<Mount>> {
        let message = snapshots::ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: Labels::new(),
        };
        Ok(self.snapshots().view(self.leased_request(message, lease, QUICK)).await?.into_inner().mounts)
    }

    /// Ends the writing of `key`: it is read-only and called `name` from now on.
    ///
    /// # Errors
    /// `name` is taken, or containerd refused.
    pub async fn snapshot_commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        lease: Option<&Lease>,
    ) -> Result<()> {
        let message = snapshots::CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent: String::new(),
        };
        let committed = self.snapshots().commit(self.leased_request(message, lease, LONG)).await;
        self.catalog.snapshot_changed(name);
        committed?;
        Ok(())
    }

    /// How to mount an active or viewed snapshot.
    ///
    /// # Errors
    /// It is not there, is committed, or containerd refused.
    pub async fn snapshot_mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let message = snapshots::MountsRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        Ok(self.snapshots().mounts(self.leased_request(message, None, QUICK)).await?.into_inner().mounts)
    }

    /// Removes a snapshot. `false` if it was not there.
    ///
    /// # Errors
    /// It has children, or containerd refused.
    pub async fn snapshot_remove(&self, key: &str) -> Result<bool> {
        let message =
            snapshots::RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        let removed = self.snapshots().remove(self.leased_request(message, None, LONG)).await;
        self.catalog.snapshot_changed(key);
        Ok(found(removed)?.is_some())
    }

    /// Bytes and inodes of one snapshot without its parents. `None` if it is not there.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn snapshot_usage(&self, key: &str) -> Result<Option<(u64, u64)>> {
        let message = snapshots::UsageRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        let answer = found(self.snapshots().usage(self.leased_request(message, None, LONG)).await)?;
        Ok(answer.map(|answer| {
            let usage = answer.into_inner();
            (u64::try_from(usage.size).unwrap_or(0), u64::try_from(usage.inodes).unwrap_or(0))
        }))
    }

    // --- layers ---------------------------------------------------------------------------------------------------------------

    /// Unpacks a layer's blob onto `mounts`; gives the descriptor of its uncompressed form.
    ///
    /// # Errors
    /// The layer is damaged, the disk is full, or containerd refused.
    pub async fn diff_apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        lease: &Lease,
    ) -> Result<Descriptor> {
        let message = diff::ApplyRequest { diff: Some(to_wire(layer)), mounts, ..Default::default() };
        let answer = diff::diff_client::DiffClient::new(self.channel())
            .apply(self.leased_request(message, Some(lease), LONG))
            .await?;
        from_wire(answer.into_inner().applied.unwrap_or_default())
    }

    /// The difference from `lower` to `upper`, as a layer blob of `media_type`. The blob carries [`UNCOMPRESSED`].
    ///
    /// # Errors
    /// containerd refused.
    pub async fn diff_create(
        &self,
        lower: Vec<Mount>,
        upper: Vec<Mount>,
        media_type: &str,
        lease: &Lease,
    ) -> Result<Descriptor> {
        let message = diff::DiffRequest {
            left: lower,
            right: upper,
            media_type: media_type.to_owned(),
            ..Default::default()
        };
        let answer = diff::diff_client::DiffClient::new(self.channel())
            .diff(self.leased_request(message, Some(lease), LONG))
            .await?;
        let made = from_wire(answer.into_inner().diff.unwrap_or_default())?;
        self.catalog.blob_changed(&made.digest);
        Ok(made)
    }

    // --- the daemon -----------------------------------------------------------------------------------------------------------

    /// containerd's version and revision.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn containerd_version(&self) -> Result<(String, String)> {
        let request = self.leased_request((), None, Duration::from_secs(5));
        let answer = version::version_client::VersionClient::new(self.channel()).version(request).await?;
        let answer = answer.into_inner();
        Ok((answer.version, answer.revision))
    }

    /// containerd's plugins.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn containerd_plugins(&self, filters: &[String]) -> Result<Vec<introspection::Plugin>> {
        let message = introspection::PluginsRequest { filters: filters.to_vec() };
        let answer = introspection::introspection_client::IntrospectionClient::new(self.channel())
            .plugins(self.leased_request(message, None, QUICK))
            .await?;
        Ok(answer.into_inner().plugins)
    }
}
