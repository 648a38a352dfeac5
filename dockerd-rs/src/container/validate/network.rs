//! Networks and published ports.

use std::collections::BTreeMap;

use docker_api::{Config, EndpointSettings, HostConfig};

use crate::error::{Error, Result};

/// Checks options of the network mode against each other.
///
/// # Errors
/// A refusal.
pub fn check_modes(config: &Config, host: &HostConfig) -> Result<()> {
    let refuse = |text: &str| Err(Error::invalid(format!("conflicting options: {text}")));
    let any = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let shared = host.network_mode.strip_prefix("container:");
    if shared == Some("") || host.network_mode == "container" {
        return Err(Error::invalid("invalid network mode: invalid container format container:<name|id>"));
    }
    let shared = shared.is_some();
    if shared && !config.hostname.is_empty() {
        return refuse("hostname and the network mode");
    }
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return refuse("hostname and the UTS mode");
    }
    if shared && any(&host.links) {
        return refuse(
            "container type network can't be used with links. This would result in undefined behavior",
        );
    }
    if host.network_mode == "host" && any(&host.links) {
        return refuse(
            "host type networking can't be used with links. This would result in undefined behavior",
        );
    }
    if shared && host.dns.as_ref().is_some_and(|dns| !dns.is_empty()) {
        return refuse("dns and the network mode");
    }
    if shared && any(&host.extra_hosts) {
        return refuse("custom host-to-IP mapping and the network mode");
    }
    if (shared || host.network_mode == "host") && !config.mac_address.is_empty() {
        return refuse("mac-address and the network mode");
    }
    if shared
        && (host.publish_all_ports || host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty()))
    {
        return refuse("port publishing and the container type network mode");
    }
    if shared && config.exposed_ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
        return refuse("port exposing and the container type network mode");
    }
    Ok(())
}

/// Checks published ports: the protocol, and a host port or a range of them.
///
/// # Errors
/// A refusal.
pub fn parse_host_ports(host: &HostConfig) -> Result<()> {
    for (port, bindings) in host.port_bindings.iter().flatten() {
        if !matches!(port.proto.as_str(), "tcp" | "udp" | "sctp") {
            return Err(Error::invalid(format!("invalid protocol: {}", port.proto)));
        }
        for binding in bindings.iter().flatten() {
            let text = binding.host_port.as_str();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let number = |text: &str| {
                (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
                    .then(|| text.parse::<u16>().ok())
                    .flatten()
            };
            let valid =
                text.is_empty() || matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b);
            if !valid {
                return Err(Error::invalid(format!("invalid port specification: {text:?}")));
            }
        }
    }
    Ok(())
}

/// Checks what is asked of each network.
///
/// # Errors
/// A refusal.
pub fn check_endpoints(endpoints: &BTreeMap<String, Option<EndpointSettings>>) -> Result<()> {
    for (network, endpoint) in endpoints {
        let refuse =
            |text: String| Err(Error::invalid(format!("invalid config for network {network}: {text}")));
        let Some(endpoint) = endpoint else { return refuse("EndpointsConfig is nil".into()) };
        let problems = problems(network, endpoint);
        match problems.as_slice() {
            [] => {}
            [only] => return refuse(format!("invalid endpoint settings:\n{only}")),
            several => return refuse(format!("invalid endpoint settings:\n* {}", several.join("\n* "))),
        }
    }
    Ok(())
}

fn problems(network: &str, endpoint: &EndpointSettings) -> Vec<String> {
    let mut found = Vec::new();
    let user_defined = !matches!(network, "bridge" | "default" | "host" | "none");
    if !user_defined && endpoint.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        found.push("network-scoped aliases are only supported for user-defined networks".into());
    }
    let Some(ipam) = &endpoint.ipam_config else { return found };
    if !user_defined && (!ipam.ipv4_address.is_none() || !ipam.ipv6_address.is_none()) {
        found.push("user-specified IP address is supported on user-defined networks only".into());
    }
    if let Some(address) = ipam.ipv4_address.0
        && !address.is_ipv4()
    {
        found.push(format!("invalid IPv4 address: {address}"));
    }
    if let Some(address) = ipam.ipv6_address.0
        && !address.is_ipv6()
    {
        found.push(format!("invalid IPv6 address: {address}"));
    }
    found
}
