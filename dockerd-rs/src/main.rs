//! The program: read flags, open the engine, serve, stop.
//!
//! The order of a start: settings, lock on the data root, records, sockets (the API answers from here), then containerd and the restoring of
//! containers while requests that need them wait. A stop: no new connections, streams end, requests finish within a deadline, the journal is
//! synced, containerd-rs is told. Containers live on.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dockerd_rs::api;
use dockerd_rs::config::{Asked, Config};
use dockerd_rs::engine::{Engine, Parts};
use dockerd_rs::error::{Error, Result, sys_text};
use dockerd_rs::events::{Events, Subject};
use dockerd_rs::runtime::Runtime;
use dockerd_rs::store::Store;
use dockerd_rs::supervisor::Supervisor;
use dockerd_rs::{listen, readonly, system};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Threads for blocking work: enough for a few slow disks, few enough to stay small.
const BLOCKING_THREADS: usize = 32;
/// How long an idle blocking thread stays.
const BLOCKING_IDLE: Duration = Duration::from_secs(5);
/// How long requests in flight may take to finish at a stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How many of those who are late at a stop are named.
const LATE: usize = 20;
/// Layers of heap the allocator may keep; each thread would otherwise get its own.
const ARENAS: i32 = 2;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "net-helper") {
        return match dockerd_rs::nethelper::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("dockerd-rs net-helper: {err}");
                ExitCode::FAILURE
            }
        };
    }
    let config = match Config::load(std::env::args_os()) {
        Ok(Asked::Run(config)) => *config,
        Ok(Asked::Valid) => {
            eprintln!("configuration OK");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Version) => {
            println!("dockerd-rs version {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(err) => {
            eprintln!("{err}");
            return ExitCode::FAILURE;
        }
    };
    sys::memory::limit_arenas(ARENAS);
    let logs = start_logging(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_IDLE)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(config, logs));
            // Whatever still blocks (a hung disk) does not keep the process.
            runtime.shutdown_timeout(Duration::from_secs(1));
            ended
        }
        Err(err) => Err(Error::system(format!("start threads: {err}"))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("failed to start daemon: {err}");
            ExitCode::FAILURE
        }
    }
}

type Logs = reload::Handle<EnvFilter, Registry>;

fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("{level},h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn,rustls=warn"))
}

fn start_logging(config: &Config) -> Logs {
    let level = if config.live().debug { "debug" } else { &config.log_level };
    let (level, handle) = reload::Layer::new(filter(level));
    let registry = tracing_subscriber::registry().with(level);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    if config.log_json {
        registry.with(lines.json()).init();
    } else {
        registry.with(lines).init();
    }
    handle
}

async fn run(mut config: Config, logs: Logs) -> Result<()> {
    // From here on a signal is ours, so that a stop during the start is orderly too.
    let failed = |err: std::io::Error| Error::system(format!("signals: {err}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let _pidfile = PidFile::write(&config.pidfile)?;
    directory(&config.exec_root, 0o711)?;
    let layer = readonly::layer_over(&config.data_root, &config.exec_root);
    if let Some(layer) =
        layer.map_err(|err| Error::system(format!("read-only data root: {}", sys_text(&err))))?
    {
        tracing::error!(
            data_root = %config.data_root.display(),
            "the data root is read-only: what is changed now is lost when the engine stops"
        );
        (config.data_root, config.volatile) = (layer, true);
    }
    let config = Arc::new(config);
    directory(&config.data_root, 0o710)?;
    let _lock = lock(&config.data_root)?;
    let store = Store::open(&config.store_path())?;
    let events = Events::open(&config.events_dir())?;
    let runtime = Runtime::new(&config.containerd_socket(), &config.containerd_namespace)?;
    let engine = Engine::open(Parts { config: Arc::clone(&config), store, runtime, events }).await?;
    api::authz::check(&config.live().authorization_plugins).await?;
    let router = Arc::new(api::routes());
    let tracker = TaskTracker::new();
    let servers = TaskTracker::new();
    for socket in listen::open(&config)? {
        servers.spawn(listen::serve(socket, Arc::clone(&engine), Arc::clone(&router), tracker.clone()));
    }
    if let Some(address) = &config.metrics_addr {
        let listener = system::metrics::open(address)?;
        servers.spawn(system::metrics::serve(listener, Arc::clone(&engine)));
    }
    for host in &config.hosts {
        tracing::info!(host, "API listen");
    }
    tokio::spawn(async {
        let mut rest = sys::memory::Rest::default();
        loop {
            tokio::time::sleep(rest.pause()).await;
            rest.look();
        }
    });
    let keeper = Arc::new(Mutex::new(None));
    let mut boot = Some(tokio::spawn(boot(Arc::clone(&engine), Arc::clone(&keeper))));
    let ended = loop {
        tokio::select! {
            booted = async { boot.as_mut().expect("guarded").await }, if boot.is_some() => {
                boot = None;
                match booted {
                    Ok(Ok(())) => {}
                    Ok(Err(err)) => break Err(err),
                    Err(err) => break Err(Error::system(format!("start: {err}"))),
                }
            }
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => reload(&engine, &logs),
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    if let Some(boot) = boot {
        boot.abort();
        // What it has started is in the keeper's place, or taken back, when it is gone.
        let _ = boot.await;
    }
    engine.phase.set_stopping();
    servers.close();
    servers.wait().await;
    tracker.close();
    let patience = match config.live().shutdown_timeout_secs {
        secs if secs >= 0 => DRAIN.min(Duration::from_secs(secs.unsigned_abs())),
        _ => DRAIN,
    };
    let cut = tokio::select! {
        () = tracker.wait() => None,
        () = tokio::time::sleep(patience) => Some("connections are cut"),
        _ = interrupt.recv() => Some("told again to stop: connections are cut"),
    };
    if let Some(cut) = cut {
        tracing::warn!(connections = tracker.len(), "{cut}");
        for (request, since) in engine.connections.late().into_iter().take(LATE) {
            tracing::warn!(request, secs = since.as_secs(), "late");
        }
    }
    engine.shutdown().await;
    let supervisor = keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(supervisor) = supervisor {
        supervisor.stop().await;
    }
    if config.volatile
        && let Err(err) = readonly::take_away(&config.exec_root)
    {
        tracing::warn!(error = %err, "the layer over the read-only data root stays");
    }
    ended
}

/// Starts containerd if it is ours to start (its keeper is then in `keeper`, whatever happens later), and restores what was there before.
async fn boot(engine: Arc<Engine>, keeper: Arc<Mutex<Option<Supervisor>>>) -> Result<()> {
    if engine.config.owns_containerd() {
        let level = if engine.config.live().debug { "debug" } else { &engine.config.log_level };
        let supervisor = Supervisor::start(&engine.config, level).await?;
        *keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(supervisor);
    }
    system::check(&engine).await;
    engine.restore().await;
    engine.phase.set_ready();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "daemon has completed initialization");
    Ok(())
}

/// SIGHUP.
fn reload(engine: &Engine, logs: &Logs) {
    // For a unit of `Type=notify-reload`; with `Type=notify` the service manager knows no reload and takes no notice.
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
    }
    match engine.config.reload() {
        Ok(changed) => {
            let live = engine.config.live();
            let level = if live.debug { "debug" } else { &engine.config.log_level };
            if let Err(err) = logs.reload(filter(level)) {
                tracing::error!(error = %err, "log level not changed");
            }
            tracing::info!(changed = changed.join(","), "configuration reloaded");
            let attributes = system::reload_attributes(engine);
            engine.events.publish(Subject::Daemon, "reload", engine.id.clone(), attributes);
        }
        Err(err) => tracing::error!(error = %err, "configuration not reloaded"),
    }
    // Before the engine has started it is the end of the start that says so.
    if engine.phase.is_ready() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
}

fn directory(path: &Path, mode: u32) -> Result<()> {
    let failed = |err: std::io::Error| Error::system(format!("mkdir {}: {}", path.display(), sys_text(&err)));
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode)).map_err(|err| failed(err.into()))
}

/// One engine per data root. The lock goes with the descriptor, so a killed engine leaves none.
fn lock(data_root: &Path) -> Result<std::fs::File> {
    let path = data_root.join("engine.lock");
    let failed = |err: std::io::Error| Error::system(format!("lock {}: {}", path.display(), sys_text(&err)));
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::system(format!("another engine uses {}", data_root.display())))
        }
        Err(err) => Err(failed(err.into())),
    }
}

/// The pid file, removed at the end.
struct PidFile(Option<std::path::PathBuf>);

impl PidFile {
    fn write(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Ok(Self(None));
        }
        let failed =
            |err: std::io::Error| Error::system(format!("write {}: {}", path.display(), sys_text(&err)));
        let own = std::process::id();
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<u32>()
            && pid != own
            && is_engine(pid)
        {
            return Err(Error::system(format!(
                "ensure docker is not running or delete {}: process with PID {pid} is still running",
                path.display()
            )));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        sys::atomicfile::write(path, 0o644, own.to_string().as_bytes()).map_err(failed)?;
        Ok(Self(Some(path.to_owned())))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether a process of that number is an engine: numbers are used again, and after a reboot the file names a stranger. A dead one that nobody has
/// waited for yet is none.
fn is_engine(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((before, after)) = stat.rsplit_once(')') else { return false };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    name.starts_with("dockerd") && !after.trim_start().starts_with(['Z', 'X'])
}
