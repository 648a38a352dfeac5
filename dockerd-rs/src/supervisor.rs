//! Starting, keeping and finding again a containerd-rs of the engine's own.
//!
//! Invariant: there is one containerd-rs for this engine's roots. It is detached: it lives on when dockerd-rs is killed, and the next
//! dockerd-rs finds it by its socket (never by a number in a file, which may name a stranger or a zombie). When it dies it is started
//! again at once, then with growing pauses. Only a graceful stop of the engine stops it.
//!
//! Its root is `<data-root>/containerd`, its state `<exec-root>/containerd`.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use sys::pidfd::PidFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Error, Result, sys_text};

/// How long a new containerd-rs may take until its socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a containerd-rs that was asked to stop may take before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two starts of a containerd-rs that keeps dying.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A containerd-rs that ran this long has proved itself: the pause starts anew.
const PROVED: Duration = Duration::from_secs(30);
/// How often a socket that does not answer yet is asked again.
const PROBE: Duration = Duration::from_millis(5);

/// The keeper of the engine's containerd-rs.
pub struct Supervisor {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

/// What it takes to start one.
struct Launch {
    program: PathBuf,
    socket: PathBuf,
    root: PathBuf,
    state: PathBuf,
    log_level: String,
}

impl Supervisor {
    /// Finds the engine's containerd-rs alive, or starts one, and returns when its socket answers.
    ///
    /// # Errors
    /// The program is missing, or its socket does not answer in time.
    pub async fn start(config: &Config, log_level: &str) -> Result<Self> {
        let launch = Launch {
            program: program(),
            socket: config.containerd_socket(),
            root: config.data_root.join("containerd"),
            state: config.exec_root.join("containerd"),
            log_level: log_level.to_owned(),
        };
        for dir in [&launch.root, &launch.state] {
            std::fs::create_dir_all(dir)
                .map_err(|err| Error::system(format!("mkdir {}: {}", dir.display(), sys_text(&err))))?;
        }
        let process = match launch.find().await {
            Some(process) => {
                tracing::info!(socket = %launch.socket.display(), "found the engine's containerd-rs alive");
                process
            }
            None => launch.start().await?,
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keep(launch, process, stopped));
        Ok(Self { stop, task })
    }

    /// Stops containerd-rs (containers live on) and waits for its end.
    pub async fn stop(self) {
        // The keeper is only gone if it panicked; then there is nobody to tell.
        let _ = self.stop.send(true);
        if let Err(err) = self.task.await {
            tracing::error!(error = %err, "the keeper of containerd-rs failed");
        }
    }
}

/// containerd-rs beside our own program, else on the search path.
fn program() -> PathBuf {
    let beside =
        std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join("containerd-rs")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "containerd-rs".into())
}

impl Launch {
    /// The process that listens on the socket, if one answers.
    async fn find(&self) -> Option<PidFd> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        PidFd::open(stream.peer_cred().ok()?.pid()?).ok()
    }

    async fn start(&self) -> Result<PidFd> {
        let failed = |what: String| Error::system(format!("start {}: {what}", self.program.display()));
        let mut command = std::process::Command::new(&self.program);
        command
            .arg("--address")
            .arg(&self.socket)
            .arg("--root")
            .arg(&self.root)
            .arg("--state")
            .arg(&self.state)
            // No file: the system's config.toml belongs to the system's containerd.
            .args(["--config", "/dev/null", "--log-level", &self.log_level])
            .stdin(Stdio::null());
        sys::process::detach(&mut command);
        let mut young = Young(Some(command.spawn().map_err(|err| failed(sys_text(&err)))?));
        let Some(child) = &mut young.0 else { return Err(failed("it was not started".into())) };
        let process = i32::try_from(child.id())
            .map_err(|err| failed(err.to_string()))
            .and_then(|pid| PidFd::open(pid).map_err(|err| failed(sys_text(&err))))?;
        let deadline = Instant::now() + START_TIMEOUT;
        // A socket appears without a signal of its own: asking again is the protocol. Each round also sees whether the child died.
        while UnixStream::connect(&self.socket).await.is_err() {
            if let Some(status) = child.try_wait().map_err(|err| failed(sys_text(&err)))? {
                return Err(failed(format!("it ended at once: {status}")));
            }
            if Instant::now() > deadline {
                return Err(failed(format!("{} did not answer in time", self.socket.display())));
            }
            tokio::time::sleep(PROBE).await;
        }
        let Some(mut child) = young.0.take() else { return Err(failed("it was not started".into())) };
        // Reaped by this thread whenever it ends: the pidfd only tells, `wait` takes the zombie away.
        std::thread::Builder::new()
            .name("reap-containerd".into())
            .stack_size(64 << 10)
            .spawn(move || child.wait())
            .map_err(|err| failed(sys_text(&err)))?;
        tracing::info!(socket = %self.socket.display(), "started containerd-rs");
        Ok(process)
    }
}

/// A process that has not answered yet. Whoever stops waiting for it takes it back.
struct Young(Option<std::process::Child>);

impl Drop for Young {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps one containerd-rs alive until told to stop it.
async fn keep(launch: Launch, mut process: PidFd, mut stopped: watch::Receiver<bool>) {
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        tokio::select! {
            () = ended(&process) => {}
            () = told(&mut stopped) => return end(&process).await,
        }
        tracing::warn!("containerd-rs ended; starting it again");
        if began.elapsed() > PROVED {
            pause = Duration::ZERO;
        }
        process = loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = told(&mut stopped) => return,
            }
            pause = (pause * 2).clamp(Duration::from_millis(100), MAX_PAUSE);
            match launch.start().await {
                Ok(process) => break process,
                Err(err) => tracing::error!(error = %err, "containerd-rs does not start"),
            }
        };
    }
}

/// Completes when the engine stops, or is gone.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means the sender is gone: the engine is stopping without a word, which is the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Completes when the process has ended.
#[allow(deprecated, reason = "the newer constructor is unsafe to call; an OwnedFd keeps what it asks for")]
async fn ended(process: &PidFd) {
    let watched =
        process.as_fd().try_clone_to_owned().and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE));
    match watched {
        Ok(fd) => {
            if let Err(err) = fd.readable().await {
                tracing::error!(error = %err, "watching containerd-rs");
            }
        }
        Err(err) => tracing::error!(error = %err, "watching containerd-rs"),
    }
}

async fn end(process: &PidFd) {
    for (signal, patience) in [(libc::SIGTERM, STOP_TIMEOUT), (libc::SIGKILL, STOP_TIMEOUT)] {
        // ESRCH: it is gone already.
        if process.signal(signal.unsigned_abs()).is_err() {
            return;
        }
        if tokio::time::timeout(patience, ended(process)).await.is_ok() {
            return;
        }
        tracing::warn!(signal, "containerd-rs is late to stop");
    }
}
