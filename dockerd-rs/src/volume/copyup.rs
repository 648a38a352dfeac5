//! Filling a new volume with what the image has in its place.
//!
//! Neither side is trusted: source and target are walked by directory descriptors, no symbolic link is followed, and devices, owners, modes,
//! times, extended attributes and hard links come out as they went in.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, copy_file_range, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens,
    linkat, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// How deep directories may nest: each level holds two descriptors.
const MAX_DEPTH: usize = 200;
/// How long a list of extended attributes or one value may be.
const MAX_XATTR: usize = 64 << 10;

/// Copies the directory `path` of `rootfs` into `target`, if that is an empty directory. A `path` that is not there or is no directory
/// copies nothing.
pub fn copy(rootfs: OwnedFd, path: &Path, target: &Path) -> io::Result<()> {
    let inside = path.strip_prefix("/").unwrap_or(path);
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let source = match openat2(&rootfs, inside, directory_flags(), Mode::empty(), resolve) {
        Ok(source) => source,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(err) => return Err(err.into()),
    };
    let target = openat(CWD, target, directory_flags(), Mode::empty())?;
    if !is_empty(&target)? {
        return Ok(());
    }
    let mut links = HashMap::new();
    contents(source.as_fd(), target.as_fd(), target.as_fd(), "", &mut links, 0)?;
    finish(source.as_fd(), target.as_fd(), &fstat(&source)?)
}

fn directory_flags() -> OFlags {
    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC
}

fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `links` maps inodes with several names to the first name they got, relative to `top`.
fn contents(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    prefix: &str,
    links: &mut HashMap<(u64, u64), CString>,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories are nested too deeply"));
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut whole = prefix.as_bytes().to_vec();
        whole.extend_from_slice(name.to_bytes());
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = links.get(&key) {
                linkat(top, first.as_c_str(), target, name, AtFlags::empty())?;
                continue;
            }
            links.insert(key, CString::new(whole.clone())?);
        }
        match kind {
            FileType::Directory => {
                mkdirat(target, name, Mode::from_raw_mode(0o700))?;
                let from = openat(source, name, directory_flags(), Mode::empty())?;
                let to = openat(target, name, directory_flags(), Mode::empty())?;
                whole.push(b'/');
                let prefix = String::from_utf8(whole).map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, "a directory's name is not UTF-8")
                })?;
                contents(from.as_fd(), to.as_fd(), top, &prefix, links, depth + 1)?;
                finish(from.as_fd(), to.as_fd(), &stat)?;
            }
            FileType::RegularFile => file(source, target, name, &stat)?,
            FileType::Symlink => {
                let text = readlinkat(source, name, Vec::new())?;
                symlinkat(text.as_c_str(), target, name)?;
                by_name(target, name, &stat)?;
            }
            FileType::Socket => {}
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
                by_name(target, name, &stat)?;
                rustix::fs::chmodat(
                    target,
                    name,
                    Mode::from_raw_mode(stat.st_mode & 0o7777),
                    AtFlags::empty(),
                )?;
            }
            FileType::Unknown => {}
        }
    }
    Ok(())
}

fn file(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(source, name, read, Mode::empty())?;
    let to = openat(target, name, write, Mode::from_raw_mode(0o600))?;
    let mut left = u64::try_from(stat.st_size).unwrap_or(0);
    while left > 0 {
        let step = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        match copy_file_range(&from, None, &to, None, step) {
            Ok(0) => break,
            Ok(done) => left -= done as u64,
            // File systems that cannot do it between them (tmpfs to ext4 on older kernels).
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
                io::copy(&mut from, &mut to)?;
                return finish(from.as_fd(), to.as_fd(), stat);
            }
            Err(err) => return Err(err.into()),
        }
    }
    finish(from.as_fd(), to.as_fd(), stat)
}

/// Owner first (it clears set-user-id bits), then attributes, mode, and times last.
fn finish(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    attributes(from, to)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(futimens(to, &times(stat))?)
}

fn by_name(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Extended attributes the target's file system takes. The overlay's own stay behind.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(err) => return Err(err.into()),
    };
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        let mut value = vec![0_u8; MAX_XATTR];
        let length = fgetxattr(from, name.as_c_str(), &mut value[..])?;
        match fsetxattr(to, name.as_c_str(), &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, directory_flags(), Mode::empty()).unwrap()
    }

    #[test]
    fn everything_comes_out_as_it_went_in() {
        let (image, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = image.path().join("srv/data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("one"), b"text").unwrap();
        std::fs::set_permissions(data.join("one"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::fs::hard_link(data.join("one"), data.join("sub/two")).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/srv", image.path().join("alias")).unwrap();
        copy(open(image.path()), Path::new("/alias/data"), volume.path()).unwrap();
        let at = |name: &str| std::fs::symlink_metadata(volume.path().join(name)).unwrap();
        assert_eq!(at("one").mode() & 0o7777, 0o4711);
        assert_eq!((at("one").ino(), at("one").nlink()), (at("sub/two").ino(), 2));
        assert_eq!(std::fs::read_link(volume.path().join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(at("").mode() & 0o7777, 0o1777);
        assert_eq!(at("one").mtime(), std::fs::metadata(data.join("one")).unwrap().mtime());
    }

    #[test]
    fn a_volume_with_content_and_a_missing_source_change_nothing() {
        let (image, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy(open(image.path()), Path::new("/nosuch"), volume.path()).unwrap();
        std::fs::write(image.path().join("file"), b"").unwrap();
        copy(open(image.path()), Path::new("/file"), volume.path()).unwrap();
        std::fs::write(volume.path().join("mine"), b"").unwrap();
        copy(open(image.path()), Path::new("/"), volume.path()).unwrap();
        assert_eq!(std::fs::read_dir(volume.path()).unwrap().count(), 1);
    }
}
