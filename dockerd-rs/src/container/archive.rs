//! `docker cp`: a part of a container's file system as a tar, and a tar into it. Also the whole of it: export.
//!
//! Invariants: every path is resolved by the kernel inside the container's root and used through its descriptor; nothing is mounted where
//! anybody else sees it; nothing of the container is executed or loaded. A running container is seen as it sees itself, a stopped one with
//! its volumes in place.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use layer::tree::{TreeOptions, write_tree};
use layer::{ApplyOptions, Decoder, LayerError, RootDir, TarWriter};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use serde::Serialize;
use tokio::sync::mpsc;

use super::mounts::{Source, clean};
use super::record::Record;
use super::rootfs::{blocking, of_process, user};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, sys_text};

/// Bytes that travel together.
const CHUNK: usize = 64 << 10;

/// A container's root, open.
pub struct Root {
    dir: RootDir,
    /// Keeps a stopped container's view alive.
    _view: Option<sys::mountns::View>,
}

/// `X-Docker-Container-Path-Stat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStat {
    name: String,
    size: i64,
    /// Go's `os.FileMode`.
    mode: u32,
    mtime: String,
    link_target: String,
}

/// Opens a container's root with everything in it.
///
/// # Errors
/// Its file systems cannot be mounted.
pub async fn open(engine: &Engine, record: &Record) -> Result<Root> {
    if let Some(pid) = record.pid() {
        return Ok(Root { dir: RootDir::from_fd(of_process(pid)?), _view: None });
    }
    let mounts = engine.images.rootfs_mounts(&record.snapshot).await?;
    let mut binds = Vec::new();
    for mount in record.mounts.values() {
        match &mount.source {
            Source::Volume { path, subpath, .. } => {
                binds.push((mount.destination.clone(), path.clone(), subpath.clone()))
            }
            Source::Bind { path, .. } => binds.push((mount.destination.clone(), path.clone(), String::new())),
            Source::Tmpfs { .. } | Source::Image { .. } => {}
        }
    }
    binds.sort();
    let view = blocking(move || sys::mountns::view(move || assemble(&mounts, &binds))).await?;
    let view = view.map_err(|err| Error::system(format!("mount root file system: {}", sys_text(&err))))?;
    let dir = view.root.try_clone().map_err(|err| Error::system(sys_text(&err)))?;
    Ok(Root { dir: RootDir::from_fd(dir), _view: Some(view) })
}

/// Mounts the root and binds into it; runs in a mount namespace of its own.
fn assemble(
    mounts: &[containerd_api::types::Mount],
    binds: &[(String, String, String)],
) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    // Before the root covers anything.
    let mut sources = Vec::new();
    for (destination, source, subpath) in binds {
        let Ok(source) = rustix::fs::open(source.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        let source = if subpath.is_empty() { source } else { crate::fs::open_inside(&source, subpath)? };
        sources.push((destination, source));
    }
    let root = crate::mountfs::open_here(mounts)?;
    for (destination, source) in sources {
        // A destination the image has not is made by a start: before that there is nothing to see there.
        let Ok(target) = crate::fs::open_inside(&root, destination) else { continue };
        let of = |fd: &OwnedFd| format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
        rustix::mount::mount_bind_recursive(of(&source), of(&target))?;
    }
    Ok(root)
}

/// What is at `path`.
///
/// # Errors
/// There is nothing.
pub async fn stat(engine: &Engine, record: &Arc<Record>, given: &str, path: &str) -> Result<PathStat> {
    let root = open(engine, record).await?;
    let wanted = Wanted::of(path)?;
    let missing = missing(path, given);
    blocking(move || wanted.stat(&root.dir)).await?.map_err(missing)
}

/// What is at `path` as a tar, through the channel. Gives its stat once that is known.
///
/// # Errors
/// There is nothing.
pub async fn get(
    engine: &Engine,
    record: &Arc<Record>,
    given: &str,
    path: &str,
    to: mpsc::Sender<Bytes>,
) -> Result<PathStat> {
    let root = open(engine, record).await?;
    let wanted = Wanted::of(path)?;
    let missing = missing(path, given);
    let (root, wanted, stat) =
        blocking(move || wanted.stat(&root.dir).map(|stat| (root, wanted, stat))).await?.map_err(missing)?;
    tokio::task::spawn_blocking(move || {
        // The whole of it: a closure takes only the fields it names, and without the view its mounts would fall off.
        let root = root;
        let written = wanted.write(&root.dir, ChannelWriter::new(to));
        tell_unless_gone(written);
    });
    Ok(stat)
}

fn tell_unless_gone(written: Result<(), LayerError>) {
    match written {
        // The client went away.
        Err(LayerError::Io(err)) if err.kind() == io::ErrorKind::BrokenPipe => {}
        Err(err) => tracing::warn!(error = %err, "archive ended early"),
        Ok(()) => {}
    }
}

fn missing(path: &str, given: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let text = format!("Could not find the file {path} in container {given}");
    move |err| match err.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => Error::not_found(text),
        _ => Error::system(sys_text(&err)),
    }
}

/// How an archive is put.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions {
    /// A file is not replaced by a directory, nor the other way round.
    pub keep_types: bool,
    /// Everything belongs to the container's user.
    pub own: bool,
}

/// Extracts a tar, compressed or not, into the directory at `path`.
///
/// # Errors
/// The directory is not there or read-only, or the archive is none.
pub async fn put(
    engine: &Arc<Engine>,
    record: &Arc<Record>,
    given: &str,
    path: &str,
    options: PutOptions,
    from: mpsc::Receiver<Bytes>,
) -> Result<()> {
    let root = open(engine, record).await?;
    let wanted = Wanted::of(path)?;
    let missing = missing(path, given);
    let directory = blocking(move || wanted.directory(&root.dir).map(|directory| (root, directory))).await?;
    let (root, directory) = match directory {
        Err(err) if err.raw_os_error() == Some(libc::ENOTDIR) => {
            return Err(Error::invalid("extraction point is not a directory"));
        }
        other => other.map_err(missing)?,
    };
    check_writable(record, path)?;
    let mut apply = ApplyOptions::archive();
    apply.keep_types = options.keep_types;
    if options.own && !record.config.user.is_empty() {
        let user = user(engine, record, &record.config.user).await?;
        apply.owner = Some((user.uid, user.gid));
    }
    blocking(move || {
        let _root = root;
        let mut source = ChannelReader { from, rest: Bytes::new() };
        let mut first = [0_u8; 1];
        // Nothing at all is an empty archive.
        if source.read(&mut first)? == 0 {
            return Ok(());
        }
        let source = io::Cursor::new(first).chain(source);
        let decoder = Decoder::new(source)?;
        layer::extract(&RootDir::from_fd(directory), decoder, &apply).map(drop)
    })
    .await?
    .map_err(|err| {
        let kind = match err.kind() {
            layer::Kind::Invalid => Kind::InvalidParameter,
            layer::Kind::Full | layer::Kind::System => Kind::System,
        };
        Error::new(kind, err.to_string())
    })
}

/// Whether the container itself could write at `path`.
fn check_writable(record: &Record, path: &str) -> Result<()> {
    let path = clean(path);
    let below = |destination: &str| {
        path == destination || path.strip_prefix(destination).is_some_and(|rest| rest.starts_with('/'))
    };
    let mount = record
        .mounts
        .values()
        .filter(|mount| below(&mount.destination))
        .max_by_key(|mount| mount.destination.len());
    match mount {
        Some(mount) if !mount.writable => Err(Error::invalid("mounted volume is marked read-only")),
        Some(_) => Ok(()),
        None if record.host_config.tmpfs.iter().flatten().any(|(destination, _)| below(destination)) => {
            Ok(())
        }
        None if record.host_config.readonly_rootfs => {
            Err(Error::invalid("container rootfs is marked read-only"))
        }
        None => Ok(()),
    }
}

/// The whole root file system, without what is mounted in it, as a tar through the channel.
///
/// # Errors
/// It cannot be mounted.
pub async fn export(engine: &Engine, record: &Arc<Record>, to: mpsc::Sender<Bytes>) -> Result<()> {
    let root = match record.pid() {
        Some(pid) => {
            let opened = blocking(move || {
                let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
                sys::mountns::bare_root(namespace.as_fd())
            });
            let failed =
                |err: io::Error| Error::system(format!("open root of process {pid}: {}", sys_text(&err)));
            opened.await?.map_err(failed)?
        }
        None => super::rootfs::open(engine, record).await?,
    };
    tokio::task::spawn_blocking(move || {
        let mut out = TarWriter::new(ChannelWriter::new(to));
        let options = TreeOptions { whole_seconds: true, owner: None };
        let written = write_tree(&RootDir::from_fd(root), b"", b"", options, &mut out)
            .and_then(|()| out.finish())
            .and_then(|mut sink| sink.flush().map_err(Into::into));
        tell_unless_gone(written);
    });
    Ok(())
}

/// A path a client means.
#[derive(Clone, Debug)]
struct Wanted {
    /// From the root, clean but for what its end said.
    path: Vec<u8>,
    /// Whether it ended in `/` or `/.`: then a link there is followed.
    follow: bool,
    /// The last part as the client wrote it: `data`, `.`, `/`.
    base: String,
}

impl Wanted {
    fn of(path: &str) -> Result<Self> {
        if path.is_empty() {
            return Err(Error::invalid("bad parameter: path cannot be empty"));
        }
        let cleaned = clean(path);
        let last = path.rsplit('/').next().unwrap_or_default();
        let base = match (cleaned.as_str(), last) {
            ("/", _) => "/".to_owned(),
            (_, ".") => ".".to_owned(),
            (cleaned, _) => cleaned.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            path: cleaned.trim_start_matches('/').as_bytes().to_vec(),
            follow: cleaned == "/" || matches!(last, "" | "." | ".."),
            base,
        })
    }

    fn found(&self, root: &RootDir) -> io::Result<Stat> {
        let stat = if self.follow { root.stat_followed(&self.path) } else { root.stat(&self.path) };
        Ok(stat?)
    }

    fn stat(&self, root: &RootDir) -> io::Result<PathStat> {
        let stat = self.found(root)?;
        let is_link = layer::root::file_type(&stat) == FileType::Symlink;
        let mtime = Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or(0))
            .unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(PathStat {
            name: self.base.clone(),
            size: stat.st_size,
            mode: go_mode(stat.st_mode),
            mtime: mtime.to_string(),
            link_target: if is_link { self.target(root) } else { String::new() },
        })
    }

    /// Where a link leads, from the container's root; what it says if it leads nowhere.
    fn target(&self, root: &RootDir) -> String {
        let said = self.read_link(root).unwrap_or_default();
        let resolved = root
            .open_at(&self.path, OFlags::PATH, Mode::empty())
            .ok()
            .and_then(|target| path_of(root, &target));
        resolved.unwrap_or_else(|| {
            if said.starts_with('/') {
                return clean(&said);
            }
            let parent = String::from_utf8_lossy(&self.path).into_owned();
            let parent = parent.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
            clean(&format!("/{parent}/{said}"))
        })
    }

    fn read_link(&self, root: &RootDir) -> io::Result<String> {
        let link = root.open_at(&self.path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let text = rustix::fs::readlinkat(&link, "", Vec::new())?;
        Ok(String::from_utf8_lossy(text.as_bytes()).into_owned())
    }

    fn directory(&self, root: &RootDir) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok(root.open_at(&self.path, flags, Mode::empty())?)
    }

    fn write(&self, root: &RootDir, sink: ChannelWriter) -> Result<(), LayerError> {
        let mut out = TarWriter::new(sink);
        let name = if self.base == "/" { "." } else { self.base.as_str() };
        let options = TreeOptions { whole_seconds: true, owner: None };
        if self.follow && !self.path.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            match root.open_at(&self.path, flags, Mode::empty()) {
                Ok(directory) => {
                    write_tree(&RootDir::from_fd(directory), b"", name.as_bytes(), options, &mut out)?;
                }
                Err(_) => write_tree(root, &self.path, name.as_bytes(), options, &mut out)?,
            }
        } else {
            write_tree(root, &self.path, name.as_bytes(), options, &mut out)?;
        }
        out.finish()?.flush().map_err(Into::into)
    }
}

/// The path from `root` to what is open, as the kernel knows both; `None` if it is not below.
fn path_of(root: &RootDir, opened: &OwnedFd) -> Option<String> {
    use std::os::fd::AsRawFd;
    let of = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let (top, path) = (of(root.as_fd().as_raw_fd())?, of(opened.as_raw_fd())?);
    let inside = path.strip_prefix(&top).ok()?;
    Some(clean(&Path::new("/").join(inside).to_string_lossy()))
}

/// A mode as Go's `os.FileMode` has it.
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let bits = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    bits.iter().filter(|(bit, _)| mode & bit != 0).fold(kind | mode & 0o777, |all, (_, go)| all | go)
}

/// Sends what is written in chunks; waits for a slow reader.
struct ChannelWriter {
    to: mpsc::Sender<Bytes>,
    held: Vec<u8>,
}

impl ChannelWriter {
    fn new(to: mpsc::Sender<Bytes>) -> Self {
        Self { to, held: Vec::with_capacity(CHUNK) }
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        if self.held.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.held, Vec::with_capacity(CHUNK)));
        self.to.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads what comes through a channel.
struct ChannelReader {
    from: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.from.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.rest.len().min(into.len());
        into[..taken].copy_from_slice(&self.rest.split_to(taken));
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 420);
        assert_eq!(go_mode(0o040_755), 2_147_484_141);
        assert_eq!(go_mode(0o120_777), 134_218_239);
        assert_eq!(go_mode(0o041_777), 2_148_532_735);
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        let of = |path: &str| {
            let wanted = Wanted::of(path).unwrap();
            (String::from_utf8(wanted.path).unwrap(), wanted.follow, wanted.base)
        };
        assert_eq!(of("/data/."), ("data".into(), true, ".".into()));
        assert_eq!(of("/data"), ("data".into(), false, "data".into()));
        assert_eq!(of("data/x/"), ("data/x".into(), true, "x".into()));
        assert_eq!(of("/"), (String::new(), true, "/".into()));
        assert_eq!(of("../../etc"), ("etc".into(), false, "etc".into()));
        assert!(Wanted::of("").is_err());
    }
}
