//! Containers at work: bundles on disk, shims that hold the processes, and what becomes of both.
//!
//! ```text
//!   server::tasks ──► Manager ──► Shim ── ttrpc ──► containerd-shim-* ──► runc
//!                        │  ▲                               │
//!                        │  └── Lifecycle ◄── Forward ──────┘   (server::shim_events)
//!                        └── Bundle: <state>/…v2.task/<namespace>/<id>
//! ```
//!
//! Invariants:
//! - A bundle directory is on disk before its shim is started and goes after the shim is gone: whatever we were doing when we
//!   died, the next start finds every shim there may be.
//! - The events of a task's init process come out in the order create, start, exit, delete, each at most once; a task that
//!   was seen running has its exit announced, by its shim or, when that died, by us.
//! - No shim holds up another: each has its own connection, deadline and task.

pub mod bundle;
pub mod checkpoint;
pub mod launch;
pub mod lifecycle;
mod load;
mod log;
pub mod manager;
pub mod name;
pub mod shim;

pub use lifecycle::{Exit, Lifecycle};
pub use load::Owner;
pub use manager::{CreateTask, Endpoint, Manager, Settings};
pub use shim::Shim;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use containerd_api::containers::Container;
use containerd_api::types::Sandbox;
use containerd_api::{Error, Kind};
use prost_types::Any;

use crate::config::Config;
use crate::daemon::Daemon;
use crate::events::Exchange;
use crate::meta::Db;

/// The runtime side of the daemon: the tasks, and what is served to their shims.
pub struct Runtime {
    /// All tasks.
    pub tasks: Manager,
    /// Checkpoints on their way.
    pub checkpoints: checkpoint::Checkpoints,
    db: Arc<Db>,
    launcher: launch::Launcher,
}

impl Runtime {
    /// Looks at what is on disk. Called before anything is served.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub async fn open(config: &Config, db: Arc<Db>, events: Arc<Exchange>) -> Result<Arc<Self>, Error> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let launcher = launch::Launcher {
            grpc_address: text(&config.grpc.address),
            ttrpc_address: text(&config.ttrpc_address()),
            debug: matches!(config.debug.level.as_str(), "debug" | "trace"),
        };
        let settings =
            Settings { state: config.state.clone(), root: config.root.clone(), launcher: launcher.clone() };
        let checkpoints = checkpoint::Checkpoints::open(&config.state);
        Ok(Arc::new(Self { tasks: Manager::new(settings, events), checkpoints, db, launcher }))
    }

    /// Begins to serve shims (the ttrpc address) and to find those that live. Called before the gRPC socket is there.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub async fn serve(&self, daemon: &Daemon) -> Result<(), Error> {
        // Shims that are found again have events to deliver: the endpoint comes first.
        crate::server::shim_events::serve(daemon)?;
        let db = Arc::clone(&self.db);
        let owner = move |key: &Key| {
            let sandbox = db.get::<Sandbox>(&key.namespace, &key.id);
            match (sandbox, db.get::<Container>(&key.namespace, &key.id)) {
                (Ok(None), Ok(None)) => Owner::Nobody,
                (Ok(None), _) => Owner::Container,
                // In doubt it is a sandbox: nothing is taken down that may be in use.
                _ => Owner::Sandbox,
            }
        };
        match self.tasks.load(owner) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "looking for the shims of earlier tasks"),
            Err(err) => return Err(Error::internal("read the bundles", err)),
        }
        Ok(())
    }

    /// The record of a task's container.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, key: &Key) -> Result<Container, Error> {
        self.db.get::<Container>(&key.namespace, &key.id)?.ok_or_else(|| {
            Error::of(Kind::NotFound, format_args!("container {:?} in namespace {:?}", key.id, key.namespace))
        })
    }

    /// What an OCI runtime says of itself (`types.RuntimeInfo`), for the introspection service. `options` is a `types.RuntimeRequest`.
    ///
    /// # Errors
    /// The runtime cannot be asked.
    pub async fn plugin_info(&self, options: Option<Any>) -> Result<Option<Any>, Error> {
        let request: shim_api::types::RuntimeRequest = match &options {
            Some(options) => shim_api::any::unpack(options)
                .map_err(|err| Error::invalid(format_args!("options: {err}")))?,
            None => shim_api::types::RuntimeRequest::default(),
        };
        let runtime = if request.runtime_path.is_empty() { DEFAULT_RUNTIME } else { &request.runtime_path };
        let binary = name::resolve(runtime)?;
        let info = self.launcher.info(&binary, request.options.as_ref()).await?;
        Ok(Some(shim_api::any::pack(&info)))
    }

    /// Called after the last request; containers go on.
    pub async fn close(&self) {}
}

/// What a client that names no runtime means.
const DEFAULT_RUNTIME: &str = "io.containerd.runc.v2";

/// Which task: its namespace and its container's id. Both were validated where they came in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Container id.
    pub id: String,
}

impl Key {
    /// A key of its two parts.
    pub fn new(namespace: impl Into<String>, id: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), id: id.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}
