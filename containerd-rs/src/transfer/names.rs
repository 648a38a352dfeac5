//! Which image names a transfer makes, from what the client asked and what an archive says.

use std::collections::HashMap;

use containerd_api::error::Error;
use containerd_api::transfer_types::{ImageReference, ImageStore};
use oci::Descriptor;

use super::scope::Scope;

/// The full name an archive gives an image.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// The short name (a tag) the OCI layout has.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The names for something that was asked for by name: pulled, or tagged.
pub fn named(store: &ImageStore, target: &Descriptor) -> Vec<String> {
    let mut names = Vec::new();
    if !store.name.is_empty() {
        names.push(store.name.clone());
    }
    for extra in store.extra_references.iter().filter(|r| !r.is_prefix) {
        names.push(if extra.add_digest {
            format!("{}@{}", extra.name, target.digest)
        } else {
            extra.name.clone()
        });
    }
    names
}

/// The names for an image found in an archive.
pub fn imported(store: &ImageStore, target: &Descriptor) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for reference in store.extra_references.iter().filter(|r| r.is_prefix) {
        let name = annotated(reference, target);
        if let Some(name) = &name {
            names.push(name.clone());
        }
        if reference.add_digest && !(reference.skip_named_digest && name.is_some()) {
            names.push(format!("{}@{}", reference.name, target.digest));
        }
    }
    // Without any wish, the archive's own full name.
    if store.extra_references.is_empty() && store.name.is_empty() {
        names.extend(target.annotations.get(IMAGE_NAME).cloned());
    }
    names
}

/// The name an archive's annotations give, as far as the client's prefix allows.
fn annotated(reference: &ImageReference, target: &Descriptor) -> Option<String> {
    let name = target.annotations.get(IMAGE_NAME).or_else(|| target.annotations.get(REF_NAME))?;
    if name.is_empty() || (reference.name.is_empty() && !reference.allow_overwrite) {
        return None;
    }
    if !name.contains(['/', ':', '@']) {
        return (!reference.name.is_empty()).then(|| format!("{}:{name}", reference.name));
    }
    (reference.allow_overwrite || has_prefix(name, &reference.name)).then(|| name.clone())
}

/// Whether a name is `prefix` itself or below it.
fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']) || prefix.ends_with('/'))
}

/// Makes the images and tells the client of each.
pub async fn save(
    scope: &Scope,
    names: &[String],
    target: &Descriptor,
    labels: &HashMap<String, String>,
    progress: &super::progress::Progress,
) -> Result<(), Error> {
    for name in names {
        scope.put_image(name, target, labels.clone()).await?;
        progress.image("saved", name, target).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::{Digest, mediatype};

    #[test]
    fn archives_name_images_as_far_as_the_client_allows() {
        let digest = Digest::of(b"");
        let mut target = Descriptor::new(mediatype::OCI_MANIFEST, digest.clone(), 1);
        let with = |name: &str, overwrite, add_digest, skip| ImageStore {
            extra_references: vec![ImageReference {
                name: name.into(),
                is_prefix: true,
                allow_overwrite: overwrite,
                add_digest,
                skip_named_digest: skip,
            }],
            ..ImageStore::default()
        };
        assert_eq!(
            imported(&with("moby-dangling", true, true, true), &target),
            [format!("moby-dangling@{digest}")]
        );
        assert!(imported(&ImageStore::default(), &target).is_empty());
        target.annotations.insert(REF_NAME.into(), "1.0".into());
        assert_eq!(imported(&with("base", false, false, false), &target), ["base:1.0"]);
        target.annotations.insert(IMAGE_NAME.into(), "docker.io/library/x:1.0".into());
        assert_eq!(imported(&with("moby-dangling", true, true, true), &target), ["docker.io/library/x:1.0"]);
        assert_eq!(imported(&ImageStore::default(), &target), ["docker.io/library/x:1.0"]);
        assert!(imported(&with("docker.io/library/y", false, false, false), &target).is_empty());
        assert_eq!(imported(&with("docker.io/library", false, false, false), &target).len(), 1);
        assert_eq!(imported(&with("i", true, true, false), &target)[1], format!("i@{digest}"));
    }
}
