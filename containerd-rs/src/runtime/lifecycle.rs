//! The order of a task's events, and its exit.
//!
//! Events reach us from three sides: the shim forwards them (and repeats those whose receipt we did not live to confirm), we
//! announce an exit ourselves when a shim died, and we announce at start what happened while we were down. All pass through
//! [`Lifecycle::publish`], which lets each one through once and never out of order.
//!
//! How far a task has come is noted in its bundle, so that after a crash of ours repetitions are still known as such. The
//! note on an exit is written a moment late on purpose: if we die before our subscribers can have read the event, it is
//! announced once more rather than never.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost_types::Timestamp;
use tokio::sync::watch;

/// How long after an exit was announced it is taken for heard.
const HEARD_AFTER: Duration = Duration::from_millis(1000);

/// How far the events of a task's init process have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing was announced.
    New,
    /// `/tasks/create` was.
    Created,
    /// `/tasks/start` was.
    Started,
    /// `/tasks/exit` was.
    Exited,
    /// `/tasks/delete` was.
    Deleted,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    /// Its pid, 0 if nobody knows.
    pub pid: u32,
    /// 128 + signal for one that was killed.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

/// What an event says about the init process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Created, with this pid.
    Create(u32),
    /// Started, with this pid.
    Start(u32),
    /// Ended.
    Exit(Exit),
    /// Deleted, with this pid.
    Delete(u32),
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes out, and this is how far the task has come then.
    Publish(Stage),
    /// Goes out; it says nothing about this task (an earlier one of the same name).
    PassBy,
    /// Was announced before, or comes too late to be in order.
    Drop,
}

/// Decides about an event. `pid` is that of this task's init, 0 while it is unknown.
fn decide(stage: Stage, pid: u32, step: Step) -> Verdict {
    let (next, of) = match step {
        Step::Create(of) => (Stage::Created, of),
        Step::Start(of) => (Stage::Started, of),
        Step::Exit(exit) => (Stage::Exited, exit.pid),
        Step::Delete(of) => (Stage::Deleted, of),
    };
    let someone_elses = pid != 0 && of != 0 && of != pid;
    // Before we know our own pid, an end can only be that of a task which had this name before.
    let too_early = pid == 0 && stage == Stage::New && next >= Stage::Exited;
    if someone_elses || too_early {
        Verdict::PassBy
    } else if next <= stage {
        Verdict::Drop
    } else {
        Verdict::Publish(next)
    }
}

/// One task's progress. Shared by the shim's supervisor and the events endpoint.
#[derive(Debug)]
pub struct Lifecycle {
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
    note: PathBuf,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    pid: u32,
}

impl Lifecycle {
    /// A task that is about to be created in `bundle`.
    pub fn new(bundle: &std::path::Path) -> Lifecycle {
        let state = State { stage: Stage::New, pid: 0 };
        Lifecycle { state: Mutex::new(state), exit: watch::Sender::new(None), note: bundle.join("stage") }
    }

    /// A task that was created before we started, as far as its note tells.
    pub fn recall(bundle: &std::path::Path) -> Lifecycle {
        let lifecycle = Lifecycle::new(bundle);
        if let Some(state) = std::fs::read_to_string(&lifecycle.note).ok().and_then(|note| parse_note(&note))
        {
            *lifecycle.lock() = state;
        }
        lifecycle
    }

    /// Sends an event out if it is its turn, and takes note. `send` runs under this task's lock, so that order is kept; it does not block.
    pub fn publish(self: &std::sync::Arc<Self>, step: Step, send: impl FnOnce()) -> Verdict {
        let mut state = self.lock();
        let verdict = decide(state.stage, state.pid, step);
        if let Verdict::Publish(next) = verdict {
            state.stage = next;
            if let Step::Create(pid) | Step::Start(pid) = step {
                state.pid = pid;
            }
            if next < Stage::Exited {
                self.write_note(&state);
            } else if next == Stage::Exited {
                self.write_note_later();
            }
        }
        if let Step::Exit(exit) = step
            && matches!(verdict, Verdict::Publish(_))
        {
            let _ = self.exit.send_replace(Some(exit));
        }
        if verdict != Verdict::Drop {
            send();
        }
        drop(state);
        verdict
    }

    /// Notes the pid of init, as the shim answered it.
    pub fn set_pid(&self, pid: u32) {
        let mut state = self.lock();
        if state.pid != pid {
            state.pid = pid;
            self.write_note(&state);
        }
    }

    /// The pid of init, 0 while it is unknown.
    pub fn pid(&self) -> u32 {
        self.lock().pid
    }

    /// How far the task has come.
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// How init ended, once it has and that was announced.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Records an exit that was announced before, so that those who wait are told.
    pub fn recall_exit(&self, exit: Exit) {
        let _ = self.exit.send_replace(Some(exit));
    }

    fn write_note_later(self: &std::sync::Arc<Self>) {
        let this = std::sync::Arc::downgrade(self);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(HEARD_AFTER).await;
                // The bundle may be gone by now, and then the note is not missed.
                if let Some(this) = this.upgrade() {
                    this.write_note(&this.lock());
                }
            });
        }
    }

    fn write_note(&self, state: &State) {
        if let Err(err) = std::fs::write(&self.note, format_note(state))
            && err.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.note.display(), %err, "cannot note a task's progress");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn format_note(state: &State) -> String {
    let stage = match state.stage {
        Stage::New => "new",
        Stage::Created => "created",
        Stage::Started => "started",
        Stage::Exited => "exited",
        Stage::Deleted => "deleted",
    };
    format!("1 {stage} {}\n", state.pid)
}

fn parse_note(note: &str) -> Option<State> {
    let mut words = note.split_ascii_whitespace();
    if words.next()? != "1" {
        return None;
    }
    let stage = match words.next()? {
        "new" => Stage::New,
        "created" => Stage::Created,
        "started" => Stage::Started,
        "exited" => Stage::Exited,
        "deleted" => Stage::Deleted,
        _ => return None,
    };
    Some(State { stage, pid: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    const AT: Timestamp = Timestamp { seconds: 1, nanos: 0 };

    fn exit(pid: u32) -> Step {
        Step::Exit(Exit { pid, status: 0, at: AT })
    }

    #[test]
    fn what_becomes_of_events() {
        use Stage::*;
        for (stage, pid, step, verdict) in [
            (New, 0, Step::Create(7), Verdict::Publish(Created)),
            (Created, 7, Step::Start(7), Verdict::Publish(Started)),
            (Created, 7, exit(7), Verdict::Publish(Exited)),
            (Started, 7, Step::Start(7), Verdict::Drop),
            (Exited, 7, Step::Start(7), Verdict::Drop),
            (Started, 7, exit(7), Verdict::Publish(Exited)),
            (Exited, 7, exit(7), Verdict::Drop),
            (Exited, 7, Step::Delete(7), Verdict::Publish(Deleted)),
            (Deleted, 7, exit(7), Verdict::Drop),
            // The task that had this name before.
            (New, 0, Step::Delete(6), Verdict::PassBy),
            (New, 8, exit(6), Verdict::PassBy),
            (Created, 8, Step::Delete(6), Verdict::PassBy),
            // A shim that died without anyone knowing a pid.
            (Created, 8, exit(0), Verdict::Publish(Exited)),
        ] {
            assert_eq!(decide(stage, pid, step), verdict, "{stage:?} {pid} {step:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever arrives in whatever order, what goes out about one pid is in order and without repetition.
        #[test]
        fn what_goes_out_is_in_order(steps in proptest::collection::vec(0usize..4, 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let lifecycle = Arc::new(Lifecycle::new(dir.path()));
            lifecycle.set_pid(7);
            let all = [Step::Create(7), Step::Start(7), exit(7), Step::Delete(7)];
            let mut out = Vec::new();
            for step in steps {
                lifecycle.publish(all[step], || out.push(step));
            }
            prop_assert!(out.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", out);
        }

        #[test]
        fn any_note_is_read_or_left(note in ".{0,40}") {
            let _ = parse_note(&note);
        }
    }

    #[test]
    fn progress_is_recalled_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let lifecycle = Arc::new(Lifecycle::new(dir.path()));
        lifecycle.publish(Step::Create(7), || {});
        lifecycle.publish(Step::Start(7), || {});
        let again = Arc::new(Lifecycle::recall(dir.path()));
        assert_eq!((again.stage(), again.pid()), (Stage::Started, 7));
        assert_eq!(again.publish(Step::Start(7), || panic!("a repetition went out")), Verdict::Drop);
        assert_eq!(again.publish(exit(7), || {}), Verdict::Publish(Stage::Exited));
        assert_eq!(again.exit().borrow().unwrap().pid, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_is_noted_once_it_was_surely_heard() {
        let dir = tempfile::tempdir().unwrap();
        let lifecycle = Arc::new(Lifecycle::new(dir.path()));
        lifecycle.publish(Step::Create(7), || {});
        lifecycle.publish(exit(7), || {});
        assert_eq!(Lifecycle::recall(dir.path()).stage(), Stage::Created);
        tokio::time::sleep(HEARD_AFTER * 2).await;
        assert_eq!(Lifecycle::recall(dir.path()).stage(), Stage::Exited);
    }
}
