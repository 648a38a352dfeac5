//! Starting a container: network and file systems, containerd's record and task, waiting clients, the first instruction.
//!
//! Nothing is left of a start that fails: what was made is taken down again, and the record says why. A start killed with the engine is
//! found by the next one: the record does not say running, but containerd has a task.

use std::sync::Arc;
use std::time::Duration;

use super::life::{self, Outcome, decide, ended, failure};
use super::logs::forward;
use super::logs::options::LogOptions;
use super::record::{State, Task};
use super::world::{self, World};
use super::{Container, Record, health, io, remove};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::runtime::tasks::{NewContainer, NewTask};

/// The containerd label that says whose a container is.
pub const OWNER_LABEL: &str = "dockerd-rs.engine";

/// Who starts a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A client: earlier restarts and stops are forgotten.
    Client,
    /// Its restart policy.
    Policy,
    /// The engine, when it starts itself.
    Boot,
}

/// Starts a container.
///
/// # Errors
/// Its state forbids it; or something could not be made, and then the record has the reason and its exit code.
pub async fn start(engine: &Arc<Engine>, container: &Arc<Container>, by: By) -> Result<Outcome> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    life::to_the_end(async move {
        let turn = container.live.turn().await;
        let outcome = in_turn(&engine, &container, by).await;
        drop(turn);
        if outcome.is_err()
            && by != By::Boot
            && container.record().host_config.auto_remove
            && !container.live.is_held()
        {
            remove::automatic(&engine, &container);
        }
        outcome
    })
    .await
}

async fn in_turn(engine: &Arc<Engine>, container: &Arc<Container>, by: By) -> Result<Outcome> {
    let record = container.record();
    if container.live.is_removing() {
        return Err(Error::conflict("container is marked for removal and cannot be started"));
    }
    if by == By::Policy && record.life.state != State::Restarting {
        // A client stopped or started it during the pause.
        return Ok(Outcome::AlreadySo);
    }
    if !decide::start(&record.life.state).proceed()? {
        return Ok(Outcome::AlreadySo);
    }
    if by == By::Client {
        container.live.fresh_start();
        container
            .update(|record| {
                record.restart_count = 0;
                record.manually_stopped = false;
                Ok(())
            })
            .await?;
    }
    match bring_up(engine, container, by).await {
        Ok(()) => Ok(Outcome::Done),
        Err((code, err)) => {
            let text = err.message().to_owned();
            container
                .update(move |record| {
                    record.life.exit_code = code;
                    record.life.error = text;
                    if record.life.state == State::Restarting {
                        record.life.state = State::Exited;
                    }
                    Ok(())
                })
                .await?;
            Err(err)
        }
    }
}

/// A failure with the exit code it leaves.
type Failed = (i32, Error);

fn failed(err: Error) -> Failed {
    (failure::UNKNOWN, err)
}

async fn bring_up(engine: &Arc<Engine>, container: &Arc<Container>, by: By) -> Result<(), Failed> {
    let record = container.record();
    let brought = make(engine, container, &record, by).await;
    let (pid, started) = match brought {
        Ok(brought) => brought,
        Err(failed) => {
            undo(engine, container).await;
            return Err(failed);
        }
    };
    let saved = container
        .update(move |record| {
            let life = &mut record.life;
            life.state = State::Running(Task { pid });
            life.started_at = Some(started);
            life.exit_code = 0;
            life.error.clear();
            life.oom_killed = false;
            record.started_once = true;
            record.health = health::fresh(&record.config, record.health.take());
            Ok(())
        })
        .await;
    if let Err(err) = saved {
        undo(engine, container).await;
        return Err(failed(err));
    }
    container.publish(engine, "start", &[]);
    tracing::info!(container = %container.id, pid, "started");
    health::watch(engine, container);
    forward::begin(engine, container);
    Ok(())
}

/// Everything up to the first instruction. Gives the first process' id, and a moment just before it ran: one after it could be later than
/// the end of a short run.
async fn make(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    record: &Arc<Record>,
    by: By,
) -> Result<(u32, jiff::Timestamp), Failed> {
    let id = &container.id;
    let log = LogOptions::of(record).map_err(failed)?;
    if by == By::Client
        && let Err(why) = forward::check(&log).await
    {
        // A policy's start goes on: the lines wait for their target on disk.
        let why = format!("failed to create task for container: failed to initialize logging driver: {why}");
        return Err(failure::of_runtime(&Error::system(why)));
    }
    let World { spec, rootfs, labels } = world::prepare(engine, container).await.map_err(failed)?;
    container.live.set_process(world::process_of(&spec).map(Arc::new));
    container.live.forget_log_dropped();
    let streams = io::Streams::of_container(&engine.config, id);
    streams.remove();
    let sequence = next_log_number(engine, container, &log).await.map_err(failed)?;
    let stdout = streams.ask_for_container(&engine.config, record, sequence).map_err(failed)?;
    let (runtime, options) = world::runtime_of(engine, record).map_err(failed)?;
    let new = NewContainer {
        id: id.clone(),
        labels,
        image: record.image.as_ref().map(|image| image.reference.clone()).unwrap_or_default(),
        runtime,
        options: options.clone(),
        spec,
        snapshot: (!record.snapshot.is_empty())
            .then(|| (record.snapshotter.clone(), record.snapshot.clone())),
    };
    create_container(engine, new).await.map_err(failed)?;
    let task = NewTask {
        id: id.clone(),
        rootfs,
        stdout,
        terminal: record.config.tty,
        options,
        ..NewTask::default()
    };
    let made = engine.runtime.create_task(task).await;
    made.map_err(|err| failure::of_runtime(&err.context("failed to create task for container")))?;
    connect_waiting(container, &streams).await;
    let started = jiff::Timestamp::now();
    let pid = engine.runtime.start_process(id, "").await.map_err(|err| failure::of_runtime(&err))?;
    Ok((pid, started))
}

/// The number of the next record in a log that is sent on.
async fn next_log_number(engine: &Engine, container: &Container, log: &LogOptions) -> Result<Option<u64>> {
    let place = log.place(&engine.config.container_dir(&container.id), &container.id);
    let Some(place) = place.filter(|_| log.target.is_some()) else { return Ok(None) };
    let number = tokio::task::spawn_blocking(move || forward::spool::next_number(&place.path)).await;
    number.map(Some).map_err(|err| Error::system(err.to_string()))
}

/// A record or a task left by a start that was cut short is cleared away first.
async fn create_container(engine: &Arc<Engine>, new: NewContainer) -> Result<()> {
    let id = new.id.clone();
    match engine.runtime.create_container(new.clone()).await {
        Err(err) if err.kind() == Kind::Conflict || err.kind() == Kind::InvalidParameter => {
            clear_leftovers(engine, &id).await?;
            engine.runtime.create_container(new).await
        }
        other => other,
    }
}

/// Ends and removes whatever containerd has under this id.
///
/// # Errors
/// containerd is away, or the processes do not die.
pub async fn clear_leftovers(engine: &Arc<Engine>, id: &str) -> Result<()> {
    // A task that was made and never started dies of this too.
    let _ = engine.runtime.kill(id, "", 9, true).await;
    let mut pause = Duration::from_millis(5);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match ended::clear_runtime(engine, id).await {
            Ok(()) => return Ok(()),
            Err(err) if tokio::time::Instant::now() > deadline => return Err(err),
            // The kernel takes a moment to end a process.
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Takes down what a failed start had made; on its own time, not the client's patience.
async fn undo(engine: &Arc<Engine>, container: &Arc<Container>) {
    container.live.set_process(None);
    if let Err(err) = clear_leftovers(engine, &container.id).await {
        tracing::warn!(container = %container.id, error = %err, "clear a failed start");
    }
    ended::release(engine, container).await;
    io::Streams::of_container(&engine.config, &container.id).remove();
}

/// Connects the clients that attached before the start, so that they see the first byte.
async fn connect_waiting(container: &Arc<Container>, streams: &io::Streams) {
    for pending in container.live.take_waiting() {
        if pending.give.is_closed() {
            continue;
        }
        match streams.attach(pending.wanted).await {
            // The client may have gone just now.
            Ok(stream) => drop(pending.give.send(stream)),
            Err(err) => tracing::warn!(container = %container.id, error = %err, "connect a waiting client"),
        }
    }
}

/// Starts the container by its policy after a pause, unless its record says meanwhile that nobody waits for that.
pub fn later(engine: &Arc<Engine>, container: &Arc<Container>, pause: Duration) {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::spawn(async move {
        let mut records = container.watch();
        let changed = records.wait_for(|record| record.life.state != State::Restarting);
        if tokio::time::timeout(pause, changed).await.is_ok() {
            return;
        }
        if let Err(err) = start(&engine, &container, By::Policy).await {
            tracing::warn!(container = %container.id, error = %err, "restart by policy");
        }
    });
}
