//! Moving images: pull, push, import, export, tag. Which of them is said by the types of source and destination.
//!
//! Invariant: an image appears in the store when everything it is made of is there and checked, never before. While
//! a transfer goes on, a lease keeps what it has made; when it fails or its client goes, the lease goes too.
//!
//! ```text
//! server/transfer ─► Transfer ─► pull │ push │ import │ export ─► Scope (stores under a lease)
//!                                  └──► unpack (snapshots)     └► Progress, Streams (the client)
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use containerd_api::any::{is, unpack as unwrap};
use containerd_api::error::Error;
use containerd_api::transfer::TransferRequest;
use containerd_api::transfer_types::{ImageExportStream, ImageImportStream, ImageStore, OciRegistry};
use prost_types::Any;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::content::Store;
use crate::events::Exchange;
use crate::meta::Db;
use crate::meta::gcsched::Collector;
use crate::snapshot::Snapshots;

mod credentials;
pub mod diff;
mod export;
mod import;
pub(crate) mod keyed;
pub mod mounts;
mod names;
pub mod progress;
mod pull;
mod push;
pub mod scope;
pub mod streams;
mod unpack;
mod walk;

use progress::Progress;
use scope::Scope;

/// The plugin's name in the configuration file.
const PLUGIN: &str = "io.containerd.transfer.v1.local";

/// How transfers are made.
#[derive(Clone, Debug)]
pub struct TransferConfig {
    /// Layers fetched at once by one pull.
    pub max_concurrent_downloads: usize,
    /// Blobs sent at once by one push.
    pub max_concurrent_uploads: usize,
    /// Layers extracted at once by all transfers, those extracted while they are fetched not counted.
    pub max_concurrent_unpacks: usize,
    /// The snapshotter for clients that name none.
    pub snapshotter: Option<String>,
    /// Where to look for `hosts.toml` when a client does not say.
    pub host_dir: Option<PathBuf>,
}

impl TransferConfig {
    fn new(config: &Config) -> Result<Self, Error> {
        let mut ours = Self {
            max_concurrent_downloads: 3,
            max_concurrent_uploads: 3,
            max_concurrent_unpacks: 2,
            snapshotter: None,
            host_dir: None,
        };
        let Some(table) = config.plugin(PLUGIN) else { return Ok(ours) };
        let number = |key: &str, default: usize| match table.get(key).map(toml::Value::as_integer) {
            None => Ok(default),
            Some(Some(n)) if n > 0 => Ok(usize::try_from(n).unwrap_or(default)),
            Some(_) => Err(Error::invalid(format!("{PLUGIN}: {key} must be a positive number"))),
        };
        ours.max_concurrent_downloads = number("max_concurrent_downloads", ours.max_concurrent_downloads)?;
        ours.max_concurrent_uploads = number("max_concurrent_uploaded_layers", ours.max_concurrent_uploads)?;
        ours.max_concurrent_unpacks = number("max_concurrent_unpacks", ours.max_concurrent_unpacks)?;
        ours.host_dir = table.get("config_path").and_then(toml::Value::as_str).map(PathBuf::from);
        Ok(ours)
    }
}

/// Everything about moving images.
pub struct Transfer {
    pub config: TransferConfig,
    pub streams: streams::Streams,
    db: Arc<Db>,
    content: Arc<Store>,
    snapshots: Arc<Snapshots>,
    collector: Collector,
    /// Layers being fetched, by namespace and digest.
    fetching: keyed::Keyed,
    /// Snapshots being made, by namespace, snapshotter and chain id.
    unpacking: keyed::Keyed,
    unpacks: Semaphore,
    /// Where temporary mounts are.
    scratch: PathBuf,
    /// Set once what a killed daemon left is removed.
    cleaned: OnceCell<()>,
}

impl Transfer {
    /// Called before anything is served.
    ///
    /// # Errors
    /// Its configuration makes no sense.
    pub fn open(
        config: &Config,
        db: Arc<Db>,
        content: Arc<Store>,
        snapshots: Arc<Snapshots>,
        collector: Collector,
        _events: Arc<Exchange>,
    ) -> Result<Arc<Self>, Error> {
        let ours = TransferConfig::new(config)?;
        let scratch = config.plugin_state(PLUGIN);
        clear_scratch(&scratch);
        let transfer = Arc::new(Self {
            cleaned: OnceCell::new(),
            unpacks: Semaphore::new(ours.max_concurrent_unpacks),
            config: ours,
            streams: streams::Streams::default(),
            db,
            content,
            snapshots,
            collector,
            fetching: keyed::Keyed::default(),
            unpacking: keyed::Keyed::default(),
            scratch,
        });
        let cleaning = Arc::clone(&transfer);
        tokio::spawn(async move { cleaning.clean().await });
        Ok(transfer)
    }

    /// Removes what a killed daemon left, once; transfers wait for it.
    async fn clean(&self) {
        let clean = async || {
            if let Err(err) = unpack::remove_leftovers(&self.db, &self.snapshots).await {
                tracing::warn!(%err, "snapshots of interrupted transfers are left to the collector");
            }
            if let Err(err) = Scope::shorten_leftovers(&self.db, &self.collector).await {
                tracing::warn!(%err, "leases of interrupted transfers last as long as they were made for");
            }
        };
        self.cleaned.get_or_init(clean).await;
    }

    /// The stores in a namespace.
    pub fn scope(&self, collector: &Collector, namespace: &str, lease: Option<&str>) -> Scope {
        let (db, content) = (Arc::clone(&self.db), Arc::clone(&self.content));
        Scope::new(db, content, Arc::clone(&self.snapshots), collector.clone(), namespace, lease)
    }

    /// Makes one transfer, unless its client goes or the daemon stops.
    ///
    /// # Errors
    /// Whatever went wrong with it, or `Unimplemented` for a pair of types nobody knows.
    pub async fn transfer_until(
        self: &Arc<Self>,
        scope: Scope,
        request: TransferRequest,
        gone: CancellationToken,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let options = request.options.unwrap_or_default();
        let mut ends = None;
        let progress = if options.progress_stream.is_empty() {
            Progress::default()
        } else {
            let stream = self.streams.take(&scope.namespace, &options.progress_stream)?;
            let to_client = stream.to_client.clone();
            ends = Some(stream);
            Progress::new(Some(to_client))
        };
        self.clean().await;
        let scope = scope.leased().await?;
        let (source, target) = (request.source.unwrap_or_default(), request.destination.unwrap_or_default());
        let cancelled = || Error::new(containerd_api::Kind::Canceled, "context canceled");
        let result = tokio::select! {
            result = self.dispatch(&scope, &source, &target, progress) => result,
            () = gone.cancelled() => Err(cancelled()),
            () = stop.cancelled() => Err(cancelled()),
        };
        scope.release().await;
        if result.as_ref().is_err_and(|err| err.kind() == containerd_api::Kind::ResourceExhausted)
            && let Err(err) = scope.collector.run_now().await
        {
            tracing::warn!(%err, "what a transfer left on a full disk is collected later");
        }
        drop(ends);
        // Layers of megabytes passed through many buffers; the daemon is idle far longer than it transfers.
        tokio::task::spawn_blocking(sys::memory::trim);
        result
    }

    async fn dispatch(
        self: &Arc<Self>,
        scope: &Scope,
        source: &Any,
        target: &Any,
        progress: Progress,
    ) -> Result<(), Error> {
        let scope = scope.clone();
        if is::<OciRegistry>(source) && is::<ImageStore>(target) {
            pull::pull(self, scope, decode(source)?, decode(target)?, progress).await
        } else if is::<ImageStore>(source) && is::<OciRegistry>(target) {
            push::push(self, scope, decode(source)?, decode(target)?, progress).await
        } else if is::<ImageImportStream>(source) && is::<ImageStore>(target) {
            import::import(self, scope, decode(source)?, decode(target)?, progress).await
        } else if is::<ImageStore>(source) && is::<ImageExportStream>(target) {
            export::export(self, scope, decode(source)?, decode(target)?, progress).await
        } else if is::<ImageStore>(source) && is::<ImageStore>(target) {
            tag(&scope, &decode(source)?, &decode(target)?, &progress).await
        } else {
            let what = format!("Unable to transfer from {} to {}", source.type_url, target.type_url);
            Err(Error::of(containerd_api::Kind::Unimplemented, what))
        }
    }
}

/// Gives an image more names.
async fn tag(
    scope: &Scope,
    source: &ImageStore,
    target: &ImageStore,
    progress: &Progress,
) -> Result<(), Error> {
    let image = scope.image(&source.name)?.ok_or_else(|| Error::not_found("image", &source.name))?;
    let root = scope::from_wire(&image.target.unwrap_or_default())?;
    let names = names::named(target, &root);
    if names.is_empty() {
        return Err(Error::of(containerd_api::Kind::NotFound, "no image name found"));
    }
    names::save(scope, &names, &root, &target.labels, progress).await
}

fn decode<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<M, Error> {
    unwrap::<M>(any)
        .map_err(|err| Error::invalid(err.to_string()))?
        .ok_or_else(|| Error::invalid(format!("unexpected type {}", any.type_url)))
}

/// Takes down temporary mounts a killed daemon left.
fn clear_scratch(scratch: &std::path::Path) {
    let Ok(left) = std::fs::read_dir(scratch) else { return };
    for entry in left.flatten() {
        let path = entry.path();
        let _ = sys::mount::detach_below(&path);
        let _ = sys::mount::detach(&path);
        let _ = std::fs::remove_dir(&path);
    }
}
