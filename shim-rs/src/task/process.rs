//! One process: init or an exec. Its state, its streams and its end.
//!
//! ```text
//! Added ──► Created ──► Running ◄──► Paused
//!   │          └───────────┴────────────┴──► Stopped
//!   └─ (an exec goes straight to Running)
//! ```

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use shim_api::task_types::Status as WireStatus;
use sys::pidfd::PidFd;
use tokio::sync::{Mutex, watch};

use crate::children::Exit;
use crate::stdio::{ProcessEnds, Stdio};

/// A process that exists.
#[derive(Clone)]
pub struct Live {
    /// Its number.
    pub pid: i32,
    /// It itself; absent if it had ended before it could be held.
    pub handle: Option<Rc<PidFd>>,
}

/// Where a process is in its life.
#[derive(Clone)]
pub enum State {
    /// Asked for; nothing exists yet. Of an exec, or of an init that is to be restored from a checkpoint.
    Added,
    /// The runtime made it; it waits for the start.
    Created(Live),
    /// It runs.
    Running(Live),
    /// It is frozen.
    Paused(Live),
    /// It has ended and everyone may know.
    Stopped {
        /// What its number was; 0 if it never had one.
        pid: i32,
        /// How and when.
        exit: Exit,
    },
}

impl State {
    /// The pid, 0 before there is one.
    pub fn pid(&self) -> i32 {
        match self {
            State::Added => 0,
            State::Created(live) | State::Running(live) | State::Paused(live) => live.pid,
            State::Stopped { pid, .. } => *pid,
        }
    }

    /// The process, while it exists.
    pub fn live(&self) -> Option<&Live> {
        match self {
            State::Created(live) | State::Running(live) | State::Paused(live) => Some(live),
            State::Added | State::Stopped { .. } => None,
        }
    }

    /// As the API shows it.
    pub fn status(&self) -> WireStatus {
        match self {
            State::Added | State::Created(_) => WireStatus::Created,
            State::Running(_) => WireStatus::Running,
            State::Paused(_) => WireStatus::Paused,
            State::Stopped { .. } => WireStatus::Stopped,
        }
    }

    /// The word for it in errors.
    pub fn word(&self) -> &'static str {
        match self {
            State::Added | State::Created(_) => "created",
            State::Running(_) => "running",
            State::Paused(_) => "paused",
            State::Stopped { .. } => "stopped",
        }
    }
}

/// The strings of the request, for State.
#[derive(Debug, Clone, Default)]
pub struct Urls {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A process and those who wait for it.
pub struct Process {
    /// The exec's id, empty for init.
    pub exec: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The streams' names.
    pub urls: Urls,
    /// What changes its state takes turns. Reading the state needs none.
    pub turn: Mutex<()>,
    /// An exec's process description, as the runtime wants it.
    pub description: Vec<u8>,
    /// An init's checkpoint to start from.
    pub checkpoint: Option<PathBuf>,
    state: RefCell<State>,
    stdio: RefCell<Option<Rc<Stdio>>>,
    ends: RefCell<ProcessEnds>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// One that is [`State::Added`].
    pub fn new(
        exec: &str,
        terminal: bool,
        urls: Urls,
        description: Vec<u8>,
        checkpoint: Option<PathBuf>,
    ) -> Process {
        Process {
            exec: exec.to_owned(),
            terminal,
            urls,
            turn: Mutex::new(()),
            description,
            checkpoint,
            state: RefCell::new(State::Added),
            stdio: RefCell::new(None),
            ends: RefCell::default(),
            exit: watch::channel(None).0,
        }
    }

    /// A copy of the state as it is now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Changes the state; to be called in one's [`turn`](Process::turn).
    pub fn set_state(&self, state: State) {
        *self.state.borrow_mut() = state;
    }

    /// The streams, once opened.
    pub fn stdio(&self) -> Option<Rc<Stdio>> {
        self.stdio.borrow().clone()
    }

    /// Sets the streams and the ends that the process will get.
    pub fn set_stdio(&self, stdio: Rc<Stdio>, ends: ProcessEnds) {
        *self.stdio.borrow_mut() = Some(stdio);
        *self.ends.borrow_mut() = ends;
    }

    /// The ends, to be given to the process. Once.
    pub fn take_ends(&self) -> ProcessEnds {
        self.ends.take()
    }

    /// Closes the streams.
    pub async fn close_stdio(&self) {
        self.ends.take();
        let stdio = self.stdio.take();
        if let Some(stdio) = stdio {
            stdio.close().await;
        }
    }

    /// The end: state and waiters.
    pub fn stopped(&self, pid: i32, exit: Exit) {
        self.set_state(State::Stopped { pid, exit });
        self.exit.send_replace(Some(exit));
    }

    /// Resolves when the process has ended and everything about it is settled.
    pub async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}
