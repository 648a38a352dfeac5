//! The native stdio mode (docs/SHIM-IO.md): the shim writes the log, serves attached clients and records the exit.
//!
//! Invariant: a process's output is in the log before it is offered to clients, and all of it is there before its exit is recorded, and recorded before it is
//! told. No reader can stop any of this; a slow one is fed from a file.

pub mod attach;
pub mod buffers;
pub mod feed;
pub mod lines;
pub mod logfile;
pub mod record;
pub mod request;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::attach::Clients;
use self::lines::{Pieces, Stream};
use self::logfile::{Dropped, LogFile};
use self::record::Record;
pub use self::request::{Request, RequestError};
use crate::children::Exit;
use crate::clock::Instant;
use crate::stdio::copy::{is_ready, until};

/// What a process may write while the shim is busy.
pub const PIPE_SIZE: usize = 256 << 10;
/// Reads after which others get their turn.
const TURNS: u32 = 4;
/// After this long without output the buffers are given back.
const IDLE: Duration = Duration::from_millis(500);

/// Why the native mode cannot serve a request.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The description is not usable.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The log file does not open.
    #[error("open log {path}")]
    Log {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The attach socket cannot be made.
    #[error("listen on {path}")]
    Socket {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The record of an earlier exit cannot be removed.
    #[error("remove exit record {path}")]
    Record {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Where input for the process goes.
#[derive(Clone)]
pub enum Input {
    /// The process has no input yet.
    NotYet,
    /// Here.
    Open(Rc<AsyncFd<OwnedFd>>),
    /// There is none, or no more.
    Closed,
}

/// One process's native streams.
pub struct Native {
    request: Request,
    terminal: bool,
    container: String,
    exec: String,
    log: RefCell<Option<LogFile>>,
    log_seq: watch::Sender<u64>,
    clients: Rc<Clients>,
    input: watch::Sender<Input>,
    ended: watch::Sender<bool>,
    finished: Cell<bool>,
    tell_dropped: Box<dyn Fn(Dropped)>,
    serving: RefCell<Option<JoinHandle<()>>>,
}

impl Native {
    /// Prepares everything the description asks for: an exit recorded earlier is gone, the log open, the socket listening. `tell_dropped` is called when
    /// log lines begin to be dropped and when that is over.
    pub fn open(
        file: &Path,
        terminal: bool,
        container: &str,
        exec: &str,
        tell_dropped: Box<dyn Fn(Dropped)>,
    ) -> Result<Rc<Native>, NativeError> {
        let request = Request::read(file)?;
        if let Some(path) = &request.exit_record {
            let failed = |source| NativeError::Record { path: path.display().to_string(), source };
            sys::atomicfile::remove(path).map_err(failed)?;
        }
        let log = match request.log.as_ref().and_then(logfile::Settings::of) {
            Some(settings) => {
                let path = settings.path.display().to_string();
                Some(LogFile::open(settings).map_err(|source| NativeError::Log { path, source })?)
            }
            None => None,
        };
        let input = if request.stdin { Input::NotYet } else { Input::Closed };
        let socket = request.socket.clone();
        let native = Rc::new(Native {
            clients: Clients::new(socket.parent().unwrap_or(Path::new("/"))),
            request,
            terminal,
            container: container.to_owned(),
            exec: exec.to_owned(),
            log: RefCell::new(log),
            log_seq: watch::channel(0).0,
            input: watch::channel(input).0,
            ended: watch::channel(false).0,
            finished: Cell::new(false),
            tell_dropped,
            serving: RefCell::new(None),
        });
        let failed = |source| NativeError::Socket { path: socket.display().to_string(), source };
        let serving = attach::listen(&native, &socket).map_err(failed)?;
        *native.serving.borrow_mut() = Some(serving);
        Ok(native)
    }

    /// Whether the process is to have an input.
    pub fn wants_stdin(&self) -> bool {
        self.request.stdin
    }

    /// The process's input is there.
    pub fn set_input(&self, fd: Rc<AsyncFd<OwnedFd>>) {
        self.input.send_if_modified(|input| match input {
            Input::NotYet => {
                *input = Input::Open(fd);
                true
            }
            Input::Open(_) | Input::Closed => false,
        });
    }

    /// The process gets no more input.
    pub fn close_input(&self) {
        self.input.send_replace(Input::Closed);
    }

    /// A client with input has left or closed its side.
    pub fn client_input_ended(&self) {
        // On a terminal the end of a client's input is no end for the process: Docker, too, closes only pipes.
        if self.request.stdin_once && !self.terminal {
            self.close_input();
        }
    }

    /// Writes all of `bytes` to the process. `false` when it takes no more.
    pub async fn write_input(&self, mut bytes: &[u8]) -> bool {
        let mut input = self.input.subscribe();
        while !bytes.is_empty() {
            let fd = match &*input.borrow_and_update() {
                Input::NotYet => None,
                Input::Open(fd) => Some(fd.clone()),
                Input::Closed => return false,
            };
            let Some(fd) = fd else {
                if input.changed().await.is_err() {
                    return false;
                }
                continue;
            };
            match rustix::io::write(fd.get_ref(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => tokio::select! {
                    _ = until(&fd, PollFlags::OUT) => {}
                    _ = input.changed() => {}
                },
                Err(_) => {
                    self.close_input();
                    return false;
                }
            }
        }
        true
    }

    /// Moves one stream's output to the log and the clients until its end, or until the process has ended and nothing is left.
    pub async fn pump(self: Rc<Self>, stream: Stream, from: Rc<AsyncFd<OwnedFd>>) {
        let mut pieces = Pieces::default();
        let mut ended = self.ended.subscribe();
        let mut turns = 0u32;
        'stream: loop {
            if *ended.borrow_and_update() {
                // What still holds the other end open may do so for ever.
                if !is_ready(std::os::fd::AsFd::as_fd(from.get_ref()), PollFlags::IN) {
                    break;
                }
            } else {
                let ready = async {
                    tokio::select! {
                        ready = until(&from, PollFlags::IN) => ready.is_ok(),
                        changed = ended.changed() => changed.is_ok(),
                    }
                };
                let mut ready = std::pin::pin!(ready);
                let went_on = match tokio::time::timeout(IDLE, &mut ready).await {
                    Ok(ready) => ready,
                    Err(_) => {
                        buffers::release();
                        ready.await
                    }
                };
                if !went_on {
                    break;
                }
            }
            let mut buffer = buffers::input();
            loop {
                let count = match rustix::io::read(from.get_ref(), &mut buffer[..]) {
                    // A terminal whose last process is gone says EIO.
                    Ok(0) | Err(Errno::IO) => break 'stream,
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => break,
                    Err(_) => break 'stream,
                };
                self.write_log(|log| {
                    log.begin(Instant::now());
                    pieces.feed(&buffer[..count], |piece| log.piece(stream, piece));
                });
                self.clients.offer(stream, self.terminal, &buffer[..count], &self.ended).await;
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(TURNS) {
                    tokio::task::yield_now().await;
                }
            }
            buffers::give_back(buffer);
        }
        self.write_log(|log| {
            log.begin(Instant::now());
            pieces.finish(|piece| log.piece(stream, piece));
        });
    }

    fn write_log(&self, write: impl FnOnce(&mut LogFile)) {
        let mut log = self.log.borrow_mut();
        let Some(log) = log.as_mut() else { return };
        write(log);
        log.flush();
        if let Some(dropped) = log.take_news() {
            (self.tell_dropped)(dropped);
        }
        if log.seq() != *self.log_seq.borrow() {
            self.log_seq.send_replace(log.seq());
        }
    }

    /// The process is gone: [`Native::pump`] ends once nothing is left to read.
    pub fn process_ended(&self) {
        self.close_input();
        self.ended.send_replace(true);
    }

    /// All output was pumped: records the exit and lets the clients go.
    pub fn finish(&self, pid: i32, exit: Exit, oom_killed: bool) -> io::Result<()> {
        self.write_log(LogFile::finish);
        let recorded = match &self.request.exit_record {
            Some(path) => Record {
                version: record::VERSION,
                id: self.container.clone(),
                exec_id: self.exec.clone(),
                pid: pid as u32,
                exit_code: exit.how.shell_code(),
                signal: exit.how.signal(),
                exited_at: exit.at.rfc3339(),
                oom_killed,
                log_dropped: self.log.borrow().as_ref().map_or(0, LogFile::dropped),
            }
            .write(path),
            None => Ok(()),
        };
        self.finished.set(true);
        self.clients.finish();
        recorded
    }

    /// Removes the socket.
    pub fn close(&self) {
        if let Some(serving) = self.serving.borrow_mut().take() {
            serving.abort();
            let _ = std::fs::remove_file(&self.request.socket);
        }
        self.clients.finish();
    }
}
