//! Mount namespaces: a view of a file system with mounts in it that nobody else sees.
//!
//! As with [`crate::netns`], a namespace belongs to a thread; what is done here is done on a thread that ends. A view lives as long as its
//! [`View`]: the kernel takes its mounts down with the last descriptor, also when the process is killed.

#![allow(
    unsafe_code,
    reason = "unshare is unsafe for the flags that unshare memory or files; only CLONE_NEWNS and CLONE_FS are used"
)]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::netns::scoped;

/// A directory in a mount namespace that nothing else is in.
pub struct View {
    /// The directory. What is mounted below it in the view is reached through it.
    pub root: OwnedFd,
    /// Keeps the namespace alive: without it the mounts below `root` would fall off.
    _namespace: File,
}

/// Runs `make` in a copy of this process's mount namespace that shares nothing with it, and keeps the directory it opens there.
///
/// # Errors
/// The namespace cannot be made, or those of `make`.
pub fn view(make: impl FnOnce() -> io::Result<OwnedFd> + Send) -> io::Result<View> {
    scoped(|| {
        // SAFETY: CLONE_NEWNS and CLONE_FS replace this thread's mount namespace, working directory and umask; the thread ends soon.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
        // Nothing made here may travel out, nothing made outside in.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let root = make()?;
        Ok(View { root, _namespace: File::open("/proc/thread-self/ns/mnt")? })
    })?
}

/// The root directory of another mount namespace, without what is mounted below it there; mounted nowhere, it lives as long as the
/// descriptor.
///
/// # Errors
/// The namespace is gone.
pub fn bare_root(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    scoped(|| {
        // SAFETY: CLONE_FS replaces this thread's working directory and umask, which setns demands; the thread ends soon.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(rustix::mount::open_tree(rustix::fs::CWD, "/", flags)?)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsFd;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_view_has_mounts_nobody_else_sees() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        let view = view(|| {
            crate::mount::mount("tmpfs", "tmpfs", &["mode=755"], &dir.path().join("inner"))?;
            std::fs::write(dir.path().join("inner/file"), "in the view")?;
            Ok(rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
        })
        .unwrap();
        assert!(!dir.path().join("inner/file").exists());
        let file =
            rustix::fs::openat(&view.root, "inner/file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .unwrap();
        assert_eq!(std::io::read_to_string(File::from(file)).unwrap(), "in the view");
    }

    #[test]
    fn a_bare_root_has_no_mounts_below() {
        if !is_root() {
            return;
        }
        let own = File::open("/proc/self/ns/mnt").unwrap();
        let root = bare_root(own.as_fd()).unwrap();
        // /proc is a mount of its own, so the directory below it is empty.
        assert!(
            rustix::fs::openat(&root, "proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_err()
        );
    }
}
