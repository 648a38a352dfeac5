//! A container's root directory as a descriptor, running or not, and what is read in it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use spec::model::User;

use super::record::Record;
use crate::engine::Engine;
use crate::error::{Error, Result, sys_text};
use crate::{fs, mountfs};

/// How large passwd and group may be.
const MAX_DATABASE_BYTES: u64 = 10 << 20;

/// The root file system of a container without the mounts a running one has in it. Nothing is mounted anywhere on the host for longer
/// than the call; the file system lives as long as the descriptor.
///
/// # Errors
/// The snapshot cannot be mounted.
pub async fn open(engine: &Engine, record: &Record) -> Result<OwnedFd> {
    let mounts = engine.images.rootfs_mounts(&record.snapshot).await?;
    blocking(move || mountfs::open(&mounts))
        .await?
        .map_err(|err| Error::system(format!("mount root file system: {}", sys_text(&err))))
}

/// Runs `work` where it may block.
///
/// # Errors
/// It panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|err| Error::system(format!("blocking task: {err}")))
}

/// The user a process of the container runs as. `wanted` is `user[:group]`; the groups of `--group-add` come on top.
///
/// # Errors
/// There is no such user or group, or the databases cannot be read.
pub async fn user(engine: &Arc<Engine>, record: &Record, wanted: &str) -> Result<User> {
    let databases = |root: &OwnedFd| -> std::io::Result<(String, String)> {
        let passwd = fs::read_text(root, "/etc/passwd", MAX_DATABASE_BYTES)?;
        Ok((passwd, fs::read_text(root, "/etc/group", MAX_DATABASE_BYTES)?))
    };
    // In a running container its own mounts count: somebody may have bound another passwd there.
    let running = match record.pid() {
        Some(pid) => Some(of_process(pid)?),
        None => None,
    };
    let root = match running {
        Some(root) => root,
        None => open(engine, record).await?,
    };
    let (passwd, group) = blocking(move || databases(&root))
        .await?
        .map_err(|err| Error::system(format!("read user database: {}", sys_text(&err))))?;
    let more = record.host_config.group_add.as_deref().unwrap_or_default();
    spec::user::resolve(wanted, more, &passwd, &group).map_err(|err| Error::invalid(err.to_string()))
}

/// The root directory a process sees, with everything mounted in it.
///
/// # Errors
/// The process is gone.
pub fn of_process(pid: u32) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
        .map_err(|err| Error::system(format!("open root of process {pid}: {}", sys_text(&err.into()))))
}
