//! Making a container: check, find the image, merge, make its root file system, volumes and directory, write the record.
//!
//! Nothing is left of a create that fails: the steps that were done are undone, last first, whatever became of the client. The order
//! matters after a crash too: the record comes last, so what a dead engine left behind has no record and is swept up at the next start.

use std::collections::BTreeMap;
use std::sync::Arc;

use docker_api::container::CreateRequest;
use docker_api::{Config, EndpointSettings, HostConfig};
use oci::Platform;

use super::gates::Notes;
use super::mounts::{MountPoint, Source};
use super::names::{self, Reservation};
use super::record::{self, ImageRef, Life, Manifest, Record};
use super::{Container, limits, links, merge, provide, rootfs, security, validate};
use crate::api::ApiVersion;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, sys_text};
use crate::image::ResolvedImage;

/// The container that was made, and what its client should know.
pub struct Created {
    /// The container.
    pub container: Arc<Container>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Makes a container. Goes on to its end when the caller stops waiting.
///
/// # Errors
/// A refusal, or something could not be made; then nothing of it is left.
pub async fn create(
    engine: &Arc<Engine>,
    request: CreateRequest,
    name: &str,
    platform: Option<Platform>,
    version: ApiVersion,
) -> Result<Created> {
    let (engine, name) = (Arc::clone(engine), name.to_owned());
    let made = tokio::spawn(async move { make(&engine, request, &name, platform, version).await });
    made.await.unwrap_or_else(|err| Err(Error::system(format!("create: {err}"))))
}

async fn make(
    engine: &Arc<Engine>,
    request: CreateRequest,
    name: &str,
    platform: Option<Platform>,
    version: ApiVersion,
) -> Result<Created> {
    let Notes { config, mut host, mut endpoints, mut warnings } = super::gates::apply(request, version)?;
    let mut config =
        config.ok_or_else(|| Error::invalid("config cannot be empty in order to create a container"))?;
    if host.network_mode.is_empty() || host.network_mode == "default" {
        host.network_mode = "bridge".into();
    }
    if let Some(endpoint) = endpoints.remove("default") {
        endpoints.entry("bridge".into()).or_insert(endpoint);
    }
    warnings.extend(validate::check(&config, &mut host)?);
    validate::check_endpoints(&endpoints)?;
    for (name, settings) in &endpoints {
        // A network that is not there yet may be there at the start.
        if let (Ok(network), Some(settings)) = (engine.networks.find(name), settings) {
            crate::api::networks::check_endpoint(&network, settings)
                .map_err(|err| err.context(format!("invalid config for network {name}")))?;
        }
    }
    check_runtime(engine, &host)?;
    check_joined(engine, &host)?;
    if host.network_mode == "host" && host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty()) {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    let image = find_image(engine, &config.image, platform).await?;
    let id = new_id()?;
    let (name, reservation) = take_name(engine, name, &id)?;
    if let Some(image) = &image {
        merge::merge(&mut config, &image.config.config)?;
    } else {
        config.volumes.get_or_insert_default();
    }
    if config.argv().next().is_none() {
        return Err(Error::invalid("no command specified"));
    }
    // Also what came from the image.
    validate::check_config(&config)?;
    fill_host(engine, &mut host, version)?;
    fill_hostname(engine, &mut config, &host, &id);
    let record = Record {
        version: record::VERSION,
        created: jiff::Timestamp::now(),
        image: image.as_ref().map(image_ref),
        platform: "linux".into(),
        snapshotter: "overlayfs".into(),
        snapshot: id.clone(),
        networks: networks(&host, endpoints),
        mounts: BTreeMap::new(),
        life: Life::default(),
        restart_count: 0,
        manually_stopped: false,
        started_once: false,
        health: None,
        id,
        name,
        config,
        host_config: host,
    };
    let links = links::resolve(engine, &record)?;
    let mut undo = Undo::new(engine, &record.id);
    match build(engine, record, image.as_ref(), &mut undo, links).await {
        Ok(container) => {
            reservation.keep();
            undo.forget();
            let record = container.record();
            engine.events.publish(
                crate::events::Subject::Container,
                "create",
                &record.id,
                record.event_attributes(),
            );
            Ok(Created { container, warnings })
        }
        Err(err) => {
            undo.run().await;
            Err(err)
        }
    }
}

async fn build(
    engine: &Arc<Engine>,
    mut record: Record,
    image: Option<&ResolvedImage>,
    undo: &mut Undo,
    links: links::Reserved,
) -> Result<Arc<Container>> {
    undo.rootfs = true;
    match image {
        Some(image) => engine.images.prepare_rootfs(&record.id, image).await?,
        None => engine.images.prepare_empty_rootfs(&record.id).await?,
    }
    // Volumes are held until the record that refers to them is there.
    let provided = provide::mounts(engine, &mut record, &mut undo.volumes).await?;
    copy_up(engine, &record, &provided).await?;
    undo.directory = true;
    make_directory(&engine.config.container_dir(&record.id))?;
    if record.host_config.log_config.kind == "local" {
        make_directory(&engine.config.container_dir(&record.id).join("local-logs"))?;
    }
    let container = engine.containers.add(record).await?;
    links.keep();
    drop(provided);
    Ok(container)
}

/// Fills new volumes with what the image has in their place.
async fn copy_up(engine: &Engine, record: &Record, provided: &[provide::Held]) -> Result<()> {
    let wanted = |mount: &&MountPoint| matches!(&mount.source, Source::Volume { copy: true, name, .. } if provided.iter().any(|held| held.volume.name == *name));
    let mut root = None;
    for mount in record.mounts.values().filter(wanted) {
        let Some(held) = provided.iter().find(|held| mount.volume() == Some(held.volume.name.as_str()))
        else {
            continue;
        };
        if held.volume.needs_mount() {
            // Somebody else's file system: what is in it stays as it is.
            continue;
        }
        if root.is_none() {
            root = Some(rootfs::open(engine, record).await?);
        }
        if let Some(root) = &root {
            let root = root.try_clone().map_err(|err| Error::system(sys_text(&err)))?;
            engine.volumes.copy_up(&held.volume, root, mount.destination.as_ref()).await?;
        }
    }
    Ok(())
}

fn make_directory(dir: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o710)
        .create(dir)
        .map_err(|err| Error::system(format!("create {}: {}", dir.display(), sys_text(&err))))
}

/// What was done and has to be undone when a later step fails.
struct Undo {
    engine: Arc<Engine>,
    id: String,
    rootfs: bool,
    directory: bool,
    /// Anonymous volumes that were made.
    volumes: Vec<String>,
}

impl Undo {
    fn new(engine: &Arc<Engine>, id: &str) -> Self {
        Self {
            engine: Arc::clone(engine),
            id: id.to_owned(),
            rootfs: false,
            directory: false,
            volumes: Vec::new(),
        }
    }

    fn forget(self) {}

    async fn run(self) {
        let tell = |what: &str, err: &dyn std::fmt::Display| {
            tracing::warn!(container = self.id, error = %err, "{what} of a failed create could not be removed");
        };
        if self.directory
            && let Err(err) = std::fs::remove_dir_all(self.engine.config.container_dir(&self.id))
        {
            tell("directory", &err);
        }
        for volume in &self.volumes {
            if let Err(err) = self.engine.volumes.remove(volume, true).await {
                tell("volume", &err);
            }
        }
        if self.rootfs
            && let Err(err) = self.engine.images.remove_rootfs(&self.id).await
            && err.kind() != Kind::NotFound
        {
            tell("root file system", &err);
        }
    }
}

async fn find_image(
    engine: &Engine,
    name: &str,
    platform: Option<Platform>,
) -> Result<Option<ResolvedImage>> {
    if name.is_empty() {
        return Ok(None);
    }
    engine.images.resolve(name, platform.as_ref()).await.map(Some)
}

fn image_ref(image: &ResolvedImage) -> ImageRef {
    let platform = image.platform();
    let manifest = Manifest {
        media_type: image.manifest.media_type.clone(),
        digest: image.manifest.digest.to_string(),
        size: i64::try_from(image.manifest.size).unwrap_or_default(),
        annotations: image.manifest.annotations.clone(),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        variant: platform.variant.clone(),
    };
    ImageRef {
        id: image.id.to_string(),
        reference: image.reference.clone().unwrap_or_default(),
        manifest: Some(manifest),
        config_digest: image.config_digest.to_string(),
        chain_id: image.chain_key().to_owned(),
    }
}

/// 64 random hex digits whose first twelve are not all decimal: tools take such a one for a number.
pub(super) fn new_id() -> Result<String> {
    loop {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|err| Error::system(format!("random bytes: {err}")))?;
        let id = hex::encode(bytes);
        if !id.bytes().take(12).all(|b| b.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

fn take_name(engine: &Engine, name: &str, id: &str) -> Result<(String, Reservation)> {
    if name.is_empty() {
        return Ok(engine.containers.names.invent(id));
    }
    let name = names::check(name)?;
    let taken = engine.containers.names.reserve(name, id);
    taken.map(|reservation| (name.to_owned(), reservation)).map_err(|owner| names::conflict(name, &owner))
}

fn check_runtime(engine: &Engine, host: &HostConfig) -> Result<()> {
    let name = host.runtime.as_str();
    let known = name.is_empty() || engine.config.live().runtimes.contains_key(name);
    // A containerd runtime (`io.containerd.x.v2`) or a shim's path needs no entry.
    if known || name.starts_with("io.containerd.") || name.starts_with('/') {
        return Ok(());
    }
    Err(Error::invalid(format!("unknown or invalid runtime name: {name}")))
}

/// Namespaces of other containers: those have to be there.
fn check_joined(engine: &Engine, host: &HostConfig) -> Result<()> {
    for mode in [&host.ipc_mode, &host.pid_mode] {
        if let Some(other) = mode.strip_prefix("container:") {
            engine.containers.get(other).map_err(|err| Error::invalid(err.message()))?;
        }
    }
    if let Some(other) = host.ipc_mode.strip_prefix("container:") {
        let other = engine.containers.get(other)?.record();
        if !matches!(other.host_config.ipc_mode.as_str(), "shareable" | "host") {
            return Err(Error::invalid(format!(
                "non-shareable IPC (hint: use IpcMode:shareable for the donor container) of container {}",
                other.id
            )));
        }
    }
    Ok(())
}

fn fill_host(engine: &Engine, host: &mut HostConfig, version: ApiVersion) -> Result<()> {
    let machine = limits::Limits::of_machine();
    if let Some(other) = host.network_mode.strip_prefix("container:")
        && let Ok(other) = engine.containers.get(other)
    {
        host.network_mode = format!("container:{}", other.id);
    }
    if host.memory > 0 && host.memory_swap == 0 && machine.swap {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None;
    }
    if host.shm_size == 0 {
        host.shm_size = engine.config.default_shm_size;
    }
    if host.ipc_mode.is_empty() {
        let default =
            if version.at_least(40) { engine.config.default_ipc_mode.as_str() } else { "shareable" };
        default.clone_into(&mut host.ipc_mode);
    }
    if host.cgroupns_mode.is_empty() {
        let private = machine.unified && !host.privileged && version.at_least(41);
        let default = engine.config.default_cgroupns_mode.as_deref().filter(|_| version.at_least(41));
        host.cgroupns_mode = default.unwrap_or(if private { "private" } else { "host" }).to_owned();
    }
    if machine.oom_kill_disable {
        host.oom_kill_disable.get_or_insert(false);
    }
    if host.runtime.is_empty() {
        host.runtime.clone_from(&engine.config.live().default_runtime);
    }
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".into();
    }
    fill_log(engine, host)?;
    let options = security::SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())?;
    if !host.privileged && !options.systempaths_unconfined {
        host.masked_paths.get_or_insert_with(spec::paths::masked);
        host.readonly_paths.get_or_insert_with(spec::paths::readonly);
    } else if options.systempaths_unconfined {
        (host.masked_paths, host.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
    }
    host.port_bindings.get_or_insert_default();
    Ok(())
}

fn fill_log(engine: &Engine, host: &mut HostConfig) -> Result<()> {
    let log = &mut host.log_config;
    let config = log.config.get_or_insert_default();
    if log.kind.is_empty() || log.kind == engine.config.log_driver {
        log.kind.clone_from(&engine.config.log_driver);
        for (name, value) in &engine.config.log_opts {
            config.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    super::logs::options::LogOptions::check_names(&log.kind, config)?;
    super::logs::options::LogOptions::read(&log.kind, config).map(drop)
}

fn fill_hostname(engine: &Engine, config: &mut Config, host: &HostConfig, id: &str) {
    if !config.hostname.is_empty() {
        return;
    }
    let shared =
        host.network_mode.strip_prefix("container:").and_then(|other| engine.containers.get(other).ok());
    if let Some(other) = shared {
        let other = other.record();
        config.hostname.clone_from(&other.config.hostname);
        config.domainname.clone_from(&other.config.domainname);
    } else if host.network_mode == "host" || host.uts_mode == "host" {
        let name = rustix::system::uname();
        config.hostname = name.nodename().to_string_lossy().into_owned();
    } else {
        config.hostname = id.get(..12).unwrap_or(id).to_owned();
    }
}

/// The networks to join: those the client described, or the one of its mode.
fn networks(
    host: &HostConfig,
    endpoints: BTreeMap<String, Option<EndpointSettings>>,
) -> BTreeMap<String, EndpointSettings> {
    if host.network_mode.starts_with("container:") {
        return BTreeMap::new();
    }
    let mut networks: BTreeMap<String, EndpointSettings> =
        endpoints.into_iter().map(|(network, endpoint)| (network, endpoint.unwrap_or_default())).collect();
    if networks.is_empty() {
        networks.insert(host.network_mode.clone(), EndpointSettings::default());
    }
    networks
}
