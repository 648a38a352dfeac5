//! From an image's root document to what it is made of, and the labels that keep the parts while the whole is kept.

use std::collections::HashMap;

use containerd_api::error::{Error, Kind};
use oci::manifest::{MAX_CONFIG_BYTES, MAX_DOCUMENT_BYTES, WalkBudget};
use oci::mediatype::Kind as Media;
use oci::{Descriptor, Document, ImageConfig, Manifest, PlatformMatcher};

/// Which parts of an image are wanted.
#[derive(Clone, Debug)]
pub struct Selection {
    pub platforms: PlatformMatcher,
    /// Manifests and configurations of all platforms, layers only of the selected ones.
    pub all_metadata: bool,
    /// At most so many manifests of an index, best first; 0 for all.
    pub limit: usize,
}

impl Selection {
    /// The entries of an index to go into, best first, and of each whether its layers are wanted.
    pub fn choose<'a>(&self, entries: &'a [Descriptor]) -> Vec<(&'a Descriptor, bool)> {
        let rank = |entry: &Descriptor| match &entry.platform {
            Some(platform) => self.platforms.rank(platform),
            // Without a platform it may be anything.
            None => Some(usize::MAX),
        };
        let mut wanted: Vec<(usize, &Descriptor)> =
            entries.iter().filter_map(|entry| rank(entry).map(|rank| (rank, entry))).collect();
        if !self.platforms.is_all() {
            wanted.sort_by_key(|(rank, _)| *rank);
        }
        if self.limit > 0 {
            wanted.truncate(self.limit);
        }
        let mut chosen: Vec<(&Descriptor, bool)> = wanted.iter().map(|(_, entry)| (*entry, true)).collect();
        if self.all_metadata {
            let is_chosen = |entry: &Descriptor| wanted.iter().any(|(_, w)| std::ptr::eq(*w, entry));
            chosen.extend(entries.iter().filter(|e| !is_chosen(e)).map(|entry| (entry, false)));
        }
        chosen
    }
}

/// The labels that tie a document's children to it: by kind and number, as containerd's collector reads them.
pub fn child_labels(document: &Document) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    match document {
        Document::Manifest(manifest) => {
            labels.insert("containerd.io/gc.ref.content.config".into(), manifest.config.digest.to_string());
            for (at, layer) in manifest.layers.iter().enumerate() {
                let name = match layer.kind() {
                    Media::Layer => format!("containerd.io/gc.ref.content.l.{at}"),
                    _ => format!("containerd.io/gc.ref.content.{at}"),
                };
                labels.insert(name, layer.digest.to_string());
            }
        }
        Document::Index(index) => {
            for (at, entry) in index.manifests.iter().enumerate() {
                labels.insert(format!("containerd.io/gc.ref.content.m.{at}"), entry.digest.to_string());
            }
        }
    }
    labels
}

/// Reads a document that is in the store.
pub fn read_document(bytes: &[u8], descriptor: &Descriptor) -> Result<Document, Error> {
    Document::read(bytes, Some(&descriptor.media_type)).map_err(|err| Error::invalid(err.to_string()))
}

/// A manifest found while walking, with its configuration.
#[derive(Clone, Debug)]
pub struct Found {
    pub descriptor: Descriptor,
    pub manifest: Manifest,
    pub with_layers: bool,
    /// The documents above it, nearest last.
    pub above: Vec<Descriptor>,
}

/// Where documents come from.
pub trait Documents {
    /// The bytes of a document, and a chance to keep them.
    fn document(
        &self,
        descriptor: &Descriptor,
        above: &[Descriptor],
    ) -> impl Future<Output = Result<Option<Vec<u8>>, Error>> + Send;
}

/// Goes through indexes to the selected manifests. Documents that are missing are passed over unless they are the root.
pub async fn manifests<D: Documents + Sync>(
    documents: &D,
    root: &Descriptor,
    selection: &Selection,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let mut budget = WalkBudget::default();
    let mut stack = vec![(root.clone(), Vec::<Descriptor>::new(), true)];
    let mut seen = std::collections::HashSet::new();
    while let Some((descriptor, above, with_layers)) = stack.pop() {
        if !seen.insert((descriptor.digest.clone(), with_layers)) {
            continue;
        }
        if !matches!(descriptor.kind(), Media::Manifest | Media::Index) && !above.is_empty() {
            continue;
        }
        let Some(bytes) = documents.document(&descriptor, &above).await? else {
            if above.is_empty() {
                return Err(Error::not_found("content digest", descriptor.digest.as_str()));
            }
            continue;
        };
        match read_document(&bytes, &descriptor)? {
            Document::Manifest(manifest) => {
                found.push(Found { descriptor, manifest, with_layers, above });
            }
            Document::Index(index) => {
                budget.open(&index, above.len()).map_err(|err| Error::invalid(err.to_string()))?;
                let chosen = selection.choose(&index.manifests);
                if !index.manifests.is_empty() && !chosen.iter().any(|(_, layers)| *layers) {
                    let what = "no match for platform in manifest: not found";
                    return Err(Error::new(Kind::NotFound, what));
                }
                let mut path = above.clone();
                path.push(descriptor);
                // The best one is to be looked at first.
                for (entry, layers) in chosen.into_iter().rev() {
                    stack.push((entry.clone(), path.clone(), with_layers && layers));
                }
            }
        }
    }
    Ok(found)
}

/// The configuration of an image that is to be unpacked: its layers must be those of the manifest.
pub fn image_config(manifest: &Manifest, config: &[u8]) -> Result<ImageConfig, Error> {
    let config = ImageConfig::read_with_layers(config).map_err(|err| Error::invalid(err.to_string()))?;
    let layers = manifest.layers.iter().filter(|l| l.kind() == Media::Layer).count();
    if layers != config.rootfs.diff_ids.len() || layers != manifest.layers.len() {
        return Err(Error::invalid("layers from manifest don't match image configuration"));
    }
    Ok(config)
}

/// The largest a descriptor's content may be to be read into memory; `None` for what is not.
pub fn memory_limit(descriptor: &Descriptor) -> Option<u64> {
    match descriptor.kind() {
        Media::Manifest | Media::Index => Some(MAX_DOCUMENT_BYTES),
        Media::Config => Some(MAX_CONFIG_BYTES),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::{Digest, Platform, mediatype};

    fn entry(n: u8, platform: Option<&str>) -> Descriptor {
        let mut descriptor = Descriptor::new(mediatype::OCI_MANIFEST, Digest::of(&[n]), 1);
        descriptor.platform = platform.map(|p| Platform::parse(p).unwrap());
        descriptor
    }

    #[test]
    fn the_best_platform_comes_first_and_the_rest_only_as_metadata() {
        let entries =
            [entry(0, Some("linux/arm/v6")), entry(1, Some("linux/arm/v7")), entry(2, Some("linux/amd64"))];
        let mut selection = Selection {
            platforms: PlatformMatcher::only(&Platform::parse("linux/arm/v7").unwrap()),
            all_metadata: false,
            limit: 1,
        };
        let digests = |s: &Selection| {
            s.choose(&entries).iter().map(|(d, l)| (d.digest.clone(), *l)).collect::<Vec<_>>()
        };
        assert_eq!(digests(&selection), [(Digest::of(&[1]), true)]);
        selection.all_metadata = true;
        let (first, second, third) = (Digest::of(&[1]), Digest::of(&[0]), Digest::of(&[2]));
        assert_eq!(digests(&selection), [(first, true), (second, false), (third, false)]);
        assert_eq!(
            digests(&Selection { platforms: PlatformMatcher::all(), all_metadata: false, limit: 0 }).len(),
            3
        );
    }
}
