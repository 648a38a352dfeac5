//! Containers and processes in containerd: one function for each thing the engine asks for.
//!
//! Invariant: what containerd answers is turned into the engine's words here; callers see no protobuf but mounts and metrics.

use std::collections::HashMap;
use std::time::Duration;

use containerd_api::containers::{self, container};
use containerd_api::process::{Process, Status};
use containerd_api::tasks;
use containerd_api::types::Mount;
use containerd_api::{any, process};
use jiff::Timestamp;
use prost_types::Any;

use super::Runtime;
use crate::error::{Error, Kind, Result};

/// For calls that only look something up or send a signal.
const QUICK: Duration = Duration::from_secs(15);
/// For calls that run the OCI runtime or mount a file system.
const SLOW: Duration = Duration::from_secs(120);

/// What `containers.Create` needs to know.
#[derive(Clone, Debug, Default)]
pub struct NewContainer {
    /// The container's id, also of its task.
    pub id: String,
    /// containerd labels.
    pub labels: HashMap<String, String>,
    /// The image's name as containerd knows it; informative.
    pub image: String,
    /// The runtime type (`io.containerd.rs.v2`) or the path of a shim.
    pub runtime: String,
    /// The runtime's options.
    pub options: Option<Any>,
    /// The OCI runtime specification as JSON.
    pub spec: Vec<u8>,
    /// The snapshotter and key of the root file system, which keep it from being collected.
    pub snapshot: Option<(String, String)>,
}

/// What `tasks.Create` needs to know.
#[derive(Clone, Debug, Default)]
pub struct NewTask {
    /// The container.
    pub id: String,
    /// The root file system.
    pub rootfs: Vec<Mount>,
    /// `shim-io://…`, or a FIFO's path.
    pub stdout: String,
    /// A FIFO's path, or nothing.
    pub stdin: String,
    /// A FIFO's path, or nothing.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// The runtime's options.
    pub options: Option<Any>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit code as a shell gives it.
    pub code: u32,
    /// When.
    pub at: Timestamp,
}

/// What containerd says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Made, not started.
    Created {
        /// Its process id.
        pid: u32,
    },
    /// Running.
    Running {
        /// Its process id.
        pid: u32,
    },
    /// Frozen, or being frozen.
    Paused {
        /// Its process id.
        pid: u32,
    },
    /// Over.
    Stopped(Ended),
    /// containerd has lost its shim and cannot tell.
    Unknown,
}

impl TaskState {
    fn of(process: &Process) -> Self {
        let pid = process.pid;
        match process.status() {
            Status::Created => Self::Created { pid },
            Status::Running => Self::Running { pid },
            Status::Paused | Status::Pausing => Self::Paused { pid },
            Status::Stopped => Self::Stopped(ended(process.exit_status, process.exited_at)),
            Status::Unknown => Self::Unknown,
        }
    }
}

/// A task as [`Runtime::list_tasks`] shows it.
#[derive(Clone, Debug)]
pub struct Task {
    /// The container's id.
    pub id: String,
    /// Its state.
    pub state: TaskState,
}

/// Time zero stands for "not said": then it is now.
pub(crate) fn ended(code: u32, at: Option<prost_types::Timestamp>) -> Ended {
    let at = at
        .filter(|at| at.seconds > 0)
        .and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
        .unwrap_or_else(Timestamp::now);
    Ended { code, at }
}

impl Runtime {
    /// Records a container. One of the same id that is left over is replaced.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn create_container(&self, new: NewContainer) -> Result<()> {
        let (snapshotter, snapshot_key) = new.snapshot.unwrap_or_default();
        let container = containers::Container {
            id: new.id.clone(),
            labels: new.labels,
            image: new.image,
            runtime: Some(container::Runtime { name: new.runtime, options: new.options }),
            spec: Some(Any { type_url: any::SPEC.into(), value: new.spec }),
            snapshotter,
            snapshot_key,
            ..Default::default()
        };
        let create = containers::CreateContainerRequest { container: Some(container) };
        match self.containers_client().create(self.request(create.clone(), QUICK)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                self.delete_container(&new.id).await?;
                self.containers_client().create(self.request(create, QUICK)).await?;
                Ok(())
            }
            Err(status) => Err(status.into()),
        }
    }

    /// The specification a container was made with, as JSON.
    ///
    /// # Errors
    /// There is no such container, or containerd is away.
    pub async fn container_spec(&self, id: &str) -> Result<Vec<u8>> {
        let request = containers::GetContainerRequest { id: id.into() };
        let answer = self.containers_client().get(self.request(request, QUICK)).await?.into_inner();
        let spec = answer.container.and_then(|container| container.spec);
        spec.map(|spec| spec.value).ok_or_else(|| Error::not_found(format!("container {id} has no spec")))
    }

    /// Forgets a container. One that is not there is no error.
    ///
    /// # Errors
    /// It still has a task, or containerd is away.
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let request = containers::DeleteContainerRequest { id: id.into() };
        ignore_missing(self.containers_client().delete(self.request(request, QUICK)).await)
    }

    /// The ids of the containers whose labels have `label` set to `value`.
    ///
    /// # Errors
    /// containerd is away.
    pub async fn list_containers(&self, label: &str, value: &str) -> Result<Vec<String>> {
        let filter = format!("labels.\"{label}\"=={value:?}");
        let request = containers::ListContainersRequest { filters: vec![filter] };
        let answer = self.containers_client().list(self.request(request, QUICK)).await?.into_inner();
        Ok(answer.containers.into_iter().map(|container| container.id).collect())
    }

    /// Makes the process of a container, stopped before its first instruction; gives its pid.
    ///
    /// # Errors
    /// containerd, the shim or the OCI runtime refused; their text is kept whole.
    pub async fn create_task(&self, new: NewTask) -> Result<u32> {
        let request = tasks::CreateTaskRequest {
            container_id: new.id,
            rootfs: new.rootfs,
            stdin: new.stdin,
            stdout: new.stdout,
            stderr: new.stderr,
            terminal: new.terminal,
            options: new.options,
            ..Default::default()
        };
        Ok(self.tasks_client().create(self.request(request, SLOW)).await?.into_inner().pid)
    }

    /// Lets a made process (`exec` empty: the container's own) run; gives its pid.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn start_process(&self, id: &str, exec: &str) -> Result<u32> {
        let request = tasks::StartRequest { container_id: id.into(), exec_id: exec.into() };
        Ok(self.tasks_client().start(self.request(request, SLOW)).await?.into_inner().pid)
    }

    /// Sends a signal to a process (`exec` empty: the container's own).
    ///
    /// # Errors
    /// `NotFound` when the process is over.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = tasks::KillRequest { container_id: id.into(), exec_id: exec.into(), signal, all };
        self.tasks_client().kill(self.request(request, QUICK)).await?;
        Ok(())
    }

    /// Clears a container's ended task away: unmounts, removes the bundle and lets the shim go. `None` when there is none.
    ///
    /// # Errors
    /// The process still runs, or containerd is away.
    pub async fn delete_task(&self, id: &str) -> Result<Option<Ended>> {
        let request = tasks::DeleteTaskRequest { container_id: id.into() };
        match self.tasks_client().delete(self.request(request, SLOW)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                Ok(Some(ended(answer.exit_status, answer.exited_at)))
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Clears an ended extra process away. One that is not there is no error.
    ///
    /// # Errors
    /// It still runs, or containerd is away.
    pub async fn delete_process(&self, id: &str, exec: &str) -> Result<()> {
        let request = tasks::DeleteProcessRequest { container_id: id.into(), exec_id: exec.into() };
        ignore_missing(self.tasks_client().delete_process(self.request(request, QUICK)).await)
    }

    /// What became of a process; `None` when containerd knows of none.
    ///
    /// # Errors
    /// containerd is away.
    pub async fn process_state(&self, id: &str, exec: &str) -> Result<Option<TaskState>> {
        let request = tasks::GetRequest { container_id: id.into(), exec_id: exec.into() };
        match self.tasks_client().get(self.request(request, QUICK)).await {
            Ok(answer) => Ok(answer.into_inner().process.as_ref().map(TaskState::of)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// All tasks of the namespace.
    ///
    /// # Errors
    /// containerd is away.
    pub async fn list_tasks(&self) -> Result<Vec<Task>> {
        let request = tasks::ListTasksRequest { filter: String::new() };
        let answer = self.tasks_client().list(self.request(request, SLOW)).await?.into_inner();
        Ok(answer
            .tasks
            .iter()
            .map(|process| {
                // Both fields are the container's id in what containerd sends; older ones fill only one of them.
                let id = if process.container_id.is_empty() { &process.id } else { &process.container_id };
                Task { id: id.clone(), state: TaskState::of(process) }
            })
            .collect())
    }

    /// Makes another process in a running container, to be started with [`Runtime::start_process`].
    ///
    /// # Errors
    /// The container is over, or the id is taken.
    pub async fn create_exec(
        &self,
        id: &str,
        exec: &str,
        process: Vec<u8>,
        stdout: String,
        terminal: bool,
    ) -> Result<()> {
        let request = tasks::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            stdout,
            terminal,
            spec: Some(Any { type_url: any::PROCESS.into(), value: process }),
            ..Default::default()
        };
        self.tasks_client().exec(self.request(request, SLOW)).await?;
        Ok(())
    }

    /// Gives a process' terminal another size.
    ///
    /// # Errors
    /// The process is over.
    pub async fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let request =
            tasks::ResizePtyRequest { container_id: id.into(), exec_id: exec.into(), width, height };
        self.tasks_client().resize_pty(self.request(request, QUICK)).await?;
        Ok(())
    }

    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let request = tasks::PauseTaskRequest { container_id: id.into() };
        self.tasks_client().pause(self.request(request, SLOW)).await?;
        Ok(())
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let request = tasks::ResumeTaskRequest { container_id: id.into() };
        self.tasks_client().resume(self.request(request, SLOW)).await?;
        Ok(())
    }

    /// The process ids in a container, as the engine's own pid namespace numbers them.
    ///
    /// # Errors
    /// The container is over.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let request = tasks::ListPidsRequest { container_id: id.into() };
        let answer = self.tasks_client().list_pids(self.request(request, QUICK)).await?.into_inner();
        Ok(answer.processes.into_iter().map(|process: process::ProcessInfo| process.pid).collect())
    }

    /// Changes a running container's limits; `resources` is the OCI `linux.resources` as JSON.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<()> {
        let request = tasks::UpdateTaskRequest {
            container_id: id.into(),
            resources: Some(Any { type_url: any::LINUX_RESOURCES.into(), value: resources }),
            ..Default::default()
        };
        self.tasks_client().update(self.request(request, SLOW)).await?;
        Ok(())
    }

    /// A container's control group counters: a `Metrics` of cgroup v1 or v2, and when they were read.
    ///
    /// # Errors
    /// The container is over.
    pub async fn metrics(&self, id: &str) -> Result<(Any, Option<Timestamp>)> {
        let request = tasks::MetricsRequest { filters: vec![format!("id=={id}")] };
        let answer = self.tasks_client().metrics(self.request(request, QUICK)).await?.into_inner();
        let metric = answer.metrics.into_iter().next();
        let (data, at) = metric.map(|metric| (metric.data, metric.timestamp)).unwrap_or_default();
        let at = at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        data.map(|data| (data, at)).ok_or_else(|| Error::not_found(format!("no metrics of container {id}")))
    }
}

fn ignore_missing<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        Err(status) => Err(status.into()),
    }
}

/// Whether an error says that containerd itself could not be reached, so that nothing is known of what was asked.
pub fn is_away(err: &Error) -> bool {
    err.kind() == Kind::Unavailable
}
