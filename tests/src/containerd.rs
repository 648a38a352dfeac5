//! A containerd-rs without a dockerd-rs, the stock clients for it, and a registry.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::host::{self, Netns};
use crate::{PATIENCE, Ran, bin_dir, image, peer_dir, wait_for};

/// Where [`Containerd::registry`] listens, inside the network namespace.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// One containerd-rs with everything of its own, in a network namespace of its own.
pub struct Containerd {
    dir: tempfile::TempDir,
    netns: Netns,
    name: String,
    /// A folder of shims that the daemon finds before its own.
    shims: Option<PathBuf>,
    daemon: Option<Child>,
    others: Vec<Child>,
}

impl Containerd {
    /// One that is up and answers.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// One that finds its shims in a folder first.
    pub fn start_with(shims: Option<&Path>) -> Self {
        Self::start_as(shims, "", "")
    }

    /// One with more in its configuration: settings before all tables, and tables. `DIR` stands for its directory.
    pub fn start_configured(settings: &str, tables: &str) -> Self {
        Self::start_as(None, settings, tables)
    }

    fn start_as(shims: Option<&Path>, settings: &str, tables: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a temporary directory");
        let name = dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let netns = Netns::new(&name);
        let mut containerd =
            Self { dir, netns, name, shims: shims.map(Path::to_owned), daemon: None, others: Vec::new() };
        let at = |name: &str| containerd.path(name).display().to_string();
        let here = containerd.dir.path().display().to_string();
        let [settings, tables] = [settings, tables].map(|text| text.replace("DIR", &here));
        let config = format!(
            "version = 3\nroot = {:?}\nstate = {:?}\n{settings}[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n{tables}",
            at("root"),
            at("state"),
            at("grpc.sock"),
            at("ttrpc.sock"),
        );
        std::fs::write(at("config.toml"), config).expect("a configuration");
        containerd.spawn();
        containerd
    }

    /// Where everything of this one is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.path("grpc.sock")
    }

    /// The containerd namespace to work in. The runtime keeps containers of all daemons in one place, apart by this.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// A command inside the network namespace, with the stock clients first in `PATH` and pointed here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.netns.command(program);
        let path = format!("{}:{}", peer_dir().display(), std::env::var("PATH").unwrap_or_default());
        command
            .env("PATH", path)
            .env("CONTAINERD_ADDRESS", self.socket())
            .env("CONTAINERD_NAMESPACE", &self.name)
            .env("DIR", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script as [`Containerd::command`]; one that hangs ends with code 124 after a minute.
    pub fn sh(&self, script: &str) -> Ran {
        self.command("timeout").args(["-k", "1", "60", "sh", "-c", script]).output().expect("sh runs").into()
    }

    /// Starts the daemon and waits until it answers.
    pub fn spawn(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).expect("a log file");
        let mut command = self.netns.command(bin_dir().join("containerd-rs"));
        command.arg("--config").arg(self.path("config.toml")).stdin(Stdio::null()).stderr(log);
        if let Some(shims) = &self.shims {
            let path = format!("{}:{}", shims.display(), std::env::var("PATH").unwrap_or_default());
            command.env("PATH", path);
        }
        self.daemon = Some(command.spawn().expect("containerd-rs starts"));
        wait_for("containerd-rs to answer", || self.sh("ctr version").code == 0);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        daemon.kill().expect("kill containerd-rs");
        daemon.wait().expect("reap containerd-rs");
    }

    /// Ends it as systemd would.
    pub fn stop(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        end(daemon);
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A program that is ended before the daemon is.
    pub fn with(&mut self, mut command: Command) {
        self.others.push(command.spawn().expect("the program starts"));
    }

    /// Starts a registry at [`REGISTRY`] that has the test image as `busybox:latest`.
    pub fn registry(&mut self) {
        let config = self.path("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {:?}}}\nhttp: {{addr: {REGISTRY:?}}}\n",
            self.path("registry")
        );
        std::fs::write(&config, text).expect("a configuration");
        let mut command = self.command("docker-registry");
        command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        self.with(command);
        wait_for("the registry", || self.sh(&format!("curl -sf http://{REGISTRY}/v2/")).code == 0);
        std::fs::write(self.path("busybox.tar"), image::busybox()).expect("write the image");
        let push =
            "skopeo copy -q --insecure-policy --dest-tls-verify=false docker-archive:busybox.tar docker://";
        self.sh(&format!("{push}{REGISTRY}/busybox:latest")).ok();
    }
}

/// Ends a process and waits for it.
fn end(mut process: Child) {
    host::kill(i32::try_from(process.id()).expect("a pid"), 15);
    let deadline = std::time::Instant::now() + PATIENCE;
    while process.try_wait().expect("wait for the process").is_none() {
        assert!(std::time::Instant::now() < deadline, "a process does not end");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("--- log of containerd-rs ---\n{}", self.log());
        }
        let cleaned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for other in self.others.drain(..) {
                end(other);
            }
            if self.daemon.is_none() {
                self.spawn();
            }
            self.sh(
                "for n in $(ctr namespaces ls -q); do for t in $(ctr -n $n tasks ls -q); do ctr -n $n tasks rm -f $t; done; done",
            );
            self.stop();
            // What the runtime keeps of this namespace: empty by now, or a test has failed.
            let _ = std::fs::remove_dir(PathBuf::from("/run/containerd/runc").join(&self.name));
            // And the cgroup parent, which the real dockerd leaves behind; one that is not empty stays for the leak checker to find.
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(hierarchy.path().join(&self.name));
            }
            let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.name));
        }));
        if cleaned.is_err() {
            self.netns.kill_all();
            if !failed {
                std::panic::resume_unwind(Box::new("containerd-rs could not be cleaned up"));
            }
        }
    }
}
