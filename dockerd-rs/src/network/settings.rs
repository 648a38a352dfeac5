//! What clients see of networks and of a container's place in them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use docker_api::{Addr, EndpointSettings, MacAddress, Port};
use serde::Serialize;

use super::model::{Driver, Endpoint, Naming, Network, Place, Wanted};
use super::{Controller, State, ipam, sandbox};
use crate::container::Record;

/// `NetworkSettings` of a container's inspect.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NetworkSettings {
    /// Its sandbox; empty while it does not run.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// Where its namespace is bound.
    #[serde(rename = "SandboxKey")]
    pub sandbox_key: String,
    /// Published and exposed ports while it runs; an exposed one that is not published is null.
    #[serde(rename = "Ports")]
    pub ports: BTreeMap<Port, Option<Vec<PortMapping>>>,
    /// By network name.
    #[serde(rename = "Networks")]
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// Where a port is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortMapping {
    /// The host's address.
    #[serde(rename = "HostIp")]
    pub host_ip: String,
    /// The host's port.
    #[serde(rename = "HostPort")]
    pub host_port: String,
}

/// A network as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkView {
    name: String,
    id: String,
    created: String,
    scope: String,
    driver: String,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: IpamView,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFromView,
    config_only: bool,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<BTreeMap<String, Member>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpamView {
    driver: String,
    options: Option<BTreeMap<String, String>>,
    config: Option<Vec<PoolView>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PoolView {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: BTreeMap<String, IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFromView {
    network: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Member {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint: String,
    #[serde(rename = "MacAddress")]
    mac: String,
    #[serde(rename = "IPv4Address")]
    v4: String,
    #[serde(rename = "IPv6Address")]
    v6: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Status {
    #[serde(rename = "IPAM")]
    ipam: StatusIpam,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct StatusIpam {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subnets: BTreeMap<String, SubnetStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct SubnetStatus {
    #[serde(rename = "IPsInUse")]
    in_use: u64,
    #[serde(rename = "DynamicIPsAvailable")]
    available: u64,
}

/// A network as it is listed.
pub(super) fn view(network: &Network) -> NetworkView {
    let pools = network.pools.iter().map(|pool| PoolView {
        subnet: pool.subnet.to_string(),
        range: pool.range.map(|range| range.to_string()),
        gateway: pool.gateway,
        auxiliary_addresses: pool.auxiliary.clone(),
    });
    let config = (!network.pools.is_empty()).then(|| pools.collect());
    NetworkView {
        name: network.name.clone(),
        id: network.id.clone(),
        created: network.created.clone(),
        scope: network.scope.clone(),
        driver: if network.config_only { "null".into() } else { network.driver.name().into() },
        enable_ipv4: network.ipv4,
        enable_ipv6: network.ipv6,
        ipam: IpamView { driver: "default".into(), options: network.ipam_options.clone(), config },
        internal: network.internal,
        attachable: network.attachable,
        ingress: false,
        config_from: ConfigFromView { network: network.config_from.clone() },
        config_only: network.config_only,
        options: network.options.clone(),
        labels: network.labels.clone(),
        containers: None,
        status: None,
    }
}

/// Who is in a network, by the containers' ids.
fn members(state: &State, network: &str) -> BTreeMap<String, Member> {
    let text = |prefix: Option<super::model::Prefix>| prefix.map(|p| p.to_string()).unwrap_or_default();
    let placed = state.places.values();
    placed
        .filter_map(|place| place.endpoint(network).map(|endpoint| (place, endpoint)))
        .map(|(place, endpoint)| {
            let member = Member {
                name: place.name.clone(),
                endpoint: endpoint.id.clone(),
                mac: endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                v4: text(endpoint.v4),
                v6: text(endpoint.v6),
            };
            (place.container.clone(), member)
        })
        .collect()
}

impl Controller {
    /// Adds to each network of a list who is in it: clients before API 1.28 find it there.
    pub fn add_members(&self, networks: &mut [NetworkView]) {
        let state = self.0.state();
        for network in networks {
            network.containers = Some(members(&state, &network.id));
        }
    }

    /// One network as inspect shows it.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn inspect(&self, given: &str, with_status: bool) -> crate::error::Result<NetworkView> {
        let state = self.0.state();
        let network = state.find(given)?;
        let mut shown = view(network);
        shown.containers = Some(members(&state, &network.id));
        if with_status {
            let used = state.used(network);
            let subnets = super::spec::used_pools(network)
                .map(|pool| {
                    let ipam::Usage { in_use, available } = ipam::usage(pool, &used);
                    (pool.subnet.to_string(), SubnetStatus { in_use, available })
                })
                .collect();
            shown.status = Some(Status { ipam: StatusIpam { subnets } });
        }
        Ok(shown)
    }

    /// What a container's inspect shows: live if it runs, else what it asked for.
    pub fn settings(&self, record: &Record) -> NetworkSettings {
        let state = self.0.state();
        let named = |key: &str| state.find(if key == "default" { "bridge" } else { key }).ok();
        let mut shown = NetworkSettings::default();
        if record.network_of().is_some() {
            return shown;
        }
        for (key, settings) in &record.networks {
            let network = named(key);
            let mut settings = EndpointSettings {
                network_id: String::new(),
                endpoint_id: String::new(),
                ..settings.clone()
            };
            if let Some(network) = network.filter(|n| !n.predefined() && n.driver != Driver::Null) {
                let wanted = Wanted {
                    container: record.id.clone(),
                    name: record.name.clone(),
                    naming: Naming { hostname: record.config.hostname.clone(), ..Naming::default() },
                    ..Wanted::default()
                };
                settings.dns_names = Some(sandbox::dns_names(&wanted, &settings));
                if record.started_once {
                    settings.network_id.clone_from(&network.id);
                }
            } else if record.started_once
                && let Some(network) = network
            {
                settings.network_id.clone_from(&network.id);
            }
            shown.networks.insert(network.map_or_else(|| key.clone(), |n| n.name.clone()), settings);
        }
        let Some(place) = state.places.get(&record.id) else { return shown };
        shown.sandbox_id.clone_from(&place.id);
        let key = if place.own_namespace {
            self.0.namespace_path(place)
        } else {
            self.0.namespaces.join("default")
        };
        shown.sandbox_key = key.to_string_lossy().into_owned();
        shown.ports = ports(place, self.0.publishes(&state, place));
        for endpoint in &place.endpoints {
            let Some(network) = state.networks.get(&endpoint.network) else { continue };
            let settings = shown.networks.entry(network.name.clone()).or_default();
            live(settings, endpoint);
        }
        shown
    }

    /// A container's published ports while it runs, for lists: container port, and where each is published.
    pub fn published(&self, container: &str) -> BTreeMap<Port, Option<Vec<PortMapping>>> {
        let state = self.0.state();
        let place = state.places.get(container);
        place.map(|place| ports(place, self.0.publishes(&state, place))).unwrap_or_default()
    }

    /// The containers that run in a network, given by name or id: their ids.
    pub fn members(&self, given: &str) -> Vec<String> {
        let state = self.0.state();
        let Ok(network) = state.find(given) else { return Vec::new() };
        state
            .places
            .values()
            .filter(|place| place.endpoint(&network.id).is_some())
            .map(|place| place.container.clone())
            .collect()
    }
}

fn live(settings: &mut EndpointSettings, endpoint: &Endpoint) {
    let addr = |ip: Option<IpAddr>| Addr(ip);
    settings.network_id.clone_from(&endpoint.network);
    settings.endpoint_id.clone_from(&endpoint.id);
    settings.gateway = addr(endpoint.gateway4);
    settings.ip_address = addr(endpoint.v4.map(|p| p.ip));
    settings.ip_prefix_len = endpoint.v4.map_or(0, |p| p.len.into());
    settings.ipv6_gateway = addr(endpoint.gateway6);
    settings.global_ipv6_address = addr(endpoint.v6.map(|p| p.ip));
    settings.global_ipv6_prefix_len = endpoint.v6.map_or(0, |p| p.len.into());
    settings.mac_address = MacAddress(endpoint.mac.map(|mac| mac.0));
    if !endpoint.names.is_empty() {
        settings.dns_names = Some(endpoint.names.clone());
    }
}

fn ports(place: &Place, publishes: bool) -> BTreeMap<Port, Option<Vec<PortMapping>>> {
    let mut shown: BTreeMap<Port, Option<Vec<PortMapping>>> = BTreeMap::new();
    if !place.own_namespace {
        return shown;
    }
    // Where nothing can be published, what is exposed is not shown either.
    if publishes {
        shown.extend(place.exposed.iter().map(|port| (port.clone(), None)));
    }
    for run in place.ports.iter().filter(|_| publishes) {
        for offset in 0..run.count {
            let port = Port::new(run.container_port.saturating_add(offset), run.protocol.name());
            let host_port = match run.host_port {
                0 => String::new(),
                first => first.saturating_add(offset).to_string(),
            };
            let mapping = PortMapping { host_ip: run.host_ip.to_string(), host_port };
            shown.entry(port).or_default().get_or_insert_with(Vec::new).push(mapping);
        }
    }
    shown
}
