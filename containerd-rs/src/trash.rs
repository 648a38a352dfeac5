//! Removing large things without anybody waiting.
//!
//! What is to go is renamed into a directory nobody looks into, which takes microseconds and cannot be half done; a thread then empties that
//! directory. What a killed daemon left there goes at the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::runtime::Handle;

/// A place where things wait to be removed. Cloning shares.
#[derive(Clone)]
pub struct Trash(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    runtime: Handle,
    number: AtomicU64,
    /// Whether somebody is emptying it.
    emptying: AtomicBool,
    /// Whether something came since.
    filled: AtomicBool,
}

impl Trash {
    /// Uses `directory`, on the same file system as what will be thrown there, and begins to empty it. Needs a runtime for its thread.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        crate::daemon::private_directory(&directory, 0o700)?;
        let trash = Self(Arc::new(Inner {
            directory,
            runtime: Handle::current(),
            number: AtomicU64::new(0),
            emptying: AtomicBool::new(false),
            filled: AtomicBool::new(false),
        }));
        trash.empty();
        Ok(trash)
    }

    /// Takes `path` away. What is not there needs no taking.
    pub fn take(&self, path: &Path) {
        // The pid keeps names apart from those of an earlier run that are still being removed.
        let number = self.0.number.fetch_add(1, Ordering::Relaxed);
        let to = self.0.directory.join(format!("{}-{number}", std::process::id()));
        match std::fs::rename(path, &to) {
            Ok(()) => self.empty(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => tracing::warn!(%err, path = %path.display(), "cannot be thrown away"),
        }
    }

    fn empty(&self) {
        self.0.filled.store(true, Ordering::SeqCst);
        if self.0.emptying.swap(true, Ordering::SeqCst) {
            return;
        }
        let trash = self.clone();
        self.0.runtime.spawn_blocking(move || {
            loop {
                while trash.0.filled.swap(false, Ordering::SeqCst) {
                    trash.empty_now();
                }
                trash.0.emptying.store(false, Ordering::SeqCst);
                // Something may have come between the last look and giving up the place.
                if !trash.0.filled.load(Ordering::SeqCst) || trash.0.emptying.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }

    /// Removes what is there, in this thread.
    pub fn empty_now(&self) {
        let Ok(entries) = std::fs::read_dir(&self.0.directory) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed =
                if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%err, path = %path.display(), "cannot be removed, the next start tries again");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_thrown_away_goes() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("trash/left/deep");
        std::fs::create_dir_all(&left).unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        for n in 0..20 {
            let path = dir.path().join(format!("x{n}"));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), "x").unwrap();
            trash.take(&path);
            assert!(!path.exists());
        }
        trash.take(&dir.path().join("never was"));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_dir(dir.path().join("trash")).unwrap().next().is_some() {
            assert!(std::time::Instant::now() < deadline, "the trash is not emptied");
            tokio::task::yield_now().await;
        }
    }
}
