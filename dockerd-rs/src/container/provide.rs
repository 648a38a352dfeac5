//! A new container's mounts: reading what was asked for, making volumes, finding images.

use std::collections::BTreeSet;

use super::mounts::{self, MountPoint, Source, Wanted};
use super::record::Record;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::volume::{Hold, NewVolume, Volume};

/// A volume that is kept from going away until the container's record refers to it.
pub struct Held {
    /// The volume.
    pub volume: Volume,
    _hold: Hold,
}

/// Fills in the record's mounts. Anonymous volumes that were made are added to `made`, also when this fails.
///
/// # Errors
/// A refusal, or a volume could not be made.
pub async fn mounts(engine: &Engine, record: &mut Record, made: &mut Vec<String>) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    from_containers(engine, record, &mut held)?;
    let mut taken: BTreeSet<String> =
        record.host_config.tmpfs.iter().flatten().map(|(path, _)| mounts::clean(path)).collect();
    let binds = record.host_config.binds.clone().unwrap_or_default();
    let driver = record.host_config.volume_driver.clone();
    let newer = record.host_config.mounts.clone().unwrap_or_default();
    let mut wanted: Vec<Wanted> = Vec::new();
    // All are read before the first volume is made.
    for text in &binds {
        wanted.push(mounts::from_bind(text, &driver)?);
    }
    for mount in &newer {
        let read = mounts::from_mount(mount)?;
        if let Source::Bind { path, create: false, .. } = &read.point.source
            && !std::path::Path::new(path).exists()
        {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {path}"
            )));
        }
        wanted.push(read);
    }
    for read in &wanted {
        if !taken.insert(read.point.destination.clone()) {
            return Err(Error::invalid(format!("Duplicate mount point: {}", read.point.destination)));
        }
    }
    for read in wanted {
        provide(engine, record, read, &mut held, made).await?;
    }
    let of_image: Vec<String> =
        record.config.volumes.iter().flatten().map(|(path, _)| mounts::clean(path)).collect();
    for destination in of_image {
        if record.mounts.contains_key(&destination) || taken.contains(&destination) {
            continue;
        }
        let source = Source::Volume {
            name: String::new(),
            driver: String::new(),
            anonymous: true,
            copy: true,
            subpath: String::new(),
            path: String::new(),
        };
        let point = MountPoint { source, destination, writable: true, ..MountPoint::default() };
        let volume = mounts::NewVolumeAsked { driver: driver_config(&driver), labels: None };
        provide(engine, record, Wanted { point, volume: Some(volume) }, &mut held, made).await?;
    }
    Ok(held)
}

fn driver_config(name: &str) -> docker_api::mount::DriverConfig {
    docker_api::mount::DriverConfig { name: name.to_owned(), options: None }
}

/// The mounts of `--volumes-from`.
fn from_containers(engine: &Engine, record: &mut Record, held: &mut Vec<Held>) -> Result<()> {
    for text in record.host_config.volumes_from.clone().unwrap_or_default() {
        let (other, mode) = mounts::split_volumes_from(&text)?;
        let other = engine.containers.get(other).map_err(|err| Error::invalid(err.message()))?.record();
        let writable = mounts::mode_is_writable(mode);
        for (destination, mount) in &other.mounts {
            let mut mount = mount.clone();
            mount.writable &= writable;
            mount.mode = String::new();
            if let Source::Volume { name, copy, anonymous, .. } = &mut mount.source {
                (*copy, *anonymous) = (false, false);
                held.push(hold(engine, name)?);
            }
            record.mounts.insert(destination.clone(), mount);
        }
    }
    Ok(())
}

fn hold(engine: &Engine, name: &str) -> Result<Held> {
    let hold = engine.volumes.hold(name)?;
    Ok(Held { volume: engine.volumes.get(name)?, _hold: hold })
}

async fn provide(
    engine: &Engine,
    record: &mut Record,
    wanted: Wanted,
    held: &mut Vec<Held>,
    made: &mut Vec<String>,
) -> Result<()> {
    let Wanted { mut point, volume: new } = wanted;
    match &mut point.source {
        Source::Volume { name, driver, anonymous, path, .. } => {
            let new = new.unwrap_or_default();
            let asked = NewVolume {
                name: name.clone(),
                driver: new.driver.name,
                options: new.driver.options,
                labels: new.labels,
            };
            let (volume, hold, is_new) = engine.volumes.create_held(asked).await?;
            if is_new && *anonymous {
                made.push(volume.name.clone());
            }
            name.clone_from(&volume.name);
            driver.clone_from(&volume.driver);
            *path = volume.mountpoint.display().to_string();
            held.push(Held { volume, _hold: hold });
        }
        Source::Image { reference, id, .. } => {
            let image = engine.images.resolve(reference, None).await.map_err(|err| match err.kind() {
                Kind::NotFound => Error::not_found(err.message()),
                _ => err,
            })?;
            *id = image.id.to_string();
        }
        Source::Bind { path, .. } => {
            // What the engine itself keeps its state in would otherwise pin that state's mounts.
            if engine.config.data_root.starts_with(&*path) && point.propagation == "rprivate" {
                point.propagation = "rslave".into();
            }
        }
        Source::Tmpfs { .. } => {}
    }
    record.mounts.insert(point.destination.clone(), point);
    Ok(())
}
