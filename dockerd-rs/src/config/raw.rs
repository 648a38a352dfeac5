//! The merged settings as they were written, and the checks that make a [`Config`] of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::options::{self, OPTIONS};
use super::{AddressPool, Config, Live, Network, Proxies, RuntimeEntry, Tls, Ulimit};

/// The settings, unchecked. Field names are the keys of daemon.json.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Raw {
    runtimes: BTreeMap<String, RuntimeEntry>,
    allow_direct_routing: Option<bool>,
    authorization_plugins: Vec<String>,
    bip: String,
    bip6: String,
    bridge: String,
    cgroup_parent: String,
    containerd: String,
    containerd_namespace: String,
    data_root: String,
    debug: bool,
    default_address_pools: Vec<AddressPool>,
    default_cgroupns_mode: String,
    default_gateway: String,
    default_gateway_v6: String,
    default_ipc_mode: String,
    default_network_opts: BTreeMap<String, BTreeMap<String, String>>,
    default_runtime: String,
    default_shm_size: Option<Value>,
    default_ulimits: BTreeMap<String, Ulimit>,
    dns: Vec<String>,
    dns_opts: Vec<String>,
    dns_search: Vec<String>,
    exec_opts: Vec<String>,
    exec_root: String,
    experimental: bool,
    features: BTreeMap<String, Value>,
    firewall_backend: String,
    fixed_cidr: String,
    fixed_cidr_v6: String,
    group: Option<String>,
    hosts: Vec<String>,
    host_firewall: bool,
    host_gateway_ips: Vec<String>,
    http_proxy: String,
    https_proxy: String,
    icc: Option<bool>,
    init: bool,
    init_path: String,
    insecure_registries: Vec<String>,
    ip: String,
    ip_forward: Option<bool>,
    ip_forward_no_drop: bool,
    ip_masq: Option<bool>,
    ip6tables: Option<bool>,
    iptables: Option<bool>,
    ipv6: bool,
    labels: Vec<String>,
    live_restore: Option<bool>,
    log_driver: String,
    log_format: String,
    log_level: String,
    log_opts: BTreeMap<String, String>,
    max_concurrent_downloads: Option<i64>,
    max_concurrent_uploads: Option<i64>,
    max_download_attempts: Option<i64>,
    metrics_addr: String,
    min_api_version: Option<String>,
    mtu: Option<i64>,
    no_new_privileges: bool,
    no_proxy: String,
    pidfile: Option<String>,
    registry_mirrors: Vec<String>,
    seccomp_profile: String,
    shutdown_timeout: Option<i64>,
    storage_driver: String,
    tls: Option<bool>,
    tlscacert: String,
    tlscert: String,
    tlskey: String,
    tlsverify: bool,
    userland_proxy: Option<bool>,
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("invalid IP address: {text}"))
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    texts.iter().map(|text| address(text.trim())).collect()
}

/// `address/length`.
fn cidr(text: String) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let good = text.split_once('/').is_some_and(|(ip, length)| {
        let widest = match ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|length| length <= widest)
    });
    if good { Ok(Some(text)) } else { Err(format!("invalid CIDR address: {text}")) }
}

impl Raw {
    /// Checks everything and fills in defaults.
    pub fn check(self, file: PathBuf, flags: Map<String, Value>) -> Result<Config, String> {
        for label in &self.labels {
            if !label.contains('=') {
                return Err(format!("bad attribute format: {label}"));
            }
        }
        let level = match or(&self.log_level, "info").as_str() {
            "debug" => "debug",
            "trace" => "trace",
            "info" => "info",
            "warn" | "warning" => "warn",
            "error" | "fatal" | "panic" => "error",
            other => return Err(format!("invalid logging level: {other}")),
        };
        let log_json = match self.log_format.as_str() {
            "" | "text" => false,
            "json" => true,
            other => return Err(format!("invalid log format: {other}")),
        };
        if !matches!(self.storage_driver.as_str(), "" | "overlayfs" | "overlay2") {
            return Err(format!("storage-driver: {} is not supported, only overlayfs", self.storage_driver));
        }
        let tls = self.tls();
        let hosts: Vec<String> = if self.hosts.is_empty() {
            vec!["unix:///var/run/docker.sock".into()]
        } else {
            self.hosts.iter().map(|host| bind_address(host, tls.enabled)).collect::<Result<_, _>>()?
        };
        let default_ipc_mode = or(&self.default_ipc_mode, "private");
        if !matches!(default_ipc_mode.as_str(), "private" | "shareable") {
            return Err(format!("IPC mode \"{default_ipc_mode}\" is not supported as default value"));
        }
        if !matches!(self.default_cgroupns_mode.as_str(), "" | "host" | "private") {
            return Err(format!(
                "invalid default cgroup namespace mode ({}), use \"host\" or \"private\"",
                self.default_cgroupns_mode
            ));
        }
        let shm = match &self.default_shm_size {
            None | Some(Value::Null) => 64 << 20,
            Some(Value::Number(number)) => number.as_i64().unwrap_or(-1),
            Some(Value::String(text)) => options::bytes(text).unwrap_or(-1),
            Some(_) => -1,
        };
        if shm < 0 {
            return Err("invalid default shm size".into());
        }
        let cgroup_driver = self.cgroup_driver()?;
        let network = self.network()?;
        let live = self.live()?;
        if self.live_restore == Some(false) {
            tracing::warn!("live-restore cannot be turned off: containers always outlive the engine");
        }
        Ok(Config {
            data_root: or(&self.data_root, "/var/lib/docker").into(),
            volatile: false,
            exec_root: or(&self.exec_root, "/var/run/docker").into(),
            pidfile: self.pidfile.as_deref().unwrap_or("/var/run/docker.pid").into(),
            hosts,
            group: self.group.clone().unwrap_or_else(|| "docker".into()),
            tls,
            containerd: some(self.containerd.clone())
                .map(|path| path.strip_prefix("unix://").map_or(path.clone(), str::to_owned).into()),
            containerd_namespace: or(&self.containerd_namespace, "moby"),
            cgroup_parent: self.cgroup_parent.clone(),
            cgroup_driver,
            default_cgroupns_mode: some(self.default_cgroupns_mode.clone()),
            default_ipc_mode,
            default_shm_size: shm,
            default_ulimits: self.default_ulimits.clone(),
            init: self.init,
            init_path: some(self.init_path.clone()).map(PathBuf::from),
            no_new_privileges: self.no_new_privileges,
            seccomp_profile: or(&self.seccomp_profile, "builtin"),
            log_driver: or(&self.log_driver, "json-file"),
            log_opts: self.log_opts.clone(),
            network,
            proxies: Proxies {
                http: self.http_proxy.clone(),
                https: self.https_proxy.clone(),
                none: self.no_proxy.clone(),
            },
            log_json,
            log_level: level.into(),
            experimental: self.experimental,
            metrics_addr: some(self.metrics_addr.clone()),
            min_api_version: self.min_api_version.clone(),
            file,
            flags,
            live: Arc::new(ArcSwap::from_pointee(live)),
        })
    }

    fn tls(&self) -> Tls {
        let home = std::env::var_os("DOCKER_CERT_PATH").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".docker"),
            PathBuf::from,
        );
        let path =
            |given: &str, name: &str| if given.is_empty() { home.join(name) } else { PathBuf::from(given) };
        Tls {
            enabled: self.tls.unwrap_or(self.tlsverify) || self.tlsverify,
            verify: self.tlsverify,
            ca: path(&self.tlscacert, "ca.pem"),
            cert: path(&self.tlscert, "cert.pem"),
            key: path(&self.tlskey, "key.pem"),
        }
    }

    fn cgroup_driver(&self) -> Result<Option<String>, String> {
        let mut driver = None;
        for opt in &self.exec_opts {
            match opt.split_once('=') {
                Some(("native.cgroupdriver", value @ ("systemd" | "cgroupfs"))) => {
                    driver = Some(value.to_owned())
                }
                Some(("native.cgroupdriver", value)) => {
                    return Err(format!("native.cgroupdriver option {value} is internally invalid"));
                }
                _ => return Err(format!("exec-opts: unknown option {opt}")),
            }
        }
        Ok(driver)
    }

    fn network(&self) -> Result<Network, String> {
        if !self.bridge.is_empty() && !self.bip.is_empty() {
            return Err(
                "you specified -b & --bip, mutually exclusive options. Please specify only one".into()
            );
        }
        let mtu = self.mtu.unwrap_or(1500);
        let mtu = u32::try_from(mtu).map_err(|_| format!("invalid default MTU: {mtu}"))?;
        for pool in &self.default_address_pools {
            cidr(pool.base.clone())?;
        }
        if !matches!(self.firewall_backend.as_str(), "" | "nftables" | "iptables") {
            return Err(format!("invalid firewall-backend \"{}\"", self.firewall_backend));
        }
        let gateway = |text: &str| if text.is_empty() { Ok(None) } else { address(text).map(Some) };
        Ok(Network {
            bridge: some(self.bridge.clone()),
            bip: cidr(self.bip.clone())?,
            bip6: cidr(self.bip6.clone())?,
            fixed_cidr: cidr(self.fixed_cidr.clone())?,
            fixed_cidr_v6: cidr(self.fixed_cidr_v6.clone())?,
            default_gateway: gateway(&self.default_gateway)?,
            default_gateway_v6: gateway(&self.default_gateway_v6)?,
            mtu: if mtu == 0 { 1500 } else { mtu },
            ip: if self.ip.is_empty() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { address(&self.ip)? },
            icc: self.icc.unwrap_or(true),
            ip_forward: self.ip_forward.unwrap_or(true),
            ip_forward_no_drop: self.ip_forward_no_drop,
            ip_masq: self.ip_masq.unwrap_or(true),
            iptables: self.iptables.unwrap_or(true),
            ip6tables: self.ip6tables.unwrap_or(true),
            firewall_backend: some(self.firewall_backend.clone()),
            ipv6: self.ipv6,
            userland_proxy: self.userland_proxy.unwrap_or(true),
            allow_direct_routing: self.allow_direct_routing.unwrap_or(false),
            host_firewall: self.host_firewall,
            default_address_pools: self.default_address_pools.clone(),
            default_network_opts: self.default_network_opts.clone(),
            host_gateway_ips: addresses(&self.host_gateway_ips)?,
            dns: addresses(&self.dns)?,
            dns_opts: self.dns_opts.clone(),
            dns_search: self.dns_search.clone(),
        })
    }

    fn live(&self) -> Result<Live, String> {
        let mut runtimes = BTreeMap::new();
        for name in ["runc", "io.containerd.runc.v2"] {
            runtimes.insert(name.to_owned(), RuntimeEntry { path: "runc".into(), ..RuntimeEntry::default() });
        }
        for (name, entry) in &self.runtimes {
            if runtimes.contains_key(name) {
                return Err(format!("runtime name '{name}' is reserved"));
            }
            match (entry.path.is_empty(), entry.kind.is_empty()) {
                (true, true) => {
                    return Err(format!("runtime {name}: either a runtimeType or a path must be configured"));
                }
                (false, false) => {
                    return Err(format!(
                        "runtime {name}: cannot configure both path and runtimeType for the same runtime"
                    ));
                }
                _ => {}
            }
            runtimes.insert(name.clone(), entry.clone());
        }
        let default_runtime = or(&self.default_runtime, "runc");
        // A shim's name needs no entry.
        if !runtimes.contains_key(&default_runtime) && !default_runtime.starts_with("io.containerd.") {
            return Err(format!("specified default runtime '{default_runtime}' does not exist"));
        }
        let count = |given: Option<i64>, default: usize, name: &str| match given {
            None | Some(0) => Ok(default),
            Some(number) => usize::try_from(number).map_err(|_| format!("invalid max {name}: {number}")),
        };
        let features = self.features.iter().map(|(name, value)| match value {
            Value::Bool(on) => Ok((name.clone(), *on)),
            Value::String(text) if matches!(text.as_str(), "true" | "1" | "") => Ok((name.clone(), true)),
            Value::String(text) if matches!(text.as_str(), "false" | "0") => Ok((name.clone(), false)),
            other => Err(format!("invalid value for feature {name}: {other}")),
        });
        Ok(Live {
            authorization_plugins: self.authorization_plugins.clone(),
            debug: self.debug,
            labels: self.labels.clone(),
            registry_mirrors: self
                .registry_mirrors
                .iter()
                .map(|text| mirror(text))
                .collect::<Result<_, _>>()?,
            insecure_registries: self.insecure_registries.clone(),
            runtimes,
            default_runtime,
            shutdown_timeout_secs: self.shutdown_timeout.unwrap_or(15),
            max_concurrent_downloads: count(self.max_concurrent_downloads, 3, "concurrent downloads")?,
            max_concurrent_uploads: count(self.max_concurrent_uploads, 5, "concurrent uploads")?,
            max_download_attempts: count(self.max_download_attempts, 5, "download attempts")?,
            features: features.collect::<Result<_, _>>()?,
        })
    }
}

/// Options the engine cannot serve, unless they are given their default.
pub fn refuse(merged: &Map<String, Value>, flags: &Map<String, Value>) -> Result<(), String> {
    for opt in OPTIONS {
        let (Some(why), Some(value)) = (opt.refused, merged.get(opt.key)) else { continue };
        let says_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) => false,
        };
        if !says_nothing {
            let name =
                if flags.contains_key(opt.key) { format!("--{}", opt.flag) } else { opt.key.to_owned() };
            return Err(format!("{name}: {why}"));
        }
    }
    Ok(())
}

/// A mirror's address: scheme and host, a slash at the end.
fn mirror(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| {
        format!("invalid mirror: no scheme specified for {text:?}: must use either 'https://' or 'http://'")
    })?;
    if !matches!(scheme, "http" | "https") {
        return Err(format!(
            "invalid mirror: unsupported scheme {scheme:?} in {text:?}: must use either 'https://' or 'http://'"
        ));
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains('@') || path.contains(['?', '#']) {
        return Err(format!("invalid mirror: {text:?}"));
    }
    Ok(format!("{}/", text.trim_end_matches('/')))
}

/// A `-H` in its full form: a scheme always, and the port a TCP address lacks.
fn bind_address(text: &str, tls: bool) -> Result<String, String> {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
    match scheme {
        "unix" if rest.is_empty() => Ok("unix:///var/run/docker.sock".into()),
        "unix" => Ok(text.to_owned()),
        "fd" => Ok(format!("fd://{rest}")),
        "tcp" => {
            let port = if tls { 2376 } else { 2375 };
            let rest = rest.trim_end_matches('/');
            let rest = match rest {
                "" => format!("localhost:{port}"),
                rest if rest.starts_with(':') => format!("0.0.0.0{rest}"),
                rest if rest.ends_with(']') || !rest.contains(':') => format!("{rest}:{port}"),
                rest => rest.to_owned(),
            };
            let good = rest
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if good {
                Ok(format!("tcp://{rest}"))
            } else {
                Err(format!("invalid bind address ({text}): invalid port"))
            }
        }
        other => Err(format!("invalid bind address ({text}): unsupported proto '{other}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        let rows = [
            ("unix://", Ok("unix:///var/run/docker.sock")),
            ("unix:///run/x.sock", Ok("unix:///run/x.sock")),
            ("fd://", Ok("fd://")),
            ("tcp://", Ok("tcp://localhost:2375")),
            ("tcp://:7777", Ok("tcp://0.0.0.0:7777")),
            ("0.0.0.0:80", Ok("tcp://0.0.0.0:80")),
            ("tcp://[::1]", Ok("tcp://[::1]:2375")),
            ("tcp://host:x", Err(())),
            ("npipe://x", Err(())),
        ];
        for (text, want) in rows {
            assert_eq!(bind_address(text, false).map_err(drop), want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn mirrors() {
        assert_eq!(mirror("https://m.example").unwrap(), "https://m.example/");
        assert_eq!(mirror("http://m.example:5000/").unwrap(), "http://m.example:5000/");
        for bad in ["m.example", "ftp://m", "https://", "https://u:p@m", "https://m/?q"] {
            assert!(mirror(bad).is_err(), "{bad}");
        }
    }
}
