//! From a container's record to the OCI runtime specification its task is made from.
//!
//! [`build`] decides and touches nothing but device nodes' numbers; [`prepare`] finds out what it needs to know (users, other containers'
//! namespaces, volumes) and calls it. Driven by a container's start.

pub(super) mod mounts;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::spec::model::{ConsoleSize, Namespace, OCI_VERSION, Process, Rlimit, Root, Spec, User};

use super::record::Record;
use super::{Container, rootfs};
use crate::engine::Engine;
use crate::error::{Error, Result};

pub use self::mounts::{prepare_sources, release_sources};
pub use self::resources::{CgroupPlace, resources};

/// The search path of a container that has none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the init program is in the container.
const INIT: &str = "/sbin/docker-init";

/// Where a container's network is, and its files.
#[derive(Clone, Debug, Default)]
pub struct NetworkPlace {
    /// The file its network namespace is bound to; `None` is the host's.
    pub namespace: Option<PathBuf>,
    /// What is bound over `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// What is bound over `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// What is bound over `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// Variables of legacy links.
    pub link_env: Vec<String>,
}

/// What a start found out about the world before it builds the specification.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The network.
    pub network: NetworkPlace,
    /// Who the process is.
    pub user: User,
    /// Host paths of binds and volumes, and mounts of images, by destination.
    pub sources: BTreeMap<String, mounts::Ready>,
    /// The process whose IPC namespace and /dev/shm are shared.
    pub ipc_of: Option<u32>,
    /// The process whose PID namespace is shared.
    pub pid_of: Option<u32>,
    /// The init program on the host.
    pub init: PathBuf,
    /// Where the cgroup goes unless the container says.
    pub cgroup: CgroupPlace,
    /// The engine's own bounding set: more cannot be given.
    pub capabilities: Vec<&'static str>,
    /// Ulimits of every container.
    pub default_ulimits: Vec<crate::config::Ulimit>,
    /// Whether every container has an init unless it says.
    pub default_init: bool,
    /// Whether no container may gain privileges.
    pub no_new_privileges: bool,
    /// The engine's `--seccomp-profile`: `builtin`, `unconfined`, or a file.
    pub seccomp_profile: String,
}

/// Finds out what a start needs and builds the specification, as JSON. Volumes are mounted when this returns; [`release_sources`]
/// lets go of them, also after a failure.
///
/// # Errors
/// A user, a device, a container to join, or a source is not there.
pub async fn prepare(engine: &Arc<Engine>, container: &Container, network: NetworkPlace) -> Result<Vec<u8>> {
    let record = container.record();
    let world = world(engine, &record, network).await?;
    let spec = build(&record, &world)?;
    serde_json::to_vec(&spec).map_err(|err| Error::system(format!("encode specification: {err}")))
}

async fn world(engine: &Arc<Engine>, record: &Record, network: NetworkPlace) -> Result<World> {
    let joined = |mode: &str| -> Result<Option<u32>> {
        let Some(other) = mode.strip_prefix("container:") else { return Ok(None) };
        let other = engine.containers.get(other)?.record();
        match other.pid() {
            Some(_) if other.life.state == super::State::Restarting => Err(Error::conflict(format!(
                "container {} is restarting, wait until the container is running",
                other.id
            ))),
            Some(pid) => Ok(Some(pid)),
            None => Err(Error::conflict(format!(
                "cannot join namespace of a non running container: container {} is {}",
                other.id,
                other.life.state.word()
            ))),
        }
    };
    let ipc_of = joined(&record.host_config.ipc_mode)?;
    let pid_of = joined(&record.host_config.pid_mode)?;
    let sources = prepare_sources(engine, record).await?;
    let user = rootfs::user(engine, record, &record.config.user).await?;
    Ok(World {
        network,
        user,
        sources,
        ipc_of,
        pid_of,
        init: match &engine.config.init_path {
            Some(path) => path.clone(),
            None => crate::guest::init_path(&engine.config.data_root)?,
        },
        cgroup: CgroupPlace::of(&engine.config),
        capabilities: own_capabilities(),
        default_ulimits: engine.config.default_ulimits.values().cloned().collect(),
        default_init: engine.config.init,
        no_new_privileges: engine.config.no_new_privileges,
        seccomp_profile: engine.config.seccomp_profile.clone(),
    })
}

/// The engine's own bounding set.
pub fn own_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).map(str::trim);
    ::spec::caps::of_mask(mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(u64::MAX))
}

/// Builds the specification.
///
/// # Errors
/// What the container asks for cannot be written as one.
pub fn build(record: &Record, world: &World) -> Result<Spec> {
    let host = &record.host_config;
    let mut spec = Spec {
        oci_version: OCI_VERSION.into(),
        process: process(record, world),
        root: Root { path: "rootfs".into(), readonly: host.readonly_rootfs },
        annotations: host.annotations.clone().unwrap_or_default(),
        ..Spec::default()
    };
    if host.uts_mode != "host" {
        spec.hostname = record.config.hostname.clone();
    }
    spec.linux.namespaces = namespaces(record, world);
    spec.linux.sysctl = sysctls(record);
    spec.linux.cgroups_path = world.cgroup.path(record);
    spec.linux.resources = resources(host)?;
    security::apply(&mut spec, record, world)?;
    mounts::apply(&mut spec, record, world)?;
    Ok(spec)
}

fn process(record: &Record, world: &World) -> Process {
    let (config, host) = (&record.config, &record.host_config);
    let [height, width] = host.console_size;
    let mut args: Vec<String> = config.argv().cloned().collect();
    if has_init(record, world) {
        args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    Process {
        terminal: config.tty,
        console_size: (config.tty && (height, width) != (0, 0)).then_some(ConsoleSize { height, width }),
        user: world.user.clone(),
        args,
        env: environment(record, &world.network.link_env),
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        oom_score_adj: Some(host.oom_score_adj),
        rlimits: rlimits(record, world),
        ..Process::default()
    }
}

/// Whether the container runs under the small init. In another's process namespace it could not be its first process.
fn has_init(record: &Record, world: &World) -> bool {
    let pid_mode = record.host_config.pid_mode.as_str();
    pid_mode.is_empty() && record.host_config.init.unwrap_or(world.default_init)
}

/// The environment of a container's processes: what every one has, then links, then the container's own.
pub fn environment(record: &Record, link_env: &[String]) -> Vec<String> {
    let config = &record.config;
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    if config.tty {
        env.push("TERM=xterm".into());
    }
    env.extend(link_env.iter().cloned());
    merge_environment(&mut env, config.env.iter().flatten());
    env
}

/// Puts `more` over `env`: `NAME=value` replaces in place or is added, `NAME` takes away.
pub fn merge_environment<'a>(env: &mut Vec<String>, more: impl IntoIterator<Item = &'a String>) {
    let mut index: std::collections::HashMap<String, usize> =
        env.iter().enumerate().map(|(at, entry)| (variable(entry).to_owned(), at)).collect();
    let mut gone = Vec::new();
    for entry in more {
        let name = variable(entry);
        match index.get(name) {
            Some(at) if entry.contains('=') => env[*at].clone_from(entry),
            Some(at) => gone.push(*at),
            None if entry.contains('=') => {
                index.insert(name.to_owned(), env.len());
                env.push(entry.clone());
            }
            None => {}
        }
    }
    gone.sort_unstable();
    gone.dedup();
    for at in gone.into_iter().rev() {
        env.remove(at);
    }
}

fn variable(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn rlimits(record: &Record, world: &World) -> Vec<Rlimit> {
    let own = record.host_config.ulimits.iter().flatten();
    let named: Vec<&str> = own.clone().map(|limit| limit.name.as_str()).collect();
    let inherited = world.default_ulimits.iter().filter(|limit| !named.contains(&limit.name.as_str()));
    own.map(|limit| (&limit.name, limit.soft, limit.hard))
        .chain(inherited.map(|limit| (&limit.name, limit.soft, limit.hard)))
        .map(|(name, soft, hard)| Rlimit {
            kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            // -1 is the kernel's RLIM_INFINITY.
            soft: soft.cast_unsigned(),
            hard: hard.cast_unsigned(),
        })
        .collect()
}

fn namespaces(record: &Record, world: &World) -> Vec<Namespace> {
    let host = &record.host_config;
    let new = |kind: &str| Namespace { kind: kind.into(), path: String::new() };
    let of = |pid: u32, kind: &str, file: &str| Namespace {
        kind: kind.into(),
        path: format!("/proc/{pid}/ns/{file}"),
    };
    let mut namespaces = vec![new("mount")];
    if let Some(path) = &world.network.namespace {
        namespaces.push(Namespace { kind: "network".into(), path: path.display().to_string() });
    }
    if host.uts_mode != "host" {
        namespaces.push(new("uts"));
    }
    match world.pid_of {
        Some(pid) => namespaces.push(of(pid, "pid", "pid")),
        None if host.pid_mode == "host" => {}
        None => namespaces.push(new("pid")),
    }
    match world.ipc_of {
        Some(pid) => namespaces.push(of(pid, "ipc", "ipc")),
        None if host.ipc_mode == "host" => {}
        None => namespaces.push(new("ipc")),
    }
    if host.cgroupns_mode == "private" {
        namespaces.push(new("cgroup"));
    }
    namespaces
}

fn sysctls(record: &Record) -> BTreeMap<String, String> {
    let host = &record.host_config;
    let mut sysctls = BTreeMap::new();
    let own_network = host.network_mode != "host" && record.network_of().is_none();
    if own_network {
        for (name, value) in
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        {
            if Path::new("/proc/sys").join(name.replace('.', "/")).exists() {
                sysctls.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    if host.uts_mode != "host" && !record.config.domainname.is_empty() {
        // The specification's own field came late; runtimes know the setting.
        sysctls.insert("kernel.domainname".into(), record.config.domainname.clone());
    }
    sysctls.extend(host.sysctls.clone().unwrap_or_default());
    sysctls
}
