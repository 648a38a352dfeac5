//! Volumes: named directories (or mounts) that outlive containers.
//!
//! Invariants: a volume in the list has a record in the store and a directory; nobody removes one that a container refers to or that someone
//! [holds](Volumes::hold); paths inside a volume are opened relative to it and never lead out. Who uses a volume is computed from the
//! container records when asked ([`Volumes::set_users`]), so it cannot disagree with them.
//!
//! ```text
//!   create ──► record + <data-root>/volumes/<name>/_data ──► mount (first container) ──► unmount (last one) ──► remove
//! ```

mod copyup;
mod local;
mod remote;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use docker_api::filters::Filters;
use docker_api::volume as wire;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Parts};
use crate::error::{Error, Kind, Result, sys_text};
use crate::events::{Events, Subject};
use crate::store::{Store, Table};

/// The driver that is part of the engine.
const LOCAL: &str = "local";
/// The label of volumes nobody named.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// `local`, or the name of a plugin.
    pub driver: String,
    /// The driver's options (`type`, `device`, `o`).
    pub options: Option<BTreeMap<String, String>>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// Where its content is on the host; derived, not stored.
    #[serde(skip)]
    pub mountpoint: PathBuf,
}

impl Volume {
    /// Whether nobody named it.
    pub fn is_anonymous(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    /// Whether a plugin keeps it.
    pub fn is_remote(&self) -> bool {
        self.driver != LOCAL
    }

    /// Whether it is a directory of the engine's and nothing else.
    pub fn is_plain(&self) -> bool {
        !self.is_remote() && self.options.as_ref().is_none_or(BTreeMap::is_empty)
    }

    /// Whether it is mounted when a container starts, rather than being a plain directory.
    pub fn needs_mount(&self) -> bool {
        self.is_remote() || self.options.as_ref().is_some_and(|options| options.contains_key("device"))
    }

    /// The form on the wire.
    pub fn to_wire(&self) -> wire::Volume {
        wire::Volume {
            created_at: self.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            driver: self.driver.clone(),
            labels: self.labels.clone(),
            mountpoint: self.mountpoint.display().to_string(),
            name: self.name.clone(),
            options: self.options.clone(),
            scope: "local".into(),
            status: None,
            usage_data: None,
        }
    }
}

/// What a new volume shall be.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// The name; empty makes an anonymous volume.
    pub name: String,
    /// The driver; empty is `local`.
    pub driver: String,
    /// The driver's options.
    pub options: Option<BTreeMap<String, String>>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
}

type Users = Box<dyn Fn(&str) -> Vec<String> + Send + Sync>;

/// The volumes of the engine; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    root: PathBuf,
    store: Store,
    events: Events,
    users: OnceLock<Users>,
    state: Mutex<State>,
    /// Held while a volume is made or removed: both are a record and a directory.
    changing: tokio::sync::Mutex<()>,
    pruning: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, Volume>,
    /// How many [`Hold`]s there are of a volume.
    holds: HashMap<String, usize>,
    /// Containers that have a volume mounted.
    mounted: HashMap<String, BTreeSet<String>>,
    /// One lock for each volume that is being mounted or unmounted.
    mounting: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// Keeps a volume from being removed until a container's record refers to it.
pub struct Hold {
    volumes: Volumes,
    name: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.volumes.state();
        if let Some(count) = state.holds.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                state.holds.remove(&self.name);
            }
        }
    }
}

impl Volumes {
    /// Reads the records. A damaged one is reported and left alone.
    ///
    /// # Errors
    /// The store cannot be read, or the directory cannot be made.
    pub async fn open(parts: &Parts) -> Result<Self> {
        let root = parts.config.volumes_dir();
        let made = std::fs::create_dir_all(&root).and_then(|()| {
            rustix::fs::chmod(&root, rustix::fs::Mode::from_raw_mode(0o701)).map_err(Into::into)
        });
        made.map_err(|err| Error::system(format!("create {}: {}", root.display(), sys_text(&err))))?;
        let mut volumes = BTreeMap::new();
        for (name, record) in parts.store.list::<Volume>(Table::Volumes, "")? {
            match record {
                Ok(mut volume) => {
                    if !volume.is_remote() {
                        volume.mountpoint = local::mountpoint(&root, &name);
                    }
                    volumes.insert(name, volume);
                }
                Err(err) => {
                    tracing::error!(volume = name, error = %err, "record not readable; the volume is not shown")
                }
            }
        }
        let this = Self(Arc::new(Inner {
            root,
            store: parts.store.clone(),
            events: parts.events.clone(),
            users: OnceLock::new(),
            state: Mutex::new(State { volumes, ..State::default() }),
            changing: tokio::sync::Mutex::new(()),
            pruning: tokio::sync::Mutex::new(()),
        }));
        let root = this.0.root.clone();
        tokio::task::spawn_blocking(move || local::finish_removals(&root));
        Ok(this)
    }

    /// Brings records and reality together after a start.
    pub async fn restore(&self, _engine: &Arc<Engine>) {}

    /// Tells volumes who refers to one (container ids, running or not). Must not block. Once only.
    pub fn set_users(&self, users: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) {
        let _ = self.0.users.set(Box::new(users));
    }

    /// The containers that refer to a volume.
    pub fn users(&self, name: &str) -> Vec<String> {
        self.0.users.get().map_or_else(Vec::new, |users| users(name))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a volume, or gives the one of that name as it is.
    ///
    /// # Errors
    /// 400 for a bad name or option, 404 for an unknown driver.
    pub async fn create(&self, new: NewVolume) -> Result<Volume> {
        self.create_held(new).await.map(|(volume, _, _)| volume)
    }

    /// As [`Volumes::create`], held against removal; `true` if the volume is new.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub async fn create_held(&self, new: NewVolume) -> Result<(Volume, Hold, bool)> {
        let NewVolume { mut name, driver, options, mut labels } = new;
        if name.is_empty() {
            let mut random = [0_u8; 32];
            getrandom::fill(&mut random).map_err(|err| Error::system(format!("random bytes: {err}")))?;
            name = hex::encode(random);
            labels.get_or_insert_default().insert(ANONYMOUS.into(), String::new());
        }
        let context = |err: Error| err.context(format!("create {name}"));
        let remote = match driver.as_str() {
            "" | LOCAL => None,
            other => Some(remote::Driver::find(other).await.map_err(context)?),
        };
        local::check_name(&name).map_err(context)?;
        let _changing = self.0.changing.lock().await;
        if let Ok(hold) = self.hold(&name) {
            let there = self.get(&name)?;
            if !driver.is_empty() && driver != there.driver {
                return Err(context(Error::conflict("conflict: volume name must be unique")));
            }
            return Ok((there, hold, false));
        }
        let mut volume = Volume {
            driver: if remote.is_some() { driver } else { LOCAL.into() },
            options,
            labels,
            created_at: jiff::Timestamp::now(),
            mountpoint: PathBuf::new(),
            name,
        };
        let name = volume.name.clone();
        let context = |err: Error| err.context(format!("create {name}"));
        match &remote {
            None => {
                local::check_options(volume.options.as_ref()).map_err(context)?;
                volume.mountpoint = local::mountpoint(&self.0.root, &name);
                local::make(&volume.mountpoint).map_err(|err| {
                    context(Error::system(format!("error while creating volume path: {}", sys_text(&err))))
                })?;
            }
            Some(driver) => driver.create(&name, volume.options.clone()).await.map_err(context)?,
        }
        if let Err(err) = self.0.store.put(Table::Volumes, name.clone(), &volume).await {
            match remote {
                None => drop(local::remove(&self.0.root, &name)),
                Some(driver) => drop(driver.remove(&name).await),
            }
            return Err(context(err));
        }
        {
            let mut state = self.state();
            state.volumes.insert(volume.name.clone(), volume.clone());
            *state.holds.entry(volume.name.clone()).or_default() += 1;
        }
        let hold = Hold { volumes: self.clone(), name: volume.name.clone() };
        let driver = [("driver", volume.driver.as_str())];
        self.0.events.publish(Subject::Volume, "create", &volume.name, driver);
        Ok((volume, hold, true))
    }

    /// A volume by its exact name.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, name: &str) -> Result<Volume> {
        self.state().volumes.get(name).cloned().ok_or_else(|| {
            let separator = if name.is_empty() { "" } else { " " };
            Error::not_found(format!("get{separator}{name}: no such volume"))
        })
    }

    /// Keeps a volume from being removed while the value lives.
    ///
    /// # Errors
    /// 404.
    pub fn hold(&self, name: &str) -> Result<Hold> {
        let mut state = self.state();
        if !state.volumes.contains_key(name) {
            return Err(Error::not_found(format!("get {name}: no such volume")));
        }
        *state.holds.entry(name.to_owned()).or_default() += 1;
        Ok(Hold { volumes: self.clone(), name: name.to_owned() })
    }

    /// The drivers in use, and `local`.
    pub fn drivers(&self) -> BTreeSet<String> {
        let mut drivers = BTreeSet::from([LOCAL.to_owned()]);
        drivers.extend(self.state().volumes.values().map(|volume| volume.driver.clone()));
        drivers
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<Volume> {
        self.state().volumes.values().cloned().collect()
    }

    /// Removes a volume and what is in it.
    ///
    /// # Errors
    /// 409 while a container refers to it, 404 if it is not there (with `force` that is fine).
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let _changing = self.0.changing.lock().await;
        let volume = match self.get(name) {
            Err(err) if force && err.kind() == Kind::NotFound && !name.is_empty() => return Ok(()),
            other => other?,
        };
        let users = self.users(name);
        {
            let mut state = self.state();
            let held = state.holds.contains_key(name) || state.mounted.contains_key(name);
            if !users.is_empty() || held {
                return Err(Error::conflict(format!(
                    "remove {name}: volume is in use - [{}]",
                    users.join(", ")
                )));
            }
            // From here nobody can take hold of it.
            state.volumes.remove(name);
            state.mounting.remove(name);
        }
        let back = |err: Error, volume: Volume| {
            self.state().volumes.insert(name.to_owned(), volume);
            Err(err.context(format!("remove {name}")))
        };
        if volume.is_remote() {
            let removed = match remote::Driver::find(&volume.driver).await {
                Ok(driver) => driver.remove(name).await,
                Err(err) => Err(err),
            };
            match removed {
                Err(err) if force => {
                    tracing::warn!(volume = name, error = %err, "its driver did not remove the volume")
                }
                Err(err) => return back(err, volume),
                Ok(()) => {}
            }
        }
        if let Err(err) = self.0.store.delete(Table::Volumes, name).await {
            return back(err, volume);
        }
        let (root, owned) = (self.0.root.clone(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || local::remove(&root, &owned)).await;
        match removed {
            Ok(Ok(())) => {}
            // It is out of the list and out of its name; what is left goes at the next start.
            Ok(Err(err)) => {
                tracing::warn!(volume = name, error = %err, "not everything of the volume could be removed")
            }
            Err(err) => {
                tracing::warn!(volume = name, error = %err, "removal of the volume's files ended early")
            }
        }
        self.0.events.publish(Subject::Volume, "destroy", name, [("driver", volume.driver)]);
        Ok(())
    }

    /// Removes volumes nobody refers to: `all` of them, or those without a name of their own. One with options stays: what it mounts may
    /// hold more than this engine put there.
    ///
    /// # Errors
    /// 409 while another prune runs.
    pub async fn prune(&self, filters: &Filters, all: bool) -> Result<wire::PruneReport> {
        let Ok(_pruning) = self.0.pruning.try_lock() else {
            return Err(Error::conflict("a prune operation is already running"));
        };
        let mut report = wire::PruneReport::default();
        for volume in self.list() {
            let wanted =
                volume.is_plain() && (all || volume.is_anonymous()) && label_filters(filters, &volume);
            if !wanted || !self.users(&volume.name).is_empty() {
                continue;
            }
            let bytes = self.usage(&volume).await;
            match self.remove(&volume.name, false).await {
                Ok(()) => {
                    report.space_reclaimed += bytes;
                    report.volumes_deleted.push(volume.name);
                }
                Err(err) if matches!(err.kind(), Kind::Conflict | Kind::NotFound) => {}
                Err(err) => tracing::warn!(volume = volume.name, error = %err, "volume not pruned"),
            }
        }
        let reclaimed = report.space_reclaimed.to_string();
        self.0.events.publish(Subject::Volume, "prune", "", [("reclaimed", reclaimed)]);
        Ok(report)
    }

    /// Bytes in a volume; 0 for what is not on a disk of ours.
    pub async fn usage(&self, volume: &Volume) -> u64 {
        if volume.needs_mount() {
            return 0;
        }
        let path = volume.mountpoint.clone();
        tokio::task::spawn_blocking(move || local::usage(&path)).await.unwrap_or(0)
    }

    /// Makes a volume's content available to a container; gives the directory. Calling it again for the same container changes nothing.
    ///
    /// # Errors
    /// 404, or what `mount(2)` says of the volume's options.
    pub async fn mount(&self, name: &str, container_id: &str) -> Result<PathBuf> {
        let volume = self.get(name)?;
        let lock = Arc::clone(self.state().mounting.entry(name.to_owned()).or_default());
        let _one_at_a_time = lock.lock().await;
        let mut directory = volume.mountpoint.clone();
        if volume.is_remote() {
            let driver = remote::Driver::find(&volume.driver).await?;
            let has_it = self.state().mounted.get(name).is_some_and(|users| users.contains(container_id));
            let mounted =
                if has_it { driver.path(name).await } else { driver.mount(name, container_id).await };
            directory =
                mounted.map_err(|err| err.context(format!("error while mounting volume '{name}'")))?;
        } else if volume.needs_mount() {
            let (options, at) = (volume.options.clone().unwrap_or_default(), volume.mountpoint.clone());
            tokio::task::spawn_blocking(move || local::mount(&options, &at))
                .await
                .map_err(|err| Error::system(format!("mount volume {name}: {err}")))??;
        }
        self.state().mounted.entry(name.to_owned()).or_default().insert(container_id.to_owned());
        Ok(directory)
    }

    /// Notes after a restart that a running container has the volume mounted.
    pub fn note_mounted(&self, name: &str, container_id: &str) {
        self.state().mounted.entry(name.to_owned()).or_default().insert(container_id.to_owned());
    }

    /// Ends a container's use; the last one unmounts. `false` if the container did not use the volume, which changes nothing.
    ///
    /// # Errors
    /// What `umount(2)` says.
    pub async fn unmount(&self, name: &str, container_id: &str) -> Result<bool> {
        let lock = Arc::clone(self.state().mounting.entry(name.to_owned()).or_default());
        let _one_at_a_time = lock.lock().await;
        let (used, last) = {
            let mut state = self.state();
            match state.mounted.get_mut(name) {
                Some(users) => (users.remove(container_id), users.is_empty()),
                None => (false, false),
            }
        };
        let volume = self.get(name);
        if used
            && let Ok(volume) = &volume
            && volume.is_remote()
        {
            // A driver counts its users itself.
            remote::Driver::find(&volume.driver).await?.unmount(name, container_id).await?;
        }
        if !used || !last {
            return Ok(used);
        }
        self.state().mounted.remove(name);
        if let Ok(volume) = volume
            && volume.needs_mount()
            && !volume.is_remote()
        {
            tokio::task::spawn_blocking(move || sys::mount::detach(&volume.mountpoint))
                .await
                .map_err(|err| Error::system(format!("unmount volume {name}: {err}")))?
                .map_err(|err| Error::system(format!("unmount volume {name}: {}", sys_text(&err))))?;
        }
        Ok(true)
    }

    /// Fills an empty volume with what an image has at `path` (`rootfs` is the image's root). A volume with content stays as it is.
    /// The volume's directory takes over the owner and mode of the image's directory.
    ///
    /// # Errors
    /// The copy failed; the volume may be partly filled.
    pub async fn copy_up(&self, volume: &Volume, rootfs: OwnedFd, path: &Path) -> Result<()> {
        let (target, path) = (volume.mountpoint.clone(), path.to_owned());
        let shown = path.display().to_string();
        tokio::task::spawn_blocking(move || copyup::copy(rootfs, &path, &target))
            .await
            .map_err(|err| Error::system(format!("copy {shown} into volume: {err}")))?
            .map_err(|err| {
                Error::system(format!("failed to populate volume: copy {shown}: {}", sys_text(&err)))
            })
    }

    /// A volume as it is told about, with what its driver knows now.
    pub async fn describe(&self, volume: &Volume) -> wire::Volume {
        let mut shown = volume.to_wire();
        if volume.is_remote() {
            let told = match remote::Driver::find(&volume.driver).await {
                Ok(driver) => {
                    shown.scope = driver.scope().await;
                    driver.get(&volume.name).await
                }
                Err(err) => Err(err),
            };
            match told {
                Ok(told) => {
                    shown.mountpoint = told.mountpoint.unwrap_or_default();
                    shown.status = told.status.filter(|status| !status.is_empty());
                }
                Err(err) => {
                    tracing::warn!(volume = volume.name, error = %err, "its driver does not tell of the volume")
                }
            }
        }
        shown
    }

    /// Opens `subpath` of a volume mounted at `directory` without leaving it; symbolic links are followed inside only.
    ///
    /// # Errors
    /// 404 if the path is not there, 400 if it leads out.
    pub fn open_subpath(&self, directory: &Path, subpath: &Path) -> Result<OwnedFd> {
        local::open_inside(directory, subpath)
    }

    /// Binds a subpath opened by [`Volumes::open_subpath`] to `at` (an existing file or directory of the same kind), so that a runtime can use a
    /// path that nobody inside the volume can swap. The caller unmounts it.
    ///
    /// # Errors
    /// What `mount(2)` says.
    pub fn pin(&self, opened: BorrowedFd<'_>, at: &Path) -> Result<()> {
        use std::os::fd::AsRawFd;
        let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
        sys::mount::mount("bind", &source, &["rbind"], at).map_err(|err| {
            Error::system(format!("bind volume subpath at {}: {}", at.display(), sys_text(&err)))
        })
    }

    /// `GET /volumes`.
    ///
    /// # Errors
    /// 400 for a bad filter value.
    pub fn filtered(&self, filters: &Filters) -> Result<Vec<Volume>> {
        let dangling = filters
            .bool("dangling")
            .map_err(|bad| Error::invalid(format!("invalid filter 'dangling={bad}'")))?;
        let names = filters.get("name");
        let mut volumes = self.list();
        volumes.retain(|volume| {
            (names.is_empty() || names.iter().any(|part| volume.name.contains(part.as_str())))
                && filters.exact("driver", &volume.driver)
                && label_filters(filters, volume)
                && dangling.is_none_or(|wanted| self.users(&volume.name).is_empty() == wanted)
        });
        Ok(volumes)
    }
}

fn label_filters(filters: &Filters, volume: &Volume) -> bool {
    let label = |name: &str| volume.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    filters.labels("label", label) && (filters.get("label!").is_empty() || !filters.labels("label!", label))
}
