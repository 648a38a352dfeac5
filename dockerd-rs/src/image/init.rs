//! The files and directories every container needs, put over an image once.
//!
//! The image is not trusted: each step is taken relative to a directory descriptor and never through a symbolic link, so a link in the image
//! leads nowhere. What stands in the way of a needed name (a link, a file where a directory belongs) is removed, as Docker does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdirat, openat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::mountfs;
use crate::runtime::content::Mount;

enum What {
    Directory,
    File,
    Link(&'static str),
}

const NEEDED: [(&str, What); 10] = [
    ("dev/pts", What::Directory),
    ("dev/shm", What::Directory),
    ("dev/console", What::File),
    ("proc", What::Directory),
    ("sys", What::Directory),
    (".dockerenv", What::File),
    ("etc/resolv.conf", What::File),
    ("etc/hosts", What::File),
    ("etc/hostname", What::File),
    ("etc/mtab", What::Link("/proc/mounts")),
];

/// Puts them into the snapshot behind `mounts`.
pub fn fill(mounts: &[Mount]) -> io::Result<()> {
    let root = mountfs::open(mounts)?;
    for (path, what) in NEEDED {
        place(root.as_fd(), path, &what)?;
    }
    Ok(())
}

fn place(root: BorrowedFd<'_>, path: &str, what: &What) -> io::Result<()> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut directory: OwnedFd = root.try_clone_to_owned()?;
    for parent in parents.split('/').filter(|part| !part.is_empty()) {
        directory = descend(directory.as_fd(), parent)?;
    }
    let there = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(err) => return Err(err.into()),
    };
    match (what, there) {
        (What::Directory, Some(FileType::Directory)) => return Ok(()),
        // A directory where a file belongs stays: Docker's unlink does not remove it either.
        (What::File | What::Link(_), Some(FileType::Directory)) => return Ok(()),
        (_, Some(_)) => unlinkat(&directory, name, AtFlags::empty())?,
        (_, None) => {}
    }
    match what {
        What::Directory => mkdirat(&directory, name, Mode::from_raw_mode(0o755))?,
        What::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&directory, name, flags, Mode::from_raw_mode(0o755))?;
        }
        What::Link(target) => symlinkat(*target, &directory, name)?,
    }
    Ok(())
}

/// The directory `name` in `parent`, made if it is not there; anything else of that name gives way.
fn descend(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => return Ok(directory),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(parent, name, AtFlags::empty())?,
        Err(err) => return Err(err.into()),
    }
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let directory = openat(parent, name, flags, Mode::empty())?;
    fstat(&directory)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn filled(prepare: impl FnOnce(&Path)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        for (path, what) in NEEDED {
            place(root.as_fd(), path, &what).unwrap();
        }
        dir
    }

    #[test]
    fn everything_is_there_even_in_an_empty_image() {
        let dir = filled(|_| {});
        for path in ["dev/pts", "dev/shm", "proc", "sys"] {
            assert!(dir.path().join(path).is_dir(), "{path}");
        }
        for path in [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
            assert!(dir.path().join(path).is_file(), "{path}");
        }
        assert_eq!(std::fs::read_link(dir.path().join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    }

    #[test]
    fn links_in_the_image_lead_nowhere() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_owned();
        let dir = filled(|root| {
            symlink(&target, root.join("etc")).unwrap();
            symlink(&target, root.join("proc")).unwrap();
            std::fs::write(root.join("dev"), "a file").unwrap();
            symlink("/etc/passwd", root.join(".dockerenv")).unwrap();
        });
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(std::fs::symlink_metadata(dir.path().join("etc")).unwrap().is_dir());
        assert!(std::fs::symlink_metadata(dir.path().join(".dockerenv")).unwrap().is_file());
        assert!(dir.path().join("dev/pts").is_dir());
    }

    #[test]
    fn what_the_image_brought_is_replaced_by_empty_files() {
        let dir = filled(|root| {
            std::fs::create_dir(root.join("etc")).unwrap();
            std::fs::write(root.join("etc/hosts"), "127.0.0.1 image").unwrap();
            std::fs::write(root.join("etc/passwd"), "root").unwrap();
        });
        assert_eq!(std::fs::read(dir.path().join("etc/hosts")).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join("etc/passwd")).unwrap(), b"root");
    }
}
