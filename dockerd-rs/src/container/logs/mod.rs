//! A container's log: finding the records a client asked for and sending them, and going on as the log grows.
//!
//! The shim writes the files, here they are only read. Invariant: a client that does not read costs one waiting task and nothing else; no
//! thread, no lock and no part of the container waits for it.

pub mod files;
pub mod follow;
pub mod format;
pub mod forward;
pub mod options;
pub mod query;
pub mod readers;
pub mod record;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use self::files::{Blocks, Form, LogFile, Start};
use self::follow::{Ear, Growth};
pub use self::format::Format;
pub use self::query::Query;
use self::record::{Source, Stamp};

/// Where a container's log is.
#[derive(Clone, Debug)]
pub struct LogPlace {
    /// The live file.
    pub path: PathBuf,
    /// Its form.
    pub form: Form,
}

/// Until when a log is followed.
pub enum Follow {
    /// Not at all: what is there, and the end.
    No,
    /// As long as the value is true, and then to the end of the log.
    While(watch::Receiver<bool>),
}

/// Sends what `query` asks of the log at `place` to `to`, in chunks, until the end, or until nobody takes them any more.
pub async fn send(
    place: LogPlace,
    query: Query,
    format: Format,
    mut follow: Follow,
    growth: Option<&Growth>,
    to: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    // Before the first look, so that nothing is written unheard after the last one.
    let mut ear = match follow {
        Follow::While(_) => growth.and_then(|growth| growth.listen(&place.path).ok()),
        Follow::No => None,
    };
    let until = query.until.map(|(_, at)| at);
    let path = place.path.clone();
    let mut reader = on_thread(move || Reader::open(place, query, format)).await?;
    let mut caught_up = false;
    loop {
        // What is there now is all there will be, if the container had ended before this look.
        let last_look = match &mut follow {
            Follow::No => true,
            Follow::While(alive) => !*alive.borrow_and_update(),
        };
        loop {
            let read = move || {
                let (chunk, more) = reader.next_chunk()?;
                Ok((reader, chunk, more))
            };
            let (read_on, chunk, more) = match growth.filter(|_| caught_up) {
                Some(growth) => growth.readers().run(read).await?,
                None => on_thread(read).await?,
            };
            reader = read_on;
            if !chunk.is_empty() && to.send(chunk).await.is_err() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        if last_look || reader.past_until {
            return Ok(());
        }
        caught_up = true;
        let Follow::While(alive) = &mut follow else { return Ok(()) };
        tokio::select! {
            () = grown(ear.as_mut()) => {}
            changed = alive.changed() => {
                if changed.is_err() {
                    follow = Follow::No;
                }
            }
            () = to.closed() => return Ok(()),
            () = at(until) => return Ok(()),
        }
        if ear.is_none() {
            // The log's directory appears with the container's first start.
            ear = growth.and_then(|growth| growth.listen(&path).ok());
        }
    }
}

/// Without an ear (too many watches), looking twice a second has to do.
async fn grown(ear: Option<&mut Ear>) {
    match ear {
        Some(ear) => ear.grown().await,
        None => tokio::time::sleep(Duration::from_millis(500)).await,
    }
}

async fn at(moment: Option<jiff::Timestamp>) {
    match moment {
        None => std::future::pending().await,
        Some(moment) => {
            let left = moment.duration_since(jiff::Timestamp::now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
    }
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A reader's place in the log.
struct Reader {
    place: LogPlace,
    query: Query,
    format: Format,
    /// Files not begun yet, oldest last.
    waiting: Vec<LogFile>,
    current: Option<Blocks>,
    start: Start,
    /// The youngest record sent, for finding the place again when rotation overtook us.
    last: Option<Stamp>,
    /// Records up to this one were sent already.
    skip_to: Option<Stamp>,
    past_until: bool,
}

impl Reader {
    fn open(place: LogPlace, query: Query, format: Format) -> io::Result<Self> {
        let mut files = files::open_all(&place.path)?;
        let start = match query.tail {
            Some(count) => files::keep_last(&mut files, place.form, count)?,
            None => Start::Offset(0),
        };
        files.reverse();
        Ok(Self {
            place,
            query,
            format,
            waiting: files,
            current: None,
            start,
            last: None,
            skip_to: None,
            past_until: false,
        })
    }

    /// The next records in the wire's form, and whether there may be more at once.
    fn next_chunk(&mut self) -> io::Result<(Bytes, bool)> {
        let mut out = Vec::new();
        loop {
            let Some(blocks) = &mut self.current else {
                match self.waiting.pop() {
                    Some(file) => {
                        let start = std::mem::replace(&mut self.start, Start::Offset(0));
                        self.current = Some(Blocks::new(file, self.place.form, start)?);
                        continue;
                    }
                    None if self.find_newer()? => continue,
                    None => return Ok((Bytes::from(out), false)),
                }
            };
            while let Some(record) = blocks.next(self.query.details) {
                let Some(record) = record else { continue };
                if self.skip_to.is_some_and(|skip| record.stamp <= skip) {
                    continue;
                }
                self.last = Some(record.stamp);
                if self.query.since.is_some_and(|since| record.stamp < since) {
                    continue;
                }
                if self.query.until.is_some_and(|(until, _)| record.stamp > until) {
                    self.past_until = true;
                    return Ok((Bytes::from(out), false));
                }
                let wanted = match record.source {
                    Source::Stdout => self.query.stdout,
                    Source::Stderr => self.query.stderr,
                };
                if wanted {
                    format::append(&record, &self.query, self.format, &mut out);
                }
            }
            if !out.is_empty() {
                return Ok((Bytes::from(out), true));
            }
            if !blocks.fill()? {
                if self.waiting.is_empty() && !self.find_newer()? {
                    if let Some(blocks) = &mut self.current {
                        blocks.rest();
                    }
                    return Ok((Bytes::from(out), false));
                }
                if !self.waiting.is_empty() {
                    self.current = None;
                }
            }
        }
    }

    /// After the end of the youngest known file: has the log been rotated since? Then the files after ours are queued.
    fn find_newer(&mut self) -> io::Result<bool> {
        let Some(live) = files::inode_at(&self.place.path) else { return Ok(false) };
        let Some(current) = &mut self.current else {
            // There was no file at all before.
            self.waiting = files::open_all(&self.place.path)?;
            self.waiting.reverse();
            return Ok(!self.waiting.is_empty());
        };
        if current.inode() == live {
            return Ok(false);
        }
        // The writer went on elsewhere; what it wrote here before is complete now, but perhaps not read yet.
        if current.fill()? {
            return Ok(true);
        }
        let ours = current.inode();
        let mut files = files::open_all(&self.place.path)?;
        match files.iter().position(|file| file.inode() == ours) {
            Some(at) => {
                files.drain(..=at);
            }
            // Ours was compressed or dropped meanwhile: read on by time.
            None => self.skip_to = self.last,
        }
        files.reverse();
        self.waiting = files;
        Ok(!self.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::Path;

    fn write(path: &Path, from: usize, to: usize) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for number in from..to {
            let at = jiff::Timestamp::from_nanosecond(1_700_000_000_000_000_000 + number as i128).unwrap();
            let line = format!("{{\"log\":\"{number}\\n\",\"stream\":\"stdout\",\"time\":\"{at}\"}}\n");
            file.write_all(line.as_bytes()).unwrap();
        }
    }

    fn rotate(dir: &Path, compress: bool) {
        let name = |number: usize| dir.join(format!("x.{number}"));
        for number in (1..8).rev() {
            let _ = std::fs::rename(name(number), name(number + 1));
            let gz = |number: usize| dir.join(format!("x.{number}.gz"));
            let _ = std::fs::rename(gz(number), gz(number + 1));
        }
        std::fs::rename(dir.join("x"), name(1)).unwrap();
        std::fs::File::create(dir.join("x")).unwrap();
        if compress {
            let bytes = std::fs::read(name(1)).unwrap();
            let file = std::fs::File::create(dir.join("x.1.gz")).unwrap();
            let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            gz.write_all(&bytes).unwrap();
            gz.finish().unwrap();
            std::fs::remove_file(name(1)).unwrap();
        }
    }

    async fn follow_across(compress: bool, rotations: usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, 0, 10);
        let growth = Growth::new().unwrap();
        let (alive, watching) = watch::channel(true);
        let (to, mut from) = mpsc::channel(4);
        let place = LogPlace { path: path.clone(), form: Form::JsonFile };
        let query = Query { stdout: true, follow: true, ..Query::default() };
        let sending = tokio::spawn(async move {
            send(place, query, Format::Raw, Follow::While(watching), Some(&growth), to).await
        });
        let mut got = Vec::new();
        while got.len() < 20 {
            got.extend_from_slice(&from.recv().await.unwrap());
        }
        let mut number = 10;
        for _ in 0..rotations {
            write(&path, number, number + 5);
            rotate(dir.path(), compress);
            number += 5;
        }
        write(&path, number, number + 3);
        alive.send_replace(false);
        while let Some(chunk) = from.recv().await {
            got.extend_from_slice(&chunk);
        }
        sending.await.unwrap().unwrap();
        let expected: String = (0..number + 3).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(got).unwrap(), expected);
    }

    #[tokio::test]
    async fn following_goes_on_across_one_rotation_and_several() {
        for rotations in 0..4 {
            follow_across(false, rotations).await;
            follow_across(true, rotations).await;
        }
    }
}
