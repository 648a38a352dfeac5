//! Why a port of the host is reached, or is not: what is published on it, which rules lead there, and who else has a say.

use std::fmt::Write as _;

use nl::nft::{Family, Hook, Policy};

use super::firewall::Other;
use super::model::{Place, Protocol, Published};
use super::{Controller, Inner};

impl Controller {
    /// What decides about a port, one line a fact.
    pub fn explain_port(&self, protocol: Protocol, port: u16) -> Vec<String> {
        let inner = &self.0;
        let others = inner.firewall.get().map(|firewall| firewall.others()).unwrap_or_default();
        let holders: Vec<(Place, Published)> = {
            let state = inner.state();
            let holds = |run: &&Published| {
                run.protocol == protocol
                    && port
                        .checked_sub(run.host_port)
                        .is_some_and(|nth| run.host_port != 0 && nth < run.count)
            };
            let of = |place: &Place| {
                place.ports.iter().filter(holds).map(|run| (place.clone(), run.clone())).collect::<Vec<_>>()
            };
            state.places.values().flat_map(of).collect()
        };
        let mut lines = Vec::new();
        if holders.is_empty() {
            lines.push(format!("{port}/{} is published by no running container", protocol.name()));
            return lines;
        }
        for (place, run) in &holders {
            inner.explain_run(place, run, port, &mut lines);
        }
        inner.explain_others(&others, &mut lines);
        lines
    }
}

impl Inner {
    fn explain_run(&self, place: &Place, run: &Published, port: u16, lines: &mut Vec<String>) {
        let inside = run.container_port.saturating_add(port - run.host_port);
        let host = std::net::SocketAddr::new(run.host_ip, port);
        let to = std::net::SocketAddr::new(run.rewrite_to.unwrap_or(run.carry_to), inside);
        lines.push(format!("{host}/{} leads to {to} in container {}", run.protocol.name(), place.name));
        let way = match run.rewrite_to {
            _ if !self.options.rules => {
                "the network helper carries it: the engine writes no rules (--iptables=false)".to_owned()
            }
            None => "the network helper carries it: the container has no address of that family".to_owned(),
            Some(ip) => {
                let family = if ip.is_ipv6() { 6 } else { 4 };
                let map = match (
                    run.count > 1 && run.host_port == run.container_port,
                    run.host_ip.is_unspecified(),
                ) {
                    (true, _) => "run",
                    (false, true) => "any",
                    (false, false) => "one",
                };
                let mut text =
                    format!("table inet {}, map {map}{family}: rewritten in chain ports", self.table);
                if self.options.host_firewall {
                    text.push_str(" for this host only; visitors come by the host's input chains to the network helper (--host-firewall)");
                } else {
                    text.push_str(", before the host's input chains could see it");
                }
                text
            }
        };
        lines.push(format!("  {way}"));
        let state = self.state();
        let holds = |ip: std::net::IpAddr| {
            place.endpoints.iter().find(|e| [e.v4, e.v6].iter().flatten().any(|p| p.ip == ip))
        };
        let network = holds(to.ip()).and_then(|endpoint| state.networks.get(&endpoint.network));
        if let Some(network) = network {
            lines.push(format!(
                "  table inet {}, chain in-{}: let through as PUBLISHED into network {}",
                self.table, network.link, network.name
            ));
        }
    }

    fn explain_others(&self, others: &[Other], lines: &mut Vec<String>) {
        let decides: &[Hook] =
            if self.options.host_firewall { &[Hook::Input, Hook::Forward] } else { &[Hook::Forward] };
        for other in others {
            let family = match other.family {
                Family::Ip => "ip",
                Family::Ip6 => "ip6",
                _ => "inet",
            };
            let name = format!("table {family} {}, chain {}", other.table, other.chain.name);
            let mut text = String::new();
            if other.chain.name == "DOCKER-USER" {
                let _ = write!(
                    text,
                    "{name}: the operator's own rules ({}) come before all that forwards",
                    other.rules
                );
            } else if other.chain.hook.is_some_and(|hook| decides.contains(&hook)) {
                match (other.chain.policy, other.passed) {
                    (Some(Policy::Drop), true) => {
                        let _ = write!(
                            text,
                            "{name}: drops by policy; rules marked \"{}\" let our bridges pass",
                            self.table
                        );
                    }
                    (Some(Policy::Drop), false) => {
                        let _ = write!(
                            text,
                            "{name}: drops by policy what none of its {} rules accepts",
                            other.rules
                        );
                    }
                    _ if other.rules > 0 => {
                        let _ = write!(text, "{name}: its {} rules may still drop it", other.rules);
                    }
                    _ => {}
                }
            }
            if !text.is_empty() {
                lines.push(text);
            }
        }
    }
}
