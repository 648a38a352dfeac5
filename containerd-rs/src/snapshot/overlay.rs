//! The overlayfs snapshotter: each snapshot keeps one layer, and mounts stack them.
//!
//! `snapshots/<number>/fs` is the layer, `work` what the file system needs beside a layer that is written to. Nothing is mounted here: the
//! mounts are data that a shim or a client acts on.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use containerd_api::snapshots::Kind;
use containerd_api::types::Mount;

use super::Store;

/// Mount options this machine needs.
#[derive(Debug, Clone, Default)]
pub struct Options(Vec<String>);

impl Options {
    /// Asks the kernel.
    pub fn detect() -> Self {
        let mut options = Vec::new();
        // With an index, a layer shared by two mounts at once would be refused.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        // Without the rights over trusted attributes, whiteouts are kept in user attributes.
        if in_user_namespace() {
            options.push("userxattr".to_owned());
        }
        Self(options)
    }
}

/// Whether our root is not the machine's.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_ascii_whitespace();
    !matches!(
        (fields.next(), fields.next(), fields.next()),
        (Some("0"), Some("0"), Some("4294967295")) | (None, _, _)
    )
}

/// The layer of a snapshot.
pub fn upper(directory: &Path) -> PathBuf {
    directory.join("fs")
}

fn work(directory: &Path) -> PathBuf {
    directory.join("work")
}

/// Makes the directories of a new snapshot. The root of the file system keeps the owner and the mode it has in the parent's layer.
pub fn make(directory: &Path, kind: Kind, parent: Option<&Path>) -> io::Result<()> {
    let make = |path: &Path, mode: u32| {
        std::fs::DirBuilder::new().mode(mode).create(path)?;
        // Whatever the umask says.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    make(directory, 0o700)?;
    let upper = upper(directory);
    make(&upper, 0o755)?;
    if kind == Kind::Active {
        make(&work(directory), 0o711)?;
    }
    if let Some(parent) = parent {
        let metadata = std::fs::metadata(parent)?;
        if metadata.uid() != 0 || metadata.gid() != 0 {
            std::os::unix::fs::lchown(&upper, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        let mode = metadata.mode() & 0o7777;
        if mode != 0o755 {
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// How a snapshot is mounted on `parents`, topmost first.
pub(super) fn mounts(
    store: &Store,
    options: &Options,
    number: u64,
    kind: Kind,
    parents: &[u64],
) -> Vec<Mount> {
    let directory = store.directory(number);
    let bind = |source: PathBuf, access: &str| {
        vec![Mount {
            r#type: "bind".to_owned(),
            source: source.display().to_string(),
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        }]
    };
    let writable = kind == Kind::Active;
    match parents {
        [] => return bind(upper(&directory), if writable { "rw" } else { "ro" }),
        [only] if !writable => return bind(upper(&store.directory(*only)), "ro"),
        _ => {}
    }
    let mut list = Vec::with_capacity(5);
    if writable {
        list.push(format!("workdir={}", work(&directory).display()));
        list.push(format!("upperdir={}", upper(&directory).display()));
    }
    let lower: Vec<_> =
        parents.iter().map(|number| upper(&store.directory(*number)).display().to_string()).collect();
    list.push(format!("lowerdir={}", lower.join(":")));
    list.extend(options.0.iter().cloned());
    vec![Mount {
        r#type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options: list,
    }]
}
