//! The directories that checkpoints pass through on their way into the content store and out of it.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.checkpoint/
//!     new-<random>/           what criu writes; gone when it is stored
//!     task/<namespace>/<id>/  what a task is restored from; gone with the task
//! ```
//! A restore happens when the task is started, which may be long after it was created, so its directory lasts as long as the task. What a
//! killed daemon left is removed at the next start: checkpoints half made, and those whose task has no bundle any more.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Key;
use super::bundle::PLUGIN_DIR;

const DIRECTORY: &str = "io.containerd.runtime.v2.checkpoint";

/// All of them.
pub struct Checkpoints {
    directory: PathBuf,
}

/// A directory for a checkpoint that is being made, removed when dropped.
pub struct Fresh(PathBuf);

impl Checkpoints {
    /// Those below a state directory. Removes what nobody needs any more.
    pub fn open(state: &Path) -> Self {
        let checkpoints = Self { directory: state.join(DIRECTORY) };
        checkpoints.sweep(&state.join(PLUGIN_DIR));
        checkpoints
    }

    /// Somewhere to write a checkpoint to.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn fresh(&self) -> io::Result<Fresh> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = self.directory.join(format!("new-{}", hex::encode(random)));
        make(&path)?;
        Ok(Fresh(path))
    }

    /// An empty directory to restore a task from.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn of_task(&self, key: &Key) -> io::Result<PathBuf> {
        self.forget(key);
        let path = self.task(key);
        make(&path)?;
        Ok(path)
    }

    /// The task is gone, or was never made.
    pub fn forget(&self, key: &Key) {
        match std::fs::remove_dir_all(self.task(key)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(task = %key, %err, "cannot remove what the task was restored from");
            }
            _ => {}
        }
    }

    fn task(&self, key: &Key) -> PathBuf {
        self.directory.join("task").join(&key.namespace).join(&key.id)
    }

    fn sweep(&self, bundles: &Path) {
        let remove = |path: &Path| {
            if let Err(err) = std::fs::remove_dir_all(path) {
                tracing::warn!(path = %path.display(), %err, "cannot remove a checkpoint nobody needs");
            }
        };
        let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        for entry in entries(&self.directory) {
            if entry.file_name() != "task" {
                remove(&entry.path());
            }
        }
        for namespace in entries(&self.directory.join("task")) {
            for task in entries(&namespace.path()) {
                if !bundles.join(namespace.file_name()).join(task.file_name()).exists() {
                    remove(&task.path());
                }
            }
        }
    }
}

impl Fresh {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(err) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %err, "a checkpoint that is stored cannot be removed");
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_task_may_still_be_restored_from_outlives_a_kill() {
        let state = tempfile::tempdir().unwrap();
        let before = Checkpoints::open(state.path());
        let (kept, gone) = (Key::new("n", "kept"), Key::new("n", "gone"));
        let (kept_at, gone_at) = (before.of_task(&kept).unwrap(), before.of_task(&gone).unwrap());
        let fresh = before.fresh().unwrap();
        std::fs::create_dir_all(state.path().join(PLUGIN_DIR).join("n/kept")).unwrap();
        let after = Checkpoints::open(state.path());
        assert!(kept_at.exists() && !gone_at.exists() && !fresh.path().exists());
        std::mem::forget(fresh);
        after.forget(&kept);
        after.forget(&kept);
        assert!(!kept_at.exists());
    }
}
