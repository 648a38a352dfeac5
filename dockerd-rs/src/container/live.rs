//! What the engine holds in memory for a container that lives: its turn, its ends, its waiting clients, its execs.
//!
//! Nothing here outlives the engine; what must is in the record. Operations that change a container take its turn, first come first
//! served, and run in tasks of their own to their end; reading takes no turn. Everything is short-locked data or a channel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exec::Exec;
use super::io::Wanted;
use super::life::policy::Backoff;
use super::logs::follow::Growth;
use super::logs::forward::Told;

/// How long the engine's end waits for those who send logs on.
const FORWARDERS: Duration = Duration::from_secs(2);

/// Of one container.
pub struct Live {
    turn: Arc<Semaphore>,
    ends: watch::Sender<Ends>,
    stopping: AtomicU32,
    /// A restart by a client is under way: its end is no reason to remove the container.
    held: AtomicU32,
    removing: AtomicBool,
    cancelled: AtomicBool,
    backoff: Mutex<Backoff>,
    waiting: Mutex<Vec<PendingAttach>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    health: Mutex<Option<AbortHandle>>,
    process: Mutex<Option<Arc<serde_json::Value>>>,
    log_dropped: AtomicU64,
    forwarder: Mutex<Option<watch::Sender<Told>>>,
}

/// How often a container has ended since the engine began to look, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Counts ends.
    pub count: u64,
    /// The last end's code.
    pub code: i32,
    /// Whether the container is gone.
    pub removed: bool,
}

/// A client that attached before the start: it gets its connection before the first instruction runs.
pub struct PendingAttach {
    /// Which streams.
    pub wanted: Wanted,
    /// Where the connection goes.
    pub give: oneshot::Sender<UnixStream>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            ends: watch::Sender::new(Ends::default()),
            stopping: AtomicU32::new(0),
            held: AtomicU32::new(0),
            removing: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            backoff: Mutex::default(),
            waiting: Mutex::default(),
            execs: Mutex::default(),
            health: Mutex::default(),
            process: Mutex::default(),
            log_dropped: AtomicU64::new(0),
            forwarder: Mutex::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts up while it lives.
pub struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Live {
    /// Waits for the container's turn; it ends when the permit is dropped.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }

    /// Sees every end, merged.
    pub fn ends(&self) -> watch::Receiver<Ends> {
        self.ends.subscribe()
    }

    /// Tells those who wait that the container ended.
    pub fn ended(&self, code: i32) {
        self.ends.send_modify(|ends| {
            ends.count += 1;
            ends.code = code;
        });
    }

    /// Tells those who wait that the container is gone.
    pub fn removed(&self, code: i32) {
        self.ends.send_modify(|ends| {
            ends.removed = true;
            ends.code = code;
        });
    }

    /// A stop is under way until the answer is dropped.
    pub fn begin_stop(&self) -> Counted<'_> {
        Counted::new(&self.stopping)
    }

    /// Whether a stop is under way.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) > 0
    }

    /// The container is kept although it ends, until the answer is dropped.
    pub fn hold(&self) -> Counted<'_> {
        Counted::new(&self.held)
    }

    /// Whether its end is no reason to remove it.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) > 0
    }

    /// Marks the container for removal; false when it is already.
    pub fn begin_removal(&self) -> bool {
        !self.removing.swap(true, Ordering::SeqCst)
    }

    /// Whether it is marked for removal.
    pub fn is_removing(&self) -> bool {
        self.removing.load(Ordering::SeqCst)
    }

    /// The removal did not come about.
    pub fn give_removal_up(&self) {
        self.removing.store(false, Ordering::SeqCst);
    }

    /// The next end is one a client asked for: no policy acts on it.
    pub fn cancel_policy(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// Whether a client asked for the end.
    pub fn policy_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// A client starts the container: what was before is forgotten.
    pub fn fresh_start(&self) {
        self.cancelled.store(false, Ordering::SeqCst);
        *lock(&self.backoff) = Backoff::default();
    }

    /// The restart pauses so far.
    pub fn backoff<T>(&self, decide: impl FnOnce(&mut Backoff) -> T) -> T {
        decide(&mut lock(&self.backoff))
    }

    /// Queues a client for the next start.
    pub fn wait_for_start(&self, pending: PendingAttach) {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|pending| !pending.give.is_closed());
        waiting.push(pending);
    }

    /// The clients that wait for the start.
    pub fn take_waiting(&self) -> Vec<PendingAttach> {
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// The container's execs.
    pub fn execs<T>(&self, with: impl FnOnce(&mut BTreeMap<String, Arc<Exec>>) -> T) -> T {
        with(&mut lock(&self.execs))
    }

    /// The ids inspect shows: of execs that have not ended. `None` when there are none.
    pub fn exec_ids(&self) -> Option<Vec<String>> {
        let ids: Vec<String> =
            lock(&self.execs).values().filter(|exec| !exec.has_ended()).map(|exec| exec.id.clone()).collect();
        (!ids.is_empty()).then_some(ids)
    }

    /// Replaces the task that watches the container's health.
    pub fn set_health(&self, watcher: Option<AbortHandle>) {
        let old = std::mem::replace(&mut *lock(&self.health), watcher);
        if let Some(old) = old {
            old.abort();
        }
    }

    /// The `process` of the runtime specification of the present run, for execs.
    pub fn process(&self) -> Option<Arc<serde_json::Value>> {
        lock(&self.process).clone()
    }

    /// Whether so many dropped log lines are news. A new run's shim counts from 0.
    pub fn log_dropped(&self, lines: u64) -> bool {
        self.log_dropped.fetch_max(lines, Ordering::SeqCst) < lines
    }

    /// A new run begins with a whole log.
    pub fn forget_log_dropped(&self) {
        self.log_dropped.store(0, Ordering::SeqCst);
    }

    /// What its log's forwarder hears, while there is one.
    pub fn forwarder<T>(&self, with: impl FnOnce(&mut Option<watch::Sender<Told>>) -> T) -> T {
        with(&mut lock(&self.forwarder))
    }

    /// Remembers it; `None` when the run is over.
    pub fn set_process(&self, process: Option<Arc<serde_json::Value>>) {
        *lock(&self.process) = process;
    }
}

/// Of all containers together.
#[derive(Default)]
pub struct Shared {
    growth: OnceLock<Option<Growth>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// Those who send logs on, and what ends them.
    pub forwarders: TaskTracker,
    /// See [`Shared::forwarders`].
    pub forwarders_stop: CancellationToken,
}

impl Shared {
    /// Who hears of logs that grow. `None` when the system has no inotify instance left for us.
    pub fn growth(&self) -> Option<&Growth> {
        self.growth
            .get_or_init(|| match Growth::new() {
                Ok(growth) => Some(growth),
                Err(err) => {
                    tracing::error!(error = %err, "cannot watch logs; following looks twice a second");
                    None
                }
            })
            .as_ref()
    }

    /// Ends those who send logs on; they keep how far they are.
    pub async fn stop_forwarders(&self) {
        self.forwarders_stop.cancel();
        self.forwarders.close();
        if tokio::time::timeout(FORWARDERS, self.forwarders.wait()).await.is_err() {
            tracing::warn!(left = self.forwarders.len(), "logs are still being sent");
        }
    }

    /// All execs by id.
    pub fn execs<T>(&self, with: impl FnOnce(&mut BTreeMap<String, Arc<Exec>>) -> T) -> T {
        with(&mut lock(&self.execs))
    }
}
