//! Tasks with the real daemon, the real shim and runc: their life, and what becomes of them when a part is killed.
//!
//! Needs root, `runc`, a static `busybox`, and the shim beside the daemon (`cargo build -p shim-rs`). `TASKS_RUNTIME` names another
//! runtime, `io.containerd.runc.v2` for one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_api::containers::containers_client::ContainersClient;
use containerd_api::containers::{Container, CreateContainerRequest, DeleteContainerRequest, container};
use containerd_api::event::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use containerd_api::events::SubscribeRequest;
use containerd_api::events::events_client::EventsClient;
use containerd_api::ns;
use containerd_api::tasks::tasks_client::TasksClient;
use containerd_api::tasks::*;
use containerd_api::types::{Envelope, Mount};
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request};

const PATIENCE: Duration = Duration::from_secs(20);
const NS: &str = "tasks-test";

/// A daemon with directories of its own, and a root file system with busybox in it.
struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
    ids: String,
}

impl Daemon {
    /// `None` when this machine cannot run containers for us.
    fn start(name: &str) -> Option<Daemon> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        let shim = Path::new(env!("CARGO_BIN_EXE_containerd-rs")).with_file_name("containerd-shim-rs-v2");
        assert!(
            shim.exists() || std::env::var_os("TASKS_RUNTIME").is_some(),
            "build the shim first: cargo build -p shim-rs"
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let rootfs = dir.path().join("rootfs");
        for sub in ["bin", "proc", "dev", "sys"] {
            std::fs::create_dir_all(rootfs.join(sub)).expect("a root file system");
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.expect("a static busybox"), rootfs.join("bin/busybox"))
            .expect("busybox copied");
        let child = spawn(dir.path());
        // Names in runc's and the kernel's shared places: distinct from those of tests that run at the same time.
        Some(Daemon { dir, child, ids: format!("{name}{}", std::process::id()) })
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.ids)
    }

    fn kill(&mut self) {
        self.child.kill().expect("the daemon killed");
        self.child.wait().expect("the daemon reaped");
    }

    fn restart(&mut self) {
        self.child = spawn(self.dir.path());
    }

    fn bundles(&self) -> PathBuf {
        self.dir.path().join("state/io.containerd.runtime.v2.task").join(NS)
    }

    async fn channel(&self) -> Channel {
        let socket = self.dir.path().join("c.sock");
        until("the daemon answers", async || containerd_api::connect(&socket).await.ok()).await
    }

    async fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel().await)
    }

    /// Everything published from now on.
    async fn events(&self) -> mpsc::UnboundedReceiver<Envelope> {
        let mut client = EventsClient::new(self.channel().await);
        let request = SubscribeRequest { filters: vec!["topic~=\"^/tasks/\"".into()] };
        let mut stream = client.subscribe(request).await.expect("a subscription").into_inner();
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        receive
    }

    /// A container that runs `args`, created as a task; answers init's pid.
    async fn create(&self, id: &str, args: &[&str]) -> Result<u32, tonic::Status> {
        let channel = self.channel().await;
        let mut args: Vec<&str> = args.to_vec();
        args.insert(0, "/bin/busybox");
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": format!("/{NS}/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            },
        });
        let runtime = std::env::var("TASKS_RUNTIME").unwrap_or_else(|_| "io.containerd.rs.v2".into());
        let container = Container {
            id: id.into(),
            runtime: Some(container::Runtime { name: runtime, options: None }),
            spec: Some(Any {
                type_url: containerd_api::any::SPEC.into(),
                value: serde_json::to_vec(&spec).expect("a specification"),
            }),
            ..Container::default()
        };
        let request = ns(CreateContainerRequest { container: Some(container) });
        ContainersClient::new(channel.clone()).create(request).await?;
        let rootfs = Mount {
            r#type: "bind".into(),
            source: self.dir.path().join("rootfs").to_string_lossy().into_owned(),
            options: vec!["rbind".into(), "rw".into()],
            ..Mount::default()
        };
        let request = CreateTaskRequest {
            container_id: id.into(),
            rootfs: vec![rootfs],
            ..CreateTaskRequest::default()
        };
        Ok(TasksClient::new(channel).create(ns(request)).await?.into_inner().pid)
    }

    async fn run(&self, id: &str, args: &[&str]) -> u32 {
        let pid = self.create(id, args).await.expect("a task");
        let request = StartRequest { container_id: id.into(), exec_id: String::new() };
        self.tasks().await.start(ns(request)).await.expect("a start");
        pid
    }

    async fn signal(&self, id: &str, signal: u32) -> Result<(), tonic::Status> {
        let request = KillRequest { container_id: id.into(), signal, all: true, ..KillRequest::default() };
        self.tasks().await.kill(ns(request)).await.map(|_| ())
    }

    async fn delete(&self, id: &str) -> Result<DeleteResponse, tonic::Status> {
        let deleted = self.tasks().await.delete(ns(DeleteTaskRequest { container_id: id.into() })).await;
        deleted.map(tonic::Response::into_inner)
    }

    async fn wait(&self, id: &str) -> u32 {
        let request = ns(WaitRequest { container_id: id.into(), exec_id: String::new() });
        let answer = tokio::time::timeout(PATIENCE, async { self.tasks().await.wait(request).await }).await;
        answer.expect("an end in time").expect("an answer").into_inner().exit_status
    }

    /// The states of all tasks, by id.
    async fn list(&self) -> HashMap<String, i32> {
        let answer = self.tasks().await.list(ns(ListTasksRequest::default())).await.expect("a list");
        answer.into_inner().tasks.into_iter().map(|task| (task.id, task.status)).collect()
    }

    /// The shims that were given our address, with their containers' ids.
    fn shims(&self) -> Vec<(u32, String)> {
        let address = self.dir.path().join("c.sock").to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let args: Vec<&str> = line.split('\0').collect();
            let value =
                |flag: &str| args.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1].to_owned());
            (value("-address")? == address).then_some((pid, value("-id")?))
        })
        .collect()
    }

    fn shim_of(&self, id: &str) -> u32 {
        self.shims().into_iter().find(|(_, of)| of == id).expect("a shim").0
    }

    /// Nothing of any task is left: no bundle, no process, no mount.
    async fn assert_empty(&self) {
        until("nothing is left", async || {
            let bundles = std::fs::read_dir(self.bundles()).map_or(0, |entries| entries.count());
            let mounts = sys::mount::table().expect("a mount table");
            let mounted = mounts.iter().any(|entry| entry.point.starts_with(self.dir.path()));
            (bundles == 0 && !mounted && self.shims().is_empty()).then_some(())
        })
        .await;
    }

    async fn remove_all(&self) {
        for id in self.list().await.into_keys() {
            let _ = self.signal(&id, 9).await;
            self.wait(&id).await;
            self.delete(&id).await.expect("a delete");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A test that failed leaves what it was about.
        for (pid, _) in self.shims() {
            signal_process(pid);
        }
        let _ = sys::mount::detach_below(self.dir.path());
    }
}

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    Command::new(env!("CARGO_BIN_EXE_containerd-rs"))
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--address")
        .arg(dir.join("c.sock"))
        .args(["--log-level", "info"])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the daemon")
}

fn signal_process(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn ns<T>(message: T) -> Request<T> {
    ns::request(message, NS, None)
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `/tasks/exit 7` and the like, of one task's init.
fn say(event: &Envelope, id: &str) -> Option<String> {
    let payload = event.event.as_ref()?;
    let of = |container: &str| container == id;
    let unpack = containerd_api::any::unpack::<TaskExit>(payload).ok()?;
    if let Some(exit) = unpack {
        return (of(&exit.container_id) && exit.id == id).then(|| format!("exit {}", exit.exit_status));
    }
    if let Some(create) = containerd_api::any::unpack::<TaskCreate>(payload).ok()? {
        return of(&create.container_id).then(|| "create".into());
    }
    if let Some(start) = containerd_api::any::unpack::<TaskStart>(payload).ok()? {
        return of(&start.container_id).then(|| "start".into());
    }
    let delete = containerd_api::any::unpack::<TaskDelete>(payload).ok()??;
    (of(&delete.container_id) && delete.id.is_empty()).then(|| format!("delete {}", delete.exit_status))
}

/// What was said about a task until its events rest for a moment after `last`.
async fn told(events: &mut mpsc::UnboundedReceiver<Envelope>, id: &str, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    let mut patience = PATIENCE;
    while let Ok(Some(event)) = tokio::time::timeout(patience, events.recv()).await {
        if let Some(words) = say(&event, id) {
            if words.starts_with(last) {
                // Long enough for a repetition to show.
                patience = Duration::from_millis(1500);
            }
            told.push(words);
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_lives_and_tells() {
    let Some(daemon) = Daemon::start("life") else { return };
    let mut events = daemon.events().await;
    let id = daemon.id(1);
    let pid = daemon.create(&id, &["sh", "-c", "exit 7"]).await.unwrap();
    assert!(pid > 1);
    assert_eq!(daemon.create(&id, &["true"]).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(daemon.delete(&daemon.id(9)).await.unwrap_err().code(), Code::NotFound);
    let start = StartRequest { container_id: id.clone(), exec_id: String::new() };
    assert_eq!(daemon.tasks().await.start(ns(start)).await.unwrap().into_inner().pid, pid);
    assert_eq!(daemon.wait(&id).await, 7);
    let deleted = daemon.delete(&id).await.unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
    assert_eq!(told(&mut events, &id, "delete").await, ["create", "start", "exit 7", "delete 7"]);
    assert_eq!(daemon.delete(&id).await.unwrap_err().code(), Code::NotFound);
    daemon.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_leaves_nothing() {
    let Some(daemon) = Daemon::start("none") else { return };
    let id = daemon.id(1);
    std::fs::remove_file(daemon.dir.path().join("rootfs/bin/busybox")).unwrap();
    let err = daemon.create(&id, &["true"]).await.unwrap_err();
    assert!(err.message().starts_with("failed to create shim task: OCI runtime create failed:"), "{err}");
    daemon.assert_empty().await;
    let request = ns(DeleteContainerRequest { id: id.clone() });
    ContainersClient::new(daemon.channel().await).delete(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_finds_its_tasks_and_tells_what_happened_meanwhile() {
    let Some(mut daemon) = Daemon::start("back") else { return };
    let (stays, ends, dies) = (daemon.id(1), daemon.id(2), daemon.id(3));
    for id in [&stays, &ends, &dies] {
        daemon.run(id, &["sleep", "1000"]).await;
    }
    let request = || ns(GetRequest { container_id: ends.clone(), exec_id: String::new() });
    let pid = daemon.tasks().await.get(request()).await.unwrap().into_inner().process.unwrap().pid;
    let shim = daemon.shim_of(&dies);
    daemon.kill();
    signal_process(pid);
    signal_process(shim);
    until("both are dead", async || {
        let dead = |pid: u32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        (dead(pid) && dead(shim)).then_some(())
    })
    .await;
    daemon.restart();
    daemon.channel().await;
    // Whoever comes back a little later still hears of it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (mut one, mut two, mut three) = (daemon.events().await, daemon.events().await, daemon.events().await);
    assert_eq!(told(&mut one, &ends, "exit").await, ["exit 137"]);
    assert_eq!(told(&mut two, &dies, "delete").await, ["exit 137", "delete 137"]);
    assert_eq!(daemon.list().await.get(&stays), Some(&(containerd_api::process::Status::Running as i32)));
    assert_eq!(daemon.delete(&ends).await.unwrap().exit_status, 137);
    assert_eq!(daemon.delete(&dies).await.unwrap_err().code(), Code::NotFound);
    daemon.signal(&stays, 9).await.unwrap();
    assert_eq!(daemon.wait(&stays).await, 137);
    daemon.delete(&stays).await.unwrap();
    assert_eq!(told(&mut three, &stays, "delete").await, ["exit 137", "delete 137"]);
    daemon.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_ends_its_task_and_its_name_is_free() {
    let Some(daemon) = Daemon::start("shim") else { return };
    let id = daemon.id(1);
    let mut events = daemon.events().await;
    let pid = daemon.run(&id, &["sleep", "1000"]).await;
    let waiting = daemon.wait(&id);
    signal_process(daemon.shim_of(&id));
    assert_eq!(waiting.await, 137, "who waited is told");
    // At once: what is left of the first is waited for.
    let request = ns(DeleteContainerRequest { id: id.clone() });
    ContainersClient::new(daemon.channel().await).delete(request).await.unwrap();
    let again = daemon.run(&id, &["sleep", "1000"]).await;
    assert_ne!(pid, again);
    daemon.remove_all().await;
    let told = told(&mut events, &id, "delete").await;
    assert_eq!(
        told,
        ["create", "start", "exit 137", "delete 137", "create", "start", "exit 137", "delete 137"]
    );
    daemon.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_shim_is_leaked() {
    let Some(mut daemon) = Daemon::start("any") else { return };
    // From before the bundle is there to after the task runs.
    for step in 0..16 {
        let id = daemon.id(step);
        let died =
            tokio::time::timeout(Duration::from_millis(5 * step as u64), daemon.run(&id, &["sleep", "1000"]))
                .await;
        daemon.kill();
        daemon.restart();
        let listed = daemon.list().await;
        assert!(died.is_err() || listed.contains_key(&id), "step {step}: a task that was confirmed is there");
    }
    until("every shim has a task", async || {
        let (tasks, shims) = (daemon.list().await, daemon.shims());
        (tasks.len() == shims.len()).then_some(())
    })
    .await;
    daemon.remove_all().await;
    daemon.assert_empty().await;
}
