//! Export: images of the store as one archive, an OCI layout with `docker load`'s `manifest.json` beside it.
//!
//! Invariant: members come sorted by name and without times, so the same images always give the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use containerd_api::error::Error;
use containerd_api::transfer_types::{ImageExportStream, ImageStore};
use layer::{Entry, EntryKind, LayerError, TarWriter};
use oci::manifest::{Annotations, Index};
use oci::{Descriptor, Digest, Platform, PlatformMatcher, Reference, mediatype};

use super::progress::Progress;
use super::pull::SOURCE_LABEL;
use super::push::Stored;
use super::scope::{Scope, from_wire};
use super::streams::ByteWriter;
use super::walk::{self, Selection};
use super::{Transfer, names};

/// An image to export: its root and, unless it goes without, its name.
struct Wanted {
    root: Descriptor,
    name: Option<String>,
}

/// A member of the archive.
enum Member {
    Directory,
    Blob(Digest, u64),
    Bytes(Vec<u8>, u32),
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) async fn export(
    transfer: &Arc<Transfer>,
    scope: Scope,
    store: ImageStore,
    target: ImageExportStream,
    progress: Progress,
) -> Result<(), Error> {
    let stream = transfer.streams.take(&scope.namespace, &target.stream)?;
    progress.say("Exporting").await;
    let wanted = wanted(&scope, &store)?;
    let members = members(&scope, &wanted, &target).await?;
    let writer = ByteWriter::new(stream);
    tokio::task::spawn_blocking(move || write(&scope, members, writer))
        .await
        .map_err(|err| Error::internal("write the archive", err))??;
    progress.say("Completed export").await;
    Ok(())
}

/// The images a client named.
fn wanted(scope: &Scope, store: &ImageStore) -> Result<Vec<Wanted>, Error> {
    let mut wanted = Vec::new();
    let mut add = |image: containerd_api::images::Image, nameless: bool| -> Result<(), Error> {
        let root = from_wire(&image.target.unwrap_or_default())?;
        wanted.push(Wanted { root, name: Some(image.name).filter(|_| !nameless) });
        Ok(())
    };
    let get = |name: &str| scope.image(name)?.ok_or_else(|| Error::not_found("image", name));
    if !store.name.is_empty() {
        add(get(&store.name)?, false)?;
    }
    for extra in &store.extra_references {
        if extra.is_prefix {
            for image in scope.images(&extra.name)? {
                add(image, extra.add_digest)?;
            }
        } else {
            // By digest: the image goes without its name, as `docker save ID` has it.
            add(get(&extra.name)?, extra.add_digest)?;
        }
    }
    Ok(wanted)
}

async fn members(
    scope: &Scope,
    wanted: &[Wanted],
    target: &ImageExportStream,
) -> Result<BTreeMap<String, Member>, Error> {
    let mut members = BTreeMap::new();
    let platforms: Vec<Platform> = target.platforms.iter().map(super::pull::platform).collect();
    let matcher = match (target.all_platforms, platforms.as_slice()) {
        (true, _) => PlatformMatcher::all(),
        (false, []) => PlatformMatcher::only(&Platform::host()),
        (false, some) => PlatformMatcher::any_of(some),
    };
    let selection = Selection { platforms: matcher, all_metadata: false, limit: 0 };
    let host = PlatformMatcher::host();
    let mut index = Index {
        schema_version: 2,
        media_type: mediatype::OCI_INDEX.into(),
        artifact_type: String::new(),
        manifests: Vec::new(),
        subject: None,
        annotations: Annotations::new(),
    };
    let mut docker: Vec<(Digest, DockerImage)> = Vec::new();
    for image in wanted {
        index.manifests.push(annotated(scope, image)?);
        let mut found = walk::manifests(&Stored(scope), &image.root, &selection).await?;
        let mut seen = HashSet::new();
        found.retain(|f| seen.insert(f.descriptor.digest.clone()));
        for part in &found {
            for document in part.above.iter().chain([&part.descriptor]) {
                add_blob(scope, &mut members, document, false)?;
            }
            for child in std::iter::once(&part.manifest.config).chain(&part.manifest.layers) {
                let foreign = mediatype::is_foreign_layer(&child.media_type);
                if !(foreign && target.skip_non_distributable) {
                    add_blob(scope, &mut members, child, foreign)?;
                }
            }
        }
        let rank = |f: &&walk::Found| {
            let platform = f.descriptor.platform.clone();
            platform.map_or(Some(usize::MAX), |p| host.rank(&p)).unwrap_or(usize::MAX)
        };
        let runnable = found.iter().filter(|f| f.manifest.config.kind() == mediatype::Kind::Config);
        if let Some(best) = runnable.min_by_key(rank) {
            let tag = image.name.as_deref().and_then(repo_tag);
            match docker.iter_mut().find(|(digest, _)| *digest == best.descriptor.digest) {
                Some((_, known)) => {
                    if let Some(tag) = tag {
                        known.repo_tags.get_or_insert_with(Vec::new).push(tag);
                    }
                }
                None => docker.push((
                    best.descriptor.digest.clone(),
                    DockerImage {
                        config: blob_path(&best.manifest.config.digest),
                        repo_tags: tag.map(|tag| vec![tag]),
                        layers: best.manifest.layers.iter().map(|l| blob_path(&l.digest)).collect(),
                    },
                )),
            }
        }
    }
    let json = |err| Error::internal("write the archive", err);
    members.insert("index.json".into(), Member::Bytes(serde_json::to_vec(&index).map_err(json)?, 0o644));
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    members.insert("oci-layout".into(), Member::Bytes(layout, 0o444));
    if !target.skip_compatibility_manifest && !docker.is_empty() {
        let list: Vec<DockerImage> = docker.into_iter().map(|(_, image)| image).collect();
        members
            .insert("manifest.json".into(), Member::Bytes(serde_json::to_vec(&list).map_err(json)?, 0o644));
    }
    Ok(members)
}

/// An image's entry in the index, with its names and where it came from.
fn annotated(scope: &Scope, image: &Wanted) -> Result<Descriptor, Error> {
    let mut entry = image.root.clone();
    let labels = scope.info(&image.root.digest)?.map(|info| info.labels).unwrap_or_default();
    entry.annotations.extend(labels.into_iter().filter(|(key, _)| key.starts_with(SOURCE_LABEL)));
    let Some(name) = image.name.as_deref().filter(|n| !n.starts_with("moby-dangling@")) else {
        return Ok(entry);
    };
    entry.annotations.insert(names::IMAGE_NAME.into(), name.to_owned());
    let short = match Reference::parse(name) {
        Ok(reference) => {
            reference.tag().map(str::to_owned).or_else(|| reference.digest().map(Digest::to_string))
        }
        Err(_) => None,
    };
    entry.annotations.extend(short.map(|short| (names::REF_NAME.to_owned(), short)));
    Ok(entry)
}

/// The name as `docker load` shows it; only tags have one.
fn repo_tag(name: &str) -> Option<String> {
    let reference = Reference::parse(name).ok()?;
    reference.tag()?;
    let mut tagged = reference.without_tag_and_digest();
    tagged = tagged.with_tag(reference.tag()?).ok()?;
    Some(tagged.familiar())
}

fn add_blob(
    scope: &Scope,
    members: &mut BTreeMap<String, Member>,
    descriptor: &Descriptor,
    may_lack: bool,
) -> Result<(), Error> {
    let Some(info) = scope.info(&descriptor.digest)? else {
        let missing = Error::not_found("content digest", descriptor.digest.as_str());
        return if may_lack { Ok(()) } else { Err(missing) };
    };
    let size = u64::try_from(info.size).unwrap_or(0);
    members.insert("blobs/".into(), Member::Directory);
    members.insert(format!("blobs/{}/", descriptor.digest.algorithm().as_str()), Member::Directory);
    members.insert(blob_path(&descriptor.digest), Member::Blob(descriptor.digest.clone(), size));
    Ok(())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Writes the archive. Blocks for as long as the client takes to read it.
fn write(scope: &Scope, members: BTreeMap<String, Member>, writer: ByteWriter) -> Result<(), Error> {
    let fail =
        |err: LayerError| Error::new(containerd_api::Kind::Unavailable, format!("write the archive: {err}"));
    let mut tar = TarWriter::new(writer);
    for (name, member) in members {
        match member {
            Member::Directory => {
                tar.append(&Entry::new(name, EntryKind::Directory, 0o755), io::empty()).map_err(fail)?;
            }
            Member::Blob(digest, size) => {
                let (file, _) = scope.open(&digest)?;
                let entry = Entry { size, ..Entry::new(name, EntryKind::File, 0o444) };
                tar.append(&entry, file).map_err(fail)?;
            }
            Member::Bytes(bytes, mode) => {
                let entry = Entry { size: bytes.len() as u64, ..Entry::new(name, EntryKind::File, mode) };
                tar.append(&entry, &bytes[..]).map_err(fail)?;
            }
        }
    }
    tar.finish().map(drop).map_err(fail)
}
