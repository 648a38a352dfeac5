//! What the operator asked for: flags and daemon.json, with dockerd's names and defaults.
//!
//! Invariant: a [`Config`] that exists was validated, and refuses by name what the engine cannot do. What SIGHUP may change is in [`Live`]
//! behind [`Config::live`]; everything else stays as it was at the start.

mod file;
mod options;
mod raw;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::raw::Raw;

/// Where daemon.json is unless `--config-file` says otherwise.
const DEFAULT_FILE: &str = "/etc/docker/daemon.json";

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where state that survives a reboot lives (`--data-root`).
    pub data_root: PathBuf,
    /// Whether `data_root` is a layer over a read-only one, so that changes do not last.
    pub volatile: bool,
    /// Where state of this boot lives (`--exec-root`).
    pub exec_root: PathBuf,
    /// `-p`, `--pidfile`; empty for none.
    pub pidfile: PathBuf,
    /// Addresses to listen on (`-H`), as given.
    pub hosts: Vec<String>,
    /// The group of the unix socket (`--group`).
    pub group: String,
    /// TLS on TCP sockets.
    pub tls: Tls,
    /// The address of a containerd that runs already (`--containerd`); `None` starts one of our own.
    pub containerd: Option<PathBuf>,
    /// The containerd namespace (`--containerd-namespace`).
    pub containerd_namespace: String,
    /// The cgroup containers are put below (`--cgroup-parent`); empty is the driver's own.
    pub cgroup_parent: String,
    /// `native.cgroupdriver` of `--exec-opt`: `cgroupfs` or `systemd`; `None` decides by the machine.
    pub cgroup_driver: Option<String>,
    /// `--default-cgroupns-mode`; `None` is `private` on cgroup v2 and `host` on v1.
    pub default_cgroupns_mode: Option<String>,
    /// `--default-ipc-mode`: `private` or `shareable`.
    pub default_ipc_mode: String,
    /// `--default-shm-size`, bytes.
    pub default_shm_size: i64,
    /// `--default-ulimit`, by name.
    pub default_ulimits: BTreeMap<String, Ulimit>,
    /// `--init`: containers get an init unless they say no.
    pub init: bool,
    /// `--init-path`: an init of the operator's instead of the carried one.
    pub init_path: Option<PathBuf>,
    /// `--no-new-privileges`.
    pub no_new_privileges: bool,
    /// `--seccomp-profile`: `builtin`, `unconfined`, or a file.
    pub seccomp_profile: String,
    /// `--log-driver`.
    pub log_driver: String,
    /// `--log-opt`.
    pub log_opts: BTreeMap<String, String>,
    /// What the default bridge and all networks are made with.
    pub network: Network,
    /// `--http-proxy`, `--https-proxy`, `--no-proxy`; empty strings when not set.
    pub proxies: Proxies,
    /// `--log-format json`.
    pub log_json: bool,
    /// `--log-level`, in tracing's words.
    pub log_level: String,
    /// `--experimental`.
    pub experimental: bool,
    /// `--metrics-addr`: where figures for Prometheus are served.
    pub metrics_addr: Option<String>,
    /// The oldest API version served.
    pub min_api_version: Option<String>,
    /// The file SIGHUP reads again.
    pub file: PathBuf,
    /// The flags, which a reload keeps.
    flags: Map<String, Value>,
    live: Arc<ArcSwap<Live>>,
}

/// What SIGHUP changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// `--authorization-plugin`, in the order in which they are asked.
    pub authorization_plugins: Vec<String>,
    /// `--debug`.
    pub debug: bool,
    /// `--label`.
    pub labels: Vec<String>,
    /// `--registry-mirror`: for docker.io, first to last.
    pub registry_mirrors: Vec<String>,
    /// `--insecure-registry`: hosts, `host:port` or CIDR blocks; loopback is always one.
    pub insecure_registries: Vec<String>,
    /// Runtimes by name, the built-in ones included.
    pub runtimes: BTreeMap<String, RuntimeEntry>,
    /// The runtime containers get unless they ask for another (`--default-runtime`).
    pub default_runtime: String,
    /// `--shutdown-timeout`, seconds; negative waits for ever.
    pub shutdown_timeout_secs: i64,
    /// `--max-concurrent-downloads`.
    pub max_concurrent_downloads: usize,
    /// `--max-concurrent-uploads`.
    pub max_concurrent_uploads: usize,
    /// `--max-download-attempts`.
    pub max_download_attempts: usize,
    /// `--feature`.
    pub features: BTreeMap<String, bool>,
}

/// A runtime of `--add-runtime` or of `runtimes` in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RuntimeEntry {
    /// A program with runc's command line.
    pub path: String,
    /// Arguments that go before runc's own.
    #[serde(rename = "runtimeArgs")]
    pub args: Vec<String>,
    /// A containerd shim (`io.containerd.runc.v2`) instead of a path.
    #[serde(rename = "runtimeType")]
    pub kind: String,
    /// Options of that shim.
    pub options: Option<Value>,
}

/// A default limit of processes in containers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ulimit {
    /// `nofile` and the like.
    pub name: String,
    /// Hard limit, -1 for none.
    pub hard: i64,
    /// Soft limit.
    pub soft: i64,
}

/// TLS on TCP sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether TCP sockets speak TLS (`--tls` or `--tlsverify`).
    pub enabled: bool,
    /// Whether clients need a certificate of `ca` (`--tlsverify`).
    pub verify: bool,
    /// `--tlscacert`.
    pub ca: PathBuf,
    /// `--tlscert`.
    pub cert: PathBuf,
    /// `--tlskey`.
    pub key: PathBuf,
}

/// Proxies for what the engine fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP.
    pub http: String,
    /// For HTTPS.
    pub https: String,
    /// Hosts that are reached without.
    pub none: String,
}

/// Addresses from which networks without a subnet get theirs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AddressPool {
    /// The block, in CIDR form.
    pub base: String,
    /// The prefix length of each network's part.
    pub size: u8,
}

/// Settings of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `--bridge`: an existing bridge, `none` for no default network, or `None` for `docker0`.
    pub bridge: Option<String>,
    /// `--bip`, in CIDR form.
    pub bip: Option<String>,
    /// `--bip6`, in CIDR form.
    pub bip6: Option<String>,
    /// `--fixed-cidr`.
    pub fixed_cidr: Option<String>,
    /// `--fixed-cidr-v6`.
    pub fixed_cidr_v6: Option<String>,
    /// `--default-gateway`.
    pub default_gateway: Option<IpAddr>,
    /// `--default-gateway-v6`.
    pub default_gateway_v6: Option<IpAddr>,
    /// `--mtu` of the default bridge.
    pub mtu: u32,
    /// `--ip`: where ports of the default bridge are published.
    pub ip: IpAddr,
    /// `--icc`.
    pub icc: bool,
    /// `--ip-forward`.
    pub ip_forward: bool,
    /// `--ip-forward-no-drop`.
    pub ip_forward_no_drop: bool,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--iptables`: whether the engine writes IPv4 firewall rules at all.
    pub iptables: bool,
    /// `--ip6tables`: the same for IPv6.
    pub ip6tables: bool,
    /// `--firewall-backend`: `nftables`, `iptables`, or `None` to choose.
    pub firewall_backend: Option<String>,
    /// `--ipv6` on the default bridge.
    pub ipv6: bool,
    /// `--userland-proxy`.
    pub userland_proxy: bool,
    /// `--allow-direct-routing`.
    pub allow_direct_routing: bool,
    /// `--host-firewall`: published ports are the host's own services to its firewall. Visitors are carried, and seen with the bridge's address.
    pub host_firewall: bool,
    /// `--default-address-pool`; empty for the built-in ones.
    pub default_address_pools: Vec<AddressPool>,
    /// `--default-network-opt`: driver → option → value.
    pub default_network_opts: BTreeMap<String, BTreeMap<String, String>>,
    /// `--host-gateway-ip`.
    pub host_gateway_ips: Vec<IpAddr>,
    /// `--dns`.
    pub dns: Vec<IpAddr>,
    /// `--dns-opt`.
    pub dns_opts: Vec<String>,
    /// `--dns-search`.
    pub dns_search: Vec<String>,
}

/// What the command line asks for.
pub enum Asked {
    /// Run with these settings.
    Run(Box<Config>),
    /// `--validate`: the settings are fine.
    Valid,
    /// `--version`.
    Version,
    /// `--help`, with its text.
    Help(String),
}

/// Why there is no configuration, in dockerd's words.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Default for Config {
    fn default() -> Self {
        Raw::default().check(PathBuf::from(DEFAULT_FILE), Map::new()).expect("the defaults are valid")
    }
}

impl Config {
    /// Reads the command line and daemon.json.
    ///
    /// # Errors
    /// Either says something that is wrong, unknown or unsupported, or both say the same.
    pub fn load(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Asked, ConfigError> {
        let matches = match options::command().try_get_matches_from(args) {
            Ok(matches) => matches,
            Err(err) if err.kind() == clap::error::ErrorKind::DisplayHelp => {
                return Ok(Asked::Help(err.render().to_string()));
            }
            Err(err) => {
                let text = err.render().to_string();
                let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
                return Err(ConfigError(text));
            }
        };
        if matches.get_flag("version") {
            return Ok(Asked::Version);
        }
        let flags = options::from_flags(&matches).map_err(ConfigError)?;
        let named = options::flag_text(&matches, "config-file");
        let path = PathBuf::from(named.unwrap_or(DEFAULT_FILE));
        let config = Self::from_parts(path, named.is_some(), flags)?;
        if options::flag_set(&matches, "validate") {
            return Ok(Asked::Valid);
        }
        Ok(Asked::Run(Box::new(config)))
    }

    fn from_parts(path: PathBuf, asked_for: bool, flags: Map<String, Value>) -> Result<Self, ConfigError> {
        let file = file::read(&path, asked_for).map_err(ConfigError)?;
        let from_file = file.is_some();
        let wrap = |why: String| {
            ConfigError(if from_file {
                format!("unable to configure the Docker daemon with file {}: {why}", path.display())
            } else {
                why
            })
        };
        let merged = file::merge(file.unwrap_or_default(), &flags).map_err(wrap)?;
        raw::refuse(&merged, &flags).map_err(wrap)?;
        let bytes = Value::Object(merged).to_string();
        let raw: Raw = docker_api::json::from_slice(bytes.as_bytes()).map_err(|err| wrap(err.to_string()))?;
        let checked = raw.check(path.clone(), flags);
        checked.map_err(|why| {
            wrap(if from_file {
                format!("merged configuration validation from file and command line flags failed: {why}")
            } else {
                why
            })
        })
    }

    /// What may change while the engine runs.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Reads the file again and takes over what may change; gives the names of the keys that did. A file that cannot be used changes nothing.
    ///
    /// # Errors
    /// The file is wrong.
    pub fn reload(&self) -> Result<Vec<&'static str>, ConfigError> {
        let fresh = Self::from_parts(self.file.clone(), false, self.flags.clone())?;
        let (old, new) = (self.live(), fresh.live());
        let mut changed = Vec::new();
        let mut note = |name: &'static str, differs: bool| {
            if differs {
                changed.push(name);
            }
        };
        note("authorization-plugins", old.authorization_plugins != new.authorization_plugins);
        note("debug", old.debug != new.debug);
        note("labels", old.labels != new.labels);
        note("registry-mirrors", old.registry_mirrors != new.registry_mirrors);
        note("insecure-registries", old.insecure_registries != new.insecure_registries);
        note("runtimes", old.runtimes != new.runtimes);
        note("default-runtime", old.default_runtime != new.default_runtime);
        note("shutdown-timeout", old.shutdown_timeout_secs != new.shutdown_timeout_secs);
        note("max-concurrent-downloads", old.max_concurrent_downloads != new.max_concurrent_downloads);
        note("max-concurrent-uploads", old.max_concurrent_uploads != new.max_concurrent_uploads);
        note("max-download-attempts", old.max_download_attempts != new.max_download_attempts);
        note("features", old.features != new.features);
        self.live.store(new);
        Ok(changed)
    }

    /// The engine's store.
    pub fn store_path(&self) -> PathBuf {
        self.data_root.join("engine.redb")
    }

    /// A container's own directory: log, hosts, resolv.conf and the like.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.data_root.join("containers").join(id)
    }

    /// What belongs to a container while it runs: shim-io files, sockets.
    pub fn container_run_dir(&self, id: &str) -> PathBuf {
        self.exec_root.join("containers").join(id)
    }

    /// The socket of the containerd this engine talks to.
    pub fn containerd_socket(&self) -> PathBuf {
        self.containerd.clone().unwrap_or_else(|| self.exec_root.join("containerd/containerd.sock"))
    }

    /// Whether the engine starts and owns its containerd.
    pub fn owns_containerd(&self) -> bool {
        self.containerd.is_none()
    }

    /// The directory of volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.data_root.join("volumes")
    }

    /// The event journal.
    pub fn events_dir(&self) -> PathBuf {
        self.data_root.join("events")
    }

    /// The directory of per-registry settings (`certs.d`), as dockerd's `/etc/docker/certs.d`.
    pub fn certs_dir(&self) -> &Path {
        Path::new("/etc/docker/certs.d")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str], file: Option<&str>) -> Result<Asked, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        let mut all = vec!["dockerd-rs".into()];
        if let Some(file) = file {
            std::fs::write(&path, file).unwrap();
            all.extend(["--config-file".into(), path.clone().into_os_string()]);
        }
        all.extend(args.iter().map(std::ffi::OsString::from));
        Config::load(all).map_err(|err| err.0.replace(&path.display().to_string(), "FILE"))
    }

    fn run(args: &[&str], file: Option<&str>) -> Config {
        match load(args, file) {
            Ok(Asked::Run(config)) => *config,
            Err(err) => panic!("{err}"),
            Ok(_) => panic!("not asked to run"),
        }
    }

    fn refused(args: &[&str], file: Option<&str>) -> String {
        match load(args, file) {
            Err(err) => err,
            Ok(_) => panic!("not refused: {args:?} {file:?}"),
        }
    }

    #[test]
    fn defaults_are_dockerds() {
        let config = Config::default();
        assert_eq!(config.data_root, Path::new("/var/lib/docker"));
        assert_eq!(config.hosts, ["unix:///var/run/docker.sock"]);
        assert_eq!((config.group.as_str(), config.live().default_runtime.as_str()), ("docker", "runc"));
        assert_eq!((config.network.mtu, config.network.icc, config.default_shm_size), (1500, true, 64 << 20));
        assert!(config.live().runtimes.contains_key("runc"));
    }

    #[test]
    fn file_and_flags_are_read_together() {
        let file = r#"{"labels":["a=b"],"runtimes":{"x":{"path":"/x","runtimeArgs":["--y"]}},"dns":["1.1.1.1"],
            "log-opts":{"max-size":"1m"},"default-ulimits":{"nofile":{"Name":"nofile","Hard":2,"Soft":1}},
            "default-address-pools":[{"base":"10.0.0.0/8","size":24}],"features":{"containerd-snapshotter":true}}"#;
        let config =
            run(&["--default-runtime", "x", "-H", "tcp://127.0.0.1:0", "--iptables=false"], Some(file));
        let live = config.live();
        assert_eq!(
            (live.default_runtime.as_str(), live.runtimes["x"].args.as_slice()),
            ("x", &["--y".to_owned()][..])
        );
        assert_eq!(live.labels, ["a=b"]);
        assert_eq!(config.network.dns, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.default_ulimits["nofile"].soft, 1);
        assert!(!config.network.iptables);
        assert_eq!(config.network.default_address_pools[0].size, 24);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        assert_eq!(refused(&["--rootless"], None), "--rootless: rootless mode is not supported");
        assert!(
            refused(&[], Some(r#"{"userns-remap":"default"}"#))
                .ends_with("userns-remap: user namespaces for containers are not supported")
        );
        assert!(matches!(load(&["--rootless=false"], None), Ok(Asked::Run(_))));
        assert!(refused(&["--storage-driver", "zfs"], None).contains("zfs"));
    }

    #[test]
    fn whatever_cannot_be_done_is_refused_on_the_command_line_and_in_the_file() {
        use options::Form::*;
        for option in options::OPTIONS {
            let Some(why) = option.refused else { continue };
            let (flag, file) = match option.form {
                Bool => ("true", "true"),
                Int | Bytes => ("7", "7"),
                Text => ("x", r#""x""#),
                List => ("x", r#"["x"]"#),
                Map => ("a=b", r#"{"a":"b"}"#),
                Runtimes | Ulimits | Pools | MapOfMaps => unreachable!("none of them is refused"),
            };
            if !option.flag.is_empty() {
                let told = refused(&[&format!("--{}={flag}", option.flag)], None);
                assert_eq!(told, format!("--{}: {why}", option.flag));
            }
            if !option.key.is_empty() {
                let told = refused(&["--validate"], Some(&format!(r#"{{"{}":{file}}}"#, option.key)));
                assert!(told.ends_with(&format!("{}: {why}", option.key)), "{told}");
            }
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        let rows = [
            (
                r#"{"labels":["a"]}"#,
                "merged configuration validation from file and command line flags failed: bad attribute format: a",
            ),
            (
                r#"{"log-level":7}"#,
                "invalid JSON: json: cannot unmarshal number into Go struct field .log-level of type string",
            ),
            (
                r#"{"dns":["zz"]}"#,
                "merged configuration validation from file and command line flags failed: invalid IP address: zz",
            ),
            (
                r#"{"default-runtime":"x"}"#,
                "merged configuration validation from file and command line flags failed: specified default runtime 'x' does not exist",
            ),
            (r#"{"#, "invalid JSON: unexpected EOF"),
        ];
        for (file, want) in rows {
            let want = format!("unable to configure the Docker daemon with file FILE: {want}");
            assert_eq!(refused(&[], Some(file)), want, "{file}");
        }
        assert_eq!(refused(&["--log-level", "loud"], None), "invalid logging level: loud");
        assert_eq!(
            refused(&["--tlsverify", "-H", "bogus://x"], None),
            "invalid bind address (bogus://x): unsupported proto 'bogus'"
        );
    }

    #[test]
    fn reload_changes_what_may_change_and_nothing_when_the_file_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, r#"{"labels":["a=1"]}"#).unwrap();
        let args = ["dockerd-rs".into(), "--config-file".into(), path.clone().into_os_string()];
        let Ok(Asked::Run(config)) = Config::load(args) else { panic!() };
        std::fs::write(&path, r#"{"labels":["a=2"],"debug":true,"registry-mirrors":["https://m.example"]}"#)
            .unwrap();
        assert_eq!(config.reload().unwrap(), ["debug", "labels", "registry-mirrors"]);
        assert_eq!(config.live().labels, ["a=2"]);
        std::fs::write(&path, r#"{"labels":["#).unwrap();
        assert!(config.reload().is_err());
        assert_eq!(config.live().labels, ["a=2"]);
    }

    #[test]
    fn version_help_and_validate() {
        assert!(matches!(load(&["--version"], None), Ok(Asked::Version)));
        assert!(matches!(load(&["-v"], None), Ok(Asked::Version)));
        let Ok(Asked::Help(text)) = load(&["--help"], None) else { panic!() };
        assert!(text.contains("--data-root"));
        assert!(matches!(load(&["--validate"], Some("{}")), Ok(Asked::Valid)));
    }
}
