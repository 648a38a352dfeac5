//! What changed between two file systems, as a layer.
//!
//! Two ways to see it: an overlay's upper directory holds exactly the changes ([`overlay`]); any two trees can be
//! compared member by member ([`compare`]). Both write the layer format of the OCI image specification: removed
//! names as `.wh.name`, hidden directories with `.wh..wh..opq`, changed ones with all their parents.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use crate::apply::{is_whiteout, read_xattrs};
use crate::error::LayerError;
use crate::root::{RootDir, file_type, list};
use crate::tarread::{Entry, EntryKind};
use crate::tarwrite::TarWriter;
use crate::tree::{Members, TreeOptions, join, open_dir_at, stat_at};

/// Writes an overlay's upper directory as a layer.
pub fn overlay<W: Write>(upper: &RootDir, sink: W) -> Result<W, LayerError> {
    let mut out = TarWriter::new(sink);
    let mut members = Members::new(TreeOptions::default());
    let top = fs::openat(upper, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    overlay_below(top.as_fd(), b"", &mut members, &mut out)?;
    out.finish()
}

fn overlay_below<W: Write>(
    dir: BorrowedFd<'_>,
    prefix: &[u8],
    members: &mut Members,
    out: &mut TarWriter<W>,
) -> Result<(), LayerError> {
    for name in list(dir)? {
        let path = join(prefix, &name);
        let Some(stat) = stat_at(dir, &name)? else { continue };
        if is_whiteout(&stat) {
            whiteout(prefix, &name, out)?;
            continue;
        }
        if file_type(&stat) != FileType::Directory {
            members.other(dir, &name, &stat, &path, out)?;
            continue;
        }
        let Some(child) = open_dir_at(dir, &name)? else { continue };
        members.directory(child.as_fd(), &stat, &path, out)?;
        if is_opaque(child.as_fd()) {
            let marker = Entry::new(join(&path, b".wh..wh..opq"), EntryKind::File, 0);
            out.append(&marker, io::empty())?;
        }
        overlay_below(child.as_fd(), &path, members, out)?;
    }
    Ok(())
}

/// Whether overlayfs hides what lower layers have in this directory.
fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 4];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .into_iter()
        .any(|name| matches!(fs::fgetxattr(dir, name, &mut value), Ok(1) if value[0] == b'y'))
}

/// Compares two trees and writes what makes `lower` into `upper`. Without a `lower` everything is new.
pub fn compare<W: Write>(lower: Option<&RootDir>, upper: &RootDir, sink: W) -> Result<W, LayerError> {
    let mut comparison = Comparison {
        members: Members::new(TreeOptions::default()),
        out: TarWriter::new(sink),
        pending: Vec::new(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = fs::openat(upper, ".", flags, Mode::empty())?;
    match lower {
        None => comparison.members.below(top.as_fd(), b"", &mut comparison.out)?,
        Some(lower) => {
            let bottom = fs::openat(lower, ".", flags, Mode::empty())?;
            comparison.dirs(bottom.as_fd(), top.as_fd(), b"")?;
        }
    }
    comparison.out.finish()
}

struct Comparison<W: Write> {
    members: Members,
    out: TarWriter<W>,
    /// Unchanged directories on the way down, written when something below them turns out to have changed.
    pending: Vec<(std::os::fd::OwnedFd, Stat, Vec<u8>)>,
}

impl<W: Write> Comparison<W> {
    fn dirs(
        &mut self,
        lower: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        prefix: &[u8],
    ) -> Result<(), LayerError> {
        let (old, new) = (list(lower)?, list(upper)?);
        let mut names: Vec<&Vec<u8>> = old.iter().chain(&new).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = join(prefix, name);
            match (stat_at(lower, name)?, stat_at(upper, name)?) {
                (_, None) => {
                    self.flush()?;
                    whiteout(prefix, name, &mut self.out)?;
                }
                (None, Some(stat)) => self.added(upper, name, &stat, &path)?,
                (Some(before), Some(after)) => self.both((lower, &before), (upper, &after), name, &path)?,
            }
        }
        Ok(())
    }

    fn added(
        &mut self,
        upper: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        path: &[u8],
    ) -> Result<(), LayerError> {
        self.flush()?;
        if file_type(stat) != FileType::Directory {
            return self.members.other(upper, name, stat, path, &mut self.out);
        }
        let Some(dir) = open_dir_at(upper, name)? else { return Ok(()) };
        self.members.directory(dir.as_fd(), stat, path, &mut self.out)?;
        self.members.below(dir.as_fd(), path, &mut self.out)
    }

    fn both(
        &mut self,
        (lower, before): (BorrowedFd<'_>, &Stat),
        (upper, after): (BorrowedFd<'_>, &Stat),
        name: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        let is_dir = |s: &Stat| file_type(s) == FileType::Directory;
        if !is_dir(before) || !is_dir(after) {
            // A directory in place of a file, or the other way round, simply replaces it: no whiteout is needed.
            if same_stat(before, after) && same_content(lower, upper, name, before, after)? {
                return Ok(());
            }
            return self.added(upper, name, after, path);
        }
        let (Some(old), Some(new)) = (open_dir_at(lower, name)?, open_dir_at(upper, name)?) else {
            return Ok(());
        };
        let depth = self.pending.len();
        let copy = rustix::io::fcntl_dupfd_cloexec(&new, 0)?;
        let changed = !same_stat(before, after) || read_xattrs(old.as_fd())? != read_xattrs(new.as_fd())?;
        self.pending.push((copy, *after, path.to_vec()));
        if changed {
            self.flush()?;
        }
        self.dirs(old.as_fd(), new.as_fd(), path)?;
        self.pending.truncate(depth);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        for (dir, stat, path) in std::mem::take(&mut self.pending) {
            self.members.directory(dir.as_fd(), &stat, &path, &mut self.out)?;
        }
        Ok(())
    }
}

fn whiteout<W: Write>(prefix: &[u8], name: &[u8], out: &mut TarWriter<W>) -> Result<(), LayerError> {
    let name = [b".wh.", name].concat();
    out.append(&Entry::new(join(prefix, &name), EntryKind::File, 0), io::empty())
}

fn same_stat(a: &Stat, b: &Stat) -> bool {
    let sized = |s: &Stat| if file_type(s) == FileType::Directory { 0 } else { s.st_size };
    a.st_mode == b.st_mode
        && (a.st_uid, a.st_gid, a.st_rdev) == (b.st_uid, b.st_gid, b.st_rdev)
        && sized(a) == sized(b)
        && (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec)
}

/// Whether two members with equal stats are equal. Bytes are compared: times from archives are whole seconds, the
/// kernel's own are as coarse as its tick, and a file changed twice within one would be missed.
fn same_content(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    name: &[u8],
    before: &Stat,
    after: &Stat,
) -> Result<bool, LayerError> {
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino) {
        return Ok(true);
    }
    match file_type(after) {
        FileType::Symlink => {
            Ok(fs::readlinkat(lower, name, Vec::new())? == fs::readlinkat(upper, name, Vec::new())?)
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut old = std::fs::File::from(fs::openat(lower, name, flags, Mode::empty())?);
            let mut new = std::fs::File::from(fs::openat(upper, name, flags, Mode::empty())?);
            if read_xattrs(old.as_fd())? != read_xattrs(new.as_fd())? {
                return Ok(false);
            }
            Ok(same_bytes(&mut old, &mut new)?)
        }
        _ => Ok(true),
    }
}

fn same_bytes(a: &mut impl Read, b: &mut impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let (x, y) = (fill(a, &mut left)?, fill(b, &mut right)?);
        if left[..x] != right[..y] {
            return Ok(false);
        }
        if x == 0 {
            return Ok(true);
        }
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match source.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(got) => have += got,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{ApplyOptions, Whiteouts, extract};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Every path below `dir` with its mode, kind and contents.
    fn look(dir: &Path) -> BTreeMap<String, String> {
        fn visit(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
                let meta = entry.path().symlink_metadata().unwrap();
                let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
                let what = if meta.is_dir() {
                    visit(&entry.path(), &name, found);
                    String::new()
                } else if meta.is_symlink() {
                    std::fs::read_link(entry.path()).unwrap().display().to_string()
                } else {
                    String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned()
                };
                found.insert(name, format!("{mode:o} {what}"));
            }
        }
        let mut found = BTreeMap::new();
        visit(dir, "", &mut found);
        found
    }

    fn build(dir: &Path, what: &[(u8, u8, u8)]) {
        for (at, kind, content) in what {
            let parent = dir.join(["a", "b", "a/c", "d"][usize::from(at % 4)]);
            if std::fs::create_dir_all(&parent).is_err() {
                continue;
            }
            let path = parent.join(["x", "y", "z"][usize::from(at / 4 % 3)]);
            let _ = match kind % 3 {
                0 => std::fs::write(&path, format!("{content}")).ok(),
                1 => std::fs::create_dir_all(&path).ok(),
                _ => std::os::unix::fs::symlink(format!("t{content}"), &path).ok(),
            };
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_diff_applied_to_the_old_tree_makes_the_new_one(
            old in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..8),
            new in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..8),
        ) {
            let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            build(before.path(), &old);
            build(after.path(), &new);
            let (lower, upper) = (RootDir::open(before.path()).unwrap(), RootDir::open(after.path()).unwrap());
            let layer = compare(Some(&lower), &upper, Vec::new()).unwrap();
            extract(&lower, &layer[..], &ApplyOptions::layer(Whiteouts::Remove)).unwrap();
            prop_assert_eq!(look(before.path()), look(after.path()));
        }
    }

    #[test]
    fn an_upper_directory_survives_the_way_through_a_layer() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let upper = RootDir::open(one.path()).unwrap();
        let mut tar = TarWriter::new(Vec::new());
        for (path, kind) in [
            ("d", EntryKind::Directory),
            ("d/.wh..wh..opq", EntryKind::File),
            ("d/new", EntryKind::File),
            (".wh.gone", EntryKind::File),
        ] {
            tar.append(&Entry::new(path, kind, 0o755), io::empty()).unwrap();
        }
        let layer = tar.finish().unwrap();
        let options = ApplyOptions::layer(Whiteouts::Overlay { userxattr: false });
        extract(&upper, &layer[..], &options).unwrap();
        assert!(is_whiteout(&upper.stat(b"gone").unwrap()));
        let first = overlay(&upper, Vec::new()).unwrap();
        let again = RootDir::open(two.path()).unwrap();
        extract(&again, &first[..], &options).unwrap();
        assert_eq!(overlay(&again, Vec::new()).unwrap(), first);
        let text = String::from_utf8_lossy(&first);
        assert!(text.contains(".wh.gone") && text.contains("d/.wh..wh..opq"));
    }
}
