//! A snapshot's mounts as an open directory, without leaving a mount behind.
//!
//! The file system is mounted on a fresh directory, opened, and detached at once: it lives exactly as long as the descriptor (and what was
//! opened through it). An engine that is killed in between leaves it to the next one's [`sweep`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::runtime::content::Mount;

/// How the directories' names begin; the process and a number follow.
const PREFIX: &str = ".engine-mount-";

/// Takes away what engines left that were killed.
pub fn sweep() {
    sweep_in(&std::env::temp_dir());
}

fn sweep_in(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        // Another engine may be in the middle of it.
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let path = entry.path();
            let _ = sys::mount::detach_below(&path);
            let _ = std::fs::remove_dir(&path);
        }
    }
}

/// As [`open`], with the mount left in place over the directory for temporary files: only for a thread in a mount namespace of its own,
/// where mounts are made below it.
pub fn open_here(mounts: &[Mount]) -> io::Result<OwnedFd> {
    let only = single(mounts)?;
    let over = std::env::temp_dir();
    sys::mount::mount(&only.r#type, &only.source, &only.options, &over)?;
    open_directory(&over)
}

/// The directory behind `mounts`: one overlay or bind mount, as containerd's snapshotters give them.
pub fn open(mounts: &[Mount]) -> io::Result<OwnedFd> {
    let only = single(mounts)?;
    let place = Place::new()?;
    sys::mount::mount(&only.r#type, &only.source, &only.options, &place.0)?;
    let opened = open_directory(&place.0);
    sys::mount::detach(&place.0)?;
    opened
}

/// Mounts at `place` (a directory that is made), runs `what` with the root of it, and takes the mount away again.
pub fn mounted_at<T>(
    mounts: &[Mount],
    place: &std::path::Path,
    what: impl FnOnce(&OwnedFd) -> T,
) -> io::Result<T> {
    let only = single(mounts)?;
    std::fs::create_dir_all(place)?;
    sys::mount::mount(&only.r#type, &only.source, &only.options, place)?;
    let done = open_directory(place).map(|root| what(&root));
    sys::mount::detach(place)?;
    std::fs::remove_dir(place)?;
    done
}

fn single(mounts: &[Mount]) -> io::Result<&Mount> {
    let [only] = mounts else {
        let text = format!("{} mounts instead of one", mounts.len());
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    };
    Ok(only)
}

fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// An empty directory that goes when this does.
struct Place(PathBuf);

impl Place {
    fn new() -> io::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{count}", std::process::id()));
        match std::fs::create_dir(&path) {
            // An earlier process of our pid left it; anything in it would be an intruder's.
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_dir(&path)?;
                std::fs::create_dir(&path)?;
            }
            other => other?,
        }
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_engine_left_goes_and_a_living_one_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        // No process has the highest number there can be.
        let [dead, alive, other] = [u32::MAX.to_string(), std::process::id().to_string(), "x".to_owned()]
            .map(|pid| directory.path().join(format!("{PREFIX}{pid}-0")));
        for path in [&dead, &alive, &other] {
            std::fs::create_dir(path).unwrap();
        }
        sweep_in(directory.path());
        assert_eq!([dead.exists(), alive.exists(), other.exists()], [false, true, true]);
    }
}
