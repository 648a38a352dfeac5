//! Networks, endpoints and published ports.
//!
//! Invariants: what a container has on the host is on disk before it is there ([`model::Place`]), so that a crash at any point leaves nothing that
//! nobody knows of; an address or a host port is given out once; no thread of the runtime ever changes its namespace.
//!
//! Who drives it: the container's actor calls [`Controller::allocate`] before the runtime creates the container and [`Controller::release`] when it
//! has ended; the API handlers call the rest. One container's calls come one after the other; those of different containers run side by side.
//!
//! ```text
//! allocate: plan (lock) → ports taken → record → thread: namespace, links, routes, resolver, rules, helper
//! release:  thread: helper, rules, namespace → record gone → addresses and ports free
//! ```

mod bridge;
pub mod explain;
pub mod files;
mod firewall;
mod groundwork;
mod helper;
pub mod ipam;
pub mod legacy;
pub mod manage;
pub mod membership;
pub mod model;
pub mod ports;
mod restore;
pub mod rules;
mod sandbox;
pub mod settings;
pub mod spec;
mod steps;
#[cfg(test)]
mod tests;
mod xtables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use self::model::{Link, Naming, Network, Place, Wanted};
pub use self::sandbox::{Files, Namespace, Sandbox};
pub use self::settings::{NetworkSettings, PortMapping};
use crate::engine::Parts;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::store::{Store, Table};
use firewall::Firewall;
use helper::{Helper, Launch};
use ports::Ports;

/// What the operator says of networks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The default bridge's name (`--bridge`); `none` is no default bridge.
    pub bridge: String,
    /// The default bridge's address and network (`--bip`).
    pub bip: Option<model::Prefix>,
    /// The default bridge's IPv6 address and network (`--bip6`).
    pub bip6: Option<model::Prefix>,
    /// Where its containers' addresses come from (`--fixed-cidr`).
    pub fixed_cidr: Option<model::Prefix>,
    /// The same for IPv6 (`--fixed-cidr-v6`).
    pub fixed_cidr_v6: Option<model::Prefix>,
    /// The default bridge's gateway, if it is not the host (`--default-gateway`).
    pub default_gateway: Option<IpAddr>,
    /// Whether the default bridge has IPv6 (`--ipv6`).
    pub ipv6: bool,
    /// Whether its containers may talk to each other (`--icc`).
    pub icc: bool,
    /// Whether what leaves gets the host's address (`--ip-masq`).
    pub masquerade: bool,
    /// Its links' largest packet (`--mtu`).
    pub mtu: Option<u32>,
    /// Where ports are published by default (`--ip`).
    pub host_ip: IpAddr,
    /// Where pools are cut from (`--default-address-pool`); Docker's own if empty.
    pub pools: Vec<ipam::Space>,
    /// What `host-gateway` stands for (`--host-gateway-ip`); the default bridge's gateway if empty.
    pub host_gateway: Vec<IpAddr>,
    /// Whether forwarding is switched on (`--ip-forward`).
    pub forward: bool,
    /// Whether rules are written at all (`--iptables`).
    pub rules: bool,
    /// Whether other hosts may address containers directly (`--allow-direct-routing`).
    pub direct: bool,
    /// Whether published ports obey the host's firewall (`--host-firewall`).
    pub host_firewall: bool,
    /// Nameservers of containers that name none (`--dns`).
    pub dns: Vec<IpAddr>,
    /// Search domains of such (`--dns-search`).
    pub dns_search: Vec<String>,
    /// Resolver options of such (`--dns-opt`).
    pub dns_options: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bridge: "docker0".into(),
            bip: None,
            bip6: None,
            fixed_cidr: None,
            fixed_cidr_v6: None,
            default_gateway: None,
            ipv6: false,
            icc: true,
            masquerade: true,
            mtu: None,
            host_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
            pools: Vec::new(),
            host_gateway: Vec::new(),
            forward: true,
            rules: true,
            direct: false,
            host_firewall: false,
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        }
    }
}

impl Options {
    /// From the engine's configuration.
    ///
    /// # Errors
    /// An address or network cannot be read.
    pub fn read(config: &crate::config::Network) -> Result<Self> {
        let prefix = |text: &Option<String>, flag: &str| {
            let read =
                |text: &String| text.parse().map_err(|err| Error::invalid(format!("invalid {flag}: {err}")));
            text.as_ref().filter(|text| !text.is_empty()).map(read).transpose()
        };
        let mut pools = Vec::new();
        for pool in &config.default_address_pools {
            let base: model::Prefix = pool.base.parse().map_err(|err| {
                Error::invalid(format!("invalid default-address-pool base {}: {err}", pool.base))
            })?;
            if pool.size < base.len || pool.size > base.width() {
                return Err(Error::invalid(format!(
                    "invalid default-address-pool size {} for {base}",
                    pool.size
                )));
            }
            pools.push(ipam::Space { base: base.network(), size: pool.size });
        }
        Ok(Self {
            bridge: config.bridge.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "docker0".into()),
            bip: prefix(&config.bip, "bip")?,
            bip6: prefix(&config.bip6, "bip6")?,
            fixed_cidr: prefix(&config.fixed_cidr, "fixed-cidr")?,
            fixed_cidr_v6: prefix(&config.fixed_cidr_v6, "fixed-cidr-v6")?,
            default_gateway: config.default_gateway,
            ipv6: config.ipv6,
            icc: config.icc,
            masquerade: config.ip_masq,
            mtu: Some(config.mtu).filter(|mtu| *mtu > 0),
            host_ip: config.ip,
            pools,
            host_gateway: config.host_gateway_ips.clone(),
            forward: config.ip_forward,
            rules: config.iptables,
            direct: config.allow_direct_routing,
            host_firewall: config.host_firewall,
            dns: config.dns.clone(),
            dns_search: config.dns_search.clone(),
            dns_options: config.dns_opts.clone(),
        })
    }
}

/// Networks, endpoints and published ports; cheap to clone.
#[derive(Clone)]
pub struct Controller(Arc<Inner>);

struct Inner {
    options: Options,
    store: Store,
    events: Events,
    /// Where namespaces are bound.
    namespaces: PathBuf,
    /// Eight hex digits of the data root's name, or `default`: what tells this engine from others on the host.
    instance: String,
    table: String,
    state: Mutex<State>,
    ports: Mutex<Ports>,
    firewall: OnceLock<Arc<Firewall>>,
    helper: Arc<Helper>,
}

#[derive(Default)]
struct State {
    networks: BTreeMap<String, Network>,
    /// By container id.
    places: HashMap<String, Place>,
}

impl State {
    /// Addresses of a network that are in use: gateways, auxiliary ones, endpoints.
    fn used(&self, network: &Network) -> BTreeSet<IpAddr> {
        let pools = network.pools.iter();
        let fixed = pools.flat_map(|pool| pool.gateway.iter().chain(pool.auxiliary.values())).copied();
        let endpoints = self.places.values().filter_map(|place| place.endpoint(&network.id));
        let given =
            endpoints.flat_map(|endpoint| endpoint.v4.iter().chain(&endpoint.v6).map(|prefix| prefix.ip));
        fixed.chain(given).collect()
    }

    /// The network a client means: by full id, by name, or by the beginning of an id.
    fn find(&self, given: &str) -> Result<&Network> {
        if let Some(network) = self.networks.get(given) {
            return Ok(network);
        }
        let ambiguous = |count: usize, by: &str| {
            Error::invalid(format!("network {given} is ambiguous ({count} matches found based on {by})"))
        };
        let named: Vec<&Network> = self.networks.values().filter(|network| network.name == given).collect();
        match named.as_slice() {
            [one] => return Ok(one),
            [] => {}
            many => return Err(ambiguous(many.len(), "name")),
        }
        let with_prefix: Vec<&Network> =
            self.networks.values().filter(|network| network.id.starts_with(given)).collect();
        match with_prefix.as_slice() {
            [one] => Ok(one),
            [] => Err(Error::not_found(format!("network {given} not found"))),
            many => Err(ambiguous(many.len(), "ID prefix")),
        }
    }
}

/// Runs `work` on a thread that ends with it, and waits without blocking the runtime.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (done, answer) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("network".into()).stack_size(512 << 10).spawn(move || {
        // Nobody waits any more if the engine is ending.
        let _ = done.send(work());
    })?;
    answer.await.map_err(|_| Error::system("network set-up stopped"))?
}

impl Controller {
    /// Reads the records. Nothing is touched on the host yet: see [`Controller::restore`].
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(parts: &Parts) -> Result<Self> {
        let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        Self::with(parts, Options::read(&parts.config.network)?, Launch::Program(program))
    }

    fn with(parts: &Parts, options: Options, launch: Launch) -> Result<Self> {
        use sha2::{Digest, Sha256};
        let root = &parts.config.data_root;
        let instance = if root == std::path::Path::new("/var/lib/docker") {
            "default".to_owned()
        } else {
            hex::encode(&Sha256::digest(root.as_os_str().as_encoded_bytes())[..4])
        };
        let table =
            if instance == "default" { "dockerd-rs".to_owned() } else { format!("dockerd-rs-{instance}") };
        let mut state = State::default();
        for (id, network) in parts.store.list::<Network>(Table::Networks, "")? {
            match network {
                Ok(network) => drop(state.networks.insert(id, network)),
                Err(err) => tracing::error!(id, error = %err, "network cannot be read"),
            }
        }
        for (id, place) in parts.store.list::<Place>(Table::Endpoints, "")? {
            match place {
                Ok(place) => drop(state.places.insert(id, place)),
                Err(err) => tracing::error!(id, error = %err, "endpoints cannot be read"),
            }
        }
        let exec_root = &parts.config.exec_root;
        let inner = Arc::new(Inner {
            options,
            store: parts.store.clone(),
            events: parts.events.clone(),
            namespaces: exec_root.join("netns"),
            instance,
            table,
            state: Mutex::new(state),
            ports: Mutex::default(),
            firewall: OnceLock::new(),
            helper: Arc::new(Helper::new(exec_root.join("net-helper.sock"), launch)),
        });
        let weak = Arc::downgrade(&inner);
        inner.helper.on_lost(move || {
            if let Some(inner) = weak.upgrade() {
                inner.revive_helper();
            }
        });
        Ok(Self(inner))
    }
}

impl Inner {
    /// Held for a few lines, never across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn firewall(&self) -> Result<&Arc<Firewall>> {
        self.firewall.get().ok_or_else(|| Error::unavailable("networks are not ready yet"))
    }

    fn helper_handle(&self) -> Arc<Helper> {
        Arc::clone(&self.helper)
    }

    fn namespace_path(&self, place: &Place) -> PathBuf {
        self.namespaces.join(place.namespace_file())
    }
}
