//! Mounts: the newer form a client asks with, and what inspect shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{is_empty, is_zero};

/// `Mount` of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`, `image`; others are refused later.
    #[serde(rename = "Type", skip_serializing_if = "is_zero")]
    pub kind: String,
    /// A host path, a volume or an image.
    #[serde(skip_serializing_if = "is_zero")]
    pub source: String,
    /// Where in the container.
    #[serde(skip_serializing_if = "is_zero")]
    pub target: String,
    /// Whether the container can only read it.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_only: bool,
    /// Of Docker Desktop; `default`, `consistent`, `cached`, `delegated`.
    #[serde(skip_serializing_if = "is_zero")]
    pub consistency: String,
    /// For `bind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// For `volume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// For `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_options: Option<ImageOptions>,
    /// For `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
    /// For `cluster`, which the engine has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_options: Option<ClusterOptions>,
}

/// How a host path is bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BindOptions {
    /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`.
    #[serde(skip_serializing_if = "is_zero")]
    pub propagation: String,
    /// Without what is mounted below the source.
    #[serde(skip_serializing_if = "is_zero")]
    pub non_recursive: bool,
    /// Makes the source if it is missing.
    #[serde(skip_serializing_if = "is_zero")]
    pub create_mountpoint: bool,
    /// Read-only without what is mounted below the source.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_only_non_recursive: bool,
    /// Read-only with all below, or not at all.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_only_force_recursive: bool,
}

/// How a volume is made and bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VolumeOptions {
    /// Do not copy what the image has at the target into an empty volume.
    #[serde(skip_serializing_if = "is_zero")]
    pub no_copy: bool,
    /// Of a new volume.
    #[serde(skip_serializing_if = "is_empty")]
    pub labels: Option<BTreeMap<String, String>>,
    /// A directory in the volume.
    #[serde(skip_serializing_if = "is_zero")]
    pub subpath: String,
    /// Of a new volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<DriverConfig>,
}

/// The driver of a new volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DriverConfig {
    /// Its name.
    #[serde(skip_serializing_if = "is_zero")]
    pub name: String,
    /// Its options.
    #[serde(skip_serializing_if = "is_empty")]
    pub options: Option<BTreeMap<String, String>>,
}

/// How an image is mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageOptions {
    /// A directory in the image.
    #[serde(skip_serializing_if = "is_zero")]
    pub subpath: String,
}

/// How a tmpfs is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TmpfsOptions {
    /// 0 is the kernel's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: i64,
    /// Permission bits of its root.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: u32,
    /// More options: `["noexec"]`, `["name", "value"]`.
    #[serde(skip_serializing_if = "is_empty")]
    pub options: Option<Vec<Vec<String>>>,
}

/// Of cluster volumes: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterOptions {}

/// A mount of a container as inspect and list show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`, `image`.
    #[serde(rename = "Type", skip_serializing_if = "is_zero")]
    pub kind: String,
    /// The volume.
    #[serde(skip_serializing_if = "is_zero")]
    pub name: String,
    /// The host path.
    pub source: String,
    /// The container's path.
    pub destination: String,
    /// The volume's driver.
    #[serde(skip_serializing_if = "is_zero")]
    pub driver: String,
    /// The mode as given.
    pub mode: String,
    /// Whether the container may write.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// How mounts travel.
    pub propagation: String,
}
