//! A container's networks in its record and on the host.
//!
//! Invariant: the record has the last word. It follows a connect and leads a disconnect, so that what a crash left between the two is an endpoint
//! the record does not name; [`settle`] takes it away at the next start.

use std::sync::Arc;

use docker_api::EndpointSettings;

use super::model::Network;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Puts a container into one more network, on the host if it runs, and into its record. Goes on to its end when the caller stops waiting.
///
/// # Errors
/// As [`super::Controller::connect`].
pub async fn connect(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    network: Network,
    settings: EndpointSettings,
) -> Result<()> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    in_turn(async move {
        let _turn = container.live.turn().await;
        if engine.networks.has_place(&container.id) {
            engine.networks.connect(&container.id, &network.id, settings.clone()).await?;
        }
        put(&container, network.name, settings).await
    })
    .await
}

/// Takes a container out of a network.
///
/// # Errors
/// 500 if it is not in it, in Docker's words.
pub async fn disconnect(engine: &Arc<Engine>, container: &Arc<Container>, network: Network) -> Result<()> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    in_turn(async move {
        let _turn = container.live.turn().await;
        let named = container
            .update(|record| {
                let key = record.networks.keys().find(|key| **key == network.name || **key == network.id);
                let key = key.cloned();
                Ok(key.and_then(|key| record.networks.remove_entry(&key)))
            })
            .await?;
        if engine.networks.has_place(&container.id) {
            let done = engine.networks.disconnect(&container.id, &network.id).await;
            if done.is_err()
                && let Some((key, settings)) = named
            {
                put(&container, key, settings).await?;
            }
            return done;
        }
        named.map(drop).ok_or_else(|| {
            Error::system(format!("container {} is not connected to network {}", container.id, network.name))
        })
    })
    .await
}

async fn in_turn(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|err| Err(Error::system(format!("change of networks: {err}"))))
}

async fn put(container: &Arc<Container>, key: String, settings: EndpointSettings) -> Result<()> {
    container
        .update(move |record| {
            record.networks.insert(key, settings);
            Ok(())
        })
        .await
}

/// After a start of the engine: endpoints that no record names, of a connect or disconnect that was cut short, are taken away.
pub async fn settle(engine: &Arc<Engine>) {
    for (id, networks) in engine.networks.occupied() {
        let Some(container) = engine.containers.by_id(&id) else { continue };
        let record = container.record();
        let mode = match record.host_config.network_mode.as_str() {
            "" | "default" => "bridge",
            mode => mode,
        };
        let named: Vec<String> = std::iter::once(mode)
            .chain(record.networks.keys().map(String::as_str))
            .filter_map(|key| engine.networks.find(if key == "default" { "bridge" } else { key }).ok())
            .map(|network| network.id)
            .collect();
        for network in networks.iter().filter(|network| !named.contains(network)) {
            tracing::info!(container = id, network, "undoing a change of networks that was cut short");
            if let Err(err) = engine.networks.disconnect(&id, network).await {
                tracing::warn!(container = id, network, error = %err, "cannot take the container out");
            }
        }
    }
}
