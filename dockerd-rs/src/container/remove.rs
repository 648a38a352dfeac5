//! Removing a container: its processes, its place in the networks, its file system, its volumes, its record.
//!
//! A removal that is cut short leaves a record in state `Removing`, and the next engine goes on with it; one that fails leaves `Dead`, which
//! can be removed again.

use std::sync::Arc;

use super::life::{self, decide};
use super::record::State;
use super::{Container, io, kill, start, world};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// How to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

/// Removes a container.
///
/// # Errors
/// It runs and `force` was not given, a removal is under way, or something cannot be removed.
pub async fn remove(engine: &Arc<Engine>, container: &Arc<Container>, options: Options) -> Result<()> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    life::to_the_end(async move {
        let record = container.record();
        if !container.live.begin_removal() {
            decide::remove(&State::Removing, &record.name, options.force).proceed()?;
        }
        let removed = in_steps(&engine, &container, options).await;
        if removed.is_err() {
            container.live.give_removal_up();
        }
        removed
    })
    .await
}

/// Removes a container that said it wants to be removed at its end.
pub fn automatic(engine: &Arc<Engine>, container: &Arc<Container>) {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::spawn(async move {
        match remove(&engine, &container, Options { force: true, volumes: true }).await {
            Err(err) if err.kind() != Kind::Conflict => {
                tracing::error!(container = %container.id, error = %err, "remove at its end");
            }
            _ => {}
        }
    });
}

async fn in_steps(engine: &Arc<Engine>, container: &Arc<Container>, options: Options) -> Result<()> {
    let record = container.record();
    if record.life.state != State::Removing {
        decide::remove(&record.life.state, &record.name, options.force).proceed()?;
    }
    super::stop::give_restarting_up(engine, container).await?;
    if record.pid().is_some() {
        kill::to_death(engine, container).await.map_err(|err| {
            Error::new(
                err.kind(),
                format!(
                    "cannot remove container {}: could not kill container: {err}",
                    crate::api::params::quote(&record.name)
                ),
            )
        })?;
    }
    let _turn = container.live.turn().await;
    let record = container.record();
    if record.pid().is_some() {
        // Started between the two.
        return Err(Error::conflict(format!("container {} was started during its removal", record.name)));
    }
    container
        .update(|record| {
            record.life.state = State::Removing;
            Ok(())
        })
        .await?;
    match take_down(engine, container, options).await {
        Ok(()) => {
            if let Some(image) = &record.image {
                engine.images.note_used(&image.id, record.last_used());
            }
            life::publish(engine, &record, "destroy", &[]);
            container.live.removed(record.life.exit_code);
            Ok(())
        }
        Err(err) => {
            let text = err.message().to_owned();
            container
                .update(move |record| {
                    record.life.state = State::Dead;
                    record.life.error = text;
                    Ok(())
                })
                .await?;
            Err(err)
        }
    }
}

async fn take_down(engine: &Arc<Engine>, container: &Arc<Container>, options: Options) -> Result<()> {
    let record = container.record();
    let id = &container.id;
    start::clear_leftovers(engine, id).await?;
    world::forget(engine, container).await?;
    if !record.snapshot.is_empty() {
        let removed = engine.images.remove_rootfs(id).await;
        removed
            .map_err(|err| err.context(format_args!("container {id}: failed to remove root filesystem")))?;
    }
    super::logs::forward::finish(container).await;
    io::Streams::of_container(&engine.config, id).remove();
    for directory in [engine.config.container_run_dir(id), engine.config.container_dir(id)] {
        let shown = directory.display().to_string();
        let gone = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
        match gone {
            Ok(Err(err)) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::from(err).context(format_args!("unable to remove {shown}")));
            }
            _ => {}
        }
    }
    super::exec::container_ended(engine, container);
    // The record last of all: until it is gone, a removal that was cut short can be finished.
    engine.containers.forget(id).await?;
    world::release_volumes(engine, &record, options.volumes).await;
    Ok(())
}
