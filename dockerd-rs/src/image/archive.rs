//! Archives of images: load and save, in Docker's form and the OCI layout at once.
//!
//! Invariant: an archive is read once, from front to back, and its blobs go to the store as they come, each checked against its digest; memory
//! holds one chunk and the index files. Nothing is named before everything is there, and what was written for a refused archive goes
//! with its lease.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use layer::{Decoder, EntryKind, TarReader};
use oci::manifest::MAX_DOCUMENT_BYTES;
use oci::mediatype::{self, Kind as MediaKind};
use oci::{Descriptor, Digest, Index, Manifest, Platform, PlatformMatcher, Reference};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::documents::Document;
use super::resolve::familiar_name;
use super::view::Variant;
use super::write::manifest_refs;
use super::{DANGLING, Images};
use crate::error::{Error, Kind, Result};
use crate::runtime::Runtime;
use crate::runtime::content::{GC_REF_CONTENT, Labels, Lease};

const CHUNK: usize = 256 << 10;
/// Chunks on their way between the request, the unpacking thread and the store.
const QUEUE: usize = 4;
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What `load` says for each image: `Loaded image: name` or `Loaded image ID: sha256:…`.
pub type LoadedLine = String;

/// One image of a Docker archive's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What an archive turned out to hold.
#[derive(Default)]
struct Contents {
    index: Option<Vec<u8>>,
    manifest: Option<Vec<u8>>,
    /// Files that are no blobs of a layout, by path.
    files: HashMap<String, (Digest, u64)>,
    /// Links, by path.
    links: HashMap<String, String>,
    blobs: HashMap<Digest, u64>,
}

impl Contents {
    /// A file of a Docker archive, wherever its path leads.
    fn file(&self, path: &str) -> Option<(Digest, u64)> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            if let Some(found) = self.files.get(&path) {
                return Some(found.clone());
            }
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                let digest = Digest::from_sha256_hex(hex).ok()?;
                return self.blobs.get(&digest).map(|size| (digest, *size));
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }
}

/// Why an archive cannot be read, in Docker's words.
fn tar_error(err: &dyn std::fmt::Display) -> Error {
    let text = err.to_string();
    let text = if text.contains("header") { "archive/tar: invalid tar header".to_owned() } else { text };
    Error::system(text)
}

/// A reader over a stream of chunks, for a thread that may block.
pub(super) struct ChannelReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let take = out.len().min(self.current.len());
        out[..take].copy_from_slice(&self.current.split_to(take));
        Ok(take)
    }
}

/// Feeds `source` to a reader for a blocking thread. A source that fails fails the reader.
pub(super) fn reader(
    mut source: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
) -> ChannelReader {
    let (send, chunks) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(chunk) = source.next().await {
            if send.send(chunk).await.is_err() {
                return;
            }
        }
    });
    ChannelReader { chunks, current: Bytes::new() }
}

/// Writes what `source` gives to the store from a blocking thread; gives digest and size.
pub(super) fn write_blob(
    runtime: &Runtime,
    handle: &Handle,
    lease: &Lease,
    mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    expected: Option<(&Digest, u64)>,
) -> Result<(Digest, u64)> {
    let (send, chunks) = mpsc::channel::<Result<Bytes>>(2);
    let stream = tokio_stream::wrappers::ReceiverStream::new(chunks);
    std::thread::scope(|scope| {
        let writer = scope
            .spawn(|| handle.block_on(runtime.blob_write_stream(stream, expected, Labels::new(), lease)));
        let mut buffer = vec![0_u8; CHUNK];
        loop {
            let mut filled = 0;
            let failed = loop {
                match source(&mut buffer[filled..]) {
                    Ok(0) => break None,
                    Ok(got) => filled += got,
                    Err(err) => break Some(err),
                }
                if filled == buffer.len() {
                    break None;
                }
            };
            let sent = match failed {
                Some(err) => send.blocking_send(Err(tar_error(&err))),
                None if filled == 0 => break,
                None => send.blocking_send(Ok(Bytes::copy_from_slice(&buffer[..filled]))),
            };
            if sent.is_err() || filled < buffer.len() {
                break;
            }
        }
        drop(send);
        writer.join().unwrap_or_else(|_| Err(Error::system("writing a blob failed")))
    })
}

fn clean(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// Reads the archive to its end. Blocks.
fn read_archive(
    source: ChannelReader,
    runtime: &Runtime,
    handle: &Handle,
    lease: &Lease,
) -> Result<Contents> {
    let mut contents = Contents::default();
    let decoder = Decoder::new(source).map_err(|err| tar_error(&err))?;
    let mut tar = TarReader::new(decoder);
    while let Some(entry) = tar.next_entry().map_err(|err| tar_error(&err))? {
        let path = clean(&entry.path);
        match entry.kind {
            EntryKind::File => {}
            EntryKind::Symlink | EntryKind::HardLink => {
                let link = clean(&entry.link);
                // Links of a Docker archive lead beside themselves or to the archive's root.
                let target = match (entry.kind, path.rsplit_once('/')) {
                    (EntryKind::Symlink, Some((parent, _))) if !link.starts_with("..") => {
                        format!("{parent}/{link}")
                    }
                    _ => link.trim_start_matches("../").to_owned(),
                };
                contents.links.insert(path, target);
                continue;
            }
            _ => continue,
        }
        let stated = path.strip_prefix("blobs/sha256/").and_then(|hex| Digest::from_sha256_hex(hex).ok());
        match (path.as_str(), stated) {
            ("index.json" | "manifest.json", _) if entry.size <= MAX_DOCUMENT_BYTES => {
                let mut bytes = Vec::new();
                tar.read_to_end(&mut bytes).map_err(|err| tar_error(&err))?;
                let slot = if path == "index.json" { &mut contents.index } else { &mut contents.manifest };
                *slot = Some(bytes);
            }
            ("oci-layout" | "repositories" | "version", _) => {}
            (_, Some(digest)) => {
                // What the store has need not be written again; it is held until the end all the same.
                handle.block_on(runtime.lease_add(lease, "content", digest.as_str()))?;
                if handle.block_on(runtime.blob(&digest))?.is_none() {
                    write_blob(runtime, handle, lease, |out| tar.read(out), Some((&digest, entry.size)))?;
                }
                contents.blobs.insert(digest, entry.size);
            }
            (_, None) => {
                let (digest, size) = write_blob(runtime, handle, lease, |out| tar.read(out), None)?;
                contents.files.insert(path, (digest, size));
            }
        }
    }
    Ok(contents)
}

impl Images {
    /// `POST /images/load`: puts the images of an archive into the store; gives what to tell the client of each.
    ///
    /// # Errors
    /// The archive is damaged or holds no images.
    pub async fn load(
        &self,
        source: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
        platforms: &[Platform],
    ) -> Result<Vec<LoadedLine>> {
        let lease = Arc::new(self.writing().await?);
        let loaded = self.load_under(&lease, source, platforms).await;
        if loaded.is_err() {
            lease.give_back().await;
        }
        loaded
    }

    async fn load_under(
        &self,
        lease: &Arc<Lease>,
        source: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
        platforms: &[Platform],
    ) -> Result<Vec<LoadedLine>> {
        let (runtime, handle, reading) = (self.runtime().clone(), Handle::current(), Arc::clone(lease));
        let source = reader(source);
        let read = tokio::task::spawn_blocking(move || read_archive(source, &runtime, &handle, &reading))
            .await
            .map_err(|err| Error::system(format!("read archive: {err}")))?;
        let contents = read?;
        let found = if let Some(index) = &contents.index {
            layout_images(index)?
        } else if let Some(manifest) = &contents.manifest {
            self.archive_images(manifest, &contents, lease).await?
        } else {
            return Err(Error::invalid("unrecognized image format"));
        };
        let mut by_target: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
        for (target, name) in found {
            match by_target.iter_mut().find(|(known, _)| known.digest == target.digest) {
                Some((_, names)) => names.extend(name),
                None => by_target.push((target, name.into_iter().collect())),
            }
        }
        let mut lines = Vec::new();
        for (target, names) in by_target {
            lines.extend(self.take_in(&target, &names, platforms, lease).await?);
        }
        Ok(lines)
    }

    /// Names what was loaded, and unpacks what this machine can run.
    async fn take_in(
        &self,
        target: &Descriptor,
        names: &[Reference],
        platforms: &[Platform],
        lease: &Lease,
    ) -> Result<Vec<LoadedLine>> {
        self.label_tree(target).await?;
        let texts: Vec<String> = names.iter().map(Reference::to_string).collect();
        self.name_image(target, &texts, Labels::new(), lease).await?;
        let shown = names.first().map_or_else(|| target.digest.to_string(), Reference::familiar);
        let records = self.by_target(&target.digest).await?;
        let record = records.first().ok_or_else(|| Error::system(format!("image {shown} was not kept")))?;
        if !platforms.is_empty() {
            let mut missing = Vec::new();
            for platform in platforms {
                match self.resolve_record(record, Some(platform)).await {
                    Ok(_) => {}
                    Err(err) if err.kind() == Kind::NotFound => missing.push(platform.to_string()),
                    Err(err) => return Err(err),
                }
            }
            if !missing.is_empty() {
                return Err(Error::not_found(format!(
                    "image {shown} was loaded, but doesn't provide the requested platform ([{}])",
                    missing.join(" ")
                )));
            }
        }
        match self.resolve_record(record, platforms.first()).await {
            Ok(image) => self.unpack(&image).await?,
            // An image for other machines is kept packed.
            Err(err) if err.kind() == Kind::NotFound => {}
            Err(err) => return Err(err),
        }
        self.announce("load", &target.digest, &shown).await;
        Ok(match names {
            [] => vec![format!("Loaded image ID: {}\n", target.digest)],
            names => names.iter().map(|name| format!("Loaded image: {}\n", name.familiar())).collect(),
        })
    }

    /// Ties every document under `target` to what it refers to, so that the store keeps it.
    pub(crate) async fn label_tree(&self, target: &Descriptor) -> Result<()> {
        let mut waiting = vec![target.clone()];
        let mut budget = oci::manifest::WalkBudget::default();
        while let Some(descriptor) = waiting.pop() {
            match self.document(&descriptor).await? {
                Some(Document::Manifest(manifest)) => {
                    self.runtime().blob_label(&descriptor.digest, manifest_refs(&manifest)).await?;
                }
                Some(Document::Index(index)) => {
                    budget.open(&index, 0).map_err(|err| Error::invalid(err.to_string()))?;
                    let mut labels = Labels::new();
                    for (at, child) in index.manifests.iter().enumerate() {
                        labels.insert(format!("{GC_REF_CONTENT}.m.{at}"), child.digest.to_string());
                    }
                    self.runtime().blob_label(&descriptor.digest, labels).await?;
                    waiting.extend(index.manifests.iter().cloned());
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The images of a Docker archive without an OCI index: their manifests are written here.
    async fn archive_images(
        &self,
        manifest: &[u8],
        contents: &Contents,
        lease: &Lease,
    ) -> Result<Vec<(Descriptor, Option<Reference>)>> {
        let items: Vec<Item> = serde_json::from_slice(manifest)
            .map_err(|err| Error::invalid(format!("invalid manifest.json: {err}")))?;
        let mut found = Vec::new();
        for item in items {
            let missing = |path: &str| Error::invalid(format!("archive misses {path}"));
            let (digest, size) = contents.file(&item.config).ok_or_else(|| missing(&item.config))?;
            let config = Descriptor::new(mediatype::DOCKER_CONFIG, digest, size);
            let mut layers = Vec::new();
            for path in item.layers.unwrap_or_default() {
                let (digest, size) = contents.file(&path).ok_or_else(|| missing(&path))?;
                let media_type = self.layer_type(&digest).await?;
                layers.push(Descriptor::new(media_type, digest, size));
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: mediatype::DOCKER_MANIFEST.into(),
                artifact_type: String::new(),
                config,
                layers,
                subject: None,
                annotations: BTreeMap::new(),
            };
            let bytes = serde_json::to_vec(&manifest)
                .map_err(|err| Error::system(format!("encode manifest: {err}")))?;
            self.runtime().blob_write(&bytes, manifest_refs(&manifest), lease).await?;
            let target = Descriptor::of(mediatype::DOCKER_MANIFEST, &bytes);
            let tags = item.repo_tags.unwrap_or_default();
            if tags.is_empty() {
                found.push((target, None));
                continue;
            }
            for tag in tags {
                let name = Reference::parse(&tag)
                    .map_err(|err| Error::invalid(format!("invalid tag {tag:?}: {err}")))?;
                found.push((target.clone(), Some(name.or_latest())));
            }
        }
        Ok(found)
    }

    /// What a layer's first bytes say it is packed with.
    async fn layer_type(&self, digest: &Digest) -> Result<&'static str> {
        let mut stream = self.runtime().blob_stream(digest).await?;
        let head = stream.next().await.transpose()?.unwrap_or_default();
        Ok(match layer::codec::sniff(&head) {
            layer::Compression::None => mediatype::DOCKER_LAYER,
            layer::Compression::Gzip => mediatype::DOCKER_LAYER_GZIP,
            layer::Compression::Zstd => mediatype::DOCKER_LAYER_ZSTD,
        })
    }

    /// `GET /images/get`: an archive of the named images. Everything is looked up before the first byte; then the bytes go to `sink`.
    ///
    /// # Errors
    /// 404 for an image or platform that is not there.
    pub async fn save(&self, names: &[String], platforms: &[Platform]) -> Result<Archive> {
        let mut archive = Archive::new(self.runtime()).await?;
        let view = self.runtime().view().await?;
        for name in names {
            let found = self.find(name).await?;
            let records = if found.by_id {
                self.by_target(&found.record.target.digest).await?
            } else {
                vec![found.record.clone()]
            };
            let target = &found.record.target;
            let variants = self.variants(&view, target).await?;
            let chosen = choose(&variants, platforms).ok_or_else(|| {
                let wanted: Vec<String> = platforms.iter().map(ToString::to_string).collect();
                Error::not_found(format!(
                    "no suitable export target found: image with reference {} was found but does not provide the specified platform ({})",
                    familiar_name(&found.record.name),
                    wanted.join(", ")
                ))
            })?;
            let target = archive.add(target, &variants, &chosen, self).await?;
            // An image asked for by its id is saved without names.
            let names: Vec<Reference> = records
                .iter()
                .filter(|record| !found.by_id && !record.name.starts_with(DANGLING))
                .filter_map(|record| Reference::parse(&record.name).ok())
                .collect();
            archive.name(&target, &names);
            let matcher = PlatformMatcher::host();
            let shown = chosen
                .iter()
                .map(|at| &variants[*at])
                .filter(|variant| !variant.descriptor.is_attestation())
                .min_by_key(|variant| {
                    let said =
                        variant.config.as_ref().map(|known| known.config.platform()).unwrap_or_default();
                    matcher.rank(&said).unwrap_or(usize::MAX)
                });
            if let Some(manifest) = shown.and_then(|variant| variant.manifest.as_ref()) {
                archive.item(manifest, &names);
            }
            self.announce("save", &found.record.target.digest, found.record.target.digest.as_str()).await;
        }
        Ok(archive)
    }
}

/// Which variants go into an archive: all that are whole, or those of the wanted platforms.
fn choose(variants: &[Variant], platforms: &[Platform]) -> Option<Vec<usize>> {
    let available = |at: &usize| variants[*at].available;
    if platforms.is_empty() {
        let all: Vec<usize> = (0..variants.len()).filter(available).collect();
        return (!all.is_empty()).then_some(all);
    }
    let mut chosen = Vec::new();
    for platform in platforms {
        let matcher = PlatformMatcher::only(platform);
        let best = (0..variants.len())
            .filter(available)
            .filter(|at| !variants[*at].descriptor.is_attestation())
            .filter_map(|at| {
                let said = variants[at].config.as_ref().map(|known| known.config.platform())?;
                matcher.rank(&said).map(|rank| (rank, at))
            })
            .min()?;
        chosen.push(best.1);
    }
    Some(chosen)
}

/// The images of an OCI layout: each entry of its index, with the name it has there.
fn layout_images(index: &[u8]) -> Result<Vec<(Descriptor, Option<Reference>)>> {
    let index: Index =
        serde_json::from_slice(index).map_err(|err| Error::invalid(format!("invalid index.json: {err}")))?;
    let mut found = Vec::new();
    for mut descriptor in index.manifests {
        if !matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index) {
            continue;
        }
        let full = descriptor.annotations.get(NAME);
        // A bare tag names nothing by itself; a whole reference does.
        let name =
            full.or_else(|| descriptor.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])));
        let name = name.and_then(|name| Reference::parse(name).ok()).map(Reference::or_latest);
        descriptor.annotations.remove(NAME);
        descriptor.annotations.remove(REF_NAME);
        found.push((descriptor, name));
    }
    if found.is_empty() {
        return Err(Error::invalid("unrecognized image format"));
    }
    Ok(found)
}

/// An archive that is ready to be sent.
pub struct Archive {
    runtime: Runtime,
    /// Keeps what is being sent.
    lease: Lease,
    /// Blobs by digest, those that are in the store (`None`) and those made for the archive.
    blobs: BTreeMap<Digest, (u64, Option<Vec<u8>>)>,
    index: Vec<Descriptor>,
    items: Vec<Item>,
}

impl Archive {
    async fn new(runtime: &Runtime) -> Result<Self> {
        Ok(Self {
            runtime: runtime.clone(),
            lease: runtime.lease(std::time::Duration::from_secs(3600)).await?,
            blobs: BTreeMap::new(),
            index: Vec::new(),
            items: Vec::new(),
        })
    }

    /// Adds the chosen variants; gives the descriptor that names them together.
    async fn add(
        &mut self,
        target: &Descriptor,
        variants: &[Variant],
        chosen: &[usize],
        images: &Images,
    ) -> Result<Descriptor> {
        for at in chosen {
            let variant = &variants[*at];
            let Some(manifest) = &variant.manifest else { continue };
            let blobs =
                std::iter::once(&variant.descriptor).chain([&manifest.config]).chain(&manifest.layers);
            for blob in blobs {
                self.runtime.lease_add(&self.lease, "content", blob.digest.as_str()).await?;
                self.blobs.insert(blob.digest.clone(), (blob.size, None));
            }
        }
        if target.kind() != MediaKind::Index {
            return Ok(Descriptor::new(&target.media_type, target.digest.clone(), target.size));
        }
        if chosen.len() == variants.len() {
            self.runtime.lease_add(&self.lease, "content", target.digest.as_str()).await?;
            self.blobs.insert(target.digest.clone(), (target.size, None));
            return Ok(target.clone());
        }
        if let [only] = chosen {
            return Ok(variants[*only].descriptor.clone());
        }
        // Other tools follow every entry of an index, so one of a partly fetched image lists only what is in the archive.
        let index = images.index(target).await?;
        let index = Index {
            schema_version: 2,
            media_type: target.media_type.clone(),
            artifact_type: String::new(),
            manifests: chosen.iter().map(|at| variants[*at].descriptor.clone()).collect(),
            subject: None,
            annotations: index.map(|index| index.annotations.clone()).unwrap_or_default(),
        };
        let bytes =
            serde_json::to_vec(&index).map_err(|err| Error::system(format!("encode index: {err}")))?;
        let made = Descriptor::of(&target.media_type, &bytes);
        self.blobs.insert(made.digest.clone(), (made.size, Some(bytes)));
        Ok(made)
    }

    fn name(&mut self, target: &Descriptor, names: &[Reference]) {
        if names.is_empty() {
            self.index.push(target.clone());
        }
        for name in names {
            let mut named = target.clone();
            named.annotations.insert(NAME.into(), name.to_string());
            if let Some(tag) = name.tag() {
                named.annotations.insert(REF_NAME.into(), tag.into());
            }
            self.index.push(named);
        }
    }

    fn item(&mut self, manifest: &Manifest, names: &[Reference]) {
        let path = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let tags: Vec<String> =
            names.iter().filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
        let config = path(&manifest.config.digest);
        if let Some(known) = self.items.iter_mut().find(|item| item.config == config) {
            known.repo_tags.get_or_insert_default().extend(tags);
            return;
        }
        self.items.push(Item {
            config,
            repo_tags: (!tags.is_empty()).then_some(tags),
            layers: Some(manifest.layers.iter().map(|layer| path(&layer.digest)).collect()),
        });
    }

    /// Sends the archive. Ends early when nobody listens any more.
    ///
    /// # Errors
    /// A blob could not be read.
    pub async fn send(self, sink: &mpsc::Sender<Bytes>) -> Result<()> {
        let gone = |_| Error::system("context canceled");
        if !self.blobs.is_empty() {
            for directory in ["blobs/", "blobs/sha256/"] {
                sink.send(header(directory, 0, 0o755, tar::EntryType::Directory)).await.map_err(gone)?;
            }
        }
        for (digest, (size, made)) in &self.blobs {
            let path = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
            sink.send(header(&path, *size, 0o444, tar::EntryType::Regular)).await.map_err(gone)?;
            let mut sent = 0;
            if let Some(bytes) = made {
                sent = bytes.len() as u64;
                sink.send(Bytes::copy_from_slice(bytes)).await.map_err(gone)?;
            } else {
                let mut stream = self.runtime.blob_stream(digest).await?;
                while let Some(chunk) = stream.next().await {
                    let chunk = chunk?;
                    sent += chunk.len() as u64;
                    sink.send(chunk).await.map_err(gone)?;
                }
            }
            if sent != *size {
                return Err(Error::system(format!("blob {digest} has {sent} bytes, expected {size}")));
            }
            pad(*size, sink).await.map_err(gone)?;
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": mediatype::OCI_INDEX,
            "manifests": self.index,
        });
        let mut files = vec![("index.json", 0o644, index.to_string())];
        if !self.items.is_empty() {
            let items = serde_json::to_string(&self.items).unwrap_or_default();
            files.push(("manifest.json", 0o644, items));
        }
        files.push(("oci-layout", 0o444, r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()));
        for (path, mode, text) in files {
            let size = text.len() as u64;
            sink.send(header(path, size, mode, tar::EntryType::Regular)).await.map_err(gone)?;
            sink.send(Bytes::from(text)).await.map_err(gone)?;
            pad(size, sink).await.map_err(gone)?;
        }
        sink.send(Bytes::from_static(&[0; 1024])).await.map_err(gone)?;
        drop(self.lease);
        Ok(())
    }
}

fn header(path: &str, size: u64, mode: u32, kind: tar::EntryType) -> Bytes {
    let mut header = tar::Header::new_ustar();
    // Our paths are short and plain.
    let _ = header.set_path(path);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(kind);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

async fn pad(size: u64, sink: &mpsc::Sender<Bytes>) -> Result<(), mpsc::error::SendError<Bytes>> {
    const ZEROS: [u8; 512] = [0; 512];
    let over = (size % 512) as usize;
    if over == 0 {
        return Ok(());
    }
    sink.send(Bytes::from_static(&ZEROS[over..])).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_layout() {
        let digest = Digest::of(b"{}");
        let entry = |annotations: serde_json::Value| json!({"mediaType": mediatype::OCI_MANIFEST, "digest": digest, "size": 2, "annotations": annotations});
        let index = json!({"schemaVersion": 2, "manifests": [
            entry(json!({NAME: "docker.io/rec/bb:1", REF_NAME: "1"})),
            entry(json!({REF_NAME: "busybox:1"})),
            entry(json!({REF_NAME: "latest"})),
        ]});
        let names: Vec<Option<String>> = layout_images(index.to_string().as_bytes())
            .unwrap()
            .into_iter()
            .map(|(_, name)| name.map(|name| name.familiar()))
            .collect();
        assert_eq!(names, [Some("rec/bb:1".into()), Some("busybox:1".into()), None]);
        assert!(layout_images(br#"{"schemaVersion":2,"manifests":[]}"#).is_err());
    }

    #[test]
    fn links_of_old_archives_are_followed() {
        let digest = Digest::of(b"x");
        let mut contents = Contents::default();
        contents.files.insert("a/layer.tar".into(), (digest.clone(), 1));
        contents.links.insert("b/layer.tar".into(), "a/layer.tar".into());
        contents.links.insert("loop".into(), "loop".into());
        assert_eq!(contents.file("b/layer.tar"), Some((digest, 1)));
        assert_eq!(contents.file("loop"), None);
        assert_eq!(clean(b"./a//b/./c"), "a/b/c");
    }
}
