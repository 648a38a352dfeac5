//! The task API: containers and their processes, one method per call.
//!
//! Each call parses, finds its process, takes the process's turn if it changes it, and acts. Calls for different processes never wait for each other;
//! nothing that only reads waits at all.

pub mod container;
pub mod process;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use prost_types::Any;
use shim_api::runc_options::{CheckpointOptions, Options, ProcessDetails};
use shim_api::task_types::ProcessInfo;
use shim_api::{events as wire, task, topic};
use sys::reaper::Ended;
use tokio::sync::watch;
use ttrpc::Status;

use self::container::Container;
use self::process::{Process, State, Urls};
use crate::bundle::{Left, Spec};
use crate::children::{Children, Exit};
use crate::clock::Instant;
use crate::events::Events;
use crate::log::Log;
use crate::runc::{Runc, RuncError};
use crate::stdio::uri::{Plan, PlanError};
use crate::stdio::{Owner, Stdio};

/// Where the runtime writes init's pid, below the bundle.
pub const INIT_PID_FILE: &str = "init.pid";
/// The status of an exec that could not be started.
const NEVER_RAN: u8 = 255;
/// Where runtimes keep their state unless the request names another place; a namespace is below.
pub const RUNTIME_ROOT: &str = "/run/containerd/runc";

/// Everything the shim holds.
pub struct Shim {
    /// Its own log.
    pub log: Rc<Log>,
    namespace: String,
    children: Rc<Children>,
    events: Rc<Events>,
    containers: RefCell<HashMap<String, Slot>>,
    stop: watch::Sender<bool>,
}

/// A container's name is taken from the moment its creation begins.
enum Slot {
    BeingMade,
    Made(Rc<Container>),
}

/// The runtime options in an `Any`; anything else counts as none.
pub fn runc_options(any: Option<&Any>) -> Options {
    match any {
        Some(any) if any.value.is_empty() => Options::default(),
        Some(any) if shim_api::any::is::<Options>(any) => {
            prost::Message::decode(any.value.as_slice()).unwrap_or_default()
        }
        _ => Options::default(),
    }
}

fn unknown(message: impl std::fmt::Display) -> Status {
    Status::unknown(message.to_string())
}

impl Shim {
    /// One without containers.
    pub fn new(namespace: &str, children: Rc<Children>, events: Rc<Events>, log: Rc<Log>) -> Rc<Shim> {
        Rc::new(Shim {
            log,
            namespace: namespace.to_owned(),
            children,
            events,
            containers: RefCell::default(),
            stop: watch::channel(false).0,
        })
    }

    /// Resolves when the shim has been told to shut down.
    pub async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    fn container(&self, id: &str) -> Result<Rc<Container>, Status> {
        match self.containers.borrow().get(id) {
            Some(Slot::Made(container)) => Ok(container.clone()),
            Some(Slot::BeingMade) | None => Err(Status::not_found("container not created: not found")),
        }
    }

    fn process(&self, id: &str, exec: &str) -> Result<(Rc<Container>, Rc<Process>), Status> {
        let container = self.container(id)?;
        if exec.is_empty() {
            let init = container.init.clone();
            return Ok((container, init));
        }
        let process = container.execs.borrow().get(exec).cloned();
        match process {
            Some(process) => Ok((container, process)),
            None => Err(Status::not_found(format!("process does not exist {exec}: not found"))),
        }
    }

    /// `Create`.
    pub async fn create(
        self: &Rc<Self>,
        request: task::CreateTaskRequest,
    ) -> Result<task::CreateTaskResponse, Status> {
        let id = request.id.clone();
        if id.is_empty() || id.contains('/') || id == ".." {
            return Err(Status::invalid_argument(format!("invalid container id {id:?}: invalid argument")));
        }
        if self.containers.borrow().contains_key(&id) {
            return Err(Status::already_exists(format!("container {id}: already exists")));
        }
        self.containers.borrow_mut().insert(id.clone(), Slot::BeingMade);
        let outcome = self.make(request).await;
        match &outcome {
            Ok((container, _)) => self.containers.borrow_mut().insert(id, Slot::Made(container.clone())),
            Err(_) => self.containers.borrow_mut().remove(&id),
        };
        let (_, pid) = outcome?;
        Ok(task::CreateTaskResponse { pid: pid as u32 })
    }

    async fn make(self: &Rc<Self>, request: task::CreateTaskRequest) -> Result<(Rc<Container>, i32), Status> {
        let bundle = PathBuf::from(&request.bundle);
        let options = runc_options(request.options.as_ref());
        let spec = Spec::read(&bundle).map_err(|err| unknown(format_args!("read config.json: {err}")))?;
        let plan = Plan::parse(&request.stdin, &request.stdout, &request.stderr).map_err(|err| {
            let text = format!("failed to create init process I/O: {err}");
            match err {
                // containerd's shim does not classify this one.
                PlanError::UnknownScheme(_) => unknown(text),
                PlanError::NoPath(_) | PlanError::NotAlone(_) => {
                    Status::invalid_argument(format!("{text}: invalid argument"))
                }
            }
        })?;
        let root = match options.root.as_str() {
            "" => Path::new(RUNTIME_ROOT).join(&self.namespace),
            root => Path::new(root).join(&self.namespace),
        };
        let binary = if options.binary_name.is_empty() { "runc" } else { &options.binary_name };
        let runc = Runc::new(self.children.clone(), binary, &root, &bundle, options.systemd_cgroup);
        let mut left =
            Left { binary: binary.into(), root, systemd_cgroup: options.systemd_cgroup, ..Left::default() };
        if let Plan::Native(file) = &plan {
            let native = crate::native::Request::read(file)
                .map_err(|err| Status::invalid_argument(crate::chain(&err)))?;
            (left.exit_record, left.attach_socket) = (native.exit_record, Some(native.socket));
        }
        left.write(&bundle).map_err(|err| unknown(format_args!("write runtime: {err}")))?;

        let urls = Urls {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let checkpoint = (!request.checkpoint.is_empty()).then(|| PathBuf::from(&request.checkpoint));
        let init = Process::new("", request.terminal, urls, Vec::new(), checkpoint);
        let container = Rc::new(Container::new(&request.id, bundle, runc, options, spec, init));
        let rootfs = container.rootfs();
        if !request.rootfs.is_empty() {
            if let Err(err) = std::fs::create_dir(&rootfs)
                && err.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(unknown(format_args!("create rootfs directory: {err}")));
            }
            crate::mounts::mount_all(&request.rootfs, &rootfs).map_err(|err| unknown(crate::chain(&err)))?;
        }
        // Held until the events below are queued: an exit that comes at once is told after them.
        let turn = container.init.turn.lock().await;
        let made = async {
            self.open_stdio(&container, &container.init, plan).await?;
            match container.init.checkpoint {
                Some(_) => Ok(0),
                None => container.create(self).await.map_err(unknown),
            }
        };
        let pid = match made.await {
            Ok(pid) => pid,
            Err(status) => {
                drop(turn);
                container.init.close_stdio().await;
                crate::mounts::unmount_below(&rootfs);
                return Err(status);
            }
        };
        self.events.publish(
            topic::TASK_CREATE,
            &wire::TaskCreate {
                container_id: request.id,
                bundle: request.bundle,
                rootfs: request.rootfs,
                io: Some(wire::TaskIo {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                }),
                checkpoint: request.checkpoint,
                pid: pid as u32,
            },
        );
        drop(turn);
        Ok((container, pid))
    }

    async fn open_stdio(&self, container: &Container, process: &Process, plan: Plan) -> Result<(), Status> {
        let owner = Owner {
            namespace: &self.namespace,
            container: &container.id,
            exec: &process.exec,
            uid: container.options.io_uid,
            gid: container.options.io_gid,
            events: &self.events,
        };
        let opened = Stdio::open(plan, process.terminal, &owner, &self.children).await;
        let (stdio, ends) = opened.map_err(|err| {
            unknown(format_args!("failed to create init process I/O: {}", crate::chain(&err)))
        })?;
        process.set_stdio(stdio, ends);
        Ok(())
    }

    /// `Start`, of init or an exec.
    pub async fn start(self: &Rc<Self>, request: task::StartRequest) -> Result<task::StartResponse, Status> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let _turn = process.turn.lock().await;
        let pid = if request.exec_id.is_empty() {
            let pid = container.start_init(self).await.map_err(unknown)?;
            self.events
                .publish(topic::TASK_START, &wire::TaskStart { container_id: request.id, pid: pid as u32 });
            pid
        } else {
            let pid = match container.start_exec(self, &process).await {
                Ok(pid) => pid,
                Err(message) => {
                    // Callers wait for the end of its streams and for its exit, which nothing else would bring about.
                    if matches!(process.state(), State::Added) {
                        process.close_stdio().await;
                        process.stopped(0, Exit { how: Ended::Code(NEVER_RAN), at: Instant::now() });
                    }
                    return Err(unknown(message));
                }
            };
            let event =
                wire::TaskExecStarted { container_id: request.id, exec_id: request.exec_id, pid: pid as u32 };
            self.events.publish(topic::TASK_EXEC_STARTED, &event);
            pid
        };
        if let Some(stdio) = process.stdio()
            && let Err(err) = stdio.begin_input()
        {
            self.log.error(&format!("standard input of {} {}: {err}", container.id, process.exec));
        }
        Ok(task::StartResponse { pid: pid as u32 })
    }

    /// `Delete`, of a process that has ended or never ran.
    pub async fn delete(&self, request: task::DeleteRequest) -> Result<task::DeleteResponse, Status> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let turn = process.turn.lock().await;
        let state = process.state();
        if let State::Running(_) | State::Paused(_) = state {
            return Err(unknown(format_args!("cannot delete a {} process", state.word())));
        }
        let is_init = request.exec_id.is_empty();
        let created = matches!(state, State::Created(_));
        if is_init {
            let deleted = container.runc.delete(&container.id, created).await;
            deleted.map_err(|err| unknown(err.told_as("failed to delete task")))?;
        }
        drop(turn);
        let exit = match (&state, created) {
            (State::Stopped { exit, .. }, _) => Some(*exit),
            (_, true) => {
                tokio::time::timeout(std::time::Duration::from_secs(10), process.wait()).await.ok().flatten()
            }
            _ => None,
        };
        process.close_stdio().await;
        let (pid, exit_status) =
            (process.state().pid() as u32, exit.map_or(0, |exit: Exit| exit.how.shell_code()));
        let exited_at = exit.map(|exit| exit.at.timestamp());
        let response = task::DeleteResponse { pid, exit_status, exited_at };
        if !is_init {
            container.execs.borrow_mut().remove(&request.exec_id);
            return Ok(response);
        }
        let execs: Vec<_> = container.execs.take().into_values().collect();
        for exec in execs {
            exec.close_stdio().await;
        }
        crate::mounts::unmount_below(&container.rootfs());
        if self.containers.borrow_mut().remove(&request.id).is_some() {
            self.events.publish(
                topic::TASK_DELETE,
                &wire::TaskDelete {
                    container_id: request.id,
                    pid,
                    exit_status,
                    exited_at,
                    id: String::new(),
                },
            );
        }
        Ok(response)
    }

    /// `Exec`: prepares a process; `Start` starts it.
    pub async fn exec(&self, request: task::ExecProcessRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Status::invalid_argument("exec id is empty: invalid argument"));
        }
        if container.execs.borrow().contains_key(&request.exec_id) {
            return Err(Status::already_exists(format!("id {}: already exists", request.exec_id)));
        }
        match container.init.state() {
            State::Paused(_) => return Err(unknown("cannot exec in a paused state")),
            State::Stopped { .. } => return Err(unknown("cannot exec in a stopped state")),
            State::Added | State::Created(_) | State::Running(_) => {}
        }
        let Some(spec) = request.spec else {
            return Err(Status::invalid_argument("exec has no process description: invalid argument"));
        };
        let plan = Plan::parse(&request.stdin, &request.stdout, &request.stderr)
            .map_err(|err| Status::invalid_argument(format!("{err}: invalid argument")))?;
        let urls = Urls { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let process = Rc::new(Process::new(&request.exec_id, request.terminal, urls, spec.value, None));
        // Taken before the wait below, so that a second one of this name is refused.
        container.execs.borrow_mut().insert(request.exec_id.clone(), process.clone());
        if let Err(status) = self.open_stdio(&container, &process, plan).await {
            container.execs.borrow_mut().remove(&request.exec_id);
            return Err(status);
        }
        let event = wire::TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.events.publish(topic::TASK_EXEC_ADDED, &event);
        Ok(())
    }

    /// `Kill`.
    pub async fn kill(&self, request: task::KillRequest) -> Result<(), Status> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let finished = || Status::not_found("process already finished: not found");
        let state = process.state();
        let Some(live) = state.live() else {
            return match state {
                State::Stopped { .. } => Err(finished()),
                _ => Err(Status::failed_precondition("process not created: failed precondition")),
            };
        };
        let is_init = request.exec_id.is_empty();
        // runc's own kill does no more than this for such a container, and takes a process to do it. A frozen one it thaws.
        let direct = container.spec.has_own_pids
            && container.runc.runs_plain_processes()
            && !matches!(state, State::Paused(_))
            && (!request.all || request.signal == libc::SIGKILL as u32);
        if !is_init || direct {
            let Some(handle) = &live.handle else { return Err(finished()) };
            return match handle.signal(request.signal) {
                Ok(()) => Ok(()),
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Err(finished()),
                Err(err) if err.raw_os_error() == Some(libc::EINVAL) => Err(Status::invalid_argument(
                    format!("unknown signal {}: invalid argument", request.signal),
                )),
                Err(err) => Err(unknown(err)),
            };
        }
        match container.runc.kill(&container.id, request.signal, request.all).await {
            Ok(()) => Ok(()),
            Err(err) => Err(kill_failure(&err)),
        }
    }

    /// `Pause`.
    pub async fn pause(&self, request: task::PauseRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let _turn = container.init.turn.lock().await;
        let live = match container.init.state() {
            State::Running(live) => live,
            State::Added | State::Created(_) => return Err(unknown("cannot pause task in created state")),
            State::Paused(_) => return Err(unknown("cannot pause a paused container")),
            State::Stopped { .. } => return Err(unknown("cannot pause a stopped container")),
        };
        container.freeze(true).await.map_err(unknown)?;
        container.init.set_state(State::Paused(live));
        self.events.publish(topic::TASK_PAUSED, &wire::TaskPaused { container_id: request.id });
        Ok(())
    }

    /// `Resume`.
    pub async fn resume(&self, request: task::ResumeRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let _turn = container.init.turn.lock().await;
        let live = match container.init.state() {
            State::Paused(live) => live,
            State::Added | State::Created(_) => return Err(unknown("cannot resume task in created state")),
            State::Running(_) => return Err(unknown("cannot resume a running process")),
            State::Stopped { .. } => return Err(unknown("cannot resume a stopped container")),
        };
        container.freeze(false).await.map_err(unknown)?;
        container.init.set_state(State::Running(live));
        self.events.publish(topic::TASK_RESUMED, &wire::TaskResumed { container_id: request.id });
        Ok(())
    }

    /// `Checkpoint`, by criu.
    pub async fn checkpoint(&self, request: task::CheckpointTaskRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        match container.init.state() {
            State::Running(_) | State::Paused(_) => {}
            State::Added | State::Created(_) => {
                return Err(unknown("cannot checkpoint a task in created state"));
            }
            State::Stopped { .. } => return Err(unknown("cannot checkpoint a stopped container")),
        }
        let options: CheckpointOptions = match &request.options {
            Some(any) if shim_api::any::is::<CheckpointOptions>(any) => ttrpc::decode(any.value.as_slice())?,
            _ => CheckpointOptions::default(),
        };
        let image = if request.path.is_empty() { &options.image_path } else { &request.path };
        let work = match options.work_path.as_str() {
            "" => container.work_directory(),
            path => PathBuf::from(path),
        };
        let flags = checkpoint_flags(&options);
        let done = container.runc.checkpoint(&container.id, Path::new(image), &work, flags).await;
        if let Err(err) = done {
            let kept = container.bundle.join("criu-dump.log");
            let _ = std::fs::copy(work.join("dump.log"), &kept);
            let text = err.to_string();
            let first = text.lines().next().unwrap_or_default();
            return Err(unknown(format_args!("{first} path= {}", kept.display())));
        }
        let event = wire::TaskCheckpointed { container_id: request.id, checkpoint: request.path };
        self.events.publish(topic::TASK_CHECKPOINTED, &event);
        Ok(())
    }

    /// `Update`: resources in the runtime specification's JSON.
    pub async fn update(&self, request: task::UpdateTaskRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let Some(resources) = request.resources else {
            return Err(Status::invalid_argument("no resources: invalid argument"));
        };
        let updated = container.runc.update(&container.id, resources.value).await;
        updated.map_err(|err| unknown(err.told_as("OCI runtime update failed")))
    }

    /// `Pids`: every process in the container, execs named.
    pub async fn pids(&self, request: task::PidsRequest) -> Result<task::PidsResponse, Status> {
        let container = self.container(&request.id)?;
        let read = container.groups().and_then(|groups| groups.processes().ok());
        let pids = match read {
            Some(pids) => pids,
            None => {
                let listed = container.runc.processes(&container.id).await;
                listed.map_err(|err| unknown(err.told_as("OCI runtime ps failed")))?
            }
        };
        let execs: HashMap<i32, String> =
            container.execs.borrow().values().map(|exec| (exec.state().pid(), exec.exec.clone())).collect();
        let describe = |pid: i32| {
            let details = execs.get(&pid).map(|exec| ProcessDetails { exec_id: exec.clone() });
            ProcessInfo { pid: pid as u32, info: details.map(|details| shim_api::any::pack(&details)) }
        };
        Ok(task::PidsResponse { processes: pids.into_iter().map(describe).collect() })
    }

    /// `Stats`.
    pub fn stats(&self, request: task::StatsRequest) -> Result<task::StatsResponse, Status> {
        let container = self.container(&request.id)?;
        let stats = container.groups().and_then(|groups| crate::metrics::read(&groups));
        match stats {
            Some(stats) => Ok(task::StatsResponse { stats: Some(stats) }),
            None => Err(Status::not_found("cgroup does not exist: not found")),
        }
    }

    /// `State`.
    pub fn state(&self, request: task::StateRequest) -> Result<task::StateResponse, Status> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let state = process.state();
        let exit = match &state {
            State::Stopped { exit, .. } => Some(*exit),
            _ => None,
        };
        Ok(task::StateResponse {
            id: request.id,
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: state.pid() as u32,
            status: state.status().into(),
            stdin: process.urls.stdin.clone(),
            stdout: process.urls.stdout.clone(),
            stderr: process.urls.stderr.clone(),
            terminal: process.terminal,
            exit_status: exit.map_or(0, |exit| exit.how.shell_code()),
            exited_at: exit.map(|exit| exit.at.timestamp()),
            exec_id: request.exec_id,
        })
    }

    /// `Wait`: until the process has ended.
    pub async fn wait(&self, request: task::WaitRequest) -> Result<task::WaitResponse, Status> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await.ok_or_else(|| Status::internal("process is gone"))?;
        Ok(task::WaitResponse { exit_status: exit.how.shell_code(), exited_at: Some(exit.at.timestamp()) })
    }

    /// `ResizePty`.
    pub fn resize(&self, request: task::ResizePtyRequest) -> Result<(), Status> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let fits = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        match process.stdio() {
            Some(stdio) => stdio.resize(fits(request.width), fits(request.height)).map_err(unknown),
            None => Ok(()),
        }
    }

    /// `CloseIO`.
    pub fn close_io(&self, request: task::CloseIoRequest) -> Result<(), Status> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if let Some(stdio) = process.stdio().filter(|_| request.stdin) {
            stdio.close_stdin();
        }
        Ok(())
    }

    /// `Connect`: who we are. An unknown container has pid 0.
    pub fn connect(&self, request: task::ConnectRequest) -> task::ConnectResponse {
        let pid = self.container(&request.id).map_or(0, |container| container.init.state().pid());
        task::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: pid as u32,
            version: crate::VERSION.into(),
        }
    }

    /// `Shutdown`: ends the shim if nothing is left in it.
    pub fn shutdown(&self, _request: task::ShutdownRequest) {
        if self.containers.borrow().is_empty() {
            self.stop.send_replace(true);
        }
    }
}

/// The flags of the runtime's checkpoint command.
fn checkpoint_flags(options: &CheckpointOptions) -> Vec<String> {
    let switches = [
        (!options.exit, "--leave-running"),
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    let mut flags: Vec<String> =
        switches.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag.into()).collect();
    for namespace in &options.empty_namespaces {
        flags.extend(["--empty-ns".to_owned(), namespace.clone()]);
    }
    if !options.cgroups_mode.is_empty() {
        flags.extend(["--manage-cgroups-mode".to_owned(), options.cgroups_mode.clone()]);
    }
    flags
}

/// What a failed `kill` of the runtime means: it has only text to tell by. Checked against runc 1.1.
fn kill_failure(err: &RuncError) -> Status {
    let text = err.everything();
    let finished = ["os: process already finished", "container not running"];
    if finished.iter().any(|known| text.contains(known)) || text.to_lowercase().contains("no such process") {
        Status::not_found("process already finished: not found")
    } else if text.contains("does not exist") {
        Status::not_found("no such container: not found")
    } else {
        unknown(format_args!("unknown error after kill: {err}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &str) -> RuncError {
        RuncError::Failed {
            program: "runc".into(),
            status: "exit status 1".into(),
            output: text.into(),
            message: None,
        }
    }

    #[test]
    fn failed_kills_are_told_apart() {
        for (text, code, message) in [
            ("container not running", ttrpc::Code::NotFound, "process already finished: not found"),
            ("No such process", ttrpc::Code::NotFound, "process already finished: not found"),
            ("container \"x\" does not exist", ttrpc::Code::NotFound, "no such container: not found"),
            (
                "permission denied",
                ttrpc::Code::Unknown,
                "unknown error after kill: runc did not terminate successfully: exit status 1: permission denied",
            ),
        ] {
            let status = kill_failure(&failed(text));
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn checkpoint_options_become_flags() {
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            empty_namespaces: vec!["network".into()],
            ..Default::default()
        };
        assert_eq!(checkpoint_flags(&options), ["--tcp-established", "--empty-ns", "network"]);
        assert_eq!(checkpoint_flags(&CheckpointOptions::default()), ["--leave-running"]);
    }

    #[test]
    fn options_of_another_type_count_as_none() {
        let options = Options { binary_name: "crun".into(), ..Options::default() };
        assert_eq!(runc_options(Some(&shim_api::any::pack(&options))), options);
        let other = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![10, 1, b'x'] };
        assert_eq!(runc_options(Some(&other)), Options::default());
        assert_eq!(runc_options(None), Options::default());
    }
}
