//! What a directory takes on disk.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::meta::records::Usage;

/// Blocks and inodes of `directory` and all below it; hard links count once.
///
/// # Errors
/// A directory cannot be read. What vanishes meanwhile is not counted.
pub fn of(directory: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut count = |metadata: &std::fs::Metadata| {
        if !metadata.is_dir() && metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        usage.inodes += 1;
        usage.size_bytes += i64::try_from(metadata.blocks().saturating_mul(512)).unwrap_or(i64::MAX);
    };
    count(&std::fs::symlink_metadata(directory)?);
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => {
                    count(&metadata);
                    if metadata.is_dir() {
                        open.push(entry.path());
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_once_and_directories_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![1; 8192]).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("c")).unwrap();
        let usage = of(dir.path()).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!(usage.size_bytes >= 8192);
    }
}
