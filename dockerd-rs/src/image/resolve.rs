//! From what the user typed to an image, and from an image to the manifest of one platform.
//!
//! The order is Docker's: a digest or full id, then a name (`:latest` if it has no tag), then the beginning of an id.

use std::sync::Arc;

use oci::manifest::{MAX_CONFIG_BYTES, MAX_DOCUMENT_BYTES, WalkBudget};
use oci::mediatype::Kind as MediaKind;
use oci::{
    Descriptor, Digest, ImageConfig, Index, Manifest, Platform, PlatformMatcher, Reference,
    reference::ReferenceOrDigest,
};

use super::documents::{Document, Known};
use super::{DANGLING, Images, ResolvedImage};
use crate::error::{Error, Result};
use crate::runtime::content::ImageRecord;

/// How short an id may be cut.
const SHORTEST_ID: usize = 4;

/// What a name or id stands for in the store.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record that matched; any of those with the target if an id was given.
    pub record: ImageRecord,
    /// Whether an id (or the beginning of one) was given, not a name.
    pub by_id: bool,
}

/// A manifest somewhere under an image, with what was looked up about it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The descriptor, as its index has it.
    pub descriptor: Descriptor,
    /// The manifest; `None` if its bytes are not here.
    pub manifest: Option<Arc<Manifest>>,
}

impl Images {
    /// The image a user means by `name`.
    ///
    /// # Errors
    /// 404 `No such image: …`, 400 for what is no reference.
    pub async fn find(&self, name: &str) -> Result<Found> {
        let parsed = Reference::parse_any(name).map_err(|err| Error::invalid(err.to_string()))?;
        let digest = match &parsed {
            ReferenceOrDigest::Digest(digest) => Some(digest),
            ReferenceOrDigest::Named(reference) => reference.digest(),
        };
        if let Some(digest) = digest {
            let records = self.by_target(digest).await?;
            let record = match &parsed {
                ReferenceOrDigest::Digest(_) => records.into_iter().next(),
                // The digest alone does not do: the repository has to be right too.
                ReferenceOrDigest::Named(reference) => records.into_iter().find(|record| {
                    Reference::parse(&record.name).is_ok_and(|found| found.name() == reference.name())
                }),
            };
            let by_id = matches!(parsed, ReferenceOrDigest::Digest(_));
            return record.map(|record| Found { record, by_id }).ok_or_else(|| no_such_image(&parsed));
        }
        let ReferenceOrDigest::Named(reference) = &parsed else { return Err(no_such_image(&parsed)) };
        let view = self.runtime().view().await?;
        if let Some(record) = view.names.get(&reference.clone().or_latest().to_string()) {
            return Ok(Found { record: record.clone(), by_id: false });
        }
        let is_id = (SHORTEST_ID..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_id {
            let beginning = format!("sha256:{name}");
            let mut matching = view.targets.keys().filter(|target| target.as_str().starts_with(&beginning));
            if let Some(target) = matching.next() {
                if matching.next().is_some() {
                    return Err(Error::not_found("ambiguous reference"));
                }
                let record = view.records(target).into_iter().next();
                return record
                    .map(|record| Found { record, by_id: true })
                    .ok_or_else(|| no_such_image(&parsed));
            }
        }
        Err(no_such_image(&parsed))
    }

    /// All records with the given target, ordered by name.
    pub(crate) async fn by_target(&self, digest: &Digest) -> Result<Vec<ImageRecord>> {
        let mut records = self.runtime().view().await?.records(digest);
        records.sort_by(|a, b| {
            (a.name.starts_with(DANGLING), &a.name).cmp(&(b.name.starts_with(DANGLING), &b.name))
        });
        Ok(records)
    }

    /// The image a user means, with the manifest that fits `platform` (or, without one, this machine).
    ///
    /// # Errors
    /// 404 for an unknown image or a platform it does not have, 400 for what is no reference.
    pub async fn resolve(&self, name: &str, platform: Option<&Platform>) -> Result<ResolvedImage> {
        let found = self.find(name).await?;
        self.resolve_record(&found.record, platform).await
    }

    /// As [`Images::resolve`], for a record that was found already.
    ///
    /// # Errors
    /// The platform is not there, or the image is damaged.
    pub async fn resolve_record(
        &self,
        record: &ImageRecord,
        platform: Option<&Platform>,
    ) -> Result<ResolvedImage> {
        let matcher = platform.map_or_else(PlatformMatcher::host, PlatformMatcher::only);
        let mut best: Option<(usize, ResolvedImage)> = None;
        let mut any: Option<ResolvedImage> = None;
        for entry in self.entries(&record.target).await? {
            let Some(manifest) = entry.manifest else { continue };
            if entry.descriptor.is_attestation() {
                continue;
            }
            // The index may say the platform; a lone manifest's is in its configuration.
            let said = entry.descriptor.platform.as_ref().and_then(|said| matcher.rank(said));
            if entry.descriptor.platform.is_some() && said.is_none() && platform.is_some() {
                continue;
            }
            let Some(config) = self.config(&manifest).await? else { continue };
            let rank = said.or_else(|| matcher.rank(&config.config.platform()));
            let resolved = || assemble(record, entry.descriptor, &manifest, &config);
            match rank {
                Some(rank) if best.as_ref().is_none_or(|(other, _)| rank < *other) => {
                    best = Some((rank, resolved()))
                }
                None if any.is_none() => any = Some(resolved()),
                _ => {}
            }
        }
        // Docker runs a foreign image when it is all there is and no platform was asked for.
        let chosen = best.map(|(_, image)| image).or_else(|| any.filter(|_| platform.is_none()));
        chosen.ok_or_else(|| {
            let wanted = platform.cloned().unwrap_or_else(Platform::host);
            let name = familiar_name(&record.name);
            Error::not_found(format!(
                "image with reference {name} was found but does not provide the specified platform ({wanted})"
            ))
        })
    }

    /// Every manifest under `target`, in the order of its indexes, those that are not here included.
    ///
    /// # Errors
    /// An index is damaged.
    pub(crate) async fn entries(&self, target: &Descriptor) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut waiting = vec![(target.clone(), 0_usize)];
        let mut budget = WalkBudget::default();
        while let Some((descriptor, depth)) = waiting.pop() {
            let document = self.document(&descriptor).await?;
            match document {
                Some(Document::Index(index)) => {
                    budget.open(&index, depth).map_err(|err| Error::system(err.to_string()))?;
                    for child in index.manifests.iter().rev() {
                        waiting.push((child.clone(), depth + 1));
                    }
                }
                Some(Document::Manifest(manifest)) => {
                    entries.push(Entry { descriptor, manifest: Some(manifest) })
                }
                None => entries.push(Entry { descriptor, manifest: None }),
            }
        }
        Ok(entries)
    }

    /// The index at `target`, if it is one and is here.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) async fn index(&self, target: &Descriptor) -> Result<Option<Arc<Index>>> {
        if target.kind() != MediaKind::Index {
            return Ok(None);
        }
        match self.document(target).await? {
            Some(Document::Index(index)) => Ok(Some(index)),
            _ => Ok(None),
        }
    }

    /// A manifest or index, if its bytes are here and it is one.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Option<Document>> {
        let kind = descriptor.kind();
        if !matches!(kind, MediaKind::Manifest | MediaKind::Index) {
            return Ok(None);
        }
        if !self.runtime().view().await?.has(&descriptor.digest) {
            return Ok(None);
        }
        match self.0.documents.document(&descriptor.digest) {
            Some(Document::Manifest(manifest)) if kind == MediaKind::Manifest => {
                return Ok(Some(Document::Manifest(manifest)));
            }
            Some(Document::Index(index)) if kind == MediaKind::Index => {
                return Ok(Some(Document::Index(index)));
            }
            // Never read, or called something else now: its bytes are to say what it is.
            _ => {}
        }
        let Some(bytes) = self.runtime().blob_read(&descriptor.digest, MAX_DOCUMENT_BYTES).await? else {
            return Ok(None);
        };
        let document: Document = oci::Document::read(&bytes, Some(&descriptor.media_type))
            .map_err(|err| Error::system(format!("{}: {err}", descriptor.digest)))?
            .into();
        self.0.documents.keep_document(&descriptor.digest, &document, bytes.len());
        Ok(Some(document))
    }

    /// A manifest's configuration, if its bytes are here.
    pub(crate) async fn config(&self, manifest: &Manifest) -> Result<Option<Arc<Known>>> {
        let digest = &manifest.config.digest;
        if !self.runtime().view().await?.has(digest) {
            return Ok(None);
        }
        if let Some(config) = self.0.documents.config(digest) {
            return Ok(config);
        }
        let Some(bytes) = self.runtime().blob_read(digest, MAX_CONFIG_BYTES).await? else {
            return Ok(None);
        };
        // Artifacts (charts, signatures) have configurations of their own; they are listed, and run by nobody.
        let config = match ImageConfig::read(&bytes) {
            Ok(config) => Some(Arc::new(Known::from(config))),
            Err(err) => {
                tracing::debug!(%digest, error = %err, "not an image configuration");
                None
            }
        };
        self.0.documents.keep_config(digest, &config, bytes.len());
        Ok(config)
    }
}

fn assemble(
    record: &ImageRecord,
    mut descriptor: Descriptor,
    manifest: &Manifest,
    known: &Known,
) -> ResolvedImage {
    descriptor.platform.get_or_insert_with(|| known.config.platform());
    ResolvedImage {
        id: record.target.digest.clone(),
        target: record.target.clone(),
        reference: (!record.name.starts_with(DANGLING)).then(|| record.name.clone()),
        manifest: descriptor,
        config_digest: manifest.config.digest.clone(),
        chain_id: oci::config::chain_id(&known.config.rootfs.diff_ids),
        config: known.config.clone(),
        layers: manifest.layers.clone(),
    }
}

/// Docker's 404 for an image.
fn no_such_image(wanted: &ReferenceOrDigest) -> Error {
    let shown = match wanted {
        ReferenceOrDigest::Digest(digest) => digest.to_string(),
        ReferenceOrDigest::Named(reference) => reference.clone().or_latest().familiar(),
    };
    Error::not_found(format!("No such image: {shown}"))
}

/// A record's name as the user sees it.
pub(crate) fn familiar_name(name: &str) -> String {
    match Reference::parse(name) {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_owned(),
    }
}

/// `RepoTags` and `RepoDigests` of records that share a target: familiar names, each once, sorted.
pub fn familiar_names(records: &[ImageRecord]) -> (Vec<String>, Vec<String>) {
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for record in records.iter().filter(|record| !record.name.starts_with(DANGLING)) {
        let Ok(reference) = Reference::parse(&record.name) else {
            tags.push(record.name.clone());
            continue;
        };
        tags.push(reference.familiar());
        digests.push(format!("{}@{}", reference.familiar_name(), record.target.digest));
    }
    for list in [&mut tags, &mut digests] {
        list.sort();
        list.dedup();
    }
    (tags, digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> ImageRecord {
        ImageRecord {
            name: name.into(),
            target: Descriptor::of(oci::mediatype::OCI_MANIFEST, b"{}"),
            labels: Default::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            updated_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn names_are_shown_as_docker_shows_them() {
        let digest = Digest::of(b"{}");
        let records = [
            record("docker.io/rec/bb:1"),
            record(&format!("127.0.0.1:5555/rec/bb@{digest}")),
            record(&format!("{DANGLING}@{digest}")),
            record("docker.io/library/busybox:latest"),
        ];
        let (tags, digests) = familiar_names(&records);
        assert_eq!(
            tags,
            [format!("127.0.0.1:5555/rec/bb@{digest}"), "busybox:latest".into(), "rec/bb:1".into()]
        );
        let want = ["127.0.0.1:5555/rec/bb", "busybox", "rec/bb"].map(|name| format!("{name}@{digest}"));
        assert_eq!(digests, want);
    }

    #[test]
    fn a_missing_image_is_named_with_its_tag() {
        let text = |name: &str| no_such_image(&Reference::parse_any(name).unwrap()).message().to_owned();
        assert_eq!(text("nosuch"), "No such image: nosuch:latest");
        assert_eq!(text("nosuch/image"), "No such image: nosuch/image:latest");
        assert_eq!(text("nosuch:1"), "No such image: nosuch:1");
        let zeros = "0".repeat(64);
        assert_eq!(text(&format!("nosuch@sha256:{zeros}")), format!("No such image: nosuch@sha256:{zeros}"));
        assert_eq!(text(&zeros), format!("No such image: sha256:{zeros}"));
    }
}
