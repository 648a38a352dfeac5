//! What a client may ask of a new network: read, checked, and completed into a record. Texts are Docker's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use super::ipam::{self, Space};
use super::model::{Driver, Network, Pool, Prefix, new_id};
use super::rules::{Bridge, Gateway};
use crate::error::{Error, Result};

/// The body of `POST /networks/create`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Create {
    /// Its name.
    #[serde(deserialize_with = "nil")]
    pub name: String,
    /// Its driver; empty is `bridge`.
    #[serde(deserialize_with = "nil")]
    pub driver: String,
    /// `local` or `swarm`.
    #[serde(deserialize_with = "nil")]
    pub scope: String,
    /// Whether endpoints get IPv4 addresses.
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: Option<bool>,
    /// Whether endpoints get IPv6 addresses.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: Option<bool>,
    /// Address management.
    #[serde(rename = "IPAM")]
    pub ipam: Option<Ipam>,
    /// Without a way out.
    #[serde(deserialize_with = "nil")]
    pub internal: bool,
    /// Kept for the answer.
    #[serde(deserialize_with = "nil")]
    pub attachable: bool,
    /// Swarm's routing mesh.
    #[serde(deserialize_with = "nil")]
    pub ingress: bool,
    /// Only a configuration for others.
    #[serde(deserialize_with = "nil")]
    pub config_only: bool,
    /// The configuration to take.
    pub config_from: Option<ConfigFrom>,
    /// Driver options.
    #[serde(deserialize_with = "nil")]
    pub options: BTreeMap<String, String>,
    /// Labels.
    #[serde(deserialize_with = "nil")]
    pub labels: BTreeMap<String, String>,
}

/// The configuration network to take settings from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigFrom {
    /// Its name.
    #[serde(deserialize_with = "nil")]
    pub network: String,
}

/// How addresses are managed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// The manager; empty is `default`.
    #[serde(deserialize_with = "nil")]
    pub driver: String,
    /// Its options.
    pub options: Option<BTreeMap<String, String>>,
    /// Pools.
    pub config: Option<Vec<IpamPool>>,
}

/// A pool as a client writes it; every part may be missing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamPool {
    /// The network.
    #[serde(deserialize_with = "prefix")]
    pub subnet: Option<Prefix>,
    /// Where addresses are handed out from.
    #[serde(rename = "IPRange", deserialize_with = "prefix")]
    pub range: Option<Prefix>,
    /// The host's address.
    #[serde(deserialize_with = "address")]
    pub gateway: Option<IpAddr>,
    /// Addresses never handed out.
    #[serde(deserialize_with = "addresses")]
    pub auxiliary_addresses: BTreeMap<String, IpAddr>,
}

/// JSON null is the type's zero value, as in Go.
fn nil<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Prefix>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .transpose()
}

/// Go's `netip.ParseAddr` and its commonest error.
pub fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("ParseAddr({text:?}): unable to parse IP"))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.filter(|text| !text.is_empty())
        .map(|text| parse_address(&text).map_err(serde::de::Error::custom))
        .transpose()
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, IpAddr>, D::Error> {
    let texts: Option<BTreeMap<String, String>> = Option::deserialize(deserializer)?;
    texts
        .unwrap_or_default()
        .into_iter()
        .map(|(name, text)| Ok((name, parse_address(&text).map_err(serde::de::Error::custom)?)))
        .collect()
}

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Names no user's network may have.
pub const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "default"];
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MTU: &str = "com.docker.network.driver.mtu";
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];

/// What else there is, for the checks that depend on it.
pub struct Surroundings<'a> {
    /// The networks there are.
    pub networks: &'a [&'a Network],
    /// What the host's own links and routes use.
    pub host: &'a [Prefix],
    /// Where pools are cut from.
    pub spaces: &'a [Space],
}

fn joined(prefix: &str, errors: &[String]) -> Result<()> {
    match errors {
        [] => Ok(()),
        [one] => Err(Error::invalid(format!("{prefix}:\n{one}"))),
        many => Err(Error::invalid(format!("{prefix}:\n* {}", many.join("\n* ")))),
    }
}

fn check_pools(pools: &[IpamPool]) -> Result<()> {
    let mut errors = Vec::new();
    for pool in pools {
        let shown = pool.subnet.map_or_else(|| "invalid Prefix".to_owned(), |subnet| subnet.to_string());
        if let Some(subnet) = pool.subnet
            && subnet != subnet.network()
        {
            errors.push(format!("invalid subnet {subnet}: it should be {}", subnet.network()));
        }
        let inside = |ip| pool.subnet.is_some_and(|subnet| subnet.contains(ip));
        if let Some(range) = pool.range {
            if !inside(range.ip) || pool.subnet.is_some_and(|subnet| range.len < subnet.len) {
                errors.push(format!(
                    "invalid ip-range {range}: parent subnet {shown} doesn't contain ip-range"
                ));
            } else if range != range.network() {
                errors.push(format!("invalid ip-range {range}: it should be {}", range.network()));
            }
        }
        if let Some(gateway) = pool.gateway
            && !inside(gateway)
        {
            errors.push(format!(
                "invalid gateway {gateway}: parent subnet {shown} doesn't contain this address"
            ));
        }
        for (name, ip) in &pool.auxiliary_addresses {
            if !inside(*ip) {
                errors.push(format!(
                    "invalid auxiliary address {name}: parent subnet {shown} doesn't contain this address"
                ));
            }
        }
    }
    joined("invalid network config", &errors)
}

fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in options {
        match key.as_str() {
            MTU => {
                let bad = |why: &str| {
                    Error::invalid(format!(
                        "failed to parse {key} value: {value} (strconv.Atoi: parsing {value:?}: {why})"
                    ))
                };
                match value.parse::<i64>() {
                    Err(_) => return Err(bad("invalid syntax")),
                    Ok(mtu) if mtu < 0 => return Err(Error::invalid(format!("invalid MTU number: {mtu}"))),
                    Ok(_) => {}
                }
            }
            "com.docker.network.bridge.enable_icc"
            | "com.docker.network.bridge.enable_ip_masquerade"
            | "com.docker.network.bridge.default_bridge"
            | "com.docker.network.bridge.inhibit_ipv4"
                if parse_bool(value).is_none() =>
            {
                return Err(Error::invalid(format!(
                    "failed to parse {key} value: {value} (strconv.ParseBool: parsing {value:?}: invalid syntax)"
                )));
            }
            key if GATEWAY_MODES.contains(&key) && gateway_mode(value).is_none() => {
                return Err(Error::invalid(format!(
                    "failed to parse {key} value: {value} (unknown gateway mode {value})"
                )));
            }
            "com.docker.network.bridge.host_binding_ipv4"
            | "com.docker.network.host_ipv4"
            | "com.docker.network.host_ipv6"
                if value.parse::<IpAddr>().is_err() =>
            {
                return Err(Error::invalid(format!(
                    "failed to parse {key} value: {value} (not an ip address)"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn gateway_mode(text: &str) -> Option<Gateway> {
    match text {
        "" | "nat" => Some(Gateway::Nat),
        "nat-unprotected" => Some(Gateway::NatUnprotected),
        "routed" => Some(Gateway::Routed),
        "isolated" => Some(Gateway::Isolated),
        _ => None,
    }
}

/// The rules' view of a bridge network.
pub fn bridge(network: &Network) -> Bridge {
    let address = |key: &str| network.option(key).and_then(|text| text.parse().ok());
    Bridge {
        link: network.link.clone(),
        subnets: used_pools(network).map(|pool| pool.subnet).collect(),
        internal: network.internal,
        icc: network.flag("com.docker.network.bridge.enable_icc", true),
        masquerade: network.flag("com.docker.network.bridge.enable_ip_masquerade", true),
        source: [address("com.docker.network.host_ipv4"), address("com.docker.network.host_ipv6")],
        gateway: GATEWAY_MODES.map(|key| network.option(key).and_then(gateway_mode).unwrap_or_default()),
        direct: false,
        trusted: network
            .option("com.docker.network.bridge.trusted_host_interfaces")
            .map(|list| list.split(':').map(str::to_owned).collect())
            .unwrap_or_default(),
    }
}

/// The pools endpoints get addresses from: of the families that are on, the first of each.
pub fn used_pools(network: &Network) -> impl Iterator<Item = &Pool> {
    network.pools.iter().filter(|pool| if pool.subnet.ip.is_ipv6() { network.ipv6 } else { network.ipv4 })
}

/// Which driver a name means.
fn driver(name: &str) -> Result<Driver> {
    match name {
        "" | "bridge" => Ok(Driver::Bridge),
        "macvlan" => Ok(Driver::Macvlan),
        "ipvlan" => Ok(Driver::Ipvlan),
        "host" | "null" => {
            Err(Error::forbidden(format!("only one instance of \"{name}\" network is allowed")))
        }
        "overlay" => Err(Error::forbidden(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        )),
        other => Err(Error::not_found(format!("plugin \"{other}\" not found"))),
    }
}

/// Checks a request and completes it into a record; nothing is made yet.
///
/// # Errors
/// In Docker's words, in the order in which Docker finds them.
pub fn complete(create: Create, around: &Surroundings<'_>) -> Result<Network> {
    if create.name.is_empty() {
        return Err(Error::invalid("invalid name: name is empty"));
    }
    if PREDEFINED.contains(&create.name.as_str()) {
        return Err(Error::forbidden(format!(
            "operation is not permitted on predefined {} network ",
            create.name
        )));
    }
    if around.networks.iter().any(|network| network.name == create.name) {
        return Err(Error::conflict(format!("network with name {} already exists", create.name)));
    }
    if create.ingress {
        return Err(Error::forbidden("Ingress network can only be global scope network"));
    }
    if create.scope == "swarm" {
        return Err(Error::forbidden("cannot create a swarm scoped network when swarm is not active"));
    }
    let from = create.config_from.as_ref().map(|from| from.network.clone()).unwrap_or_default();
    if create.config_only && !from.is_empty() {
        return Err(Error::forbidden(
            "a configuration network cannot depend on another configuration network",
        ));
    }
    let ipam = create.ipam.clone().unwrap_or_default();
    if !matches!(ipam.driver.as_str(), "" | "default" | "null") {
        return Err(Error::not_found(format!("plugin {:?} not found", ipam.driver)));
    }
    let wanted = ipam.config.clone().unwrap_or_default();
    check_pools(&wanted)?;
    let mut network = Network {
        id: new_id(),
        created: now(),
        scope: if create.scope.is_empty() || create.scope == "local" {
            "local".into()
        } else {
            create.scope.clone()
        },
        driver: driver(&create.driver)?,
        ipv4: create.enable_ipv4.unwrap_or(true),
        ipv6: create.enable_ipv6.unwrap_or(false),
        ipam_options: ipam.options,
        pools: Vec::new(),
        internal: create.internal,
        attachable: create.attachable,
        config_from: from.clone(),
        config_only: create.config_only,
        options: create.options,
        labels: create.labels,
        link: String::new(),
        owns_link: false,
        name: create.name,
    };
    // Scope is what the client says only for swarm; anything else is local.
    network.scope = "local".into();
    if network.config_only {
        network.pools = wanted.iter().filter_map(given_pool).collect();
        return Ok(network);
    }
    let mut wanted = wanted;
    if !from.is_empty() {
        let Some(config) = around.networks.iter().find(|other| other.config_only && other.name == from)
        else {
            return Err(Error::not_found(format!("configuration network {from:?} does not exist")));
        };
        network.ipv4 = config.ipv4;
        network.ipv6 = config.ipv6;
        network.internal |= config.internal;
        network.options.clone_from(&config.options);
        wanted = config.pools.iter().map(asked_pool).collect();
    }
    if !network.ipv4 && !network.ipv6 {
        return Err(Error::invalid("IPv4 or IPv6 must be enabled"));
    }
    check_options(&network.options)?;
    name_link(&mut network, around)?;
    network.pools = choose_pools(&network, &wanted, around)?;
    Ok(network)
}

fn given_pool(pool: &IpamPool) -> Option<Pool> {
    let auxiliary = pool.auxiliary_addresses.clone();
    Some(Pool { subnet: pool.subnet?, range: pool.range, gateway: pool.gateway, auxiliary })
}

fn asked_pool(pool: &Pool) -> IpamPool {
    IpamPool {
        subnet: Some(pool.subnet),
        range: pool.range,
        gateway: pool.gateway,
        auxiliary_addresses: pool.auxiliary.clone(),
    }
}

fn name_link(network: &mut Network, around: &Surroundings<'_>) -> Result<()> {
    match network.driver {
        Driver::Bridge => {
            network.link = match network.option(BRIDGE_NAME) {
                Some(name) if !name.is_empty() => name.to_owned(),
                _ => format!("br-{}", &network.id[..12]),
            };
            network.owns_link = true;
            let link = &network.link;
            if link.len() > nl::link::NAME_MAX
                || link.contains(['/', ' ', ':'])
                || link == "."
                || link == ".."
            {
                return Err(Error::invalid(format!("invalid bridge name {link:?}")));
            }
            let same = |other: &&&Network| other.driver == Driver::Bridge && other.link == *link;
            if let Some(other) = around.networks.iter().find(same) {
                return Err(Error::forbidden(format!(
                    "cannot create network {} ({link}): conflicts with network {} ({link}): networks have same bridge name",
                    network.id, other.id
                )));
            }
        }
        Driver::Macvlan | Driver::Ipvlan => {
            let parent = network.option("parent").unwrap_or_default().to_owned();
            // Without a parent the endpoints hang on a link of the network's own that leads nowhere.
            network.owns_link = parent.is_empty();
            network.link = if parent.is_empty() { format!("dm-{}", &network.id[..12]) } else { parent };
        }
        Driver::Host | Driver::Null => {}
    }
    Ok(())
}

/// The pools as asked for, with gateways; and one of each family that is on and was not asked for.
fn choose_pools(network: &Network, wanted: &[IpamPool], around: &Surroundings<'_>) -> Result<Vec<Pool>> {
    let taken: Vec<Prefix> = around
        .networks
        .iter()
        .filter(|other| !other.config_only)
        .flat_map(|other| used_pools(other).map(|pool| pool.subnet))
        .collect();
    let mut pools: Vec<Pool> = Vec::new();
    for v6 in [false, true] {
        let on = if v6 { network.ipv6 } else { network.ipv4 };
        for mut pool in wanted.iter().filter_map(given_pool).filter(|pool| pool.subnet.ip.is_ipv6() == v6) {
            if on
                && taken
                    .iter()
                    .chain(pools.iter().map(|p| &p.subnet))
                    .any(|other| other.overlaps(&pool.subnet))
            {
                return Err(Error::forbidden(
                    "invalid pool request: Pool overlaps with other one on this address space",
                ));
            }
            if on {
                complete_gateway(&mut pool)?;
            }
            pools.push(pool);
        }
    }
    for v6 in [false, true] {
        let on = if v6 { network.ipv6 } else { network.ipv4 };
        if !on || pools.iter().any(|pool| pool.subnet.ip.is_ipv6() == v6) {
            continue;
        }
        let all: Vec<Prefix> =
            taken.iter().chain(around.host).copied().chain(pools.iter().map(|p| p.subnet)).collect();
        let subnet = ipam::free_pool(around.spaces, v6, &all).map_err(|err| held_by(&err, v6, around))?;
        let mut pool = Pool { subnet, range: None, gateway: None, auxiliary: BTreeMap::new() };
        complete_gateway(&mut pool)?;
        pools.push(pool);
    }
    Ok(pools)
}

/// A refusal for want of pools, with who has them.
fn held_by(err: &Error, v6: bool, around: &Surroundings<'_>) -> Error {
    let within = |subnet: &Prefix| {
        subnet.ip.is_ipv6() == v6 && around.spaces.iter().any(|space| space.base.overlaps(subnet))
    };
    let networks = around.networks.iter().filter(|network| !network.config_only).flat_map(|network| {
        used_pools(network)
            .map(|pool| pool.subnet)
            .filter(within)
            .map(|subnet| format!("{} ({subnet})", network.name))
    });
    let mut holders: Vec<String> = networks.collect();
    let ours =
        |subnet: &Prefix| around.networks.iter().any(|n| used_pools(n).any(|pool| pool.subnet == *subnet));
    let mut foreign: Vec<String> = around
        .host
        .iter()
        .filter(|subnet| within(subnet) && !ours(subnet))
        .map(ToString::to_string)
        .collect();
    foreign.sort();
    foreign.dedup();
    if !foreign.is_empty() {
        holders.push(format!("links and routes of the host ({})", foreign.join(", ")));
    }
    Error::invalid(format!("{}: held by {}", err.message(), holders.join(", ")))
}

fn complete_gateway(pool: &mut Pool) -> Result<()> {
    if pool.gateway.is_none() {
        let taken = pool.auxiliary.values().copied().collect();
        let free = ipam::free_address(pool, &taken);
        pool.gateway =
            Some(free.ok_or_else(|| Error::invalid("failed to allocate gateway: no available addresses"))?);
    }
    Ok(())
}

/// The predefined networks; `bridge` gets its pool where it is made.
pub fn predefined(name: &str, driver: Driver) -> Network {
    Network {
        id: new_id(),
        name: name.to_owned(),
        created: now(),
        scope: "local".into(),
        driver,
        ipv4: true,
        ipv6: false,
        ipam_options: None,
        pools: Vec::new(),
        internal: false,
        attachable: false,
        config_from: String::new(),
        config_only: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        link: String::new(),
        owns_link: false,
    }
}

/// This moment, as Docker writes it.
pub fn now() -> String {
    let text = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9f").to_string();
    format!("{}Z", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests and refusals as recorded from the real engine (API 1.55).
    #[test]
    fn refusals_are_the_recorded_ones() {
        let spaces = ipam::default_spaces();
        let existing = {
            let mut network = predefined("rec-net", Driver::Bridge);
            let subnet = "10.77.0.0/24".parse().unwrap();
            network.pools = vec![Pool { subnet, range: None, gateway: None, auxiliary: BTreeMap::new() }];
            network.link = "recbr2".into();
            network
        };
        let mut config = predefined("rec-cfg", Driver::Bridge);
        config.config_only = true;
        let networks = [&existing, &config];
        let refuse = |body: &str| {
            let around = Surroundings { networks: &networks, host: &[], spaces: &spaces };
            let err = match docker_api::json::from_slice::<Create>(body.as_bytes()) {
                Err(err) => Error::invalid(err.to_string()),
                Ok(create) => complete(create, &around).unwrap_err(),
            };
            (err.kind().status().as_u16(), err.message().to_owned())
        };
        for (body, status, text) in [
            (r#"{"Name":""}"#, 400, "invalid name: name is empty"),
            (r#"{"Name":"rec-net"}"#, 409, "network with name rec-net already exists"),
            (r#"{"Name":"bridge"}"#, 403, "operation is not permitted on predefined bridge network "),
            (r#"{"Name":"default"}"#, 403, "operation is not permitted on predefined default network "),
            (r#"{"Name":"x","Driver":"bogus"}"#, 404, "plugin \"bogus\" not found"),
            (r#"{"Name":"x","Driver":"host"}"#, 403, "only one instance of \"host\" network is allowed"),
            (
                r#"{"Name":"x","Scope":"swarm"}"#,
                403,
                "cannot create a swarm scoped network when swarm is not active",
            ),
            (r#"{"Name":"x","Ingress":true}"#, 403, "Ingress network can only be global scope network"),
            (
                r#"{"Name":"x","IPAM":{"Config":[{"Subnet":"10.77.0.0/16"}]}}"#,
                403,
                "invalid pool request: Pool overlaps with other one on this address space",
            ),
            (
                r#"{"Name":"x","IPAM":{"Config":[{"Subnet":"bogus"}]}}"#,
                400,
                "invalid JSON: netip.ParsePrefix(\"bogus\"): no '/'",
            ),
            (
                r#"{"Name":"x","IPAM":{"Config":[{"Subnet":"10.79.0.5/24","Gateway":"10.80.0.1","IPRange":"10.81.0.0/24"}]}}"#,
                400,
                "invalid network config:\n* invalid subnet 10.79.0.5/24: it should be 10.79.0.0/24\n* invalid ip-range 10.81.0.0/24: parent subnet 10.79.0.5/24 doesn't contain ip-range\n* invalid gateway 10.80.0.1: parent subnet 10.79.0.5/24 doesn't contain this address",
            ),
            (
                r#"{"Name":"x","IPAM":{"Config":[{"Gateway":"10.79.0.1"}]}}"#,
                400,
                "invalid network config:\ninvalid gateway 10.79.0.1: parent subnet invalid Prefix doesn't contain this address",
            ),
            (
                r#"{"Name":"x","IPAM":{"Config":[{"Subnet":"10.79.0.0/24","AuxiliaryAddresses":{"x":"10.80.0.1"}}]}}"#,
                400,
                "invalid network config:\ninvalid auxiliary address x: parent subnet 10.79.0.0/24 doesn't contain this address",
            ),
            (r#"{"Name":"x","IPAM":{"Driver":"bogus"}}"#, 404, "plugin \"bogus\" not found"),
            (
                r#"{"Name":"x","Options":{"com.docker.network.driver.mtu":"abc"}}"#,
                400,
                "failed to parse com.docker.network.driver.mtu value: abc (strconv.Atoi: parsing \"abc\": invalid syntax)",
            ),
            (
                r#"{"Name":"x","Options":{"com.docker.network.bridge.enable_icc":"abc"}}"#,
                400,
                "failed to parse com.docker.network.bridge.enable_icc value: abc (strconv.ParseBool: parsing \"abc\": invalid syntax)",
            ),
            (r#"{"Name":"x","EnableIPv4":false}"#, 400, "IPv4 or IPv6 must be enabled"),
            (
                r#"{"Name":"x","ConfigFrom":{"Network":"nosuch"}}"#,
                404,
                "configuration network \"nosuch\" does not exist",
            ),
            (
                r#"{"Name":"x","ConfigOnly":true,"ConfigFrom":{"Network":"rec-cfg"}}"#,
                403,
                "a configuration network cannot depend on another configuration network",
            ),
        ] {
            assert_eq!(refuse(body), (status, text.to_owned()), "{body}");
        }
        let (status, text) = refuse(r#"{"Name":"x","Options":{"com.docker.network.bridge.name":"recbr2"}}"#);
        assert_eq!(status, 403);
        assert!(text.ends_with("(recbr2): networks have same bridge name"), "{text}");
    }

    #[test]
    fn pools_are_completed_and_listed_as_the_real_engine_does() {
        let spaces = ipam::default_spaces();
        let around =
            Surroundings { networks: &[], host: &["172.17.0.1/16".parse().unwrap()], spaces: &spaces };
        let create =
            |body: &str| complete(docker_api::json::from_slice(body.as_bytes()).unwrap(), &around).unwrap();
        let six = create(r#"{"Name":"n6","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"fd00:77::/64"}]}}"#);
        let shown: Vec<_> =
            six.pools.iter().map(|p| (p.subnet.to_string(), p.gateway.unwrap().to_string())).collect();
        assert_eq!(
            shown,
            [("fd00:77::/64".into(), "fd00:77::1".into()), ("172.18.0.0/16".into(), "172.18.0.1".into())]
        );
        let odd = create(r#"{"Name":"a/b c","Scope":"bogus"}"#);
        assert_eq!((odd.scope.as_str(), odd.link.len()), ("local", 15));
    }
}
