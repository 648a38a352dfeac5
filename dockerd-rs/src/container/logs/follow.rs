//! Who is told that a log grew: one inotify instance for all followers of all containers.
//!
//! Followers wait on a counter, not on the file: many growths between two looks are one. The watch on a log's directory goes when its last
//! follower does.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::readers::Readers;

/// What each follower beyond the first adds to the pause between two tellings.
const PAUSE_EACH: Duration = Duration::from_millis(1);
/// The longest pause: what a person who looks on takes for at once.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The watches; cheap to clone.
#[derive(Clone)]
pub struct Growth(Arc<Shared>);

struct Shared {
    notify: AsyncFd<OwnedFd>,
    readers: Readers,
    // Guards the table of watches; held for a look-up, never across an await.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_watch: HashMap<i32, Weak<Watched>>,
    by_path: HashMap<PathBuf, Weak<Watched>>,
}

struct Watched {
    directory: PathBuf,
    watch: i32,
    count: watch::Sender<u64>,
    shared: Weak<Shared>,
}

/// One follower's ear.
pub struct Ear {
    _watched: Arc<Watched>,
    count: watch::Receiver<u64>,
}

impl Ear {
    /// Waits for growth since the last time. Cancel safe.
    pub async fn grown(&mut self) {
        if self.count.changed().await.is_err() {
            // The sender lives in what we hold; it cannot be gone.
            std::future::pending::<()>().await;
        }
    }
}

impl Growth {
    /// Opens the inotify instance. Must be called inside the runtime.
    ///
    /// # Errors
    /// The user's limit of instances or threads is reached.
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "the replacement is unsafe; a descriptor we own is what it asks for")]
        let notify = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let shared = Arc::new(Shared { notify, readers: Readers::start()?, table: Mutex::default() });
        tokio::spawn(listen(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// Who reads for those that listen.
    pub fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Listens for changes of files in the directory of `log`.
    ///
    /// # Errors
    /// The directory does not exist, or the user's limit of watches is reached.
    pub fn listen(&self, log: &Path) -> io::Result<Ear> {
        let directory = log.parent().unwrap_or(Path::new("/")).to_owned();
        let mut table = self.0.table();
        if let Some(watched) = table.by_path.get(&directory).and_then(Weak::upgrade) {
            let count = watched.count.subscribe();
            return Ok(Ear { _watched: watched, count });
        }
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.0.notify, &directory, flags)?;
        let watched = Arc::new(Watched {
            directory: directory.clone(),
            watch,
            count: watch::Sender::new(0),
            shared: Arc::downgrade(&self.0),
        });
        table.by_watch.insert(watch, Arc::downgrade(&watched));
        table.by_path.insert(directory, Arc::downgrade(&watched));
        let count = watched.count.subscribe();
        Ok(Ear { _watched: watched, count })
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut table = shared.table();
        // A new follower may have come between our last reference and this lock; then the entries are its own.
        if table.by_path.get(&self.directory).is_some_and(|entry| entry.strong_count() == 0) {
            table.by_path.remove(&self.directory);
            table.by_watch.remove(&self.watch);
            // Fails when the directory is gone, and its watch with it.
            let _ = inotify::remove_watch(&shared.notify, self.watch);
        }
    }
}

async fn listen(shared: Weak<Shared>) {
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); 4096];
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let Ok(mut ready) = shared.notify.readable().await else { return };
        let mut grown = Vec::new();
        let mut reader = inotify::Reader::new(&shared.notify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        // Something was missed: everybody looks.
                        grown = shared.table().by_watch.keys().copied().collect();
                    } else if !grown.contains(&event.wd()) {
                        grown.push(event.wd());
                    }
                    if reader.is_buffer_empty() {
                        break;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(err) => {
                    tracing::warn!(error = %err, "cannot read log notifications");
                    return;
                }
            }
        }
        let told: Vec<_> = {
            let table = shared.table();
            grown.iter().filter_map(|watch| table.by_watch.get(watch)?.upgrade()).collect()
        };
        let mut followers = 0;
        for watched in told {
            followers += watched.count.receiver_count();
            watched.count.send_modify(|count| *count += 1);
        }
        drop(shared);
        tokio::time::sleep(pause(followers)).await;
    }
}

/// How long growth gathers after so many were told of some: each of them wakes a client, and together they would take the container's processor for
/// handing over single lines.
fn pause(followers: usize) -> Duration {
    let followers = u32::try_from(followers).unwrap_or(u32::MAX);
    PAUSE_EACH.saturating_mul(followers.saturating_sub(1)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn one_follower_hears_at_once_and_many_together() {
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1), Duration::ZERO);
        assert!(pause(2) < Duration::from_millis(2));
        assert!(pause(100) > Duration::from_millis(20));
        assert_eq!(pause(usize::MAX), PAUSE_MAX);
    }

    #[tokio::test]
    async fn growth_and_rotation_are_heard_by_all_and_the_watch_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut file = std::fs::File::create(&log).unwrap();
        let growth = Growth::new().unwrap();
        let (mut one, mut two) = (growth.listen(&log).unwrap(), growth.listen(&log).unwrap());
        assert_eq!(growth.0.table().by_watch.len(), 1);
        file.write_all(b"x").unwrap();
        let heard = async { tokio::join!(one.grown(), two.grown()) };
        tokio::time::timeout(Duration::from_secs(5), heard).await.unwrap();
        std::fs::rename(&log, dir.path().join("log.1")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), one.grown()).await.unwrap();
        drop((one, two));
        assert!(growth.0.table().by_watch.is_empty() && growth.0.table().by_path.is_empty());
        assert!(growth.listen(Path::new("/nonexistent/log")).is_err());
    }
}
