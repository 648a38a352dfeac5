//! dockerd-rs's side of the helper process: finds it or starts it, and tells it what to hold.
//!
//! Synchronous, for the short-lived threads that set containers up; one conversation at a time, each a few tens of microseconds.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::nethelper::wire::{self, Aim, Held, MAX_FDS, Reply, Request, Sandbox, VERSION};

/// The helper must answer within this; it never waits for anything itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a helper is started when there is none.
pub enum Launch {
    /// As `PROGRAM net-helper`.
    Program(PathBuf),
    /// As a thread of this process.
    #[cfg(test)]
    Thread,
}

/// The way to the helper.
pub struct Helper {
    path: PathBuf,
    launch: Launch,
    stream: Mutex<Option<UnixStream>>,
    /// Whether a thread waits for the helper's end.
    watched: AtomicBool,
    /// Whether its end is our own wish.
    left: AtomicBool,
    /// Called when the helper has ended although nobody asked it to.
    lost: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Helper {
    /// A helper reached at `path`. Nothing is started until it is needed.
    pub fn new(path: PathBuf, launch: Launch) -> Self {
        Self {
            path,
            launch,
            stream: Mutex::new(None),
            watched: AtomicBool::new(false),
            left: AtomicBool::new(false),
            lost: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnixStream>> {
        // A conversation that panicked halfway leaves a stream out of step.
        self.stream.lock().unwrap_or_else(|poisoned| {
            let mut guard = PoisonError::into_inner(poisoned);
            *guard = None;
            guard
        })
    }

    fn connect(&self, start: bool) -> io::Result<Option<UnixStream>> {
        let stream = match sys::unixpath::connect(&self.path) {
            Ok(stream) => stream,
            Err(err)
                if !start
                    && matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(_) => {
                let _ = std::fs::remove_file(&self.path);
                // Bound here and handed over: connections wait in its queue, so there is no moment in which it is not there yet.
                self.start(sys::unixpath::bind(&self.path, 0o600)?)?;
                sys::unixpath::connect(&self.path)?
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Some(stream))
    }

    fn start(&self, listener: UnixListener) -> io::Result<()> {
        match &self.launch {
            Launch::Program(program) => {
                let mut child = Command::new(program)
                    .arg("net-helper")
                    .current_dir("/")
                    .stdin(Stdio::from(OwnedFd::from(listener)))
                    .stdout(Stdio::null())
                    .spawn()?;
                // It outlives us; while we are its parent somebody must take its end.
                std::thread::Builder::new()
                    .name("net-helper-wait".into())
                    .stack_size(64 << 10)
                    .spawn(move || drop(child.wait()))?;
            }
            #[cfg(test)]
            Launch::Thread => {
                std::thread::Builder::new()
                    .name("net-helper".into())
                    .spawn(move || crate::nethelper::serve(listener))?;
            }
        }
        Ok(())
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>], start: bool) -> io::Result<Option<Reply>> {
        let mut slot = self.lock();
        for attempt in 0..2 {
            if slot.is_none() {
                *slot = self.connect(start)?;
            }
            let Some(stream) = slot.as_ref() else { return Ok(None) };
            match wire::send(stream, request, fds).and_then(|()| wire::receive::<Reply>(stream)) {
                Ok((reply, _)) if reply.error.is_empty() => return Ok(Some(reply)),
                Ok((reply, _)) => return Err(io::Error::other(reply.error)),
                // It went away since the last conversation: once more, with a new one.
                Err(err) => {
                    *slot = None;
                    if attempt == 1 {
                        return Err(err);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Makes sure that there is a helper. Called in the engine's own network namespace, which the helper inherits; all else only talks to it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ready(self: &Arc<Self>) -> io::Result<()> {
        self.ask(&Request::Hello, &[], true)?;
        if !self.watched.swap(true, Ordering::AcqRel) {
            self.watch().inspect_err(|_| self.watched.store(false, Ordering::Release))?;
        }
        Ok(())
    }

    /// What to do when the helper ends unasked. Called on a thread in the engine's namespace.
    pub fn on_lost(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.lost.set(Box::new(action));
    }

    /// A connection on which nothing is said: its end is the helper's.
    fn watch(self: &Arc<Self>) -> io::Result<()> {
        let mut stream = sys::unixpath::connect(&self.path)?;
        let helper = Arc::downgrade(self);
        std::thread::Builder::new().name("net-helper-watch".into()).stack_size(256 << 10).spawn(
            move || {
                let _ = io::copy(&mut stream, &mut io::sink());
                let Some(helper) = helper.upgrade() else { return };
                helper.watched.store(false, Ordering::Release);
                *helper.lock() = None;
                if let Some(lost) = helper.lost.get().filter(|_| !helper.left.load(Ordering::Acquire)) {
                    lost();
                }
            },
        )?;
        Ok(())
    }

    fn tell(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let reply = self.ask(request, fds, false)?;
        reply.map(drop).ok_or_else(|| io::Error::other("the network helper is not running"))
    }

    /// What the helper holds: by sandbox, whether its resolver's sockets, and how many of its ports' sockets. Nothing, if there is no helper.
    ///
    /// # Errors
    /// It does not answer.
    pub fn holdings(&self) -> io::Result<HashMap<String, (bool, usize)>> {
        let Some(reply) = self.ask(&Request::Hello, &[], false)? else { return Ok(HashMap::new()) };
        if reply.version != VERSION {
            return Err(io::Error::other(format!(
                "the helper speaks version {}, not {VERSION}",
                reply.version
            )));
        }
        Ok(reply.sandboxes.into_iter().map(|(id, resolver, sockets)| (id, (resolver, sockets))).collect())
    }

    /// A sandbox is so from now on. `resolver`: UDP socket, TCP socket, network namespace.
    ///
    /// # Errors
    /// The helper cannot be started or refuses.
    pub fn put(&self, sandbox: &Sandbox, resolver: Option<[BorrowedFd<'_>; 3]>) -> io::Result<()> {
        let request = Request::Put { sandbox: sandbox.clone(), fresh: resolver.is_some() };
        self.tell(&request, resolver.as_ref().map_or(&[], |fds| fds.as_slice()))
    }

    /// Hands sockets over.
    ///
    /// # Errors
    /// As [`Helper::put`].
    pub fn hold(&self, sandbox: &str, sockets: &[(Held, OwnedFd)]) -> io::Result<()> {
        for part in sockets.chunks(MAX_FDS) {
            let request = Request::Hold {
                sandbox: sandbox.to_owned(),
                sockets: part.iter().map(|(held, _)| *held).collect(),
            };
            let fds: Vec<_> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
            self.tell(&request, &fds)?;
        }
        Ok(())
    }

    /// Published ports lead elsewhere from now on.
    ///
    /// # Errors
    /// As [`Helper::put`].
    pub fn aim(&self, sandbox: &str, aims: Vec<Aim>) -> io::Result<()> {
        if aims.is_empty() {
            return Ok(());
        }
        self.tell(&Request::Aim { sandbox: sandbox.to_owned(), aims }, &[])
    }

    /// A sandbox is gone. No helper is content.
    ///
    /// # Errors
    /// It does not answer.
    pub fn remove(&self, sandbox: &str) -> io::Result<()> {
        self.ask(&Request::Remove { sandbox: sandbox.to_owned() }, &[], false).map(drop)
    }

    /// Ends the helper, and with it what it holds.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
        let _ = self.ask(&Request::Leave, &[], false);
        *self.lock() = None;
    }
}
