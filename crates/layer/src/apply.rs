//! Extracting a tar below a root: files, owners, attributes, whiteouts.
//!
//! Invariant: every name is resolved by [`RootDir`] and then acted upon relative to its parent's descriptor,
//! without following the last component. So an archive that makes `a -> /etc` and then writes `a/passwd` writes
//! `/etc/passwd` of its own root. A layer cannot bring names overlayfs takes as its own: 0:0 devices and
//! `trusted.overlay.*` attributes come only from whiteouts.
//!
//! Directories get their times last, since making something in one changes them.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{LayerError, lossy};
use crate::root::{self, RootDir, file_type, split};
use crate::tarread::{Entry, EntryKind, TarReader};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Docker's names for its own use in aufs times; such entries are skipped.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// How many parent directories are kept open.
const OPEN_PARENTS: usize = 256;
/// How often free space is looked at, in bytes written.
const SPACE_CHECK_EVERY: u64 = 16 << 20;
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;

/// What `.wh.` entries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// They are files like others (`docker cp`, `docker import`).
    Keep,
    /// They remove what lower layers put in this same tree (native snapshots).
    Remove,
    /// They become overlayfs whiteouts in an upper directory; `userxattr` as the mount option of that name.
    Overlay { userxattr: bool },
}

/// What one archive may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of file data.
    pub max_bytes: u64,
    /// Entries.
    pub max_entries: u64,
    /// Bytes that must stay free on the file system.
    pub disk_reserve: u64,
}

impl Default for Limits {
    /// 1 TiB, 20 million entries, and 64 MiB of disk left for everyone else.
    fn default() -> Self {
        Self { max_bytes: 1 << 40, max_entries: 20_000_000, disk_reserve: 64 << 20 }
    }
}

/// How to extract.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    pub whiteouts: Whiteouts,
    pub limits: Limits,
    /// Give everything to this owner instead of the one in the archive.
    pub owner: Option<(u32, u32)>,
    /// Refuse to put a directory where a file is, and the other way round, as `docker cp` does.
    pub keep_types: bool,
}

impl ApplyOptions {
    /// For a layer.
    pub fn layer(whiteouts: Whiteouts) -> Self {
        Self { whiteouts, limits: Limits::default(), owner: None, keep_types: false }
    }

    /// For a plain archive.
    pub fn archive() -> Self {
        Self::layer(Whiteouts::Keep)
    }
}

/// What an extraction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of file data written.
    pub bytes: u64,
    pub entries: u64,
    /// Directories no entry described but some entry needed. Below an overlay, [`fix_implied_dirs`] gives them the
    /// looks they have in the layers beneath.
    pub implied_dirs: Vec<Vec<u8>>,
    /// Whether an entry described the root itself.
    pub has_root: bool,
}

/// Extracts a plain (not compressed) tar below `root`.
pub fn extract(root: &RootDir, tar: impl Read, options: &ApplyOptions) -> Result<Applied, LayerError> {
    let mut reader = TarReader::new(tar);
    let mut extractor = Extractor::new(root, options)?;
    while let Some(entry) = reader.next_entry()? {
        extractor.put(&entry, &mut reader)?;
    }
    extractor.finish()
}

/// Gives directories that a layer only implied the mode, owner and attributes they have further down.
///
/// `lowers` are the extracted trees beneath, nearest first. A directory found in none stays as it is.
pub fn fix_implied_dirs(upper: &RootDir, implied: &[Vec<u8>], lowers: &[RootDir]) -> Result<(), LayerError> {
    for path in implied {
        let Some(lower) = lowers.iter().find_map(|l| visible_dir(l, path)) else { continue };
        let lower = lower?;
        let stat = fs::fstat(&lower)?;
        let Ok(dir) =
            upper.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        else {
            continue;
        };
        fs::fchown(&dir, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        fs::fchmod(&dir, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for (name, value) in read_xattrs(lower.as_fd())? {
            set_xattr(&dir, path, &name, &value)?;
        }
        set_times(&dir, (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)))?;
    }
    Ok(())
}

/// The directory at `path` in one lower tree. A file or whiteout in its place hides what is further down.
fn visible_dir(lower: &RootDir, path: &[u8]) -> Option<Result<OwnedFd, LayerError>> {
    match lower.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(fd) => Some(Ok(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
        Err(err) => Some(Err(err.into())),
    }
}

struct Extractor<'a> {
    root: &'a RootDir,
    options: &'a ApplyOptions,
    parents: Parents,
    /// What this archive has put down, for whiteouts that must spare it. Only kept when they remove things.
    own: HashSet<Vec<u8>>,
    dir_times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
    done: Applied,
    next_space_check: u64,
    umask: u32,
}

/// Open parent directories by path; all forgotten when a directory or symlink is replaced.
#[derive(Default)]
struct Parents {
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl<'a> Extractor<'a> {
    fn new(root: &'a RootDir, options: &'a ApplyOptions) -> Result<Self, LayerError> {
        let mut extractor = Self {
            root,
            options,
            parents: Parents::default(),
            own: HashSet::new(),
            dir_times: Vec::new(),
            buffer: vec![0; 128 * 1024],
            done: Applied::default(),
            next_space_check: SPACE_CHECK_EVERY,
            umask: current_umask(),
        };
        extractor.check_space()?;
        Ok(extractor)
    }

    fn put<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), LayerError> {
        self.done.entries += 1;
        if self.done.entries > self.options.limits.max_entries {
            return Err(LayerError::TooManyEntries(self.options.limits.max_entries));
        }
        let path = root::clean(&entry.path).ok_or_else(|| LayerError::EntryName(lossy(&entry.path)))?;
        check_lengths(&path)?;
        if path.is_empty() {
            return self.put_root(entry);
        }
        if self.options.whiteouts != Whiteouts::Keep && split(&path).1.starts_with(WHITEOUT) {
            return self.put_whiteout(&path);
        }
        let parent = self.parent(split(&path).0)?;
        if self.options.whiteouts == Whiteouts::Remove {
            self.own.insert(path.clone());
        }
        self.put_member(parent.as_fd(), &path, entry, reader)
    }

    /// An entry for the root itself: only its looks matter.
    fn put_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != EntryKind::Directory {
            return Err(LayerError::EntryName(lossy(&entry.path)));
        }
        let dir = self.root.try_clone()?;
        self.dress(dir.as_fd(), b"", entry)?;
        fs::fchmod(&dir, Mode::from_raw_mode(entry.mode)).map_err(LayerError::at("chmod", b"/"))?;
        self.dir_times.push((Vec::new(), entry.mtime));
        self.done.has_root = true;
        Ok(())
    }

    fn put_member<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), LayerError> {
        let name = split(path).1;
        match entry.kind {
            EntryKind::Directory => self.put_dir(parent, path, entry),
            EntryKind::File => self.put_file(parent, path, entry, reader),
            EntryKind::HardLink => self.put_link(parent, path, entry),
            EntryKind::Symlink => {
                self.make(parent, path, "symlink", || fs::symlinkat(&entry.link[..], parent, name))?;
                self.dress_at(parent, path, entry)
            }
            EntryKind::Char | EntryKind::Block | EntryKind::Fifo => {
                let (kind, device) = device(path, entry)?;
                let mode = Mode::from_raw_mode(entry.mode);
                self.make(parent, path, "mknod", || fs::mknodat(parent, name, kind, mode, device))?;
                self.dress_at(parent, path, entry)?;
                // Not a symlink: it has just been made by us in a directory only we write to.
                fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(LayerError::at("chmod", path))
            }
            EntryKind::Other(kind) => Err(LayerError::EntryType { path: lossy(path), kind }),
        }
    }

    fn put_dir(&mut self, parent: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let name = split(path).1;
        let mode = Mode::from_raw_mode(0o700);
        match fs::mkdirat(parent, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if file_type(&stat) != FileType::Directory {
                    let hides = is_whiteout(&stat);
                    self.clear(parent, path, true)?;
                    fs::mkdirat(parent, name, mode).map_err(LayerError::at("mkdir", path))?;
                    if hides {
                        self.set_opaque(parent, path)?;
                    }
                }
            }
            Err(err) => return Err(LayerError::at("mkdir", path)(err)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = fs::openat(parent, name, flags, Mode::empty()).map_err(LayerError::at("open", path))?;
        self.dress(dir.as_fd(), path, entry)?;
        fs::fchmod(&dir, Mode::from_raw_mode(entry.mode)).map_err(LayerError::at("chmod", path))?;
        self.dir_times.push((path.to_vec(), entry.mtime));
        Ok(())
    }

    fn put_file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), LayerError> {
        let name = split(path).1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let plain = entry.mode & 0o777;
        let file =
            self.make(parent, path, "open", || fs::openat(parent, name, flags, Mode::from_raw_mode(plain)))?;
        let file = std::fs::File::from(file);
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = reader.data(entry, &mut buffer, |at, piece| self.write(&file, path, at, piece));
        self.buffer = buffer;
        written?;
        if entry.sparse.is_some() {
            file.set_len(entry.size).map_err(|source| LayerError::Path {
                what: "truncate",
                path: lossy(path),
                source,
            })?;
        }
        self.dress(file.as_fd(), path, entry)?;
        // After the owner: chown takes setuid away. And only where creating did not give the mode already.
        if entry.mode & 0o7000 != 0 || plain & self.umask != 0 {
            fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(LayerError::at("chmod", path))?;
        }
        set_times(&file, entry.mtime).map_err(LayerError::at("utimensat", path))
    }

    fn write(&mut self, file: &std::fs::File, path: &[u8], at: u64, piece: &[u8]) -> Result<(), LayerError> {
        self.done.bytes += piece.len() as u64;
        if self.done.bytes > self.options.limits.max_bytes {
            return Err(LayerError::TooLarge(self.options.limits.max_bytes));
        }
        if self.done.bytes >= self.next_space_check {
            self.check_space()?;
        }
        std::os::unix::fs::FileExt::write_all_at(file, piece, at).map_err(|source| LayerError::Path {
            what: "write",
            path: lossy(path),
            source,
        })
    }

    fn put_link(&mut self, parent: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let target = root::clean(&entry.link)
            .filter(|t| !t.is_empty())
            .ok_or_else(|| LayerError::LinkTarget(lossy(&entry.link)))?;
        if target == path {
            return Ok(());
        }
        let fail = |errno: Errno| LayerError::Link {
            target: lossy(&target),
            path: lossy(path),
            source: errno.into(),
        };
        let (dir, name) = split(&target);
        let from = self.root.open_dir(dir).map_err(fail)?;
        let stat = fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        if is_whiteout(&stat) {
            return Err(fail(Errno::NOENT));
        }
        let own = split(path).1;
        match fs::linkat(&from, name, parent, own, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(err) => return Err(fail(err)),
        }
        self.clear(parent, path, false)?;
        fs::linkat(&from, name, parent, own, AtFlags::empty()).map_err(fail)
    }

    /// Makes something; if the name is taken, by another entry or a lower layer, that goes first.
    fn make<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        what: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, LayerError> {
        match create() {
            Err(Errno::EXIST) => {
                self.clear(parent, path, false)?;
                create().map_err(LayerError::at(what, path))
            }
            other => other.map_err(LayerError::at(what, path)),
        }
    }

    /// Removes what stands where an entry is to go.
    fn clear(&mut self, parent: BorrowedFd<'_>, path: &[u8], for_dir: bool) -> Result<(), LayerError> {
        let name = split(path).1;
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(err) => return Err(LayerError::at("stat", path)(err)),
        };
        let is_dir = file_type(&stat) == FileType::Directory;
        if self.options.keep_types && is_dir != for_dir {
            let (existing, entry) = (lossy(path), lossy(path));
            return Err(match is_dir {
                true => LayerError::DirectoryInTheWay { existing, entry },
                false => LayerError::FileInTheWay { existing, entry },
            });
        }
        if is_dir || file_type(&stat) == FileType::Symlink {
            self.parents.open.clear();
        }
        root::remove_all(parent, name).map_err(LayerError::at("remove", path))
    }

    /// The directory entries below `path` go into, made if nothing is there.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, LayerError> {
        if let Some(fd) = self.parents.open.get(path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.root.open_dir(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parent(path)?,
            Err(err) => return Err(LayerError::at("open", path)(err)),
        };
        if self.parents.open.len() >= OPEN_PARENTS {
            self.parents.open.clear();
        }
        let fd = Rc::new(fd);
        self.parents.open.insert(path.to_vec(), Rc::clone(&fd));
        Ok(fd)
    }

    fn make_parent(&mut self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        let (above, name) = split(path);
        if name.is_empty() {
            return self.root.open_dir(b"").map_err(LayerError::at("open", path));
        }
        // Recursion ends: the path gets shorter, and its length has been checked.
        let parent = self.parent(above)?;
        match fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match file_type(&stat) {
                    FileType::Directory => {
                        return self.root.open_dir(path).map_err(LayerError::at("open", path));
                    }
                    // A link to nowhere yet, such as `var/run -> /run`: its target is what is needed.
                    FileType::Symlink => return self.make_link_target(parent.as_fd(), path),
                    _ if is_whiteout(&stat) => {
                        self.clear(parent.as_fd(), path, true)?;
                        fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o755))
                            .map_err(LayerError::at("mkdir", path))?;
                        self.set_opaque(parent.as_fd(), path)?;
                    }
                    _ => return Err(LayerError::at("mkdir", path)(Errno::NOTDIR)),
                }
            }
            Err(err) => return Err(LayerError::at("mkdir", path)(err)),
        }
        if plain_below(self.root, path, parent.as_fd()) {
            self.done.implied_dirs.push(path.to_vec());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = fs::openat(&*parent, name, flags, Mode::empty()).map_err(LayerError::at("open", path))?;
        // mkdir's mode went through the umask.
        let file =
            fs::openat(&*parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                .map_err(LayerError::at("open", path))?;
        fs::fchmod(&file, Mode::from_raw_mode(0o755)).map_err(LayerError::at("chmod", path))?;
        if let Some((uid, gid)) = self.options.owner {
            chown_fd(&file, uid, gid).map_err(LayerError::at("chown", path))?;
        }
        Ok(dir)
    }

    /// Makes the directory a dangling symlink points to, inside the root.
    fn make_link_target(&mut self, parent: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, LayerError> {
        let fail = LayerError::at("open", path);
        let target = fs::readlinkat(parent, split(path).1, Vec::new())?.into_bytes();
        let from = if target.starts_with(b"/") { Vec::new() } else { split(path).0.to_vec() };
        let mut parts: Vec<&[u8]> = from.split(|b| *b == b'/').collect();
        for part in target.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let target: Vec<u8> = parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(&b'/');
        if target.len() >= path.len() && target.starts_with(path) || self.root.stat(&target).is_ok() {
            // It exists but is no directory, or leads back to itself.
            return Err(fail(Errno::NOTDIR));
        }
        self.make_parent(&target)?;
        self.root.open_dir(path).map_err(fail)
    }

    fn put_whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (dir, name) = split(path);
        if name == OPAQUE {
            return self.put_opaque(dir);
        }
        if name.starts_with(WHITEOUT_META) && name.len() > WHITEOUT_META.len() {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Whiteout(lossy(name)));
        }
        let parent = self.parent(dir)?;
        let full = if dir.is_empty() { hidden.to_vec() } else { [dir, b"/", hidden].concat() };
        match self.options.whiteouts {
            Whiteouts::Keep => Ok(()),
            Whiteouts::Remove => {
                if !self.own.contains(&full) {
                    self.clear(parent.as_fd(), &full, true)?;
                }
                Ok(())
            }
            Whiteouts::Overlay { .. } => {
                match fs::mknodat(&*parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
                    Ok(()) => Ok(()),
                    // A whiteout speaks of lower layers: what this layer put here stays, but hides what is below.
                    Err(Errno::EXIST) => {
                        let stat = fs::statat(&*parent, hidden, AtFlags::SYMLINK_NOFOLLOW)?;
                        match file_type(&stat) {
                            FileType::Directory => self.set_opaque(parent.as_fd(), &full),
                            _ => Ok(()),
                        }
                    }
                    Err(err) => Err(LayerError::at("mknod", &full)(err)),
                }
            }
        }
    }

    /// Hides everything lower layers have in `dir`.
    fn put_opaque(&mut self, dir: &[u8]) -> Result<(), LayerError> {
        let parent = self.parent(dir)?;
        if self.options.whiteouts == Whiteouts::Remove {
            let own = &self.own;
            let keep = |name: &[u8]| {
                let full = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
                let below = [&full[..], b"/"].concat();
                own.contains(&full) || own.iter().any(|o| o.starts_with(&below))
            };
            let open = self.root.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            self.parents.open.clear();
            return root::remove_children(open.as_fd(), &keep).map_err(LayerError::at("remove", dir));
        }
        drop(parent);
        let open = self.root.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        self.mark_opaque(&open, dir)
    }

    fn set_opaque(&self, parent: BorrowedFd<'_>, path: &[u8]) -> Result<(), LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir =
            fs::openat(parent, split(path).1, flags, Mode::empty()).map_err(LayerError::at("open", path))?;
        self.mark_opaque(&dir, path)
    }

    fn mark_opaque(&self, dir: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        let Whiteouts::Overlay { userxattr } = self.options.whiteouts else { return Ok(()) };
        let name = if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        fs::fsetxattr(dir, name, b"y", XattrFlags::empty()).map_err(LayerError::at("setxattr", path))
    }

    /// Owner and attributes of something open. Mode and times are the caller's.
    fn dress(&self, fd: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let (uid, gid) = self.owner(path, entry)?;
        chown_fd(fd, uid, gid).map_err(LayerError::at("lchown", path))?;
        for (name, value) in &entry.xattrs {
            set_xattr(fd, path, name, value)?;
        }
        Ok(())
    }

    /// Owner, attributes and times of something that cannot be opened.
    fn dress_at(&self, parent: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let name = split(path).1;
        let (uid, gid) = self.owner(path, entry)?;
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fs::chownat(parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LayerError::at("lchown", path))?;
        for (key, value) in &entry.xattrs {
            if !wanted_xattr(key) {
                continue;
            }
            // There is no fsetxattr for an O_PATH descriptor; the directory's magic link names it exactly.
            let mut whole =
                format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&parent)).into_bytes();
            whole.extend_from_slice(name);
            match fs::lsetxattr(&whole[..], &key[..], value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(err) => return Err(LayerError::at("lsetxattr", path)(err)),
            }
        }
        fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LayerError::at("utimensat", path))
    }

    fn owner(&self, path: &[u8], entry: &Entry) -> Result<(u32, u32), LayerError> {
        if let Some(owner) = self.options.owner {
            return Ok(owner);
        }
        // The last number is "no change" to chown.
        let id = |id: i64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| LayerError::Owner { path: lossy(path), id })
        };
        Ok((id(entry.uid)?, id(entry.gid)?))
    }

    fn check_space(&mut self) -> Result<(), LayerError> {
        self.next_space_check = self.done.bytes + SPACE_CHECK_EVERY;
        let stat = fs::fstatvfs(self.root)?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < self.options.limits.disk_reserve {
            return Err(LayerError::Io(Errno::NOSPC.into()));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Applied, LayerError> {
        // Backwards: of two entries for one directory the later one counts.
        let mut seen = HashSet::new();
        for (path, mtime) in std::mem::take(&mut self.dir_times).into_iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match self.root.open_at(&path, flags, Mode::empty()) {
                Ok(dir) => set_times(&dir, mtime).map_err(LayerError::at("utimensat", &path))?,
                // Another entry has taken its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(err) => return Err(LayerError::at("open", &path)(err)),
            }
            seen.insert(path);
        }
        self.done.implied_dirs.retain(|path| !seen.contains(path));
        Ok(self.done)
    }
}

/// Whether `path` is what it seems, not reached through a symlink: only then is it the same in lower layers.
fn plain_below(root: &RootDir, path: &[u8], parent: BorrowedFd<'_>) -> bool {
    let direct = fs::openat2(
        root,
        if split(path).0.is_empty() { b"." } else { split(path).0 },
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        fs::ResolveFlags::IN_ROOT | fs::ResolveFlags::NO_SYMLINKS,
    );
    match (direct.and_then(fs::fstat), fs::fstat(parent)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn check_lengths(path: &[u8]) -> Result<(), LayerError> {
    if path.len() >= MAX_PATH || path.split(|b| *b == b'/').any(|part| part.len() > MAX_NAME) {
        let shown = lossy(&path[..path.len().min(64)]);
        return Err(LayerError::NameTooLong(format!("{shown}…")));
    }
    Ok(())
}

fn device(path: &[u8], entry: &Entry) -> Result<(FileType, fs::Dev), LayerError> {
    let kind = match entry.kind {
        EntryKind::Char => FileType::CharacterDevice,
        EntryKind::Block => FileType::BlockDevice,
        _ => return Ok((FileType::Fifo, 0)),
    };
    let (major, minor) = (entry.major, entry.minor);
    // Twelve and twenty bits are what the kernel has. 0:0 is overlayfs's whiteout.
    if major > 0xfff || minor > 0xf_ffff || (kind == FileType::CharacterDevice && (major, minor) == (0, 0)) {
        return Err(LayerError::Device { path: lossy(path), major, minor });
    }
    Ok((kind, fs::makedev(major as u32, minor as u32)))
}

/// Whether a stat is that of an overlayfs whiteout.
pub(crate) fn is_whiteout(stat: &fs::Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Attributes taken from archives: no overlayfs bookkeeping, and of the security ones only capabilities, since the
/// rest (labels, integrity hashes) are this host's to decide.
pub(crate) fn wanted_xattr(name: &[u8]) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    !name.starts_with(b"security.") || name == b"security.capability"
}

fn set_xattr(fd: impl AsFd, path: &[u8], name: &[u8], value: &[u8]) -> Result<(), LayerError> {
    if !wanted_xattr(name) {
        return Ok(());
    }
    match fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(err) => Err(LayerError::at("lsetxattr", path)(err)),
    }
}

/// The attributes of something open that belong in a layer, by name.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Errno> {
    let mut names = vec![0u8; 4096];
    let length = loop {
        match fs::flistxattr(fd, &mut names) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 65_536 => names.resize(65_536, 0),
            Err(Errno::OPNOTSUPP | Errno::BADF) => return Ok(Vec::new()),
            Err(err) => return Err(err),
        }
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty() && wanted_xattr(n)) {
        let mut value = vec![0u8; 1024];
        let got = loop {
            match fs::fgetxattr(fd, name, &mut value) {
                Ok(got) => break Some(got),
                Err(Errno::RANGE) if value.len() < 65_536 => value.resize(65_536, 0),
                Err(Errno::NODATA) => break None,
                Err(err) => return Err(err),
            }
        };
        if let Some(got) = got {
            value.truncate(got);
            found.push((name.to_vec(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn chown_fd(fd: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn set_times(fd: impl AsFd, mtime: (i64, u32)) -> Result<(), Errno> {
    fs::futimens(fd, &timestamps(mtime))
}

/// The process's umask, read without changing it.
fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    // If it cannot be known, every mode is set again.
    line.and_then(|l| u32::from_str_radix(l.trim(), 8).ok()).unwrap_or(0o777)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
