//! Changing a container's limits and restart policy, also while it runs.

use std::sync::Arc;

use docker_api::HostConfig;

use super::life;
use super::record::State;
use super::validate::{check_resources, check_restart};
use super::{Container, spec};
use crate::api::ApiVersion;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Changes what `wanted` names; what is zero or missing there stays. Gives the warnings.
///
/// # Errors
/// A refusal, or the runtime refused; then nothing has changed.
pub async fn update(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    mut wanted: HostConfig,
    version: ApiVersion,
) -> Result<Vec<String>> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    life::to_the_end(async move {
        check_restart(&wanted.restart_policy)?;
        if !version.at_least(55) {
            wanted.blkio_weight_device = None;
            wanted.blkio_device_read_bps = None;
            wanted.blkio_device_write_bps = None;
            wanted.blkio_device_read_iops = None;
            wanted.blkio_device_write_iops = None;
        }
        if !version.at_least(40) {
            wanted.pids_limit = None;
        }
        let warnings = check_resources(&mut wanted, true)?;
        let refuse =
            |text: &str| Error::conflict(format!("Cannot update container {}: {text}", container.id));
        let _turn = container.live.turn().await;
        let record = container.record();
        if matches!(record.life.state, State::Removing | State::Dead) {
            return Err(refuse("container is marked for removal and cannot be \"update\""));
        }
        let mut host = record.host_config.clone();
        merge(&mut host, &wanted).map_err(refuse)?;
        if record.life.state.task().is_some() && has_limits(&wanted) {
            let mut resources = spec::resources(&host)?;
            if let Some(limit) = host.pids_limit.filter(|limit| *limit <= 0) {
                resources.pids = Some(::spec::model::Pids { limit: limit.min(-1) });
            }
            let json = serde_json::to_vec(&resources).map_err(|err| Error::system(err.to_string()))?;
            engine
                .runtime
                .update(&container.id, json)
                .await
                .map_err(|err| err.context(format!("Cannot update container {}", container.id)))?;
        }
        container
            .update(move |record| {
                record.host_config = host;
                Ok(())
            })
            .await?;
        container.publish(&engine, "update", &[]);
        Ok(warnings)
    })
    .await
}

fn has_limits(wanted: &HostConfig) -> bool {
    HostConfig { restart_policy: Default::default(), ..wanted.clone() } != HostConfig::default()
}

fn merge(host: &mut HostConfig, wanted: &HostConfig) -> Result<(), &'static str> {
    if wanted.nano_cpus > 0 && host.cpu_quota > 0 {
        return Err("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set");
    }
    if wanted.nano_cpus > 0 && host.cpu_period > 0 {
        return Err("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set");
    }
    if wanted.cpu_quota > 0 && host.nano_cpus > 0 {
        return Err("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set");
    }
    if wanted.cpu_period > 0 && host.nano_cpus > 0 {
        return Err("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set");
    }
    for (value, into) in [
        (wanted.cpu_shares, &mut host.cpu_shares),
        (wanted.nano_cpus, &mut host.nano_cpus),
        (wanted.cpu_period, &mut host.cpu_period),
        (wanted.cpu_quota, &mut host.cpu_quota),
        (wanted.cpu_realtime_period, &mut host.cpu_realtime_period),
        (wanted.cpu_realtime_runtime, &mut host.cpu_realtime_runtime),
        (wanted.memory_reservation, &mut host.memory_reservation),
    ] {
        if value != 0 {
            *into = value;
        }
    }
    if wanted.blkio_weight != 0 {
        host.blkio_weight = wanted.blkio_weight;
    }
    for (value, into) in
        [(&wanted.cpuset_cpus, &mut host.cpuset_cpus), (&wanted.cpuset_mems, &mut host.cpuset_mems)]
    {
        if !value.is_empty() {
            into.clone_from(value);
        }
    }
    if wanted.memory != 0 {
        // A larger memory limit than the old limit of both makes no sense unless that changes too.
        if wanted.memory > host.memory_swap && host.memory_swap > 0 && wanted.memory_swap == 0 {
            return Err(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            );
        }
        host.memory = wanted.memory;
    }
    if wanted.memory_swap != 0 {
        host.memory_swap = wanted.memory_swap;
    }
    if wanted.pids_limit.is_some() {
        host.pids_limit = wanted.pids_limit;
    }
    for (value, into) in [
        (&wanted.blkio_device_read_bps, &mut host.blkio_device_read_bps),
        (&wanted.blkio_device_write_bps, &mut host.blkio_device_write_bps),
        (&wanted.blkio_device_read_iops, &mut host.blkio_device_read_iops),
        (&wanted.blkio_device_write_iops, &mut host.blkio_device_write_iops),
    ] {
        if value.as_ref().is_some_and(|devices| !devices.is_empty()) {
            into.clone_from(value);
        }
    }
    if wanted.blkio_weight_device.as_ref().is_some_and(|devices| !devices.is_empty()) {
        host.blkio_weight_device.clone_from(&wanted.blkio_weight_device);
    }
    if !wanted.restart_policy.name.is_empty() {
        if host.auto_remove && wanted.restart_policy.name != "no" {
            return Err("Restart policy cannot be updated because AutoRemove is enabled for the container");
        }
        host.restart_policy = wanted.restart_policy.clone();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let mut host = HostConfig { memory: 100, memory_swap: 200, cpu_shares: 5, ..HostConfig::default() };
        let wanted = HostConfig { cpu_quota: 7, pids_limit: Some(-1), ..HostConfig::default() };
        merge(&mut host, &wanted).unwrap();
        assert_eq!((host.memory, host.cpu_shares, host.cpu_quota, host.pids_limit), (100, 5, 7, Some(-1)));
        let too_much = HostConfig { memory: 300, ..HostConfig::default() };
        assert!(merge(&mut host, &too_much).unwrap_err().starts_with("Memory limit should be smaller"));
        let both = HostConfig { nano_cpus: 1, ..HostConfig::default() };
        assert!(merge(&mut host, &both).is_err());
    }
}
