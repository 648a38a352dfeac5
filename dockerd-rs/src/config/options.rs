//! Every option: its flag, its key in daemon.json, its form, and whether the engine can do it.
//!
//! The table is the one place where names are written; the command line, the file, conflicts between them and the refusal of what the
//! engine cannot do all come from it.

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

/// What an option's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Bool,
    Text,
    Int,
    /// A size with a unit (`64m`), a number of bytes in the file.
    Bytes,
    /// May be given several times; an array in the file.
    List,
    /// `key=value`, several times; an object in the file.
    Map,
    /// `name=path`, several times; `{name: {"path": …}}` in the file.
    Runtimes,
    /// `name=soft[:hard]`, several times.
    Ulimits,
    /// `base=CIDR,size=N`, several times.
    Pools,
    /// `driver=key=value`, several times.
    MapOfMaps,
}

/// One option.
pub struct Opt {
    /// The long flag; empty for keys that are in the file only.
    pub flag: &'static str,
    pub short: Option<char>,
    /// The key in daemon.json; empty for flags that are on the command line only.
    pub key: &'static str,
    pub form: Form,
    /// `Some` says why the engine refuses it. A refused option may still be given its default.
    pub refused: Option<&'static str>,
    pub help: &'static str,
}

const fn opt(flag: &'static str, key: &'static str, form: Form, help: &'static str) -> Opt {
    Opt { flag, short: None, key, form, refused: None, help }
}

const fn short(short: char, mut opt: Opt) -> Opt {
    opt.short = Some(short);
    opt
}

const fn no(mut opt: Opt, why: &'static str) -> Opt {
    opt.refused = Some(why);
    opt
}

use Form::{Bool, Bytes, Int, List, Map as KeyValue, MapOfMaps, Pools, Runtimes, Text, Ulimits};

/// All options, in the order of the help text.
pub const OPTIONS: &[Opt] = &[
    opt("add-runtime", "runtimes", Runtimes, "Register an additional OCI compatible runtime"),
    opt(
        "allow-direct-routing",
        "allow-direct-routing",
        Bool,
        "Allow remote access to published ports on container IP addresses",
    ),
    opt("authorization-plugin", "authorization-plugins", List, "Authorization plugins to load"),
    opt("bip", "bip", Text, "IPv4 address for the default bridge"),
    opt("bip6", "bip6", Text, "IPv6 address for the default bridge"),
    short('b', opt("bridge", "bridge", Text, "Attach containers to a network bridge")),
    no(
        opt("cdi-spec-dir", "cdi-spec-dirs", List, "CDI specification directories to use"),
        "CDI devices are not supported",
    ),
    opt("cgroup-parent", "cgroup-parent", Text, "Set parent cgroup for all containers"),
    opt("config-file", "", Text, "Daemon configuration file"),
    opt("containerd", "containerd", Text, "containerd grpc address"),
    opt("containerd-namespace", "containerd-namespace", Text, "Containerd namespace to use"),
    opt(
        "containerd-plugins-namespace",
        "containerd-plugin-namespace",
        Text,
        "Containerd namespace to use for plugins",
    ),
    no(
        opt(
            "cpu-rt-period",
            "cpu-rt-period",
            Int,
            "Limit the CPU real-time period in microseconds for the parent cgroup",
        ),
        "real-time limits of the parent cgroup are not supported",
    ),
    no(
        opt(
            "cpu-rt-runtime",
            "cpu-rt-runtime",
            Int,
            "Limit the CPU real-time runtime in microseconds for the parent cgroup",
        ),
        "real-time limits of the parent cgroup are not supported",
    ),
    no(
        opt("cri-containerd", "cri-containerd", Bool, "start containerd with cri"),
        "the containerd this engine starts serves no CRI",
    ),
    opt("data-root", "data-root", Text, "Root directory of persistent Docker state"),
    short('D', opt("debug", "debug", Bool, "Enable debug mode")),
    opt(
        "default-address-pool",
        "default-address-pools",
        Pools,
        "Default address pools for node specific local networks",
    ),
    opt(
        "default-cgroupns-mode",
        "default-cgroupns-mode",
        Text,
        "Default mode for containers cgroup namespace (\"host\" | \"private\")",
    ),
    opt(
        "default-gateway",
        "default-gateway",
        Text,
        "Default gateway IPv4 address for the default bridge network",
    ),
    opt(
        "default-gateway-v6",
        "default-gateway-v6",
        Text,
        "Default gateway IPv6 address for the default bridge network",
    ),
    opt(
        "default-ipc-mode",
        "default-ipc-mode",
        Text,
        "Default mode for containers ipc (\"shareable\" | \"private\")",
    ),
    opt("default-network-opt", "default-network-opts", MapOfMaps, "Default network options"),
    opt("default-runtime", "default-runtime", Text, "Default OCI runtime for containers"),
    opt("default-shm-size", "default-shm-size", Bytes, "Default shm size for containers"),
    opt("default-ulimit", "default-ulimits", Ulimits, "Default ulimits for containers"),
    opt("dns", "dns", List, "DNS server to use"),
    opt("dns-opt", "dns-opts", List, "DNS options to use"),
    opt("dns-search", "dns-search", List, "DNS search domains to use"),
    opt("exec-opt", "exec-opts", List, "Runtime execution options"),
    opt("exec-root", "exec-root", Text, "Root directory for execution state files"),
    opt("experimental", "experimental", Bool, "Enable experimental features"),
    opt("feature", "features", KeyValue, "Enable feature in the daemon"),
    opt(
        "firewall-backend",
        "firewall-backend",
        Text,
        "Firewall backend to use (\"nftables\" | \"iptables\")",
    ),
    opt("fixed-cidr", "fixed-cidr", Text, "IPv4 subnet for the default bridge network"),
    opt("fixed-cidr-v6", "fixed-cidr-v6", Text, "IPv6 subnet for the default bridge network"),
    short('G', opt("group", "group", Text, "Group for the unix socket")),
    short('H', opt("host", "hosts", List, "Daemon socket(s) to connect to")),
    opt(
        "host-firewall",
        "host-firewall",
        Bool,
        "Published ports obey the host's firewall, as its own services do",
    ),
    opt(
        "host-gateway-ip",
        "host-gateway-ips",
        List,
        "IP addresses that the special 'host-gateway' string in --add-host resolves to",
    ),
    opt("http-proxy", "http-proxy", Text, "HTTP proxy URL to use for outgoing traffic"),
    opt("https-proxy", "https-proxy", Text, "HTTPS proxy URL to use for outgoing traffic"),
    opt("icc", "icc", Bool, "Enable inter-container communication for the default bridge network"),
    opt("init", "init", Bool, "Run an init in the container to forward signals and reap processes"),
    opt("init-path", "init-path", Text, "Path to the docker-init binary"),
    opt("insecure-registry", "insecure-registries", List, "Enable insecure registry communication"),
    opt("ip", "ip", Text, "Host IP for port publishing from the default bridge network"),
    opt("ip-forward", "ip-forward", Bool, "Enable IP forwarding in system configuration"),
    opt(
        "ip-forward-no-drop",
        "ip-forward-no-drop",
        Bool,
        "Do not set the filter-FORWARD policy to DROP when enabling IP forwarding",
    ),
    opt("ip-masq", "ip-masq", Bool, "Enable IP masquerading for the default bridge network"),
    opt("ip6tables", "ip6tables", Bool, "Enable addition of ip6tables rules"),
    opt("iptables", "iptables", Bool, "Enable addition of iptables rules"),
    opt("ipv6", "ipv6", Bool, "Enable IPv6 networking for the default bridge network"),
    opt("label", "labels", List, "Set key=value labels to the daemon"),
    opt("live-restore", "live-restore", Bool, "Keep containers alive during daemon downtime (always on)"),
    opt("log-driver", "log-driver", Text, "Default driver for container logs"),
    opt("log-format", "log-format", Text, "Set the logging format (\"text\"|\"json\")"),
    short(
        'l',
        opt(
            "log-level",
            "log-level",
            Text,
            "Set the logging level (\"debug\"|\"info\"|\"warn\"|\"error\"|\"fatal\")",
        ),
    ),
    opt("log-opt", "log-opts", KeyValue, "Default log driver options for containers"),
    opt("max-concurrent-downloads", "max-concurrent-downloads", Int, "Set the max concurrent downloads"),
    opt("max-concurrent-uploads", "max-concurrent-uploads", Int, "Set the max concurrent uploads"),
    opt("max-download-attempts", "max-download-attempts", Int, "Set the max download attempts for each pull"),
    opt("metrics-addr", "metrics-addr", Text, "Set default address and port to serve the metrics api on"),
    opt("mtu", "mtu", Int, "Set the MTU for the default \"bridge\" network"),
    no(
        opt("network-control-plane-mtu", "network-control-plane-mtu", Int, "Network Control plane MTU"),
        "this engine takes part in no swarm",
    ),
    opt(
        "no-new-privileges",
        "no-new-privileges",
        Bool,
        "Set no-new-privileges by default for new containers",
    ),
    opt(
        "no-proxy",
        "no-proxy",
        Text,
        "Comma-separated list of hosts or IP addresses for which the proxy is skipped",
    ),
    no(
        opt("node-generic-resource", "node-generic-resources", List, "Advertise user-defined resource"),
        "this engine takes part in no swarm",
    ),
    short('p', opt("pidfile", "pidfile", Text, "Path to use for daemon PID file")),
    opt("raw-logs", "raw-logs", Bool, "Full timestamps without ANSI coloring"),
    opt("registry-mirror", "registry-mirrors", List, "Preferred Docker registry mirror"),
    no(opt("rootless", "rootless", Bool, "Enable rootless mode"), "rootless mode is not supported"),
    opt(
        "seccomp-profile",
        "seccomp-profile",
        Text,
        "Path to seccomp profile. Set to \"unconfined\" to disable the default seccomp profile",
    ),
    no(
        opt("selinux-enabled", "selinux-enabled", Bool, "Enable selinux support"),
        "SELinux labels are not supported",
    ),
    opt("shutdown-timeout", "shutdown-timeout", Int, "Set the default shutdown timeout"),
    short('s', opt("storage-driver", "storage-driver", Text, "Storage driver to use")),
    no(
        opt("storage-opt", "storage-opts", List, "Storage driver options"),
        "the overlayfs snapshotter takes no options",
    ),
    no(
        opt(
            "swarm-default-advertise-addr",
            "swarm-default-advertise-addr",
            Text,
            "Set default address or interface for swarm advertised address",
        ),
        "this engine takes part in no swarm",
    ),
    opt("tls", "tls", Bool, "Use TLS; implied by --tlsverify"),
    opt("tlscacert", "tlscacert", Text, "Trust certs signed only by this CA"),
    opt("tlscert", "tlscert", Text, "Path to TLS certificate file"),
    opt("tlskey", "tlskey", Text, "Path to TLS key file"),
    opt("tlsverify", "tlsverify", Bool, "Use TLS and verify the remote"),
    opt("userland-proxy", "userland-proxy", Bool, "Use userland proxy for loopback traffic"),
    opt("userland-proxy-path", "userland-proxy-path", Text, "Path to the userland proxy binary"),
    no(
        opt("userns-remap", "userns-remap", Text, "User/Group setting for user namespaces"),
        "user namespaces for containers are not supported",
    ),
    opt("validate", "", Bool, "Validate daemon configuration and exit"),
    // In the file only.
    opt("", "min-api-version", Text, ""),
    opt("", "proxies", KeyValue, ""),
];

/// The option of a flag or a key.
pub fn by_key(key: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.key == key && !key.is_empty())
}

/// The command line, without the program's version (which is printed by `main`).
pub fn command() -> Command {
    let mut command = Command::new("dockerd-rs")
        .about("A self-sufficient runtime for containers.")
        .override_usage("dockerd-rs [OPTIONS]")
        .disable_version_flag(true)
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::SetTrue)
                .help("Print version information and quit"),
        );
    for opt in OPTIONS.iter().filter(|opt| !opt.flag.is_empty()) {
        let mut arg = Arg::new(opt.flag).long(opt.flag).help(opt.help).action(ArgAction::Append);
        if let Some(short) = opt.short {
            arg = arg.short(short);
        }
        arg = match opt.form {
            Bool => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_default_value(true)
                .value_parser(ValueParser::new(parse_bool)),
            _ => arg.num_args(1).allow_hyphen_values(true),
        };
        command = command.arg(arg);
    }
    command
}

/// The flags that were given, as the object daemon.json would have.
///
/// # Errors
/// A value is not of its option's form.
pub fn from_flags(matches: &ArgMatches) -> Result<Map<String, Value>, String> {
    let mut given = Map::new();
    for opt in OPTIONS.iter().filter(|opt| !opt.flag.is_empty() && !opt.key.is_empty()) {
        if matches.value_source(opt.flag) != Some(ValueSource::CommandLine) {
            continue;
        }
        let value = if opt.form == Bool {
            json!(matches.get_many::<bool>(opt.flag).and_then(Iterator::last).copied().unwrap_or(true))
        } else {
            let texts: Vec<&str> =
                matches.get_many::<String>(opt.flag).into_iter().flatten().map(String::as_str).collect();
            value(opt, &texts).map_err(|why| {
                let last = texts.last().copied().unwrap_or_default();
                format!("invalid argument {last:?} for \"--{}\" flag: {why}", opt.flag)
            })?
        };
        given.insert(opt.key.to_owned(), value);
    }
    Ok(given)
}

/// The text of a flag that has no key in the file.
pub fn flag_text<'a>(matches: &'a ArgMatches, flag: &str) -> Option<&'a str> {
    matches.get_many::<String>(flag).and_then(Iterator::last).map(String::as_str)
}

/// Whether a boolean flag without a key was given and is true.
pub fn flag_set(matches: &ArgMatches, flag: &str) -> bool {
    matches.get_many::<bool>(flag).and_then(Iterator::last).copied().unwrap_or(false)
}

fn value(opt: &Opt, texts: &[&str]) -> Result<Value, String> {
    let last = texts.last().copied().unwrap_or_default();
    match opt.form {
        Bool => parse_bool(last).map(Value::from),
        Text => Ok(json!(last)),
        Int => {
            last.parse::<i64>().map(Value::from).map_err(|_| format!("parse error: {last:?} is not a number"))
        }
        Bytes => bytes(last).map(Value::from).ok_or_else(|| format!("invalid size: '{last}'")),
        List => Ok(json!(texts)),
        KeyValue => pairs(texts, |text| Ok(json!(text))),
        Runtimes => pairs(texts, |path| Ok(json!({ "path": path }))),
        Ulimits => {
            let mut all = Map::new();
            for text in texts {
                let (name, limits) =
                    text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
                let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
                let number = |text: &str| text.parse::<i64>().map_err(|err| err.to_string());
                let (soft, hard) = (number(soft)?, number(hard)?);
                if hard != -1 && (soft > hard || soft == -1) {
                    return Err(format!(
                        "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                    ));
                }
                all.insert(name.to_owned(), json!({ "Name": name, "Soft": soft, "Hard": hard }));
            }
            Ok(Value::Object(all))
        }
        Pools => texts
            .iter()
            .map(|text| {
                let mut pool = Map::new();
                for part in text.split(',') {
                    match part.split_once('=') {
                        Some(("base", base)) => pool.insert("base".into(), json!(base)),
                        Some(("size", size)) => {
                            let size = size
                                .parse::<u8>()
                                .map_err(|_| format!("invalid size value: {size} (must be integer)"))?;
                            pool.insert("size".into(), json!(size))
                        }
                        _ => return Err(format!("invalid field '{part}' must be a key=value pair")),
                    };
                }
                Ok(Value::Object(pool))
            })
            .collect(),
        MapOfMaps => {
            let mut all = Map::new();
            for text in texts {
                let mut parts = text.splitn(3, '=');
                let (Some(name), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
                    return Err(format!("invalid value: {text}"));
                };
                let inner = all.entry(name).or_insert_with(|| json!({}));
                if let Some(inner) = inner.as_object_mut() {
                    inner.insert(key.to_owned(), json!(value));
                }
            }
            Ok(Value::Object(all))
        }
    }
}

fn pairs(texts: &[&str], make: impl Fn(&str) -> Result<Value, String>) -> Result<Value, String> {
    let mut all = Map::new();
    for text in texts {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        all.insert(key.to_owned(), make(value)?);
    }
    Ok(Value::Object(all))
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// `64m`, `1GiB`, `4096`: bytes, with units in powers of 1024.
pub fn bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit = text[digits.len()..].trim();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    let scaled = number * 2_f64.powi(shift);
    (0.0..9.2e18).contains(&scaled).then_some(scaled as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Result<Value, String> {
        let matches = command()
            .try_get_matches_from(std::iter::once("dockerd-rs").chain(args.iter().copied()))
            .map_err(|err| err.to_string())?;
        from_flags(&matches).map(Value::Object)
    }

    #[test]
    fn flags_become_what_the_file_would_say() {
        let args = [
            "-H",
            "unix:///a",
            "-H",
            "tcp://0.0.0.0:1",
            "--icc=false",
            "-D",
            "--label",
            "a=b",
            "--mtu",
            "1400",
            "--log-opt",
            "max-size=1m",
            "--add-runtime",
            "crun=/usr/bin/crun",
            "--default-ulimit",
            "nofile=1:2",
            "--default-address-pool",
            "base=10.1.0.0/16,size=24",
            "--default-shm-size",
            "32m",
            "--default-network-opt",
            "bridge=com.docker.network.driver.mtu=1234",
        ];
        assert_eq!(
            flags(&args).unwrap(),
            json!({
                "runtimes": {"crun": {"path": "/usr/bin/crun"}},
                "debug": true,
                "default-address-pools": [{"base": "10.1.0.0/16", "size": 24}],
                "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1234"}},
                "default-shm-size": 33_554_432,
                "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}},
                "hosts": ["unix:///a", "tcp://0.0.0.0:1"],
                "icc": false,
                "labels": ["a=b"],
                "log-opts": {"max-size": "1m"},
                "mtu": 1400,
            })
        );
        assert_eq!(flags(&[]).unwrap(), json!({}));
        assert!(flags(&["--bogus"]).is_err());
        assert!(flags(&["--default-ulimit", "nofile=3:2"]).is_err());
        assert!(flags(&["--mtu", "x"]).is_err());
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("64m", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("4096", Some(4096)),
            ("1.5k", Some(1536)),
            ("x", None),
            ("-1", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    #[test]
    fn every_name_is_there_once() {
        let mut names: Vec<&str> =
            OPTIONS.iter().map(|opt| opt.flag).filter(|flag| !flag.is_empty()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        command().debug_assert();
    }
}
