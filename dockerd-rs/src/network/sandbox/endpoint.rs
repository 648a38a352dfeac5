//! A place in one network, decided: its addresses, names and the name of its link. Pure but for what is drawn at random.

use docker_api::EndpointSettings;

use super::Resolved;
use super::plan::has_resolver;
use crate::error::{Error, Kind, Result};
use crate::network::model::{Driver, Endpoint, Link, Mac, Network, Place, Prefix, Wanted, new_id};
use crate::network::rules::Gateway;
use crate::network::spec::{self, used_pools};
use crate::network::{State, ipam};

/// Decides an endpoint's addresses and names. The caller holds the lock and puts the endpoint where the next one sees it.
pub(super) fn new_endpoint(
    state: &State,
    place: &Place,
    wanted: &Wanted,
    one: &Resolved,
    number: usize,
) -> Result<Endpoint> {
    let Resolved { network, settings } = one;
    let id = new_id();
    let linked = !matches!(network.driver, Driver::Host | Driver::Null);
    let mut endpoint = Endpoint {
        network: network.id.clone(),
        mac: None,
        v4: None,
        v6: None,
        gateway4: None,
        gateway6: None,
        host_link: if network.driver == Driver::Bridge { format!("veth{}", &id[..7]) } else { String::new() },
        link: if linked { link_name(settings, number)? } else { String::new() },
        names: Vec::new(),
        links: Vec::new(),
        priority: settings.gw_priority,
        sysctls: sysctls(settings),
        id,
    };
    if !linked {
        return Ok(endpoint);
    }
    let mut used = state.used(network);
    // Endpoints of this very place are not in the state yet.
    used.extend(
        place.endpoint(&network.id).iter().flat_map(|e| e.v4.iter().chain(&e.v6)).map(|prefix| prefix.ip),
    );
    let asked = settings.ipam_config.clone().unwrap_or_default();
    for (v6, asked) in [(false, asked.ipv4_address.0), (true, asked.ipv6_address.0)] {
        let pools: Vec<_> = used_pools(network).filter(|pool| pool.subnet.ip.is_ipv6() == v6).collect();
        if pools.is_empty() {
            continue;
        }
        let (pool, ip) = match asked {
            Some(ip) => {
                let pool = pools.iter().find(|pool| pool.subnet.contains(ip)).ok_or_else(|| {
                    Error::invalid(format!(
                        "invalid endpoint settings:\nno configured subnet contains IP address {ip}"
                    ))
                })?;
                if used.contains(&ip) {
                    return Err(Error::forbidden("Address already in use"));
                }
                (*pool, ip)
            }
            None => {
                let free =
                    pools.iter().find_map(|pool| ipam::free_address(pool, &used).map(|ip| (*pool, ip)));
                free.ok_or_else(|| exhausted(state, network, v6))?
            }
        };
        let prefix = Some(Prefix::new(ip, pool.subnet.len));
        let gateway = pool.gateway.filter(|_| !network.internal && !is_isolated(network, v6));
        if v6 {
            (endpoint.v6, endpoint.gateway6) = (prefix, gateway);
        } else {
            (endpoint.v4, endpoint.gateway4) = (prefix, gateway);
        }
    }
    if has_resolver(network) {
        endpoint.names = dns_names(wanted, settings);
        // Links of the container go with its mode's network, those of the endpoint with this one.
        let own: Vec<&str> = settings.links.iter().flatten().map(String::as_str).collect();
        endpoint.links = links_in(state, &own);
    }
    if number == 0 {
        endpoint
            .links
            .extend(wanted.links.iter().map(|Link { container, alias }| (alias.clone(), container.clone())));
    }
    // Those on a bridge remember who had an address. With the hardware address that belongs to it they stay right, also when nobody hears the
    // newcomer's announcement, as happens while many start at once.
    let own = endpoint.v4.filter(|_| network.driver == Driver::Bridge).and_then(|v4| Mac::of(v4.ip));
    endpoint.mac = Some(settings.mac_address.0.map(Mac).or(own).unwrap_or_else(Mac::random));
    Ok(endpoint)
}

fn is_isolated(network: &Network, v6: bool) -> bool {
    network.driver == Driver::Bridge && spec::bridge(network).gateway[usize::from(v6)] == Gateway::Isolated
}

/// No address is left: the message says who has them.
fn exhausted(state: &State, network: &Network, v6: bool) -> Error {
    let holders = state.places.values().filter(|place| place.endpoint(&network.id).is_some()).count();
    let family = if v6 { "IPv6" } else { "IPv4" };
    Error::new(
        Kind::System,
        format!(
            "no available {family} addresses on this network's address pools: {} ({}); {holders} containers hold addresses of it",
            network.name, network.id
        ),
    )
}

/// The link's name in the container: the one asked for, or the next number.
fn link_name(settings: &EndpointSettings, number: usize) -> Result<String> {
    const KEY: &str = "com.docker.network.endpoint.ifname";
    let Some(name) = settings.driver_opts.as_ref().and_then(|options| options.get(KEY)) else {
        return Ok(format!("eth{number}"));
    };
    let usable = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b':' | 0);
    if name.is_empty() || name.len() > 15 || name.starts_with('.') || !name.bytes().all(usable) {
        return Err(Error::invalid(format!("invalid interface name: {name:?}")));
    }
    Ok(name.clone())
}

fn sysctls(settings: &EndpointSettings) -> Vec<String> {
    const KEY: &str = "com.docker.network.endpoint.sysctls";
    let list = settings.driver_opts.as_ref().and_then(|opts| opts.get(KEY));
    list.map(|list| list.split(',').map(|one| one.trim().to_owned()).collect()).unwrap_or_default()
}

/// Names in a user's network: the container's, its aliases, its short id, its host name; each once.
pub(in crate::network) fn dns_names(wanted: &Wanted, settings: &EndpointSettings) -> Vec<String> {
    let short = wanted.container.get(..12).unwrap_or(&wanted.container).to_owned();
    let all = std::iter::once(wanted.name.clone())
        .chain(settings.aliases.iter().flatten().cloned())
        .chain([short, wanted.naming.hostname.clone()]);
    let mut names: Vec<String> = Vec::new();
    for name in all {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// `container:alias` pairs of an endpoint, with the containers found among those that have a place.
fn links_in(state: &State, pairs: &[&str]) -> Vec<(String, String)> {
    pairs
        .iter()
        .filter_map(|pair| {
            let (name, alias) = pair.split_once(':').unwrap_or((pair, pair));
            let name = name.trim_start_matches('/');
            let by_name = || {
                state.places.values().find(|place| place.name == name || place.container.starts_with(name))
            };
            let found = state.places.get(name).or_else(by_name)?;
            Some((alias.to_owned(), found.container.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_have_a_name_of_its_own() {
        let named = |name: &str| {
            let options = [("com.docker.network.endpoint.ifname".to_owned(), name.to_owned())];
            EndpointSettings { driver_opts: Some(options.into()), ..EndpointSettings::default() }
        };
        assert_eq!(link_name(&EndpointSettings::default(), 3).unwrap(), "eth3");
        assert_eq!(link_name(&named("lan7"), 3).unwrap(), "lan7");
        for bad in ["", "a/b", "a b", "..", "sixteen-letters!"] {
            assert!(link_name(&named(bad), 0).is_err(), "{bad}");
        }
    }
}
