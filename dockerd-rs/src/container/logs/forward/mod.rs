//! Logs that go elsewhere: syslog, fluentd, the journal.
//!
//! ```text
//!   process ─► shim ─► numbered records on disk (bounded) ─► one forwarder a container ─► target
//!                              └► `docker logs`                      └► position beside the log
//! ```
//! Invariant: a container never waits for its log's target, and what is on disk is sent at least once, in order, whoever was killed
//! meanwhile: a forwarder begins after the last record it knows to be sent. What rotation removes unsent is counted and told.

pub mod fluentd;
pub mod journald;
pub mod spool;
pub mod syslog;
pub mod wire;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use jiff::tz::TimeZone;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::fluentd::Fluentd;
use self::spool::{Batch, Spool};
use self::syslog::Syslog;
use self::wire::{Address, Connection};
use super::options::LogOptions;
pub use super::record::Entry;
use super::{grown, on_thread};
use crate::container::Container;
use crate::container::record::Record;
use crate::engine::Engine;

/// The first pause after a failure, unless the options say otherwise, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a position may be known to nobody but us: what was sent meanwhile is sent again after a crash.
const KEEP: Duration = Duration::from_secs(2);
/// What was sent so shortly before a connection broke may be lost in it, and is sent again.
const IN_DOUBT: Duration = Duration::from_secs(3);
/// How fine that is.
const DOUBT_STEP: Duration = Duration::from_millis(200);
/// How long a removal waits for the last lines to be sent.
const LAST_CALL: Duration = Duration::from_secs(10);

/// Where a log goes, and in what form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A syslog daemon.
    Syslog(Syslog),
    /// A fluentd, or who speaks as one.
    Fluentd(Fluentd),
    /// The machine's journal.
    Journald,
}

impl Target {
    fn address(&self) -> Address {
        match self {
            Self::Syslog(syslog) => syslog.address.clone(),
            Self::Fluentd(fluentd) => fluentd.address.clone(),
            Self::Journald => Address::Unixgram(journald::SOCKET.into()),
        }
    }

    fn fluentd(&self) -> Option<&Fluentd> {
        match self {
            Self::Fluentd(fluentd) => Some(fluentd),
            Self::Syslog(_) | Self::Journald => None,
        }
    }

    fn encode(&self, entry: &Entry<'_>, about: &About, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Syslog(syslog) => return syslog.encode(entry, about, out),
            Self::Fluentd(fluentd) => fluentd.encode(entry, about, out),
            Self::Journald => journald::encode(entry, about, out),
        }
        true
    }

    async fn connect(&self) -> Result<Connection, String> {
        let write_timeout = self.fluentd().and_then(|fluentd| fluentd.write_timeout);
        Connection::open(&self.address(), write_timeout).await
    }
}

/// What messages say of their container.
#[derive(Clone, Debug)]
pub struct About {
    id: String,
    short_id: String,
    name: String,
    slashed_name: String,
    image: String,
    tag: String,
    /// The labels and variables that were chosen.
    extra: Vec<(String, String)>,
    host: String,
    pid: u32,
    zone: TimeZone,
}

impl About {
    fn of(record: &Record, options: &LogOptions) -> Self {
        let short_id = record.id.get(..12).unwrap_or(&record.id).to_owned();
        let tag = options.tag(record);
        Self {
            id: record.id.clone(),
            tag: if tag.is_empty() { short_id.clone() } else { tag },
            short_id,
            name: record.name.clone(),
            slashed_name: format!("/{}", record.name),
            image: record.config.image.clone(),
            extra: options.extra(record).into_iter().collect(),
            host: crate::system::hostname(),
            pid: std::process::id(),
            zone: TimeZone::system(),
        }
    }
}

/// What a forwarder is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Counts the starts of its container.
    starts: u64,
    /// The container is being removed: what cannot be sent now never will be.
    last_call: bool,
}

/// Looks whether the target of a container's log is there, as Docker does before a start.
///
/// # Errors
/// It is not, in Docker's words.
pub async fn check(options: &LogOptions) -> Result<(), String> {
    let Some(target) = &options.target else { return Ok(()) };
    if target.fluentd().is_some_and(|fluentd| fluentd.asynchronous) {
        return Ok(());
    }
    match target.connect().await {
        Ok(connection) => {
            connection.close().await;
            Ok(())
        }
        Err(_) if *target == Target::Journald => Err("journald is not enabled on this host".into()),
        Err(why) => Err(why),
    }
}

/// Has a container's log sent on, if its driver asks for that. To be called when it starts, and once when the engine does.
pub fn begin(engine: &Arc<Engine>, container: &Arc<Container>) {
    // Options that cannot be read are told where the container is started.
    if LogOptions::of(&container.record()).is_ok_and(|options| options.target.is_none()) {
        return;
    }
    let shared = &engine.containers.shared;
    container.live.forwarder(|slot| {
        if let Some(told) = slot {
            told.send_modify(|told| told.starts += 1);
            return;
        }
        let (told, hears) = watch::channel(Told::default());
        *slot = Some(told);
        let (engine, container) = (Arc::clone(engine), Arc::clone(container));
        let stop = shared.forwarders_stop.clone();
        shared.forwarders.spawn(run(engine, container, hears, stop));
    });
}

/// Sends what is left of a container's log before the container is removed, if the target takes it.
pub async fn finish(container: &Container) {
    let told = container.live.forwarder(|slot| slot.clone());
    let Some(told) = told else { return };
    told.send_modify(|told| told.last_call = true);
    if tokio::time::timeout(LAST_CALL, told.closed()).await.is_err() {
        tracing::warn!(container = %container.id, "its log could not be sent to the end in time");
    }
}

async fn run(
    engine: Arc<Engine>,
    container: Arc<Container>,
    mut hears: watch::Receiver<Told>,
    stop: CancellationToken,
) {
    let mut records = container.watch();
    let mut forwarder: Option<Forwarder> = None;
    let mut starts = None;
    loop {
        let told = *hears.borrow_and_update();
        // Before the look at the log: what ended before that is whole in it.
        let running = records.borrow_and_update().life.state.is_running();
        if starts != Some(told.starts) {
            starts = Some(told.starts);
            forwarder = Forwarder::renew(&engine, &container, forwarder.take(), running).await;
        }
        let sent = match &mut forwarder {
            Some(forwarder) => forwarder.send_all(&mut hears, &stop).await,
            None => Sent::All,
        };
        if sent == Sent::Stopped {
            break;
        }
        if !running || told.last_call || sent == Sent::GaveUp {
            if let Some(forwarder) = &mut forwarder {
                forwarder.rest().await;
            }
            let over = container.live.forwarder(|slot| {
                let over = hears.borrow().starts == told.starts;
                if over {
                    *slot = None;
                }
                over
            });
            if over {
                return;
            }
            continue;
        }
        let (ear, keep_at) = match &mut forwarder {
            Some(forwarder) => {
                forwarder.listen();
                (Some(&mut forwarder.ear), forwarder.keep_at)
            }
            None => (None, None),
        };
        tokio::select! {
            () = async {
                match ear {
                    Some(ear) => grown(ear.as_mut()).await,
                    None => std::future::pending().await,
                }
            } => {}
            _ = records.changed() => {}
            _ = hears.changed() => {}
            () = stop.cancelled() => break,
            () = at(keep_at) => {
                if let Some(forwarder) = &mut forwarder {
                    forwarder.keep().await;
                }
            }
        }
    }
    if let Some(forwarder) = &mut forwarder {
        forwarder.keep().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How a round of sending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// With the end of the log.
    All,
    /// The engine is stopping.
    Stopped,
    /// The target is away, and the container is being removed.
    GaveUp,
}

/// One container's.
struct Forwarder {
    engine: Arc<Engine>,
    container: Arc<Container>,
    target: Arc<Target>,
    about: Arc<About>,
    live: PathBuf,
    ear: Option<super::follow::Ear>,
    /// Away while a thread reads.
    spool: Option<Spool>,
    connection: Option<Connection>,
    /// The number of the last record sent, and of the last that is known to be on disk.
    sent: u64,
    kept: u64,
    keep_at: Option<Instant>,
    /// What was sent lately over this connection: after which record, and when. At most `IN_DOUBT` of it counts.
    in_doubt: VecDeque<(u64, Instant)>,
    /// The target is known to be away.
    away: bool,
}

impl Forwarder {
    /// With the container's present name and options, going on where `old` was. `None` also when a container that has ended has nothing left
    /// to send: the engine's start is no time to read the logs of all of them.
    async fn renew(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        old: Option<Self>,
        running: bool,
    ) -> Option<Self> {
        let record = container.record();
        let options = match LogOptions::of(&record) {
            Ok(options) => options,
            Err(err) => {
                tracing::error!(container = %container.id, error = %err, "its log cannot be sent");
                return None;
            }
        };
        let target = Arc::new(options.target.clone()?);
        let about = Arc::new(About::of(&record, &options));
        if let Some(old) = old {
            let connection = old.connection.filter(|_| old.target == target);
            return Some(Self { target, about, connection, ..old });
        }
        let place = options.place(&engine.config.container_dir(&container.id), &container.id)?;
        let live = place.path.clone();
        let look = move || Ok((spool::position(&live), spool::next_number(&live)));
        let (sent, next) = on_thread(look).await.unwrap_or((0, 0));
        if !running && next == sent + 1 {
            return None;
        }
        Some(Self {
            engine: Arc::clone(engine),
            container: Arc::clone(container),
            target,
            about,
            ear: engine.containers.shared.growth().and_then(|growth| growth.listen(&place.path).ok()),
            spool: Some(Spool::new(&place.path, sent)),
            live: place.path,
            connection: None,
            sent,
            kept: sent,
            keep_at: None,
            in_doubt: VecDeque::new(),
            away: false,
        })
    }

    /// Listens for growth, where that was not possible before.
    fn listen(&mut self) {
        if self.ear.is_none() {
            let growth = self.engine.containers.shared.growth();
            self.ear = growth.and_then(|growth| growth.listen(&self.live).ok());
        }
    }

    /// Sends everything there is, however long the target takes to come back.
    async fn send_all(&mut self, hears: &mut watch::Receiver<Told>, stop: &CancellationToken) -> Sent {
        let mut pause = self.first_pause();
        loop {
            let (batch, chunk) = match self.read().await {
                Ok(read) => read,
                Err(err) => {
                    tracing::warn!(container = %self.container.id, error = %err, "read its log to send it");
                    return Sent::All;
                }
            };
            if batch.lost > 0 {
                self.tell_lost(batch.lost, "removed by rotation before they could be sent");
            }
            if batch.records == 0 {
                return Sent::All;
            }
            let delivered = loop {
                let tried = tokio::select! {
                    tried = self.send(&batch, chunk.as_deref()) => tried,
                    () = stop.cancelled() => return Sent::Stopped,
                };
                let Err(why) = tried else { break true };
                self.connection = None;
                if !self.away {
                    self.away = true;
                    tracing::warn!(container = %self.container.id, target = %self.target.address(), error = why, "its log's target is away");
                }
                if self.go_back() {
                    break false;
                }
                if hears.borrow().last_call {
                    self.give_up(batch.records).await;
                    return Sent::GaveUp;
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    // A start, or the last call.
                    _ = hears.changed() => {}
                    () = stop.cancelled() => return Sent::Stopped,
                }
                pause = (pause * 2).min(PAUSE_MAX.max(self.first_pause()));
            };
            if delivered {
                self.note_sent(batch.last).await;
                pause = self.first_pause();
            }
        }
    }

    fn first_pause(&self) -> Duration {
        self.target.fluentd().and_then(|fluentd| fluentd.retry_wait).unwrap_or(PAUSE)
    }

    /// The next messages, and what the target will confirm them with.
    async fn read(&mut self) -> std::io::Result<(Batch, Option<String>)> {
        let mut spool = self.spool.take().unwrap_or_else(|| Spool::new(&self.live, self.sent));
        let (target, about) = (Arc::clone(&self.target), Arc::clone(&self.about));
        let read = on_thread(move || {
            let batch = spool.next_batch(|entry, out| target.encode(entry, &about, out))?;
            Ok((spool, batch))
        });
        let (spool, mut batch) = read.await?;
        self.spool = Some(spool);
        let acks = self.target.fluentd().is_some_and(|fluentd| fluentd.acks) && !batch.ends.is_empty();
        let chunk = if acks { Some(new_chunk()?) } else { None };
        if let Some(chunk) = &chunk {
            fluentd::ask_for_ack(&mut batch.bytes, chunk);
        }
        Ok((batch, chunk))
    }

    async fn send(&mut self, batch: &Batch, chunk: Option<&str>) -> Result<(), String> {
        if batch.ends.is_empty() {
            return Ok(());
        }
        let interval = self.target.fluentd().and_then(|fluentd| fluentd.reconnect_interval);
        if let Some(old) =
            self.connection.take_if(|open| interval.is_some_and(|interval| open.age() > interval))
        {
            old.close().await;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.target.connect().await?),
        };
        let too_large = connection.send(batch, chunk).await.map_err(|err| crate::error::sys_text(&err))?;
        if connection.is_stream() && chunk.is_none() {
            self.note_doubt();
        }
        if std::mem::take(&mut self.away) {
            tracing::info!(container = %self.container.id, target = %self.target.address(), "its log's target is there again");
        }
        if too_large > 0 {
            self.tell_lost(too_large, "too large for the log's target");
        }
        Ok(())
    }

    fn note_doubt(&mut self) {
        while self.in_doubt.front().is_some_and(|(_, at)| at.elapsed() > IN_DOUBT) {
            self.in_doubt.pop_front();
        }
        if self.in_doubt.back().is_none_or(|(_, at)| at.elapsed() > DOUBT_STEP) {
            self.in_doubt.push_back((self.sent, Instant::now()));
        }
    }

    /// The connection broke: what may be lost in it is read again. False if nothing may be.
    fn go_back(&mut self) -> bool {
        let doubt = self.in_doubt.drain(..).find(|(_, at)| at.elapsed() < IN_DOUBT);
        let (Some((from, _)), Some(spool)) = (doubt, &mut self.spool) else { return false };
        spool.rewind(from);
        self.sent = from;
        true
    }

    async fn note_sent(&mut self, last: u64) {
        self.sent = last;
        match self.keep_at {
            None => self.keep_at = Some(Instant::now() + KEEP),
            Some(at) if at <= Instant::now() => self.keep().await,
            Some(_) => {}
        }
    }

    /// Keeps the position.
    async fn keep(&mut self) {
        self.keep_at = None;
        if self.sent == self.kept {
            return;
        }
        let (live, sent) = (self.live.clone(), self.sent);
        match on_thread(move || spool::keep_position(&live, sent)).await {
            Ok(()) => self.kept = sent,
            // The container is gone.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
            Err(err) => {
                tracing::warn!(container = %self.container.id, error = %err, "keep how far its log was sent");
            }
        }
    }

    /// The container has ended and all was sent: nothing is held until it starts again.
    async fn rest(&mut self) {
        self.keep().await;
        self.in_doubt.clear();
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Counts what is never sent.
    async fn give_up(&mut self, mut lines: u64) {
        while let Ok((batch, _)) = self.read().await {
            if batch.records == 0 {
                break;
            }
            lines += batch.records + batch.lost;
        }
        self.tell_lost(lines, "the container was removed while its log's target was away");
    }

    fn tell_lost(&self, lines: u64, reason: &str) {
        tracing::warn!(container = %self.container.id, target = %self.target.address(), lines, reason, "log lines dropped");
        let attributes = [("lines", lines.to_string()), ("reason", reason.to_owned())];
        let attributes = attributes.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.container.publish(&self.engine, "log_dropped", &attributes);
    }
}

/// What the target confirms a batch with; not two the same.
fn new_chunk() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|err| std::io::Error::other(err.to_string()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::container::logs::record::Source;

    /// A container as the tests of the formats have it.
    pub fn about() -> About {
        let id = "0123456789ab".repeat(6)[..64].to_owned();
        About {
            short_id: id[..12].to_owned(),
            tag: id[..12].to_owned(),
            id,
            name: "c1".into(),
            slashed_name: "/c1".into(),
            image: "busybox".into(),
            extra: vec![("ab-c.1".into(), "q".into())],
            host: "vm".into(),
            pid: 8656,
            zone: TimeZone::UTC,
        }
    }

    /// A record of its log.
    pub fn entry(line: &[u8]) -> Entry<'_> {
        let nanos = 1_796_141_111_674_992_005;
        Entry { source: Source::Stdout, nanos, line, part: None, sequence: 7 }
    }
}
