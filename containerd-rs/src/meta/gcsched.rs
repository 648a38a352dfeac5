//! When garbage is collected: soon after something was deleted, when something expires, at once when a client waits for it.
//!
//! Requests that come close together are one collection. A collection is followed by a pause of fifty times its length, so that collecting
//! takes no more than a fiftieth of the time however often it is asked for; a client that waits is not held up by that.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use containerd_api::Error;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::gc::{self, Node, Summary, Young};
use crate::daemon::Daemon;
use crate::metrics::Metrics;

/// How long requests are gathered.
const GATHER: Duration = Duration::from_millis(100);
/// Pause after a collection, as a multiple of what it took.
const PAUSE_FACTOR: u32 = 50;
/// The longest time between two collections: unfinished writes expire without telling.
const LONGEST: Duration = Duration::from_secs(3600);
/// Clients that wait at once; more wait for their place.
const WAITERS: usize = 64;

/// Asks for collections, and waits for them. Cloning shares.
#[derive(Clone)]
pub struct Collector(Arc<Inner>);

struct Inner {
    wanted: Notify,
    /// What leases held that clients have given up, by namespace.
    released: std::sync::Mutex<Vec<(String, Node)>>,
    collections: Counter,
    removed: Counter,
    seconds: Counter<f64, AtomicU64>,
    now: mpsc::Sender<oneshot::Sender<Result<Summary, Error>>>,
    waiting: std::sync::Mutex<Option<mpsc::Receiver<oneshot::Sender<Result<Summary, Error>>>>>,
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector {
    pub fn new() -> Self {
        let (now, waiting) = mpsc::channel(WAITERS);
        let (collections, removed, seconds) = Default::default();
        Self(Arc::new(Inner {
            wanted: Notify::new(),
            released: std::sync::Mutex::default(),
            collections,
            removed,
            seconds,
            now,
            waiting: std::sync::Mutex::new(Some(waiting)),
        }))
    }

    /// Has its figures served.
    pub fn register(&self, metrics: &Metrics) {
        let mut registry = metrics.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let registry = registry.sub_registry_with_prefix("containerd_gc");
        registry.register("collections", "Garbage collections", self.0.collections.clone());
        registry.register("removed", "Things garbage collections removed", self.0.removed.clone());
        registry.register("seconds", "Time spent collecting garbage", self.0.seconds.clone());
    }

    /// Something may have become garbage. Never blocks.
    pub fn request(&self) {
        self.0.wanted.notify_one();
    }

    /// A client has ended the lease that held these: being new protects them no longer.
    pub fn release(&self, namespace: &str, nodes: Vec<Node>) {
        let mut released = self.0.released.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        released.extend(nodes.into_iter().map(|node| (namespace.to_owned(), node)));
        drop(released);
        self.request();
    }

    /// What was released since the last time this was asked.
    pub(super) fn take_released(&self) -> Vec<(String, Node)> {
        std::mem::take(&mut *self.0.released.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Collects now and waits for it.
    ///
    /// # Errors
    /// The collection failed, or the daemon stops.
    pub async fn run_now(&self) -> Result<Summary, Error> {
        let stopping = || Error::new(containerd_api::Kind::Unavailable, "the daemon is shutting down");
        let (reply, answer) = oneshot::channel();
        self.0.now.send(reply).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Starts collecting when asked, until the daemon stops. The first collection is now. To be called once.
    pub fn spawn(&self, daemon: Daemon) -> JoinHandle<()> {
        let waiting = self.0.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let collector = self.clone();
        tokio::spawn(async move {
            let Some(waiting) = waiting else { return };
            collector.collect(daemon, waiting).await;
        })
    }

    async fn collect(
        self,
        daemon: Daemon,
        mut waiting: mpsc::Receiver<oneshot::Sender<Result<Summary, Error>>>,
    ) {
        let mut pause = GATHER;
        let mut sleep = Duration::ZERO;
        loop {
            let mut clients = Vec::new();
            tokio::select! {
                () = daemon.stop.cancelled() => return,
                client = waiting.recv() => clients.extend(client),
                () = tokio::time::sleep(sleep) => {}
                () = self.0.wanted.notified() => {
                    // Gather what else is deleted, unless somebody waits.
                    tokio::select! {
                        () = daemon.stop.cancelled() => return,
                        client = waiting.recv() => clients.extend(client),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            while let Ok(client) = waiting.try_recv() {
                clients.push(client);
            }
            let began = Instant::now();
            let young = if clients.is_empty() { Young::Spared } else { Young::Taken };
            let result = gc::run(&daemon, young).await;
            let took = began.elapsed();
            pause = GATHER.max(took * PAUSE_FACTOR);
            self.0.collections.inc();
            self.0.seconds.inc_by(took.as_secs_f64());
            match &result {
                Ok(summary) => {
                    sleep = until(summary.next_expiry);
                    self.0.removed.inc_by(summary.removed as u64);
                    if summary.removed > 0 {
                        tracing::debug!(removed = summary.removed, ?took, "garbage collected");
                    }
                }
                Err(err) => {
                    tracing::error!(%err, "garbage collection failed");
                    sleep = LONGEST;
                }
            }
            for client in clients {
                // Who stopped waiting needs no answer.
                let _ = client.send(result.clone());
            }
        }
    }
}

/// How long until `expiry`, at most [`LONGEST`].
fn until(expiry: Option<Timestamp>) -> Duration {
    match expiry {
        Some(at) => Duration::try_from(at - Timestamp::now()).unwrap_or_default().clamp(GATHER, LONGEST),
        None => LONGEST,
    }
}
