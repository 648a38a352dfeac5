//! A directory tree into a tar: `docker cp` out of a container, `docker export`, and the members of diffs.
//!
//! Invariant: the tree is walked by descriptors, never by path, and symlinks are written, not followed. Members come
//! in byte order of their names, hard links after the first member with that inode, so the same tree always gives
//! the same archive. Sockets are left out, as tar has no type for them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::apply::read_xattrs;
use crate::error::LayerError;
use crate::root::{RootDir, file_type, list, split};
use crate::tarread::{Entry, EntryKind};
use crate::tarwrite::TarWriter;

/// How a tree is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct TreeOptions {
    /// Cut modification times to whole seconds, as Docker's own archives do.
    pub whole_seconds: bool,
    /// Write one owner into every member instead of the real one.
    pub owner: Option<(u32, u32)>,
}

/// Writes what is at `path` in `root` as `name`, a directory with all that is below it.
///
/// The last component of `path` is not followed. With an empty `name` the contents of a directory are written
/// without a member for itself. The archive is not ended: the caller may append more and calls
/// [`TarWriter::finish`].
pub fn write_tree<W: Write>(
    root: &RootDir,
    path: &[u8],
    name: &[u8],
    options: TreeOptions,
    out: &mut TarWriter<W>,
) -> Result<(), LayerError> {
    let mut members = Members::new(options);
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let (dir, last) = split(trimmed);
    let is_root = matches!(last, b"" | b"." | b"..");
    let stat = if is_root { root.stat_followed(path) } else { root.stat(trimmed) };
    let stat = stat.map_err(LayerError::at("lstat", path))?;
    if file_type(&stat) == FileType::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let flags = if is_root { flags } else { flags | OFlags::NOFOLLOW };
        let open = root.open_at(trimmed, flags, Mode::empty()).map_err(LayerError::at("open", path))?;
        if !name.is_empty() {
            members.directory(open.as_fd(), &stat, name, out)?;
        }
        return members.below(open.as_fd(), name, out);
    }
    let parent = root.open_dir(dir).map_err(LayerError::at("open", dir))?;
    members.other(parent.as_fd(), last, &stat, name, out)
}

/// Writes members and remembers which inodes have been written.
pub(crate) struct Members {
    options: TreeOptions,
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Members {
    pub(crate) fn new(options: TreeOptions) -> Self {
        Self { options, links: HashMap::new() }
    }

    /// Everything below an open directory.
    pub(crate) fn below<W: Write>(
        &mut self,
        dir: BorrowedFd<'_>,
        prefix: &[u8],
        out: &mut TarWriter<W>,
    ) -> Result<(), LayerError> {
        for name in list(dir)? {
            let path = join(prefix, &name);
            let Some(stat) = stat_at(dir, &name)? else { continue };
            if file_type(&stat) == FileType::Directory {
                // It may have been taken away meanwhile.
                let Some(child) = open_dir_at(dir, &name)? else { continue };
                self.directory(child.as_fd(), &stat, &path, out)?;
                self.below(child.as_fd(), &path, out)?;
            } else {
                self.other(dir, &name, &stat, &path, out)?;
            }
        }
        Ok(())
    }

    /// The member for a directory itself.
    pub(crate) fn directory<W: Write>(
        &mut self,
        dir: BorrowedFd<'_>,
        stat: &Stat,
        path: &[u8],
        out: &mut TarWriter<W>,
    ) -> Result<(), LayerError> {
        let mut entry = self.entry(stat, path, EntryKind::Directory);
        if !entry.path.ends_with(b"/") {
            entry.path.push(b'/');
        }
        entry.xattrs = read_xattrs(dir).map_err(LayerError::at("getxattr", path))?;
        out.append(&entry, io::empty())
    }

    /// The member for anything but a directory.
    pub(crate) fn other<W: Write>(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        path: &[u8],
        out: &mut TarWriter<W>,
    ) -> Result<(), LayerError> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let mut entry = self.entry(stat, path, EntryKind::HardLink);
                entry.link.clone_from(first);
                return out.append(&entry, io::empty());
            }
            self.links.insert(inode, path.to_vec());
        }
        match file_type(stat) {
            FileType::RegularFile => self.file(dir, name, stat, path, out),
            FileType::Symlink => {
                let mut entry = self.entry(stat, path, EntryKind::Symlink);
                entry.link = fs::readlinkat(dir, name, Vec::new())
                    .map_err(LayerError::at("readlink", path))?
                    .into_bytes();
                out.append(&entry, io::empty())
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                let kind = if kind == FileType::CharacterDevice { EntryKind::Char } else { EntryKind::Block };
                let mut entry = self.entry(stat, path, kind);
                entry.major = fs::major(stat.st_rdev).into();
                entry.minor = fs::minor(stat.st_rdev).into();
                out.append(&entry, io::empty())
            }
            FileType::Fifo => out.append(&self.entry(stat, path, EntryKind::Fifo), io::empty()),
            FileType::Directory | FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn file<W: Write>(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        path: &[u8],
        out: &mut TarWriter<W>,
    ) -> Result<(), LayerError> {
        // NONBLOCK: should it have become a fifo, we do not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(dir, name, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
            Err(err) => return Err(LayerError::at("open", path)(err)),
        };
        let stat = fs::fstat(&file).ok().filter(|s| file_type(s) == FileType::RegularFile).unwrap_or(*stat);
        let mut entry = self.entry(&stat, path, EntryKind::File);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = read_xattrs(file.as_fd()).map_err(LayerError::at("getxattr", path))?;
        out.append(&entry, file)
    }

    fn entry(&self, stat: &Stat, path: &[u8], kind: EntryKind) -> Entry {
        let (uid, gid) = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let nanos = if self.options.whole_seconds { 0 } else { stat.st_mtime_nsec };
        let mut entry = Entry::new(path, kind, stat.st_mode & 0o7777);
        entry.uid = uid.into();
        entry.gid = gid.into();
        entry.mtime = (stat.st_mtime, u32::try_from(nanos).unwrap_or(0));
        entry
    }
}

pub(crate) fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    match prefix.strip_suffix(b"/").unwrap_or(prefix) {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

/// `None` if it has gone.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, LayerError> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(err) => Err(LayerError::at("lstat", name)(err)),
    }
}

/// `None` if it has gone or is no directory any more.
pub(crate) fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(err) => Err(LayerError::at("open", name)(err)),
    }
}
