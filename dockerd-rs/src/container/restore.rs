//! Bringing records and reality together: when the engine starts, and whenever containerd comes back.
//!
//! ```text
//!   subscribe ─► look at everything ─► events … ─► lost ─► (containerd away) ─► subscribe …
//! ```
//! Invariant: the subscription comes first, so nothing falls between it and the look. What ended while nobody listened has its true code and
//! time from containerd or, when that has lost it, from the shim's exit record.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Semaphore;

use super::life::ended;
use super::logs::forward;
use super::record::{Record, State, Task};
use super::start::{self, By, OWNER_LABEL};
use super::{Container, Containers, exec, health, io, pause, remove, spec, world};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::runtime::events::TaskEvent;
use crate::runtime::tasks::{Ended, TaskState};
use crate::store::Table;

/// Containers looked at side by side.
const AT_ONCE: usize = 16;
/// How long the look at one container may hold up the others of its lot.
const BUDGET: Duration = Duration::from_secs(30);
/// Between two attempts to reach containerd.
const RETRY: Duration = Duration::from_millis(50);
/// The exit code of a container of which nothing is known but that it is over.
const LOST: u32 = 137;

impl Containers {
    /// Brings records and reality together, and keeps them so from here on. Returns when all containers have been looked at once.
    pub async fn restore(&self, engine: &Arc<Engine>) {
        let _ = tokio::task::spawn_blocking(crate::mountfs::sweep).await;
        let (first_look, looked) = tokio::sync::oneshot::channel();
        tokio::spawn(keep_watching(Arc::clone(engine), first_look));
        // The watcher lives as long as the engine.
        let _ = looked.await;
    }
}

async fn keep_watching(engine: Arc<Engine>, first_look: tokio::sync::oneshot::Sender<()>) {
    let mut first_look = Some(first_look);
    loop {
        let mut events = match engine.runtime.task_events().await {
            Ok(events) => events,
            Err(err) => {
                tracing::debug!(error = %err, "subscribe to containerd's events");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let boot = first_look.is_some();
        let looker = Arc::clone(&engine);
        let done = first_look.take();
        let look = tokio::spawn(async move {
            look_at_all(&looker, boot).await;
            if let Some(done) = done {
                let _ = done.send(());
            }
        });
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => hear(&engine, event),
                Err(err) => {
                    tracing::warn!(error = %err, "containerd's events ended");
                    break;
                }
            }
        }
        look.abort();
        tokio::time::sleep(RETRY).await;
    }
}

/// Acts on an event, in a task of its own: the next event does not wait.
fn hear(engine: &Arc<Engine>, event: TaskEvent) {
    let id = match &event {
        TaskEvent::Exit { container, .. }
        | TaskEvent::Oom { container }
        | TaskEvent::LogDropped { container, .. }
        | TaskEvent::Paused { container }
        | TaskEvent::Resumed { container } => container.clone(),
    };
    let Some(container) = engine.containers.by_id(&id) else { return };
    let engine = Arc::clone(engine);
    tokio::spawn(async move {
        let handled = match event {
            TaskEvent::Exit { exec, pid, ended, .. } if exec.is_empty() => {
                ended::notice(&engine, &container, pid, ended).await
            }
            TaskEvent::Exit { exec, pid, ended, .. } => {
                exec::notice_end(&engine, &container, &exec, pid, ended).await;
                Ok(())
            }
            TaskEvent::Oom { .. } => ended::oom(&engine, &container).await,
            TaskEvent::LogDropped { lines, reason, .. } => {
                ended::log_dropped(&engine, &container, lines, &reason);
                Ok(())
            }
            TaskEvent::Paused { .. } => outside_change(&container, pause::freeze).await,
            TaskEvent::Resumed { .. } => outside_change(&container, pause::thaw).await,
        };
        if let Err(err) = handled {
            tracing::error!(container = %container.id, error = %err, "take note of an event");
        }
    });
}

/// Somebody else (`ctr`) froze or thawed it. Our own changes hold the turn until their record is written, and change nothing here.
async fn outside_change(container: &Arc<Container>, change: fn(&mut State)) -> Result<()> {
    let _turn = container.live.turn().await;
    container
        .update(|record| {
            change(&mut record.life.state);
            Ok(())
        })
        .await
}

async fn look_at_all(engine: &Arc<Engine>, boot: bool) {
    let tasks = loop {
        match engine.runtime.list_tasks().await {
            Ok(tasks) => break tasks,
            Err(err) => tracing::warn!(error = %err, "list containerd's tasks"),
        }
        tokio::time::sleep(RETRY).await;
    };
    let mut states: HashMap<String, TaskState> =
        tasks.into_iter().map(|task| (task.id, task.state)).collect();
    if boot {
        // Also of those that have ended: their last lines may not have been sent.
        for container in engine.containers.all() {
            forward::begin(engine, &container);
        }
    }
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = tokio::task::JoinSet::new();
    for container in engine.containers.all() {
        let state = states.remove(&container.id);
        let (engine, slots) = (Arc::clone(engine), Arc::clone(&slots));
        looks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            let looked = tokio::time::timeout(BUDGET, look_at(&engine, &container, state, boot)).await;
            let looked = looked.unwrap_or_else(|_| Err(Error::unavailable("it takes too long")));
            if let Err(err) = looked {
                tracing::warn!(container = %container.id, error = %err, "look at a container");
            }
        });
    }
    while looks.join_next().await.is_some() {}
    if boot {
        remove_strangers(engine).await;
        start_by_policy(engine).await;
    }
}

/// What a record and containerd together say should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// They agree.
    Agree,
    /// It runs on; the record has another word for it.
    Correct(State),
    /// It ended while nobody listened.
    Ended(u32, Option<Ended>),
    /// A start that was cut short: take it down.
    HalfStarted,
    /// A removal that was cut short: finish it.
    HalfRemoved,
}

fn compare(recorded: &State, found: Option<&TaskState>) -> Finding {
    match (recorded, found) {
        (State::Removing, _) => Finding::HalfRemoved,
        (State::Running(task) | State::Paused(task), None | Some(TaskState::Unknown)) => {
            Finding::Ended(task.pid, None)
        }
        (State::Running(task) | State::Paused(task), Some(TaskState::Stopped(ended))) => {
            Finding::Ended(task.pid, Some(*ended))
        }
        // The record says running although it was only made: the engine writes so after the start, so this cannot be ours.
        (State::Running(task) | State::Paused(task), Some(TaskState::Created { .. })) => {
            Finding::Ended(task.pid, None)
        }
        (State::Running(task), Some(TaskState::Paused { pid })) if task.pid == *pid => {
            Finding::Correct(State::Paused(task.clone()))
        }
        (State::Paused(task), Some(TaskState::Running { pid })) if task.pid == *pid => {
            Finding::Correct(State::Running(task.clone()))
        }
        (
            State::Running(task) | State::Paused(task),
            Some(TaskState::Running { pid } | TaskState::Paused { pid }),
        ) => {
            if task.pid == *pid {
                Finding::Agree
            } else {
                Finding::Ended(task.pid, None)
            }
        }
        (State::Created | State::Exited | State::Restarting | State::Dead, None) => Finding::Agree,
        (State::Created | State::Exited | State::Restarting | State::Dead, Some(_)) => Finding::HalfStarted,
    }
}

async fn look_at(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    state: Option<TaskState>,
    boot: bool,
) -> Result<()> {
    let record = container.record();
    if boot && record.pid().is_some() {
        spec::mounts::note_volumes(engine, &record);
    }
    match compare(&record.life.state, state.as_ref()) {
        Finding::Agree => {
            if boot && record.pid().is_none() && engine.networks.has_place(&container.id) {
                // Its end was cut short between the processes and the networks.
                let _turn = container.live.turn().await;
                ended::release(engine, container).await;
            } else if boot {
                take_over(engine, container, &record).await;
            }
            Ok(())
        }
        Finding::Correct(state) => {
            container
                .update(move |record| {
                    record.life.state = state;
                    Ok(())
                })
                .await?;
            take_over(engine, container, &record).await;
            Ok(())
        }
        Finding::Ended(pid, _) if !boot => look(engine, container, pid).await,
        Finding::Ended(pid, ended) => {
            // The health watcher, restart pauses and the like were never begun: only the end is to be noticed.
            ended::notice(engine, container, pid, ended.unwrap_or_else(|| last_words(engine, container, pid)))
                .await
        }
        // While the engine runs, a start in progress looks like this.
        Finding::HalfStarted if !boot => Ok(()),
        Finding::HalfStarted => {
            let _turn = container.live.turn().await;
            start::clear_leftovers(engine, &container.id).await?;
            ended::release(engine, container).await;
            Ok(())
        }
        Finding::HalfRemoved if !boot => Ok(()),
        Finding::HalfRemoved => {
            remove::remove(engine, container, remove::Options { force: true, volumes: false }).await
        }
    }
}

/// A container that ran on while the engine was away.
async fn take_over(engine: &Arc<Engine>, container: &Arc<Container>, record: &Record) {
    if record.pid().is_none() {
        return;
    }
    match engine.runtime.container_spec(&container.id).await {
        Ok(spec) => container.live.set_process(world::process_of(&spec).map(Arc::new)),
        Err(err) => tracing::warn!(container = %container.id, error = %err, "read its specification"),
    }
    health::watch(engine, container);
}

/// What the shim wrote when the run of `pid` ended; if it did not come to that, the container was killed with it.
fn last_words(engine: &Arc<Engine>, container: &Arc<Container>, pid: u32) -> Ended {
    let left = io::Streams::of_container(&engine.config, &container.id).exit_record();
    match left.filter(|left| left.pid == pid) {
        Some(left) => Ended { code: left.exit_code, at: left.exited_at },
        None => Ended { code: LOST, at: jiff::Timestamp::now() },
    }
}

/// Asks containerd what became of a container's run, and takes note of its end if it is over.
///
/// # Errors
/// containerd is away, or the record cannot be written.
pub async fn look(engine: &Arc<Engine>, container: &Arc<Container>, pid: u32) -> Result<()> {
    let found = engine.runtime.process_state(&container.id, "").await?;
    let recorded = State::Running(Task { pid });
    if let Finding::Ended(pid, ended) = compare(&recorded, found.as_ref()) {
        let ended = ended.unwrap_or_else(|| last_words(engine, container, pid));
        ended::notice(engine, container, pid, ended).await?;
    }
    Ok(())
}

/// Ends and removes what this engine once made in containerd and has no record of.
async fn remove_strangers(engine: &Arc<Engine>) {
    let mut ids: BTreeSet<String> =
        match engine.runtime.list_containers(OWNER_LABEL, &world::owner(engine)).await {
            Ok(ids) => ids.into_iter().collect(),
            Err(err) => {
                tracing::warn!(error = %err, "list containerd's containers");
                return;
            }
        };
    // A containerd of our own has nobody else's tasks, also where its record of a container is lost and with it the label.
    if engine.config.owns_containerd() {
        match engine.runtime.list_tasks().await {
            Ok(tasks) => ids.extend(tasks.into_iter().map(|task| task.id)),
            Err(err) => tracing::warn!(error = %err, "list containerd's tasks"),
        }
    }
    for id in ids {
        if engine.containers.by_id(&id).is_some() {
            continue;
        }
        tracing::warn!(container = id, "removing a container without a record");
        if let Err(err) = start::clear_leftovers(engine, &id).await {
            tracing::warn!(container = id, error = %err, "remove a container without a record");
        }
    }
    for id in engine.networks.containers().into_iter().filter(|id| engine.containers.by_id(id).is_none()) {
        if let Err(err) = engine.networks.release(&id).await {
            tracing::warn!(container = id, error = %err, "take a container without a record out of its networks");
        }
    }
    if engine.config.owns_containerd()
        && let Err(err) = remove_snapshots(engine).await
    {
        tracing::warn!(error = %err, "remove snapshots without a record");
    }
    let engine = Arc::clone(engine);
    let removed = tokio::task::spawn_blocking(move || {
        for kept in [engine.config.container_dir(""), engine.config.container_run_dir("")] {
            remove_directories(&engine, &kept);
        }
    });
    if let Err(err) = removed.await {
        tracing::warn!(error = %err, "remove directories without a record");
    }
}

/// Removes the snapshots that are named as containers' are (see [`crate::image`] and [`spec::mounts`]) and have no record, not even a damaged
/// one. Nothing else would: they are roots of containerd's garbage collection.
async fn remove_snapshots(engine: &Engine) -> Result<()> {
    let filters = ["kind==active".to_owned(), "kind==view".to_owned()];
    for snapshot in engine.runtime.snapshot_list(&filters).await? {
        let id = snapshot.name.split_once("-image-").map_or(snapshot.name.as_str(), |(id, _)| id);
        if !is_id(id) || has_record(engine, id) {
            continue;
        }
        tracing::info!(snapshot = snapshot.name, "removing a snapshot without a record");
        if let Err(err) = engine.runtime.snapshot_remove(&snapshot.name).await {
            tracing::warn!(snapshot = snapshot.name, error = %err, "snapshot not removed");
        }
    }
    Ok(())
}

/// Whether there is a record of a container, be it a damaged one.
fn has_record(engine: &Engine, id: &str) -> bool {
    !matches!(engine.store.get::<serde_json::Value>(Table::Containers, id), Ok(None))
}

/// Removes the directories in `kept` that are named as containers are and have no record. Of a damaged one only what is mounted goes.
fn remove_directories(engine: &Engine, kept: &Path) {
    for entry in std::fs::read_dir(kept).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().filter(|id| is_id(id)) else { continue };
        if engine.containers.by_id(id).is_some() {
            continue;
        }
        let path = entry.path();
        let mut removed = sys::mount::detach_below(&path);
        if !has_record(engine, id) {
            tracing::info!(path = %path.display(), "removing a directory without a record");
            removed = removed.and_then(|()| std::fs::remove_dir_all(&path));
        }
        if let Err(err) = removed {
            tracing::warn!(path = %path.display(), error = %err, "directory not removed");
        }
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Starts what a policy wants running, and removes what wanted to be removed at its end.
async fn start_by_policy(engine: &Arc<Engine>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    for container in engine.containers.all() {
        let record = container.record();
        let life = &record.life;
        let was_restarting = life.state == State::Restarting;
        let starts = match life.state {
            State::Restarting => true,
            State::Exited => ended::policy_of(&record).at_boot(
                record.manually_stopped,
                life.exit_code,
                record.restart_count,
            ),
            State::Created | State::Running(_) | State::Paused(_) | State::Removing | State::Dead => false,
        };
        if starts {
            let (engine, slots) = (Arc::clone(engine), Arc::clone(&slots));
            tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                let by = if was_restarting { By::Policy } else { By::Boot };
                if let Err(err) = start::start(&engine, &container, by).await {
                    tracing::warn!(container = %container.id, error = %err, "start by policy");
                }
            });
        } else if life.state == State::Exited && record.host_config.auto_remove {
            remove::automatic(engine, &container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn records_and_reality() {
        let task = Task { pid: 7 };
        let states = [
            State::Created,
            State::Running(task.clone()),
            State::Paused(task),
            State::Restarting,
            State::Exited,
            State::Removing,
            State::Dead,
        ];
        let ended = Ended { code: 3, at: jiff::Timestamp::UNIX_EPOCH };
        let found = [
            ("none", None),
            ("created", Some(TaskState::Created { pid: 7 })),
            ("running", Some(TaskState::Running { pid: 7 })),
            ("other", Some(TaskState::Running { pid: 8 })),
            ("paused", Some(TaskState::Paused { pid: 7 })),
            ("stopped", Some(TaskState::Stopped(ended))),
            ("unknown", Some(TaskState::Unknown)),
        ];
        let mut table = String::new();
        for state in &states {
            for (name, found) in &found {
                let finding = match compare(state, found.as_ref()) {
                    Finding::Agree => "agree".to_owned(),
                    Finding::Correct(state) => format!("is {}", state.word()),
                    Finding::Ended(_, Some(_)) => "ended, known how".to_owned(),
                    Finding::Ended(_, None) => "ended".to_owned(),
                    Finding::HalfStarted => "undo".to_owned(),
                    Finding::HalfRemoved => "go on removing".to_owned(),
                };
                table.push_str(&format!("{} / {name}: {finding}\n", state.word()));
            }
        }
        expect![[r#"
            created / none: agree
            created / created: undo
            created / running: undo
            created / other: undo
            created / paused: undo
            created / stopped: undo
            created / unknown: undo
            running / none: ended
            running / created: ended
            running / running: agree
            running / other: ended
            running / paused: is paused
            running / stopped: ended, known how
            running / unknown: ended
            paused / none: ended
            paused / created: ended
            paused / running: is running
            paused / other: ended
            paused / paused: agree
            paused / stopped: ended, known how
            paused / unknown: ended
            restarting / none: agree
            restarting / created: undo
            restarting / running: undo
            restarting / other: undo
            restarting / paused: undo
            restarting / stopped: undo
            restarting / unknown: undo
            exited / none: agree
            exited / created: undo
            exited / running: undo
            exited / other: undo
            exited / paused: undo
            exited / stopped: undo
            exited / unknown: undo
            removing / none: go on removing
            removing / created: go on removing
            removing / running: go on removing
            removing / other: go on removing
            removing / paused: go on removing
            removing / stopped: go on removing
            removing / unknown: go on removing
            dead / none: agree
            dead / created: undo
            dead / running: undo
            dead / other: undo
            dead / paused: undo
            dead / stopped: undo
            dead / unknown: undo
        "#]]
        .assert_eq(&table);
    }
}
