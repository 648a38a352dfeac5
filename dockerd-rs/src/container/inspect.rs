//! A container as `GET /containers/{id}/json` shows it, in the shape of each API version.

use docker_api::common::ZERO_TIME;
use docker_api::inspect::{Container as Shown, GraphDriver, ManifestDescriptor, Network, Platform, Storage};
use docker_api::{Config, HostConfig};

use super::record::{ImageRef, Record};
use super::{Container, links};
use crate::api::ApiVersion;
use crate::engine::Engine;
use crate::error::Result;

/// Shows a container.
///
/// # Errors
/// `size` was asked for and containerd does not tell.
pub async fn inspect(
    engine: &Engine,
    container: &Container,
    version: ApiVersion,
    size: bool,
) -> Result<Shown> {
    let record = container.record();
    let (size_rw, size_root_fs) = if size { sizes(engine, &record).await? } else { (None, None) };
    let (path, args) = record.argv();
    let dir = engine.config.container_dir(&record.id);
    // The files of a shared network are the other container's.
    let files = match record.network_of() {
        Some(other) => engine.config.container_dir(other),
        None => dir.clone(),
    };
    // A start that failed has made them, too.
    let tried = record.started_once || !record.life.error.is_empty();
    let once = |text: String| if tried { text } else { String::new() };
    let file = |name: &str| once(files.join(name).display().to_string());
    let log = dir.join(format!("{}-json.log", record.id)).display().to_string();
    let network = network(engine, &record, version);
    Ok(Shown {
        id: record.id.clone(),
        created: record.created.to_string(),
        path,
        args,
        state: record.state(),
        image: record.image.as_ref().map(|image| image.id.clone()).unwrap_or_default(),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: if record.host_config.log_config.kind == "json-file" { once(log) } else { String::new() },
        name: format!("/{}", record.name),
        restart_count: record.restart_count,
        driver: record.snapshotter.clone(),
        platform: record.platform.clone(),
        exec_ids: container.live.exec_ids(),
        host_config: host_config(engine, &record),
        graph_driver: (!version.at_least(52))
            .then(|| GraphDriver { data: None, name: record.snapshotter.clone() }),
        storage: version.at_least(52).then(|| Storage::of(&record.snapshotter)),
        size_rw,
        size_root_fs,
        mounts: record.mounts.values().map(super::mounts::MountPoint::shown).collect(),
        config: config(&record, &network, version),
        network_settings: network,
        image_manifest_descriptor: record
            .image
            .as_ref()
            .filter(|_| version.at_least(48))
            .and_then(descriptor),
        ..Shown::default()
    })
}

/// Bytes in the writable layer, and in the whole root file system.
///
/// # Errors
/// containerd does not tell.
pub async fn sizes(engine: &Engine, record: &Record) -> Result<(Option<u64>, Option<u64>)> {
    let upper = engine.images.upper_usage(&record.snapshot).await?;
    let lower = engine.images.lower_usage(&record.snapshot).await?;
    Ok((Some(upper), Some(upper + lower)))
}

/// The manifest a container was made from.
pub fn descriptor(image: &ImageRef) -> Option<ManifestDescriptor> {
    let manifest = image.manifest.as_ref()?;
    Some(ManifestDescriptor {
        media_type: manifest.media_type.clone(),
        digest: manifest.digest.clone(),
        size: manifest.size,
        annotations: Some(manifest.annotations.clone()).filter(|annotations| !annotations.is_empty()),
        platform: Some(Platform {
            architecture: manifest.architecture.clone(),
            os: manifest.os.clone(),
            os_version: manifest.os_version.clone(),
            variant: manifest.variant.clone(),
        }),
    })
}

/// `HostConfig` with legacy links as Docker shows them: `/other:/container/alias`.
fn host_config(engine: &Engine, record: &Record) -> HostConfig {
    let mut host = record.host_config.clone();
    if links::is_legacy(record) && host.links.as_ref().is_some_and(|links| !links.is_empty()) {
        let shown = links::of(engine, record).into_iter().filter_map(|link| {
            let other = engine.containers.by_id(&link.id)?.record();
            Some(format!("/{}:/{}/{}", other.name, record.name, link.alias))
        });
        host.links = Some(shown.collect());
    }
    host
}

fn network(engine: &Engine, record: &Record, version: ApiVersion) -> Network {
    let mut network = super::network_settings(engine, record);
    if !version.at_least(45) {
        for (name, endpoint) in &mut network.networks {
            if matches!(name.as_str(), "bridge" | "host" | "none") || !record.started_once {
                continue;
            }
            let aliases = endpoint.aliases.get_or_insert_default();
            for more in [record.short_id(), record.config.hostname.as_str()] {
                if !aliases.iter().any(|alias| alias == more) {
                    aliases.push(more.to_owned());
                }
            }
        }
    }
    if !version.at_least(52) {
        network.legacy = network.networks.get("bridge").map(docker_api::inspect::LegacyNetwork::of);
    }
    network
}

fn config(record: &Record, network: &Network, version: ApiVersion) -> Config {
    let mut config = record.config.clone();
    if !version.at_least(52) {
        // The address asked for, where older clients look for it.
        let main =
            record.networks.get(&record.host_config.network_mode).or_else(|| record.networks.values().next());
        if let Some(endpoint) = main.filter(|_| !network.networks.is_empty()) {
            config.mac_address = endpoint.mac_address.to_string();
        }
    }
    config
}

/// The zero time of Go, for what never happened.
pub const NEVER: &str = ZERO_TIME;
