//! A directory that paths of strangers are resolved in.
//!
//! Invariant: whatever a path or the symlinks on its way say, `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`
//! keeps the result below the directory, also while others rename things in it. Absolute symlinks (`/var/run ->
//! /run`) are read as relative to the root, as they are from inside a container. The last component is never
//! followed by the functions that create or remove.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// An open directory that is the world to everything resolved in it.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl RootDir {
    /// Opens a directory of the host.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let fd = fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Takes a directory that is open already; it need not be reachable by a path.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens what `path` names, symlinks followed within the root. An empty path is the root itself.
    pub fn open_at(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        for _ in 0..64 {
            match fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, RESOLVE) {
                // A rename somewhere on the way: the kernel could not tell whether we left the root.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a directory for use as the base of `*at` calls.
    pub fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// A directory below, as a root of its own (symlinks in it then stop there).
    pub fn sub(&self, path: &[u8]) -> Result<Self, Errno> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { fd })
    }

    /// What is at `path`; the last component is not followed.
    pub fn stat(&self, path: &[u8]) -> Result<Stat, Errno> {
        let fd = self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        fs::fstat(&fd)
    }

    /// What `path` leads to, symlinks followed within the root.
    pub fn stat_followed(&self, path: &[u8]) -> Result<Stat, Errno> {
        let fd = self.open_at(path, OFlags::PATH, Mode::empty())?;
        fs::fstat(&fd)
    }

    /// Another descriptor of the same directory.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        Ok(Self { fd: rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)? })
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Splits a clean relative path into its directory (empty for the root) and last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A path as an archive names it, made relative and free of `.` and `..`. `None` if it leads above the root.
pub fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// Removes `name` in `parent`, whatever it is, without following anything. What is gone already is fine.
pub fn remove_all(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(err) => return Err(err),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(parent, name, flags, Mode::empty())?;
    remove_children(dir.as_fd(), &|_| false)?;
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Removes what is in a directory, except children `keep` says yes to. Iterative: a deep tree is no deep stack.
pub fn remove_children(dir: BorrowedFd<'_>, keep: &dyn Fn(&[u8]) -> bool) -> Result<(), Errno> {
    let first = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
    let names = list(first.as_fd())?.into_iter().filter(|n| !keep(n)).collect();
    let mut stack: Vec<(OwnedFd, Vec<Vec<u8>>, Vec<u8>)> = vec![(first, names, Vec::new())];
    while let Some((fd, names, _)) = stack.last_mut() {
        let Some(name) = names.pop() else {
            let (_, _, own) = stack.pop().expect("the loop has just seen the last element");
            if let Some((above, _, _)) = stack.last() {
                fs::unlinkat(above, &own[..], AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        match fs::unlinkat(&*fd, &name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(err) => return Err(err),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = fs::openat(&*fd, &name[..], flags, Mode::empty())?;
        let names = list(child.as_fd())?;
        stack.push((child, names, name));
    }
    Ok(())
}

/// The names in a directory, sorted, without `.` and `..`.
pub fn list(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    // Opening `.` again gives the iteration a position of its own.
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The type bits of a stat.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn symlinks_end_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("run/x")).unwrap();
        symlink("/run", dir.path().join("abs")).unwrap();
        symlink("../../../../../run", dir.path().join("up")).unwrap();
        symlink("/proc/self/root", dir.path().join("magic")).unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        assert!(root.open_dir(b"abs/x").is_ok());
        assert!(root.open_dir(b"up/x").is_ok());
        assert!(root.open_dir(b"../../run/x").is_ok());
        assert!(matches!(root.open_dir(b"magic/etc"), Err(Errno::NOENT)));
        assert_eq!(file_type(&root.stat(b"abs").unwrap()), FileType::Symlink);
        assert_eq!(file_type(&root.stat_followed(b"abs").unwrap()), FileType::Directory);
    }

    #[test]
    fn removal_follows_nothing_and_survives_depth() {
        let dir = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        std::fs::write(victim.path().join("keep"), b"x").unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(&top).unwrap();
        symlink(victim.path(), top.join("link")).unwrap();
        let mut deep = RootDir::open(&top).unwrap();
        for _ in 0..600 {
            fs::mkdirat(&deep, "d", Mode::from_raw_mode(0o700)).unwrap();
            deep = deep.sub(b"d").unwrap();
        }
        let root = RootDir::open(dir.path()).unwrap();
        remove_all(root.as_fd(), b"top").unwrap();
        assert!(!top.exists() && victim.path().join("keep").exists());
        remove_all(root.as_fd(), b"top").unwrap();
    }

    proptest! {
        #[test]
        fn a_clean_path_has_no_steps_up(path in "[a./]{0,24}") {
            if let Some(clean) = clean(path.as_bytes()) {
                prop_assert!(!clean.starts_with(b"/"));
                prop_assert!(clean.is_empty() || clean.split(|b| *b == b'/').all(|p| !matches!(p, b"" | b"." | b"..")));
            }
        }
    }
}
