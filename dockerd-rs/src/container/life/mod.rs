//! A container's life: what is asked of it, and what becomes of it.
//!
//! ```text
//!   client ─┐                                     ┌─ containerd's events
//!   policy ─┼─► decide ─► turn ─► side effects ─► record ─► event, waiters
//!   boot   ─┘                                     └─ reconciliation
//! ```
//! Invariants: one operation changes a container at a time (its turn); it runs in a task of its own to its end, whatever its client does;
//! the record is written before anyone hears of the change; an end is noticed once, by whoever sees it first: the event, the next look
//! after containerd was away, or the next look after the engine was.

pub mod decide;
pub mod ended;
pub mod failure;
pub mod policy;
pub mod signal;

use std::collections::BTreeMap;

use super::{Container, Record};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::Subject;

/// What the engine hears of within this time has the time of its telling, as in Docker, so that the times of events rise.
const LATE: jiff::SignedDuration = jiff::SignedDuration::from_millis(200);

/// What a request that changes a container came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// There was nothing to do: 304.
    AlreadySo,
}

/// Runs `work` in a task of its own, so that it ends even when nobody waits for it any more.
///
/// # Errors
/// Those of `work`; and its panic, which harms nobody else.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(err) => Err(Error::system(format!("operation failed: {err}"))),
    }
}

/// Publishes what happened to a container, with the attributes all its events have.
pub fn publish(engine: &Engine, record: &Record, action: impl Into<String>, more: &[(&str, &str)]) {
    publish_late(engine, record, action, more, None);
}

/// [`publish`] of what happened at `at`, if the engine hears of it so late that it matters.
fn publish_late(
    engine: &Engine,
    record: &Record,
    action: impl Into<String>,
    more: &[(&str, &str)],
    at: Option<jiff::Timestamp>,
) {
    let late = at.filter(|at| jiff::Timestamp::now().duration_since(*at) > LATE);
    let happened = late.map(|at| i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX));
    let mut attributes: BTreeMap<String, String> = record.config.labels.clone().unwrap_or_default();
    for (key, value) in more {
        attributes.insert((*key).to_owned(), (*value).to_owned());
    }
    attributes.insert("image".into(), record.image_name().to_owned());
    attributes.insert("name".into(), record.name.clone());
    engine.events.publish_late(Subject::Container, action, record.id.clone(), attributes, happened);
}

impl Container {
    /// Publishes what happened to this container.
    pub fn publish(&self, engine: &Engine, action: impl Into<String>, more: &[(&str, &str)]) {
        publish(engine, &self.record(), action, more);
    }

    /// Publishes what happened to this container at `at`, perhaps while the engine was away.
    pub fn publish_late(
        &self,
        engine: &Engine,
        action: impl Into<String>,
        more: &[(&str, &str)],
        at: jiff::Timestamp,
    ) {
        publish_late(engine, &self.record(), action, more, Some(at));
    }
}
