//! What the whole-stack tests share: engines of their own, the stock clients, and images made here.
//!
//! Invariant: everything a test makes lies under one temporary directory, one network namespace and one cgroup parent, and
//! [`Engine`]'s drop takes it all away. What it leaves behind is a bug of the engine, and the leak checker around the run says so.

pub mod containerd;
pub mod host;
pub mod http;
pub mod image;
pub mod lan;
pub mod leak;
pub mod plugin;
pub mod replay;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use host::Netns;

/// How long anything that should be quick may take before the test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The folder with our programs: `E2E_BIN`, else `build/bin` of the workspace.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("E2E_BIN").map_or_else(|| workspace().join("build/bin"), PathBuf::from)
}

/// The folder with the stock clients: `E2E_PEER`, else `build/peer` of the workspace.
pub fn peer_dir() -> PathBuf {
    std::env::var_os("E2E_PEER").map_or_else(|| workspace().join("build/peer"), PathBuf::from)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| ".".into(), Path::to_owned)
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Standard output without white space around it, of a command that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "failed: {self:?}");
        self.stdout.trim()
    }

    /// Asserts the exit code and that standard error contains `text`.
    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(text), "no {text:?} in {self:?}");
    }
}

/// One engine with everything of its own.
pub struct Engine {
    dir: tempfile::TempDir,
    netns: Netns,
    name: String,
    flags: Vec<String>,
    daemon: Option<Child>,
}

impl Engine {
    /// An engine with the default settings, up and answering.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// An engine with more flags.
    pub fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a temporary directory");
        let name = dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let netns = Netns::new(&name);
        let mut engine = Self {
            dir,
            netns,
            name,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            daemon: None,
        };
        engine.spawn();
        engine
    }

    /// Where everything of this engine is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The API socket.
    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// The socket of this engine's containerd-rs.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("exec/containerd/containerd.sock")
    }

    /// The cgroup parent of this engine's containers.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.name)
    }

    /// The engine's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Starts dockerd-rs and waits until it answers.
    pub fn spawn(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).expect("a log file");
        let mut command = self.netns.command(bin_dir().join("dockerd-rs"));
        command
            .args(["--config-file", "/dev/null", "--log-level", "info"])
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--cgroup-parent")
            .arg(self.cgroup_parent())
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle on the log"))
            .stderr(log);
        self.daemon = Some(command.spawn().expect("dockerd-rs starts"));
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(ended.is_none(), "dockerd-rs ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "dockerd-rs does not answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.socket()) else { return false };
        if stream.set_read_timeout(Some(Duration::from_secs(2))).is_err() {
            return false;
        }
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// The pid of dockerd-rs.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("dockerd-rs runs").id()
    }

    /// What the daemons have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `kill -9` of dockerd-rs.
    pub fn kill_dockerd(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("kill dockerd-rs");
            daemon.wait().expect("reap dockerd-rs");
        }
    }

    /// The pid of this engine's containerd-rs: who listens on its socket.
    pub fn containerd_pid(&self) -> Option<i32> {
        host::socket_owner(&self.containerd_socket())
    }

    /// `kill -9` of containerd-rs.
    pub fn kill_containerd(&self) {
        let pid = self.containerd_pid().expect("containerd-rs runs");
        host::kill(pid, 9);
        wait_for("containerd-rs to be gone", || !host::alive(pid));
    }

    /// Stops dockerd-rs as systemd would, and waits for its end.
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        host::kill(i32::try_from(daemon.id()).expect("a pid"), 15);
        let deadline = Instant::now() + PATIENCE;
        while daemon.try_wait().expect("wait for dockerd-rs").is_none() {
            assert!(Instant::now() < deadline, "dockerd-rs does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The stock docker command line, pointed at this engine.
    pub fn docker(&self, args: &[&str]) -> Ran {
        self.docker_command(args).output().expect("docker runs").into()
    }

    /// The stock docker command line, not yet started.
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = self.netns.command(peer_dir().join("docker"));
        command
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.path("client"))
            .env("DOCKER_CLI_HINTS", "false")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null());
        command
    }

    /// Our own command line, pointed at this engine.
    pub fn docker_rs(&self, args: &[&str]) -> Ran {
        let mut command = self.netns.command(bin_dir().join("docker-rs"));
        command
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.path("client"))
            .stdin(Stdio::null());
        command.output().expect("docker-rs runs").into()
    }

    /// Stock `ctr` on this engine's containerd-rs, in dockerd's namespace.
    pub fn ctr(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(peer_dir().join("ctr"));
        command.arg("-a").arg(self.containerd_socket()).args(["-n", "moby"]).args(args).stdin(Stdio::null());
        command.output().expect("ctr runs").into()
    }

    /// Loads the busybox image the tests use, as `busybox:latest`.
    pub fn load_busybox(&self) {
        let tar = self.path("busybox.tar");
        std::fs::write(&tar, image::busybox()).expect("write the image");
        let loaded = self.docker(&["load", "-q", "-i", &tar.to_string_lossy()]);
        assert!(loaded.ok().contains("busybox:latest"), "{loaded:?}");
    }

    /// One field of `docker inspect`.
    pub fn inspect(&self, name: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, name]).ok().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("--- log of the engine ---\n{}", self.log());
        }
        // Also after a failure: what the test made is the engine's to take away.
        let cleaned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clean()));
        if cleaned.is_err() {
            self.netns.kill_all();
            if !failed {
                std::panic::resume_unwind(Box::new("the engine could not be cleaned up"));
            }
        }
    }
}

impl Engine {
    fn clean(&mut self) {
        if self.daemon.is_none() {
            self.spawn();
        }
        let ids = self.docker(&["ps", "-aq"]).stdout;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            self.docker(&[&["rm", "-f", "-v"], ids.as_slice()].concat());
        }
        self.stop();
    }
}

/// A number that the environment may set; how much of a test is done.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A row of numbers that depends on its seed alone (xorshift).
pub struct Random(u64);

impl Random {
    /// The row of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// The next index into something of that length.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
