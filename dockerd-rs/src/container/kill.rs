//! Signals to a container's first process.

use std::sync::Arc;
use std::time::Duration;

use super::Container;
use super::life::signal::{self, Signal};
use super::life::{self, decide};
use super::record::State;
use super::stop;
use super::wait::{Condition, Waiting};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::runtime::tasks::TaskState;

/// How long a process that was sent SIGKILL has to be seen ending before the engine looks for itself.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// How long after the first such look a container is given up.
const GIVE_UP: Duration = Duration::from_secs(10);

/// `POST /containers/{id}/kill`: sends `signal` (empty: SIGKILL). For SIGKILL, returns when the container has ended.
///
/// # Errors
/// The signal is none, the container is not found or does not run.
pub async fn kill(engine: &Arc<Engine>, shown: &str, signal: &str) -> Result<()> {
    let context = |err: Error| err.context(format_args!("cannot kill container: {shown}"));
    let signal = match signal {
        "" => Signal::KILL,
        name => signal::parse(name).map_err(|err| context(Error::invalid(err.to_string())))?,
    };
    let container = engine.containers.get(shown).map_err(context)?;
    let engine = Arc::clone(engine);
    let killed = life::to_the_end(async move {
        decide::kill(&container.settled().await.life.state, &container.id).proceed()?;
        if stop::give_restarting_up(&engine, &container).await? {
            return Ok(());
        }
        if signal == Signal::KILL {
            to_death(&engine, &container).await
        } else {
            signal_now(&engine, &container, signal, false).await
        }
    });
    killed.await.map_err(context)
}

/// Sends a signal to a running container, and tells its policy what that means. `stopping` says that the signal is meant to end it,
/// whatever its number.
///
/// # Errors
/// `Conflict` when it does not run (any more); the runtime's otherwise.
pub async fn signal_now(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal: Signal,
    stopping: bool,
) -> Result<()> {
    let record = container.record();
    let Some(pid) = record.pid() else {
        decide::kill(&record.life.state, &container.id).proceed()?;
        return Ok(());
    };
    let own = signal::parse(&record.config.stop_signal).ok();
    if stopping || signal == Signal::KILL || own.is_none_or(|own| own == signal) {
        container.live.cancel_policy();
    }
    let ends = signal == Signal::KILL || stopping;
    if !record.manually_stopped {
        container
            .update(|record| {
                record.manually_stopped = true;
                Ok(())
            })
            .await?;
    }
    match engine.runtime.kill(&container.id, "", signal.0, false).await {
        Ok(()) => {}
        Err(err) => {
            // Its end may be on its way, or the word of it lost: whatever the runtime said, what counts is whether it runs.
            if super::restore::look(engine, container, pid).await.is_ok()
                && container.record().pid() != Some(pid)
            {
                return Err(Error::conflict(format!("container {} is not running", container.id)));
            }
            return Err(err);
        }
    }
    if matches!(record.life.state, State::Paused(_)) && ends {
        // A frozen process does not see its signal until it goes on.
        if let Err(err) = engine.runtime.resume(&container.id).await {
            tracing::debug!(container = %container.id, error = %err, "resume for a signal");
        }
    }
    container.publish(engine, "kill", &[("signal", &signal.0.to_string())]);
    Ok(())
}

/// Kills a container and waits until its end has been noticed.
///
/// # Errors
/// It does not die.
pub async fn to_death(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    let Some(pid) = container.record().pid() else { return Ok(()) };
    let waiting = Waiting::begin(container, Condition::NotRunning);
    match signal_now(engine, container, Signal::KILL, true).await {
        Err(err) if err.kind() != Kind::Conflict => return Err(err),
        _ => {}
    }
    let mut ended = std::pin::pin!(waiting.code());
    if tokio::time::timeout(AFTER_KILL, &mut ended).await.is_ok() {
        return Ok(());
    }
    // Nobody told us: ask.
    super::restore::look(engine, container, pid).await?;
    if tokio::time::timeout(GIVE_UP, &mut ended).await.is_ok() {
        return Ok(());
    }
    let state = engine.runtime.process_state(&container.id, "").await?;
    let still = matches!(state, Some(TaskState::Running { .. } | TaskState::Paused { .. }));
    let why = if still {
        "tried to kill container, but did not receive an exit event"
    } else {
        "its end was not noticed"
    };
    Err(Error::system(why))
}
