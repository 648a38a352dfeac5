//! The image the engine carries: `hello-world` runs without a network.
//!
//! It is registered when the engine's store is new. A user who removes it is not given it again: its removal is remembered.

use bytes::Bytes;

use super::Images;
use crate::error::Result;
use crate::guest;
use crate::store::Table;

/// Where the store remembers that the image was offered once.
const OFFERED: &str = "carried-image/hello-world";

impl Images {
    /// Registers the carried image, once in the life of a data root.
    ///
    /// # Errors
    /// containerd or the store refused; the next start tries again.
    pub(crate) async fn offer_hello_world(&self) -> Result<()> {
        if self.0.store.get::<bool>(Table::Images, OFFERED)?.is_some() {
            return Ok(());
        }
        if self.runtime().image(guest::HELLO_WORLD).await?.is_none() {
            let layout = Bytes::from(guest::hello_world_layout()?);
            let source = futures_util::stream::iter([Ok(layout)]);
            self.load(source, &[]).await?;
        }
        self.0.store.put(Table::Images, OFFERED, &true).await
    }

    /// A name was removed by a user. The carried image's is noted as offered, should the engine stop before it noted so itself.
    pub(crate) async fn note_removed(&self, name: &str) {
        if name == guest::HELLO_WORLD
            && let Err(err) = self.0.store.put(Table::Images, OFFERED, &true).await
        {
            tracing::warn!(error = %err, "removal of the carried image not noted");
        }
    }
}
