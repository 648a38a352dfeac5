//! Freezing a container's processes, letting them go on, and the size of its terminal.

use std::sync::Arc;

use super::Container;
use super::health;
use super::life::{self, decide};
use super::record::State;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// Freezes all processes.
///
/// # Errors
/// The state forbids it, or the runtime refused.
pub async fn pause(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    life::to_the_end(async move {
        let _turn = container.live.turn().await;
        decide::pause(&container.record().life.state, &container.id).proceed()?;
        let paused = engine.runtime.pause(&container.id).await;
        paused.map_err(|err| Error::system(format!("cannot pause container {}: {err}", container.id)))?;
        container.live.set_health(None);
        container
            .update(|record| {
                freeze(&mut record.life.state);
                Ok(())
            })
            .await?;
        container.publish(&engine, "pause", &[]);
        Ok(())
    })
    .await
}

/// Lets them go on.
///
/// # Errors
/// They are not frozen, or the runtime refused.
pub async fn unpause(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    life::to_the_end(async move {
        let _turn = container.live.turn().await;
        decide::unpause(&container.record().life.state, &container.id).proceed()?;
        let resumed = engine.runtime.resume(&container.id).await;
        resumed.map_err(|err| Error::system(format!("Cannot unpause container {}: {err}", container.id)))?;
        container
            .update(|record| {
                thaw(&mut record.life.state);
                Ok(())
            })
            .await?;
        container.publish(&engine, "unpause", &[]);
        health::watch(&engine, &container);
        Ok(())
    })
    .await
}

/// Gives the container's terminal another size. Without a terminal there is nothing to do.
///
/// # Errors
/// The container does not run.
pub async fn resize(engine: &Arc<Engine>, container: &Arc<Container>, width: u32, height: u32) -> Result<()> {
    let record = container.record();
    decide::live(&record.life.state, &container.id).proceed()?;
    match engine.runtime.resize(&container.id, "", width, height).await {
        Err(err) if record.config.tty && err.kind() != Kind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Running becomes paused; anything else stays.
pub fn freeze(state: &mut State) {
    if let State::Running(task) = state {
        *state = State::Paused(task.clone());
    }
}

/// Paused becomes running; anything else stays.
pub fn thaw(state: &mut State) {
    if let State::Paused(task) = state {
        *state = State::Running(task.clone());
    }
}
