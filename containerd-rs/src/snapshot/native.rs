//! The native snapshotter: each snapshot is a whole copy of its parent. Slow and large, but it works on any file system.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_api::snapshots::Kind;
use containerd_api::types::Mount;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};

use crate::trash::Trash;

/// How a snapshot is mounted.
pub fn mount(directory: &Path, kind: Kind) -> Mount {
    let access = if kind == Kind::Active { "rw" } else { "ro" };
    Mount {
        r#type: "bind".to_owned(),
        source: directory.display().to_string(),
        target: String::new(),
        options: vec!["rbind".to_owned(), access.to_owned()],
    }
}

/// A copy that has no number yet. Dropping it throws it away, unless it was renamed.
pub struct Copy {
    path: PathBuf,
    trash: Trash,
}

impl Copy {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.trash.take(&self.path);
    }
}

/// Copies `from` into a new directory below `root`, or makes an empty one.
///
/// # Errors
/// The disk is full, or the parent has something that cannot be copied.
pub fn copy(root: &Path, from: Option<&Path>, trash: Trash) -> io::Result<Copy> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("new-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let copy = Copy { path: root.join(name), trash };
    std::fs::create_dir(&copy.path)?;
    std::fs::set_permissions(&copy.path, std::fs::Permissions::from_mode(0o755))?;
    if let Some(from) = from {
        tree(from, &copy.path)?;
    }
    Ok(copy)
}

/// Copies everything below `from`, and the attributes of `from` itself, to the existing directory `to`.
fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut links = HashMap::new();
    // Directories get their times last: filling them changes them.
    let mut directories = vec![(from.to_owned(), to.to_owned())];
    let mut next = 0;
    while next < directories.len() {
        let (from, to) = directories[next].clone();
        next += 1;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                std::fs::create_dir(&target)?;
                directories.push((source, target));
            } else {
                one(&source, &target, &metadata, &mut links)?;
            }
        }
    }
    for (from, to) in directories.iter().rev() {
        attributes(from, to, &std::fs::symlink_metadata(from)?)?;
    }
    Ok(())
}

/// Copies one thing that is no directory.
fn one(
    from: &Path,
    to: &Path,
    metadata: &Metadata,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    if metadata.nlink() > 1 {
        if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
            return std::fs::hard_link(first, to);
        }
        links.insert((metadata.dev(), metadata.ino()), to.to_owned());
    }
    let kind = metadata.file_type();
    if kind.is_file() {
        file(from, to)?;
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(from)?, to)?;
    } else if kind.is_socket() {
        // A socket's listener is not copied with it.
        return Ok(());
    } else {
        let kind = if kind.is_fifo() {
            rustix::fs::FileType::Fifo
        } else if kind.is_char_device() {
            rustix::fs::FileType::CharacterDevice
        } else {
            rustix::fs::FileType::BlockDevice
        };
        rustix::fs::mknodat(CWD, to, kind, Mode::from_raw_mode(metadata.mode() & 0o7777), metadata.rdev())?;
    }
    attributes(from, to, metadata)
}

/// Copies bytes: shared with the source where the file system can, copied by the kernel else.
fn file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::create_new(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    io::copy(&mut &source, &mut &target).map(drop)
}

/// Owner, extended attributes, mode and times, in the order in which none undoes another.
fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
    rustix::fs::chownat(CWD, to, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    extended(from, to)?;
    if !metadata.file_type().is_symlink() {
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: metadata.atime(), tv_nsec: metadata.atime_nsec() },
        last_modification: Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() },
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn extended(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::lgetxattr(from, &name, &mut value[..])?;
        match rustix::fs::lsetxattr(to, &name, &value[..length], rustix::fs::XattrFlags::empty()) {
            Err(rustix::io::Errno::NOTSUP) => {}
            other => other?,
        }
    }
    Ok(())
}
