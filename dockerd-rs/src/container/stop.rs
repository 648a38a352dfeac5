//! Stopping and restarting: a signal, patience, and then SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use super::kill::{self, signal_now};
use super::life::signal::{self, Signal};
use super::life::{self, Outcome, decide};
use super::record::State;
use super::start::{self, By};
use super::wait::{Condition, Waiting};
use super::{Container, Record};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// How long a container has to end by itself, unless it or the client says otherwise.
const PATIENCE_SECS: i64 = 10;
/// Without a signal that could be sent there is little to wait for.
const UNREACHED: Duration = Duration::from_secs(2);

/// How to stop.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Instead of the container's own signal.
    pub signal: Option<String>,
    /// Seconds until SIGKILL; negative waits for ever.
    pub timeout_secs: Option<i64>,
}

/// Stops a container. `shown` is how the client called it.
///
/// # Errors
/// The signal is none, or the container cannot be stopped.
pub async fn stop(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    shown: &str,
    options: Options,
) -> Result<Outcome> {
    let (engine, container, shown) = (Arc::clone(engine), Arc::clone(container), shown.to_owned());
    life::to_the_end(async move {
        if !decide::stop(&container.settled().await.life.state).proceed()? {
            return Ok(Outcome::AlreadySo);
        }
        let stopped = bring_down(&engine, &container, &options).await;
        stopped.map_err(|err| err.context(format_args!("cannot stop container: {shown}")))?;
        Ok(Outcome::Done)
    })
    .await
}

/// Restarts a container, or starts it if it does not run.
///
/// # Errors
/// It cannot be stopped or started.
pub async fn restart(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    shown: &str,
    options: Options,
) -> Result<()> {
    let (engine, container, shown) = (Arc::clone(engine), Arc::clone(container), shown.to_owned());
    life::to_the_end(async move {
        let held = container.live.hold();
        if decide::stop(&container.settled().await.life.state).proceed()? {
            let stopped = bring_down(&engine, &container, &options).await;
            stopped.map_err(|err| err.context(format_args!("Cannot restart container {shown}")))?;
        }
        let started = start::start(&engine, &container, By::Client).await;
        drop(held);
        started.map_err(|err| err.context(format_args!("Cannot restart container {shown}")))?;
        container.publish(&engine, "restart", &[]);
        Ok(())
    })
    .await
}

/// The signal that stops this container.
///
/// # Errors
/// The name is none. Docker answers 500.
fn stop_signal(record: &Record, asked: Option<&str>) -> Result<Signal> {
    let name = asked.filter(|name| !name.is_empty()).unwrap_or(&record.config.stop_signal);
    if name.is_empty() {
        return Ok(Signal::TERM);
    }
    signal::parse(name).map_err(|err| Error::system(err.to_string()))
}

async fn bring_down(engine: &Arc<Engine>, container: &Arc<Container>, options: &Options) -> Result<()> {
    let record = container.record();
    let signal = stop_signal(&record, options.signal.as_deref())?;
    let seconds = options.timeout_secs.or(record.config.stop_timeout).unwrap_or(PATIENCE_SECS);
    let mut patience = u64::try_from(seconds).ok().map(Duration::from_secs);
    let _stopping = container.live.begin_stop();
    let waiting = Waiting::begin(container, Condition::NotRunning);
    if give_restarting_up(engine, container).await? {
        container.publish(engine, "stop", &[]);
        return Ok(());
    }
    match signal_now(engine, container, signal, true).await {
        Ok(()) => {}
        Err(err) if err.kind() == Kind::Conflict => return Ok(()),
        Err(err) => {
            tracing::warn!(container = %container.id, error = %err, "send the stop signal");
            patience = Some(UNREACHED);
        }
    }
    let ended = waiting.code();
    match patience {
        None => {
            ended.await;
            Ok(())
        }
        Some(patience) => match tokio::time::timeout(patience, ended).await {
            Ok(_) => Ok(()),
            Err(_) => kill::to_death(engine, container).await,
        },
    }
}

/// A container that waits for its restart ends here and now. True when it was one.
///
/// # Errors
/// The record cannot be written.
pub async fn give_restarting_up(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<bool> {
    if container.record().life.state != State::Restarting {
        return Ok(false);
    }
    let turn = container.live.turn().await;
    let was = container
        .update(|record| {
            let was = record.life.state == State::Restarting;
            if was {
                record.life.state = State::Exited;
                record.manually_stopped = true;
            }
            Ok(was)
        })
        .await?;
    drop(turn);
    if was {
        let record = container.record();
        container.live.ended(record.life.exit_code);
        if record.host_config.auto_remove {
            super::remove::automatic(engine, container);
        }
    }
    Ok(was)
}
