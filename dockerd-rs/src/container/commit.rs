//! A container becomes an image: what it changed is a new layer over its image's.

use std::collections::BTreeMap;
use std::sync::Arc;

use docker_api::Config;
use oci::config::{ExecConfig, Healthcheck, History};
use oci::mediatype::OCI_LAYER_GZIP;
use oci::{Digest, ImageConfig, Platform, Reference};
use serde_json::{Value, json};

use super::{Container, Record, pause};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::image::{Changes, NewImage, NewLayer, ResolvedImage};
use crate::runtime::content::Lease;

/// What a client asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The image's name, if it gets one.
    pub name: Option<Reference>,
    /// A remark in its history.
    pub comment: String,
    /// Who made it.
    pub author: String,
    /// Whether the container is frozen meanwhile.
    pub pause: bool,
    /// Instructions that change the image's defaults.
    pub changes: Vec<String>,
    /// Defaults that win over the container's.
    pub config: Option<Config>,
}

/// Makes the image; gives its id.
///
/// # Errors
/// An instruction is none, or the layer cannot be made. The container goes on either way.
pub async fn commit(engine: &Arc<Engine>, container: &Arc<Container>, request: Request) -> Result<String> {
    let record = container.record();
    let mut defaults = exec_config(&record.config);
    if let Some(config) = &request.config {
        let mut over = config.clone();
        super::merge::merge(&mut over, &defaults)?;
        defaults = exec_config(&over);
    }
    Changes::apply(request.changes.iter().map(String::as_str), &mut defaults)?;
    let frozen = request.pause && matches!(record.life.state, super::State::Running(_));
    if frozen {
        pause::pause(engine, container).await?;
    }
    let made = make(engine, container, &request, defaults).await;
    if let Ok(digest) = &made {
        announce(engine, container, &request, digest).await;
    }
    if frozen && let Err(err) = pause::unpause(engine, container).await {
        tracing::error!(container = %container.id, error = %err, "commit left the container frozen");
    }
    made.map(|digest| digest.to_string())
}

/// The new image's events, then the container's, in Docker's order.
async fn announce(engine: &Engine, container: &Container, request: &Request, digest: &Digest) {
    let id = digest.to_string();
    engine.images.announce("create", digest, &id).await;
    let reference = request.name.as_ref().map(Reference::familiar);
    let mut more = vec![("comment", request.comment.as_str()), ("imageID", id.as_str())];
    if let Some(reference) = &reference {
        engine.images.announce("tag", digest, reference).await;
        more.push(("imageRef", reference));
    }
    container.publish(engine, "commit", &more);
}

async fn make(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    request: &Request,
    defaults: ExecConfig,
) -> Result<Digest> {
    let record = container.record();
    let base = match &record.image {
        Some(image) => Some(engine.images.resolve(&image.id, None).await?),
        None => None,
    };
    let lease = engine.images.writing().await?;
    let made = write(engine, &record, request, defaults, base, &lease).await;
    if made.is_err() {
        lease.give_back().await;
    }
    made
}

async fn write(
    engine: &Arc<Engine>,
    record: &Record,
    request: &Request,
    defaults: ExecConfig,
    base: Option<ResolvedImage>,
    lease: &Lease,
) -> Result<Digest> {
    let parent = engine.images.rootfs_parent(&record.snapshot).await?;
    let view = format!("{}-commit-{}", record.id, super::create::new_id()?.get(..8).unwrap_or_default());
    let lower = engine.runtime.snapshot_view(&view, &parent, Some(lease)).await?;
    let upper = engine.images.rootfs_mounts(&record.snapshot).await?;
    let layer = engine.runtime.diff_create(lower, upper, OCI_LAYER_GZIP, lease).await;
    if let Err(err) = engine.runtime.snapshot_remove(&view).await {
        tracing::warn!(snapshot = view, error = %err, "view of a commit not removed");
    }
    let layer = layer?;
    let info = engine.runtime.blob(&layer.digest).await?;
    let diff_id = info
        .and_then(|info| info.labels.get(crate::runtime::content::UNCOMPRESSED).cloned())
        .and_then(|text| Digest::parse(&text).ok())
        .ok_or_else(|| Error::system(format!("layer {} does not tell its content's digest", layer.digest)))?;
    let mut config = base.as_ref().map_or_else(empty_config, |base| base.config.clone());
    let mut layers: Vec<NewLayer> = base
        .iter()
        .flat_map(|base| base.layers.iter().cloned().zip(base.config.rootfs.diff_ids.iter().cloned()))
        .map(|(blob, diff_id)| NewLayer { blob, diff_id })
        .collect();
    layers.push(NewLayer { blob: layer, diff_id });
    let now = jiff::Timestamp::now().to_string();
    let (path, args) = record.argv();
    config.created = Some(now.clone());
    config.author.clone_from(&request.author);
    config.config = defaults;
    config.history.push(History {
        created: Some(now),
        created_by: std::iter::once(path).chain(args).collect::<Vec<_>>().join(" "),
        author: request.author.clone(),
        comment: request.comment.clone(),
        empty_layer: false,
    });
    let names: Vec<String> = request.name.iter().map(ToString::to_string).collect();
    let new = NewImage { config, layers, parent: base.map(|base| base.id) };
    let target = engine.images.write_image(new, &names, lease).await?;
    Ok(target.digest)
}

fn empty_config() -> ImageConfig {
    let host = Platform::host();
    ImageConfig {
        architecture: host.architecture,
        os: host.os,
        variant: host.variant,
        ..ImageConfig::default()
    }
}

/// A container's settings as the defaults of an image.
fn exec_config(config: &Config) -> ExecConfig {
    let set = |keys: Vec<String>| -> Option<BTreeMap<String, Value>> {
        (!keys.is_empty()).then(|| keys.into_iter().map(|key| (key, json!({}))).collect())
    };
    ExecConfig {
        user: config.user.clone(),
        exposed_ports: set(config.exposed_ports.iter().flatten().map(|(port, _)| port.to_string()).collect()),
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: set(config.volumes.iter().flatten().map(|(path, _)| path.clone()).collect()),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone().filter(|labels| !labels.is_empty()),
        stop_signal: config.stop_signal.clone(),
        args_escaped: config.args_escaped,
        healthcheck: config.healthcheck.as_ref().map(|health| Healthcheck {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        }),
        on_build: config.on_build.clone(),
        shell: config.shell.clone(),
        stop_timeout: config.stop_timeout,
    }
}
