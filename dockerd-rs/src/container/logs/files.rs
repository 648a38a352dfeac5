//! The files of a container's log, oldest first: finding them, finding where the last lines begin, and reading on from there by blocks.
//!
//! Rotation renames `x` to `x.1` and so on while somebody reads, so files are opened first and told apart by inode afterwards.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memchr::{memchr, memrchr};

use super::record::{Record, parse_json, parse_local};

/// How much is read at once.
const BLOCK: u64 = 256 << 10;
/// A record longer than this is damage: 16 KiB of text can grow to six times that when escaped, and labels come on top.
const RECORD_MAX: usize = 4 << 20;

/// The form of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON lines.
    JsonFile,
    /// Length-prefixed messages.
    Local,
}

/// One file of the log, open.
pub struct LogFile {
    file: File,
    compressed: bool,
    inode: (u64, u64),
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let compressed = path.extension().is_some_and(|extension| extension == "gz");
        Ok(Self { file, compressed, inode: (metadata.dev(), metadata.ino()) })
    }

    /// What tells this file from others, whatever it is called.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }
}

/// The inode of the file that is called `path` now.
pub fn inode_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Opens all files of the log whose live file is `live`, oldest first. None at all is an empty list.
///
/// # Errors
/// The directory cannot be read.
pub fn open_all(live: &Path) -> io::Result<Vec<LogFile>> {
    let (Some(directory), Some(name)) = (live.parent(), live.file_name()) else { return Ok(Vec::new()) };
    let name = name.to_string_lossy().into_owned();
    // The live file first: what is renamed from here on is found under its later name, and known by its inode.
    let mut found: Vec<(u32, LogFile)> = Vec::new();
    if let Ok(file) = LogFile::open(live) {
        found.push((0, file));
    }
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut rotated: Vec<(u32, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some((rotation_number(&name, &entry.file_name().to_string_lossy())?, entry.path()))
        })
        .collect();
    rotated.sort();
    for (number, path) in rotated {
        let Ok(file) = LogFile::open(&path) else { continue };
        // `x.3` and `x.3.gz` both exist while one is made of the other.
        let twice = found.iter().any(|(other, seen)| *other == number || seen.inode == file.inode);
        if !twice {
            found.push((number, file));
        }
    }
    Ok(found.into_iter().rev().map(|(_, file)| file).collect())
}

/// `x.3` and `x.3.gz` are number 3 of `x`.
fn rotation_number(live: &str, name: &str) -> Option<u32> {
    let number = name.strip_prefix(live)?.strip_prefix('.')?;
    number.strip_suffix(".gz").unwrap_or(number).parse().ok().filter(|number| *number > 0)
}

/// Drops from `files` what lies before the last `count` records, and tells where reading begins in the first that is left.
///
/// # Errors
/// A file cannot be read.
pub fn keep_last(files: &mut Vec<LogFile>, form: Form, count: u64) -> io::Result<Start> {
    let mut wanted = count;
    let mut keep = files.len();
    let mut start = Start::Offset(0);
    while wanted > 0 && keep > 0 {
        let file = &files[keep - 1];
        let (found, at) = if file.compressed {
            let all = count_records(file, form)?;
            (all.min(wanted), Start::Records(all.saturating_sub(wanted)))
        } else {
            let (found, offset) = match form {
                Form::JsonFile => last_lines(&file.file, wanted)?,
                Form::Local => last_messages(&file.file, wanted)?,
            };
            (found, Start::Offset(offset))
        };
        start = at;
        wanted -= found;
        keep -= 1;
    }
    if count == 0 {
        // Nothing old, but what is written from now on.
        keep = files.len().saturating_sub(1);
        if let Some(live) = files.last() {
            start = Start::Offset(complete_end(&live.file, form)?);
        }
    }
    files.drain(..keep);
    Ok(start)
}

/// Where in a file reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this byte.
    Offset(u64),
    /// After so many records.
    Records(u64),
}

/// Where the last complete record ends.
fn complete_end(file: &File, form: Form) -> io::Result<u64> {
    let size = file.metadata()?.len();
    match form {
        Form::Local => Ok(size),
        Form::JsonFile => {
            let mut end = size;
            let mut block = vec![0; 4096];
            while end > 0 {
                let begin = end.saturating_sub(block.len() as u64);
                let part = &mut block[..usize::try_from(end - begin).unwrap_or(0)];
                file.read_exact_at(part, begin)?;
                if let Some(at) = memrchr(b'\n', part) {
                    return Ok(begin + at as u64 + 1);
                }
                end = begin;
            }
            Ok(0)
        }
    }
}

/// How many of the last `wanted` lines `file` has, and where the first of them begins.
fn last_lines(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = complete_end(file, Form::JsonFile)?;
    if end == 0 {
        return Ok((0, 0));
    }
    // The newline that ends the last line is not the beginning of another.
    end -= 1;
    let mut found = 1;
    let mut block = vec![0; 64 << 10];
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let length = usize::try_from(end - begin).unwrap_or(0);
        file.read_exact_at(&mut block[..length], begin)?;
        let mut part = &block[..length];
        while let Some(at) = memrchr(b'\n', part) {
            if found == wanted {
                return Ok((found, begin + at as u64 + 1));
            }
            found += 1;
            part = &part[..at];
        }
        end = begin;
    }
    Ok((found, 0))
}

/// The same for the local driver, whose messages have their length at both ends.
fn last_messages(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    while found < wanted && end >= 8 {
        let mut length = [0; 4];
        file.read_exact_at(&mut length, end - 4)?;
        let whole = u64::from(u32::from_be_bytes(length)) + 8;
        if whole > end || whole > RECORD_MAX as u64 {
            break;
        }
        end -= whole;
        found += 1;
    }
    Ok((found, end))
}

fn count_records(file: &LogFile, form: Form) -> io::Result<u64> {
    let mut blocks = Blocks::new(file.reopen()?, form, Start::Offset(0))?;
    let mut count = 0;
    while blocks.fill()? {
        while blocks.next_raw().is_some() {
            count += 1;
        }
    }
    Ok(count)
}

impl LogFile {
    /// The same file with a position of its own.
    fn reopen(&self) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Self { file, compressed: self.compressed, inode: self.inode })
    }
}

/// Reads one file from a place on, a block at a time. At the end it can be asked again later, when more was written.
pub struct Blocks {
    input: Input,
    inode: (u64, u64),
    form: Form,
    buffer: Vec<u8>,
    at: usize,
}

enum Input {
    Plain(File),
    Gzip(Box<flate2::read::MultiGzDecoder<File>>),
}

impl Blocks {
    /// Begins at `start`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(file: LogFile, form: Form, start: Start) -> io::Result<Self> {
        let inode = file.inode;
        let input = if file.compressed {
            Input::Gzip(Box::new(flate2::read::MultiGzDecoder::new(file.file)))
        } else {
            let mut plain = file.file;
            if let Start::Offset(offset) = start {
                plain.seek(SeekFrom::Start(offset))?;
            }
            Input::Plain(plain)
        };
        let mut blocks = Self { input, inode, form, buffer: Vec::new(), at: 0 };
        if let Start::Records(mut skip) = start {
            while skip > 0 && (blocks.buffered() || blocks.fill()?) {
                while skip > 0 && blocks.next_raw().is_some() {
                    skip -= 1;
                }
            }
        }
        Ok(blocks)
    }

    /// The inode that is read.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    fn buffered(&self) -> bool {
        self.at < self.buffer.len() && self.record_length().is_some()
    }

    /// Reads another block behind what is left of the last one. False at the end of what there is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.at);
        self.at = 0;
        if self.buffer.len() > RECORD_MAX {
            // No record is that long: forget it, the next newline begins a new one.
            self.buffer.clear();
        }
        let before = self.buffer.len();
        // Into memory that nobody clears first: most of these reads find a line or nothing.
        let read = match &mut self.input {
            Input::Plain(file) => file.take(BLOCK).read_to_end(&mut self.buffer),
            Input::Gzip(decoder) => match decoder.take(BLOCK).read_to_end(&mut self.buffer) {
                // A file cut short by a crash is read as far as it goes.
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                other => other,
            },
        };
        let grown = self.buffer.len() > before;
        // What came before an error is used first; the error comes again.
        if grown { Ok(true) } else { read.map(|_| false) }
    }

    /// Frees the buffer while nothing is expected.
    pub fn rest(&mut self) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.shrink_to(4096);
    }

    /// The next whole record, as it is in the file.
    pub fn next_raw(&mut self) -> Option<&[u8]> {
        let (skip, length, after) = self.record_length()?;
        let begin = self.at + skip;
        self.at = begin + length + after;
        Some(&self.buffer[begin..begin + length])
    }

    /// The next whole record, which is also the next one after this call.
    pub fn peek_raw(&self) -> Option<&[u8]> {
        let (skip, length, _) = self.record_length()?;
        self.buffer.get(self.at + skip..self.at + skip + length)
    }

    /// The next record that can be read.
    pub fn next(&mut self, with_attrs: bool) -> Option<Option<Record<'_>>> {
        let form = self.form;
        let raw = self.next_raw()?;
        Some(match form {
            Form::JsonFile => parse_json(raw, with_attrs),
            Form::Local => parse_local(raw),
        })
    }

    /// Bytes before, of and after the next record's content; `None` when it is not whole yet.
    fn record_length(&self) -> Option<(usize, usize, usize)> {
        let rest = &self.buffer[self.at..];
        match self.form {
            Form::JsonFile => memchr(b'\n', rest).map(|end| (0, end, 1)),
            Form::Local => {
                let length = rest.first_chunk::<4>()?;
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                (rest.len() >= length.checked_add(8)?).then_some((4, length, 4))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn line(text: &str) -> String {
        format!(
            "{{\"log\":{},\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05Z\"}}\n",
            serde_json::to_string(&format!("{text}\n")).unwrap()
        )
    }

    fn read_all(live: &Path, form: Form, tail: Option<u64>) -> Vec<String> {
        let mut files = open_all(live).unwrap();
        let mut start = Start::Offset(0);
        if let Some(tail) = tail {
            start = keep_last(&mut files, form, tail).unwrap();
        }
        let mut lines = Vec::new();
        for file in files {
            let mut blocks = Blocks::new(file, form, start).unwrap();
            start = Start::Offset(0);
            loop {
                while let Some(record) = blocks.next(false) {
                    let mut text = Vec::new();
                    record.unwrap().text.append_to(&mut text);
                    lines.push(String::from_utf8(text).unwrap().trim_end().to_owned());
                }
                if !blocks.fill().unwrap() {
                    break;
                }
            }
        }
        lines
    }

    #[test]
    fn rotated_and_compressed_files_read_as_one_log() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("c-json.log");
        std::fs::write(&live, line("5") + &line("6") + "{\"log\":\"half").unwrap();
        std::fs::write(dir.path().join("c-json.log.1"), line("3") + &line("4")).unwrap();
        let gz = File::create(dir.path().join("c-json.log.2.gz")).unwrap();
        let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
        gz.write_all((line("1") + &line("2")).as_bytes()).unwrap();
        gz.finish().unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        let all = ["1", "2", "3", "4", "5", "6"];
        assert_eq!(read_all(&live, Form::JsonFile, None), all);
        for tail in 0..=8_usize {
            let expected = &all[all.len() - tail.min(6)..];
            assert_eq!(read_all(&live, Form::JsonFile, Some(tail as u64)), expected, "tail {tail}");
        }
    }

    #[test]
    fn the_last_lines_of_a_large_file_are_found_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("x");
        let mut file = std::io::BufWriter::new(File::create(&live).unwrap());
        for number in 0..400_000 {
            file.write_all(line(&number.to_string()).as_bytes()).unwrap();
        }
        file.into_inner().unwrap();
        let began = std::time::Instant::now();
        assert_eq!(read_all(&live, Form::JsonFile, Some(2)), ["399998", "399999"]);
        assert!(began.elapsed().as_millis() < 100);
    }

    proptest! {
        #[test]
        fn local_messages_come_back(texts in prop::collection::vec("[a-z]{0,40}", 0..40), tail in 0_u64..45) {
            let dir = tempfile::tempdir().unwrap();
            let live = dir.path().join("container.log");
            let mut bytes = Vec::new();
            for text in &texts {
                let mut message = vec![0x0a, 6];
                message.extend_from_slice(b"stdout");
                message.extend_from_slice(&[0x10, 1, 0x1a, u8::try_from(text.len()).unwrap()]);
                message.extend_from_slice(text.as_bytes());
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                bytes.extend_from_slice(&length);
                bytes.extend_from_slice(&message);
                bytes.extend_from_slice(&length);
            }
            std::fs::write(&live, bytes).unwrap();
            prop_assert_eq!(&read_all(&live, Form::Local, None), &texts);
            let from = texts.len() - usize::try_from(tail).unwrap().min(texts.len());
            prop_assert_eq!(read_all(&live, Form::Local, Some(tail)), &texts[from..]);
        }
    }
}
