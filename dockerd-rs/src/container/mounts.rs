//! What is mounted in a container: each destination once, with where it comes from. How clients write it down.
//!
//! Reading is pure: whether a path or a volume is there is found out by create and start.

mod parse;
mod tmpfs;

use serde::{Deserialize, Serialize};

use docker_api::mount::MountPoint as Shown;

pub use self::parse::{
    NewVolume as NewVolumeAsked, Wanted, from_bind, from_mount, mode_is_writable, split_volumes_from,
};
pub use self::tmpfs::{of_mount as tmpfs_of_mount, options as tmpfs_options};

/// A mount of a container as its record has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where it comes from.
    pub source: Source,
    /// Where it is in the container; clean and absolute.
    pub destination: String,
    /// Whether the container may write.
    pub writable: bool,
    /// The mode as the client gave it (`ro,z`).
    pub mode: String,
    /// How mounts travel; empty for what has none.
    pub propagation: String,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// A path of the host.
    Bind {
        /// The path.
        path: String,
        /// Make it (as a directory) when it is missing at start: what `-v` does and `--mount` does not.
        create: bool,
        /// Bind without what is mounted below it.
        non_recursive: bool,
        /// How far read-only reaches.
        read_only: ReadOnly,
    },
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Its driver.
        driver: String,
        /// Whether nobody gave it a name: it goes when the container is removed with its volumes.
        anonymous: bool,
        /// Copy what the image has at the destination into it while it is empty.
        copy: bool,
        /// A directory in it; empty is all of it.
        subpath: String,
        /// Where it is on the host, for inspect; the volume's driver has the last word at start.
        path: String,
    },
    /// A file system in memory.
    Tmpfs {
        /// Options for mount(2), comma separated.
        options: String,
    },
    /// An image, read-only.
    Image {
        /// As the client named it.
        reference: String,
        /// The image that was found.
        id: String,
        /// A directory in it; empty is all of it.
        subpath: String,
    },
}

impl Default for Source {
    fn default() -> Self {
        Self::Tmpfs { options: String::new() }
    }
}

/// How far read-only reaches below a bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOnly {
    /// To all below where the kernel can, else to the top.
    #[default]
    AsPossible,
    /// To the top only.
    Top,
    /// To all below, or the start fails.
    Recursive,
}

/// An absolute path without `.`, `..` and doubled or trailing slashes. It is only ever resolved inside a container's root.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

impl MountPoint {
    /// As inspect and list show it.
    pub fn shown(&self) -> Shown {
        let mut shown = Shown {
            destination: self.destination.clone(),
            mode: self.mode.clone(),
            rw: self.writable,
            propagation: self.propagation.clone(),
            ..Shown::default()
        };
        match &self.source {
            Source::Bind { path, .. } => {
                shown.kind = "bind".into();
                shown.source.clone_from(path);
            }
            Source::Volume { name, driver, path, .. } => {
                shown.kind = "volume".into();
                shown.name.clone_from(name);
                shown.driver.clone_from(driver);
                shown.source.clone_from(path);
            }
            Source::Tmpfs { .. } => shown.kind = "tmpfs".into(),
            Source::Image { reference, .. } => {
                shown.kind = "image".into();
                shown.source.clone_from(reference);
            }
        }
        shown
    }

    /// The volume's name, if it is one.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            Source::Volume { name, .. } => Some(name),
            Source::Bind { .. } | Source::Tmpfs { .. } | Source::Image { .. } => None,
        }
    }
}
