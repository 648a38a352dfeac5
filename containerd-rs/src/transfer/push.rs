//! Push: an image of the store into a registry. Blobs first, then manifests from the leaves up, the tag last.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use containerd_api::error::Error;
use containerd_api::transfer_types::{ImageStore, OciRegistry};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use oci::mediatype::{self, Kind as Media};
use oci::{Descriptor, Digest, Document};
use registry::{BlobSource, Client, Pushed};

use super::Transfer;
use super::progress::{Item, Progress, ref_key};
use super::pull::{client, from_registry, selection, source_label};
use super::scope::{Scope, from_wire};
use super::walk::{self, Documents, Selection};

/// Size of the pieces a blob is read in.
const PIECE: usize = 256 * 1024;

/// Documents that are in the store already.
pub(super) struct Stored<'a>(pub &'a Scope);

impl Documents for Stored<'_> {
    async fn document(&self, descriptor: &Descriptor, _: &[Descriptor]) -> Result<Option<Vec<u8>>, Error> {
        match self.0.read(descriptor) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }
}

pub(super) async fn push(
    transfer: &Arc<Transfer>,
    scope: Scope,
    store: ImageStore,
    registry: OciRegistry,
    progress: Progress,
) -> Result<(), Error> {
    let image = scope.image(&store.name)?.ok_or_else(|| Error::not_found("image", &store.name))?;
    let mut root = from_wire(&image.target.unwrap_or_default())?;
    let (reference, client) = client(transfer, &scope.namespace, &registry)?;
    let text = format!("OCI Registry ({})", registry.reference);
    progress.say(format!("Pushing to {text}")).await;
    progress.image("pushing content", &registry.reference, &root).await;
    if !store.platforms.is_empty() && root.kind() == Media::Index {
        root = narrowed(&scope, &root, &selection(&store)).await?;
    }
    let parts = collect(&scope, &root)?;
    let push = Push {
        scope: &scope,
        client,
        progress: &progress,
        source_label: source_label(&reference),
        repository: reference.path().to_owned(),
    };
    let mut items = HashMap::new();
    for (descriptor, parent) in parts.blobs.iter().chain(&parts.documents) {
        let parents = vec![parent.as_ref().map_or_else(|| reference.to_string(), ref_key)];
        items.insert(descriptor.digest.clone(), Arc::new(progress.item(descriptor, parents).await));
    }
    let items = &items;
    let push = &push;
    // Owned ones: the futures are sent to another thread.
    stream::iter(parts.blobs.clone())
        .map(|(blob, parent)| async move { push.blob(&blob, parent.as_ref(), &items[&blob.digest]).await })
        .buffer_unordered(transfer.config.max_concurrent_uploads)
        .try_collect::<()>()
        .await?;
    // Leaves first: a registry refuses an index whose manifests it does not know.
    for (document, _) in parts.documents.iter().rev() {
        let bytes = scope.read(document)?;
        let tagged = document.digest == root.digest;
        let pushed = push.client.push_document(document, &bytes, tagged).await.map_err(from_registry)?;
        push.note(document).await?;
        items[&document.digest]
            .done(if pushed == Pushed::Exists { "already exists" } else { "complete" })
            .await;
    }
    progress.image("pushed", &registry.reference, &root).await;
    progress.say(format!("Completed push to {text}")).await;
    Ok(())
}

/// The one manifest of an index that a client's platforms mean.
async fn narrowed(scope: &Scope, root: &Descriptor, selection: &Selection) -> Result<Descriptor, Error> {
    let mut found = walk::manifests(&Stored(scope), root, selection).await?;
    if found.is_empty() {
        return Err(Error::new(
            containerd_api::Kind::NotFound,
            "no match for platform in manifest: not found",
        ));
    }
    Ok(found.swap_remove(0).descriptor)
}

/// Everything an image is made of, documents from the root down, each with what it belongs to.
struct Parts {
    documents: Vec<(Descriptor, Option<Descriptor>)>,
    blobs: Vec<(Descriptor, Option<Descriptor>)>,
}

fn collect(scope: &Scope, root: &Descriptor) -> Result<Parts, Error> {
    let mut parts = Parts { documents: Vec::new(), blobs: Vec::new() };
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut budget = oci::manifest::WalkBudget::default();
    let mut queue = std::collections::VecDeque::from([(root.clone(), None::<Descriptor>, 0)]);
    while let Some((descriptor, parent, depth)) = queue.pop_front() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if !Client::is_document(&descriptor) {
            // A foreign layer that is not here is not ours to distribute.
            if !mediatype::is_foreign_layer(&descriptor.media_type) || scope.has(&descriptor.digest)? {
                parts.blobs.push((descriptor, parent));
            }
            continue;
        }
        let children = match walk::read_document(&scope.read(&descriptor)?, &descriptor)? {
            Document::Manifest(manifest) => std::iter::once(manifest.config).chain(manifest.layers).collect(),
            Document::Index(index) => {
                budget.open(&index, depth).map_err(|err| Error::invalid(err.to_string()))?;
                index.manifests
            }
        };
        queue.extend(children.into_iter().map(|child| (child, Some(descriptor.clone()), depth + 1)));
        parts.documents.push((descriptor, parent));
    }
    Ok(parts)
}

struct Push<'a> {
    scope: &'a Scope,
    client: Arc<Client>,
    progress: &'a Progress,
    source_label: String,
    repository: String,
}

impl Push<'_> {
    /// A blob that is not in the store is still pushed if the registry has it, there or where its manifest came from.
    async fn blob(
        &self,
        blob: &Descriptor,
        parent: Option<&Descriptor>,
        item: &Arc<Item>,
    ) -> Result<(), Error> {
        let mut info = self.scope.info(&blob.digest)?;
        let is_here = info.is_some();
        if let (None, Some(parent)) = (&info, parent) {
            info = self.scope.info(&parent.digest)?;
        }
        let known = info.and_then(|info| info.labels.get(&self.source_label).cloned()).unwrap_or_default();
        let from: Vec<String> = known.split(',').filter(|r| !r.is_empty()).map(str::to_owned).collect();
        let source =
            FileSource { scope: self.scope.clone(), digest: blob.digest.clone(), item: Arc::clone(item) };
        let pushed = self
            .client
            .push_blob(blob, is_here.then_some(&source as &dyn BlobSource), &from)
            .await
            .map_err(from_registry)?;
        self.note(blob).await?;
        item.done(match pushed {
            Pushed::Exists => "already exists",
            Pushed::Mounted => "mounted",
            Pushed::Uploaded => "complete",
        })
        .await;
        let _ = self.progress;
        Ok(())
    }

    /// Remembers that the repository has it, so that it can be mounted from there.
    async fn note(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let Some(info) = self.scope.info(&descriptor.digest)? else { return Ok(()) };
        let known = info.labels.get(&self.source_label).cloned().unwrap_or_default();
        let mut repositories: Vec<&str> = known.split(',').filter(|r| !r.is_empty()).collect();
        if repositories.contains(&self.repository.as_str()) {
            return Ok(());
        }
        repositories.push(&self.repository);
        repositories.sort_unstable();
        let labels = HashMap::from([(self.source_label.clone(), repositories.join(","))]);
        self.scope.label(&descriptor.digest, labels).await
    }
}

/// A blob of the store, for uploading.
struct FileSource {
    scope: Scope,
    digest: Digest,
    item: Arc<Item>,
}

impl BlobSource for FileSource {
    fn open(
        &self,
        offset: u64,
        length: u64,
    ) -> std::pin::Pin<Box<dyn stream::Stream<Item = std::io::Result<bytes::Bytes>> + Send>> {
        let file = self.scope.open(&self.digest).map(|(file, _)| Arc::new(file));
        let file = match file {
            Ok(file) => file,
            Err(err) => {
                let failed = std::io::Error::other(err.message().to_owned());
                return Box::pin(stream::once(std::future::ready(Err(failed))));
            }
        };
        let item = Arc::clone(&self.item);
        let end = offset + length;
        Box::pin(stream::try_unfold(offset, move |at| {
            let (file, item) = (Arc::clone(&file), Arc::clone(&item));
            async move {
                if at >= end {
                    return Ok(None);
                }
                let read = tokio::task::spawn_blocking(move || {
                    let want = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
                    let mut buffer = vec![0; want];
                    let got = std::os::unix::fs::FileExt::read_at(&*file, &mut buffer, at)?;
                    buffer.truncate(got);
                    Ok::<_, std::io::Error>(buffer)
                });
                let buffer = read.await.map_err(std::io::Error::other)??;
                if buffer.is_empty() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                let next = at + buffer.len() as u64;
                item.figure("uploading", next);
                Ok(Some((bytes::Bytes::from(buffer), next)))
            }
        }))
    }
}
