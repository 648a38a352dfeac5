//! A container's mounts: what every one has, and what it asks for.
//!
//! Invariant: a path inside a volume or image is bound through a descriptor that was opened inside it, never by its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use spec::model::{Mount, Spec};

use super::{INIT, World};
use crate::container::mounts::{MountPoint, ReadOnly, Source, tmpfs_options};
use crate::container::record::Record;
use crate::container::security::SecurityOptions;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, sys_text};
use crate::events::Subject;

/// A source that was made ready for a start.
#[derive(Clone, Debug, PartialEq)]
pub enum Ready {
    /// A host path to bind.
    Path(PathBuf),
    /// A mount of its own (an image's layers).
    Mount {
        /// The file system's type.
        kind: String,
        /// What is mounted.
        source: String,
        /// How.
        options: Vec<String>,
    },
}

/// Makes the sources of a container's mounts ready: creates missing host directories of `-v`, mounts volumes, opens subpaths.
///
/// # Errors
/// A source is not there.
pub async fn prepare_sources(engine: &Engine, record: &Record) -> Result<BTreeMap<String, Ready>> {
    let mut sources = BTreeMap::new();
    for (nth, (destination, mount)) in record.mounts.iter().enumerate() {
        let ready = match &mount.source {
            Source::Tmpfs { .. } => continue,
            Source::Bind { path, create, .. } => {
                let source = bind_source(path, *create)?;
                // A bind of what the data root is in was given its propagation by the engine, which can do without.
                if !engine.config.data_root.starts_with(path) {
                    check_propagation(path, &mount.propagation)?;
                }
                Ready::Path(source)
            }
            Source::Volume { name, driver, subpath, .. } => {
                let directory = engine.volumes.mount(name, &record.id).await?;
                announce_mount(engine, record, mount, name, driver);
                if subpath.is_empty() {
                    Ready::Path(directory)
                } else {
                    Ready::Path(pin_subpath(engine, record, nth, &directory, subpath)?)
                }
            }
            Source::Image { id, subpath, .. } => image_source(engine, record, nth, id, subpath).await?,
        };
        sources.insert(destination.clone(), ready);
    }
    Ok(sources)
}

/// Lets go of what [`prepare_sources`] made ready. Calling it again changes nothing; failures are told in the log.
pub async fn release_sources(engine: &Engine, record: &Record) {
    let pins = engine.config.container_run_dir(&record.id).join("pins");
    if pins.exists() {
        let unpinned = tokio::task::spawn_blocking(move || {
            sys::mount::detach_below(&pins)?;
            std::fs::remove_dir_all(&pins)
        });
        match unpinned.await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(container = record.id, error = %err, "subpaths not released"),
            Err(err) => tracing::warn!(container = record.id, error = %err, "subpaths not released"),
        }
    }
    for (nth, mount) in record.mounts.values().enumerate() {
        let released = match &mount.source {
            Source::Volume { name, driver, .. } => release_volume(engine, record, name, driver).await,
            Source::Image { .. } => engine.runtime.snapshot_remove(&image_key(record, nth)).await.map(drop),
            Source::Bind { .. } | Source::Tmpfs { .. } => Ok(()),
        };
        if let Err(err) = released {
            tracing::warn!(container = record.id, destination = mount.destination, error = %err, "mount not released");
        }
    }
}

/// Notes after a restart of the engine that a container which was started has its volumes mounted, so that its end lets go of them.
pub fn note_volumes(engine: &Engine, record: &Record) {
    for mount in record.mounts.values() {
        if let Source::Volume { name, .. } = &mount.source {
            engine.volumes.note_mounted(name, &record.id);
        }
    }
}

fn announce_mount(engine: &Engine, record: &Record, mount: &MountPoint, name: &str, driver: &str) {
    let attributes = [
        ("container", record.id.as_str()),
        ("destination", mount.destination.as_str()),
        ("driver", driver),
        ("propagation", mount.propagation.as_str()),
        ("read/write", if mount.writable { "true" } else { "false" }),
    ];
    engine.events.publish(Subject::Volume, "mount", name, attributes);
}

/// A volume at two places is let go of once: one event, as there is one use.
async fn release_volume(engine: &Engine, record: &Record, name: &str, driver: &str) -> Result<()> {
    if engine.volumes.unmount(name, &record.id).await? {
        let attributes = [("container", record.id.as_str()), ("driver", driver)];
        engine.events.publish(Subject::Volume, "unmount", name, attributes);
    }
    Ok(())
}

fn bind_source(path: &str, create: bool) -> Result<PathBuf> {
    let source = PathBuf::from(path);
    if !source.exists() {
        if !create {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {path}"
            )));
        }
        std::fs::create_dir_all(&source).map_err(|err| {
            Error::system(format!(
                "error while creating mount source path '{path}': mkdir {path}: {}",
                sys_text(&err)
            ))
        })?;
    }
    Ok(source)
}

/// Mounts travel through a bind only if they do through the mount that its source is on.
fn check_propagation(path: &str, propagation: &str) -> Result<()> {
    let (tags, wanted): (&[&str], &str) = match propagation {
        "shared" | "rshared" => (&["shared:"], "shared"),
        "slave" | "rslave" => (&["shared:", "master:"], "shared or slave"),
        _ => return Ok(()),
    };
    let failed = |err: std::io::Error| Error::system(format!("{path}: {}", sys_text(&err)));
    let real = std::fs::canonicalize(path).map_err(failed)?;
    let table = sys::mount::table().map_err(failed)?;
    let holders = table.iter().filter(|entry| real.starts_with(&entry.point));
    // Of two mounts at one place, the later hides the earlier.
    let Some(holder) = holders.max_by_key(|entry| entry.point.components().count()) else { return Ok(()) };
    if holder.tags.iter().any(|tag| tags.iter().any(|wanted| tag.starts_with(wanted))) {
        return Ok(());
    }
    Err(Error::system(format!(
        "path {path} is mounted on {} but it is not a {wanted} mount",
        holder.point.display()
    )))
}

fn pin_subpath(
    engine: &Engine,
    record: &Record,
    nth: usize,
    directory: &Path,
    subpath: &str,
) -> Result<PathBuf> {
    use std::os::fd::AsFd;
    let opened = engine.volumes.open_subpath(directory, Path::new(subpath))?;
    let at = pin_place(engine, record, nth, &opened)?;
    engine.volumes.pin(opened.as_fd(), &at)?;
    Ok(at)
}

/// An empty file or directory to bind `opened` over.
fn pin_place(engine: &Engine, record: &Record, nth: usize, opened: &std::os::fd::OwnedFd) -> Result<PathBuf> {
    let pins = engine.config.container_run_dir(&record.id).join("pins");
    let failed =
        |err: std::io::Error| Error::system(format!("create {}: {}", pins.display(), sys_text(&err)));
    std::fs::create_dir_all(&pins).map_err(failed)?;
    let at = pins.join(nth.to_string());
    let stat = rustix::fs::fstat(opened).map_err(|err| failed(err.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        std::fs::create_dir_all(&at).map_err(failed)?;
    } else {
        std::fs::write(&at, b"").map_err(failed)?;
    }
    Ok(at)
}

/// The key of the snapshot through which a container sees an image.
fn image_key(record: &Record, nth: usize) -> String {
    format!("{}-image-{nth}", record.id)
}

async fn image_source(
    engine: &Engine,
    record: &Record,
    nth: usize,
    id: &str,
    subpath: &str,
) -> Result<Ready> {
    let image = engine.images.resolve(id, None).await?;
    engine.images.unpack(&image).await?;
    let key = image_key(record, nth);
    let mounts = match engine.runtime.snapshot_view(&key, image.chain_key(), None).await {
        Err(err) if err.kind() == Kind::Conflict => engine.runtime.snapshot_mounts(&key).await?,
        other => other?,
    };
    if subpath.is_empty() {
        let [only] = <[_; 1]>::try_from(mounts).map_err(|_| Error::system("image has no single mount"))?;
        return Ok(Ready::Mount { kind: only.r#type, source: only.source, options: only.options });
    }
    // The kernel binds only what is mounted somewhere, so the image is, for that long.
    let whole = engine.config.container_run_dir(&record.id).join("pins").join(format!("{nth}-image"));
    let pinned =
        crate::mountfs::mounted_at(&mounts, &whole, |root| pin_image(engine, record, nth, root, subpath));
    pinned.map_err(|err| Error::system(format!("mount image at {}: {}", whole.display(), sys_text(&err))))?
}

fn pin_image(
    engine: &Engine,
    record: &Record,
    nth: usize,
    root: &std::os::fd::OwnedFd,
    subpath: &str,
) -> Result<Ready> {
    use std::os::fd::AsFd;
    let opened = crate::fs::open_inside(root, subpath)
        .map_err(|err| Error::not_found(format!("image subpath {subpath:?}: {}", sys_text(&err))))?;
    let at = pin_place(engine, record, nth, &opened)?;
    engine.volumes.pin(opened.as_fd(), &at)?;
    Ok(Ready::Path(at))
}

/// Fills in the mounts.
pub(super) fn apply(spec: &mut Spec, record: &Record, world: &World) -> Result<()> {
    let host = &record.host_config;
    let asked = asked(record, world)?;
    let has = |destination: &str| asked.iter().any(|mount| mount.destination == destination);
    let mut mounts: Vec<Mount> = defaults(record)
        .into_iter()
        .filter(|mount| {
            let replaced = has(&mount.destination) || has("/dev") && mount.destination.starts_with("/dev/");
            let no_ipc = host.ipc_mode == "none" && mount.destination == "/dev/shm";
            !replaced && !no_ipc
        })
        .collect();
    let propagation =
        |mount: &Mount, kinds: [&str; 2]| mount.options.iter().any(|o| kinds.contains(&o.as_str()));
    if asked.iter().any(|mount| propagation(mount, ["shared", "rshared"])) {
        spec.linux.rootfs_propagation = "shared".into();
    } else if asked.iter().any(|mount| propagation(mount, ["slave", "rslave"])) {
        spec.linux.rootfs_propagation = "rslave".into();
    }
    let options = SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())?;
    for mount in &mut mounts {
        let kept =
            matches!(mount.destination.as_str(), "/proc" | "/dev" | "/dev/pts" | "/dev/shm" | "/dev/mqueue");
        if host.readonly_rootfs && !kept && !mount.options.iter().any(|option| option == "ro") {
            mount.options.push("ro".into());
        }
        let writable = host.privileged && matches!(mount.destination.as_str(), "/sys" | "/sys/fs/cgroup")
            || options.writable_cgroups && mount.destination == "/sys/fs/cgroup";
        if writable {
            mount.options.retain(|option| option != "ro");
        }
    }
    mounts.extend(asked);
    spec.mounts = mounts;
    Ok(())
}

fn defaults(record: &Record) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &str| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.split(',').map(str::to_owned).collect(),
    };
    let mut shm = mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777");
    shm.options.push(format!("size={}", record.host_config.shm_size));
    vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        shm,
    ]
}

/// What the container asks for, and what the engine puts there for it, each destination once, outer before inner.
fn asked(record: &Record, world: &World) -> Result<Vec<Mount>> {
    let host = &record.host_config;
    let mut found: BTreeMap<String, Mount> = BTreeMap::new();
    let bind = |destination: &str, source: String, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: "bind".into(),
        source,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let files = [
        ("/etc/resolv.conf", &world.network.resolv_conf),
        ("/etc/hostname", &world.network.hostname),
        ("/etc/hosts", &world.network.hosts),
    ];
    for (destination, file) in files {
        if let Some(file) = file {
            let mut options = vec!["rbind", "rprivate"];
            if host.readonly_rootfs {
                options.push("ro");
            }
            found.insert(destination.into(), bind(destination, file.display().to_string(), &options));
        }
    }
    match (world.ipc_of, host.ipc_mode.as_str()) {
        (Some(pid), _) => {
            let source = format!("/proc/{pid}/root/dev/shm");
            found.insert("/dev/shm".into(), bind("/dev/shm", source, &["rbind", "rprivate"]));
        }
        (None, "host") => {
            found.insert("/dev/shm".into(), bind("/dev/shm", "/dev/shm".into(), &["rbind", "rprivate"]));
            if Path::new("/dev/mqueue").exists() {
                found.insert(
                    "/dev/mqueue".into(),
                    bind("/dev/mqueue", "/dev/mqueue".into(), &["rbind", "rprivate"]),
                );
            }
        }
        (None, _) => {}
    }
    for (destination, mount) in &record.mounts {
        if let Some(entry) = entry(mount, world.sources.get(destination))? {
            found.insert(destination.clone(), entry);
        }
    }
    for (destination, options) in host.tmpfs.iter().flatten() {
        let destination = crate::container::mounts::clean(destination);
        found.insert(destination.clone(), tmpfs(&destination, options)?);
    }
    if super::has_init(record, world) {
        let source = world.init.display().to_string();
        found.insert(INIT.into(), bind(INIT, source, &["bind", "ro"]));
    }
    let mut mounts: Vec<Mount> = found.into_values().collect();
    mounts.sort_by_key(|mount| mount.destination.split('/').filter(|part| !part.is_empty()).count());
    Ok(mounts)
}

fn entry(mount: &MountPoint, ready: Option<&Ready>) -> Result<Option<Mount>> {
    if let Source::Tmpfs { options } = &mount.source {
        return tmpfs(&mount.destination, options).map(Some);
    }
    let path = match ready {
        None => return Ok(None),
        Some(Ready::Mount { kind, source, options }) => {
            let mut options = options.clone();
            if !options.iter().any(|option| option == "ro") {
                options.push("ro".into());
            }
            return Ok(Some(Mount {
                destination: mount.destination.clone(),
                kind: kind.clone(),
                source: source.clone(),
                options,
            }));
        }
        Some(Ready::Path(path)) => path,
    };
    let (non_recursive, read_only) = match &mount.source {
        Source::Bind { non_recursive, read_only, .. } => (*non_recursive, *read_only),
        Source::Volume { .. } | Source::Tmpfs { .. } | Source::Image { .. } => (false, ReadOnly::AsPossible),
    };
    let mut options = vec![if non_recursive { "bind".to_owned() } else { "rbind".to_owned() }];
    if !mount.writable {
        options.push("ro".into());
        if read_only != ReadOnly::Top && !non_recursive {
            options.push("rro".into());
        }
    }
    let propagation = if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation };
    options.push(propagation.to_owned());
    Ok(Some(Mount {
        destination: mount.destination.clone(),
        kind: "bind".into(),
        source: path.display().to_string(),
        options,
    }))
}

fn tmpfs(destination: &str, options: &str) -> Result<Mount> {
    Ok(Mount {
        destination: destination.to_owned(),
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: tmpfs_options(options)?,
    })
}
