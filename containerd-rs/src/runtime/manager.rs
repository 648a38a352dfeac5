//! All tasks: who is where, how they come and how they go.
//!
//! [`Manager`] keeps one entry per task from before its bundle exists until after it is gone, so that no id is used twice at a time.
//! What takes several steps (create, delete, cleaning up after a shim that died) runs in a task of its own, to its end, whatever
//! becomes of the client that asked.

use std::collections::{HashMap, hash_map};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_api::any::pack;
use containerd_api::event::{TaskDelete, TaskExit};
use containerd_api::types::{Envelope, Mount};
use containerd_api::{Error, Kind};
use prost_types::{Any, Timestamp};
use shim_api::{any, events, task, topic};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use ttrpc::CallError;

use super::bundle::{Bootstrap, Bundle};
use super::launch::Launcher;
use super::lifecycle::{Exit, Lifecycle, Stage, Step, Verdict};
use super::shim::{self, Shim, into_error};
use super::{Key, log, name};
use crate::events::Exchange;

/// A shim that was just started listens already; this is for a machine that stands still.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a shim that was told to shut down may take to be gone.
pub(super) const GOING_DEADLINE: Duration = Duration::from_secs(2);
/// What a killed process's exit status is when nobody can say more: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lost at a reboot: bundles.
    pub state: PathBuf,
    /// Kept: work directories.
    pub root: PathBuf,
    /// What shims are told.
    pub launcher: Launcher,
}

/// Where an existing shim is that a new task is to be put into.
#[derive(Clone, Debug)]
pub struct Endpoint(pub Bootstrap);

/// What a task is made of.
#[derive(Debug, Default)]
pub struct CreateTask {
    /// The OCI specification, as JSON.
    pub spec: Vec<u8>,
    /// A runtime's name, or a shim's path.
    pub runtime: String,
    /// The container's runtime options.
    pub runtime_options: Option<Any>,
    /// Options of this task; they win.
    pub task_options: Option<Any>,
    /// The root file system.
    pub rootfs: Vec<Mount>,
    /// Stream addresses; empty for none.
    pub stdin: String,
    /// See `stdin`.
    pub stdout: String,
    /// See `stdin`.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Directory of a checkpoint to restore.
    pub checkpoint: String,
    /// A shim that is there already, instead of one of its own.
    pub endpoint: Option<Endpoint>,
}

/// All tasks. Clones share them.
#[derive(Clone)]
pub struct Manager(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) exchange: Arc<Exchange>,
    tasks: Mutex<HashMap<Key, Entry>>,
}

/// Where a task is in its coming and going.
enum Entry {
    /// Its id is taken; nothing can be done with it yet.
    Creating,
    /// Found at the start, being connected to. The watch ends when that is over.
    Loading(watch::Receiver<()>),
    /// Its shim is not there any more; what it left is being removed. The watch ends when that is over.
    Burying(watch::Receiver<()>),
    /// Its shim answers, or did so lately.
    Live(Arc<Shim>),
}

impl Manager {
    /// An empty manager; see `Manager::load` for finding what is there.
    pub fn new(settings: Settings, exchange: Arc<Exchange>) -> Manager {
        Manager(Arc::new(Inner { settings, exchange, tasks: Mutex::new(HashMap::new()) }))
    }

    /// The shim of a task.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, key: &Key) -> Result<Arc<Shim>, Error> {
        loop {
            let mut loading = match self.0.lock().get(key) {
                Some(Entry::Live(shim)) => return Ok(Arc::clone(shim)),
                Some(Entry::Loading(watch)) => watch.clone(),
                Some(Entry::Creating | Entry::Burying(_)) | None => {
                    return Err(Error::new(Kind::NotFound, format!("task {} not found", key.id)));
                }
            };
            // A change, or the end of the sender: loading is over one way or the other. It has a deadline.
            let _ = loading.changed().await;
        }
    }

    /// The shims of a namespace's tasks, by id. Those still being looked for after the start are waited for.
    pub async fn list(&self, namespace: &str) -> Vec<Arc<Shim>> {
        let keys: Vec<Key> = self.0.lock().keys().filter(|key| key.namespace == namespace).cloned().collect();
        let mut shims = Vec::with_capacity(keys.len());
        for key in keys {
            if let Ok(shim) = self.get(&key).await {
                shims.push(shim);
            }
        }
        shims.sort_by(|a, b| a.key.id.cmp(&b.key.id));
        shims
    }

    /// Every task that is live now, of all namespaces.
    pub fn live(&self) -> Vec<Arc<Shim>> {
        let tasks = self.0.lock();
        tasks
            .values()
            .filter_map(|entry| if let Entry::Live(shim) = entry { Some(Arc::clone(shim)) } else { None })
            .collect()
    }

    /// Starts a shim and has it create the container; answers init's pid.
    ///
    /// # Errors
    /// `AlreadyExists`; the shim's own errors otherwise. Nothing is left after an error.
    pub async fn create(&self, key: Key, create: CreateTask) -> Result<u32, Error> {
        let inner = Arc::clone(&self.0);
        to_its_end(async move { inner.create(key, create).await }).await
    }

    /// Starts a shim without a container in it: a sandbox's.
    ///
    /// # Errors
    /// As [`Manager::create`].
    pub async fn start_shim(&self, key: Key, create: CreateTask) -> Result<Arc<Shim>, Error> {
        let inner = Arc::clone(&self.0);
        to_its_end(async move { inner.start_shim(key, &create).await }).await
    }

    /// Takes a task that has ended down, with its shim and its bundle.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs; `NotFound`.
    pub async fn delete(&self, key: &Key) -> Result<Exit, Error> {
        let shim = self.get(key).await?;
        let inner = Arc::clone(&self.0);
        to_its_end(async move { inner.delete(shim).await }).await
    }

    /// Shuts a shim down that has no container left: a sandbox's.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn shut_down(&self, key: &Key) -> Result<(), Error> {
        let shim = self.get(key).await?;
        let inner = Arc::clone(&self.0);
        to_its_end(async move {
            if shim.begin_ending() {
                inner.take_down(&shim).await;
            } else {
                shim.gone().await;
            }
            Ok(())
        })
        .await
    }

    /// Waits for the end of a process. When the shim dies meanwhile, init's exit is what its clean-up found.
    ///
    /// # Errors
    /// `NotFound`; the shim's own errors.
    pub async fn wait(&self, key: &Key, exec_id: &str) -> Result<Exit, Error> {
        let shim = self.get(key).await?;
        match shim.wait(exec_id).await {
            Ok(answer) => {
                Ok(Exit { pid: 0, status: answer.exit_status, at: answer.exited_at.unwrap_or_default() })
            }
            Err(CallError::Closed(_)) => {
                shim.gone().await;
                let exit = *shim.lifecycle.exit().borrow();
                match exit {
                    Some(exit) if exec_id.is_empty() => Ok(exit),
                    // Whatever ran beside init ended with it.
                    _ => Ok(Exit { pid: 0, status: KILLED, at: now() }),
                }
            }
            Err(err) => Err(into_error(err)),
        }
    }

    /// Announces that a task's init was started, unless its shim was quicker: a shim that dies right after its answer takes its own word with it.
    pub fn announce_start(&self, shim: &Shim, pid: u32) {
        // Before its create event the shim's own queue keeps the order.
        if shim.lifecycle.stage() == Stage::Created {
            let started = events::TaskStart { container_id: shim.key.id.clone(), pid };
            self.0.publish(&shim.subject(), Step::Start(pid), topic::TASK_START, pack(&started));
        }
    }

    /// Passes on an event a shim forwarded: once, and in order.
    ///
    /// # Errors
    /// `InvalidArgument` for an envelope that is malformed.
    pub fn forward(&self, envelope: Envelope) -> Result<(), Error> {
        let step = init_step(&envelope);
        let known = step.and_then(|(id, step)| {
            let shim = self.0.live_shim(&Key::new(&envelope.namespace, id))?;
            Some((shim, step))
        });
        let Some((shim, step)) = known else { return self.0.exchange.forward(envelope) };
        let mut outcome = Ok(());
        let verdict = shim.lifecycle.publish(step, || outcome = self.0.send(shim.recalled, envelope));
        if verdict == Verdict::Drop {
            tracing::debug!(task = %shim.key, ?step, "an event came again, or too late");
        }
        outcome
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live_shim(&self, key: &Key) -> Option<Arc<Shim>> {
        match self.lock().get(key) {
            Some(Entry::Live(shim)) => Some(Arc::clone(shim)),
            _ => None,
        }
    }

    pub(super) fn bundle(&self, key: &Key) -> Bundle {
        Bundle::at(&self.settings.state, &self.settings.root, key)
    }

    /// Takes an id; waits for the rest of an earlier task of that name to be removed. False if the id is taken.
    async fn reserve(&self, key: &Key) -> bool {
        loop {
            let (shim, mut rest) = match self.lock().entry(key.clone()) {
                hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(Entry::Creating);
                    return true;
                }
                hash_map::Entry::Occupied(occupied) => match occupied.get() {
                    Entry::Live(shim) if shim.is_ending() => (Some(Arc::clone(shim)), None),
                    Entry::Loading(over) | Entry::Burying(over) => (None, Some(over.clone())),
                    Entry::Creating | Entry::Live(_) => return false,
                },
            };
            if let Some(shim) = shim {
                shim.gone().await;
            }
            if let Some(over) = &mut rest {
                while over.changed().await.is_ok() {}
            }
        }
    }

    /// Says that a task that was expected has no shim.
    pub(super) fn bury(&self, key: Key, until: watch::Receiver<()>) {
        self.lock().insert(key, Entry::Burying(until));
    }

    /// Marks tasks as being looked for; they are found, or forgotten, later.
    pub(super) fn expect(&self, key: Key, until: watch::Receiver<()>) {
        self.lock().insert(key, Entry::Loading(until));
    }

    /// Puts a shim where its task is asked for, and looks after it from now on.
    pub(super) fn adopt(self: &Arc<Self>, shim: Shim) -> Arc<Shim> {
        let shim = Arc::new(shim);
        self.lock().insert(shim.key.clone(), Entry::Live(Arc::clone(&shim)));
        let inner = Arc::clone(self);
        let watched = Arc::clone(&shim);
        tokio::spawn(async move {
            let closed = watched.client().closed().await;
            if watched.begin_ending() {
                tracing::warn!(task = %watched.key, reason = closed.reason, "shim disconnected, cleaning up");
                inner.clean_up_after_death(&watched).await;
            }
        });
        shim
    }

    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    async fn create(self: Arc<Self>, key: Key, create: CreateTask) -> Result<u32, Error> {
        let shim = self.start_shim(key.clone(), &create).await?;
        let request = task::CreateTaskRequest {
            terminal: create.terminal,
            stdin: create.stdin,
            stdout: create.stdout,
            stderr: create.stderr,
            checkpoint: create.checkpoint,
            options: effective(create.task_options, create.runtime_options),
            ..shim::create_request(&key, &shim.bundle, create.rootfs)
        };
        match shim.create(request).await {
            Ok(pid) => Ok(pid),
            Err(err) => {
                if shim.begin_ending() {
                    // The shim may have got half-way; it answers NotFound if it has not, and not at all if it was killed.
                    match shim.delete("").await {
                        Err(CallError::Closed(_)) => self.clean_up_after_death(&shim).await,
                        _ => self.take_down(&shim).await,
                    }
                } else {
                    shim.gone().await;
                }
                Err(err.context("failed to create shim task"))
            }
        }
    }

    async fn start_shim(self: &Arc<Self>, key: Key, create: &CreateTask) -> Result<Arc<Shim>, Error> {
        if !self.reserve(&key).await {
            return Err(Error::of(Kind::AlreadyExists, format_args!("task {}", key.id)));
        }
        match self.launch(&key, create).await {
            Ok(shim) => Ok(self.adopt(shim)),
            Err(err) => {
                self.forget(&key);
                Err(err)
            }
        }
    }

    /// From nothing to a shim that answers. Nothing is left after an error.
    async fn launch(&self, key: &Key, create: &CreateTask) -> Result<Shim, Error> {
        let binary = name::resolve(&create.runtime).map_err(|err| err.context("failed to start shim"))?;
        let bundle = self.bundle(key);
        bundle.create(&create.spec).map_err(|err| Error::internal("create bundle", err))?;
        let launched = self.launch_in(key, create, &binary, &bundle).await;
        if launched.is_err() {
            if create.endpoint.is_none() {
                // What was to start it may have been killed after it had; then there is one that nobody knows of.
                self.kill_shim(key, &bundle).await;
                self.clean_up_bundle(key, &bundle, 0).await;
            }
            if let Err(err) = remove(bundle).await {
                tracing::warn!(task = %key, %err, "cannot remove the bundle of a shim that did not start");
            }
        }
        launched
    }

    async fn launch_in(
        &self,
        key: &Key,
        create: &CreateTask,
        binary: &Path,
        bundle: &Bundle,
    ) -> Result<Shim, Error> {
        let failed = |err: Error| err.context("failed to start shim");
        let lifecycle = Arc::new(Lifecycle::new(&bundle.path));
        let logging = CancellationToken::new();
        let note = |err| Error::internal("write bundle", err);
        // From here on the next start of ours knows what to look for.
        bundle.write_shim_binary(binary).map_err(note)?;
        let bootstrap = match &create.endpoint {
            Some(Endpoint(bootstrap)) => bootstrap.clone(),
            None => {
                log::follow(&bundle.log(), key.clone(), logging.clone());
                let options = effective(create.task_options.clone(), create.runtime_options.clone());
                self.settings.launcher.start(binary, bundle, key, options.as_ref()).await.map_err(failed)?
            }
        };
        bundle.write_bootstrap(&bootstrap).map_err(note)?;
        let client = match shim::connect(&bootstrap, CONNECT_DEADLINE).await {
            Ok(client) => client,
            Err(err) => return Err(failed(err)),
        };
        let mut shim = Shim::new(key.clone(), bundle.clone(), bootstrap, lifecycle, client, logging);
        shim.shared = create.endpoint.is_some();
        Ok(shim)
    }

    async fn delete(self: Arc<Self>, shim: Arc<Shim>) -> Result<Exit, Error> {
        let not_found = || Error::new(Kind::NotFound, format!("task {} not found", shim.key.id));
        let answer = match shim.delete("").await {
            Ok(answer) => Ok(answer),
            Err(CallError::Closed(_)) => {
                shim.gone().await;
                let exit = *shim.lifecycle.exit().borrow();
                return exit.ok_or_else(not_found);
            }
            Err(err) => match into_error(err) {
                // The container is gone, what is around it may not be.
                err if err.is_not_found() => Err(err),
                err => return Err(err),
            },
        };
        if !shim.begin_ending() {
            shim.gone().await;
        } else {
            self.take_down(&shim).await;
        }
        let answer = answer?;
        Ok(Exit { pid: answer.pid, status: answer.exit_status, at: answer.exited_at.unwrap_or_default() })
    }

    /// Ends a shim that has no container any more, and removes its bundle. The caller has claimed the ending.
    async fn take_down(&self, shim: &Arc<Shim>) {
        if !shim.shared {
            let process = self.shim_process(&shim.key, &shim.bundle);
            if let Err(err) = shim.shutdown().await {
                tracing::warn!(task = %shim.key, %err, "shim does not shut down");
            }
            // One that others are in stays for them. Any other is gone before its name is free: it would be in the way of the next, and what it still
            // has to tell would be taken for the next one's.
            let is_gone = async {
                match process {
                    Some(process) => super::load::ends(process, GOING_DEADLINE).await,
                    None => tokio::time::timeout(GOING_DEADLINE, shim.client().closed()).await.is_ok(),
                }
            };
            if !self.shares_process(shim) && !is_gone.await {
                tracing::warn!(task = %shim.key, "shim stays, killing it");
                self.kill_shim(&shim.key, &shim.bundle).await;
                self.clean_up_bundle(&shim.key, &shim.bundle, 0).await;
            }
        }
        self.remove_rest(shim).await;
    }

    /// Whether another task is in the same shim (a pod's).
    fn shares_process(&self, shim: &Shim) -> bool {
        self.lock().values().any(|entry| match entry {
            Entry::Live(other) => other.key != shim.key && other.bootstrap.address == shim.bootstrap.address,
            Entry::Creating | Entry::Loading(_) | Entry::Burying(_) => false,
        })
    }

    pub(super) async fn remove_rest(&self, shim: &Arc<Shim>) {
        if let Err(err) = remove(shim.bundle.clone()).await {
            tracing::error!(task = %shim.key, %err, "cannot remove bundle");
        }
        self.forget(&shim.key);
        shim.set_gone();
    }

    /// What a shim that died left behind is removed, and its task's end announced. The caller has claimed the ending.
    pub(super) async fn clean_up_after_death(&self, shim: &Arc<Shim>) {
        // A runc that it had started goes on by itself, and may make the container even now.
        self.kill_shim(&shim.key, &shim.bundle).await;
        let exit = self.clean_up_bundle(&shim.key, &shim.bundle, shim.lifecycle.pid()).await;
        self.announce_end(&shim.subject(), exit);
        self.remove_rest(shim).await;
    }

    /// Has the shim binary kill and unmount what is left of a task, or does so itself; says how init ended.
    pub(super) async fn clean_up_bundle(&self, key: &Key, bundle: &Bundle, pid: u32) -> Exit {
        let init = bundle.read_init_pid().unwrap_or(pid);
        let answer = match bundle.read_shim_binary() {
            Some(binary) => self.settings.launcher.delete(&binary, bundle, key).await,
            None => Err(Error::new(Kind::NotFound, "nobody knows which shim it was")),
        };
        match answer {
            Ok(answer) => Exit {
                pid: if answer.pid == 0 { init } else { answer.pid },
                status: answer.exit_status,
                at: answer.exited_at.unwrap_or_else(now),
            },
            Err(err) => {
                tracing::error!(task = %key, %err, "failed to clean up after shim disconnected");
                super::load::kill_container(init, &key.id);
                Exit { pid: init, status: KILLED, at: now() }
            }
        }
    }

    /// Announces a task's end, as far as its shim did not.
    pub(super) fn announce_end(&self, subject: &Subject<'_>, exit: Exit) {
        let lifecycle = subject.lifecycle;
        if lifecycle.stage() == Stage::New && lifecycle.pid() == 0 {
            // Never created: nobody has heard of it.
            return;
        }
        let id = &subject.key.id;
        // What the shim itself said about the exit is truer than what its clean-up found.
        let exit = lifecycle.exit().borrow().unwrap_or(exit);
        self.announce_exit(subject, exit);
        let deleted = TaskDelete {
            container_id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
            id: String::new(),
        };
        self.publish(subject, Step::Delete(exit.pid), topic::TASK_DELETE, pack(&deleted));
    }

    /// Announces the end of a task's init, unless that was done.
    pub(super) fn announce_exit(&self, subject: &Subject<'_>, exit: Exit) {
        let id = &subject.key.id;
        let exited = TaskExit {
            container_id: id.clone(),
            id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
        };
        self.publish(subject, Step::Exit(exit), topic::TASK_EXIT, pack(&exited));
    }

    fn publish(&self, subject: &Subject<'_>, step: Step, topic: &'static str, event: Any) {
        let envelope = Envelope {
            timestamp: Some(now()),
            namespace: subject.key.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        subject.lifecycle.publish(step, || {
            if let Err(err) = self.send(subject.recalled, envelope) {
                tracing::error!(task = %subject.key, topic, %err, "cannot publish");
            }
        });
    }

    /// Events of tasks that were there before us are kept for those who have yet to come back after our crash.
    fn send(&self, recalled: bool, envelope: Envelope) -> Result<(), Error> {
        if recalled { self.exchange.forward_lasting(envelope) } else { self.exchange.forward(envelope) }
    }
}

/// Whom an event is about.
pub(super) struct Subject<'a> {
    pub(super) key: &'a Key,
    pub(super) lifecycle: &'a Arc<Lifecycle>,
    /// Whether the task was there before us.
    pub(super) recalled: bool,
}

/// Runs work that must not stop half-way in a task of its own.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(err) => Err(Error::internal("task service", err)),
    }
}

/// Removing a bundle unmounts and deletes: not for a thread that answers others.
pub(super) async fn remove(bundle: Bundle) -> std::io::Result<()> {
    match tokio::task::spawn_blocking(move || bundle.delete()).await {
        Ok(outcome) => outcome,
        Err(err) => Err(std::io::Error::other(err)),
    }
}

/// A task's own options, if it has any, or else its container's.
fn effective(task: Option<Any>, runtime: Option<Any>) -> Option<Any> {
    task.filter(|options| !options.value.is_empty()).or(runtime)
}

/// What an envelope says about a task's init process, and about which task. `None` for everything else.
fn init_step(envelope: &Envelope) -> Option<(String, Step)> {
    let event = envelope.event.as_ref()?;
    match envelope.topic.as_str() {
        topic::TASK_CREATE => {
            let event: events::TaskCreate = any::unpack(event).ok()?;
            Some((event.container_id, Step::Create(event.pid)))
        }
        topic::TASK_START => {
            let event: events::TaskStart = any::unpack(event).ok()?;
            Some((event.container_id, Step::Start(event.pid)))
        }
        topic::TASK_EXIT => {
            let event: events::TaskExit = any::unpack(event).ok()?;
            if event.id != event.container_id && !event.id.is_empty() {
                return None;
            }
            let at = event.exited_at.unwrap_or_default();
            Some((event.container_id, Step::Exit(Exit { pid: event.pid, status: event.exit_status, at })))
        }
        topic::TASK_DELETE => {
            let event: events::TaskDelete = any::unpack(event).ok()?;
            if event.id != event.container_id && !event.id.is_empty() {
                return None;
            }
            Some((event.container_id, Step::Delete(event.pid)))
        }
        _ => None,
    }
}

pub(super) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
