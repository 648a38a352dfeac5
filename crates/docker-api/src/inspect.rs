//! A container as inspect and list show it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::common::{Addr, MacAddress, Port, is_empty, is_zero, time};
use crate::container::Config;
use crate::endpoint::EndpointSettings;
use crate::host_config::{HostConfig, PortBinding};
use crate::mount::MountPoint;

/// `ContainerState` of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerState {
    /// One word: `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
    pub status: String,
    /// Also while paused and while waiting for a restart.
    pub running: bool,
    /// Frozen.
    pub paused: bool,
    /// Waiting for its next start.
    pub restarting: bool,
    /// Whether the last run met the OOM killer.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Could not be removed.
    pub dead: bool,
    /// The first process, in the host's numbers; 0 when there is none.
    pub pid: i64,
    /// Of the last run.
    pub exit_code: i64,
    /// Why the last start failed.
    pub error: String,
    /// The last start.
    #[serde(with = "time")]
    pub started_at: Option<Timestamp>,
    /// The last end.
    #[serde(with = "time")]
    pub finished_at: Option<Timestamp>,
    /// What the health checks say, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// `Health` of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: i64,
    /// The last few checks, oldest first.
    pub log: Option<Vec<HealthcheckResult>>,
}

/// One check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthcheckResult {
    /// When it began.
    #[serde(with = "time")]
    pub start: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "time")]
    pub end: Option<Timestamp>,
    /// 0 is healthy; -1 means it could not run.
    pub exit_code: i64,
    /// The first 4096 bytes of its output.
    pub output: String,
}

/// `ContainerInspectResponse` of the API. What only some versions have is an `Option`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The image's id.
    pub image: String,
    /// A file on the host; empty before the first start.
    pub resolv_conf_path: String,
    /// A file on the host; empty before the first start.
    pub hostname_path: String,
    /// A file on the host; empty before the first start.
    pub hosts_path: String,
    /// A file on the host; empty before the first start.
    pub log_path: String,
    /// With a leading slash.
    pub name: String,
    /// Restarts by policy.
    pub restart_count: u32,
    /// The storage driver.
    pub driver: String,
    /// `linux`.
    pub platform: String,
    /// SELinux.
    pub mount_label: String,
    /// SELinux.
    pub process_label: String,
    /// AppArmor.
    pub app_armor_profile: String,
    /// Running execs.
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    /// How the host runs it.
    pub host_config: HostConfig,
    /// Until API 1.51.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph_driver: Option<GraphDriver>,
    /// Since API 1.52.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Bytes in the writable layer, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    /// Bytes in the whole root file system, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
    /// What is mounted.
    pub mounts: Vec<MountPoint>,
    /// What it is.
    pub config: Config,
    /// Where it is in the networks.
    pub network_settings: Network,
    /// The manifest it was made from; since API 1.48.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_manifest_descriptor: Option<ManifestDescriptor>,
}

/// The storage driver, as older versions show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GraphDriver {
    /// Of the driver; null for snapshotters.
    pub data: Option<BTreeMap<String, String>>,
    /// Its name.
    pub name: String,
}

/// Where the root file system is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// The root file system.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
}

impl Storage {
    /// In a snapshot of this snapshotter.
    pub fn of(snapshotter: &str) -> Self {
        Self { root_fs: RootFs { snapshot: Snapshot { name: snapshotter.to_owned() } } }
    }
}

/// A root file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RootFs {
    /// Its snapshot.
    pub snapshot: Snapshot,
}

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Snapshot {
    /// The snapshotter.
    pub name: String,
}

/// A container's place in the networks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Network {
    /// Its sandbox; empty while it does not run.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// Where its namespace is bound.
    pub sandbox_key: String,
    /// Ports by container port while it runs; one that is not published is null.
    pub ports: BTreeMap<Port, Option<Vec<PortBinding>>>,
    /// The default bridge's endpoint again, until API 1.51 and only for containers on it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub legacy: Option<LegacyNetwork>,
    /// Endpoints by network name.
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// The default bridge's endpoint where older clients look for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegacyNetwork {
    /// As in the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// As in the endpoint.
    #[serde(rename = "Gateway")]
    pub gateway: Addr,
    /// As in the endpoint.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Addr,
    /// As in the endpoint.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: i64,
    /// As in the endpoint.
    #[serde(rename = "IPAddress")]
    pub ip_address: Addr,
    /// As in the endpoint.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: i64,
    /// As in the endpoint.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: Addr,
    /// As in the endpoint.
    #[serde(rename = "MacAddress")]
    pub mac_address: MacAddress,
}

impl LegacyNetwork {
    /// A copy of the endpoint's.
    pub fn of(endpoint: &EndpointSettings) -> Self {
        Self {
            endpoint_id: endpoint.endpoint_id.clone(),
            gateway: endpoint.gateway,
            global_ipv6_address: endpoint.global_ipv6_address,
            global_ipv6_prefix_len: endpoint.global_ipv6_prefix_len,
            ip_address: endpoint.ip_address,
            ip_prefix_len: endpoint.ip_prefix_len,
            ipv6_gateway: endpoint.ipv6_gateway,
            mac_address: endpoint.mac_address,
        }
    }
}

/// The manifest a container was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ManifestDescriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Bytes.
    pub size: i64,
    /// Its annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What a manifest is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `amd64`, for instance.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Windows only.
    #[serde(rename = "os.version", skip_serializing_if = "is_zero")]
    pub os_version: String,
    /// `v8`, for instance.
    #[serde(skip_serializing_if = "is_zero")]
    pub variant: String,
}

/// `ContainerSummary` of the API: a line of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Summary {
    /// 64 hex digits.
    pub id: String,
    /// Its own and those of legacy links, with leading slashes.
    pub names: Vec<String>,
    /// The image as the client named it, or its id when that name is another image's now.
    pub image: String,
    /// The image's id.
    #[serde(rename = "ImageID")]
    pub image_id: String,
    /// Since API 1.48.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_manifest_descriptor: Option<ManifestDescriptor>,
    /// The command as one line.
    pub command: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Published and exposed ports.
    pub ports: Vec<SummaryPort>,
    /// Bytes in the writable layer, when asked for and not 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_rw: u64,
    /// Bytes in the root file system, when asked for.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_root_fs: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// One word.
    pub state: String,
    /// For people: `Up 2 minutes (healthy)`.
    pub status: String,
    /// The network mode, and since API 1.46 annotations.
    pub host_config: SummaryHost,
    /// Since API 1.52.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<SummaryHealth>,
    /// Endpoints.
    pub network_settings: SummaryNetworks,
    /// What is mounted.
    pub mounts: Vec<MountPoint>,
}

/// A port in the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct SummaryPort {
    /// The host's address.
    #[serde(rename = "IP")]
    pub ip: Addr,
    /// The container's port.
    #[serde(rename = "PrivatePort")]
    pub private_port: u16,
    /// The host's port.
    #[serde(rename = "PublicPort", skip_serializing_if = "is_zero")]
    pub public_port: u16,
    /// The protocol.
    #[serde(rename = "Type")]
    pub kind: String,
}

/// `HostConfig` in the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SummaryHost {
    /// The network mode.
    pub network_mode: String,
    /// Since API 1.46.
    #[serde(skip_serializing_if = "is_empty")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Health in the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SummaryHealth {
    /// `none`, `starting`, `healthy`, `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: i64,
}

/// Endpoints in the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SummaryNetworks {
    /// By network name.
    pub networks: BTreeMap<String, EndpointSettings>,
}
