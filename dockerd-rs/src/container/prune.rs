//! Removing all containers that do not run.

use std::sync::Arc;

use docker_api::filters::Filters;
use serde::Serialize;

use super::list::stopped;
use super::{inspect, remove};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// `ContainerPruneResponse` of the API.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pruned {
    /// `None` when there was nothing.
    containers_deleted: Option<Vec<String>>,
    space_reclaimed: u64,
}

/// Removes containers that do not run and that the filters fit.
///
/// # Errors
/// A filter is none, or another prune runs.
pub async fn prune(engine: &Arc<Engine>, filters: &Filters) -> Result<Pruned> {
    let until = match filters.get("until") {
        [] => None,
        [one] => Some(crate::api::networks::until(one)?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    let Ok(_pruning) = engine.containers.pruning.try_lock() else {
        return Err(Error::conflict("a prune operation is already running"));
    };
    let mut deleted = Vec::new();
    let mut pruned = Pruned::default();
    for container in stopped(engine) {
        let record = container.record();
        let label = |name: &str| record.config.label(name);
        let negative = filters.has("label!") && filters.labels("label!", label);
        if until.is_some_and(|until| record.created > until) || !filters.labels("label", label) || negative {
            continue;
        }
        let bytes = inspect::sizes(engine, &record).await.map_or(0, |(size, _)| size.unwrap_or_default());
        match remove::remove(engine, &container, remove::Options::default()).await {
            Ok(()) => {
                pruned.space_reclaimed += bytes;
                deleted.push(container.id.clone());
            }
            // Started or removed by somebody else meanwhile.
            Err(err) if matches!(err.kind(), Kind::Conflict | Kind::NotFound) => {}
            Err(err) => tracing::warn!(container = %container.id, error = %err, "not pruned"),
        }
    }
    pruned.containers_deleted = (!deleted.is_empty()).then_some(deleted);
    let reclaimed = pruned.space_reclaimed.to_string();
    engine.events.publish(crate::events::Subject::Container, "prune", "", [("reclaimed", reclaimed)]);
    Ok(pruned)
}
