//! A log file: written in large pieces, rotated, and never a reason for the container to wait.
//!
//! Encoded lines are gathered and written once per turn of output. A file that has reached its size is renamed away before the next line; old ones are
//! compressed by a thread that lives only meanwhile. A write that fails drops its lines and counts them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::lines::{Encoder, Piece, Stream};
use super::{attach, buffers, request};
use crate::clock::Instant;

/// What a log is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Of the live file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// When to rotate, in bytes.
    pub max_size: Option<u64>,
    /// How many files, the live one included; at least 1.
    pub max_file: u32,
    /// Whether old files are compressed.
    pub compress: bool,
}

/// A log's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// json-file with these attributes.
    Json(std::collections::BTreeMap<String, String>),
    /// local, with numbered records if there is a number for the next.
    Local(Option<u64>),
}

impl Settings {
    /// From a checked request; `None` for the driver `none`.
    pub fn of(log: &request::Log) -> Option<Settings> {
        let format = match log.driver.as_str() {
            "json-file" => Format::Json(log.attrs.clone()),
            "local" => Format::Local(log.sequence),
            _ => return None,
        };
        Some(Settings {
            path: log.path.clone(),
            format,
            max_size: u64::try_from(log.max_size).ok().filter(|size| *size > 0),
            max_file: log.max_file.max(1),
            compress: log.compress,
        })
    }
}

/// That lines are being dropped, or that writing works again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// How many so far, since the log was opened.
    pub lines: u64,
    /// The C library's words.
    pub reason: String,
}

/// An open log.
pub struct LogFile {
    settings: Settings,
    encoder: Encoder,
    file: File,
    size: u64,
    out: Option<Vec<u8>>,
    lines: u64,
    seq: u64,
    dropped: u64,
    /// Dropped since the last marker, and why.
    unreported: Option<(u64, String)>,
    news: Option<Dropped>,
    compressor: Rc<Compressor>,
}

impl LogFile {
    /// Opens or continues a log.
    pub fn open(settings: Settings) -> io::Result<LogFile> {
        let file = open_live(&settings.path, false)?;
        let size = file.metadata()?.len();
        let encoder = match &settings.format {
            Format::Json(attrs) => Encoder::json(attrs),
            Format::Local(sequence) => Encoder::local(*sequence),
        };
        let compressor = Rc::new(Compressor::new(&settings));
        Ok(LogFile {
            settings,
            encoder,
            file,
            size,
            out: None,
            lines: 0,
            seq: 0,
            dropped: 0,
            unreported: None,
            news: None,
            compressor,
        })
    }

    /// Sets the time of the pieces that follow.
    pub fn begin(&mut self, now: Instant) {
        self.encoder.set_time(now);
        if let Some((count, why)) = self.unreported.clone() {
            let text = format!("[dockerd-rs: {count} log lines dropped: {why}]");
            let (before, news) = (self.dropped, self.news.take());
            self.unreported = None;
            self.piece(Stream::Stderr, Piece { bytes: text.as_bytes(), ends_line: true, part: None });
            self.flush();
            if self.dropped > before {
                // Still no room. The marker itself is no line of the container's.
                self.dropped = before;
                self.unreported = Some((count, why));
                self.news = news;
            } else {
                self.news = Some(Dropped { lines: before, reason: why });
            }
        }
    }

    /// Adds one piece; rotates first if the file is full.
    pub fn piece(&mut self, stream: Stream, piece: Piece<'_>) {
        let gathered = self.out.as_ref().map_or(0, Vec::len);
        let full = self.settings.max_size.is_some_and(|max| self.size + gathered as u64 >= max);
        if full {
            self.flush();
            // What could not be written leaves the file as it was.
            if self.settings.max_size.is_some_and(|max| self.size >= max) {
                self.rotate();
            }
        } else if gathered >= buffers::OUTPUT {
            self.flush();
        }
        let out = self.out.get_or_insert_with(buffers::output);
        self.encoder.encode(out, stream, piece);
        self.lines += 1;
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) {
        let Some(out) = self.out.take() else { return };
        if !out.is_empty() {
            self.write(&out);
        }
        self.lines = 0;
        buffers::give_back_output(out);
    }

    fn write(&mut self, out: &[u8]) {
        let mut written = 0;
        let failure = loop {
            match rustix::io::write(&self.file, &out[written..]) {
                Ok(count) => {
                    written += count;
                    if written == out.len() {
                        break None;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => break Some(io::Error::from(err)),
            }
        };
        let mut whole = written;
        if let Some(err) = failure {
            let dropped;
            (whole, dropped) = self.encoder.whole_entries(out, written);
            if whole < written {
                // Half a line would spoil the next one.
                let _ = self.file.set_len(self.size + whole as u64);
            }
            self.dropped += dropped;
            self.encoder.take_back(dropped);
            let reason = reason(&err);
            let before = match self.unreported.take() {
                Some((before, _)) => before,
                None => {
                    self.news = Some(Dropped { lines: self.dropped, reason: reason.clone() });
                    0
                }
            };
            self.unreported = Some((before + dropped, reason));
        }
        self.size += whole as u64;
        if whole > 0 {
            self.seq += 1;
        }
    }

    fn rotate(&mut self) {
        let path = &self.settings.path;
        if self.settings.max_file < 2 {
            // There is no place for an old file: the live one starts over. A new file, so that readers notice by its number.
            let _ = std::fs::remove_file(path);
        } else {
            self.compressor.shift();
        }
        match open_live(path, true) {
            Ok(file) => {
                let old = std::mem::replace(&mut self.file, file);
                self.size = 0;
                if self.settings.max_file >= 2 && self.settings.compress {
                    drop(old);
                    self.compressor.clone().add();
                }
            }
            // Writing goes on into the renamed file; nothing is lost, it only grows.
            Err(_) => self.size = 0,
        }
    }

    /// Grows with the file.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Lines that could not be written so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What there is to tell of dropped lines: once when it begins, once when it is over.
    pub fn take_news(&mut self) -> Option<Dropped> {
        self.news.take()
    }

    /// Bytes in the live file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The last words: says what was dropped if nothing could be said since.
    pub fn finish(&mut self) {
        self.begin(Instant::now());
        self.flush();
        buffers::release();
    }
}

fn open_live(path: &Path, fresh: bool) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).create_new(fresh).mode(0o640).open(path)
}

/// The C library's words for an error, without the number Rust adds.
fn reason(err: &io::Error) -> String {
    let text = err.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Renames old files and has them compressed, one at a time.
struct Compressor {
    path: PathBuf,
    max_file: u32,
    rotations: std::cell::Cell<u64>,
    waiting: std::cell::RefCell<VecDeque<(u64, File)>>,
    busy: std::cell::Cell<bool>,
}

impl Compressor {
    fn new(settings: &Settings) -> Compressor {
        Compressor {
            path: settings.path.clone(),
            max_file: settings.max_file,
            rotations: std::cell::Cell::new(0),
            waiting: Default::default(),
            busy: std::cell::Cell::new(false),
        }
    }

    fn numbered(&self, number: u32, extension: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}{extension}"));
        name.into()
    }

    /// Makes every old file one older, drops the oldest, and the live file number 1.
    fn shift(&self) {
        for number in (1..self.max_file).rev() {
            for extension in ["", ".gz"] {
                let from = self.numbered(number, extension);
                let _ = match number + 1 < self.max_file {
                    true => std::fs::rename(&from, self.numbered(number + 1, extension)),
                    false => std::fs::remove_file(&from),
                };
            }
        }
        let _ = std::fs::rename(&self.path, self.numbered(1, ""));
        self.rotations.set(self.rotations.get() + 1);
    }

    /// Has the file that is number 1 now compressed, by and by.
    fn add(self: Rc<Self>) {
        let Ok(file) = File::open(self.numbered(1, "")) else { return };
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back((self.rotations.get(), file));
        // Older ones no longer exist by name.
        while waiting.len() >= self.max_file as usize {
            waiting.pop_front();
        }
        drop(waiting);
        if !self.busy.replace(true) {
            let _background = attach::background();
            tokio::task::spawn_local(async move {
                let _background = _background;
                self.compress_all().await;
            });
        }
    }

    async fn compress_all(&self) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some((rotation, file)) = next else { break };
            let temporary = self.numbered(0, ".tmp");
            let target = temporary.clone();
            let (tell, told) = tokio::sync::oneshot::channel();
            let spawned =
                std::thread::Builder::new().name("gzip".into()).stack_size(256 << 10).spawn(move || {
                    let _ = tell.send(compress(file, &target).is_ok());
                });
            let compressed = spawned.is_ok() && told.await == Ok(true);
            if let Ok(thread) = spawned {
                let _ = thread.join();
            }
            // It may have become older meanwhile.
            let number = 1 + self.rotations.get() - rotation;
            if !compressed || number >= u64::from(self.max_file) {
                let _ = std::fs::remove_file(&temporary);
                continue;
            }
            if std::fs::rename(&temporary, self.numbered(number as u32, ".gz")).is_ok() {
                let _ = std::fs::remove_file(self.numbered(number as u32, ""));
            }
        }
        self.busy.set(false);
    }
}

fn compress(mut from: File, to: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(to)?;
    let mut encoder = flate2::write::GzEncoder::new(
        io::BufWriter::with_capacity(64 << 10, file),
        flate2::Compression::default(),
    );
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn settings(directory: &Path, max_size: Option<u64>, max_file: u32, compress: bool) -> Settings {
        let path = directory.join("c-json.log");
        Settings { path, format: Format::Json(Default::default()), max_size, max_file, compress }
    }

    fn write_lines(log: &mut LogFile, from: usize, to: usize) {
        log.begin(Instant::now());
        for number in from..to {
            let text = format!("line {number:05}");
            log.piece(Stream::Stdout, Piece { bytes: text.as_bytes(), ends_line: true, part: None });
        }
        log.flush();
    }

    fn numbers(bytes: &[u8]) -> Vec<usize> {
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let value: serde_json::Value = serde_json::from_slice(line).unwrap();
                value["log"].as_str().unwrap().trim_end()[5..].parse().unwrap()
            })
            .collect()
    }

    #[test]
    fn rotation_loses_and_doubles_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(settings(directory.path(), Some(1000), 100, false)).unwrap();
        write_lines(&mut log, 0, 300);
        write_lines(&mut log, 300, 301);
        let mut all = Vec::new();
        for number in (1..100).rev() {
            let Ok(bytes) = std::fs::read(directory.path().join(format!("c-json.log.{number}"))) else {
                continue;
            };
            // Rotated as soon as the size is reached and not before: at most one line over.
            assert!((1000..1100).contains(&bytes.len()), "{}", bytes.len());
            all.extend(numbers(&bytes));
        }
        all.extend(numbers(&std::fs::read(directory.path().join("c-json.log")).unwrap()));
        assert_eq!(all, (0..301).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_files_than_asked_for() {
        for (max_file, expected) in [(1, 1), (2, 2), (3, 3)] {
            let directory = tempfile::tempdir().unwrap();
            let mut log = LogFile::open(settings(directory.path(), Some(500), max_file, false)).unwrap();
            write_lines(&mut log, 0, 200);
            let names: Vec<_> = std::fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names.len(), expected, "{names:?}");
        }
    }

    #[test]
    fn old_files_are_compressed_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut log = LogFile::open(settings(directory.path(), Some(2000), 50, true)).unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            write_lines(&mut log, 0, 400);
            attach::delivered().await;
        });
        let mut all = Vec::new();
        for number in (1..50).rev() {
            let path = directory.path().join(format!("c-json.log.{number}"));
            if let Ok(file) = File::open(directory.path().join(format!("c-json.log.{number}.gz"))) {
                let mut bytes = Vec::new();
                flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
                all.extend(numbers(&bytes));
                assert!(!path.exists());
            }
        }
        all.extend(numbers(&std::fs::read(directory.path().join("c-json.log")).unwrap()));
        assert_eq!(all, (0..400).collect::<Vec<_>>());
    }

    #[test]
    fn a_log_is_continued_and_its_size_counts() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(settings(directory.path(), None, 1, false)).unwrap();
        write_lines(&mut log, 0, 3);
        drop(log);
        let mut log = LogFile::open(settings(directory.path(), None, 1, false)).unwrap();
        write_lines(&mut log, 3, 5);
        let bytes = std::fs::read(directory.path().join("c-json.log")).unwrap();
        assert_eq!(numbers(&bytes), [0, 1, 2, 3, 4]);
        assert_eq!(log.size(), bytes.len() as u64);
    }

    #[test]
    fn a_full_disk_drops_whole_lines_counts_them_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(settings(directory.path(), None, 1, false)).unwrap();
        write_lines(&mut log, 0, 2);
        let good =
            std::mem::replace(&mut log.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(log.take_news(), None);
        write_lines(&mut log, 2, 7);
        let news = |lines| Some(Dropped { lines, reason: "no space left on device".into() });
        assert_eq!(log.take_news(), news(5));
        write_lines(&mut log, 7, 8);
        assert_eq!((log.dropped(), log.take_news()), (6, None));
        log.file = good;
        write_lines(&mut log, 8, 9);
        assert_eq!(log.take_news(), news(6));
        let text = std::fs::read_to_string(directory.path().join("c-json.log")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].starts_with(
                r#"{"log":"[dockerd-rs: 6 log lines dropped: no space left on device]\n","stream":"stderr""#
            ),
            "{}",
            lines[2]
        );
        assert!(lines[3].contains("line 00008"));
        assert_eq!(log.dropped(), 6);
    }
}
