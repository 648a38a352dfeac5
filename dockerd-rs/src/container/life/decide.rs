//! What a request means to a container in a state: go ahead, nothing to do, or no, with Docker's reason.
//!
//! Invariant: pure functions over [`State`]; no lock, no clock, no kernel. Every verdict on a container's life is made here.

use crate::container::record::State;
use crate::error::{Error, Kind};

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Proceed,
    /// It already is so: 304.
    AlreadySo,
    /// No.
    Denied(Kind, String),
}

impl Verdict {
    fn conflict(text: impl Into<String>) -> Self {
        Self::Denied(Kind::Conflict, text.into())
    }

    /// Whether to go ahead; an error for the client when denied.
    ///
    /// # Errors
    /// The reason of a denial.
    pub fn proceed(self) -> Result<bool, Error> {
        match self {
            Self::Proceed => Ok(true),
            Self::AlreadySo => Ok(false),
            Self::Denied(kind, text) => Err(Error::new(kind, text)),
        }
    }
}

/// `POST /containers/{id}/start`, and the start of a restart.
pub fn start(state: &State) -> Verdict {
    match state {
        State::Created | State::Exited | State::Restarting => Verdict::Proceed,
        State::Running(_) => Verdict::AlreadySo,
        State::Paused(_) => Verdict::conflict("cannot start a paused container, try unpause instead"),
        State::Removing | State::Dead => {
            Verdict::conflict("container is marked for removal and cannot be started")
        }
    }
}

/// `POST /containers/{id}/stop`.
pub fn stop(state: &State) -> Verdict {
    match state {
        State::Running(_) | State::Paused(_) | State::Restarting => Verdict::Proceed,
        State::Created | State::Exited | State::Removing | State::Dead => Verdict::AlreadySo,
    }
}

/// `POST /containers/{id}/kill`. The text is without the `cannot kill container: NAME: ` before it.
pub fn kill(state: &State, id: &str) -> Verdict {
    match state {
        State::Running(_) | State::Paused(_) | State::Restarting => Verdict::Proceed,
        State::Created | State::Exited | State::Removing | State::Dead => not_running(id),
    }
}

/// `POST /containers/{id}/pause`.
pub fn pause(state: &State, id: &str) -> Verdict {
    match state {
        State::Running(_) => Verdict::Proceed,
        State::Paused(_) => Verdict::conflict(format!("container {id} is already paused")),
        State::Restarting => {
            Verdict::conflict(format!("container {id} is restarting, wait until the container is running"))
        }
        State::Created | State::Exited | State::Removing | State::Dead => not_running(id),
    }
}

/// `POST /containers/{id}/unpause`.
pub fn unpause(state: &State, id: &str) -> Verdict {
    match state {
        State::Paused(_) => Verdict::Proceed,
        // Docker answers 500 here, because its daemon returns an untyped error; it is a conflict like the others.
        State::Running(_)
        | State::Restarting
        | State::Created
        | State::Exited
        | State::Removing
        | State::Dead => Verdict::conflict(format!("Container {id} is not paused")),
    }
}

/// Requests that need processes which are not being restarted: resize, update of limits, top.
pub fn live(state: &State, id: &str) -> Verdict {
    match state {
        State::Running(_) | State::Paused(_) => Verdict::Proceed,
        State::Restarting => {
            Verdict::conflict(format!("container {id} is restarting, wait until the container is running"))
        }
        State::Created | State::Exited | State::Removing | State::Dead => not_running(id),
    }
}

/// Making and starting an exec. `shown` is how the client called the container.
pub fn exec(state: &State, id: &str, shown: &str) -> Verdict {
    match state {
        State::Running(_) => Verdict::Proceed,
        State::Paused(_) => {
            Verdict::conflict(format!("Container {shown} is paused, unpause the container before exec"))
        }
        State::Restarting => {
            Verdict::conflict(format!("Container {shown} is restarting, wait until the container is running"))
        }
        State::Created | State::Exited | State::Removing | State::Dead => not_running(id),
    }
}

/// `POST /containers/{id}/attach`.
pub fn attach(state: &State, shown: &str) -> Verdict {
    match state {
        State::Created | State::Running(_) | State::Exited => Verdict::Proceed,
        State::Paused(_) => {
            Verdict::conflict(format!("container {shown} is paused, unpause the container before attach"))
        }
        State::Restarting => {
            Verdict::conflict(format!("container {shown} is restarting, wait until the container is running"))
        }
        State::Removing | State::Dead => {
            Verdict::conflict(format!("container {shown} is marked for removal and cannot be attached to"))
        }
    }
}

/// `DELETE /containers/{id}`. `name` is the container's, without a slash.
pub fn remove(state: &State, name: &str, force: bool) -> Verdict {
    let denied = |why: &str| {
        Verdict::conflict(format!("cannot remove container {}: {why}", crate::api::params::quote(name)))
    };
    let stop_first = "stop the container before removing or force remove";
    match state {
        State::Created | State::Exited | State::Dead => Verdict::Proceed,
        State::Removing => Verdict::conflict(format!("removal of container {name} is already in progress")),
        State::Running(_) | State::Paused(_) | State::Restarting if force => Verdict::Proceed,
        State::Running(_) => denied(&format!("container is running: {stop_first}")),
        State::Paused(_) => denied("container is paused and must be unpaused first"),
        State::Restarting => denied(&format!("container is restarting: {stop_first}")),
    }
}

fn not_running(id: &str) -> Verdict {
    Verdict::conflict(format!("container {id} is not running"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::Task;
    use expect_test::expect;

    fn table(decide: impl Fn(&State) -> Verdict) -> String {
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
        let row = |state: &State| match decide(state) {
            Verdict::Proceed => format!("{}: proceed\n", state.word()),
            Verdict::AlreadySo => format!("{}: 304\n", state.word()),
            Verdict::Denied(kind, text) => format!("{}: {} {text}\n", state.word(), kind.status().as_u16()),
        };
        states.iter().map(row).collect()
    }

    #[test]
    fn start_() {
        expect![[r#"
            created: proceed
            running: 304
            paused: 409 cannot start a paused container, try unpause instead
            restarting: proceed
            exited: proceed
            removing: 409 container is marked for removal and cannot be started
            dead: 409 container is marked for removal and cannot be started
        "#]]
        .assert_eq(&table(start));
    }

    #[test]
    fn stop_() {
        expect![[r#"
            created: 304
            running: proceed
            paused: proceed
            restarting: proceed
            exited: 304
            removing: 304
            dead: 304
        "#]]
        .assert_eq(&table(stop));
    }

    #[test]
    fn kill_() {
        expect![[r#"
            created: 409 container ID is not running
            running: proceed
            paused: proceed
            restarting: proceed
            exited: 409 container ID is not running
            removing: 409 container ID is not running
            dead: 409 container ID is not running
        "#]]
        .assert_eq(&table(|state| kill(state, "ID")));
    }

    #[test]
    fn pause_and_unpause() {
        expect![[r#"
            created: 409 container ID is not running
            running: proceed
            paused: 409 container ID is already paused
            restarting: 409 container ID is restarting, wait until the container is running
            exited: 409 container ID is not running
            removing: 409 container ID is not running
            dead: 409 container ID is not running
        "#]]
        .assert_eq(&table(|state| pause(state, "ID")));
        expect![[r#"
            created: 409 Container ID is not paused
            running: 409 Container ID is not paused
            paused: proceed
            restarting: 409 Container ID is not paused
            exited: 409 Container ID is not paused
            removing: 409 Container ID is not paused
            dead: 409 Container ID is not paused
        "#]]
        .assert_eq(&table(|state| unpause(state, "ID")));
    }

    #[test]
    fn exec_and_attach() {
        expect![[r#"
            created: 409 container ID is not running
            running: proceed
            paused: 409 Container n is paused, unpause the container before exec
            restarting: 409 Container n is restarting, wait until the container is running
            exited: 409 container ID is not running
            removing: 409 container ID is not running
            dead: 409 container ID is not running
        "#]]
        .assert_eq(&table(|state| exec(state, "ID", "n")));
        expect![[r#"
            created: proceed
            running: proceed
            paused: 409 container n is paused, unpause the container before attach
            restarting: 409 container n is restarting, wait until the container is running
            exited: proceed
            removing: 409 container n is marked for removal and cannot be attached to
            dead: 409 container n is marked for removal and cannot be attached to
        "#]]
        .assert_eq(&table(|state| attach(state, "n")));
    }

    #[test]
    fn remove_() {
        expect![[r#"
            created: proceed
            running: 409 cannot remove container "n": container is running: stop the container before removing or force remove
            paused: 409 cannot remove container "n": container is paused and must be unpaused first
            restarting: 409 cannot remove container "n": container is restarting: stop the container before removing or force remove
            exited: proceed
            removing: 409 removal of container n is already in progress
            dead: proceed
        "#]]
        .assert_eq(&table(|state| remove(state, "n", false)));
        expect![[r#"
            created: proceed
            running: proceed
            paused: proceed
            restarting: proceed
            exited: proceed
            removing: 409 removal of container n is already in progress
            dead: proceed
        "#]]
        .assert_eq(&table(|state| remove(state, "n", true)));
    }
}
