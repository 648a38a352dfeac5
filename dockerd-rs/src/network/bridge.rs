//! Networks' links on the host: bridges made, found again, and removed; parents of macvlan.

use std::net::IpAddr;

use nl::{Messages, Socket, addr, link};

use super::model::{Driver, Mac, Network, Prefix};
use super::spec::used_pools;
use super::steps::{BRIDGE_FILTER, sysctl};
use crate::error::{Error, Result};

fn kernel(err: &nl::Error) -> Error {
    // Docker passes the kernel's word on as it is.
    Error::system(err.reason())
}

/// The mark this engine leaves on its links: how it knows them from another engine's.
pub fn mark(instance: &str) -> String {
    format!("dockerd-rs:{instance}")
}

/// What the host's links and routes use: no pool may overlap it.
///
/// # Errors
/// The kernel does not say.
pub fn host_networks() -> Result<Vec<Prefix>> {
    let mut socket = Socket::route().map_err(|err| kernel(&err))?;
    let addresses = addr::list(&mut socket).map_err(|err| kernel(&err))?;
    let routes = addr::routes(&mut socket).map_err(|err| kernel(&err))?;
    let used = addresses.iter().map(|a| Prefix::new(a.ip, a.prefix).network());
    let routed = routes.iter().filter(|r| r.prefix > 0).map(|r| Prefix::new(r.destination, r.prefix));
    Ok(used.chain(routed).collect())
}

/// Whether this host has IPv6 at all.
pub fn host_has_v6() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|text| !text.is_empty())
}

/// Makes a network's link on the host, or brings the one there is in line with the record. Done again after every start of the engine.
///
/// # Errors
/// The kernel refused, or the link is another engine's.
pub fn make(network: &Network, instance: &str) -> Result<()> {
    let mut socket = Socket::route().map_err(|err| kernel(&err))?;
    match network.driver {
        Driver::Host | Driver::Null => Ok(()),
        Driver::Bridge => make_bridge(&mut socket, network, instance),
        Driver::Macvlan | Driver::Ipvlan => make_parent(&mut socket, network, instance),
    }
}

fn make_bridge(socket: &mut Socket, network: &Network, instance: &str) -> Result<()> {
    let name = network.link.as_str();
    let mut made = false;
    let found = link::find(socket, name).map_err(|err| kernel(&err))?;
    let bridge = match found {
        Some(found) => {
            if found.kind != "bridge" {
                return Err(Error::system(format!("existing interface {name} is not a bridge")));
            }
            check_owner(&found, instance)?;
            found
        }
        None => {
            let mut out = Messages::new();
            link::add_bridge(&mut out, name, network.mtu(), Mac::random().0);
            socket.all(out).map_err(|err| kernel(&err))?;
            made = true;
            link::find(socket, name)
                .map_err(|err| kernel(&err))?
                .ok_or_else(|| Error::system(format!("bridge {name} vanished")))?
        }
    };
    let wanted: Vec<Prefix> = used_pools(network)
        .filter(|pool| !isolated(network, pool.subnet.ip))
        .filter_map(|pool| pool.gateway.map(|ip| Prefix::new(ip, pool.subnet.len)))
        .collect();
    let prepared = prepare(name, wanted.iter().any(|address| address.ip.is_ipv6()));
    let mut out = Messages::new();
    if network.owns_link && bridge.alias.is_empty() {
        link::set_alias(&mut out, bridge.index, &mark(instance));
    }
    let present = addr::list(socket).map_err(|err| kernel(&err))?;
    for address in &wanted {
        if !present.iter().any(|a| a.link == bridge.index && a.ip == address.ip && a.prefix == address.len) {
            addr::add(&mut out, bridge.index, address.ip, address.len);
        }
    }
    // A gateway of an earlier configuration, on a bridge of ours.
    for old in present.iter().filter(|a| a.link == bridge.index && network.owns_link) {
        let link_local = matches!(old.ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local && !wanted.iter().any(|address| address.ip == old.ip && address.len == old.prefix) {
            addr::remove(&mut out, bridge.index, old.ip, old.prefix);
        }
    }
    link::set_up(&mut out, bridge.index);
    let done = prepared.and_then(|()| socket.all(out).map_err(|err| kernel(&err)));
    if done.is_err() && made {
        let mut out = Messages::new();
        link::delete(&mut out, bridge.index);
        // The bridge was made a moment ago and nobody else has seen it.
        let _ = socket.all(out);
    }
    done?;
    if !network.flag("com.docker.network.bridge.enable_icc", true)
        && std::path::Path::new(BRIDGE_FILTER).exists()
    {
        sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
        sysctl("net/bridge/bridge-nf-call-ip6tables", "1")?;
    }
    Ok(())
}

fn isolated(network: &Network, ip: IpAddr) -> bool {
    let key = if ip.is_ipv4() {
        "com.docker.network.bridge.gateway_mode_ipv4"
    } else {
        "com.docker.network.bridge.gateway_mode_ipv6"
    };
    network.option(key) == Some("isolated")
}

/// Settings of a bridge on the host.
fn prepare(name: &str, v6: bool) -> Result<()> {
    // Published ports on 127.0.0.1: answers from the bridge must be able to come back there. The rules guard it.
    sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
    if v6 {
        // Neighbours are asked from the link-local address: it must not be on probation for the first two seconds.
        sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    Ok(())
}

fn check_owner(found: &link::Link, instance: &str) -> Result<()> {
    match found.alias.strip_prefix("dockerd-rs:") {
        Some(other) if other != instance => Err(Error::forbidden(format!(
            "interface {} belongs to another engine ({other}): choose another name with --bridge",
            found.name
        ))),
        _ => Ok(()),
    }
}

fn make_parent(socket: &mut Socket, network: &Network, instance: &str) -> Result<()> {
    let name = network.link.as_str();
    if let Some(found) = link::find(socket, name).map_err(|err| kernel(&err))? {
        if found.loopback {
            return Err(Error::system(format!(
                "loopback interface is not a valid {} parent link",
                network.driver.name()
            )));
        }
        return Ok(());
    }
    let mut out = Messages::new();
    if network.owns_link {
        link::add_dummy(&mut out, name);
    } else {
        let vlan = name.rsplit_once('.').and_then(|(parent, id)| Some((parent, id.parse::<u16>().ok()?)));
        let Some((parent, id)) = vlan else {
            return Err(Error::system(format!("-o parent interface was not found on the host: {name}")));
        };
        let parent = link::find(socket, parent).map_err(|err| kernel(&err))?.ok_or_else(|| {
            Error::system(format!("-o parent interface was not found on the host: {parent}"))
        })?;
        link::add_vlan(&mut out, name, parent.index, id);
    }
    socket.all(out).map_err(|err| match network.owns_link {
        true => kernel(&err),
        false => kernel(&err).context(format!("failed to create {name} vlan link")),
    })?;
    let mut out = Messages::new();
    if let Some(made) = link::find(socket, name).map_err(|err| kernel(&err))? {
        link::set_alias(&mut out, made.index, &mark(instance));
    }
    socket.all(out).map_err(|err| kernel(&err))
}

/// Removes a network's link, if it is ours. One that is not there is content.
///
/// # Errors
/// The kernel refused.
pub fn remove(network: &Network, instance: &str) -> Result<()> {
    if network.link.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::route().map_err(|err| kernel(&err))?;
    let Some(found) = link::find(&mut socket, &network.link).map_err(|err| kernel(&err))? else {
        return Ok(());
    };
    if found.alias != mark(instance) {
        return Ok(());
    }
    let mut out = Messages::new();
    link::delete(&mut out, found.index);
    match socket.all(out) {
        Err(err) if !err.missing() => Err(kernel(&err)),
        _ => Ok(()),
    }
}

/// Removes links of this engine that no record knows: bridges with its mark, and ports of its bridges.
///
/// # Errors
/// The kernel does not say what there is.
pub fn remove_unknown(known_bridges: &[&str], known_ports: &[&str], instance: &str) -> Result<Vec<String>> {
    let mut socket = Socket::route().map_err(|err| kernel(&err))?;
    let links = link::list(&mut socket).map_err(|err| kernel(&err))?;
    let mark = mark(instance);
    let ours: Vec<u32> = links.iter().filter(|link| link.alias == mark).map(|link| link.index).collect();
    let port = |link: &&link::Link| {
        link.kind == "veth"
            && link
                .name
                .strip_prefix("veth")
                .is_some_and(|rest| rest.len() == 7 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
            && link.master.is_some_and(|master| ours.contains(&master))
            && !known_ports.contains(&link.name.as_str())
    };
    let bridge = |link: &&link::Link| link.alias == mark && !known_bridges.contains(&link.name.as_str());
    let doomed: Vec<&link::Link> = links.iter().filter(|link| port(link) || bridge(link)).collect();
    let mut out = Messages::new();
    doomed.iter().for_each(|doomed| link::delete(&mut out, doomed.index));
    // One that went by itself meanwhile is content.
    let _ = socket.each(out);
    Ok(doomed.into_iter().map(|link| link.name.clone()).collect())
}
