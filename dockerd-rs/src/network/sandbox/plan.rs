//! What the steps of a set-up need to know, worked out from a place's record.

use std::net::IpAddr;

use crate::nethelper::wire;
use crate::network::files::{self, HostResolver};
use crate::network::model::{Driver, Endpoint, Network, Place, Protocol, Published};
use crate::network::ports::Target;
use crate::network::rules::{Gateway, Pass, Port};
use crate::network::steps::{self, LinkPlan, Plan};
use crate::network::{Inner, State, bridge, spec};

/// What a network gives its containers names by: only users' networks have the resolver.
pub(super) fn has_resolver(network: &Network) -> bool {
    !network.predefined() && !matches!(network.driver, Driver::Host | Driver::Null)
}

/// Docker's order of a container's networks, for its way out and for its names: those with a way out, priority, both families before one, then by name.
fn preference((a, an): (&Endpoint, &Network), (b, bn): (&Endpoint, &Network)) -> std::cmp::Ordering {
    let both = |endpoint: &Endpoint| endpoint.gateway4.is_some() && endpoint.gateway6.is_some();
    an.internal
        .cmp(&bn.internal)
        .then(b.priority.cmp(&a.priority))
        .then(both(b).cmp(&both(a)))
        .then(an.name.cmp(&bn.name))
}

impl Inner {
    /// The endpoints that give the default routes: IPv4, IPv6.
    fn gateways<'a>(&self, state: &State, place: &'a Place) -> [Option<&'a Endpoint>; 2] {
        let network = |endpoint: &Endpoint| state.networks.get(&endpoint.network);
        let mut order: Vec<(&Endpoint, &Network)> = place
            .endpoints
            .iter()
            .filter_map(|e| network(e).map(|n| (e, n)))
            .filter(|(_, n)| !n.internal)
            .collect();
        order.sort_by(|a, b| preference(*a, *b));
        let first = |has: fn(&Endpoint) -> bool| order.iter().map(|(e, _)| *e).find(|e| has(e));
        [first(|e| e.gateway4.is_some()), first(|e| e.gateway6.is_some())]
    }

    /// Whether a container's ports can be published: its way out is a bridge.
    pub(in crate::network) fn publishes(&self, state: &State, place: &Place) -> bool {
        self.gateways(state, place).iter().flatten().any(|endpoint| !endpoint.host_link.is_empty())
    }

    /// Where a container's published ports lead, and the id of the endpoint that is named when that fails.
    pub(super) fn target(&self, place: &Place) -> (Target, Option<String>) {
        let state = self.state();
        let [v4, v6] = self.gateways(&state, place);
        let bridged = |endpoint: Option<&'_ Endpoint>| {
            endpoint.and_then(|e| state.networks.get(&e.network)).filter(|n| n.driver == Driver::Bridge)
        };
        let (net4, net6) = (bridged(v4), bridged(v6));
        let routed = |network: Option<&Network>, at: usize| {
            network.is_some_and(|network| spec::bridge(network).gateway[at] == Gateway::Routed)
        };
        let binding = net4.and_then(|n| n.option("com.docker.network.bridge.host_binding_ipv4"));
        let target = Target {
            v4: v4.filter(|_| net4.is_some()).and_then(|e| e.v4).map(|prefix| prefix.ip),
            v6: v6.filter(|_| net6.is_some()).and_then(|e| e.v6).map(|prefix| prefix.ip),
            routed: [routed(net4, 0), routed(net6, 1)],
            default_v4: binding.and_then(|text| text.parse().ok()).or(Some(self.options.host_ip)),
            host_v6: bridge::host_has_v6(),
            carried: self.options.host_firewall,
        };
        let publisher = v4.filter(|_| net4.is_some()).or(v6.filter(|_| net6.is_some())).map(|e| e.id.clone());
        (target, publisher)
    }

    /// What the steps of a start, or of an end, need to know of a place.
    pub(in crate::network) fn plan_of(&self, place: &Place) -> Plan {
        let filter = std::fs::read(steps::BRIDGE_FILTER).is_ok_and(|value| value.first() == Some(&b'1'));
        let state = self.state();
        let links = place
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let network = state.networks.get(&endpoint.network)?.clone();
                (!endpoint.link.is_empty()).then(|| LinkPlan {
                    sysctls: endpoint.sysctls.clone(),
                    publishes: !place.ports.is_empty(),
                    bridge_filter: filter,
                    endpoint: endpoint.clone(),
                    network,
                })
            })
            .collect();
        let [v4, v6] = self.gateways(&state, place);
        let route = |endpoint: Option<&Endpoint>, gateway: fn(&Endpoint) -> Option<IpAddr>| {
            endpoint.and_then(|e| gateway(e).map(|ip| (ip, e.link.clone())))
        };
        let routed = |run: &Published| run.host_port == 0;
        let mut ports: Vec<Port> = place
            .ports
            .iter()
            .filter_map(|run| {
                Some(Port {
                    protocol: run.protocol,
                    host_ip: run.host_ip,
                    host_port: run.host_port,
                    to: run.rewrite_to?,
                    port: run.container_port,
                    count: run.count,
                    routed: routed(run),
                })
            })
            .collect();
        for (endpoint, v6) in [(v4, false), (v6, true)] {
            let network = endpoint.and_then(|e| state.networks.get(&e.network));
            if network.is_some_and(|network| self.bridge_rules(network).reached_directly()) {
                let direct = addressed(ports.iter().filter(|port| port.to.is_ipv6() == v6));
                ports.extend(direct);
            }
        }
        let resolver =
            place.endpoints.iter().filter_map(|e| state.networks.get(&e.network)).any(has_resolver);
        let plan = Plan {
            id: place.id.clone(),
            namespace: self.namespace_path(place),
            links,
            routes: [route(v4, |e| e.gateway4), route(v6, |e| e.gateway6)].into_iter().flatten().collect(),
            ports,
            passes: passes(&state, place),
            resolver,
            ..Plan::default()
        };
        drop(state);
        Plan { sandbox: self.helper_view(place), ..plan }
    }

    /// What the helper is to know of a place; `None` if it has nothing to do for it.
    pub(in crate::network) fn helper_view(&self, place: &Place) -> Option<wire::Sandbox> {
        let resolves = {
            let state = self.state();
            place.endpoints.iter().filter_map(|e| state.networks.get(&e.network)).any(has_resolver)
        };
        (resolves || !place.ports.is_empty()).then(|| self.names_of(place))
    }

    /// What a place's resolver answers.
    pub(super) fn names_of(&self, place: &Place) -> wire::Sandbox {
        let state = self.state();
        let mut named: Vec<(&Endpoint, &Network)> = place
            .endpoints
            .iter()
            .filter_map(|endpoint| state.networks.get(&endpoint.network).map(|network| (endpoint, network)))
            .filter(|(_, network)| has_resolver(network))
            .collect();
        named.sort_by(|a, b| preference(*a, *b));
        let outside = named.iter().any(|(_, network)| !network.internal)
            || place.endpoints.iter().any(|e| state.networks.get(&e.network).is_some_and(|n| !n.internal));
        let host = HostResolver::read();
        let resolver = self.resolver(&host, place);
        wire::Sandbox {
            id: place.id.clone(),
            container: place.container.clone(),
            links: named
                .iter()
                .flat_map(|(e, _)| {
                    e.links.iter().map(|(alias, to)| (alias.clone(), to.clone(), e.network.clone()))
                })
                .collect(),
            endpoints: named
                .iter()
                .map(|(endpoint, network)| wire::Named {
                    network: network.id.clone(),
                    network_name: network.name.clone(),
                    names: endpoint.names.clone(),
                    addresses: endpoint.v4.iter().chain(&endpoint.v6).map(|prefix| prefix.ip).collect(),
                })
                .collect(),
            upstreams: files::upstreams(&resolver)
                .into_iter()
                .map(|(ip, from_host)| wire::Upstream { ip, from_host })
                .collect(),
            forward: outside,
            ndots_set: place
                .naming
                .options
                .iter()
                .any(|option| option.starts_with("ndots:") && option != "ndots:0"),
        }
    }
}

/// The ports in the container that published ports lead to, as runs to let through where others may address containers directly. One bound to the
/// host's loopback stays there.
fn addressed<'a>(ports: impl Iterator<Item = &'a Port>) -> Vec<Port> {
    let mut runs: Vec<Port> = ports
        .filter(|port| !port.routed && !port.host_ip.is_loopback())
        .map(|port| Port { host_port: 0, routed: true, ..port.clone() })
        .collect();
    runs.sort_by_key(|run| (run.protocol.number(), run.port));
    let mut merged: Vec<Port> = Vec::new();
    for run in runs {
        let end = |run: &Port| u32::from(run.port) + u32::from(run.count);
        match merged.last_mut() {
            Some(last) if last.protocol == run.protocol && u32::from(run.port) <= end(last) => {
                last.count = (end(last).max(end(&run)) - u32::from(last.port)) as u16;
            }
            _ => merged.push(Port { host_ip: std::net::Ipv4Addr::UNSPECIFIED.into(), ..run }),
        }
    }
    merged
}

/// Exceptions a place's links make where containers may not talk to each other.
fn passes(state: &State, place: &Place) -> Vec<Pass> {
    let mut all = Vec::new();
    let mut pair = |from: &Endpoint, to: &Endpoint, whose: &Place| {
        for port in &whose.exposed {
            let protocol = match port.proto.as_str() {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => continue,
            };
            for (a, b) in [(from.v4, to.v4), (from.v6, to.v6)] {
                if let (Some(a), Some(b)) = (a, b) {
                    all.push(Pass { from: a.ip, to: b.ip, protocol, port: port.number });
                }
            }
        }
    };
    for endpoint in &place.endpoints {
        let icc = state
            .networks
            .get(&endpoint.network)
            // In users' networks a link is only a name.
            .is_none_or(|network| {
                has_resolver(network) || network.flag("com.docker.network.bridge.enable_icc", true)
            });
        if icc {
            continue;
        }
        for other in state.places.values() {
            let Some(there) = other.endpoint(&endpoint.network) else { continue };
            if endpoint.links.iter().any(|(_, to)| *to == other.container) {
                pair(endpoint, there, other);
            }
            if there.links.iter().any(|(_, to)| *to == place.container) {
                pair(there, endpoint, place);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u16, port: u16, count: u16) -> Port {
        let host_ip = host_ip.parse().unwrap();
        let to = "172.17.0.2".parse().unwrap();
        Port { protocol: Protocol::Tcp, host_ip, host_port, to, port, count, routed: false }
    }

    #[test]
    fn ports_addressed_directly_are_runs_without_overlaps() {
        let published = [
            port("0.0.0.0", 9000, 85, 1),
            port("0.0.0.0", 8080, 80, 10),
            port("127.0.0.1", 70, 70, 1),
            port("0.0.0.0", 8090, 90, 5),
        ];
        let runs: Vec<(u16, u16, bool)> =
            addressed(published.iter()).iter().map(|run| (run.port, run.count, run.routed)).collect();
        assert_eq!(runs, [(80, 15, true)]);
    }
}
