//! The end of a container's run: cleaning up, writing down how it ended, and what its policy makes of it.
//!
//! Invariant: one run has one end. Whoever learns of it comes here; who comes second finds no task in the record and leaves.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{Policy, Run};
use crate::container::record::{Record, State};
use crate::container::{Container, io::Streams, remove, start};
use crate::engine::Engine;
use crate::error::Result;
use crate::runtime::tasks::Ended;

/// Why a run ended whose shim left no record of its end.
const SHIM_DIED: &str = "the container's shim died, and its processes with it";

/// Takes note that the run whose first process was `pid` ended. Returns when everything that follows at once is done.
///
/// # Errors
/// The record cannot be written.
pub async fn notice(engine: &Arc<Engine>, container: &Arc<Container>, pid: u32, ended: Ended) -> Result<()> {
    let turn = container.live.turn().await;
    let record = container.record();
    // A pid may come again in a later run, but not while that run's own end is still to be noticed.
    if record.pid() != Some(pid) {
        return Ok(());
    }
    let left =
        Streams::of_container(&engine.config, &container.id).exit_record().filter(|left| left.pid == pid);
    let oom = record.life.oom_killed || left.as_ref().is_some_and(|left| left.oom_killed);
    let missed_oom = oom && !record.life.oom_killed;
    // The shim's own words are first hand: what containerd lost on the way is in them.
    let (code, at) = left.as_ref().map_or((ended.code, ended.at), |left| (left.exit_code, left.exited_at));
    let code = i32::try_from(code).unwrap_or(i32::MAX);
    // The shim leaves a record of every end it sees.
    let error = if left.is_some() { "" } else { SHIM_DIED };

    container.live.set_health(None);
    container.live.set_process(None);
    crate::container::exec::container_ended(engine, container);
    release(engine, container).await;

    let lasted = record
        .life
        .started_at
        .map_or(Duration::ZERO, |started| Duration::try_from(at.duration_since(started)).unwrap_or_default());
    let run = Run {
        code,
        lasted,
        manually_stopped: record.manually_stopped,
        cancelled: container.live.policy_cancelled() || container.live.is_removing(),
        restarts: record.restart_count,
    };
    let pause = container.live.backoff(|backoff| backoff.after(policy_of(&record), run));
    container
        .update(move |record| {
            record.life.exit_code = code;
            record.life.error = error.to_owned();
            record.life.oom_killed = oom;
            record.life.finished_at = Some(at);
            record.life.state = if pause.is_some() { State::Restarting } else { State::Exited };
            record.restart_count += u32::from(pause.is_some());
            if let Some(health) = &mut record.health
                && pause.is_none()
            {
                health.status = "unhealthy".into();
            }
            Ok(())
        })
        .await?;
    if missed_oom {
        container.publish_late(engine, "oom", &[], at);
    }
    if let Some(left) = &left {
        log_dropped(engine, container, left.log_dropped, "the log could not be written");
    }
    if container.live.is_stopping() {
        container.publish(engine, "stop", &[]);
    }
    let (code_text, seconds) = (code.to_string(), lasted.as_secs().to_string());
    let attributes = [("exitCode", code_text.as_str()), ("execDuration", &seconds)];
    container.publish_late(engine, "die", &attributes, at);
    tracing::info!(container = %container.id, code, "exited");
    container.live.ended(code);
    drop(turn);

    match pause {
        Some(pause) => start::later(engine, container, pause),
        None if record.host_config.auto_remove && !container.live.is_held() => {
            remove::automatic(engine, container)
        }
        None => {}
    }
    Ok(())
}

/// Takes down what a run had beside its processes: its task and record in containerd, its place in the networks. Nothing here fails the end:
/// what cannot be taken down now is found by the next look.
pub async fn release(engine: &Arc<Engine>, container: &Arc<Container>) {
    let clear = async {
        if let Err(err) = clear_runtime(engine, &container.id).await {
            tracing::warn!(container = %container.id, error = %err, "clear containerd's task");
        }
    };
    let leave = crate::container::world::leave_networks(engine, container);
    tokio::join!(clear, leave);
    crate::container::world::unmount(engine, container).await;
}

/// Removes containerd's task and record of a container whose processes are over.
///
/// # Errors
/// containerd is away, or processes still run.
pub async fn clear_runtime(engine: &Arc<Engine>, id: &str) -> Result<()> {
    engine.runtime.delete_task(id).await?;
    engine.runtime.delete_container(id).await
}

/// The policy a container has now.
pub fn policy_of(record: &Record) -> Policy {
    let policy = &record.host_config.restart_policy;
    Policy::named(&policy.name, policy.maximum_retry_count)
}

/// Tells of log lines that could not be written, `lines` of them since the run began. Each number is told once, whoever brings it.
pub fn log_dropped(engine: &Engine, container: &Container, lines: u64, reason: &str) {
    if !container.live.log_dropped(lines) {
        return;
    }
    tracing::warn!(container = %container.id, lines, reason, "log lines dropped");
    container.publish(engine, "log_dropped", &[("lines", &lines.to_string()), ("reason", reason)]);
}

/// Takes note that the kernel killed a process of the container for want of memory.
///
/// # Errors
/// The record cannot be written.
pub async fn oom(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    if container.record().pid().is_none() {
        return Ok(());
    }
    container
        .update(|record| {
            record.life.oom_killed = true;
            Ok(())
        })
        .await?;
    container.publish(engine, "oom", &[]);
    Ok(())
}
