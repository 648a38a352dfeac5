//! The daemon's parts, wired: opened in the order they need each other, served until a signal, closed in reverse.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_api::Error;
use containerd_api::introspection::Plugin;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::content::Store;
use crate::events::Exchange;
use crate::grpc::listen::BindError;
use crate::grpc::{Listener, bind};
use crate::meta::Db;
use crate::meta::gcsched::Collector;
use crate::metrics::Metrics;
use crate::snapshot::Snapshots;
use crate::{debug, metrics, plugins, runtime, server, transfer};

/// How long requests may go on after the signal to stop.
const GRACE: Duration = Duration::from_secs(3);
/// Windows for blobs: a writer is a few messages ahead of the disk without waiting for an answer.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls in flight on one connection; waiting for tasks is one each.
const MAX_STREAMS: u32 = 100_000;

/// Why the daemon did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration")]
    Config(#[from] ConfigError),
    #[error("{what}")]
    Part { what: &'static str, source: Error },
    #[error("{what}")]
    Io { what: &'static str, source: std::io::Error },
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

/// Everything a request may need. Cloning shares.
#[derive(Clone)]
pub struct Daemon(Arc<Parts>);

/// The parts themselves.
pub struct Parts {
    pub config: Config,
    /// The identity of this installation, kept across restarts.
    pub uuid: String,
    pub events: Arc<Exchange>,
    pub db: Arc<Db>,
    pub collector: Collector,
    pub content: Arc<Store>,
    pub snapshots: Arc<Snapshots>,
    pub runtime: Arc<runtime::Runtime>,
    pub transfer: Arc<transfer::Transfer>,
    pub plugins: Vec<Plugin>,
    pub metrics: Metrics,
    /// Cancelled when the daemon is to stop.
    pub stop: CancellationToken,
}

impl std::ops::Deref for Daemon {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Daemon {
    /// Opens the parts. Nothing is served yet.
    ///
    /// # Errors
    /// A directory cannot be made, or a part refuses what it finds there.
    pub async fn open(config: Config) -> Result<Self, StartError> {
        let io = |what| move |source| StartError::Io { what, source };
        let part = |what| move |source| StartError::Part { what, source };
        private_directory(&config.root, 0o711).map_err(io("make the root directory"))?;
        private_directory(&config.state, 0o711).map_err(io("make the state directory"))?;
        let uuid = identity(&config.plugin_root("io.containerd.grpc.v1.introspection"))
            .map_err(io("keep the uuid"))?;

        let stop = CancellationToken::new();
        let events = Arc::new(Exchange::new());
        let metadata = config.plugin_root("io.containerd.metadata.v1.bolt");
        private_directory(&metadata, 0o700).map_err(io("make the metadata directory"))?;
        let db =
            Db::open(&metadata.join("meta.redb"), Arc::clone(&events)).map_err(part("open the metadata"))?;
        let collector = Collector::new();
        let content = Store::open(
            &config.plugin_root("io.containerd.content.v1.content"),
            Arc::clone(&db),
            collector.clone(),
            config.content_proxy()?,
        )
        .map_err(part("open the content store"))?;
        let snapshots = Snapshots::open(&config, Arc::clone(&db), collector.clone())
            .map_err(part("open the snapshotters"))?;
        let runtime = runtime::Runtime::open(&config, Arc::clone(&db), Arc::clone(&events))
            .await
            .map_err(part("open the runtime"))?;
        let transfer = transfer::Transfer::open(
            &config,
            Arc::clone(&db),
            Arc::clone(&content),
            Arc::clone(&snapshots),
            collector.clone(),
            Arc::clone(&events),
        )
        .map_err(part("open the transfer service"))?;
        let plugins = plugins::list(&config);
        let metrics = Metrics::default();
        collector.register(&metrics);
        Ok(Self(Arc::new(Parts {
            config,
            uuid,
            events,
            db,
            collector,
            content,
            snapshots,
            runtime,
            transfer,
            plugins,
            metrics,
            stop,
        })))
    }

    /// Opens, serves, and returns when a signal ended it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn run(config: Config) -> Result<(), StartError> {
        let io = |what| move |source| StartError::Io { what, source };
        let mut terminate = signal(SignalKind::terminate()).map_err(io("watch for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("watch for SIGINT"))?;
        if config.oom_score != 0
            && let Err(err) = std::fs::write("/proc/self/oom_score_adj", config.oom_score.to_string())
        {
            tracing::warn!(%err, score = config.oom_score, "the OOM score cannot be set");
        }
        let daemon = Self::open(config).await?;
        let stop = daemon.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        });
        daemon.serve().await
    }

    /// Serves until [`Parts::stop`] is cancelled; then ends what still goes on within a few seconds.
    ///
    /// # Errors
    /// A socket cannot be had.
    pub async fn serve(&self) -> Result<(), StartError> {
        let config = &self.config;
        let collector = self.collector.spawn(self.clone());
        if !config.metrics.address.is_empty() {
            metrics::serve(&config.metrics.address, Arc::clone(&self.metrics), self.stop.clone())
                .await
                .map_err(|source| StartError::Io { what: "listen on the metrics address", source })?;
        }
        self.runtime
            .serve(self)
            .await
            .map_err(|source| StartError::Part { what: "serve the runtime", source })?;
        let listener = bind(&config.grpc.address, config.grpc.uid, config.grpc.gid)?;
        if !config.debug.address.as_os_str().is_empty() {
            let listener = bind(&config.debug.address, config.debug.uid, config.debug.gid)?;
            debug::serve(listener, self.stop.clone());
        }
        tracing::info!(address = %config.grpc.address.display(), version = crate::version::SHORT, "serving");
        let mut server = tokio::spawn(self.clone().serve_on(listener));
        tokio::select! {
            served = &mut server => {
                self.stop.cancel();
                flatten(served)?;
            }
            () = self.stop.cancelled() => {
                // Long calls end by themselves or are cut off: a client may wait for a task for days.
                self.events.close();
                if tokio::time::timeout(GRACE, &mut server).await.is_err() {
                    server.abort();
                }
            }
        }
        let _ = std::fs::remove_file(&config.grpc.address);
        if !config.debug.address.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&config.debug.address);
        }
        self.runtime.close().await;
        if tokio::time::timeout(GRACE, collector).await.is_err() {
            tracing::warn!("the garbage collector did not stop in time");
        }
        Ok(())
    }

    async fn serve_on(self, listener: tokio::net::UnixListener) -> Result<(), tonic::transport::Error> {
        let stop = self.stop.clone();
        tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .add_routes(server::routes(&self))
            .serve_with_incoming_shutdown(Listener::new(listener), stop.cancelled_owned())
            .await
    }
}

fn flatten(
    served: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<(), StartError> {
    match served {
        Ok(served) => served.map_err(StartError::from),
        Err(err) => Err(StartError::Io { what: "serve", source: std::io::Error::other(err) }),
    }
}

/// Makes a directory and gives it `mode`.
pub(crate) fn private_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// The uuid in `directory`, made at the first start.
fn identity(directory: &Path) -> std::io::Result<String> {
    let path = directory.join("uuid");
    match std::fs::read_to_string(&path) {
        Ok(uuid) if !uuid.trim().is_empty() => return Ok(uuid.trim().to_owned()),
        Ok(_) => {}
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    std::fs::create_dir_all(directory)?;
    let uuid = random_uuid()?;
    sys::atomicfile::write(&path, 0o666, uuid.as_bytes())?;
    Ok(uuid)
}

/// A random (version 4) uuid.
fn random_uuid() -> std::io::Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// Sends log lines to standard error, at the level and in the format the configuration asks for.
pub fn logging(config: &Config) {
    let level = match config.debug.level.as_str() {
        "trace" => "trace",
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" | "fatal" | "panic" => "error",
        _ => "info",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("{level},h2=warn,hyper=warn,tower=warn"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second daemon in one process (a test) keeps the first one's.
    let _ = if config.debug.format == "json" { builder.json().try_init() } else { builder.try_init() };
}

/// An error with everything that caused it: `outer: inner: root`.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let next = err.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = err.source();
    }
    text
}
