//! One container: its bundle, runtime, init and execs, and what leads from one state to the next.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use shim_api::runc_options::Options;
use shim_api::{events as wire, topic};
use sys::cgroup::Groups;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::process::{Live, Process, State};
use super::{INIT_PID_FILE, Shim};
use crate::bundle::{self, Spec};
use crate::children::Exit;
use crate::enter::{Ends, Entrance};
use crate::runc::{Launch, Runc, RuncError, Streams};
use crate::stdio::console::Console;

/// How long the exits of execs that died with init are waited for, so that they are told first.
const EXECS_FIRST: Duration = Duration::from_secs(5);

/// How long the processes of a container may take to stand still.
const FREEZING: Duration = Duration::from_secs(10);
/// How long the kernel is left to freeze them before it is asked anew.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until a group that was asked to is frozen or thawed.
async fn settle(groups: &Groups, frozen: bool) -> std::io::Result<()> {
    let began = std::time::Instant::now();
    let mut asked = began;
    while groups.is_frozen()? != frozen {
        if began.elapsed() > FREEZING {
            groups.set_frozen(false)?;
            return Err(std::io::Error::other("unable to freeze: a process does not stand still"));
        }
        if asked.elapsed() > ASK_AGAIN {
            // Version 1: one that was being made while the others froze may hold them up for ever.
            groups.set_frozen(!frozen)?;
            groups.set_frozen(frozen)?;
            asked = std::time::Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its runtime.
    pub runc: Runc,
    /// What the request says about the runtime.
    pub options: Options,
    /// What its specification says.
    pub spec: Spec,
    /// Its first process.
    pub init: Rc<Process>,
    /// The others, by id.
    pub execs: RefCell<BTreeMap<String, Rc<Process>>>,
    groups: RefCell<Option<Groups>>,
    oom_watch: RefCell<Option<JoinHandle<()>>>,
    oom_told: Cell<u64>,
    tokens: Cell<u64>,
    entrance: RefCell<Rc<Entrance>>,
}

impl Container {
    /// One whose init is yet to be made.
    pub fn new(
        id: &str,
        bundle: PathBuf,
        runc: Runc,
        options: Options,
        spec: Spec,
        init: Process,
    ) -> Container {
        Container {
            id: id.to_owned(),
            bundle,
            runc,
            options,
            spec,
            init: Rc::new(init),
            execs: RefCell::default(),
            groups: RefCell::default(),
            oom_watch: RefCell::default(),
            oom_told: Cell::new(0),
            tokens: Cell::new(0),
            entrance: RefCell::default(),
        }
    }

    /// The root file system's mount point.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Its control groups, once it has some.
    pub fn groups(&self) -> Option<Groups> {
        self.groups.borrow().clone()
    }

    /// Where criu may work: the caller's directory, or one of ours that goes with the bundle.
    pub fn work_directory(&self) -> PathBuf {
        match self.options.criu_work_path.as_str() {
            "" => self.bundle.join("criu-work"),
            path => PathBuf::from(path),
        }
    }

    /// Has the runtime make init, which then waits for the start.
    pub async fn create(self: &Rc<Self>, shim: &Rc<Shim>) -> Result<i32, String> {
        let options = &self.options;
        let run = async |launch: Launch<'_>| {
            self.runc.create(&self.id, launch, options.no_pivot_root, options.no_new_keyring).await
        };
        self.runc.clear_left(&self.id).await;
        let made = self.launch(shim, &self.init, &self.bundle.join(INIT_PID_FILE), run).await;
        if made.as_ref().is_err_and(RuncError::was_cut_short) {
            self.undo_create().await;
        }
        let (live, ended) = made.map_err(|err| err.told_as("OCI runtime create failed"))?;
        let pid = live.pid;
        if self.runc.runs_plain_processes() {
            *self.entrance.borrow_mut() =
                Rc::new(Entrance::of(&self.spec, pid, !self.options.no_new_keyring));
        }
        self.init.set_state(State::Created(live));
        self.watch_memory(shim, pid);
        self.watch_exit(shim, &self.init, pid, ended);
        Ok(pid)
    }

    /// Takes down what a runtime left that did not come to its own end: there may be a container all the same, or a process that is still to become one
    /// and goes on mounting.
    async fn undo_create(&self) {
        let _ = self.runc.delete(&self.id, true).await;
        let (bundle, id) = (self.bundle.clone(), self.id.clone());
        let _ = tokio::task::spawn_blocking(move || crate::cleanup::remove_cgroups(&bundle, &id)).await;
        self.runc.clear_left(&self.id).await;
    }

    /// Freezes or thaws all its processes: the group itself, where containers are plain processes; else the runtime does it.
    pub async fn freeze(&self, frozen: bool) -> Result<(), String> {
        let operation = if frozen { "OCI runtime pause failed" } else { "OCI runtime resume failed" };
        let groups = self.groups().filter(|_| self.runc.runs_plain_processes());
        if let Some(groups) = groups
            && groups.set_frozen(frozen).is_ok()
        {
            return settle(&groups, frozen).await.map_err(|err| format!("{operation}: {err}"));
        }
        self.runc.freeze(&self.id, frozen).await.map_err(|err| err.told_as(operation))
    }

    /// Starts init, or restores it.
    pub async fn start_init(self: &Rc<Self>, shim: &Rc<Shim>) -> Result<i32, String> {
        let (live, restored) = match (self.init.state(), self.init.checkpoint.as_deref()) {
            (State::Created(live), _) => {
                self.runc.start(&self.id).await.map_err(|err| err.told_as("OCI runtime start failed"))?;
                (live, None)
            }
            (State::Added, Some(image)) => {
                let work = self.work_directory();
                let run = async |launch: Launch<'_>| {
                    self.runc.restore(&self.id, launch, image, &work, self.options.no_pivot_root).await
                };
                let made = self.launch(shim, &self.init, &self.bundle.join(INIT_PID_FILE), run).await;
                let (live, ended) = made.map_err(|err| err.told_as("OCI runtime restore failed"))?;
                (live, Some(ended))
            }
            (State::Added, None) => return Err("cannot start a process that was not created".into()),
            (other, _) => return Err(format!("cannot start a {} process", other.word())),
        };
        let pid = live.pid;
        self.init.set_state(State::Running(live));
        if let Some(ended) = restored {
            self.watch_memory(shim, pid);
            self.watch_exit(shim, &self.init, pid, ended);
        }
        Ok(pid)
    }

    /// Starts an exec.
    pub async fn start_exec(self: &Rc<Self>, shim: &Rc<Shim>, process: &Rc<Process>) -> Result<i32, String> {
        if !matches!(process.state(), State::Added) {
            return Err(format!("cannot start a {} process", process.state().word()));
        }
        match self.init.state() {
            State::Paused(_) => return Err("cannot exec in a paused state".into()),
            State::Stopped { .. } => return Err("cannot exec in a stopped state".into()),
            State::Added | State::Created(_) | State::Running(_) => {}
        }
        // Named by a number of ours: the exec's id is the caller's and may be anything.
        let token = self.token();
        let description = self.bundle.join(format!("exec-{token}.json"));
        let pid_file = self.bundle.join(format!("exec-{token}.pid"));
        std::fs::write(&description, &process.description)
            .map_err(|err| format!("write process description: {err}"))?;
        let entrance = self.entrance.borrow().clone();
        let init = self.init.state().pid();
        let run = async |launch: Launch<'_>| {
            if let Streams::Given { stdin, stdout, stderr } = &launch.streams
                && entrance.is_open()
            {
                let ends = Ends { stdin, stdout, stderr };
                let container = (self.id.as_str(), init);
                match entrance.run(&shim.children, container, &description, launch.pid_file, ends).await {
                    Ok(()) => return Ok(()),
                    // The runtime does it, or says why it cannot be done.
                    Err(err) => shim.log.debug(|| format!("enter {}: {}", self.id, crate::chain(&err))),
                }
            }
            self.runc.exec(&self.id, launch, &description).await
        };
        let made = self.launch(shim, process, &pid_file, run).await;
        let _ = std::fs::remove_file(&description);
        let _ = std::fs::remove_file(&pid_file);
        let (live, ended) = made.map_err(|err| err.told_as("OCI runtime exec failed"))?;
        let pid = live.pid;
        process.set_state(State::Running(live));
        self.watch_exit(shim, process, pid, ended);
        Ok(pid)
    }

    /// Runs the runtime so that it leaves a process as our child, and takes that over: pid, terminal, exit.
    async fn launch(
        &self,
        shim: &Shim,
        process: &Process,
        pid_file: &Path,
        run: impl AsyncFnOnce(Launch<'_>) -> Result<(), RuncError>,
    ) -> Result<(Live, oneshot::Receiver<Exit>), RuncError> {
        let failed = |what: &str, err: std::io::Error| RuncError::NoPid(format!("{what}: {err}"));
        let console = match process.terminal {
            true => Some(
                Console::listen(&self.bundle, self.token()).map_err(|err| failed("console socket", err))?,
            ),
            false => None,
        };
        let ends = process.take_ends();
        let streams = match process.terminal {
            true => Streams::Captured,
            false => Streams::Given { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr },
        };
        let expecting = shim.children.expect();
        let console_socket = console.as_ref().map(|console| console.path.as_path());
        run(Launch { pid_file, console_socket, streams }).await?;
        let pid = bundle::read_pid(pid_file)
            .map_err(|err| failed("failed to retrieve OCI runtime container pid", err))?;
        let (handle, ended) = expecting.adopt(pid);
        if let Some(console) = console {
            let master =
                console.master().await.map_err(|err| failed("failed to retrieve console master", err))?;
            if let Some(stdio) = process.stdio() {
                stdio.terminal(master).map_err(|err| failed("failed to start console copy", err))?;
            }
        }
        if let Some(stdio) = process.stdio() {
            stdio.begin();
        }
        Ok((Live { pid, handle: handle.map(Rc::new) }, ended))
    }

    fn token(&self) -> u64 {
        let token = self.tokens.get();
        self.tokens.set(token + 1);
        token
    }

    /// Finds init's control groups and watches for the out-of-memory killer.
    fn watch_memory(self: &Rc<Self>, shim: &Rc<Shim>, pid: i32) {
        // Init may be gone already; then there is nothing to watch.
        let Ok(groups) = Groups::of(pid) else { return };
        *self.groups.borrow_mut() = Some(groups.clone());
        let (container, shim) = (Rc::downgrade(self), Rc::downgrade(shim));
        let watch = crate::oom::watch(
            &groups,
            Rc::new(move |count| {
                if let (Some(container), Some(shim)) = (container.upgrade(), shim.upgrade()) {
                    container.tell_oom(&shim, count);
                }
            }),
        );
        *self.oom_watch.borrow_mut() = watch;
    }

    /// Publishes an out-of-memory event for kills not yet told.
    fn tell_oom(&self, shim: &Shim, count: u64) {
        if count > self.oom_told.get() {
            self.oom_told.set(count);
            shim.events.publish(topic::TASK_OOM, &wire::TaskOom { container_id: self.id.clone() });
        }
    }

    /// Sees a process to its end: drain, record, state, event, in this order.
    fn watch_exit(
        self: &Rc<Self>,
        shim: &Rc<Shim>,
        process: &Rc<Process>,
        pid: i32,
        ended: oneshot::Receiver<Exit>,
    ) {
        let (container, shim, process) = (self.clone(), shim.clone(), process.clone());
        tokio::task::spawn_local(async move {
            let Ok(exit) = ended.await else { return };
            container.settle(&shim, &process, pid, exit).await;
        });
    }

    async fn settle(&self, shim: &Shim, process: &Process, pid: i32, exit: Exit) {
        let is_init = process.exec.is_empty();
        let mut oom_kills = 0;
        if is_init {
            if let Some(watch) = self.oom_watch.borrow_mut().take() {
                watch.abort();
            }
            oom_kills = self.groups().map_or(0, |groups| groups.oom_kills());
            if !self.spec.has_own_pids {
                // Without a pid namespace nothing else ends what init left behind.
                if let Err(err) = self.runc.kill(&self.id, libc::SIGKILL as u32, true).await {
                    shim.log.debug(|| format!("kill what is left of {}: {err}", self.id));
                }
            }
            let _ = tokio::time::timeout(EXECS_FIRST, self.execs_ended()).await;
        }
        if let Some(stdio) = process.stdio()
            && let Err(err) = stdio.ended(pid, exit, oom_kills > 0).await
        {
            shim.log.error(&format!("exit record of {}: {err}", self.id));
        }
        // A start that is still under way has its event to publish first.
        let _turn = process.turn.lock().await;
        self.tell_oom(shim, oom_kills);
        process.stopped(pid, exit);
        shim.events.publish(
            topic::TASK_EXIT,
            &wire::TaskExit {
                container_id: self.id.clone(),
                id: if is_init { self.id.clone() } else { process.exec.clone() },
                pid: pid as u32,
                exit_status: exit.how.shell_code(),
                exited_at: Some(exit.at.timestamp()),
            },
        );
    }

    /// Resolves when no exec runs any more.
    async fn execs_ended(&self) {
        let running: Vec<_> =
            self.execs.borrow().values().filter(|exec| exec.state().live().is_some()).cloned().collect();
        for exec in running {
            exec.wait().await;
        }
    }
}
