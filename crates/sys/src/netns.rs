//! Network namespaces: making one, giving it a name in the file system, working inside it.
//!
//! A namespace belongs to a thread, and a runtime's worker that changed its own would carry every later task into it. So each function that
//! moves a thread says so in its name, and [`run_in`] and [`scoped`] are the ways to use them: a short-lived thread that ends there.

#![allow(
    unsafe_code,
    reason = "unshare is unsafe for the flags that unshare memory or files; only CLONE_NEWNET is used"
)]

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Moves the calling thread into a new, empty network namespace. Only for a thread that ends soon.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET replaces this thread's network namespace and nothing the memory model or other threads rely on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Moves the calling thread into the namespace behind `ns`. Only for a thread that ends soon, or that comes back before it yields.
pub fn enter(ns: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(ns, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

/// The calling thread's network namespace.
pub fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Names the calling thread's namespace: binds it onto `path`, which is created. It lives until [`unpin`].
pub fn pin(path: &Path) -> io::Result<()> {
    File::options().write(true).create(true).truncate(false).open(path)?;
    rustix::mount::mount("/proc/thread-self/ns/net", path, c"none", MountFlags::BIND, None::<&std::ffi::CStr>)
        .map_err(io::Error::from)
}

/// Takes the name away again. A path that is not there, or not mounted, is content.
pub fn unpin(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Bound more than once: a set-up that was repeated after a crash.
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(err) => return Err(err.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Whether `path` is a network namespace, and not an empty file left by a set-up that stopped halfway.
pub fn is_pinned(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// Runs `work` on a thread of its own and waits for it. What the thread does to its namespace ends with it.
pub fn scoped<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| io::Error::other("the thread in a network namespace panicked"))
    })
}

/// Runs `work` inside the namespace behind `ns`.
pub fn run_in<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    scoped(|| enter(ns).map(|()| work()))?
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn inode(file: &File) -> u64 {
        use std::os::unix::fs::MetadataExt;
        file.metadata().unwrap().ino()
    }

    #[test]
    fn a_pinned_namespace_outlives_its_thread_and_goes_with_its_name() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        let outside = inode(&current().unwrap());
        let made = scoped(|| {
            enter_new().unwrap();
            pin(&path).unwrap();
            inode(&current().unwrap())
        })
        .unwrap();
        assert_ne!(made, outside);
        assert!(is_pinned(&path));
        let file = File::open(&path).unwrap();
        assert_eq!(run_in(file.as_fd(), || inode(&current().unwrap())).unwrap(), made);
        assert_eq!(inode(&current().unwrap()), outside, "the caller's thread moved");
        unpin(&path).unwrap();
        assert!(!path.exists());
        unpin(&path).unwrap();
    }
}
