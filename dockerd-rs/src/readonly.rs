//! A data root on a disk that became read-only.
//!
//! An engine that refused to start would leave its operator blind. So it starts over a layer of this boot: what is there can be looked at,
//! containers that run can be stopped, and every change is gone with the engine. It says so, loudly.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

/// Where the layer is, below the exec root.
const LAYER: &str = "read-only";

/// The data root to use instead of `data_root`, when that is on a read-only file system; `None` when it is not.
///
/// # Errors
/// The layer cannot be mounted.
pub fn layer_over(data_root: &Path, exec_root: &Path) -> io::Result<Option<PathBuf>> {
    let layer = std::fs::canonicalize(exec_root)?.join(LAYER);
    let root = layer.join("root");
    let read_only = match rustix::fs::statvfs(data_root) {
        Ok(found) => found.f_flag.contains(StatVfsMountFlags::RDONLY),
        // Not there yet: making it will tell.
        Err(_) => false,
    };
    if !read_only {
        // Of an earlier start; the disk has been mended since.
        take_away(exec_root)?;
        return Ok(None);
    }
    if !sys::mount::is_mount_point(&root)? {
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        for dir in [&root, &upper, &work] {
            std::fs::create_dir_all(dir)?;
        }
        let lower = std::fs::canonicalize(data_root)?;
        let options = [
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        sys::mount::mount("overlay", "overlay", &options, &root)?;
    }
    Ok(Some(root))
}

/// Takes the layer away, with every change in it. Without one that is nothing.
///
/// # Errors
/// It cannot be unmounted or removed.
pub fn take_away(exec_root: &Path) -> io::Result<()> {
    let layer = std::fs::canonicalize(exec_root)?.join(LAYER);
    if layer.exists() {
        sys::mount::detach_below(&layer)?;
        std::fs::remove_dir_all(&layer)?;
    }
    Ok(())
}
