//! `GET /info`, in the shape of each API version.

use serde_json::{Map, Value, json};

use super::{host, runtimes};
use crate::api::ApiVersion;
use crate::container::State;
use crate::engine::Engine;
use crate::runtime::content::SNAPSHOTTER;

/// The answer.
pub async fn info(engine: &Engine, version: ApiVersion) -> Value {
    let (config, live) = (&engine.config, engine.config.live());
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    let containers = engine.containers.all();
    for container in &containers {
        match &container.record().life.state {
            State::Paused(_) => paused += 1,
            state if state.is_running() => running += 1,
            _ => stopped += 1,
        }
    }
    let cgroups = host::cgroups();
    let programs = engine.programs.look(&live).await;
    let runc = programs.get(&live.default_runtime).or_else(|| programs.get("runc"));
    let runc_commit = match runc.map(|program| &program.version) {
        Some(Ok((_, commit))) => commit.clone(),
        _ => String::new(),
    };
    let containerd_commit =
        engine.runtime.containerd_version().await.map(|(_, commit)| commit).unwrap_or_default();
    let cgroup_driver = config.cgroup_driver.clone().unwrap_or_else(|| {
        if cgroups.version == 2 && host::has_systemd() { "systemd" } else { "cgroupfs" }.into()
    });
    let (os_name, os_version) = host::os();
    let mut answer = json!({
        "ID": engine.id,
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": engine.images.count().await.unwrap_or(0),
        "Driver": SNAPSHOTTER,
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Plugins": {
            "Volume": engine.volumes.drivers(),
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
            "Authorization": (!live.authorization_plugins.is_empty()).then_some(&live.authorization_plugins),
            "Log": ["fluentd", "journald", "json-file", "local", "syslog"],
        },
        "MemoryLimit": cgroups.memory,
        "SwapLimit": cgroups.swap,
        "CpuCfsPeriod": cgroups.cfs_period,
        "CpuCfsQuota": cgroups.cfs_quota,
        "CPUShares": cgroups.cpu_shares,
        "CPUSet": cgroups.cpuset,
        "PidsLimit": cgroups.pids,
        "IPv4Forwarding": host::forwards_ipv4(),
        "Debug": live.debug,
        "NFd": host::open_files(),
        "OomKillDisable": cgroups.oom_kill_disable,
        "NGoroutines": host::threads(),
        "SystemTime": jiff::Timestamp::now().to_string(),
        "LoggingDriver": config.log_driver,
        "CgroupDriver": cgroup_driver,
        "CgroupVersion": cgroups.version.to_string(),
        "NEventsListener": engine.events.listeners(),
        "KernelVersion": host::kernel(),
        "OperatingSystem": os_name,
        "OSVersion": os_version,
        "OSType": "linux",
        "Architecture": host::machine(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": registries(&live.insecure_registries, &live.registry_mirrors),
        "NCPU": host::processors(),
        "MemTotal": host::memory(),
        "GenericResources": null,
        "DockerRootDir": config.data_root,
        "HttpProxy": without_password(&config.proxies.http),
        "HttpsProxy": without_password(&config.proxies.https),
        "NoProxy": config.proxies.none,
        "Name": host::hostname(),
        "Labels": live.labels,
        "ExperimentalBuild": config.experimental,
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Runtimes": runtimes_of(&live, &programs, version),
        "DefaultRuntime": live.default_runtime,
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": commit(&containerd_commit, version),
        "RuncCommit": commit(&runc_commit, version),
        "InitCommit": commit("", version),
        "SecurityOptions": host::security_options(&config.seccomp_profile, config.default_cgroupns_mode.as_deref(), cgroups.version),
        "CDISpecDirs": [],
        "Warnings": warnings(engine, &cgroups, &programs),
    });
    if let Value::Object(map) = &mut answer {
        by_version(map, engine, version);
    }
    answer
}

fn by_version(map: &mut Map<String, Value>, engine: &Engine, version: ApiVersion) {
    if !version.at_least(50) {
        map.insert("BridgeNfIptables".into(), json!(false));
        map.insert("BridgeNfIp6tables".into(), json!(false));
    }
    if version.at_least(49) {
        let backend = engine.config.network.firewall_backend.as_deref().unwrap_or("nftables");
        let proxy = engine.config.network.userland_proxy.to_string();
        let driver = json!({ "Driver": backend, "Info": [["EnableUserlandProxy", proxy]] });
        map.insert("FirewallBackend".into(), driver);
    }
    if version.at_least(46) {
        let containerd = json!({
            "Address": engine.config.containerd_socket(),
            "Namespaces": { "Containers": engine.config.containerd_namespace, "Plugins": "plugins.moby" },
        });
        map.insert("Containerd".into(), containerd);
    }
    if !version.at_least(47)
        && let Some(Value::Object(registries)) = map.get_mut("RegistryConfig")
    {
        registries.insert("AllowNondistributableArtifactsCIDRs".into(), Value::Null);
        registries.insert("AllowNondistributableArtifactsHostnames".into(), Value::Null);
    }
}

fn commit(id: &str, version: ApiVersion) -> Value {
    if version.at_least(49) { json!({ "ID": id }) } else { json!({ "ID": id, "Expected": id }) }
}

fn runtimes_of(live: &crate::config::Live, programs: &runtimes::Found, version: ApiVersion) -> Value {
    let mut all = Map::new();
    for (name, entry) in &live.runtimes {
        let mut shown = Map::new();
        if entry.kind.is_empty() {
            shown.insert("path".into(), json!(entry.path));
            if !entry.args.is_empty() {
                shown.insert("runtimeArgs".into(), json!(entry.args));
            }
        } else {
            shown.insert("runtimeType".into(), json!(entry.kind));
            if let Some(options) = &entry.options {
                shown.insert("options".into(), options.clone());
            }
        }
        let features = programs.get(name).and_then(|program| program.features.as_ref());
        if version.at_least(44)
            && let Some(features) = features
        {
            shown.insert("status".into(), json!({ "org.opencontainers.runtime-spec.features": features }));
        }
        all.insert(name.clone(), Value::Object(shown));
    }
    Value::Object(all)
}

/// Which registries are reached how.
fn registries(insecure: &[String], mirrors: &[String]) -> Value {
    let mut blocks = vec!["::1/128".to_owned(), "127.0.0.0/8".to_owned()];
    let mut indexes = Map::new();
    for entry in insecure {
        if entry.contains('/') {
            blocks.push(entry.clone());
        } else {
            let index = json!({ "Name": entry, "Mirrors": [], "Secure": false, "Official": false });
            indexes.insert(entry.clone(), index);
        }
    }
    let official = json!({ "Name": "docker.io", "Mirrors": mirrors, "Secure": true, "Official": true });
    indexes.insert("docker.io".into(), official);
    json!({ "InsecureRegistryCIDRs": blocks, "IndexConfigs": indexes, "Mirrors": mirrors })
}

/// `http://user:secret@proxy` is shown as `http://xxxxx:xxxxx@proxy`.
fn without_password(proxy: &str) -> String {
    match (proxy.split_once("://"), proxy.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        _ => proxy.to_owned(),
    }
}

/// What an operator should know; `None` when there is nothing.
fn warnings(engine: &Engine, cgroups: &host::Cgroups, programs: &runtimes::Found) -> Option<Vec<String>> {
    let mut warnings = Vec::new();
    if engine.config.volatile {
        warnings
            .push("WARNING: the data root is read-only: changes are lost when the engine stops".to_owned());
    }
    for host in engine.config.hosts.iter().filter(|host| host.starts_with("tcp://")) {
        let tls = &engine.config.tls;
        if !tls.enabled {
            warnings.push(format!(
                "WARNING: API is accessible on http://{} without encryption.\n         Access to the remote API is equivalent to root access on the host. Refer\n         to the 'Docker daemon attack surface' section in the documentation for\n         more information: https://docs.docker.com/go/attack-surface/",
                host.trim_start_matches("tcp://")
            ));
        } else if !tls.verify {
            warnings.push(format!(
                "WARNING: API is accessible on https://{} without TLS client verification.",
                host.trim_start_matches("tcp://")
            ));
        }
    }
    for (name, program) in programs.iter() {
        if let Err(why) = &program.version {
            warnings.push(format!("WARNING: runtime {name} cannot be used: {why}"));
        }
    }
    for (there, text) in [
        (cgroups.memory, "No memory limit support"),
        (cgroups.swap, "No swap limit support"),
        (cgroups.cfs_quota, "No cpu cfs quota support"),
        (cgroups.cfs_period, "No cpu cfs period support"),
        (cgroups.cpu_shares, "No cpu shares support"),
        (cgroups.cpuset, "No cpuset support"),
        (cgroups.pids, "No pids limit support"),
        (host::forwards_ipv4(), "IPv4 forwarding is disabled"),
    ] {
        if !there {
            warnings.push(format!("WARNING: {text}"));
        }
    }
    (!warnings.is_empty()).then_some(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden() {
        assert_eq!(without_password("http://u:p@proxy:1"), "http://xxxxx:xxxxx@proxy:1");
        assert_eq!(without_password("http://proxy:1"), "http://proxy:1");
    }
}
