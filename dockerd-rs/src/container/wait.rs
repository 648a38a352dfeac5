//! Waiting for a container's end or removal.

use std::sync::Arc;

use super::Container;
use super::live::Ends;
use crate::api::params::quote;
use crate::error::{Error, Result};
use tokio::sync::watch;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// That it does not run; at once if it does not.
    NotRunning,
    /// That it ends the next time.
    NextExit,
    /// That it is gone.
    Removed,
}

impl Condition {
    /// Reads the parameter.
    ///
    /// # Errors
    /// It is none of the three.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            other => Err(Error::invalid(format!("invalid condition: {}", quote(other)))),
        }
    }
}

/// A wait that has begun: what happens from its making on counts.
pub struct Waiting {
    condition: Condition,
    ends: watch::Receiver<Ends>,
    since: u64,
    at_once: Option<i32>,
}

impl Waiting {
    /// Begins to wait.
    pub fn begin(container: &Arc<Container>, condition: Condition) -> Self {
        // Before the record is read: an end between the two is seen by one of them.
        let ends = container.live.ends();
        let since = ends.borrow().count;
        let record = container.record();
        let at_once = (condition == Condition::NotRunning && !record.life.state.is_running())
            .then_some(record.life.exit_code);
        Self { condition, ends, since, at_once }
    }

    /// The exit code, once it has come to what is waited for.
    pub async fn code(mut self) -> i32 {
        if let Some(code) = self.at_once {
            return code;
        }
        let (condition, since) = (self.condition, self.since);
        let met = self.ends.wait_for(|ends| {
            ends.removed
                || match condition {
                    Condition::NotRunning | Condition::NextExit => ends.count > since,
                    Condition::Removed => false,
                }
        });
        met.await.map_or(0, |ends| ends.code)
    }
}
