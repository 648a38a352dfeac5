//! A container's file system, reached by descriptors.
//!
//! Invariant: a path a client or an image gives is resolved by the kernel inside the container's root (`openat2`, `RESOLVE_IN_ROOT`, no
//! magic links), and what was resolved is used through its descriptor. Nothing is looked up twice by name.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// How often a resolution that met a concurrent rename is tried again.
const RETRIES: usize = 32;

/// Opens `path` inside `root`; `O_PATH` keeps devices and pipes untouched.
pub fn open_inside(root: impl AsFd, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH)
}

/// Opens `path` inside `root` with the given flags.
pub fn open_with(root: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    let inside = relative(path.as_ref());
    for _ in 0..RETRIES {
        match rustix::fs::openat2(&root, &inside, flags | OFlags::CLOEXEC, Mode::empty(), IN_ROOT) {
            Err(Errno::AGAIN) => {}
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// An absolute path as one relative to a root.
pub fn relative(path: &Path) -> PathBuf {
    let rest: PathBuf =
        path.components().filter(|part| !matches!(part, std::path::Component::RootDir)).collect();
    if rest.as_os_str().is_empty() { PathBuf::from(".") } else { rest }
}

/// Reads a regular file of at most `limit` bytes inside `root`. One that is not there is empty; anything else than a regular file, or a
/// larger one, is refused.
pub fn read_text(root: impl AsFd, path: &str, limit: u64) -> io::Result<String> {
    // Without blocking: the image may have put a pipe there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match open_with(root, path, OFlags::PATH) {
        Ok(opened) => opened,
        Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(String::new());
        }
        Err(err) => return Err(err),
    };
    let stat = rustix::fs::fstat(&opened)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is not a regular file")));
    }
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path} is larger than {limit} bytes"),
        ));
    }
    let file = reopen(&opened, flags)?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens what an `O_PATH` descriptor stands for.
pub fn reopen(opened: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_nowhere_but_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/real"), "inside").unwrap();
        symlink("/etc/real", root.join("etc/passwd")).unwrap();
        symlink("../../../../../../etc/real", root.join("etc/up")).unwrap();
        symlink("/dev/zero", root.join("etc/zero")).unwrap();
        let fd = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(read_text(&fd, "/etc/passwd", 100).unwrap(), "inside");
        assert_eq!(read_text(&fd, "/etc/up", 100).unwrap(), "inside");
        assert_eq!(read_text(&fd, "/etc/none", 100).unwrap(), "");
        assert!(read_text(&fd, "/etc", 100).is_err());
        assert!(read_text(&fd, "/etc/passwd", 3).is_err());
        // The host's /dev/zero is not there inside.
        assert_eq!(read_text(&fd, "/etc/zero", 100).unwrap(), "");
    }

    #[test]
    fn a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("group"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(read_text(&fd, "/group", 100).is_err());
    }
}
