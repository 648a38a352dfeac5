//! Wiring only: the parts of the engine and who holds whom. No behaviour lives here.

use std::sync::Arc;

use crate::api::open::Connections;
use crate::config::Config;
use crate::container::Containers;
use crate::error::Result;
use crate::events::Events;
use crate::image::{ImageUser, Images};
use crate::network::Controller;
use crate::phase::Phase;
use crate::runtime::Runtime;
use crate::store::{Store, Table};
use crate::system::Programs;
use crate::volume::Volumes;

/// Where the store keeps the engine's id.
const ID: &str = "engine-id";

/// What each part is built from.
#[derive(Clone)]
pub struct Parts {
    /// Settings.
    pub config: Arc<Config>,
    /// The engine's records.
    pub store: Store,
    /// containerd.
    pub runtime: Runtime,
    /// The event journal.
    pub events: Events,
}

/// The engine. Handlers reach everything through it.
pub struct Engine {
    /// The engine's own id (`/info`), kept for the life of the data root.
    pub id: String,
    /// Whether the engine is starting, ready or stopping.
    pub phase: Phase,
    /// Who is connected.
    pub connections: Connections,
    /// What runtimes say about themselves.
    pub programs: Programs,
    /// Settings.
    pub config: Arc<Config>,
    /// The engine's records.
    pub store: Store,
    /// containerd: the only way to images, snapshots and tasks.
    pub runtime: Runtime,
    /// The event journal.
    pub events: Events,
    /// Images.
    pub images: Images,
    /// Volumes.
    pub volumes: Volumes,
    /// Networks.
    pub networks: Controller,
    /// Containers.
    pub containers: Containers,
}

impl Engine {
    /// Opens every part over the same store and containerd. Nothing is restored yet: see [`Engine::restore`].
    ///
    /// # Errors
    /// A part's records cannot be read at all.
    pub async fn open(parts: Parts) -> Result<Arc<Self>> {
        let images = Images::open(&parts).await?;
        let volumes = Volumes::open(&parts).await?;
        let networks = Controller::open(&parts).await?;
        let containers = Containers::open(&parts).await?;
        let Parts { config, store, runtime, events } = parts;
        let id = match store.get::<String>(Table::Values, ID)? {
            Some(id) => id,
            None => {
                let id = new_id()?;
                store.put(Table::Values, ID, &id).await?;
                id
            }
        };
        let (phase, programs) = (Phase::default(), Programs::default());
        let engine = Arc::new(Self {
            id,
            phase,
            connections: Connections::default(),
            programs,
            config,
            store,
            runtime,
            events,
            images,
            volumes,
            networks,
            containers,
        });
        engine.introduce();
        Ok(engine)
    }

    /// Tells images and volumes who uses them: the container records know.
    fn introduce(self: &Arc<Self>) {
        let engine = Arc::downgrade(self);
        self.volumes.set_users(move |volume| {
            let Some(engine) = engine.upgrade() else { return Vec::new() };
            let uses = |record: &crate::container::Record| {
                record.mounts.values().any(|mount| mount.volume() == Some(volume))
            };
            let all = engine.containers.all();
            all.iter()
                .filter(|container| uses(&container.record()))
                .map(|container| container.id.clone())
                .collect()
        });
        let engine = Arc::downgrade(self);
        self.images.set_users(move || {
            let Some(engine) = engine.upgrade() else { return Vec::new() };
            let user = |record: &crate::container::Record| {
                record.image.as_ref().map(|image| ImageUser {
                    container_id: record.id.clone(),
                    image_id: image.id.clone(),
                    image_name: record.config.image.clone(),
                    running: record.life.state.is_running(),
                    last_used: record.last_used(),
                })
            };
            engine.containers.all().iter().filter_map(|container| user(&container.record())).collect()
        });
    }

    /// Ends the engine's own work; containers live on.
    pub async fn shutdown(&self) {
        if let Err(err) = self.networks.leave().await {
            tracing::warn!(error = %err, "networks are left as they are");
        }
        self.containers.shared.stop_forwarders().await;
        crate::container::spec::CgroupPlace::of(&self.config).leave();
        let events = self.events.clone();
        let _ = tokio::task::spawn_blocking(move || events.flush()).await;
    }

    /// Brings records and reality together after a start. The API is open meanwhile.
    pub async fn restore(self: &Arc<Self>) {
        // Lives as long as the engine.
        tokio::spawn(self.runtime.clone().keep_hearing());
        self.networks.restore(self).await;
        self.containers.restore(self).await;
        self.images.restore(self).await;
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|err| crate::error::Error::system(format!("random bytes: {err}")))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}
