//! The attach socket: live output, input, and questions about the log.
//!
//! What clients get is [`super::feed`]'s to deliver. Nothing here holds up the process's end.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Native;
use super::feed::{Feed, Outlet};
use super::lines::Stream;

/// How long what is left is delivered after the process has ended.
const LINGER: Duration = Duration::from_secs(60);
/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);
/// The longest request.
const REQUEST_MAX: usize = 4096;
/// How many clients there may be at a time.
const CLIENTS_MAX: usize = 1024;
/// How often a follower is told that the log grew, at most.
const FOLLOW: Duration = Duration::from_millis(10);
/// The answer to a client that gets output.
const ATTACHED: &[u8] = b"{\"ok\":true}\n";

/// What a client asks for in its first line: one of these.
#[derive(Debug, Default, Deserialize)]
struct Request {
    #[serde(default)]
    attach: Option<Attach>,
    #[serde(default)]
    status: bool,
    #[serde(default)]
    flush: bool,
    #[serde(default)]
    rotated: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Attach {
    #[serde(default)]
    stdin: bool,
    #[serde(default)]
    stdout: bool,
    #[serde(default)]
    stderr: bool,
}

#[derive(Serialize)]
struct Status {
    ok: bool,
    dropped: u64,
    clients: usize,
    log_bytes: u64,
    log_seq: u64,
}

/// The clients that get output.
pub struct Clients {
    /// By what they want: standard output, errors, both. Who wants nothing is among the last and never offered anything.
    feeds: [Feed; 4],
    connections: Cell<usize>,
    finished: Cell<bool>,
}

impl Clients {
    /// None yet. What they have yet to read will be in `directory`.
    pub fn new(directory: &Path) -> Rc<Clients> {
        Rc::new(Clients {
            feeds: std::array::from_fn(|_| Feed::new(directory)),
            connections: Cell::new(0),
            finished: Cell::new(false),
        })
    }

    /// Gives output to all who want it. Waits only for a client that is far behind and reads, and not once `ended` is true.
    pub async fn offer(&self, stream: Stream, raw: bool, bytes: &[u8], ended: &watch::Sender<bool>) {
        let header = frame_header(stream, bytes.len());
        let header = if raw { &[][..] } else { &header[..] };
        let [stdout, stderr, both, _] = &self.feeds;
        let one = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        for feed in [one, both] {
            feed.offer(header, bytes);
        }
        for feed in [one, both] {
            feed.room(ended).await;
        }
    }

    /// The process has ended and everything was offered: clients leave once they have it all.
    pub fn finish(&self) {
        self.finished.set(true);
        self.feeds.iter().for_each(Feed::finish);
    }

    fn feed(&self, attach: Attach) -> &Feed {
        let [stdout, stderr, both, neither] = &self.feeds;
        match (attach.stdout, attach.stderr) {
            (true, false) => stdout,
            (false, true) => stderr,
            (true, true) => both,
            (false, false) => neither,
        }
    }
}

/// Docker's header of a frame: stream, three zeros, length.
fn frame_header(stream: Stream, length: usize) -> [u8; 8] {
    let mut header = [0; 8];
    header[0] = stream.number();
    header[4..].copy_from_slice(&(length as u32).to_be_bytes());
    header
}

/// Serves clients at `path` until the returned task is aborted. An old socket there is replaced.
pub fn listen(native: &Rc<Native>, path: &Path) -> io::Result<JoinHandle<()>> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = sys::unixpath::bind(path, 0o600)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let native = Rc::downgrade(native);
    Ok(tokio::task::spawn_local(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                // Out of descriptors, most likely: some will be closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Some(native) = native.upgrade() else { return };
            if native.clients.connections.get() < CLIENTS_MAX {
                tokio::task::spawn_local(connection(native, socket));
            }
        }
    }))
}

/// One connection, counted.
async fn connection(native: Rc<Native>, socket: UnixStream) {
    let clients = native.clients.clone();
    clients.connections.set(clients.connections.get() + 1);
    converse(native, socket).await;
    clients.connections.set(clients.connections.get() - 1);
}

async fn converse(native: Rc<Native>, socket: UnixStream) {
    let Ok(Some((line, rest))) = tokio::time::timeout(REQUEST, first_line(&socket)).await else { return };
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(err) => {
            let answer = serde_json::json!({"ok": false, "error": format!("bad request: {err}")});
            return say(&socket, answer.to_string().as_bytes()).await;
        }
    };
    match request {
        Request { attach: Some(attach), .. } => attached(native, socket, attach, rest).await,
        Request { status: true, .. } => {
            let status = {
                let log = native.log.borrow();
                let log = log.as_ref();
                Status {
                    ok: true,
                    dropped: log.map_or(0, super::logfile::LogFile::dropped),
                    clients: native.clients.feeds.iter().map(Feed::count).sum(),
                    log_bytes: log.map_or(0, super::logfile::LogFile::size),
                    log_seq: log.map_or(0, super::logfile::LogFile::seq),
                }
            };
            say(&socket, serde_json::to_string(&status).unwrap_or_default().as_bytes()).await;
        }
        // Everything read is written before anything else is done.
        Request { flush: true, .. } => say(&socket, br#"{"ok":true}"#).await,
        Request { rotated: true, .. } => follow(native, socket).await,
        Request { .. } => say(&socket, br#"{"ok":false,"error":"bad request: nothing asked for"}"#).await,
    }
}

/// The bytes up to the first newline and what came after them. `None` when there is no such line.
async fn first_line(socket: &UnixStream) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        socket.readable().await.ok()?;
        let mut buffer = [0; 512];
        match socket.try_read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        }
        if let Some(end) = memchr::memchr(b'\n', &bytes) {
            let rest = bytes.split_off(end + 1);
            bytes.truncate(end);
            return Some((bytes, rest));
        }
        if bytes.len() > REQUEST_MAX {
            return None;
        }
    }
}

/// Sends one line.
async fn say(socket: &UnixStream, line: &[u8]) {
    let _ = send_line(socket, line).await;
}

async fn send_line(socket: &UnixStream, line: &[u8]) -> io::Result<()> {
    let line = [line, b"\n"].concat();
    let mut rest = &line[..];
    while !rest.is_empty() {
        socket.writable().await?;
        match socket.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

async fn attached(native: Rc<Native>, socket: UnixStream, attach: Attach, first_input: Vec<u8>) {
    let background = background();
    // Before any output: nothing was sent to it yet, so there is room.
    if !matches!(socket.try_write(ATTACHED), Ok(sent) if sent == ATTACHED.len()) {
        return;
    }
    let client = Outlet::new(socket, native.clients.finished.get());
    let feed = native.clients.feed(attach);
    feed.add(client.clone());
    let input = async {
        take_input(&native, &client, attach.stdin, first_input).await;
        // A client that has sent all its input may still be reading.
        std::future::pending::<()>().await;
    };
    let mut ended = native.ended.subscribe();
    let last = async {
        let _ = ended.wait_for(|ended| *ended).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = client.served() => {}
        () = input => {}
        () = last => {}
    }
    feed.remove(&client);
    // Input nobody took would turn the close into an error on the client's side.
    let mut unread = [0; 1024];
    while matches!(client.socket.try_read(&mut unread), Ok(count) if count > 0) {}
    drop(background);
}

/// Passes a client's input to the process; returns when the client has closed its side.
async fn take_input(native: &Rc<Native>, client: &Outlet, wanted: bool, first: Vec<u8>) {
    let mut taken = wanted && native.write_input(&first).await;
    loop {
        if client.socket.readable().await.is_err() {
            break;
        }
        let mut buffer = vec![0; 16 << 10];
        match client.socket.try_read(&mut buffer) {
            Ok(0) => break,
            // Bytes for a process that takes none are read all the same: a client that writes must not be stuck.
            Ok(count) => {
                taken = wanted && (taken || first.is_empty()) && native.write_input(&buffer[..count]).await
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    if wanted {
        native.client_input_ended();
    }
    // Gone altogether, or only done with its input?
    let hung_up = {
        let mut poll = [rustix::event::PollFd::new(&client.socket, rustix::event::PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|count| count > 0)
    };
    if hung_up {
        client.die();
    }
}

/// Tells a client whenever the log grew, until it leaves or the process has ended.
async fn follow(native: Rc<Native>, socket: UnixStream) {
    if send_line(&socket, br#"{"ok":true}"#).await.is_err() {
        return;
    }
    let mut seq = native.log_seq.subscribe();
    let mut ended = native.ended.subscribe();
    loop {
        let now = *seq.borrow_and_update();
        if send_line(&socket, format!(r#"{{"log_seq":{now}}}"#).as_bytes()).await.is_err() {
            return;
        }
        if native.finished.get() && *seq.borrow() == now {
            return;
        }
        tokio::time::sleep(FOLLOW).await;
        let gone = async {
            let mut nothing = [0; 64];
            loop {
                if socket.readable().await.is_err() || matches!(socket.try_read(&mut nothing), Ok(0)) {
                    return;
                }
            }
        };
        tokio::select! {
            changed = seq.changed() => if changed.is_err() { return },
            _ = ended.changed() => {}
            () = gone => return,
        }
        if *ended.borrow() {
            // The rest comes at once.
            while !native.finished.get() {
                tokio::time::sleep(FOLLOW).await;
            }
        }
    }
}

thread_local! {
    static BACKGROUND: watch::Sender<usize> = watch::channel(0).0;
}

/// Work the shim does not end without, while this lives.
pub struct Background;

/// Begins some.
pub fn background() -> Background {
    BACKGROUND.with(|count| count.send_modify(|count| *count += 1));
    Background
}

impl Drop for Background {
    fn drop(&mut self) {
        BACKGROUND.with(|count| count.send_modify(|count| *count -= 1));
    }
}

/// Resolves when all such work is done.
pub async fn delivered() {
    let mut count = BACKGROUND.with(watch::Sender::subscribe);
    let _ = count.wait_for(|count| *count == 0).await;
}
