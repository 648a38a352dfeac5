//! The log as a queue: the shim puts numbered records in, and they are taken out in order until the last one sent.
//!
//! Invariant: a gap between the number wanted and the number found is a record that rotation has removed, and nothing else is: that is
//! how losses are counted, whoever was dead or busy meanwhile.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Entry;
use crate::container::logs::files::{self, Blocks, Form, LogFile, Start};
use crate::container::logs::record::parse_entry;

/// The version of the file that keeps the position.
const VERSION: u32 = 1;
/// Encoded bytes after which a batch is full.
const BATCH: usize = 128 << 10;

/// How far a log has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    version: u32,
    /// The number of the last record that was.
    sent: u64,
}

/// Where the position of the log `live` is kept: beside it.
fn position_path(live: &Path) -> PathBuf {
    live.with_extension("position")
}

/// The number of the last record that was sent; 0 before the first, and when nobody knows any more.
pub fn position(live: &Path) -> u64 {
    let path = position_path(live);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return 0,
        Err(err) => {
            tracing::warn!(path = %path.display(), error = %err, "how far a log was sent is not known; it is sent again");
            return 0;
        }
    };
    match serde_json::from_slice::<Position>(&bytes) {
        Ok(position) if position.version == VERSION => position.sent,
        _ => {
            tracing::warn!(path = %path.display(), "how far a log was sent cannot be read; it is sent again");
            0
        }
    }
}

/// Keeps it.
///
/// # Errors
/// The file cannot be written.
pub fn keep_position(live: &Path, sent: u64) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Position { version: VERSION, sent }).map_err(io::Error::other)?;
    sys::atomicfile::write(&position_path(live), 0o600, &bytes)
}

/// The number the next record gets that a shim writes: after all in the log, and after all that were sent, also when the log was lost since.
pub fn next_number(live: &Path) -> u64 {
    let in_log = || -> io::Result<u64> {
        let mut files = files::open_all(live)?;
        let mut start = files::keep_last(&mut files, Form::Local, 1)?;
        let mut last = 0;
        for file in files {
            let mut blocks = Blocks::new(file, Form::Local, start)?;
            start = Start::Offset(0);
            loop {
                while let Some(raw) = blocks.next_raw() {
                    last = parse_entry(raw).map_or(last, |entry| last.max(entry.sequence));
                }
                if !blocks.fill()? {
                    break;
                }
            }
        }
        Ok(last)
    };
    let last = in_log().unwrap_or_else(|err| {
        tracing::warn!(path = %live.display(), error = %err, "read the end of a log");
        0
    });
    last.max(position(live)) + 1
}

/// Encoded records, as many as make a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The messages, one after the other.
    pub bytes: Vec<u8>,
    /// Where each message ends.
    pub ends: Vec<usize>,
    /// The number of the last record in it.
    pub last: u64,
    /// Records before or among them that rotation has removed.
    pub lost: u64,
    /// Records taken, also those without a message.
    pub records: u64,
}

/// A reader's place in the queue.
pub struct Spool {
    live: PathBuf,
    /// The number of the last record taken.
    taken: u64,
    /// No record up to this one counts as lost any more.
    known: u64,
    current: Option<Blocks>,
}

impl Spool {
    /// Begins after record number `taken`.
    pub fn new(live: &Path, taken: u64) -> Self {
        Self { live: live.to_owned(), taken, known: taken, current: None }
    }

    /// Goes back to after record number `taken`.
    pub fn rewind(&mut self, taken: u64) {
        self.known = self.known.max(self.taken);
        self.taken = self.taken.min(taken);
        self.current = None;
    }

    /// Takes the next records and has each encoded; `encode` says whether it made a message. Without any there is nothing new.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn next_batch(
        &mut self,
        mut encode: impl FnMut(&Entry<'_>, &mut Vec<u8>) -> bool,
    ) -> io::Result<Batch> {
        let mut batch = Batch { last: self.taken, ..Batch::default() };
        loop {
            let Some(blocks) = &mut self.current else {
                if self.find()? {
                    continue;
                }
                return Ok(batch);
            };
            while let Some(raw) = blocks.next_raw() {
                // What cannot be read has no number either, and shows as a gap.
                let Some(entry) = parse_entry(raw).filter(|entry| entry.sequence > self.taken) else {
                    continue;
                };
                batch.lost += (entry.sequence - 1).saturating_sub(self.taken.max(self.known));
                self.taken = entry.sequence;
                batch.last = entry.sequence;
                batch.records += 1;
                if encode(&entry, &mut batch.bytes) {
                    batch.ends.push(batch.bytes.len());
                }
                if batch.bytes.len() >= BATCH {
                    return Ok(batch);
                }
            }
            if !blocks.fill()? {
                blocks.rest();
                if batch.records > 0 || !self.find()? {
                    return Ok(batch);
                }
            }
        }
    }

    /// Finds the file to read next. False when there is nothing after what was read.
    fn find(&mut self) -> io::Result<bool> {
        if let Some(current) = &mut self.current {
            match files::inode_at(&self.live) {
                // In the middle of a rotation: the new file's appearance is heard.
                None => return Ok(false),
                Some(live) if live == current.inode() => return Ok(false),
                Some(_) => {}
            }
            // The writer went on elsewhere; what it wrote here before is complete now, but perhaps not read yet.
            if current.fill()? {
                return Ok(true);
            }
        }
        let read_one = self.current.is_some();
        let mut chosen = None;
        for file in settled(&self.live)? {
            let mut blocks = Blocks::new(file, Form::Local, Start::Offset(0))?;
            while blocks.peek_raw().is_none() && blocks.fill()? {}
            let first = blocks.peek_raw().map(|raw| parse_entry(raw).map_or(0, |entry| entry.sequence));
            match first {
                // The live one, still empty.
                None => chosen = chosen.or(Some(blocks)),
                // Records already taken, and perhaps others after them, unless the file is the one just read or an older one.
                Some(first) if first <= self.taken => chosen = if read_one { chosen } else { Some(blocks) },
                Some(first) => {
                    if first == self.taken + 1 || chosen.is_none() {
                        chosen = Some(blocks);
                    }
                    break;
                }
            }
        }
        let found = chosen.is_some();
        if found {
            self.current = chosen;
        }
        Ok(found)
    }
}

/// The log's files, looked up again until no rotation or compression came between the look at the names and the opening.
fn settled(live: &Path) -> io::Result<Vec<LogFile>> {
    let inodes = |files: &[LogFile]| files.iter().map(LogFile::inode).collect::<Vec<_>>();
    let mut files = files::open_all(live)?;
    for _ in 0..16 {
        let again = files::open_all(live)?;
        if inodes(&again) == inodes(&files) {
            return Ok(again);
        }
        files = again;
    }
    // It rotates faster than anybody could read: what is missed is counted.
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn append(path: &Path, numbers: std::ops::RangeInclusive<u64>) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        for number in numbers {
            let text = number.to_string();
            let mut message = vec![0x0a, 6];
            message.extend_from_slice(b"stdout");
            message.extend_from_slice(&[0x10, 1, 0x1a, u8::try_from(text.len()).unwrap()]);
            message.extend_from_slice(text.as_bytes());
            message.extend_from_slice(&[15 << 3, u8::try_from(number).unwrap()]);
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            file.write_all(&[&length[..], &message, &length].concat()).unwrap();
        }
    }

    fn rotate(dir: &Path, keep: usize, compress: bool) {
        let name = |number: usize, end: &str| dir.join(format!("x.log.{number}{end}"));
        for number in (1..=keep).rev() {
            for end in ["", ".gz"] {
                let _ = std::fs::rename(name(number, end), name(number + 1, end));
                let _ = std::fs::remove_file(name(keep + 1, end));
            }
        }
        std::fs::rename(dir.join("x.log"), name(1, "")).unwrap();
        std::fs::File::create(dir.join("x.log")).unwrap();
        if compress {
            let bytes = std::fs::read(name(1, "")).unwrap();
            let file = std::fs::File::create(name(1, ".gz")).unwrap();
            let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            gz.write_all(&bytes).unwrap();
            gz.finish().unwrap();
            std::fs::remove_file(name(1, "")).unwrap();
        }
    }

    fn take(spool: &mut Spool) -> (String, u64) {
        let (mut lines, mut lost) = (Vec::new(), 0);
        loop {
            let batch = spool
                .next_batch(|entry, _| {
                    lines.push(String::from_utf8(entry.line.to_vec()).unwrap());
                    false
                })
                .unwrap();
            lost += batch.lost;
            if batch.records == 0 {
                return (lines.join(" "), lost);
            }
        }
    }

    #[test]
    fn every_record_is_taken_once_across_rotations_and_restarts() {
        for (compress, restart) in [(false, false), (false, true), (true, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            let live = dir.path().join("x.log");
            let mut spool = Spool::new(&live, 0);
            assert_eq!(take(&mut spool), (String::new(), 0));
            append(&live, 1..=3);
            assert_eq!(take(&mut spool), ("1 2 3".into(), 0));
            append(&live, 4..=5);
            rotate(dir.path(), 4, compress);
            if restart {
                spool = Spool::new(&live, 3);
            }
            // The live file is empty yet.
            assert_eq!(take(&mut spool), ("4 5".into(), 0), "{compress} {restart}");
            assert_eq!(take(&mut spool), (String::new(), 0));
            append(&live, 6..=7);
            rotate(dir.path(), 4, compress);
            append(&live, 8..=9);
            rotate(dir.path(), 4, compress);
            append(&live, 10..=10);
            if restart {
                spool = Spool::new(&live, 6);
                assert_eq!(take(&mut spool), ("7 8 9 10".into(), 0));
            } else {
                assert_eq!(take(&mut spool), ("6 7 8 9 10".into(), 0));
            }
        }
    }

    #[test]
    fn what_rotation_removed_is_counted() {
        for compress in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let live = dir.path().join("x.log");
            append(&live, 1..=4);
            let mut spool = Spool::new(&live, 0);
            assert_eq!(take(&mut spool), ("1 2 3 4".into(), 0));
            append(&live, 5..=6);
            for from in [7, 9, 11] {
                rotate(dir.path(), 1, compress);
                append(&live, from..=from + 1);
            }
            // 5 and 6 are in the file that was open; a new reader does not have that one.
            assert_eq!(take(&mut spool), ("5 6 9 10 11 12".into(), 2), "{compress}");
            assert_eq!(take(&mut Spool::new(&live, 4)), ("9 10 11 12".into(), 4));
            // What was taken before is not lost when it is gone at the second time.
            spool.rewind(6);
            append(&live, 13..=13);
            assert_eq!(take(&mut spool), ("9 10 11 12 13".into(), 0));
        }
    }

    #[test]
    fn numbers_go_on_after_the_log_and_after_the_position() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("x.log");
        assert_eq!(next_number(&live), 1);
        append(&live, 1..=4);
        assert_eq!(next_number(&live), 5);
        rotate(dir.path(), 1, true);
        assert_eq!(next_number(&live), 5);
        keep_position(&live, 90).unwrap();
        assert_eq!((next_number(&live), position(&live)), (91, 90));
        // The first version of the file, as it stays readable.
        std::fs::write(dir.path().join("x.position"), br#"{"version":1,"sent":12}"#).unwrap();
        assert_eq!(position(&live), 12);
        std::fs::write(dir.path().join("x.position"), b"").unwrap();
        assert_eq!(position(&live), 0);
    }
}
