//! New images: configuration and layers in, a named manifest out.
//!
//! `commit`, `import` and the builder make images through here. Everything is written under one lease; the name comes last, so an image that
//! can be seen is whole.

use std::time::Duration;

use oci::mediatype::{OCI_CONFIG, OCI_MANIFEST};
use oci::{Descriptor, Digest, ImageConfig, Manifest};

use super::{DANGLING, Images, PARENT_LABEL};
use crate::error::{Error, Result};
use crate::runtime::content::{GC_REF_CONTENT, GC_REF_SNAPSHOT, ImageRecord, Labels, Lease, UNCOMPRESSED};

const LEASE: Duration = Duration::from_secs(24 * 3600);

/// A layer whose blob is in the store already.
#[derive(Clone, Debug)]
pub struct NewLayer {
    /// The blob.
    pub blob: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The configuration; `rootfs` is filled in from `layers`.
    pub config: ImageConfig,
    /// All layers, lowest first.
    pub layers: Vec<NewLayer>,
    /// The id of the image this one was made from.
    pub parent: Option<Digest>,
}

impl Images {
    /// A lease for writing an image: blobs and snapshots made under it wait for [`Images::write_image`].
    ///
    /// # Errors
    /// containerd refused.
    pub async fn writing(&self) -> Result<Lease> {
        self.runtime().lease(LEASE).await
    }

    /// Writes the image and names it; without `names` it is dangling. Gives its id and the manifest's descriptor.
    /// Publishes nothing: the caller knows what happened.
    ///
    /// # Errors
    /// A layer's blob is missing, or containerd refused.
    pub async fn write_image(&self, new: NewImage, names: &[String], lease: &Lease) -> Result<Descriptor> {
        let NewImage { mut config, layers, parent } = new;
        config.rootfs.kind = "layers".into();
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        for layer in &layers {
            let label = Labels::from([(UNCOMPRESSED.to_owned(), layer.diff_id.to_string())]);
            self.runtime().blob_label(&layer.blob.digest, label).await?;
        }
        let config_bytes = config.to_bytes();
        let mut config_labels = Labels::new();
        if let Some(chain) = oci::config::chain_id(&config.rootfs.diff_ids)
            && self.runtime().snapshot(chain.as_str()).await?.is_some()
        {
            config_labels.insert(GC_REF_SNAPSHOT.to_owned(), chain.to_string());
        }
        self.runtime().blob_write(&config_bytes, config_labels, lease).await?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: Descriptor::of(OCI_CONFIG, &config_bytes),
            layers: layers.into_iter().map(|layer| layer.blob).collect(),
            subject: None,
            annotations: oci::manifest::Annotations::new(),
        };
        let bytes =
            serde_json::to_vec(&manifest).map_err(|err| Error::system(format!("encode manifest: {err}")))?;
        let target = Descriptor::of(OCI_MANIFEST, &bytes);
        self.runtime().blob_write(&bytes, manifest_refs(&manifest), lease).await?;
        let mut labels = Labels::new();
        if let Some(parent) = parent {
            labels.insert(PARENT_LABEL.to_owned(), parent.to_string());
        }
        self.name_image(&target, names, labels, lease).await?;
        Ok(target)
    }

    /// Gives `target` its names. Whatever had one of them before becomes dangling, and `target` is dangling no more.
    pub(crate) async fn name_image(
        &self,
        target: &Descriptor,
        names: &[String],
        labels: Labels,
        lease: &Lease,
    ) -> Result<()> {
        let dangling = dangling_name(&target.digest);
        if names.is_empty() {
            if self.by_target(&target.digest).await?.is_empty() {
                self.runtime().image_put(&dangling, target, labels, Some(lease)).await?;
            }
            return Ok(());
        }
        for name in names {
            self.keep_as_dangling(name, &target.digest).await?;
            self.runtime().image_put(name, target, labels.clone(), Some(lease)).await?;
        }
        self.runtime().image_delete(&dangling, false).await?;
        Ok(())
    }

    /// Before `name` is given to `next`: what it names now keeps a record.
    pub(crate) async fn keep_as_dangling(&self, name: &str, next: &Digest) -> Result<()> {
        let Some(ImageRecord { target, labels, .. }) = self.runtime().image(name).await? else {
            return Ok(());
        };
        if target.digest == *next {
            return Ok(());
        }
        let others = self.by_target(&target.digest).await?;
        if others.iter().all(|other| other.name == name) {
            self.runtime().image_put(&dangling_name(&target.digest), &target, labels, None).await?;
        }
        Ok(())
    }
}

/// The name of an image that has none.
pub(crate) fn dangling_name(digest: &Digest) -> String {
    format!("{DANGLING}@{digest}")
}

/// The labels by which a manifest keeps what it refers to.
pub(crate) fn manifest_refs(manifest: &Manifest) -> Labels {
    let mut labels = Labels::from([(format!("{GC_REF_CONTENT}.config"), manifest.config.digest.to_string())]);
    for (at, layer) in manifest.layers.iter().enumerate() {
        labels.insert(format!("{GC_REF_CONTENT}.l.{at}"), layer.digest.to_string());
    }
    labels
}
