//! The event journal: what happened, in order, for `GET /events`.
//!
//! Invariants: events have consecutive sequence numbers that go on after a restart; an event is handed to the kernel before [`Events::publish`]
//! returns, so it survives the engine's death (the last second may be lost with the machine's power); a reader gets each event once, in order,
//! however slow it is, or is told how many are gone (`daemon` event `events-lost`). Memory holds the newest events only; a reader that is
//! behind reads the files.
//!
//! Published from anywhere, read by `GET /events`. See [`journal`] for the files.

mod filter;
mod journal;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::filter::EventFilter;
use self::journal::{Journal, Position};
use crate::error::{Error, Result};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Builder,
    Config,
    Container,
    Daemon,
    Image,
    Network,
    Node,
    Plugin,
    Secret,
    Service,
    Volume,
}

impl Subject {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Config => "config",
            Self::Container => "container",
            Self::Daemon => "daemon",
            Self::Image => "image",
            Self::Network => "network",
            Self::Node => "node",
            Self::Plugin => "plugin",
            Self::Secret => "secret",
            Self::Service => "service",
            Self::Volume => "volume",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the order, from 1.
    #[serde(rename = "s")]
    pub sequence: u64,
    /// What it is about.
    #[serde(rename = "t")]
    pub subject: Subject,
    /// What was done (`start`, `exec_create: sh -c x`).
    #[serde(rename = "a")]
    pub action: String,
    /// The object's id (a volume's or image's name).
    #[serde(rename = "i")]
    pub id: String,
    /// Details, labels of the object included.
    #[serde(rename = "d")]
    pub attributes: BTreeMap<String, String>,
    /// When it was told, in nanoseconds since the epoch. Never less than that of the event before, except when the clock was set back.
    #[serde(rename = "n")]
    pub time_nano: i64,
    /// When it happened, where the engine learned of it only later. Not in order.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub happened_nano: Option<i64>,
}

impl Event {
    /// When it happened, in nanoseconds since the epoch.
    pub fn at_nano(&self) -> i64 {
        self.happened_nano.unwrap_or(self.time_nano)
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Now,
    /// With the first kept event that was told at this time (nanoseconds since the epoch) or later: who comes back with the time of the last event
    /// it has seen misses nothing, also of what was told late.
    Since(i64),
}

/// The journal; cheap to clone.
#[derive(Clone)]
pub struct Events {
    journal: Arc<Journal>,
    newest: watch::Sender<u64>,
}

impl Events {
    /// Opens or makes the journal in `dir` and mends what a crash left.
    ///
    /// # Errors
    /// The directory or its files cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self> {
        let journal = Journal::open(dir)
            .map_err(|err| Error::system(format!("open event journal {}: {err}", dir.display())))?;
        let (newest, _) = watch::channel(journal.newest());
        Ok(Self { journal: Arc::new(journal), newest })
    }

    /// Records an event and tells every subscriber. Never fails: what cannot be written is told to readers as lost.
    pub fn publish<K, V>(
        &self,
        subject: Subject,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: impl IntoIterator<Item = (K, V)>,
    ) where
        K: Into<String>,
        V: Into<String>,
    {
        self.publish_late(subject, action, id, attributes, None);
    }

    /// [`Events::publish`] of something that happened a while ago, at `happened_nano` nanoseconds since the epoch.
    pub fn publish_late<K, V>(
        &self,
        subject: Subject,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: impl IntoIterator<Item = (K, V)>,
        happened_nano: Option<i64>,
    ) where
        K: Into<String>,
        V: Into<String>,
    {
        let attributes = attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let sequence = self.journal.append(subject, action.into(), id.into(), attributes, happened_nano);
        // Publishers race to here; the number only ever grows.
        self.newest.send_if_modified(|newest| {
            let grew = sequence > *newest;
            *newest = sequence.max(*newest);
            grew
        });
        self.flush_soon();
    }

    /// Syncs the journal within a second, once for all events until then.
    fn flush_soon(&self) {
        if let Ok(handle) = tokio::runtime::Handle::try_current()
            && self.journal.wants_flush()
        {
            let journal = Arc::clone(&self.journal);
            handle.spawn(async move {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                let _ = tokio::task::spawn_blocking(move || journal.flush()).await;
            });
        }
    }

    /// A reader of its own.
    ///
    /// # Errors
    /// The files cannot be read.
    pub async fn subscribe(&self, start: Start) -> Result<Subscription> {
        let newest = self.newest.subscribe();
        let position = match start {
            Start::Now => Position::after(self.journal.newest()),
            Start::Since(time) => {
                let journal = Arc::clone(&self.journal);
                tokio::task::spawn_blocking(move || journal.position_at(time))
                    .await
                    .map_err(|err| Error::system(format!("event journal: {err}")))?
            }
        };
        let since = match start {
            Start::Now => i64::MIN,
            Start::Since(time) => time,
        };
        let ready = std::collections::VecDeque::new();
        Ok(Subscription {
            journal: Arc::clone(&self.journal),
            newest,
            position: Some(position),
            since,
            ready,
        })
    }

    /// Makes everything published so far durable; for a graceful stop.
    pub fn flush(&self) {
        self.journal.flush();
    }

    /// How many events there have been.
    pub fn count(&self) -> u64 {
        self.journal.newest()
    }

    /// How many subscriptions there are.
    pub fn listeners(&self) -> usize {
        self.newest.receiver_count()
    }
}

/// One reader of the journal.
pub struct Subscription {
    journal: Arc<Journal>,
    newest: watch::Receiver<u64>,
    position: Option<Position>,
    since: i64,
    ready: std::collections::VecDeque<Arc<Event>>,
}

impl Subscription {
    /// The next event; waits for one to be published. Safe to drop and call again.
    pub async fn next(&mut self) -> Arc<Event> {
        loop {
            if let Some(event) = self.try_next().await {
                return event;
            }
            if self.newest.changed().await.is_err() {
                // The journal is gone: the engine stops. Nothing will ever come.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next event that was published already.
    pub async fn try_next(&mut self) -> Option<Arc<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.time_nano < self.since {
                    continue;
                }
                return Some(event);
            }
            self.newest.borrow_and_update();
            let position = self.position.take().unwrap_or_else(|| Position::after(self.journal.newest()));
            if position.sequence() > self.journal.newest() {
                self.position = Some(position);
                return None;
            }
            let (position, events) = if let Some(read) = self.journal.recent(&position) {
                read
            } else {
                // A cancelled call loses the file's place, not the number it stands for.
                self.position = Some(Position::after(position.sequence() - 1));
                let journal = Arc::clone(&self.journal);
                match tokio::task::spawn_blocking(move || journal.read(position)).await {
                    Ok(read) => read,
                    Err(_) => return None,
                }
            };
            self.position = Some(position);
            self.ready.extend(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(events: &Events, start: Start) -> Vec<Arc<Event>> {
        let mut subscription = events.subscribe(start).await.unwrap();
        let mut read = Vec::new();
        while let Some(event) = subscription.try_next().await {
            read.push(event);
        }
        read
    }

    fn publish(events: &Events, n: u64) {
        events.publish(Subject::Container, "start", format!("c{n}"), [("name", format!("n{n}"))]);
    }

    #[tokio::test]
    async fn ten_thousand_events_over_restarts_none_missing_none_doubled() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = 0_u64;
        for round in 0..4 {
            let events = Events::open(dir.path()).unwrap();
            for _ in 0..2500 {
                publish(&events, expected);
                expected += 1;
            }
            if round < 3 {
                // As kill -9 does: no flush, and the last write cut in two.
                let last = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
                let mut file = std::fs::OpenOptions::new().append(true).open(last).unwrap();
                std::io::Write::write_all(&mut file, br#"{"s":99,"t":"conta"#).unwrap();
            }
        }
        let events = Events::open(dir.path()).unwrap();
        let read = all(&events, Start::Since(0)).await;
        assert_eq!(read.len(), 10_000);
        for (at, event) in read.iter().enumerate() {
            assert_eq!((event.sequence, event.id.as_str()), (at as u64 + 1, format!("c{at}").as_str()));
        }
        assert!(read.windows(2).all(|pair| pair[0].time_nano < pair[1].time_nano));
        let middle = read[5000].time_nano;
        assert_eq!(all(&events, Start::Since(middle)).await.len(), 5000);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_and_a_late_one_is_told_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::open(dir.path()).unwrap();
        let mut slow = events.subscribe(Start::Now).await.unwrap();
        let mut late = events.subscribe(Start::Now).await.unwrap();
        for n in 0..3000 {
            publish(&events, n);
        }
        for n in 0..3000 {
            assert_eq!(slow.next().await.id, format!("c{n}"));
        }
        let big = "x".repeat(4000);
        for _ in 0..8000 {
            events.publish(Subject::Image, "pull", big.clone(), [("name", big.clone())]);
        }
        let first = late.next().await;
        assert_eq!((first.subject, first.action.as_str()), (Subject::Daemon, "events-lost"));
        let lost: u64 = first.attributes["count"].parse().unwrap();
        let next = late.next().await;
        assert_eq!(next.sequence, lost + 1);
    }

    #[tokio::test]
    async fn what_is_told_late_has_its_time_and_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::open(dir.path()).unwrap();
        publish(&events, 0);
        let seen = all(&events, Start::Since(0)).await[0].time_nano;
        events.publish_late(Subject::Container, "die", "c0", [("exitCode", "7")], Some(5));
        publish(&events, 1);
        drop(events);
        let events = Events::open(dir.path()).unwrap();
        let read = all(&events, Start::Since(seen)).await;
        let shown: Vec<_> = read.iter().map(|event| (event.action.as_str(), event.at_nano() == 5)).collect();
        assert_eq!(shown, [("start", false), ("die", true), ("start", false)]);
    }

    #[tokio::test]
    async fn a_subscriber_is_woken() {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::open(dir.path()).unwrap();
        let mut subscription = events.subscribe(Start::Now).await.unwrap();
        let waiting = tokio::spawn(async move { subscription.next().await });
        tokio::task::yield_now().await;
        publish(&events, 7);
        assert_eq!(waiting.await.unwrap().id, "c7");
    }
}
