//! Mounts of the snapshots service as directories: to extract into, to compare, to look into.
//!
//! A bind mount is its source; an overlay can be written through its upper directory and read through its layers
//! without being mounted. Only what is neither is mounted, for as long as the work takes.

use std::path::{Path, PathBuf};

use containerd_api::error::Error;
use containerd_api::types::Mount;
use layer::Whiteouts;

/// Where a layer is to be extracted.
pub struct Place {
    pub directory: PathBuf,
    pub whiteouts: Whiteouts,
    /// The directories below, nearest first.
    pub lowers: Vec<PathBuf>,
    mounted: Option<Mounted>,
}

/// A temporary mount, undone when dropped.
struct Mounted {
    target: PathBuf,
}

/// The value of `name=` among mount options.
fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
}

/// The directories an overlay or bind mount reads from, topmost first.
pub fn lower_dirs(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else { return Vec::new() };
    match mount.r#type.as_str() {
        "bind" => vec![PathBuf::from(&mount.source)],
        "overlay" => option(mount, "lowerdir").map(split_lower).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Splits at colons that no backslash protects.
fn split_lower(text: &str) -> Vec<PathBuf> {
    let mut dirs = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let last = dirs.last_mut().expect("it starts with one and only grows");
        match c {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => dirs.push(String::new()),
            c => {
                last.push(c);
                escaped = false;
            }
        }
    }
    dirs.into_iter().filter(|d| !d.is_empty()).map(PathBuf::from).collect()
}

/// An overlay's upper directory.
pub fn upper_dir(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    (mount.r#type == "overlay").then(|| option(mount, "upperdir").map(PathBuf::from)).flatten()
}

/// Where to extract a layer so that it appears in `mounts`.
///
/// # Errors
/// They cannot be mounted.
pub fn place(mounts: &[Mount], scratch: &Path) -> Result<Place, Error> {
    if let Some(directory) = upper_dir(mounts) {
        let userxattr = mounts.iter().any(|m| m.options.iter().any(|o| o == "userxattr"));
        let lowers = lower_dirs(mounts);
        return Ok(Place { directory, whiteouts: Whiteouts::Overlay { userxattr }, lowers, mounted: None });
    }
    let whiteouts = Whiteouts::Remove;
    if let [mount] = mounts
        && mount.r#type == "bind"
        && mount.target.is_empty()
    {
        let directory = PathBuf::from(&mount.source);
        return Ok(Place { directory, whiteouts, lowers: Vec::new(), mounted: None });
    }
    let mounted = Mounted::new(mounts, scratch)?;
    Ok(Place { directory: mounted.target.clone(), whiteouts, lowers: Vec::new(), mounted: Some(mounted) })
}

/// A directory that shows what `mounts` show, for reading.
///
/// # Errors
/// They cannot be mounted.
pub fn readable(mounts: &[Mount], scratch: &Path) -> Result<Place, Error> {
    if let [mount] = mounts
        && mount.r#type == "bind"
    {
        return place(mounts, scratch);
    }
    let mounted = Mounted::new(mounts, scratch)?;
    let (directory, lowers) = (mounted.target.clone(), Vec::new());
    Ok(Place { directory, whiteouts: Whiteouts::Keep, lowers, mounted: Some(mounted) })
}

impl Place {
    /// Undoes a temporary mount now, with an error if that fails.
    ///
    /// # Errors
    /// Something keeps it busy.
    pub fn close(mut self) -> Result<(), Error> {
        match self.mounted.take() {
            Some(mounted) => mounted.unmount().map_err(|err| Error::internal("unmount", err)),
            None => Ok(()),
        }
    }
}

impl Mounted {
    fn new(mounts: &[Mount], scratch: &Path) -> Result<Self, Error> {
        let io = |err: std::io::Error| Error::internal("mount", err);
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|err| Error::internal("mount", err))?;
        let target = scratch.join(format!("mount-{}", hex::encode(random)));
        std::fs::create_dir_all(&target).map_err(io)?;
        let mounted = Self { target };
        for mount in mounts {
            let at = match mount.target.trim_start_matches('/') {
                "" => mounted.target.clone(),
                below => mounted.target.join(below),
            };
            sys::mount::mount(&mount.r#type, &mount.source, &mount.options, &at).map_err(io)?;
        }
        Ok(mounted)
    }

    fn unmount(&self) -> std::io::Result<()> {
        sys::mount::detach_below(&self.target)?;
        if sys::mount::is_mount_point(&self.target)? {
            sys::mount::detach(&self.target)?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(err) = self.unmount() {
            tracing::warn!(target = %self.target.display(), %err, "a temporary mount is left behind");
            return;
        }
        let _ = std::fs::remove_dir(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_written_through_its_upper_directory() {
        let mount = |kind: &str, options: &[&str]| Mount {
            r#type: kind.into(),
            source: "/s".into(),
            target: String::new(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let overlay = [mount("overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a\\:x"])];
        let place_ = place(&overlay, Path::new("/nonexistent")).unwrap();
        assert_eq!(place_.directory, Path::new("/u"));
        assert_eq!(place_.lowers, [PathBuf::from("/b"), PathBuf::from("/a:x")]);
        assert_eq!(place_.whiteouts, Whiteouts::Overlay { userxattr: false });
        let bind = place(&[mount("bind", &["rw"])], Path::new("/nonexistent")).unwrap();
        assert_eq!((bind.directory.as_path(), bind.whiteouts), (Path::new("/s"), Whiteouts::Remove));
    }
}
