//! A process's standard streams: where they lead, opened, copied and closed.
//!
//! [`Plan`] is what the request asks for; [`Stdio::open`] turns it into the process's ends and the tasks that move bytes. With a terminal the ends exist
//! only when the runtime has sent its master ([`Stdio::terminal`]).

pub mod binary;
pub mod console;
pub mod copy;
pub mod uri;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use shim_api::own_events::LogDropped;
use shim_api::topic;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use self::binary::Binary;
use self::copy::Writer;
use self::uri::{Plan, Target};
use crate::children::{Children, Exit};
use crate::events::Events;
use crate::native::{self, Native};
use crate::readiness::register;

/// How long Delete waits for copies whose reader does not read.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a reader that was not there when a named pipe was opened may take to come for what is in it.
const LATE_READER: Duration = Duration::from_secs(5);

/// Why streams could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The request makes no sense.
    #[error(transparent)]
    Plan(#[from] uri::PlanError),
    /// A file or pipe did not open.
    #[error("open {path}")]
    Open {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The logging program.
    #[error(transparent)]
    Binary(#[from] binary::BinaryError),
    /// The native mode.
    #[error(transparent)]
    Native(#[from] native::NativeError),
    /// Pipes between shim and process.
    #[error("create pipes")]
    Pipe(#[source] io::Error),
}

/// Whose streams they are.
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id.
    pub container: &'a str,
    /// The process's, empty for init.
    pub exec: &'a str,
    /// Who the process's ends belong to.
    pub uid: u32,
    /// And their group.
    pub gid: u32,
    /// Where to tell what becomes of them.
    pub events: &'a Rc<Events>,
}

/// The ends the process gets; an absent one is `/dev/null`.
#[derive(Default)]
pub struct ProcessEnds {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// Copying that begins once the runtime has succeeded.
type Copying = Pin<Box<dyn Future<Output = ()>>>;

/// The shim's side of a process's streams.
pub struct Stdio {
    /// Not yet begun: a runtime that fails prints its error to the process's streams, where nobody is to read it.
    prepared: RefCell<Vec<Copying>>,
    outputs: RefCell<Vec<JoinHandle<()>>>,
    input: RefCell<Option<JoinHandle<()>>>,
    /// Opened when the process is started: only then does every client know the process whose input it may have to close.
    unread: RefCell<Option<Unread>>,
    input_closed: Cell<bool>,
    /// Keeps a reader of standard input from seeing the end before CloseIO.
    input_hold: RefCell<Option<OwnedFd>>,
    waiting: RefCell<Option<Waiting>>,
    terminal: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    binary: RefCell<Option<Binary>>,
    native: Option<Rc<Native>>,
}

/// Standard input that is not read yet.
struct Unread {
    from: PathBuf,
    to: Writer,
}

/// What is to be connected to a terminal that is not there yet.
struct Waiting {
    stdin: Option<PathBuf>,
    stdout: Option<Opened>,
}

/// An opened output.
struct Opened {
    writer: Writer,
    hold: Option<OwnedFd>,
    had_reader: bool,
}

impl Stdio {
    /// Opens everything; nothing of it blocks. Copying starts with [`Stdio::begin`].
    pub async fn open(
        plan: Plan,
        terminal: bool,
        owner: &Owner<'_>,
        children: &Children,
    ) -> Result<(Rc<Stdio>, ProcessEnds), StdioError> {
        let mut stdio = Stdio {
            prepared: RefCell::default(),
            outputs: RefCell::default(),
            input: RefCell::default(),
            unread: RefCell::default(),
            input_closed: Cell::default(),
            input_hold: RefCell::default(),
            waiting: RefCell::default(),
            terminal: RefCell::default(),
            binary: RefCell::default(),
            native: None,
        };
        let mut ends = ProcessEnds::default();
        match plan {
            Plan::Native(request) => {
                let (events, container) = (owner.events.clone(), owner.container.to_owned());
                let tell = Box::new(move |dropped: native::logfile::Dropped| {
                    let native::logfile::Dropped { lines, reason } = dropped;
                    let event = LogDropped { container_id: container.clone(), lines, reason };
                    events.publish(topic::LOG_DROPPED, &event);
                });
                let native = Native::open(&request, terminal, owner.container, owner.exec, tell)?;
                if !terminal {
                    ends = stdio.native_ends(&native, owner)?;
                }
                stdio.native = Some(native);
            }
            Plan::Streams { stdin, stdout, stderr } => {
                let input = stdin.map(there).transpose()?;
                if terminal {
                    let stdout = stdout.as_ref().map(open_output).transpose()?;
                    *stdio.waiting.borrow_mut() = Some(Waiting { stdin: input, stdout });
                } else {
                    if let Some(input) = input {
                        ends.stdin = Some(stdio.copy_in(input, owner)?);
                    }
                    if let Some(target) = &stdout {
                        ends.stdout = Some(stdio.copy_out(open_output(target)?, owner)?);
                    }
                    if let Some(target) = &stderr {
                        ends.stderr = Some(stdio.copy_out(open_output(target)?, owner)?);
                    }
                }
            }
            Plan::Binary { stdin, program, arguments } => {
                let input = stdin.map(there).transpose()?;
                let (binary, stdout, stderr) =
                    Binary::start(&program, &arguments, owner.container, owner.namespace, children).await?;
                *stdio.binary.borrow_mut() = Some(binary);
                if terminal {
                    drop(stderr);
                    let writer = Writer::new(stdout).map_err(StdioError::Pipe)?;
                    let stdout = Some(Opened { writer, hold: None, had_reader: true });
                    *stdio.waiting.borrow_mut() = Some(Waiting { stdin: input, stdout });
                } else {
                    if let Some(input) = input {
                        ends.stdin = Some(stdio.copy_in(input, owner)?);
                    }
                    // The program reads straight from the process.
                    give(&stdout, owner);
                    give(&stderr, owner);
                    ends.stdout = Some(stdout);
                    ends.stderr = Some(stderr);
                }
            }
        }
        Ok((Rc::new(stdio), ends))
    }

    /// The process exists: its output is copied from now on.
    pub fn begin(&self) {
        let prepared = self.prepared.take();
        self.outputs.borrow_mut().extend(prepared.into_iter().map(tokio::task::spawn_local));
    }

    /// The process runs: its input is read from now on.
    pub fn begin_input(&self) -> io::Result<()> {
        let Some(Unread { from, to }) = self.unread.borrow_mut().take() else { return Ok(()) };
        let reader = sys::fifo::open_reader(&from)?;
        if !self.input_closed.get() {
            *self.input_hold.borrow_mut() = Some(sys::fifo::open_write_hold(&from)?);
        }
        let reader = Rc::new(register(reader)?);
        *self.input.borrow_mut() = Some(tokio::task::spawn_local(async move {
            copy::copy(&reader, &to).await;
        }));
        Ok(())
    }

    /// The terminal has come: connects it.
    pub fn terminal(&self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = Rc::new(register(master)?);
        *self.terminal.borrow_mut() = Some(master.clone());
        if let Some(native) = &self.native {
            let output = native.clone().pump(native::lines::Stream::Stdout, master.clone());
            self.prepared.borrow_mut().push(Box::pin(output));
            native.set_input(master);
            return Ok(());
        }
        let Some(Waiting { stdin, stdout }) = self.waiting.borrow_mut().take() else { return Ok(()) };
        match stdout {
            Some(opened) => self.prepare_output(master.clone(), opened),
            // Somebody has to read, or the process would stop when the terminal's buffer is full.
            None => {
                let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
                let opened = Opened { writer: Writer::new(nowhere.into())?, hold: None, had_reader: true };
                self.prepare_output(master.clone(), opened);
            }
        }
        if let Some(from) = stdin {
            *self.unread.borrow_mut() = Some(Unread { from, to: Writer::Shared(master) });
        }
        Ok(())
    }

    /// Sets the terminal's size; nothing to do without one.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match self.terminal.borrow().as_ref() {
            Some(terminal) => sys::pty::set_size(terminal.get_ref(), columns, rows),
            None => Ok(()),
        }
    }

    /// From now on the writers of standard input decide when it ends.
    pub fn close_stdin(&self) {
        self.input_closed.set(true);
        self.input_hold.borrow_mut().take();
        if let Some(native) = &self.native {
            native.close_input();
        }
    }

    /// The process has been reaped. In the native mode: returns when all its output is in the log and the exit is recorded.
    pub async fn ended(&self, pid: i32, exit: Exit, oom_killed: bool) -> io::Result<()> {
        if let Some(input) = self.input.borrow_mut().take() {
            input.abort();
        }
        let Some(native) = &self.native else { return Ok(()) };
        native.process_ended();
        let outputs = self.outputs.take();
        for output in outputs {
            let _ = output.await;
        }
        native.finish(pid, exit, oom_killed)
    }

    /// Closes everything. Output still on its way to a named pipe has a while to get there.
    pub async fn close(&self) {
        self.close_stdin();
        self.prepared.take();
        self.unread.take();
        if let Some(input) = self.input.borrow_mut().take() {
            input.abort();
        }
        let deadline = tokio::time::Instant::now() + DRAIN;
        for mut output in self.outputs.take() {
            if tokio::time::timeout_at(deadline, &mut output).await.is_err() {
                output.abort();
            }
        }
        self.waiting.borrow_mut().take();
        self.terminal.borrow_mut().take();
        let binary = self.binary.borrow_mut().take();
        if let Some(binary) = binary {
            binary.stop().await;
        }
        if let Some(native) = &self.native {
            native.close();
        }
    }

    /// The native side, if this is native.
    pub fn native(&self) -> Option<&Rc<Native>> {
        self.native.as_ref()
    }

    fn native_ends(&self, native: &Rc<Native>, owner: &Owner<'_>) -> Result<ProcessEnds, StdioError> {
        let mut ends = ProcessEnds::default();
        for (stream, end) in [
            (native::lines::Stream::Stdout, &mut ends.stdout),
            (native::lines::Stream::Stderr, &mut ends.stderr),
        ] {
            let (ours, theirs) = pipe(owner, End::Read).map_err(StdioError::Pipe)?;
            // Fewer, longer turns for a process that writes as fast as it can.
            let _ = rustix::pipe::fcntl_setpipe_size(&ours, native::PIPE_SIZE);
            let from = Rc::new(register(ours).map_err(StdioError::Pipe)?);
            self.prepared.borrow_mut().push(Box::pin(native.clone().pump(stream, from)));
            *end = Some(theirs);
        }
        if native.wants_stdin() {
            let (ours, theirs) = pipe(owner, End::Write).map_err(StdioError::Pipe)?;
            native.set_input(Rc::new(register(ours).map_err(StdioError::Pipe)?));
            ends.stdin = Some(theirs);
        }
        Ok(ends)
    }

    fn copy_in(&self, from: PathBuf, owner: &Owner<'_>) -> Result<OwnedFd, StdioError> {
        let (ours, theirs) = pipe(owner, End::Write).map_err(StdioError::Pipe)?;
        let to = Writer::new(ours).map_err(StdioError::Pipe)?;
        *self.unread.borrow_mut() = Some(Unread { from, to });
        Ok(theirs)
    }

    fn copy_out(&self, opened: Opened, owner: &Owner<'_>) -> Result<OwnedFd, StdioError> {
        let (ours, theirs) = pipe(owner, End::Read).map_err(StdioError::Pipe)?;
        let from = Rc::new(register(ours).map_err(StdioError::Pipe)?);
        self.prepare_output(from, opened);
        Ok(theirs)
    }

    fn prepare_output(&self, from: Rc<AsyncFd<OwnedFd>>, opened: Opened) {
        self.prepared.borrow_mut().push(Box::pin(async move {
            copy::copy(&from, &opened.writer).await;
            let Some(hold) = opened.hold.filter(|_| !opened.had_reader) else { return };
            // Closing now would throw away what is in the pipe if its reader is only just coming.
            tokio::task::spawn_local(async move {
                let deadline = tokio::time::Instant::now() + LATE_READER;
                while sys::fifo::unread(&hold).is_ok_and(|left| left > 0)
                    && tokio::time::Instant::now() < deadline
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                drop(opened.writer);
            });
        }));
    }
}

enum End {
    Read,
    Write,
}

/// A pipe: our end, non-blocking, and the process's, which belongs to `owner`.
fn pipe(owner: &Owner<'_>, ours: End) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ours, theirs) = match ours {
        End::Read => (read, write),
        End::Write => (write, read),
    };
    rustix::io::ioctl_fionbio(&ours, true)?;
    give(&theirs, owner);
    give(&ours, owner);
    Ok((ours, theirs))
}

/// A process of another user may open its streams again by name (`/dev/stdout`), which asks for permission.
fn give(fd: impl AsFd, owner: &Owner<'_>) {
    if (owner.uid, owner.gid) != (0, 0) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        let _ = rustix::fs::fchown(fd, Some(uid), Some(gid));
    }
}

/// Standard input that can be opened later.
fn there(path: PathBuf) -> Result<PathBuf, StdioError> {
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(source) => Err(StdioError::Open { path: path.display().to_string(), source }),
    }
}

fn open_output(target: &Target) -> Result<Opened, StdioError> {
    let path = target.path();
    let failed = |source| StdioError::Open { path: path.display().to_string(), source };
    if let Target::Fifo(path) = target {
        // A path without a scheme may also be an ordinary file.
        if sys::fifo::is_fifo(path).map_err(failed)? {
            let pipe = sys::fifo::open_writer(path).map_err(failed)?;
            let writer = Writer::new(pipe.write).map_err(failed)?;
            return Ok(Opened { writer, hold: Some(pipe.hold), had_reader: pipe.had_reader });
        }
    }
    if let (Target::File(path), Some(parent)) = (target, path.parent()) {
        let _ = path;
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    use std::os::unix::fs::OpenOptionsExt;
    let file =
        std::fs::OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(failed)?;
    let writer = Writer::new(file.into()).map_err(failed)?;
    Ok(Opened { writer, hold: None, had_reader: true })
}
