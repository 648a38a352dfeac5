//! The journal's files: segments of JSON lines, named by the number of their first event.
//!
//! Invariants: only the newest segment is written to; a line counts when it ends in a newline and parses; all segments together stay below
//! [`MAX_SEGMENTS`] × [`SEGMENT_BYTES`], the oldest going first.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Event, Subject};

/// Where a new segment begins, in bytes.
const SEGMENT_BYTES: u64 = 2 << 20;
/// How many segments are kept.
const MAX_SEGMENTS: usize = 8;
/// How many events are kept in memory.
const RECENT: usize = 256;
/// How many events one read gives at most.
const BATCH: usize = 256;

/// The journal of one engine.
pub struct Journal {
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// First sequence numbers of the segments, oldest first.
    segments: Vec<u64>,
    /// The newest segment, if it could be opened.
    file: Option<File>,
    bytes: u64,
    newest: u64,
    last_time: i64,
    recent: VecDeque<Arc<Event>>,
    dirty: bool,
    failing: bool,
}

/// Where a reader is: the number it wants next, and perhaps an open file that stands there.
pub struct Position {
    sequence: u64,
    file: Option<BufReader<File>>,
}

impl Position {
    /// Behind the event `sequence`.
    pub fn after(sequence: u64) -> Self {
        Self { sequence: sequence + 1, file: None }
    }

    /// The number wanted next.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Journal {
    /// Opens or makes the journal in `dir`.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            let first = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            segments.extend(first.and_then(|first| u64::from_str_radix(first, 16).ok()));
        }
        segments.sort_unstable();
        let mut state = State {
            segments,
            file: None,
            bytes: 0,
            newest: 0,
            last_time: 0,
            recent: VecDeque::with_capacity(RECENT),
            dirty: false,
            failing: false,
        };
        let journal =
            Self { dir: dir.to_owned(), state: Mutex::new(State { segments: Vec::new(), ..State::empty() }) };
        if let Some(&last) = state.segments.last() {
            let path = journal.path(last);
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            state.newest = last.saturating_sub(1);
            let whole = scan(&mut file, &mut state)?;
            // What a crash cut short is no event.
            file.set_len(whole)?;
            file.seek(SeekFrom::End(0))?;
            state.bytes = whole;
            state.file = Some(file);
        }
        *journal.state() = state;
        Ok(journal)
    }

    fn path(&self, first: u64) -> PathBuf {
        self.dir.join(format!("{first:016x}.jsonl"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the newest event; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.state().newest
    }

    /// Appends an event; gives its number.
    pub fn append(
        &self,
        subject: Subject,
        action: String,
        id: String,
        attributes: BTreeMap<String, String>,
        happened_nano: Option<i64>,
    ) -> u64 {
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let mut state = self.state();
        // Two events never have the same time, unless someone set the clock back by more than a second.
        let time_nano = if now > state.last_time || state.last_time - now > 1_000_000_000 {
            now
        } else {
            state.last_time + 1
        };
        let sequence = state.newest + 1;
        let event = Event { sequence, subject, action, id, attributes, time_nano, happened_nano };
        state.newest = sequence;
        state.last_time = time_nano;
        match self.write(&mut state, &event) {
            Ok(()) => state.failing = false,
            Err(err) => {
                // Once per trouble, not once per event: a full disk makes many.
                if !std::mem::replace(&mut state.failing, true) {
                    tracing::error!(error = %err, "events cannot be written to the journal");
                }
                state.file = None;
            }
        }
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::new(event));
        sequence
    }

    fn write(&self, state: &mut State, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        if state.file.is_none() || state.bytes + line.len() as u64 > SEGMENT_BYTES {
            self.rotate(state, event.sequence)?;
        }
        let Some(file) = &mut state.file else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(err) = file.write_all(&line) {
            // A half line in the middle would hide its successor.
            let _ = file.set_len(state.bytes);
            return Err(err);
        }
        state.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&self, state: &mut State, first: u64) -> io::Result<()> {
        if let Some(old) = state.file.take() {
            old.sync_data()?;
        }
        let path = self.path(first);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        if state.segments.last() != Some(&first) {
            state.segments.push(first);
        }
        state.file = Some(file);
        state.bytes = 0;
        while state.segments.len() > MAX_SEGMENTS {
            let oldest = state.segments.remove(0);
            std::fs::remove_file(self.path(oldest))?;
        }
        Ok(())
    }

    /// Whether the caller is the one who has to see to a flush.
    pub fn wants_flush(&self) -> bool {
        !std::mem::replace(&mut self.state().dirty, true)
    }

    /// Makes what was written durable.
    pub fn flush(&self) {
        let file = {
            let mut state = self.state();
            state.dirty = false;
            state.file.as_ref().map(File::try_clone)
        };
        if let Some(Ok(file)) = file
            && let Err(err) = file.sync_data()
        {
            tracing::warn!(error = %err, "event journal not synced");
        }
    }

    /// Where the events of `time` and later begin: at the first segment that may hold one.
    pub fn position_at(&self, time: i64) -> Position {
        let (segments, newest) = {
            let state = self.state();
            (state.segments.clone(), state.newest)
        };
        let mut start = None;
        for &first in segments.iter().rev() {
            start = Some(first);
            let began = File::open(self.path(first)).ok().and_then(|file| {
                let mut line = String::new();
                BufReader::new(file).read_line(&mut line).ok()?;
                serde_json::from_str::<Event>(&line).ok()
            });
            if began.is_some_and(|event| event.time_nano <= time) {
                break;
            }
        }
        start.map_or(Position::after(newest), |first| Position::after(first - 1))
    }

    /// Events from `position` on, if memory holds them.
    pub fn recent(&self, position: &Position) -> Option<(Position, Vec<Arc<Event>>)> {
        let state = self.state();
        let first = state.recent.front()?.sequence;
        if position.sequence < first {
            return None;
        }
        let skip = usize::try_from(position.sequence - first).unwrap_or(usize::MAX);
        let events: Vec<_> = state.recent.iter().skip(skip).cloned().collect();
        Some((Position::after(state.newest), events))
    }

    /// Up to [`BATCH`] events from `position` on, from the files. Blocks on the disk.
    pub fn read(&self, mut position: Position) -> (Position, Vec<Arc<Event>>) {
        let mut events = Vec::new();
        while events.len() < BATCH {
            if position.file.is_none() {
                match self.segment_for(position.sequence) {
                    Some(file) => position.file = Some(file),
                    None => break,
                }
            }
            let Some(file) = &mut position.file else { break };
            match next_event(file) {
                Some(event) if event.sequence < position.sequence => {}
                Some(event) => {
                    if event.sequence > position.sequence {
                        events.push(Arc::new(lost(position.sequence, &event)));
                    }
                    position.sequence = event.sequence + 1;
                    events.push(Arc::new(event));
                }
                None => {
                    position.file = None;
                    // The end of a segment: the next one, or the events that are still in memory.
                    if !self.has_segment_from(position.sequence) {
                        break;
                    }
                }
            }
        }
        if events.is_empty() {
            // Nothing readable where something should be: go on with what memory has, and say so.
            let state = self.state();
            if let Some(first) = state.recent.front()
                && position.sequence < first.sequence
            {
                events.push(Arc::new(lost(position.sequence, first)));
                position.sequence = first.sequence;
            }
        }
        (position, events)
    }

    fn segment_for(&self, sequence: u64) -> Option<BufReader<File>> {
        let segments = self.state().segments.clone();
        let at = segments.partition_point(|first| *first <= sequence).saturating_sub(1);
        File::open(self.path(*segments.get(at)?)).ok().map(|file| BufReader::with_capacity(32 << 10, file))
    }

    fn has_segment_from(&self, sequence: u64) -> bool {
        self.state().segments.last().is_some_and(|last| *last >= sequence)
    }
}

impl State {
    fn empty() -> Self {
        Self {
            segments: Vec::new(),
            file: None,
            bytes: 0,
            newest: 0,
            last_time: 0,
            recent: VecDeque::new(),
            dirty: false,
            failing: false,
        }
    }
}

/// Reads a whole segment into `state`; gives the bytes up to the end of the last whole event.
fn scan(file: &mut File, state: &mut State) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut whole, mut line) = (0_u64, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok(whole);
        }
        let Ok(event) = serde_json::from_slice::<Event>(&line) else { return Ok(whole) };
        whole += read as u64;
        state.newest = event.sequence;
        state.last_time = event.time_nano;
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::new(event));
    }
}

fn next_event(reader: &mut BufReader<File>) -> Option<Event> {
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).ok()?;
        if line.last() != Some(&b'\n') {
            return None;
        }
        match serde_json::from_slice(&line) {
            Ok(event) => return Some(event),
            // Damage on the disk costs one line; the gap in the numbers shows it.
            Err(_) => continue,
        }
    }
}

/// What a reader is told in place of events that are gone.
fn lost(from: u64, next: &Event) -> Event {
    let count = next.sequence - from;
    Event {
        sequence: next.sequence - 1,
        subject: Subject::Daemon,
        action: "events-lost".into(),
        id: String::new(),
        attributes: BTreeMap::from([
            ("count".into(), count.to_string()),
            ("reason".into(), "the journal no longer has them".into()),
        ]),
        time_nano: next.time_nano,
        happened_nano: None,
    }
}
