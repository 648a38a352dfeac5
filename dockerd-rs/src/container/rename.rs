//! Giving a container another name.

use std::sync::Arc;

use super::life;
use super::{Container, names};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Renames a container; the old name is free at once.
///
/// # Errors
/// The name is none, or another's.
pub async fn rename(engine: &Arc<Engine>, container: &Arc<Container>, name: &str) -> Result<()> {
    let (engine, container, name) = (Arc::clone(engine), Arc::clone(container), name.to_owned());
    life::to_the_end(async move {
        let _turn = container.live.turn().await;
        let old = container.record().name.clone();
        if name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        if name.strip_prefix('/').unwrap_or(&name) == old {
            return Err(Error::invalid("Renaming a container with the same name as its current name"));
        }
        let slashed = if name.starts_with('/') { name.clone() } else { format!("/{name}") };
        let context = |err: Error| err.context("Error when allocating new name");
        let new = names::check(&slashed).map_err(context)?.to_owned();
        let reservation = engine
            .containers
            .names
            .reserve(&new, &container.id)
            .map_err(|owner| context(names::conflict(&new, &owner)))?;
        let renamed = new.clone();
        container
            .update(move |record| {
                record.name = renamed;
                Ok(())
            })
            .await?;
        reservation.keep();
        engine.containers.names.free(&old, &container.id);
        engine.containers.names.move_links(&old, &new);
        if container.record().life.state.task().is_some()
            && let Err(err) = engine.networks.rename(&container.id, &new).await
        {
            tracing::warn!(container = %container.id, error = %err, "new name is not known in networks");
        }
        container.publish(&engine, "rename", &[("oldName", &format!("/{old}"))]);
        Ok(())
    })
    .await
}
