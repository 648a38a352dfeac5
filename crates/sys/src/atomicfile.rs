//! Files that others read appear whole or not at all.
//!
//! Invariant: after [`write()`] returns, the name refers to the new content and keeps doing so across a power failure; when it fails or
//! the process dies half-way, the name still refers to what it did before. Leftover temporary files start with `.tmp-` and are never
//! mistaken for content. Driven by everything that keeps state on disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Replaces the content of `path` by `content`: temporary file beside it, fsync, rename, fsync of the directory.
///
/// `mode` is that of the file afterwards, whatever the umask says. Fails with the error of the step that did not work; the old file is then
/// untouched, except when only the last step (syncing the directory) failed.
pub fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    write_with(path, mode, |file| file.write_all(content))
}

/// Like [`write()`], for content that is produced piecemeal.
pub fn write_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let directory = parent(path);
    let (mut file, temporary) = create_temporary(directory, path, mode)?;
    let written = fill(&mut file)
        // The umask applied at creation; the caller's mode is meant literally.
        .and_then(|()| {
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode)).map_err(io::Error::from)
        })
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(err) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(err);
    }
    sync_directory(directory)
}

/// Removes a file for good: unlink and fsync of the directory. A file that is not there is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A new file beside `path` that nobody else has; the name carries pid and counter so that two writers never share one.
fn create_temporary(directory: &Path, path: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"));
    }
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        // Not derived from the target's name: that may already be as long as a name can be.
        let temporary = directory.join(format!(".tmp-{}-{count}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            // An earlier process with our pid died before its rename.
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(err) => return Err(err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_content_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write(&path, 0o600, b"one").unwrap();
        write(&path, 0o664, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o664);
        assert_eq!(names(directory.path()), ["state.json"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write(&path, 0o600, b"old").unwrap();
        let failed = write_with(&path, 0o600, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk full");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["state.json"]);
    }

    #[test]
    fn a_leftover_of_a_dead_process_is_not_reused() {
        let directory = tempfile::tempdir().unwrap();
        for count in 0..64 {
            std::fs::write(directory.path().join(format!(".tmp-{}-{count}", std::process::id())), b"old")
                .unwrap();
        }
        let path = directory.path().join("x");
        write(&path, 0o600, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn removing_twice_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write(&path, 0o600, b"").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_missing_directory_and_a_path_without_name_are_errors() {
        assert_eq!(
            write(Path::new("/nonexistent-directory/x"), 0o600, b"").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(write(Path::new("/"), 0o600, b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
