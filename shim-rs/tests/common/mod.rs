//! A shim under test: the real binary, the real runc, driven over ttrpc as containerd would.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use shim_api::{service, task};

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running shim with one bundle.
pub struct Shim {
    pub id: String,
    pub directory: tempfile::TempDir,
    pub bundle: PathBuf,
    pub address: PathBuf,
    runtime: tokio::runtime::Runtime,
    client: ttrpc::Client,
    events: Option<std::sync::mpsc::Receiver<shim_api::types::Envelope>>,
}

/// What to run.
pub struct Spec<'a> {
    pub args: &'a [&'a str],
    pub terminal: bool,
}

fn unique(name: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// The process part of a runtime specification.
pub fn process(spec: &Spec<'_>) -> serde_json::Value {
    serde_json::json!({
        "terminal": spec.terminal, "user": {"uid": 0, "gid": 0}, "args": spec.args, "cwd": "/",
        "env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin", "TERM=xterm"], "noNewPrivileges": true,
        "capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_PTRACE"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    })
}

fn config(id: &str, spec: &Spec<'_>) -> serde_json::Value {
    let busybox = which("busybox").expect("busybox-static is needed");
    serde_json::json!({
        "ociVersion": "1.0.2", "process": process(spec), "root": {"path": "rootfs"}, "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/busybox", "type": "bind", "source": busybox, "options": ["bind", "ro"]},
        ],
        "linux": {"cgroupsPath": format!("/shim-rs-test/{id}"),
                  "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]},
    })
}

fn which(program: &str) -> Option<PathBuf> {
    ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

/// A root file system with busybox's commands as links.
fn make_rootfs(root: &Path) {
    for directory in ["bin", "proc", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::write(root.join("busybox"), b"").unwrap();
    for command in [
        "sh", "cat", "echo", "sleep", "true", "seq", "yes", "head", "tail", "kill", "tty", "dd", "printf",
        "stty", "base64", "cut", "tr", "sync",
    ] {
        std::os::unix::fs::symlink("/busybox", root.join("bin").join(command)).unwrap();
    }
}

impl Shim {
    /// Starts a shim for a bundle that runs `spec`. With `events` it publishes to a socket of the test's.
    pub fn start(name: &str, spec: &Spec<'_>, with_events: bool) -> Shim {
        assert!(rustix::process::geteuid().is_root(), "these tests run containers: they need root");
        let id = unique(name);
        let directory = tempfile::Builder::new().prefix("shim-rs-test").tempdir().unwrap();
        let bundle = directory.path().join("state").join(&id);
        std::fs::create_dir_all(&bundle).unwrap();
        make_rootfs(&bundle.join("rootfs"));
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&config(&id, spec)).unwrap()).unwrap();
        let ttrpc = directory.path().join("events.sock");
        let events = with_events.then(|| listen_for_events(&ttrpc));
        let output = Command::new(env!("CARGO_BIN_EXE_containerd-shim-rs-v2"))
            .args(["-namespace", "shim-rs-test", "-id", &id, "-address"])
            .arg(directory.path().join("containerd.sock"))
            .arg("start")
            .current_dir(&bundle)
            .env("MAX_SHIM_VERSION", "3")
            .env("TTRPC_ADDRESS", &ttrpc)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((answer["version"].as_i64(), answer["protocol"].as_str()), (Some(3), Some("ttrpc")));
        let address = PathBuf::from(answer["address"].as_str().unwrap().strip_prefix("unix://").unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(ttrpc::Client::connect(&address)).unwrap();
        Shim { id, directory, bundle, address, runtime, client, events }
    }

    /// Calls one method of the task service.
    pub fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, ttrpc::CallError> {
        let call = self.client.unary(service::TASK_V3, method, request, Vec::new(), Some(PATIENCE));
        self.runtime.block_on(call)
    }

    /// Creates the task with native streams; `log` is merged into the description's `log`.
    pub fn create_native(
        &self,
        description: serde_json::Value,
        terminal: bool,
    ) -> Result<task::CreateTaskResponse, ttrpc::CallError> {
        let mut whole = serde_json::json!({
            "version": 1, "socket": self.socket(), "exit_record": self.record_path(),
            "log": {"driver": "json-file", "path": self.log_path(), "max_size": -1, "max_file": 1},
        });
        for (key, value) in description.as_object().unwrap() {
            match (key.as_str(), value.as_object()) {
                ("log", Some(log)) => whole["log"].as_object_mut().unwrap().extend(log.clone()),
                _ => whole[key] = value.clone(),
            }
        }
        let file = self.directory.path().join("stdio.json");
        std::fs::write(&file, serde_json::to_vec(&whole).unwrap()).unwrap();
        let request = task::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.to_str().unwrap().into(),
            stdout: format!("shim-io://{}", file.display()),
            terminal,
            ..Default::default()
        };
        self.call("Create", &request)
    }

    /// Changes the bundle's `config.json`; before Create.
    pub fn configure(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.bundle.join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    }

    /// Creates the task with named pipes, whose paths it returns: standard input, output and error.
    pub fn create_fifos(&self) -> [PathBuf; 3] {
        let paths = ["stdin", "stdout", "stderr"].map(|name| self.directory.path().join(name));
        for path in &paths {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let request = task::CreateTaskRequest {
            id: self.id.clone(),
            bundle: text(&self.bundle),
            stdin: text(&paths[0]),
            stdout: text(&paths[1]),
            stderr: text(&paths[2]),
            ..Default::default()
        };
        self.call::<_, task::CreateTaskResponse>("Create", &request).unwrap();
        paths
    }

    pub fn start_task(&self, exec: &str) -> u32 {
        let request = task::StartRequest { id: self.id.clone(), exec_id: exec.into() };
        self.call::<_, task::StartResponse>("Start", &request).unwrap().pid
    }

    pub fn wait(&self, exec: &str) -> task::WaitResponse {
        self.call("Wait", &task::WaitRequest { id: self.id.clone(), exec_id: exec.into() }).unwrap()
    }

    pub fn delete(&self, exec: &str) -> Result<task::DeleteResponse, ttrpc::CallError> {
        self.call("Delete", &task::DeleteRequest { id: self.id.clone(), exec_id: exec.into() })
    }

    pub fn kill(&self, exec: &str, signal: u32) -> Result<(), ttrpc::CallError> {
        self.call(
            "Kill",
            &task::KillRequest { id: self.id.clone(), exec_id: exec.into(), signal, all: false },
        )
    }

    pub fn shim_pid(&self) -> i32 {
        let answer: task::ConnectResponse =
            self.call("Connect", &task::ConnectRequest { id: self.id.clone() }).unwrap();
        answer.shim_pid as i32
    }

    /// Deletes the task, shuts the shim down and checks that nothing is left of either.
    pub fn finish(self) -> task::DeleteResponse {
        let deleted = self.delete("").unwrap();
        let pid = self.shim_pid();
        let _: Result<(), _> =
            self.call("Shutdown", &task::ShutdownRequest { id: self.id.clone(), now: false });
        eventually("the shim ends", || !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
        self.nothing_is_left();
        deleted
    }

    pub fn nothing_is_left(&self) {
        assert!(!self.address.exists(), "socket is left");
        assert!(!self.socket().exists(), "attach socket is left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.bundle.to_str().unwrap()), "mounts are left");
        assert!(
            !Path::new("/run/containerd/runc/shim-rs-test").join(&self.id).exists(),
            "runtime state is left"
        );
        let left: Vec<_> = std::fs::read_dir(&self.bundle)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(
            left.iter().all(|name| !name.starts_with("pty-")
                && !name.starts_with("exec-")
                && !name.starts_with("runc-")),
            "{left:?}"
        );
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("attach.sock")
    }

    pub fn record_path(&self) -> PathBuf {
        self.directory.path().join("exit.json")
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("c-json.log")
    }

    pub fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.record_path()).unwrap()).unwrap()
    }

    /// The `log` fields of the log, joined, by stream.
    pub fn logged(&self, stream: &str) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap();
        let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        values
            .filter(|value| value["stream"] == stream)
            .map(|value| value["log"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Opens the attach socket with a request and returns the connection after a positive answer.
    pub fn ask(&self, request: &str) -> BufReader<UnixStream> {
        let mut socket = sys::unixpath::connect(&self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket.write_all(b"\n").unwrap();
        BufReader::new(socket)
    }

    pub fn attach(&self, what: &str) -> BufReader<UnixStream> {
        let mut connection = self.ask(&format!("{{\"attach\":{what}}}"));
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"ok\":true}\n");
        connection
    }

    pub fn status(&self) -> serde_json::Value {
        let mut line = String::new();
        self.ask("{\"status\":true}").read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The topics of all events until one with topic `last`.
    pub fn topics_until(&self, last: &str) -> Vec<String> {
        let events = self.events.as_ref().unwrap();
        let mut topics = Vec::new();
        loop {
            let event = events.recv_timeout(PATIENCE).expect("an event");
            topics.push(event.topic.clone());
            if event.topic == last {
                return topics;
            }
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A failed test leaves no shim: `delete` is what containerd would call.
        let _ = Command::new(env!("CARGO_BIN_EXE_containerd-shim-rs-v2"))
            .args(["-namespace", "shim-rs-test", "-id", &self.id, "-address"])
            .arg(self.directory.path().join("containerd.sock"))
            .arg("-bundle")
            .arg(&self.bundle)
            .arg("delete")
            .stdout(Stdio::null())
            .status();
    }
}

pub fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All frames until the end, as (stream, bytes).
pub fn frames(connection: &mut impl Read) -> Vec<(u8, Vec<u8>)> {
    let mut frames: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut header = [0; 8];
    while connection.read_exact(&mut header).is_ok() {
        let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
        let mut bytes = vec![0; length];
        connection.read_exact(&mut bytes).unwrap();
        match frames.last_mut() {
            Some((stream, all)) if *stream == header[0] => all.extend(bytes),
            _ => frames.push((header[0], bytes)),
        }
    }
    frames
}

/// Takes events as containerd's ttrpc service does.
pub fn listen_for_events(path: &Path) -> std::sync::mpsc::Receiver<shim_api::types::Envelope> {
    #[derive(Clone)]
    struct Events(std::sync::mpsc::Sender<shim_api::types::Envelope>);
    impl ttrpc::Service for Events {
        async fn call(self, call: ttrpc::Call) -> Result<Vec<u8>, ttrpc::Status> {
            assert_eq!((call.service.as_str(), call.method.as_str()), (service::EVENTS, "Forward"));
            let request: shim_api::forward::ForwardRequest = ttrpc::decode(call.payload)?;
            let _ = self.0.send(request.envelope.unwrap());
            Ok(Vec::new())
        }
    }
    let (send, receive) = std::sync::mpsc::channel();
    let listener = sys::unixpath::bind(path, 0o600).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let _ = ttrpc::serve(&listener, Events(send), ttrpc::Options::default(), std::future::pending())
                .await;
        });
    });
    receive
}
