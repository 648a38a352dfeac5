//! Output on its way to attached clients.
//!
//! A few clients that keep up are written to as the output comes. Who does not keep up, and everybody where there are many, reads at a place of their own
//! from one file without a name, and a thread of low priority moves it to them: neither their number nor their pace takes time from the container.
//!
//! Invariant: a client is either live, and only [`Feed::offer`] writes to it, or behind, and only the thread does; it changes sides under the lock.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

/// How many clients are written to directly.
const DIRECT_MAX: usize = 4;
/// How far a client may be behind before the process waits for it, if it reads.
const BEHIND: u64 = 64 << 20;
/// How far at most.
const BEHIND_MAX: u64 = 256 << 20;
/// Who took nothing for this long is not reading just now; up to [`BEHIND_MAX`] nobody waits for it.
const READING: Duration = Duration::from_millis(200);
/// How long a client that is as far behind as possible may read nothing.
const STUCK: Duration = Duration::from_secs(2);
/// What is moved to one client before the next has its turn.
const CHUNK: usize = 256 << 10;
/// How much room read data may take before it is given back.
const PUNCH: u64 = 16 << 20;
/// How long the thread waits for more work.
const IDLE: Duration = Duration::from_secs(1);
/// The thread's nice value.
const LOW: i32 = 10;

/// A client's connection.
pub struct Outlet {
    /// It itself.
    pub socket: UnixStream,
    behind: AtomicBool,
    dead: AtomicBool,
    finished: AtomicBool,
    changed: Notify,
}

impl Outlet {
    /// One that has missed nothing so far. With `finished` nothing more will come.
    pub fn new(socket: UnixStream, finished: bool) -> Arc<Outlet> {
        Arc::new(Outlet {
            socket,
            behind: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            finished: AtomicBool::new(finished),
            changed: Notify::new(),
        })
    }

    /// Resolves when the client is gone or has all there will ever be.
    pub async fn served(&self) {
        let has_all = || self.is(&self.finished) && !self.is(&self.behind);
        while !(self.is(&self.dead) || has_all()) {
            self.changed.notified().await;
        }
    }

    /// It gets no more.
    pub fn die(&self) {
        self.set(&self.dead, true);
    }

    /// It has been offered everything.
    pub fn finish(&self) {
        self.set(&self.finished, true);
    }

    fn is(&self, flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }

    fn set(&self, flag: &AtomicBool, value: bool) {
        flag.store(value, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

/// The clients that get the same.
pub struct Feed {
    list: RefCell<Vec<Arc<Outlet>>>,
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    // Guards who is live and who behind, and the file's ends. The thread holds it for bookkeeping only, never while it sends or waits.
    state: Mutex<State>,
    /// Something was read.
    room: Notify,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    written: u64,
    punched: u64,
    behind: Vec<Behind>,
    /// Wakes the thread; absent while there is none.
    thread: Option<Arc<OwnedFd>>,
}

struct Behind {
    outlet: Arc<Outlet>,
    position: u64,
    progress: Instant,
}

impl Feed {
    /// One without clients. Its file, if it needs one, will be in `directory`.
    pub fn new(directory: &Path) -> Feed {
        let shared = Shared { directory: directory.to_owned(), state: Mutex::default(), room: Notify::new() };
        Feed { list: RefCell::default(), shared: Arc::new(shared) }
    }

    /// How many clients there are.
    pub fn count(&self) -> usize {
        self.list.borrow().len()
    }

    /// Adds a client: it gets what is offered from now on.
    pub fn add(&self, outlet: Arc<Outlet>) {
        self.list.borrow_mut().push(outlet);
    }

    /// Takes a client out.
    pub fn remove(&self, outlet: &Arc<Outlet>) {
        self.list.borrow_mut().retain(|other| !Arc::ptr_eq(other, outlet));
        let mut state = self.shared.state();
        state.behind.retain(|behind| !Arc::ptr_eq(&behind.outlet, outlet));
        state.wake();
    }

    /// Everything was offered: clients may go once they have it all.
    pub fn finish(&self) {
        self.list.borrow().iter().for_each(|outlet| outlet.finish());
    }

    /// Gives output to all. What cannot be sent at once is kept.
    pub fn offer(&self, header: &[u8], bytes: &[u8]) {
        let list = self.list.borrow();
        if list.is_empty() {
            return;
        }
        let mut state = self.shared.state();
        let many = list.len() > DIRECT_MAX;
        let mut place = None;
        if many || !state.behind.is_empty() {
            match state.append(&self.shared.directory, header, bytes) {
                Ok(begin) => place = Some(begin),
                // Who is behind would miss this and not know.
                Err(_) => return list.iter().for_each(|outlet| outlet.die()),
            }
        }
        let mut more_behind = false;
        for outlet in list.iter().filter(|outlet| !outlet.is(&outlet.behind) && !outlet.is(&outlet.dead)) {
            let sent = if many { Ok(0) } else { send(&outlet.socket, header, bytes) };
            let begin = match sent {
                Ok(sent) if sent == header.len() + bytes.len() => continue,
                Ok(sent) => {
                    let begin = match place {
                        Some(begin) => Ok(begin),
                        None => state.append(&self.shared.directory, header, bytes),
                    };
                    begin.map(|begin| {
                        place = Some(begin);
                        begin + sent as u64
                    })
                }
                Err(err) => Err(err),
            };
            match begin {
                Ok(position) => {
                    outlet.behind.store(true, Ordering::SeqCst);
                    let (outlet, progress) = (outlet.clone(), Instant::now());
                    state.behind.push(Behind { outlet, position, progress });
                    more_behind = true;
                }
                Err(_) => outlet.die(),
            }
        }
        if more_behind && self.shared.deliver(&mut state).is_err() {
            state.behind.drain(..).for_each(|behind| behind.outlet.die());
        }
    }

    /// Waits for clients that are far behind but read, and not once `ended` is true. Who does not read is let go.
    pub async fn room(&self, ended: &watch::Sender<bool>) {
        if self.list.borrow().is_empty() {
            return;
        }
        let mut ended = ended.subscribe();
        loop {
            let Some(until) = self.shared.state().wait_until(Instant::now()) else { return };
            if *ended.borrow_and_update() {
                return;
            }
            tokio::select! {
                () = self.shared.room.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
                _ = ended.changed() => {}
            }
        }
    }
}

fn send(socket: &UnixStream, header: &[u8], bytes: &[u8]) -> io::Result<usize> {
    match socket.try_write_vectored(&[io::IoSlice::new(header), io::IoSlice::new(bytes)]) {
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

impl State {
    /// Adds to the file; gives where it begins.
    fn append(&mut self, directory: &Path, header: &[u8], bytes: &[u8]) -> io::Result<u64> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(Arc::new(nameless(directory)?)),
        };
        let begin = self.written;
        let both = [io::IoSlice::new(header), io::IoSlice::new(bytes)];
        let count = rustix::io::pwritev(file, &both, begin)?;
        if let Some(rest) = header.get(count..) {
            file.write_all_at(rest, begin + count as u64)?;
        }
        let count = count.max(header.len());
        file.write_all_at(&bytes[count - header.len()..], begin + count as u64)?;
        self.written = begin + (header.len() + bytes.len()) as u64;
        Ok(begin)
    }

    /// Until when a client has to be waited for; lets those go that are stuck.
    fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        let (written, mut until) = (self.written, None::<Instant>);
        self.behind.retain(|behind| {
            let behind_by = written - behind.position;
            if behind_by <= BEHIND {
                return true;
            }
            let patience = if behind_by <= BEHIND_MAX { READING } else { STUCK };
            let end = behind.progress + patience;
            if now < end {
                until = Some(until.map_or(end, |until| until.min(end)));
            } else if patience == STUCK {
                behind.outlet.die();
                return false;
            }
            true
        });
        until
    }

    /// Takes note of what a client took.
    fn moved(&mut self, outlet: &Arc<Outlet>, count: Result<usize, Errno>) {
        let Some(at) = self.behind.iter().position(|behind| Arc::ptr_eq(&behind.outlet, outlet)) else {
            return;
        };
        let behind = &mut self.behind[at];
        match count {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The file is longer than that: somebody cut it.
            Ok(0) | Err(_) => {
                outlet.die();
                self.behind.swap_remove(at);
            }
            Ok(count) => {
                behind.position += count as u64;
                behind.progress = Instant::now();
                if behind.position >= self.written {
                    self.behind.swap_remove(at);
                    outlet.set(&outlet.behind, false);
                }
            }
        }
    }

    /// Gives room back that holds what everyone has read. Whole pages only: the kernel may still be sending from the others.
    fn give_back(&mut self) {
        let read = self.behind.iter().map(|behind| behind.position).min().unwrap_or(self.written);
        if self.behind.is_empty() && self.written > PUNCH {
            (self.file, self.written, self.punched) = (None, 0, 0);
        } else if read - self.punched >= PUNCH
            && let Some(file) = &self.file
        {
            let end = read & !0xfff;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(file, flags, self.punched, end - self.punched);
            self.punched = end;
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            let _ = rustix::io::write(thread, &1u64.to_ne_bytes());
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread see to those who are behind.
    fn deliver(self: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        if state.thread.is_some() {
            state.wake();
            return Ok(());
        }
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        state.thread = Some(wake.clone());
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("deliver".into()).stack_size(128 << 10);
        let spawned = thread.spawn(move || shared.run(&wake));
        if spawned.is_err() {
            state.thread = None;
        }
        spawned.map(drop)
    }

    /// The thread: ends when there was nothing to do for a while.
    fn run(&self, wake: &OwnedFd) {
        let _ = rustix::process::setpriority_process(None, LOW);
        let mut idle = false;
        loop {
            let (file, clients) = {
                let mut state = self.state();
                state.give_back();
                if state.behind.is_empty() && idle {
                    // Under the lock: whoever falls behind next starts another.
                    *state = State::default();
                    return;
                }
                let clients: Vec<_> = state
                    .behind
                    .iter()
                    .map(|behind| (behind.outlet.clone(), behind.position, state.written - behind.position))
                    .collect();
                (state.file.clone(), clients)
            };
            let mut polled = vec![PollFd::new(wake, PollFlags::IN)];
            polled.extend(clients.iter().map(|client| PollFd::new(&client.0.socket, PollFlags::OUT)));
            let patience = clients.is_empty().then(|| Timespec::try_from(IDLE).ok()).flatten();
            idle = rustix::event::poll(&mut polled, patience.as_ref()) == Ok(0);
            if !polled[0].revents().is_empty() {
                let _ = rustix::io::read(wake, &mut [0; 8]);
            }
            let ready: Vec<bool> = polled[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            let Some(file) = file else { continue };
            for ((outlet, mut position, left), ready) in clients.into_iter().zip(ready) {
                if ready {
                    let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                    let moved = rustix::fs::sendfile(&outlet.socket, &file, Some(&mut position), count);
                    self.state().moved(&outlet, moved);
                }
            }
            self.room.notify_one();
        }
    }
}

fn nameless(directory: &Path) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(OFlags::TMPFILE.bits() as i32).open(directory) {
        Ok(file) => Ok(file),
        // Some file systems have no nameless files.
        Err(_) => {
            let path = directory.join(
                format!(".spool-{}-{:?}", std::process::id(), Instant::now())
                    .replace([' ', '{', '}', ':', ','], ""),
            );
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn clients(feed: &Feed, count: usize) -> (Vec<Arc<Outlet>>, Vec<std::os::unix::net::UnixStream>) {
        (0..count)
            .map(|_| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let outlet = Outlet::new(ours, false);
                feed.add(outlet.clone());
                let theirs = theirs.into_std().unwrap();
                theirs.set_nonblocking(false).unwrap();
                (outlet, theirs)
            })
            .unzip()
    }

    fn everyone_gets_everything(count: usize) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let feed = Feed::new(directory.path());
            let (outlets, theirs) = clients(&feed, count);
            let readers: Vec<_> = theirs
                .into_iter()
                .map(|mut theirs| {
                    std::thread::spawn(move || {
                        let mut all = Vec::new();
                        theirs.read_to_end(&mut all).map(|_| all).unwrap()
                    })
                })
                .collect();
            let ended = watch::channel(false).0;
            let mut expected = Vec::new();
            for number in 0..3000_u32 {
                let bytes = vec![number as u8; (number * 7 % 20_000) as usize];
                feed.offer(&number.to_be_bytes(), &bytes);
                expected.extend_from_slice(&number.to_be_bytes());
                expected.extend_from_slice(&bytes);
                feed.room(&ended).await;
                tokio::task::yield_now().await;
            }
            feed.finish();
            for outlet in outlets {
                outlet.served().await;
                assert!(!outlet.is(&outlet.dead));
                feed.remove(&outlet);
            }
            for reader in readers {
                assert!(reader.join().unwrap() == expected);
            }
        });
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_client_and_many_get_everything_once_and_in_order() {
        everyone_gets_everything(1);
        everyone_gets_everything(DIRECT_MAX);
        everyone_gets_everything(3 * DIRECT_MAX);
    }

    #[test]
    fn only_who_reads_is_waited_for_and_who_is_stuck_is_let_go() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (outlet, now) = (Outlet::new(ours, false), Instant::now());
        let mut state = State {
            behind: vec![Behind { outlet: outlet.clone(), position: 0, progress: now }],
            ..State::default()
        };
        for (written, after, waits) in [
            (BEHIND, Duration::ZERO, None),
            (BEHIND + 1, Duration::ZERO, Some(READING)),
            (BEHIND + 1, READING, None),
            (BEHIND_MAX + 1, READING, Some(STUCK)),
        ] {
            state.written = written;
            assert_eq!(state.wait_until(now + after), waits.map(|patience| now + patience), "{written}");
            assert_eq!(state.behind.len(), 1);
        }
        assert_eq!(state.wait_until(now + STUCK), None);
        assert!(state.behind.is_empty() && outlet.is(&outlet.dead));
    }
}
