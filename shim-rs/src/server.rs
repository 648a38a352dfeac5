//! The process that stays: one thread, one runtime, ttrpc on one socket for both versions of the task API.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use shim_api::{service, task};
use tokio::task::LocalSet;
use ttrpc::{Call, Options, Service, Status, decode, encode};

use crate::children::Children;
use crate::events::Events;
use crate::log::Log;
use crate::task::Shim;

/// How long undelivered events may hold up the end of the shim.
const LAST_EVENTS: Duration = Duration::from_secs(3);
/// How long calls at work may.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// What a shim needs to know of its surroundings.
pub struct Config {
    /// containerd's namespace.
    pub namespace: String,
    /// Of the container or sandbox it was started for.
    pub id: String,
    /// That container's bundle.
    pub bundle: PathBuf,
    /// The socket's path, to remove it at the end.
    pub socket: PathBuf,
    /// containerd's ttrpc socket.
    pub ttrpc: Option<PathBuf>,
    /// Whether to log more.
    pub debug: bool,
}

/// Serves until Shutdown.
pub fn run(listener: UnixListener, config: Config) -> Result<(), Box<dyn Error>> {
    // Again, so that the socket names this process and not the one that forked it.
    rustix::net::listen(&listener, 1024)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    LocalSet::new().block_on(&runtime, serve(listener, config))
}

async fn serve(listener: UnixListener, config: Config) -> Result<(), Box<dyn Error>> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let children = Children::start()?;
    let log = Rc::new(Log::new(&config.bundle, &config.namespace, config.debug));
    let events = Events::start(&config.namespace, config.ttrpc.clone(), log.clone());
    log.debug(|| format!("shim for {} serves at {}", config.id, config.socket.display()));
    let shim = Shim::new(&config.namespace, children, events.clone(), log.clone());
    let stopping = shim.clone();
    let stopped = async {
        stopping.stopped().await;
        // A caller that finds no socket starts a new shim; one that finds it would get no answer.
        let _ = std::fs::remove_file(&config.socket);
    };
    let limit = shim.clone();
    let served = tokio::select! {
        served = ttrpc::serve(&listener, Dispatch(shim.clone()), Options::default(), stopped) => served,
        () = async {
            limit.stopped().await;
            tokio::time::sleep(LAST_CALLS).await;
        } => Ok(()),
    };
    drop(listener);
    if let Err(err) = &served {
        log.error(&format!("serve: {err}"));
    }
    let _ = tokio::time::timeout(LAST_EVENTS, events.delivered()).await;
    // Slow attached clients get what is still in their spools.
    crate::native::attach::delivered().await;
    Ok(served?)
}

/// Answers calls by name.
#[derive(Clone)]
struct Dispatch(Rc<Shim>);

impl Service for Dispatch {
    async fn call(self, call: Call) -> Result<Vec<u8>, Status> {
        if call.service != service::TASK_V2 && call.service != service::TASK_V3 {
            return Err(call.unimplemented());
        }
        let shim = self.0.clone();
        shim.log.debug(|| format!("{} begins", call.method));
        let outcome = dispatch(shim, &call).await;
        self.0.log.debug(|| match &outcome {
            Ok(_) => format!("{} is answered", call.method),
            Err(status) => format!("{} failed: {status}", call.method),
        });
        outcome
    }
}

async fn dispatch(shim: Rc<Shim>, call: &Call) -> Result<Vec<u8>, Status> {
    let payload = call.payload.clone();
    match call.method.as_str() {
        "State" => encode(&shim.state(decode::<task::StateRequest>(payload)?)?),
        "Create" => encode(&shim.create(decode(payload)?).await?),
        "Start" => encode(&shim.start(decode(payload)?).await?),
        "Delete" => encode(&shim.delete(decode(payload)?).await?),
        "Pids" => encode(&shim.pids(decode(payload)?).await?),
        "Pause" => encode(&shim.pause(decode(payload)?).await?),
        "Resume" => encode(&shim.resume(decode(payload)?).await?),
        "Checkpoint" => encode(&shim.checkpoint(decode(payload)?).await?),
        "Kill" => encode(&shim.kill(decode(payload)?).await?),
        "Exec" => encode(&shim.exec(decode(payload)?).await?),
        "ResizePty" => encode(&shim.resize(decode(payload)?)?),
        "CloseIO" => encode(&shim.close_io(decode(payload)?)?),
        "Update" => encode(&shim.update(decode(payload)?).await?),
        "Wait" => tokio::select! {
            waited = shim.wait(decode(payload)?) => encode(&waited?),
            () = call.disconnected() => Err(Status::new(ttrpc::Code::Cancelled, "the caller is gone")),
        },
        "Stats" => encode(&shim.stats(decode(payload)?)?),
        "Connect" => encode(&shim.connect(decode(payload)?)),
        "Shutdown" => encode(&shim.shutdown(decode(payload)?)),
        _ => Err(call.unimplemented()),
    }
}
