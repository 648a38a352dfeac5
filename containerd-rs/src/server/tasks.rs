//! `containerd.services.tasks.v1.Tasks`.
//!
//! As in containerd, a task is found by its container: without a container record there is none, whatever may run.

use std::borrow::Cow;
use std::sync::Arc;

use containerd_api::containers::Container;
use containerd_api::diff::{ApplyRequest, DiffRequest};
use containerd_api::ns;
use containerd_api::ns::{Namespace, validate_identifier};
use containerd_api::process::{Process, Status as ProcessStatus};
use containerd_api::tasks::tasks_server::{Tasks, TasksServer};
use containerd_api::tasks::*;
use containerd_api::types::{Descriptor, Metric, Mount};
use containerd_api::{Error, Kind};
use futures_util::future::join_all;
use prost::Message as _;
use shim_api::any;
use shim_api::runc_options::CheckpointOptions;
use shim_api::task::{ExecProcessRequest as ShimExec, StateResponse, UpdateTaskRequest as ShimUpdate};
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::filters::{Fields, Filters};
use crate::runtime::bundle::Bootstrap;
use crate::runtime::shim::into_error;
use crate::runtime::{CreateTask, Endpoint, Key, Shim};
use crate::transfer::progress::to_wire;
use crate::transfer::scope::Scope;

/// What a checkpoint's memory images are stored as, and the specification beside them.
const CHECKPOINT: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const CHECKPOINT_SPEC: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> TasksServer<Service> {
    TasksServer::new(Service(daemon.clone()))
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// The task of a container.
    async fn task(&self, namespace: &Namespace, id: &str) -> Result<Arc<Shim>, Error> {
        let key = Key::new(namespace.as_str(), id);
        self.0.runtime.container(&key)?;
        self.0.runtime.tasks.get(&key).await
    }

    /// The task, provided that the process is there.
    async fn process(&self, namespace: &Namespace, id: &str, exec_id: &str) -> Result<Arc<Shim>, Error> {
        let task = self.task(namespace, id).await?;
        if !exec_id.is_empty() {
            task.state(exec_id).await?;
        }
        Ok(task)
    }

    fn scope(&self, namespace: &str, lease: Option<&str>) -> Scope {
        self.0.transfer.scope(&self.0.collector, namespace, lease)
    }

    /// Makes the directory that a task is restored from.
    async fn unpack_checkpoint(
        &self,
        key: &Key,
        lease: Option<&str>,
        image: &Descriptor,
    ) -> Result<String, Error> {
        if image.media_type != CHECKPOINT {
            return Err(Error::invalid(format_args!("unsupported checkpoint type {:?}", image.media_type)));
        }
        let made = |err| Error::internal("make a directory for the checkpoint", err);
        let directory = self.0.runtime.checkpoints.of_task(key).map_err(made)?;
        let path = directory.to_string_lossy().into_owned();
        let request =
            ApplyRequest { diff: Some(image.clone()), mounts: vec![bind(&path)], ..ApplyRequest::default() };
        match self.0.transfer.apply(self.scope(&key.namespace, lease), request).await {
            Ok(_) => Ok(path),
            Err(err) => {
                self.0.runtime.checkpoints.forget(key);
                Err(err.context("failed to unpack the checkpoint"))
            }
        }
    }

    /// Where a task goes that is not to have a shim of its own.
    async fn endpoint(
        &self,
        namespace: &Namespace,
        container: &Container,
        request: &CreateTaskRequest,
    ) -> Result<Option<Endpoint>, Error> {
        if !request.task_api_address.is_empty() {
            let address = request.task_api_address.trim_start_matches("ttrpc+").to_owned();
            let version = if request.task_api_version == 0 { 3 } else { request.task_api_version };
            return Ok(Some(Endpoint(Bootstrap { version, address, protocol: "ttrpc".into() })));
        }
        if container.sandbox.is_empty() {
            return Ok(None);
        }
        let key = Key::new(namespace.as_str(), &container.sandbox);
        let sandbox = self.0.runtime.tasks.get(&key).await.map_err(|_| {
            Error::of(Kind::NotFound, format_args!("can't find sandbox {}", container.sandbox))
        })?;
        Ok(Some(Endpoint(sandbox.bootstrap.clone())))
    }
}

#[tonic::async_trait]
impl Tasks for Service {
    async fn create(&self, request: Request<CreateTaskRequest>) -> Answer<CreateTaskResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let request = request.into_inner();
        let key = Key::new(namespace.as_str(), &request.container_id);
        let container = self.0.runtime.container(&key)?;
        let runtime = container.runtime.clone().unwrap_or_default();
        let endpoint = self.endpoint(&namespace, &container, &request).await?;
        let checkpoint = match &request.checkpoint {
            Some(image) => {
                // An id that a task has already is not to lose what that one was restored from.
                if self.0.runtime.tasks.get(&key).await.is_ok() {
                    return Err(Error::of(Kind::AlreadyExists, format_args!("task {}", key.id)).into());
                }
                self.unpack_checkpoint(&key, lease.as_deref(), image).await?
            }
            None => String::new(),
        };
        let restored = !checkpoint.is_empty();
        let create = CreateTask {
            spec: container.spec.map(|spec| spec.value).unwrap_or_default(),
            runtime: if request.runtime_path.is_empty() { runtime.name } else { request.runtime_path },
            runtime_options: runtime.options,
            task_options: request.options,
            rootfs: request.rootfs,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            checkpoint,
            endpoint,
        };
        let created = self.0.runtime.tasks.create(key.clone(), create).await;
        if restored && created.is_err() {
            self.0.runtime.checkpoints.forget(&key);
        }
        let pid = created?;
        Ok(Response::new(CreateTaskResponse { container_id: request.container_id, pid }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        let tasks = self.0.runtime.tasks.clone();
        let started = async move {
            let pid = task.start(&request.exec_id).await?;
            if request.exec_id.is_empty() {
                tasks.announce_start(&task, pid);
            }
            Ok(pid)
        };
        let pid = to_its_end(started).await?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(&self, request: Request<DeleteTaskRequest>) -> Answer<DeleteResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.task(&namespace, &request.container_id).await?;
        let exit = self.0.runtime.tasks.delete(&task.key).await?;
        self.0.runtime.checkpoints.forget(&task.key);
        Ok(Response::new(DeleteResponse {
            id: String::new(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
        }))
    }

    async fn delete_process(&self, request: Request<DeleteProcessRequest>) -> Answer<DeleteResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        let exec_id = request.exec_id.clone();
        let answer = to_its_end(async move { task.delete(&exec_id).await.map_err(into_error) }).await?;
        Ok(Response::new(DeleteResponse {
            id: request.exec_id,
            pid: answer.pid,
            exit_status: answer.exit_status,
            exited_at: answer.exited_at,
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.task(&namespace, &request.container_id).await?;
        let state = task.state(&request.exec_id).await?;
        Ok(Response::new(GetResponse { process: Some(describe(&task, &request.exec_id, state)) }))
    }

    async fn list(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let found = self.0.runtime.tasks.list(namespace.as_str()).await;
        // All at once: one shim that hangs costs its deadline, not one deadline per such shim.
        let states = join_all(found.iter().map(|task| task.state(""))).await;
        let mut tasks = Vec::with_capacity(found.len());
        for (task, state) in found.iter().zip(states) {
            match state {
                Ok(state) => tasks.push(describe(task, "", state)),
                // It went while we asked, or it is a sandbox's shim, which has no task.
                Err(err) if err.is_not_found() => {}
                Err(err) => {
                    tracing::warn!(task = %task.key, %err, "cannot get a task's state");
                    let unknown = StateResponse { pid: task.lifecycle.pid(), ..StateResponse::default() };
                    tasks.push(describe(task, "", unknown));
                }
            }
        }
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        task.kill(&request.exec_id, request.signal, request.all).await?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        if request.exec_id.is_empty() {
            return Err(Error::of(Kind::InvalidArgument, "exec id cannot be empty").into());
        }
        // It becomes part of file names.
        validate_identifier(&request.exec_id)
            .map_err(|err| err.context(format_args!("invalid exec id {}", request.exec_id)))?;
        let task = self.task(&namespace, &request.container_id).await?;
        let exec = ShimExec {
            id: request.container_id,
            exec_id: request.exec_id,
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            spec: request.spec,
        };
        to_its_end(async move { task.exec(exec).await }).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        task.resize_pty(&request.exec_id, request.width, request.height).await?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<CloseIoRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        if request.stdin {
            task.close_io(&request.exec_id).await?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let task = self.task(&namespace, &request.get_ref().container_id).await?;
        to_its_end(async move { task.pause().await }).await?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let task = self.task(&namespace, &request.get_ref().container_id).await?;
        to_its_end(async move { task.resume().await }).await?;
        Ok(Response::new(()))
    }

    async fn list_pids(&self, request: Request<ListPidsRequest>) -> Answer<ListPidsResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let task = self.task(&namespace, &request.get_ref().container_id).await?;
        Ok(Response::new(ListPidsResponse { processes: task.pids().await? }))
    }

    async fn checkpoint(&self, request: Request<CheckpointTaskRequest>) -> Answer<CheckpointTaskResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let request = request.into_inner();
        let task = self.task(&namespace, &request.container_id).await?;
        let container = self.0.runtime.container(&task.key)?;
        let options =
            request.options.as_ref().and_then(|options| any::unpack::<CheckpointOptions>(options).ok());
        let path = options.map(|options| options.image_path).unwrap_or_default();
        if !path.is_empty() {
            // Where the client wants it, and nowhere else.
            to_its_end(async move { task.checkpoint(&path, request.options).await }).await?;
            return Ok(Response::new(CheckpointTaskResponse::default()));
        }
        let scope = self.scope(namespace.as_str(), lease.as_deref());
        let daemon = self.0.clone();
        let descriptors = to_its_end(async move {
            let made = |err| Error::internal("make a directory for the checkpoint", err);
            let directory = daemon.runtime.checkpoints.fresh().map_err(made)?;
            let path = directory.path().to_string_lossy().into_owned();
            task.checkpoint(&path, request.options).await?;
            store_checkpoint(&daemon, scope, &path, &container).await
        })
        .await?;
        Ok(Response::new(CheckpointTaskResponse { descriptors }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Answer<()> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.task(&namespace, &request.container_id).await?;
        let update = ShimUpdate {
            id: request.container_id,
            resources: request.resources,
            annotations: request.annotations.into_iter().collect(),
        };
        to_its_end(async move { task.update(update).await }).await?;
        Ok(Response::new(()))
    }

    async fn metrics(&self, request: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let filters = Filters::parse(&request.get_ref().filters)?;
        let mut found = self.0.runtime.tasks.list(namespace.as_str()).await;
        found.retain(|task| filters.matches(&**task));
        let stats = join_all(found.iter().map(|task| async {
            let collected = prost_types::Timestamp::from(std::time::SystemTime::now());
            (collected, task.stats().await)
        }))
        .await;
        let mut metrics = Vec::with_capacity(found.len());
        for (task, (collected, stats)) in found.iter().zip(stats) {
            match stats {
                Ok(data) => {
                    metrics.push(Metric { timestamp: Some(collected), id: task.key.id.clone(), data })
                }
                Err(err) if err.is_not_found() => {}
                Err(err) => tracing::warn!(task = %task.key, %err, "cannot collect a task's metrics"),
            }
        }
        Ok(Response::new(MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        let task = self.process(&namespace, &request.container_id, &request.exec_id).await?;
        let exit = self.0.runtime.tasks.wait(&task.key, &request.exec_id).await?;
        Ok(Response::new(WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }))
    }
}

impl Fields for Shim {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path {
            [one] if one == "id" => Some(Cow::Borrowed(&self.key.id)),
            [one] if one == "namespace" => Some(Cow::Borrowed(&self.key.namespace)),
            _ => None,
        }
    }
}

/// Runs a change to its end even when the client hangs up.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(err) => Err(Error::internal("task service", err)),
    }
}

/// Puts a checkpoint that lies in a directory into the content store, and the container's specification beside it.
async fn store_checkpoint(
    daemon: &Daemon,
    scope: Scope,
    path: &str,
    container: &Container,
) -> Result<Vec<Descriptor>, Error> {
    let request = DiffRequest {
        right: vec![bind(path)],
        media_type: oci::mediatype::OCI_LAYER.to_owned(),
        ..DiffRequest::default()
    };
    let images = daemon.transfer.diff(scope.clone(), request).await?;
    let spec = container.spec.clone().unwrap_or_default().encode_to_vec();
    let config = oci::Descriptor::new(CHECKPOINT_SPEC, oci::Digest::of(&spec), spec.len() as u64);
    scope.put(&config, &spec, std::collections::HashMap::new()).await?;
    Ok(vec![Descriptor { media_type: CHECKPOINT.to_owned(), ..to_wire(&images) }, to_wire(&config)])
}

/// A directory as the mount that shows it.
fn bind(path: &str) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: path.to_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    }
}

fn describe(task: &Shim, exec_id: &str, state: StateResponse) -> Process {
    let status = ProcessStatus::try_from(state.status).unwrap_or(ProcessStatus::Unknown);
    Process {
        // containerd leaves it out as well.
        container_id: String::new(),
        id: if exec_id.is_empty() { task.key.id.clone() } else { exec_id.to_owned() },
        pid: state.pid,
        status: status.into(),
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    }
}
