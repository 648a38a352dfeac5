//! How the host runs a container: `HostConfig`, with `Resources` in the same object as the API has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{Addr, Port, is_empty, is_zero};
use crate::mount::Mount;

/// Host ports by container port. A container port without bindings is published where the engine likes.
pub type PortMap = BTreeMap<Port, Option<Vec<PortBinding>>>;

/// `HostConfig` of the API. The body of `POST /containers/{id}/update` is read as this too: its members are a subset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    /// `source:target[:mode]`.
    pub binds: Option<Vec<String>>,
    /// Where the client keeps the id; of no meaning to the engine.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// Where the output goes.
    pub log_config: LogConfig,
    /// `bridge`, `host`, `none`, `container:x`, or a network.
    pub network_mode: String,
    /// Published ports.
    pub port_bindings: Option<PortMap>,
    /// What to do when the container ends.
    pub restart_policy: RestartPolicy,
    /// Whether the container goes when it ends.
    pub auto_remove: bool,
    /// The driver of volumes `binds` creates.
    pub volume_driver: String,
    /// `container[:mode]` whose mounts this one gets too.
    pub volumes_from: Option<Vec<String>>,
    /// Height and width of the first terminal.
    pub console_size: [u64; 2],
    /// Passed on in the runtime specification.
    #[serde(skip_serializing_if = "is_empty")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Capabilities to add.
    pub cap_add: Option<Vec<String>>,
    /// Capabilities to take away.
    pub cap_drop: Option<Vec<String>>,
    /// `private` or `host`.
    pub cgroupns_mode: String,
    /// Name servers.
    pub dns: Option<Vec<Addr>>,
    /// Options of resolv.conf.
    pub dns_options: Option<Vec<String>>,
    /// Search domains.
    pub dns_search: Option<Vec<String>>,
    /// `name:address` lines of /etc/hosts.
    pub extra_hosts: Option<Vec<String>>,
    /// More groups of the process.
    pub group_add: Option<Vec<String>>,
    /// `none`, `private`, `shareable`, `host`, `container:x`.
    pub ipc_mode: String,
    /// Windows only, and long gone.
    pub cgroup: String,
    /// `container:alias` of legacy links.
    pub links: Option<Vec<String>>,
    /// Of the process.
    pub oom_score_adj: i64,
    /// Empty, `host`, `container:x`.
    pub pid_mode: String,
    /// All capabilities and devices.
    pub privileged: bool,
    /// Publish every exposed port.
    pub publish_all_ports: bool,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// `seccomp=…`, `no-new-privileges`, `label=…`, `apparmor=…`, `systempaths=unconfined`, `writable-cgroups`.
    pub security_opt: Option<Vec<String>>,
    /// Options of the snapshot.
    #[serde(skip_serializing_if = "is_empty")]
    pub storage_opt: Option<BTreeMap<String, String>>,
    /// tmpfs mounts and their options by target.
    #[serde(skip_serializing_if = "is_empty")]
    pub tmpfs: Option<BTreeMap<String, String>>,
    /// Empty or `host`.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// Empty or `host`.
    pub userns_mode: String,
    /// Bytes of /dev/shm.
    pub shm_size: i64,
    /// Kernel settings of the container's namespaces.
    #[serde(skip_serializing_if = "is_empty")]
    pub sysctls: Option<BTreeMap<String, String>>,
    /// The OCI runtime's name.
    pub runtime: String,
    /// Windows only.
    pub isolation: String,

    /// Relative CPU weight; 0 is the default.
    pub cpu_shares: i64,
    /// Bytes; 0 is no limit.
    pub memory: i64,
    /// CPUs in units of 10⁻⁹.
    pub nano_cpus: i64,
    /// The parent cgroup.
    pub cgroup_parent: String,
    /// 10 to 1000; 0 is the default.
    pub blkio_weight: u16,
    /// Weights by device.
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    /// Bytes per second.
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    /// Bytes per second.
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    /// Operations per second.
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    /// Operations per second.
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds per period; -1 is no limit.
    pub cpu_quota: i64,
    /// Microseconds.
    pub cpu_realtime_period: i64,
    /// Microseconds per period.
    pub cpu_realtime_runtime: i64,
    /// `0-3,5`.
    pub cpuset_cpus: String,
    /// `0,1`.
    pub cpuset_mems: String,
    /// Device nodes.
    pub devices: Option<Vec<DeviceMapping>>,
    /// Rules of the devices cgroup: `c 1:3 rwm`.
    pub device_cgroup_rules: Option<Vec<String>>,
    /// Devices asked of a driver.
    pub device_requests: Option<Vec<DeviceRequest>>,
    /// Only clients older than API 1.42 know it.
    #[serde(rename = "KernelMemory", skip_serializing_if = "is_zero")]
    pub kernel_memory: i64,
    /// Bytes.
    pub memory_reservation: i64,
    /// Memory and swap together, in bytes; -1 is no limit.
    pub memory_swap: i64,
    /// 0 to 100; -1 or absent is the host's.
    pub memory_swappiness: Option<i64>,
    /// Whether the OOM killer leaves the container alone.
    pub oom_kill_disable: Option<bool>,
    /// Processes and threads; 0 and less is no limit.
    pub pids_limit: Option<i64>,
    /// Resource limits of the process.
    pub ulimits: Option<Vec<Ulimit>>,
    /// Windows only.
    pub cpu_count: i64,
    /// Windows only.
    pub cpu_percent: i64,
    /// Windows only.
    #[serde(rename = "IOMaximumIOps")]
    pub io_maximum_iops: u64,
    /// Windows only.
    #[serde(rename = "IOMaximumBandwidth")]
    pub io_maximum_bandwidth: u64,

    /// Mounts in the newer form.
    #[serde(skip_serializing_if = "is_empty")]
    pub mounts: Option<Vec<Mount>>,
    /// Paths hidden from the container.
    pub masked_paths: Option<Vec<String>>,
    /// Paths the container cannot write.
    pub readonly_paths: Option<Vec<String>>,
    /// Whether a small init reaps and forwards signals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
}

/// Where output goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogConfig {
    /// The driver.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Its options.
    pub config: Option<BTreeMap<String, String>>,
}

/// What happens when a container ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// `no`, `always`, `on-failure`, `unless-stopped`; empty is `no`.
    pub name: String,
    /// Of `on-failure`; 0 is no limit.
    pub maximum_retry_count: i64,
}

/// One host address of a published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortBinding {
    /// The host's address; absent is all of them.
    pub host_ip: Addr,
    /// A port, a range, or empty for any.
    pub host_port: String,
}

/// A weight for a block device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WeightDevice {
    /// The device's path.
    pub path: String,
    /// Its weight.
    pub weight: u16,
}

/// A limit for a block device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ThrottleDevice {
    /// The device's path.
    pub path: String,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// A device node of the host inside the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DeviceMapping {
    /// On the host; a directory stands for every device in it.
    pub path_on_host: String,
    /// In the container.
    pub path_in_container: String,
    /// A subset of `rwm`.
    pub cgroup_permissions: String,
}

/// Devices asked of a driver (`--gpus`, CDI).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DeviceRequest {
    /// The driver, `cdi` for instance.
    pub driver: String,
    /// How many; -1 is all.
    pub count: i64,
    /// Which.
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Option<Vec<String>>,
    /// Alternatives of sets of capabilities.
    pub capabilities: Option<Vec<Vec<String>>>,
    /// For the driver.
    pub options: Option<BTreeMap<String, String>>,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Ulimit {
    /// `nofile`, for instance.
    pub name: String,
    /// The most the process may raise it to; -1 is no limit.
    pub hard: i64,
    /// What applies; -1 is no limit.
    pub soft: i64,
}
