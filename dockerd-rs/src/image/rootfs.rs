//! A container's root file system: an init layer over the image, and a writable snapshot over that.
//!
//! ```text
//!   <container id>        writable, kept by its own gc.root label
//!   init-<chain>          files every container needs; one per image, goes with the image's configuration
//!   sha256:<chain>        the image's layers
//! ```

use std::time::Duration;

use super::{Images, ResolvedImage, init};
use crate::error::{Error, Kind, Result};
use crate::runtime::content::{GC_REF_SNAPSHOT, GC_ROOT, Labels, Lease, Mount};

const LEASE: Duration = Duration::from_secs(3600);
/// Raised when [`init`] puts other files into the layer, so that cached layers of an older engine are not used.
const INIT_VERSION: u32 = 1;

impl Images {
    /// Makes the root file system of a new container. Nothing is left when it fails.
    ///
    /// # Errors
    /// The image cannot be unpacked, the container has one already, or containerd refused.
    pub async fn prepare_rootfs(&self, container_id: &str, image: &ResolvedImage) -> Result<()> {
        self.unpack(image).await?;
        let lease = self.runtime().lease(LEASE).await?;
        let parent = self.init_layer(image, &lease).await?;
        self.writable(container_id, &parent, &lease).await
    }

    /// The root file system of a container that is made from no image at all.
    ///
    /// # Errors
    /// The container has one already, or containerd refused.
    pub async fn prepare_empty_rootfs(&self, container_id: &str) -> Result<()> {
        let lease = self.runtime().lease(LEASE).await?;
        let parent = self.make_init_layer(&format!("init-{INIT_VERSION}-empty"), "", None, &lease).await?;
        self.writable(container_id, &parent, &lease).await
    }

    async fn writable(&self, container_id: &str, parent: &str, lease: &Lease) -> Result<()> {
        let labels = Labels::from([(GC_ROOT.to_owned(), jiff::Timestamp::now().to_string())]);
        self.runtime().snapshot_prepare(container_id, parent, labels, Some(lease)).await.map(drop)
    }

    /// How to mount a container's root file system.
    ///
    /// # Errors
    /// 404 if there is none, or containerd refused.
    pub async fn rootfs_mounts(&self, container_id: &str) -> Result<Vec<Mount>> {
        self.runtime().snapshot_mounts(container_id).await
    }

    /// The snapshot a container's writable layer lies on: what `diff` and `commit` compare with.
    ///
    /// # Errors
    /// 404 if there is none, or containerd refused.
    pub async fn rootfs_parent(&self, container_id: &str) -> Result<String> {
        let info = self.runtime().snapshot(container_id).await?;
        info.map(|info| info.parent)
            .ok_or_else(|| Error::not_found(format!("snapshot {container_id} does not exist: not found")))
    }

    /// Removes a container's root file system; content that was there already gone is fine.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn remove_rootfs(&self, container_id: &str) -> Result<()> {
        self.runtime().snapshot_remove(container_id).await.map(drop)
    }

    /// Bytes in a container's writable layer (`SizeRw`).
    ///
    /// # Errors
    /// containerd refused.
    pub async fn upper_usage(&self, container_id: &str) -> Result<u64> {
        Ok(self.runtime().snapshot_usage(container_id).await?.map_or(0, |(bytes, _)| bytes))
    }

    /// Bytes in a container's root file system without its writable layer (what `SizeRootFs` adds to `SizeRw`).
    ///
    /// # Errors
    /// containerd refused.
    pub async fn lower_usage(&self, container_id: &str) -> Result<u64> {
        let mut key =
            self.runtime().snapshot(container_id).await?.map(|info| info.parent).unwrap_or_default();
        self.chain_usage(&mut key).await
    }

    /// Bytes of a committed snapshot and everything below it.
    pub(crate) async fn chain_usage(&self, key: &mut String) -> Result<u64> {
        let mut total = 0;
        while !key.is_empty() {
            let Some(info) = self.runtime().snapshot(key).await? else { break };
            total += self.runtime().snapshot_usage(key).await?.map_or(0, |(bytes, _)| bytes);
            *key = info.parent;
        }
        Ok(total)
    }

    async fn init_layer(&self, image: &ResolvedImage, lease: &Lease) -> Result<String> {
        let chain = image.chain_id.as_ref().map_or("empty", |chain| chain.hex());
        let name = format!("init-{INIT_VERSION}-{chain}");
        self.make_init_layer(&name, image.chain_key(), Some(image), lease).await
    }

    async fn make_init_layer(
        &self,
        name: &str,
        parent: &str,
        image: Option<&ResolvedImage>,
        lease: &Lease,
    ) -> Result<String> {
        let lock = self.making(name);
        let _one_at_a_time = lock.lock().await;
        // The lease comes first: a snapshot found between two sweeps would otherwise be gone before it is used.
        self.runtime().lease_add(lease, "snapshots/overlayfs", name).await?;
        if self.runtime().snapshot(name).await?.is_some() {
            return Ok(name.to_owned());
        }
        let key = format!("{name}-new");
        // Left by an engine that died in the middle.
        self.runtime().snapshot_remove(&key).await?;
        let mounts = self.runtime().snapshot_prepare(&key, parent, Labels::new(), Some(lease)).await?;
        let filled = tokio::task::spawn_blocking(move || init::fill(&mounts))
            .await
            .map_err(|err| Error::system(format!("init layer: {err}")))?;
        let committed = match filled {
            Ok(()) => self.runtime().snapshot_commit(name, &key, Labels::new(), Some(lease)).await,
            Err(err) => Err(Error::system(format!("init layer: {}", crate::error::sys_text(&err)))),
        };
        match committed {
            Ok(()) => {}
            Err(err) if err.kind() == Kind::Conflict => {}
            Err(err) => {
                let _ = self.runtime().snapshot_remove(&key).await;
                return Err(err);
            }
        }
        if let Some(image) = image {
            let label = Labels::from([(format!("{GC_REF_SNAPSHOT}/init"), name.to_owned())]);
            self.runtime().blob_label(&image.config_digest, label).await?;
        }
        Ok(name.to_owned())
    }
}
