//! Limits: from `HostConfig` to cgroups.

use docker_api::HostConfig;
use docker_api::host_config::{ThrottleDevice as AskedThrottle, WeightDevice as AskedWeight};
use spec::devices;
use spec::model::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

use crate::config::Config;
use crate::container::record::Record;
use crate::error::{Error, Result, sys_text};

/// Microseconds of the period CPU shares of `--cpus` are given in.
const PERIOD: i64 = 100_000;

/// Where containers' cgroups are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupPlace {
    /// The cgroup above; empty is the driver's own.
    pub parent: String,
    /// Whether systemd makes the cgroups.
    pub systemd: bool,
}

impl CgroupPlace {
    /// As the engine was told.
    pub fn of(config: &Config) -> Self {
        Self {
            parent: config.cgroup_parent.clone(),
            systemd: config.cgroup_driver.as_deref() == Some("systemd"),
        }
    }

    /// Removes the parent cgroup in every hierarchy where nobody is below it any more. The kernel refuses where somebody is, which is meant.
    pub fn leave(&self) {
        if self.systemd {
            return;
        }
        let parent = if self.parent.is_empty() { "docker" } else { self.parent.trim_matches('/') };
        for directory in sys::cgroup::everywhere(std::path::Path::new(&format!("/{parent}"))) {
            let _ = std::fs::remove_dir(directory);
        }
    }

    /// The cgroup of a container, as the specification names it.
    pub fn path(&self, record: &Record) -> String {
        let asked = record.host_config.cgroup_parent.as_str();
        let parent = if asked.is_empty() { &self.parent } else { asked };
        if self.systemd {
            let slice = if parent.is_empty() { "system.slice" } else { parent };
            return format!("{slice}:docker:{}", record.id);
        }
        let parent = if parent.is_empty() { "docker" } else { parent };
        // What leads up is cut off: the cgroup stays below the mount.
        let parts: Vec<&str> =
            parent.split('/').filter(|part| !part.is_empty() && *part != "." && *part != "..").collect();
        format!("/{}/{}", parts.join("/"), record.id).replace("//", "/")
    }
}

/// The limits a container asks for. Also what `update` sends to a running one.
///
/// # Errors
/// A block device is not there.
pub fn resources(host: &HostConfig) -> Result<Resources> {
    Ok(Resources {
        memory: Some(memory(host)),
        cpu: cpu(host),
        pids: host.pids_limit.filter(|limit| *limit > 0).map(|limit| Pids { limit }),
        block_io: block_io(host)?,
        ..Resources::default()
    })
}

fn memory(host: &HostConfig) -> Memory {
    let positive = |value: i64| (value > 0).then_some(value);
    Memory {
        limit: positive(host.memory),
        reservation: positive(host.memory_reservation),
        swap: (host.memory_swap != 0).then_some(host.memory_swap),
        swappiness: host.memory_swappiness.and_then(|value| u64::try_from(value).ok()),
        disable_oom_killer: host.oom_kill_disable,
    }
}

fn cpu(host: &HostConfig) -> Option<Cpu> {
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let mut cpu = Cpu {
        shares: unsigned(host.cpu_shares),
        quota: (host.cpu_quota != 0).then_some(host.cpu_quota),
        period: unsigned(host.cpu_period),
        realtime_runtime: (host.cpu_realtime_runtime != 0).then_some(host.cpu_realtime_runtime),
        realtime_period: unsigned(host.cpu_realtime_period),
        cpus: host.cpuset_cpus.clone(),
        mems: host.cpuset_mems.clone(),
    };
    if host.nano_cpus > 0 {
        cpu.period = u64::try_from(PERIOD).ok();
        cpu.quota = Some(host.nano_cpus.saturating_mul(PERIOD) / 1_000_000_000);
    }
    (cpu != Cpu::default()).then_some(cpu)
}

fn block_io(host: &HostConfig) -> Result<Option<BlockIo>> {
    let io = BlockIo {
        weight: (host.blkio_weight > 0).then_some(host.blkio_weight),
        weight_device: weights(host.blkio_weight_device.as_deref().unwrap_or_default())?,
        throttle_read_bps_device: throttles(host.blkio_device_read_bps.as_deref())?,
        throttle_write_bps_device: throttles(host.blkio_device_write_bps.as_deref())?,
        throttle_read_iops_device: throttles(host.blkio_device_read_iops.as_deref())?,
        throttle_write_iops_device: throttles(host.blkio_device_write_iops.as_deref())?,
    };
    Ok((io != BlockIo::default()).then_some(io))
}

fn weights(asked: &[AskedWeight]) -> Result<Vec<WeightDevice>> {
    asked
        .iter()
        .map(|device| {
            let (major, minor) = numbers(&device.path)?;
            Ok(WeightDevice { major, minor, weight: device.weight })
        })
        .collect()
}

fn throttles(asked: Option<&[AskedThrottle]>) -> Result<Vec<ThrottleDevice>> {
    asked
        .unwrap_or_default()
        .iter()
        .map(|device| {
            let (major, minor) = numbers(&device.path)?;
            Ok(ThrottleDevice { major, minor, rate: device.rate })
        })
        .collect()
}

fn numbers(path: &str) -> Result<(i64, i64)> {
    devices::numbers(path).map_err(|err| Error::system(format!("stat {path}: {}", sys_text(&err))))
}
