//! Import: an archive from a client into the store.
//!
//! Read as it comes, once: an OCI layout, the format of `docker save`, or both in one tar, packed with gzip or zstd or
//! not at all. Every file becomes a blob as it passes; what they mean is known when the archive has ended.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use containerd_api::error::{Error, Kind};
use containerd_api::transfer_types::{ImageImportStream, ImageStore};
use layer::{Compression, EntryKind, LayerError, TarReader};
use oci::manifest::{Annotations, Index, MAX_DOCUMENT_BYTES};
use oci::{Descriptor, Digest, Document, Manifest, Reference, mediatype};

use super::progress::Progress;
use super::pull::selection;
use super::push::Stored;
use super::scope::Scope;
use super::streams::ByteReader;
use super::unpack::{Chain, Plan};
use super::walk::{self, Found};
use super::{Transfer, names};

/// Most files an archive may have.
const MAX_FILES: usize = 100_000;
const BUFFER: usize = 128 * 1024;

/// What an archive held.
#[derive(Default)]
struct Archive {
    is_layout: bool,
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    blobs: HashMap<String, (Digest, u64)>,
    links: HashMap<String, String>,
}

/// An entry of `manifest.json`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(super) async fn import(
    transfer: &Arc<Transfer>,
    scope: Scope,
    source: ImageImportStream,
    store: ImageStore,
    progress: Progress,
) -> Result<(), Error> {
    let stream = transfer.streams.take(&scope.namespace, &source.stream)?;
    progress.say("Importing").await;
    let reader = ByteReader::new(stream);
    let reading = scope.clone();
    let archive = tokio::task::spawn_blocking(move || read_archive(&reading, reader))
        .await
        .map_err(|err| Error::internal("read the archive", err))??;
    let images = images(&scope, &archive, source.force_compress).await?;
    let selection = selection(&store);
    let mut done: HashSet<Digest> = HashSet::new();
    for image in &images {
        if image.platform.as_ref().is_some_and(|p| !selection.platforms.matches(p)) {
            continue;
        }
        if done.insert(image.digest.clone()) {
            keep(transfer, &scope, image, &store, &progress).await?;
        }
        let mut target = image.clone();
        let names = names::imported(&store, &target);
        target.annotations.clear();
        names::save(&scope, &names, &target, &store.labels, &progress).await?;
    }
    save_index(&scope, &images, &store, &progress).await?;
    progress.say("Completed import").await;
    Ok(())
}

/// Names the archive as a whole, if that is wanted: an index of all that is in it.
async fn save_index(
    scope: &Scope,
    images: &[Descriptor],
    store: &ImageStore,
    progress: &Progress,
) -> Result<(), Error> {
    if names::named(store, &Descriptor::of(mediatype::OCI_INDEX, &[])).is_empty() {
        return Ok(());
    }
    let mut manifests: Vec<Descriptor> = Vec::new();
    for image in images {
        if !manifests.iter().any(|known| known.digest == image.digest) {
            manifests.push(image.clone());
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: mediatype::OCI_INDEX.into(),
        artifact_type: String::new(),
        manifests,
        subject: None,
        annotations: Annotations::new(),
    };
    let bytes = serde_json::to_vec(&index).map_err(|err| Error::internal("write an index", err))?;
    let descriptor = Descriptor::of(mediatype::OCI_INDEX, &bytes);
    scope.put(&descriptor, &bytes, walk::child_labels(&Document::Index(index))).await?;
    let names = names::named(store, &descriptor);
    names::save(scope, &names, &descriptor, &store.labels, progress).await
}

/// Labels an image's documents, checks that its parts are there, and unpacks it if that is wanted.
async fn keep(
    transfer: &Arc<Transfer>,
    scope: &Scope,
    image: &Descriptor,
    store: &ImageStore,
    progress: &Progress,
) -> Result<(), Error> {
    let mut selection = selection(store);
    let found = match walk::manifests(&Stored(scope), image, &selection).await {
        // The client finds out what is missing by looking.
        Err(err) if err.is_not_found() && !store.platforms.is_empty() => return Ok(()),
        other => other?,
    };
    selection.platforms = oci::PlatformMatcher::all();
    for part in &found {
        for document in part.above.iter().chain([&part.descriptor]) {
            let parsed = walk::read_document(&scope.read(document)?, document)?;
            scope.hold_content(&document.digest).await?;
            scope.label(&document.digest, walk::child_labels(&parsed)).await?;
        }
        for child in std::iter::once(&part.manifest.config).chain(&part.manifest.layers) {
            if !scope.has(&child.digest)? {
                if mediatype::is_foreign_layer(&child.media_type) {
                    continue;
                }
                return Err(Error::not_found("content digest", child.digest.as_str()));
            }
            scope.hold_content(&child.digest).await?;
        }
        unpack(transfer, scope, part, store, progress).await?;
    }
    Ok(())
}

async fn unpack(
    transfer: &Arc<Transfer>,
    scope: &Scope,
    found: &Found,
    store: &ImageStore,
    progress: &Progress,
) -> Result<(), Error> {
    if found.manifest.config.kind() != mediatype::Kind::Config {
        return Ok(());
    }
    let config = scope.read(&found.manifest.config)?;
    let Some(plan) = Plan::new(&transfer.config, found, &config, store)? else { return Ok(()) };
    let chain = Chain::new(transfer, scope, plan);
    let layers = found.manifest.layers.iter().enumerate();
    let work = layers.map(|(at, layer)| {
        let chain = &chain;
        async move {
            let incoming = chain.begin(at).await?;
            chain.end(at, layer, incoming, progress).await
        }
    });
    if let Err(err) = futures_util::future::try_join_all(work).await {
        chain.abandon().await;
        return Err(err);
    }
    chain.finish(&found.manifest.config).await
}

/// Reads the whole archive, storing its blobs. Blocks.
fn read_archive(scope: &Scope, source: impl Read) -> Result<Archive, Error> {
    let mut reader = TarReader::new(layer::Decoder::new(source).map_err(|err| bad(&LayerError::Io(err)))?);
    let mut archive = Archive::default();
    while let Some(entry) = reader.next_entry().map_err(|err| bad(&err))? {
        let path = layer::root::clean(&entry.path)
            .ok_or_else(|| bad(&LayerError::EntryName(String::from_utf8_lossy(&entry.path).into_owned())))?;
        let Ok(name) = String::from_utf8(path) else { continue };
        if archive.blobs.len() + archive.links.len() > MAX_FILES {
            return Err(Error::invalid("archive has too many files"));
        }
        match entry.kind {
            EntryKind::File => {}
            EntryKind::Symlink | EntryKind::HardLink => {
                let target = link_target(&name, &entry.link, entry.kind);
                archive.links.extend(target.map(|target| (name, target)));
                continue;
            }
            _ => continue,
        }
        match name.as_str() {
            "oci-layout" => {
                check_layout(&small(&mut reader, entry.size)?)?;
                archive.is_layout = true;
            }
            "index.json" => archive.index = Some(small(&mut reader, entry.size)?),
            "manifest.json" => archive.docker = Some(small(&mut reader, entry.size)?),
            _ => {
                let stored = blob(scope, &mut reader, &name, entry.size)?;
                archive.blobs.insert(name, stored);
            }
        }
    }
    Ok(archive)
}

/// Where a link of the archive leads, within the archive.
fn link_target(name: &str, link: &[u8], kind: EntryKind) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    let dir = match kind {
        EntryKind::Symlink if !link.starts_with('/') => name.rsplit_once('/').map_or("", |(dir, _)| dir),
        _ => "",
    };
    String::from_utf8(layer::root::clean(format!("{dir}/{link}").as_bytes())?).ok()
}

fn check_layout(bytes: &[u8]) -> Result<(), Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let layout: Layout = serde_json::from_slice(bytes).map_err(|err| Error::invalid(err.to_string()))?;
    if layout.image_layout_version != "1.0.0" {
        return Err(Error::invalid(format!("unsupported OCI version {}", layout.image_layout_version)));
    }
    Ok(())
}

fn small(reader: &mut impl Read, size: u64) -> Result<Vec<u8>, Error> {
    if size > MAX_DOCUMENT_BYTES {
        return Err(Error::invalid(format!("document of {size} bytes is too large")));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| bad(&LayerError::FieldTooLong))?];
    reader.read_exact(&mut bytes).map_err(|err| bad_io(&err))?;
    Ok(bytes)
}

/// Stores one file. Files of a layout must have the digest they are named by.
fn blob(scope: &Scope, reader: &mut impl Read, name: &str, size: u64) -> Result<(Digest, u64), Error> {
    let runtime = tokio::runtime::Handle::current();
    let expected = match name.strip_prefix("blobs/").and_then(|rest| rest.split_once('/')) {
        Some((algorithm, hex)) => Some(crate::content::parse(&format!("{algorithm}:{hex}"))?),
        None => None,
    };
    let reference = match &expected {
        Some(digest) => format!("import-{digest}"),
        None => {
            let mut random = [0u8; 8];
            getrandom::fill(&mut random).map_err(|err| Error::internal("name a write", err))?;
            format!("import-{}-{name}", hex::encode(random))
        }
    };
    let writer = runtime.block_on(scope.writer_as(&reference, size, expected.clone()))?;
    let (Some(mut writer), expected) = (writer, expected.clone()) else {
        let digest = expected.ok_or_else(|| Error::internal("import", "a new write exists"))?;
        return Ok((digest, size));
    };
    if !writer.is_shared() {
        writer.restart()?;
        let mut buffer = vec![0; BUFFER];
        let mut left = size;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = reader.read(&mut buffer[..want]).map_err(|err| bad_io(&err))?;
            if got == 0 {
                return Err(bad(&LayerError::UnexpectedEof));
            }
            writer.append(&buffer[..got])?;
            left -= got as u64;
        }
    }
    let digest = writer.digest().ok_or_else(|| Error::internal("import", "no digest"))?;
    match runtime.block_on(writer.commit(size, expected.as_ref(), HashMap::new())) {
        Ok(_) => {}
        Err(err) if err.is_already_exists() => runtime.block_on(scope.hold_content(&digest))?,
        Err(err) => {
            drop(writer);
            let _ = scope.content.abort(&scope.namespace, &reference);
            return Err(err);
        }
    }
    Ok((digest, size))
}

/// The images an archive holds, with the names it gives them.
async fn images(scope: &Scope, archive: &Archive, compress: bool) -> Result<Vec<Descriptor>, Error> {
    if archive.is_layout {
        let index = archive.index.as_deref().ok_or_else(unrecognized)?;
        let document = Document::read(index, None).map_err(|err| Error::invalid(err.to_string()))?;
        let Document::Index(index) = document else { return Err(unrecognized()) };
        return Ok(index.manifests);
    }
    let docker = archive.docker.as_deref().ok_or_else(unrecognized)?;
    let listed: Vec<DockerImage> =
        serde_json::from_slice(docker).map_err(|err| Error::invalid(err.to_string()))?;
    let mut images = Vec::new();
    for image in listed {
        let descriptor = docker_manifest(scope, archive, &image, compress).await?;
        let tags = image.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            images.push(descriptor.clone());
        }
        for tag in tags {
            let reference = Reference::parse_docker(&tag).map_err(|err| Error::invalid(err.to_string()))?;
            let mut named = descriptor.clone();
            named.annotations.insert(names::IMAGE_NAME.into(), reference.to_string());
            named.annotations.insert(names::REF_NAME.into(), reference.tag().unwrap_or_default().to_owned());
            images.push(named);
        }
    }
    Ok(images)
}

/// Makes the manifest that an image of the old format does not have.
async fn docker_manifest(
    scope: &Scope,
    archive: &Archive,
    image: &DockerImage,
    compress: bool,
) -> Result<Descriptor, Error> {
    let config = archive
        .find(&image.config)
        .ok_or_else(|| Error::invalid(format!("image config {:?} not found", image.config)))?;
    let mut layers = Vec::new();
    for name in image.layers.iter().flatten() {
        let (digest, size) =
            archive.find(name).ok_or_else(|| Error::invalid(format!("layer {name:?} not found")))?;
        layers.push(layer_descriptor(scope, digest, size, compress).await?);
    }
    let config = Descriptor::new(mediatype::DOCKER_CONFIG, config.0, config.1);
    let platform = oci::ImageConfig::read(&scope.read(&config)?)
        .map_err(|err| Error::invalid(err.to_string()))?
        .platform();
    let manifest = Manifest {
        schema_version: 2,
        media_type: mediatype::DOCKER_MANIFEST.into(),
        artifact_type: String::new(),
        config,
        layers,
        subject: None,
        annotations: Annotations::new(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|err| Error::internal("write a manifest", err))?;
    let mut descriptor = Descriptor::of(mediatype::DOCKER_MANIFEST, &bytes);
    let labels = walk::child_labels(&Document::Manifest(manifest));
    scope.put(&descriptor, &bytes, labels).await?;
    descriptor.platform = Some(platform.normalized()).filter(|p| !p.is_unspecified());
    Ok(descriptor)
}

/// A layer by what it is, packed if that is wanted.
async fn layer_descriptor(
    scope: &Scope,
    digest: Digest,
    size: u64,
    compress: bool,
) -> Result<Descriptor, Error> {
    let (mut file, _) = scope.open(&digest)?;
    let mut head = [0u8; 4];
    let got = file.read(&mut head).map_err(|err| Error::internal("read content", err))?;
    Ok(match layer::codec::sniff(&head[..got]) {
        Compression::Gzip => Descriptor::new(mediatype::DOCKER_LAYER_GZIP, digest, size),
        Compression::Zstd => Descriptor::new(mediatype::DOCKER_LAYER_ZSTD, digest, size),
        Compression::None if compress => {
            let scope = scope.clone();
            tokio::task::spawn_blocking(move || packed(&scope, &digest))
                .await
                .map_err(|err| Error::internal("compress a layer", err))??
        }
        Compression::None => Descriptor::new(mediatype::DOCKER_LAYER, digest, size),
    })
}

/// Stores a gzip of a blob. Blocks.
fn packed(scope: &Scope, digest: &Digest) -> Result<Descriptor, Error> {
    let runtime = tokio::runtime::Handle::current();
    let (mut file, _) = scope.open(digest)?;
    let reference = format!("compress-{digest}");
    let writer = runtime.block_on(scope.writer_as(&reference, 0, None))?;
    let mut writer = writer.ok_or_else(|| Error::internal("compress a layer", "a new write exists"))?;
    writer.restart()?;
    let fail = |err: std::io::Error| Error::internal("compress a layer", err);
    let mut encoder = layer::Encoder::new(super::diff::Sink(&mut writer), Compression::Gzip).map_err(fail)?;
    std::io::copy(&mut file, &mut encoder).map_err(fail)?;
    encoder.finish().map_err(fail)?;
    let (packed, size) =
        (writer.digest().ok_or_else(|| Error::internal("compress", "no digest"))?, writer.offset());
    let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), digest.to_string())]);
    match runtime.block_on(writer.commit(size, None, labels)) {
        Ok(_) => {}
        Err(err) if err.is_already_exists() => runtime.block_on(scope.hold_content(&packed))?,
        Err(err) => return Err(err),
    }
    Ok(Descriptor::new(mediatype::DOCKER_LAYER_GZIP, packed, size))
}

impl Archive {
    /// A file by name, through links.
    fn find(&self, name: &str) -> Option<(Digest, u64)> {
        let mut name = String::from_utf8(layer::root::clean(name.as_bytes())?).ok()?;
        for _ in 0..16 {
            if let Some((digest, size)) = self.blobs.get(&name) {
                return Some((digest.clone(), *size));
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }
}

fn unrecognized() -> Error {
    Error::invalid("unrecognized image format")
}

fn bad(err: &LayerError) -> Error {
    match err {
        // containerd does not classify it.
        LayerError::UnexpectedEof => Error::new(Kind::Unknown, err.to_string()),
        _ => Error::invalid(err.to_string()),
    }
}

fn bad_io(err: &std::io::Error) -> Error {
    match err.kind() {
        std::io::ErrorKind::UnexpectedEof => bad(&LayerError::UnexpectedEof),
        _ => Error::internal("read the archive", err),
    }
}
