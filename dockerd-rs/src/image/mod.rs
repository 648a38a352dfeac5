//! Images: what the user calls them, over containerd's store.
//!
//! Invariant: containerd's image service is the only register of names and its content store the only home of bytes; the engine adds labels
//! and remembers nothing that it could not read there again (what it read is kept by [`documents`] and [`crate::runtime::catalog`]). Names are full references (`docker.io/library/busybox:latest`); an image without
//! a name is kept as [`DANGLING`]`@digest`, as Docker's own engine does, so either engine finds the other's images. The id of an image is the
//! digest its name points to: a manifest's or an index's.

mod archive;
mod change;
mod documents;
mod hello;
mod import;
mod init;
mod progress;
mod resolve;
mod rootfs;
mod search;
mod transfer;
mod unpack;
mod used;
mod view;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use oci::{Descriptor, Digest, ImageConfig, Platform};

use crate::config::Config;
use crate::engine::{Engine, Parts};
use crate::error::Result;
use crate::events::Events;
use crate::runtime::Runtime;
use crate::store::Store;

pub use self::archive::LoadedLine;
pub use self::change::DeleteOptions;
pub use self::import::{Changes, ImportRequest};
pub use self::progress::{Line, Lines};
pub use self::resolve::{Found, familiar_names};
pub use self::search::search;
pub use self::transfer::{Auth, Pulled};
pub use self::view::ListOptions;
pub use self::write::{NewImage, NewLayer};

/// The name of images that lost theirs, before `@sha256:…`.
pub const DANGLING: &str = "moby-dangling";
/// The label that names the image a commit was made from.
pub const PARENT_LABEL: &str = "org.mobyproject.image.parent";

/// A container that was made from an image, for deciding whether the image may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// The container.
    pub container_id: String,
    /// The image's id (its target digest) when the container was made.
    pub image_id: String,
    /// What the user called the image (`Config.Image`).
    pub image_name: String,
    /// Whether it runs now (or is paused or restarting).
    pub running: bool,
    /// Until when it used the image.
    pub last_used: jiff::Timestamp,
}

type Users = Box<dyn Fn() -> Vec<ImageUser> + Send + Sync>;

/// One platform's image, ready to make containers from.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The image's id: the digest its name points to (manifest or index).
    pub id: Digest,
    /// What its name points to.
    pub target: Descriptor,
    /// Its full name; `None` when it was found by id and has no name.
    pub reference: Option<String>,
    /// The manifest of the chosen platform, with the platform filled in.
    pub manifest: Descriptor,
    /// Digest of the configuration.
    pub config_digest: Digest,
    /// The configuration.
    pub config: ImageConfig,
    /// The layers' blobs, lowest first.
    pub layers: Vec<Descriptor>,
    /// The snapshot of all layers; `None` for an image without layers.
    pub chain_id: Option<Digest>,
}

impl ResolvedImage {
    /// What the image was built for.
    pub fn platform(&self) -> Platform {
        self.config.platform()
    }

    /// The key of the unpacked layers' snapshot, empty without layers.
    pub fn chain_key(&self) -> &str {
        self.chain_id.as_ref().map_or("", Digest::as_str)
    }
}

/// The images of the engine; cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    config: Arc<Config>,
    store: Store,
    events: Events,
    users: OnceLock<Users>,
    /// One lock for each thing that is being made (a chain, an init layer), so that two requests do not make it twice.
    making: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    pruning: tokio::sync::Mutex<()>,
    /// Bytes of committed snapshots, which never change.
    usages: Mutex<HashMap<String, u64>>,
    documents: documents::Documents,
    used: Mutex<used::Used>,
}

impl Images {
    /// Binds the parts together; containerd is asked at first use.
    ///
    /// # Errors
    /// The engine's records cannot be read.
    pub async fn open(parts: &Parts) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            runtime: parts.runtime.clone(),
            config: Arc::clone(&parts.config),
            store: parts.store.clone(),
            events: parts.events.clone(),
            users: OnceLock::new(),
            making: Mutex::new(HashMap::new()),
            pruning: tokio::sync::Mutex::new(()),
            usages: Mutex::new(HashMap::new()),
            documents: documents::Documents::default(),
            used: Mutex::new(used::read(&parts.store)?),
        })))
    }

    /// Brings records and reality together after a start.
    pub async fn restore(&self, _engine: &Arc<Engine>) {
        if let Err(err) = self.forget_unfinished().await {
            tracing::warn!(error = %err, "what a killed engine had in hand stays noted");
        }
        if let Err(err) = self.offer_hello_world().await {
            tracing::warn!(error = %err, "the carried image was not registered");
        }
    }

    /// Takes away what a killed engine had in hand: names of pushes of a part, uses of images that are gone.
    async fn forget_unfinished(&self) -> Result<()> {
        let view = self.runtime().view().await?;
        for name in view.names.keys().filter(|name| name.starts_with(transfer::PART)) {
            self.runtime().image_delete(name, false).await?;
        }
        self.forget_uses_but(&view).await
    }

    /// Tells images who uses them. Asked whenever an image is listed or is to be removed; must not block. Once only.
    pub fn set_users(&self, users: impl Fn() -> Vec<ImageUser> + Send + Sync + 'static) {
        let _ = self.0.users.set(Box::new(users));
    }

    /// Containers that were made from images.
    pub(crate) fn users(&self) -> Vec<ImageUser> {
        self.0.users.get().map_or_else(Vec::new, |users| users())
    }

    fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// The lock of everyone who makes `what`.
    fn making(&self, what: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = making.get(what).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        making.insert(what.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
