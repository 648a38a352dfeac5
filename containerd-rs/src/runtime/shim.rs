//! A shim that runs: the connection to it and the calls it answers.
//!
//! Task API 2 and 3 differ in the service's name only. Errors keep the shim's code and text: clients match on runc's words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_api::ns::NAMESPACE_TTRPC;
use containerd_api::types::Mount;
use containerd_api::{Error, Kind};
use prost::Message;
use prost_types::Any;
use shim_api::{service, task};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use ttrpc::message::KeyValue;
use ttrpc::{CallError, Client, Code};

use super::bundle::{Bootstrap, Bundle};
use super::launch::{check, socket_path};
use super::manager::Subject;
use super::{Key, Lifecycle};

/// A state query that takes longer finds a shim that is stuck; containerd's default as well.
pub const STATE_DEADLINE: Duration = Duration::from_secs(2);
/// Reading some twenty files of a control group.
const STATS_DEADLINE: Duration = Duration::from_secs(10);
/// How long a shim may take to shut down.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(3);

/// One task's shim.
pub struct Shim {
    /// Whose.
    pub key: Key,
    /// Where its files are.
    pub bundle: Bundle,
    /// Where it listens.
    pub bootstrap: Bootstrap,
    /// How far its task has come.
    pub lifecycle: Arc<Lifecycle>,
    /// Whether the process belongs to another task or a sandbox as well: it is not ours to shut down.
    pub shared: bool,
    /// Whether it was there before we were.
    pub recalled: bool,
    client: Client,
    service: &'static str,
    /// Someone is taking it down: a Delete, or the clean-up after its death.
    ending: AtomicBool,
    /// Turns true when nothing of it is left.
    gone: watch::Sender<bool>,
    _log: DropGuard,
}

/// Connects to where a shim listens.
///
/// # Errors
/// `Unimplemented` for an address we cannot speak to; `Unavailable` when nobody answers.
pub async fn connect(bootstrap: &Bootstrap, deadline: Duration) -> Result<Client, Error> {
    check(bootstrap)?;
    let path = socket_path(&bootstrap.address)
        .ok_or_else(|| Error::of(Kind::InvalidArgument, format_args!("address {}", bootstrap.address)))?;
    let unavailable = |cause: String| {
        Error::new(Kind::Unavailable, format!("failed to connect to shim at {}: {cause}", path.display()))
    };
    match tokio::time::timeout(deadline, Client::connect(path)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(err)) => Err(unavailable(err.to_string())),
        Err(_) => Err(unavailable("timeout".into())),
    }
}

impl Shim {
    /// A shim that answers at the other end of `client`.
    pub fn new(
        key: Key,
        bundle: Bundle,
        bootstrap: Bootstrap,
        lifecycle: Arc<Lifecycle>,
        client: Client,
        log: CancellationToken,
    ) -> Shim {
        let service = if bootstrap.version >= 3 { service::TASK_V3 } else { service::TASK_V2 };
        Shim {
            key,
            bundle,
            bootstrap,
            lifecycle,
            shared: false,
            recalled: false,
            client,
            service,
            ending: AtomicBool::new(false),
            gone: watch::Sender::new(false),
            _log: log.drop_guard(),
        }
    }

    /// As the subject of events.
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { key: &self.key, lifecycle: &self.lifecycle, recalled: self.recalled }
    }

    /// Claims the taking down; true for the first who asks.
    pub(super) fn begin_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    /// Whether someone is taking it down.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Says that nothing is left.
    pub(super) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Resolves when nothing of the shim is left.
    pub async fn gone(&self) {
        // The sender lives in `self`, so there is no error.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// The connection, for services beside the task service.
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, CallError> {
        let namespace = KeyValue { key: NAMESPACE_TTRPC.into(), value: self.key.namespace.clone() };
        self.client.unary(self.service, method, request, vec![namespace], deadline).await
    }

    async fn ask<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, Error> {
        self.call(method, request, None).await.map_err(into_error)
    }

    fn id(&self) -> String {
        self.key.id.clone()
    }

    /// Creates the container; answers the pid of its init.
    pub async fn create(&self, request: task::CreateTaskRequest) -> Result<u32, Error> {
        let answer: task::CreateTaskResponse = self.ask("Create", &request).await?;
        self.lifecycle.set_pid(answer.pid);
        Ok(answer.pid)
    }

    /// Starts init, or a process that was added.
    pub async fn start(&self, exec_id: &str) -> Result<u32, Error> {
        let request = task::StartRequest { id: self.id(), exec_id: exec_id.into() };
        let answer: task::StartResponse = self.ask("Start", &request).await?;
        Ok(answer.pid)
    }

    /// Takes down a process that has ended; that of init takes the container down.
    ///
    /// # Errors
    /// As the call; [`CallError::Closed`] tells a shim that died.
    pub async fn delete(&self, exec_id: &str) -> Result<task::DeleteResponse, CallError> {
        let request = task::DeleteRequest { id: self.id(), exec_id: exec_id.into() };
        self.call("Delete", &request, None).await
    }

    /// What a process is and does.
    pub async fn state(&self, exec_id: &str) -> Result<task::StateResponse, Error> {
        self.state_within(exec_id, Some(STATE_DEADLINE)).await.map_err(|err| match err {
            // As containerd: a shim that is gone has no task.
            CallError::Closed(_) => Error::of(Kind::NotFound, format_args!("task {}", self.key.id)),
            other => into_error(other),
        })
    }

    /// As [`Shim::state`], with a deadline of the caller's.
    pub async fn state_within(
        &self,
        exec_id: &str,
        deadline: Option<Duration>,
    ) -> Result<task::StateResponse, CallError> {
        let request = task::StateRequest { id: self.id(), exec_id: exec_id.into() };
        self.call("State", &request, deadline).await
    }

    /// Sends a signal to a process, or to all of the container.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), Error> {
        let request = task::KillRequest { id: self.id(), exec_id: exec_id.into(), signal, all };
        self.ask("Kill", &request).await
    }

    /// Adds a process; it runs when it is started.
    pub async fn exec(&self, mut request: task::ExecProcessRequest) -> Result<(), Error> {
        request.id = self.id();
        self.ask("Exec", &request).await
    }

    /// Sets a terminal's size.
    pub async fn resize_pty(&self, exec_id: &str, width: u32, height: u32) -> Result<(), Error> {
        let request = task::ResizePtyRequest { id: self.id(), exec_id: exec_id.into(), width, height };
        self.ask("ResizePty", &request).await
    }

    /// Closes a process's stdin.
    pub async fn close_io(&self, exec_id: &str) -> Result<(), Error> {
        let request = task::CloseIoRequest { id: self.id(), exec_id: exec_id.into(), stdin: true };
        self.ask("CloseIO", &request).await
    }

    /// Freezes the container.
    pub async fn pause(&self) -> Result<(), Error> {
        self.ask("Pause", &task::PauseRequest { id: self.id() }).await
    }

    /// Thaws the container.
    pub async fn resume(&self) -> Result<(), Error> {
        self.ask("Resume", &task::ResumeRequest { id: self.id() }).await
    }

    /// The container's processes.
    pub async fn pids(&self) -> Result<Vec<shim_api::task_types::ProcessInfo>, Error> {
        let answer: task::PidsResponse = self.ask("Pids", &task::PidsRequest { id: self.id() }).await?;
        Ok(answer.processes)
    }

    /// Writes a checkpoint to a directory.
    pub async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<(), Error> {
        let request = task::CheckpointTaskRequest { id: self.id(), path: path.into(), options };
        self.ask("Checkpoint", &request).await
    }

    /// Changes the container's limits.
    pub async fn update(&self, request: task::UpdateTaskRequest) -> Result<(), Error> {
        self.ask("Update", &task::UpdateTaskRequest { id: self.id(), ..request }).await
    }

    /// What the container uses.
    pub async fn stats(&self) -> Result<Option<Any>, Error> {
        let request = task::StatsRequest { id: self.id() };
        let answer: task::StatsResponse =
            self.call("Stats", &request, Some(STATS_DEADLINE)).await.map_err(into_error)?;
        Ok(answer.stats)
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// As the call; [`CallError::Closed`] tells a shim that died.
    pub async fn wait(&self, exec_id: &str) -> Result<task::WaitResponse, CallError> {
        let request = task::WaitRequest { id: self.id(), exec_id: exec_id.into() };
        self.call("Wait", &request, None).await
    }

    /// Tells the shim to end if it has no more to look after.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn shutdown(&self) -> Result<(), CallError> {
        let request = task::ShutdownRequest { id: self.id(), now: false };
        match self.call("Shutdown", &request, Some(SHUTDOWN_DEADLINE)).await {
            Ok(()) | Err(CallError::Closed(_)) => Ok(()),
            Err(err) => Err(err),
        }
    }
}

/// A failed call as clients are told of it: the shim's own code and words.
pub fn into_error(err: CallError) -> Error {
    match err {
        CallError::Status(status) => Error::new(kind_of(status.code), status.message),
        CallError::Closed(_) => Error::new(Kind::Unavailable, "ttrpc: closed"),
        other => Error::new(kind_of(other.code()), other.to_string()),
    }
}

fn kind_of(code: Code) -> Kind {
    Kind::of(tonic::Code::from_i32(code as i32))
}

/// The mounts of a request, as shims want them.
pub fn create_request(key: &Key, bundle: &Bundle, rootfs: Vec<Mount>) -> task::CreateTaskRequest {
    task::CreateTaskRequest {
        id: key.id.clone(),
        bundle: bundle.path.to_string_lossy().into_owned(),
        rootfs,
        ..task::CreateTaskRequest::default()
    }
}
