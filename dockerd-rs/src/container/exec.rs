//! More processes in a running container: `docker exec`, and health checks.
//!
//! Execs live in memory only, as in Docker: one that ends after the engine was restarted is cleared away, and its id is unknown. An exec's
//! end is noticed from containerd's event; where that is lost, from the look that whoever waits for it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::io::{Streams, Wanted};
use super::life::{decide, failure};
use super::world;
use super::{Container, Record};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::runtime::tasks::{Ended, TaskState};

/// How long an ended exec can still be inspected.
const KEPT: Duration = Duration::from_secs(300);
/// How long whoever waits for an end waits for the word of it before asking.
const WORD: Duration = Duration::from_secs(2);

/// What a client asked to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecConfig {
    /// The program and its arguments.
    pub cmd: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Height and width of the terminal.
    pub console_size: Option<(u64, u64)>,
    /// Whether a client sends to it.
    pub stdin: bool,
    /// Whether a client hears its output.
    pub stdout: bool,
    /// Whether a client hears its errors.
    pub stderr: bool,
    /// The keys that detach, as given.
    pub detach_keys: String,
    /// `NAME=value`, over the container's.
    pub env: Vec<String>,
    /// `user[:group]`; empty is the container's.
    pub user: String,
    /// Where it starts; empty is the container's.
    pub working_dir: String,
    /// With all capabilities.
    pub privileged: bool,
}

/// Where an exec is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecState {
    /// Not started.
    Created,
    /// Being started.
    Starting,
    /// Running.
    Running {
        /// Its process, in the host's numbers.
        pid: u32,
    },
    /// Ended, or never came to run.
    Ended {
        /// Its process; 0 when there was none.
        pid: u32,
        /// As a shell gives it.
        code: i32,
    },
}

/// One exec.
pub struct Exec {
    /// 64 hex digits.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// What to run.
    pub config: ExecConfig,
    state: watch::Sender<ExecState>,
    taken: AtomicBool,
    size: std::sync::Mutex<Option<(u64, u64)>>,
    ended_at: std::sync::OnceLock<Instant>,
}

impl Exec {
    /// Where it is now.
    pub fn state(&self) -> ExecState {
        *self.state.borrow()
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        matches!(self.state(), ExecState::Ended { .. })
    }

    /// The terminal's height and width, when they are told only at the start.
    pub fn set_console_size(&self, height: u64, width: u64) {
        *self.size.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((height, width));
    }

    fn console_size(&self) -> Option<(u64, u64)> {
        let told = *self.size.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        told.or(self.config.console_size).filter(|_| self.config.tty)
    }

    /// The command line as events show it.
    pub fn shown(&self) -> String {
        self.config.cmd.join(" ")
    }

    fn end(&self, pid: u32, code: i32) -> bool {
        let changed = self.state.send_if_modified(|state| {
            let changed = !matches!(state, ExecState::Ended { .. });
            if changed {
                *state = ExecState::Ended { pid, code };
            }
            changed
        });
        if changed {
            let _ = self.ended_at.set(Instant::now());
        }
        changed
    }

    fn is_stale(&self) -> bool {
        self.ended_at.get().is_some_and(|at| at.elapsed() > KEPT)
    }
}

/// Makes an exec's record.
///
/// # Errors
/// Nothing to run, the container does not run, or the user is unknown.
pub async fn create(engine: &Arc<Engine>, shown: &str, config: ExecConfig) -> Result<Arc<Exec>> {
    if config.cmd.is_empty() {
        return Err(Error::invalid("No exec command specified"));
    }
    let container = engine.containers.get(shown)?;
    let record = container.settled().await;
    decide::exec(&record.life.state, &container.id, shown).proceed()?;
    if !config.user.is_empty() {
        let looked_up = world::exec_user(engine, &record, &config.user).await;
        looked_up.map_err(|err| Error::invalid(err.message()))?;
    }
    Ok(register(engine, &container, config))
}

/// Makes an exec known and says so.
pub fn register(engine: &Arc<Engine>, container: &Arc<Container>, config: ExecConfig) -> Arc<Exec> {
    let exec = Arc::new(Exec {
        id: new_id(),
        container: container.id.clone(),
        config,
        state: watch::Sender::new(ExecState::Created),
        taken: AtomicBool::new(false),
        size: std::sync::Mutex::default(),
        ended_at: std::sync::OnceLock::new(),
    });
    engine.containers.shared.execs(|execs| {
        execs.retain(|_, exec| !exec.is_stale());
        execs.insert(exec.id.clone(), Arc::clone(&exec))
    });
    container.live.execs(|execs| {
        execs.retain(|_, exec| !exec.is_stale());
        execs.insert(exec.id.clone(), Arc::clone(&exec))
    });
    container.publish(engine, format!("exec_create: {}", exec.shown()), &[("execID", &exec.id)]);
    exec
}

/// The exec with this id, and its container.
///
/// # Errors
/// There is none (any more).
pub fn find(engine: &Arc<Engine>, id: &str) -> Result<(Arc<Exec>, Arc<Container>)> {
    let missing = || Error::not_found(format!("No such exec instance: {id}"));
    let exec = engine.containers.shared.execs(|execs| execs.get(id).cloned()).ok_or_else(missing)?;
    let container = engine.containers.by_id(&exec.container).ok_or_else(missing)?;
    Ok((exec, container))
}

/// Takes the one right to start an exec.
///
/// # Errors
/// Somebody had it before.
pub fn claim(exec: &Exec) -> Result<()> {
    if exec.taken.swap(true, Ordering::SeqCst) {
        return Err(Error::conflict(format!("exec command {} has already run", exec.id)));
    }
    Ok(())
}

/// Starts a claimed exec. With `wanted`, gives the client's connection, made before the first instruction.
///
/// # Errors
/// The runtime's; the exec then has ended with the code that goes with it.
pub async fn start(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    exec: &Arc<Exec>,
    wanted: Option<Wanted>,
) -> Result<Option<UnixStream>> {
    let (engine, container, exec) = (Arc::clone(engine), Arc::clone(container), Arc::clone(exec));
    super::life::to_the_end(async move {
        exec.state.send_replace(ExecState::Starting);
        container.publish(&engine, format!("exec_start: {}", exec.shown()), &[("execID", &exec.id)]);
        match bring_up(&engine, &container, &exec, wanted).await {
            Ok(stream) => Ok(stream),
            Err(err) => {
                let (code, err) = failure::of_runtime(&failure::exec_text(&err));
                exec.end(0, code);
                Streams::of_exec(&engine.config, &container.id, &exec.id).remove();
                Err(err)
            }
        }
    })
    .await
}

async fn bring_up(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    exec: &Arc<Exec>,
    wanted: Option<Wanted>,
) -> Result<Option<UnixStream>> {
    let record = container.record();
    let process = process_spec(engine, container, &record, exec).await?;
    let streams = Streams::of_exec(&engine.config, &container.id, &exec.id);
    let stdout = streams.ask_for_exec(exec.config.stdin && wanted.is_some_and(|wanted| wanted.stdin))?;
    engine.runtime.create_exec(&container.id, &exec.id, process, stdout, exec.config.tty).await?;
    let started = async {
        let stream = match wanted {
            Some(wanted) => Some(streams.attach(wanted).await?),
            None => None,
        };
        let pid = engine.runtime.start_process(&container.id, &exec.id).await?;
        Ok((stream, pid))
    };
    match started.await {
        Ok((stream, pid)) => {
            exec.state.send_if_modified(|state| {
                // It may have ended already.
                let running = *state == ExecState::Starting;
                if running {
                    *state = ExecState::Running { pid };
                }
                running
            });
            Ok(stream)
        }
        Err(err) => {
            let _ = engine.runtime.delete_process(&container.id, &exec.id).await;
            Err(err)
        }
    }
}

/// Takes note that a process of a container ended that is not its own. One we know nothing of is cleared away all the same.
pub async fn notice_end(engine: &Arc<Engine>, container: &Arc<Container>, id: &str, pid: u32, ended: Ended) {
    let known = container.live.execs(|execs| execs.get(id).cloned());
    let code = i32::try_from(ended.code).unwrap_or(i32::MAX);
    if let Some(exec) = known
        && exec.end(pid, code)
    {
        let code = code.to_string();
        container.publish(engine, "exec_die", &[("execID", id), ("exitCode", &code)]);
    }
    if let Err(err) = engine.runtime.delete_process(&container.id, id).await {
        tracing::debug!(container = %container.id, exec = id, error = %err, "clear an ended exec");
    }
    Streams::of_exec(&engine.config, &container.id, id).remove();
}

/// Waits until the exec has ended; gives its code.
pub async fn wait(engine: &Arc<Engine>, container: &Arc<Container>, exec: &Arc<Exec>) -> i32 {
    let mut states = exec.state.subscribe();
    loop {
        let over = states.wait_for(|state| matches!(state, ExecState::Ended { .. }));
        if let Ok(Ok(state)) = tokio::time::timeout(WORD, over).await {
            return match *state {
                ExecState::Ended { code, .. } => code,
                ExecState::Created | ExecState::Starting | ExecState::Running { .. } => 0,
            };
        }
        let ExecState::Running { pid } = exec.state() else { continue };
        match engine.runtime.process_state(&container.id, &exec.id).await {
            Ok(Some(TaskState::Stopped(ended))) => {
                notice_end(engine, container, &exec.id, pid, ended).await;
            }
            Ok(None) => {
                // Nobody can say how it ended.
                let ended = Ended { code: 137, at: jiff::Timestamp::now() };
                notice_end(engine, container, &exec.id, pid, ended).await;
            }
            _ => {}
        }
    }
}

/// The container ended: so did everything in it, and its execs are unknown from now on.
pub fn container_ended(engine: &Arc<Engine>, container: &Arc<Container>) {
    let execs = container.live.execs(std::mem::take);
    engine.containers.shared.execs(|all| all.retain(|id, _| !execs.contains_key(id)));
    for exec in execs.values() {
        if let ExecState::Running { pid } = exec.state()
            && exec.end(pid, 137)
        {
            container.publish(engine, "exec_die", &[("execID", &exec.id), ("exitCode", "137")]);
        }
        exec.end(0, 137);
        Streams::of_exec(&engine.config, &container.id, &exec.id).remove();
    }
}

/// Gives an exec's terminal another size.
///
/// # Errors
/// It does not run.
pub async fn resize(engine: &Arc<Engine>, exec: &Arc<Exec>, width: u32, height: u32) -> Result<()> {
    match exec.state() {
        ExecState::Created | ExecState::Ended { .. } => Err(Error::invalid("exec process is not started")),
        ExecState::Starting | ExecState::Running { .. } => {
            let mut states = exec.state.subscribe();
            let started = states.wait_for(|state| *state != ExecState::Starting);
            // Docker waits as long for a process that is being started.
            if tokio::time::timeout(Duration::from_secs(10), started).await.is_err() {
                return Err(Error::system("timeout waiting for exec session ready"));
            }
            match engine.runtime.resize(&exec.container, &exec.id, width, height).await {
                Err(err) if exec.config.tty && err.kind() != Kind::NotFound => Err(err),
                _ => Ok(()),
            }
        }
    }
}

/// The process specification of an exec: the container's own with what the client asked for in it.
async fn process_spec(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    record: &Arc<Record>,
    exec: &Exec,
) -> Result<Vec<u8>> {
    let config = &exec.config;
    let process = match container.live.process() {
        Some(process) => process,
        None => {
            let spec = engine.runtime.container_spec(&container.id).await?;
            let process = world::process_of(&spec)
                .map(Arc::new)
                .ok_or_else(|| Error::system(format!("container {} has no process", container.id)))?;
            container.live.set_process(Some(Arc::clone(&process)));
            process
        }
    };
    let mut process = Value::clone(&process);
    let Some(fields) = process.as_object_mut() else {
        return Err(Error::system("the container's process is no object"));
    };
    fields.insert("args".into(), json!(config.cmd));
    fields.insert("terminal".into(), json!(config.tty));
    fields.remove("consoleSize");
    if let Some((height, width)) = exec.console_size() {
        fields.insert("consoleSize".into(), json!({ "height": height, "width": width }));
    }
    if !config.working_dir.is_empty() {
        fields.insert("cwd".into(), json!(config.working_dir));
    }
    let own: Vec<String> = fields
        .get("env")
        .and_then(Value::as_array)
        .map(|env| env.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    fields.insert("env".into(), json!(merge_env(own, config)));
    if !config.user.is_empty() {
        let user = world::exec_user(engine, record, &config.user).await?;
        fields.insert("user".into(), user);
    }
    if config.privileged {
        let all = json!(world::all_capabilities());
        let sets = json!({ "bounding": all, "effective": all, "permitted": all });
        fields.insert("capabilities".into(), sets);
    }
    serde_json::to_vec(&process).map_err(|err| Error::system(err.to_string()))
}

/// The container's variables with the client's over them; a name without a value takes one away. A terminal gets `TERM`.
fn merge_env(mut env: Vec<String>, config: &ExecConfig) -> Vec<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    if config.tty && !env.iter().any(|pair| name(pair) == "TERM") {
        env.push("TERM=xterm".into());
    }
    for new in &config.env {
        let key = name(new);
        if new.contains('=') {
            match env.iter_mut().find(|pair| name(pair) == key) {
                Some(pair) => pair.clone_from(new),
                None => env.push(new.clone()),
            }
        } else {
            env.retain(|pair| name(pair) != key);
        }
    }
    env
}

fn new_id() -> String {
    let mut bytes = [0; 32];
    // The kernel's source is there once the system has booted.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_added_and_taken_away() {
        let config = ExecConfig {
            tty: true,
            env: vec!["A=2".into(), "B".into(), "D=4".into()],
            ..ExecConfig::default()
        };
        let merged = merge_env(vec!["A=1".into(), "B=1".into(), "C=1".into()], &config);
        assert_eq!(merged, ["A=2", "C=1", "TERM=xterm", "D=4"]);
    }

    #[test]
    fn an_exec_is_started_once_and_ends_once() {
        let exec = Exec {
            id: "e".into(),
            container: "c".into(),
            config: ExecConfig::default(),
            state: watch::Sender::new(ExecState::Created),
            taken: AtomicBool::new(false),
            size: std::sync::Mutex::default(),
            ended_at: std::sync::OnceLock::new(),
        };
        assert!(claim(&exec).is_ok());
        assert_eq!(claim(&exec).unwrap_err().message(), "exec command e has already run");
        assert!(exec.end(5, 3) && !exec.end(5, 4));
        assert_eq!(exec.state(), ExecState::Ended { pid: 5, code: 3 });
        assert!(!exec.is_stale());
    }
}
