//! A task's directory: what a shim finds in its working directory, and where we find the shim again.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<namespace>/<id>/
//!     config.json       the OCI specification
//!     rootfs/           where the shim mounts the root file system
//!     work -> <root>/io.containerd.runtime.v2.task/<namespace>/<id>
//!     shim-binary-path  which shim it was started with        before the start
//!     log               a FIFO the shim logs to               before the start
//!     bootstrap.json    where the shim listens                after the start
//!     stage             how far the task's events have come   see `lifecycle`
//! ```
//! Names and contents are containerd's (but for `stage`), so that either finds the other's shims. Nothing is fsynced: the state
//! directory does not outlive a boot, and neither do shims.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Key;

/// The directory of all bundles, below the state and the root directory.
pub const PLUGIN_DIR: &str = "io.containerd.runtime.v2.task";

/// A task's directories.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// In the state directory; the shim's working directory.
    pub path: PathBuf,
    /// In the root directory; outlives a boot, emptied with the task.
    pub work: PathBuf,
}

/// Where a shim listens: what it answered when it was started, and what `bootstrap.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Task API: 2 or 3.
    pub version: u32,
    /// `unix://` and a path.
    pub address: String,
    /// `ttrpc`.
    pub protocol: String,
}

impl Bundle {
    /// Where the bundle of a task is.
    pub fn at(state: &Path, root: &Path, key: &Key) -> Bundle {
        let below = |base: &Path| base.join(PLUGIN_DIR).join(&key.namespace).join(&key.id);
        Bundle { path: below(state), work: below(root) }
    }

    /// Makes the directories and writes the specification.
    ///
    /// A left-over directory of the same id is an error: someone still owns it.
    ///
    /// # Errors
    /// The first thing that could not be made; nothing is left then.
    pub fn create(&self, spec: &[u8]) -> io::Result<()> {
        let made = self.create_all(spec);
        if made.as_ref().is_err_and(|err| err.kind() != io::ErrorKind::AlreadyExists) {
            let _ = std::fs::remove_dir_all(&self.path);
            let _ = std::fs::remove_dir_all(&self.work);
        }
        made
    }

    fn create_all(&self, spec: &[u8]) -> io::Result<()> {
        let parents = [self.path.parent(), self.work.parent()];
        for parent in parents.into_iter().flatten() {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(&self.path)?;
        if let Some(group) = remapped_root_group(spec) {
            // The container's root, not being root here, has to get into its root file system.
            std::os::unix::fs::chown(&self.path, None, Some(group))?;
            std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o710))?;
        }
        std::fs::DirBuilder::new().mode(0o711).create(self.rootfs())?;
        // Left behind by a crash or by the previous boot: nobody's any more.
        match std::fs::remove_dir_all(&self.work) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o711).create(&self.work)?;
        std::os::unix::fs::symlink(&self.work, self.path.join("work"))?;
        std::fs::write(self.path.join("config.json"), spec)
    }

    /// Makes a directory for a shim that is found without one, so that it is cleaned up as after a crash. False if it has one.
    ///
    /// # Errors
    /// As making a directory and writing a file.
    pub fn adopt(&self, binary: &Path) -> io::Result<bool> {
        if self.path.exists() {
            return Ok(false);
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o700))?;
        self.write_shim_binary(binary)?;
        Ok(true)
    }

    /// Where the root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The shim's log FIFO.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Notes which shim is about to be started.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_shim_binary(&self, binary: &Path) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.write("shim-binary-path", binary.as_os_str().as_bytes())
    }

    /// Which shim was started here.
    pub fn read_shim_binary(&self) -> Option<PathBuf> {
        let path = std::fs::read_to_string(self.path.join("shim-binary-path")).ok()?;
        Some(PathBuf::from(path.trim_end())).filter(|path| path.is_absolute())
    }

    /// Notes where the shim listens.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_bootstrap(&self, bootstrap: &Bootstrap) -> io::Result<()> {
        self.write("bootstrap.json", &serde_json::to_vec(bootstrap)?)
    }

    /// Where the shim listens, if it got so far. Containerd 1.x left the bare address in `address`.
    pub fn read_bootstrap(&self) -> Option<Bootstrap> {
        if let Ok(bytes) = std::fs::read(self.path.join("bootstrap.json"))
            && let Ok(bootstrap) = serde_json::from_slice(&bytes)
        {
            return Some(bootstrap);
        }
        let address = std::fs::read_to_string(self.path.join("address")).ok()?;
        let address = address.trim().to_owned();
        (!address.is_empty()).then(|| Bootstrap { version: 2, address, protocol: "ttrpc".into() })
    }

    /// The pid of the container's init, as runc shims note it.
    pub fn read_init_pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.path.join("init.pid")).ok()?.trim().parse().ok()
    }

    /// The pid the shim left, if it got that far; shims that do not leave one are known by their socket alone.
    pub fn read_shim_pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.path.join("shim.pid")).ok()?.trim().parse().ok()
    }

    /// Writes a small file that appears whole, without syncing it.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}"));
        std::fs::write(&temporary, content)?;
        std::fs::rename(&temporary, self.path.join(name))
    }

    /// Unmounts what is mounted here and removes both directories. What is not there is fine.
    ///
    /// # Errors
    /// The first thing that did not work; the rest is tried nevertheless.
    pub fn delete(&self) -> io::Result<()> {
        let rootfs = self.rootfs();
        let mut outcome = Ok(());
        let mut note = |result: io::Result<()>| match result {
            Err(err) if err.kind() != io::ErrorKind::NotFound && outcome.is_ok() => outcome = Err(err),
            _ => {}
        };
        let mut bare = true;
        if has_mount(&self.path, &rootfs) {
            // As the mount table spells it, or nothing would be found there.
            let detached = sys::mount::resolve(&rootfs).and_then(|rootfs| sys::mount::detach_below(&rootfs));
            bare = detached.is_ok() && same_device(&self.path, &rootfs);
            note(detached);
        }
        // Never into a mount that could not be detached: `remove_dir` fails where `remove_dir_all` would delete a container's files.
        note(match std::fs::remove_dir(&rootfs) {
            // A runtime that outlived the mount has made its mount points in the bare directory.
            Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty && bare => {
                remove_mount_points(&rootfs)
            }
            other => other,
        });
        if rootfs.exists() {
            return outcome;
        }
        let hidden = hidden(&self.path);
        let doomed = if std::fs::rename(&self.path, &hidden).is_ok() { &hidden } else { &self.path };
        note(std::fs::remove_dir_all(doomed));
        note(std::fs::remove_dir_all(&self.work));
        outcome
    }
}

/// The name a bundle has while it is being removed: never taken for a bundle.
fn hidden(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Removes directories, empty files, links and devices. Stops at a file that holds something: that is no mount point but somebody's.
fn remove_mount_points(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            remove_mount_points(&entry.path())?;
        } else if metadata.is_file() && metadata.len() > 0 {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(directory)
}

fn same_device(one: &Path, other: &Path) -> bool {
    matches!((std::fs::metadata(one), std::fs::metadata(other)), (Ok(one), Ok(other)) if one.dev() == other.dev())
}

/// Whether something may be mounted in the root file system directory; cheap for those where nothing is.
fn has_mount(bundle: &Path, rootfs: &Path) -> bool {
    let (Ok(outer), Ok(inner)) = (std::fs::metadata(bundle), std::fs::metadata(rootfs)) else {
        return rootfs.exists();
    };
    // A bind mount from the same file system has the same device but is no empty directory.
    outer.dev() != inner.dev()
        || std::fs::read_dir(rootfs).map_or(true, |mut entries| entries.next().is_some())
}

/// The host's group of the container's root, when that is not the host's own.
fn remapped_root_group(spec: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        #[serde(default)]
        gid_mappings: Option<Vec<Mapping>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mapping {
        #[serde(rename = "containerID")]
        container_id: u32,
        #[serde(rename = "hostID")]
        host_id: u32,
        size: u32,
    }
    // Most specifications have none, and are long.
    memchr::memmem::find(spec, b"gidMappings")?;
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    let mappings = spec.linux?.gid_mappings?;
    let root = mappings.iter().find(|mapping| mapping.container_id == 0 && mapping.size > 0)?;
    (root.host_id != 0).then_some(root.host_id)
}

/// The bundles below a state directory, and what is left of half-removed ones.
#[derive(Debug, Default)]
pub struct Found {
    /// Tasks that have a bundle.
    pub bundles: Vec<Key>,
    /// Bundles whose removal was interrupted.
    pub rests: Vec<PathBuf>,
}

/// Looks for bundles.
///
/// # Errors
/// What listing the directories says; a state directory that is not there has none.
pub fn find(state: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let base = state.join(PLUGIN_DIR);
    for namespace in subdirectories(&base)? {
        for id in subdirectories(&base.join(&namespace))? {
            if let Some(_rest) = id.strip_prefix('.') {
                found.rests.push(base.join(&namespace).join(&id));
            } else {
                found.bundles.push(Key::new(&namespace, &id));
            }
        }
    }
    Ok(found)
}

/// Work directories without a bundle, renamed so that a new task of that name does not meet their removal.
///
/// # Errors
/// What listing the directories says.
pub fn orphaned_work(state: &Path, root: &Path) -> io::Result<Vec<PathBuf>> {
    let (bundles, works) = (state.join(PLUGIN_DIR), root.join(PLUGIN_DIR));
    let mut orphans = Vec::new();
    for namespace in subdirectories(&works)? {
        for id in subdirectories(&works.join(&namespace))? {
            let work = works.join(&namespace).join(&id);
            if id.starts_with('.') {
                orphans.push(work);
            } else if !bundles.join(&namespace).join(&id).exists() {
                let name = hidden(&work);
                // The rest of an earlier removal may be in the way.
                let _ = std::fs::remove_dir_all(&name);
                match std::fs::rename(&work, &name) {
                    Ok(()) => orphans.push(name),
                    Err(err) => {
                        tracing::warn!(path = %work.display(), %err, "cannot set a work directory aside")
                    }
                }
            }
        }
    }
    Ok(orphans)
}

fn subdirectories(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path) -> Bundle {
        Bundle::at(&dir.join("state"), &dir.join("root"), &Key::new("ns", "c1"))
    }

    #[test]
    fn a_bundle_is_made_found_and_removed_without_a_rest() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}").unwrap();
        assert_eq!(std::fs::read(bundle.path.join("config.json")).unwrap(), b"{}");
        assert_eq!(std::fs::read_link(bundle.path.join("work")).unwrap(), bundle.work);
        assert_eq!(bundle.create(b"{}").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(bundle.path.exists(), "the failed second creation took nothing away");
        assert_eq!(find(&dir.path().join("state")).unwrap().bundles, [Key::new("ns", "c1")]);
        bundle.delete().unwrap();
        bundle.delete().unwrap();
        assert!(!bundle.path.exists() && !bundle.work.exists());
        assert!(find(&dir.path().join("state")).unwrap().bundles.is_empty());
    }

    #[test]
    fn work_without_a_bundle_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}").unwrap();
        let (state, root) = (dir.path().join("state"), dir.path().join("root"));
        assert!(orphaned_work(&state, &root).unwrap().is_empty());
        std::fs::remove_dir_all(&bundle.path).unwrap();
        let orphans = orphaned_work(&state, &root).unwrap();
        assert_eq!(orphans, [hidden(&bundle.work)]);
        assert!(!bundle.work.exists());
        assert_eq!(
            orphaned_work(&state, &root).unwrap(),
            orphans,
            "found again if we die before removing it"
        );
    }

    #[test]
    fn files_in_the_root_file_system_are_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}").unwrap();
        std::fs::write(bundle.rootfs().join("precious"), "x").unwrap();
        assert!(bundle.delete().is_err());
        assert!(bundle.rootfs().join("precious").exists());
    }

    #[test]
    fn mount_points_in_a_bare_root_file_system_are_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}").unwrap();
        std::fs::create_dir_all(bundle.rootfs().join("dev/shm")).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd", bundle.rootfs().join("dev/fd")).unwrap();
        std::fs::create_dir(bundle.rootfs().join("etc")).unwrap();
        std::fs::write(bundle.rootfs().join("etc/hosts"), "").unwrap();
        bundle.delete().unwrap();
        assert!(!bundle.path.exists());
    }

    #[test]
    fn addresses_old_and_new_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}").unwrap();
        assert_eq!(bundle.read_bootstrap(), None);
        std::fs::write(bundle.path.join("address"), "unix:///a\n").unwrap();
        assert_eq!(bundle.read_bootstrap().unwrap().version, 2);
        let new = Bootstrap { version: 3, address: "unix:///b".into(), protocol: "ttrpc".into() };
        bundle.write_bootstrap(&new).unwrap();
        assert_eq!(bundle.read_bootstrap().unwrap(), new);
        bundle.write_shim_binary(Path::new("/x/shim")).unwrap();
        assert_eq!(bundle.read_shim_binary().unwrap(), Path::new("/x/shim"));
    }

    #[test]
    fn a_remapped_root_is_seen_in_the_specification() {
        let spec = br#"{"linux":{"gidMappings":[{"containerID":1,"hostID":5,"size":9},{"containerID":0,"hostID":100000,"size":65536}]}}"#;
        assert_eq!(remapped_root_group(spec), Some(100_000));
        assert_eq!(remapped_root_group(b"{}"), None);
        assert_eq!(remapped_root_group(br#"{"linux":{"gidMappings":null}}"#), None);
        assert_eq!(remapped_root_group(b"gidMappings"), None);
    }
}
