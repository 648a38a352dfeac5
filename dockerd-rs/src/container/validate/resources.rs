//! Limits. Those the machine has not are taken out with a warning.

use docker_api::HostConfig;

use crate::container::limits::{self, Limits};
use crate::error::{Error, Result};

/// The least memory a container can have: 6 MiB.
const LEAST_MEMORY: i64 = 6 << 20;

/// Checks limits, at create and at update; gives the warnings.
///
/// # Errors
/// A refusal.
pub fn check_resources(host: &mut HostConfig, update: bool) -> Result<Vec<String>> {
    check_with(host, update, &Limits::of_machine())
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::invalid(text))
}

pub(super) fn check_with(host: &mut HostConfig, update: bool, machine: &Limits) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    memory(host, update, machine, &mut warnings)?;
    if host.pids_limit.is_some_and(|limit| limit > 0) && !machine.pids {
        warnings.push("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.".to_owned());
        host.pids_limit = None;
    }
    cpu(host, machine, &mut warnings)?;
    cpuset(host, machine, &mut warnings)?;
    block_io(host, machine, &mut warnings)?;
    Ok(warnings)
}

fn memory(host: &mut HostConfig, update: bool, machine: &Limits, warnings: &mut Vec<String>) -> Result<()> {
    if host.memory != 0 && host.memory < LEAST_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && !machine.memory {
        warnings.push("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.".into());
        host.memory = 0;
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap != -1 && !machine.swap {
        warnings.push("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.".into());
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 && !update {
        return refuse("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if let Some(swappiness) = host.memory_swappiness
        && swappiness != -1
    {
        if !(0..=100).contains(&swappiness) {
            return refuse(format!("Invalid value: {swappiness}, valid memory swappiness range is 0-100"));
        }
        if !machine.swappiness {
            warnings.push("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.".into());
            host.memory_swappiness = None;
        }
    }
    if host.memory_reservation != 0 && host.memory_reservation < LEAST_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory_reservation > 0 && !machine.reservation {
        warnings.push("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.".into());
        host.memory_reservation = 0;
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return refuse("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if host.oom_kill_disable == Some(true) {
        if !machine.oom_kill_disable {
            warnings.push("Your kernel does not support OomKillDisable. OomKillDisable discarded.".into());
            host.oom_kill_disable = None;
        } else if host.memory == 0 {
            warnings.push("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".into());
        }
    }
    Ok(())
}

fn cpu(host: &mut HostConfig, machine: &Limits, warnings: &mut Vec<String>) -> Result<()> {
    if host.nano_cpus != 0 && host.cpu_period != 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.nano_cpus != 0 && host.cpu_quota != 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    if host.nano_cpus != 0 {
        if !machine.cpu_cfs {
            return refuse(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
            );
        }
        let most = i64::try_from(machine.cpus).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
        if host.nano_cpus < 0 || host.nano_cpus > most {
            let cpus = machine.cpus;
            return refuse(format!(
                "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            ));
        }
    }
    if host.cpu_shares < 0 {
        return refuse(format!("invalid CPU shares ({}): value must be a positive integer", host.cpu_shares));
    }
    if host.cpu_shares > 0 && !machine.cpu_shares {
        warnings.push(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.".into(),
        );
        host.cpu_shares = 0;
    }
    if (host.cpu_period != 0 || host.cpu_quota != 0) && !machine.cpu_cfs {
        warnings.push("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.".into());
        (host.cpu_period, host.cpu_quota) = (0, 0);
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if (host.cpu_realtime_period != 0 || host.cpu_realtime_runtime != 0) && !machine.cpu_realtime {
        return refuse("Your kernel does not support CPU real-time scheduler");
    }
    if host.cpu_realtime_period != 0
        && host.cpu_realtime_runtime != 0
        && host.cpu_realtime_runtime > host.cpu_realtime_period
    {
        return refuse("cpu real-time runtime cannot be higher than cpu real-time period");
    }
    Ok(())
}

fn cpuset(host: &mut HostConfig, machine: &Limits, warnings: &mut Vec<String>) -> Result<()> {
    if (!host.cpuset_cpus.is_empty() || !host.cpuset_mems.is_empty()) && !machine.cpuset {
        warnings.push(
            "Your kernel does not support cpuset or the cgroup is not mounted. CPUset discarded.".into(),
        );
        host.cpuset_cpus.clear();
        host.cpuset_mems.clear();
    }
    for (wanted, memory) in [(&host.cpuset_cpus, false), (&host.cpuset_mems, true)] {
        if wanted.is_empty() {
            continue;
        }
        let available = limits::available(memory);
        let (lower, words) = if memory { ("mems", "memory nodes") } else { ("cpus", "CPUs") };
        match limits::is_subset(wanted, &available) {
            Some(true) => {}
            Some(false) => {
                return refuse(format!(
                    "Requested {words} are not available - requested {wanted}, available: {available}"
                ));
            }
            None => {
                return refuse(format!(
                    "Invalid value {wanted} for cpuset {lower}: invalid format: {wanted}"
                ));
            }
        }
    }
    Ok(())
}

fn block_io(host: &mut HostConfig, machine: &Limits, warnings: &mut Vec<String>) -> Result<()> {
    let any = |devices: &Option<Vec<docker_api::host_config::ThrottleDevice>>| {
        devices.as_ref().is_some_and(|devices| !devices.is_empty())
    };
    if host.blkio_weight > 0 && !machine.blkio_weight {
        warnings.push(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
                .into(),
        );
        host.blkio_weight = 0;
    }
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    if host.blkio_weight_device.as_ref().is_some_and(|devices| !devices.is_empty())
        && !machine.blkio_weight_device
    {
        warnings.push("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.".into());
        host.blkio_weight_device = Some(Vec::new());
    }
    let throttles = [
        (&mut host.blkio_device_read_bps, "BPS Block I/O read limit", "Block I/O BPS read limit"),
        (&mut host.blkio_device_write_bps, "BPS Block I/O write limit", "Block I/O BPS write limit"),
        (&mut host.blkio_device_read_iops, "IOPS Block read limit", "Block I/O IOPS read limit"),
        (&mut host.blkio_device_write_iops, "IOPS Block write limit", "Block I/O IOPS write limit"),
    ];
    for (devices, what, discarded) in throttles {
        if any(devices) && !machine.blkio_throttle {
            warnings.push(format!(
                "Your kernel does not support {what} or the cgroup is not mounted. {discarded} discarded."
            ));
            *devices = Some(Vec::new());
        }
    }
    Ok(())
}
