//! What a container changed in its file system: read off the overlay's upper directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use layer::RootDir;
use layer::root::{file_type, list};
use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;

use super::record::Record;
use super::rootfs::blocking;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// `FilesystemChange` of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// From the root.
    pub path: String,
    /// 0 is changed, 1 new, 2 gone.
    pub kind: u8,
}

/// The changes by path; `None` when there are none.
///
/// # Errors
/// The container's layers cannot be read.
pub async fn changes(engine: &Engine, record: &Record) -> Result<Option<Vec<Change>>> {
    let mounts = engine.images.rootfs_mounts(&record.snapshot).await?;
    let [only] = mounts.as_slice() else { return Err(Error::system("root file system has no single mount")) };
    let option =
        |name: &str| only.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let upper = match option("upperdir") {
        Some(upper) => upper.to_owned(),
        // A container without layers is its own upper directory.
        None => only.source.clone(),
    };
    let lowers: Vec<String> =
        option("lowerdir").map(|lowers| lowers.split(':').map(str::to_owned).collect()).unwrap_or_default();
    let found = blocking(move || walk(&upper, &lowers)).await?;
    let found =
        found.map_err(|err| Error::system(format!("read changes: {}", crate::error::sys_text(&err))))?;
    let changes: Vec<Change> = found
        .into_iter()
        .map(|(path, kind)| Change { path: format!("/{}", String::from_utf8_lossy(&path)), kind })
        .collect();
    Ok((!changes.is_empty()).then_some(changes))
}

fn walk(upper: &str, lowers: &[String]) -> std::io::Result<BTreeMap<Vec<u8>, u8>> {
    let upper = RootDir::open(Path::new(upper))?;
    let lowers: Vec<RootDir> =
        lowers.iter().map(|lower| RootDir::open(Path::new(lower))).collect::<Result<_, _>>()?;
    let mut found = BTreeMap::new();
    below(&upper, &lowers, b"", &mut found)?;
    Ok(found)
}

fn below(
    upper: &RootDir,
    lowers: &[RootDir],
    dir: &[u8],
    found: &mut BTreeMap<Vec<u8>, u8>,
) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let opened = match upper.open_at(dir, flags, Mode::empty()) {
        Ok(opened) => opened,
        // It went away meanwhile.
        Err(_) => return Ok(()),
    };
    use std::os::fd::AsFd;
    for name in list(opened.as_fd())? {
        let mut path = dir.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let Ok(stat) = upper.stat(&path) else { continue };
        let kind = file_type(&stat);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            found.insert(path, 2);
            continue;
        }
        found.insert(path.clone(), if exists(lowers, &path) { 0 } else { 1 });
        if kind == FileType::Directory {
            below(upper, lowers, &path, found)?;
        }
    }
    Ok(())
}

/// Whether the layers below show something at `path`. A whiteout or a file in the way hides what is further down.
fn exists(lowers: &[RootDir], path: &[u8]) -> bool {
    for lower in lowers {
        let mut prefix = Vec::new();
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        for (nth, part) in parts.iter().enumerate() {
            if nth > 0 {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(part);
            let stat = match rustix::fs::statat(
                lower,
                OsStr::from_bytes(&prefix),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            ) {
                Ok(stat) => stat,
                Err(_) => break,
            };
            let kind = file_type(&stat);
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                return false;
            }
            if nth + 1 == parts.len() {
                return true;
            }
            if kind != FileType::Directory {
                return false;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_changed_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["upper/data", "upper/newdir", "lower1", "lower2/data", "lower2/etc"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::write(at("upper/data/new"), "").unwrap();
        std::fs::write(at("lower2/data/old"), "").unwrap();
        std::fs::write(at("upper/data/old"), "").unwrap();
        let text = |path: &str| at(path).display().to_string();
        let found = walk(&text("upper"), &[text("lower1"), text("lower2")]).unwrap();
        let shown: Vec<(String, u8)> =
            found.into_iter().map(|(path, kind)| (String::from_utf8(path).unwrap(), kind)).collect();
        let expected = [("data", 0), ("data/new", 1), ("data/old", 0), ("newdir", 1)];
        assert_eq!(shown, expected.map(|(path, kind)| (path.to_owned(), kind)));
    }
}
