//! From layers to snapshots.
//!
//! Invariant: the snapshot called by a chain id holds exactly those layers. Layers are applied to a snapshot with a key of its own and
//! committed under the chain's name only when the bytes hashed to what the configuration says; whoever dies half-way leaves a snapshot under a
//! lease that expires.

use std::time::Duration;

use oci::config::chain_id;

use super::{Images, ResolvedImage};
use crate::error::{Error, Kind, Result};
use crate::runtime::content::{GC_REF_SNAPSHOT, Labels, Lease};

/// How long an unpacking may take before its half-done work is given back.
const LEASE: Duration = Duration::from_secs(24 * 3600);

impl Images {
    /// Sees to it that the image's layers are unpacked and tied to its configuration.
    ///
    /// # Errors
    /// A layer is missing or damaged, or containerd refused.
    pub async fn unpack(&self, image: &ResolvedImage) -> Result<()> {
        let Some(top) = &image.chain_id else { return Ok(()) };
        if self.runtime().snapshot(top.as_str()).await?.is_some() {
            return Ok(());
        }
        let lock = self.making(top.as_str());
        let _one_at_a_time = lock.lock().await;
        if self.runtime().snapshot(top.as_str()).await?.is_some() {
            return Ok(());
        }
        let diff_ids = &image.config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(Error::system(format!(
                "mismatched image rootfs and manifest layers: {} and {}",
                diff_ids.len(),
                image.layers.len()
            )));
        }
        let lease = self.runtime().lease(LEASE).await?;
        let mut parent = String::new();
        for (at, layer) in image.layers.iter().enumerate() {
            let chain = chain_id(&diff_ids[..=at]).map(|chain| chain.to_string()).unwrap_or_default();
            if self.runtime().snapshot(&chain).await?.is_none() {
                self.apply_layer(layer, &diff_ids[at], &parent, &chain, &lease).await?;
            }
            parent = chain;
        }
        let labels = Labels::from([(GC_REF_SNAPSHOT.to_owned(), parent)]);
        self.runtime().blob_label(&image.config_digest, labels).await
    }

    async fn apply_layer(
        &self,
        layer: &oci::Descriptor,
        diff_id: &oci::Digest,
        parent: &str,
        chain: &str,
        lease: &Lease,
    ) -> Result<()> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|err| Error::system(format!("random bytes: {err}")))?;
        let key = format!("extract-{} {chain}", hex::encode(random));
        let applied = async {
            let labels = Labels::from([("containerd.io/snapshot.ref".to_owned(), chain.to_owned())]);
            let mounts = match self.runtime().snapshot_prepare(&key, parent, labels, Some(lease)).await {
                // A snapshotter that found the layer elsewhere says so this way.
                Err(err) if err.kind() == Kind::Conflict => return Ok(()),
                mounts => mounts?,
            };
            let applied = self.runtime().diff_apply(layer, mounts, lease).await?;
            if applied.digest != *diff_id {
                return Err(Error::system(format!(
                    "wrong diff id calculated on extraction {:?}",
                    applied.digest.as_str()
                )));
            }
            match self.runtime().snapshot_commit(chain, &key, Labels::new(), Some(lease)).await {
                Err(err) if err.kind() == Kind::Conflict => Ok(()),
                other => other,
            }
        }
        .await;
        if applied.is_err() {
            let _ = self.runtime().snapshot_remove(&key).await;
        }
        applied.map_err(|err: Error| err.context(format!("failed to extract layer {diff_id}")))
    }
}
