//! A container's streams, seen from the engine: the request to the shim to own them, and the client of its socket.
//!
//! The contract is `docs/SHIM-IO.md`. Invariant: the engine never stands between a process and its output; it asks the shim for a
//! connection for each client and passes bytes on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::logs::LogPlace;
use super::logs::files::Form;
use super::record::Record;
use crate::config::Config;
use crate::error::{Error, Result, sys_text};

/// How long the shim may take to answer a request on its socket.
const ANSWER: Duration = Duration::from_secs(10);
/// The scheme that asks for this contract.
const SCHEME: &str = "shim-io://";

/// The file that tells the shim what to do with a process' streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    version: u32,
    socket: PathBuf,
    stdin: bool,
    stdin_once: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_record: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Log>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Log {
    driver: String,
    path: PathBuf,
    max_size: i64,
    max_file: u32,
    compress: bool,
    attrs: BTreeMap<String, String>,
    mode: String,
    max_buffer_size: u64,
    /// The number of the next record, where they are numbered.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
}

/// What the shim left when a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExitRecord {
    /// The process.
    pub pid: u32,
    /// As a shell gives it.
    pub exit_code: u32,
    /// When.
    pub exited_at: jiff::Timestamp,
    /// Whether the kernel killed a process of the container for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Lines that could not be written.
    #[serde(default)]
    pub log_dropped: u64,
}

/// The files of one process' streams.
#[derive(Clone, Debug)]
pub struct Streams {
    directory: PathBuf,
    name: String,
}

impl Streams {
    /// Of a container's own process.
    pub fn of_container(config: &Config, id: &str) -> Self {
        Self { directory: config.container_run_dir(id), name: "init".into() }
    }

    /// Of an exec.
    pub fn of_exec(config: &Config, id: &str, exec: &str) -> Self {
        Self { directory: config.container_run_dir(id), name: exec.to_owned() }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.name))
    }

    /// The socket the shim listens on.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// Writes the request of an exec; gives what goes into `stdout`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn ask_for_exec(&self, stdin: bool) -> Result<String> {
        self.ask(Request {
            version: 1,
            socket: self.socket(),
            stdin,
            stdin_once: true,
            exit_record: None,
            log: None,
        })
    }

    /// Writes the request of a container's own process, whose log's records are numbered from `sequence` on; gives what goes into `stdout`.
    ///
    /// # Errors
    /// The files cannot be written, or the log's options are none.
    pub fn ask_for_container(
        &self,
        config: &Config,
        record: &Record,
        sequence: Option<u64>,
    ) -> Result<String> {
        let options = super::logs::options::LogOptions::of(record)?;
        let directory = config.container_dir(&record.id);
        let log = options.place(&directory, &record.id).map(|place| Log {
            driver: match place.form {
                Form::JsonFile => "json-file".into(),
                Form::Local => "local".into(),
            },
            path: place.path,
            max_size: options.max_size,
            max_file: options.max_file,
            compress: options.compress,
            attrs: options.attrs(record),
            mode: if options.non_blocking { "non-blocking".into() } else { "blocking".into() },
            max_buffer_size: options.max_buffer_size,
            sequence,
        });
        if log.is_some() {
            make_private(&directory)?;
        }
        self.ask(Request {
            version: 1,
            socket: self.socket(),
            stdin: record.config.open_stdin,
            stdin_once: record.config.stdin_once,
            exit_record: Some(self.file("exit")),
            log,
        })
    }

    fn ask(&self, request: Request) -> Result<String> {
        make_private(&self.directory)?;
        let path = self.file("json");
        let bytes = serde_json::to_vec(&request).map_err(|err| Error::system(err.to_string()))?;
        sys::atomicfile::write(&path, 0o600, &bytes).map_err(|err| failed("write", &path, &err))?;
        Ok(format!("{SCHEME}{}", path.display()))
    }

    /// What the shim left of the last run, if it ended and left something whole.
    pub fn exit_record(&self) -> Option<ExitRecord> {
        let bytes = std::fs::read(self.file("exit")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Removes the files of this process.
    pub fn remove(&self) {
        for extension in ["json", "sock", "exit"] {
            let _ = std::fs::remove_file(self.file(extension));
        }
    }

    /// Connects a client to the process' streams.
    ///
    /// # Errors
    /// Nobody listens (the process is over, or not made by us), or the shim refused.
    pub async fn attach(&self, wanted: Wanted) -> Result<UnixStream> {
        #[derive(Serialize)]
        struct Attach {
            attach: Wanted,
        }
        let asked = async {
            let path = self.socket();
            let stream = sys::unixpath::connect_nonblocking(&path).and_then(UnixStream::from_std);
            let mut stream = stream.map_err(|err| failed("connect to", &path, &err))?;
            let mut line = serde_json::to_vec(&Attach { attach: wanted })
                .map_err(|err| Error::system(err.to_string()))?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            read_answer(&mut stream).await?;
            Ok(stream)
        };
        tokio::time::timeout(ANSWER, asked)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the shim does not answer on its attach socket")))
    }

    /// Waits until all output read so far is in the log file. Without a shim that listens there is nothing to wait for.
    pub async fn flush(&self) {
        let asked = async {
            let mut stream =
                sys::unixpath::connect_nonblocking(&self.socket()).and_then(UnixStream::from_std)?;
            stream.write_all(b"{\"flush\":true}\n").await?;
            read_answer(&mut stream).await.map_err(io::Error::other)
        };
        let _ = tokio::time::timeout(ANSWER, asked).await;
    }
}

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Send to the process.
    pub stdin: bool,
    /// Hear its output.
    pub stdout: bool,
    /// Hear its errors.
    pub stderr: bool,
}

/// Reads the shim's one line. Byte by byte: what follows it is the process' output and belongs to the client.
async fn read_answer(stream: &mut UnixStream) -> Result<()> {
    #[derive(Deserialize)]
    struct Answer {
        ok: bool,
        #[serde(default)]
        error: String,
    }
    let mut line = Vec::new();
    let mut reader = BufReader::with_capacity(1, &mut *stream);
    reader.read_until(b'\n', &mut line).await?;
    let answer: Answer = serde_json::from_slice(&line)
        .map_err(|err| Error::system(format!("the shim's answer on its attach socket: {err}")))?;
    if answer.ok { Ok(()) } else { Err(Error::system(format!("attach: {}", answer.error))) }
}

/// Makes a directory (and those above it) that only root may enter.
fn make_private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|err| failed("make", directory, &err))
}

fn failed(what: &str, path: &Path, err: &io::Error) -> Error {
    Error::system(format!("{what} {}: {}", path.display(), sys_text(err)))
}

/// Where a container's log can be read; `None` when its driver keeps none.
///
/// # Errors
/// The options of its driver are none.
pub fn log_place(config: &Config, record: &Record) -> Result<Option<LogPlace>> {
    let options = super::logs::options::LogOptions::of(record)?;
    let place = options.place(&config.container_dir(&record.id), &record.id);
    Ok(place.filter(|_| options.target.is_none() || !options.cache_disabled))
}
