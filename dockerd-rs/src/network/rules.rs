//! The engine's nf_tables table, made from what exists: pure.
//!
//! One table of both families. What changes with containers (ports, links) is in maps and sets; what changes with networks is a chain or two
//! per bridge, entered by a map from the link's name. So a container's start is a few elements in one transaction, and a packet's way costs the
//! same with one port as with ten thousand.
//!
//! ```text
//! raw        bridges may not send to 127/8 · nobody but the bridge itself reaches its containers' addresses directly
//! prerouting, output   to an address of this host → ports: look the port up, rewrite the destination
//! forward    out by a bridge → in-BR: established, same bridge (icc), published, else drop · in by a bridge → out-BR
//! postrouting  from 127/8 into a bridge → masquerade · from a bridge's subnet → nat-BR: hairpin, way out
//! ```

use std::net::IpAddr;

use nl::nft::{Batch, Data, Element, Family, Field, Hook, Key, Kind, Rule, Set, Verdict};

use super::model::{Prefix, Protocol};

/// What may reach a network's containers from outside, in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    /// Published ports, by rewriting (`nat`).
    #[default]
    Nat,
    /// Everything, and published ports by rewriting (`nat-unprotected`).
    NatUnprotected,
    /// Published ports, without rewriting (`routed`).
    Routed,
    /// Nothing, and the host has no address either (`isolated`).
    Isolated,
}

/// A bridge, as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its link's name.
    pub link: String,
    /// Its subnets.
    pub subnets: Vec<Prefix>,
    /// Without a way out.
    pub internal: bool,
    /// Whether its containers may talk to each other.
    pub icc: bool,
    /// Whether what leaves gets the host's address.
    pub masquerade: bool,
    /// The address it gets, if not that of the link it leaves by: IPv4, IPv6.
    pub source: [Option<IpAddr>; 2],
    /// IPv4 and IPv6.
    pub gateway: [Gateway; 2],
    /// Whether everybody's neighbours may address containers directly.
    pub direct: bool,
    /// Links whose neighbours may address containers directly.
    pub trusted: Vec<String>,
}

impl Bridge {
    /// Whether somebody beside the host may address its containers, at their published ports.
    pub fn reached_directly(&self) -> bool {
        self.direct || !self.trusted.is_empty()
    }
}

/// A run of published ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address; unspecified is all.
    pub host_ip: IpAddr,
    /// First port on the host.
    pub host_port: u16,
    /// The container's address.
    pub to: IpAddr,
    /// First port in the container.
    pub port: u16,
    /// How many.
    pub count: u16,
    /// Only let through, not rewritten.
    pub routed: bool,
}

/// Two containers that may talk although their network's may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Who asks.
    pub from: IpAddr,
    /// Who is asked.
    pub to: IpAddr,
    /// On which protocol.
    pub protocol: Protocol,
    /// On which port.
    pub port: u16,
}

/// Everything the table is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The bridges.
    pub bridges: Vec<Bridge>,
    /// The published ports.
    pub ports: Vec<Port>,
    /// The exceptions for links.
    pub passes: Vec<Pass>,
    /// Whether visitors reach published ports only through the host's own sockets, and so by its firewall's leave.
    pub host_firewall: bool,
}

const fn set(name: &'static str, key: &'static [Kind], data: &'static [Kind], ranges: bool) -> Set {
    Set { name, key, data, ranges }
}

use Kind::{Interface, Ipv4, Ipv6, Port as Service, Protocol as Proto, Verdict as Judge};

const BRIDGES: Set = set("bridges", &[Interface], &[], false);
const FORWARD_IN: Set = set("forward-in", &[Interface], &[Judge], false);
const FORWARD_OUT: Set = set("forward-out", &[Interface], &[Judge], false);
const SOURCE: [Set; 2] = [set("source4", &[Ipv4], &[Judge], true), set("source6", &[Ipv6], &[Judge], true)];
const DIRECT: [Set; 2] = [set("direct4", &[Ipv4], &[Judge], true), set("direct6", &[Ipv6], &[Judge], true)];
/// A port on all of the host's addresses.
const ANY: [Set; 2] = [
    set("any4", &[Proto, Service], &[Ipv4, Service], false),
    set("any6", &[Proto, Service], &[Ipv6, Service], false),
];
/// A port on one of the host's addresses.
const ONE: [Set; 2] = [
    set("one4", &[Ipv4, Proto, Service], &[Ipv4, Service], false),
    set("one6", &[Ipv6, Proto, Service], &[Ipv6, Service], false),
];
/// A run of ports that keep their numbers.
const RUN: [Set; 2] = [
    set("run4", &[Ipv4, Proto, Service], &[Ipv4], true),
    set("run6", &[Ipv6, Proto, Service], &[Ipv6], true),
];
/// Ports of containers that are reached without rewriting.
const OPEN: [Set; 2] =
    [set("open4", &[Ipv4, Proto, Service], &[], true), set("open6", &[Ipv6, Proto, Service], &[], true)];
/// Exceptions for links.
const PASS: [Set; 2] = [
    set("pass4", &[Ipv4, Ipv4, Proto, Service], &[], false),
    set("pass6", &[Ipv6, Ipv6, Proto, Service], &[], false),
];
const ICMP: [u8; 2] = [1, 58];
const TO_PORT: [Field; 2] = [Field::Protocol, Field::DestinationPort];
const TO_ADDRESS_PORT: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];

fn loopback4() -> IpAddr {
    [127, 0, 0, 0].into()
}

/// The whole table, replacing the one of that name if there is one.
pub fn table(name: &str, view: &View) -> Batch {
    let mut batch = Batch::new(Family::Inet, name);
    // Adding first makes the deletion succeed when there is none.
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    let pairs = [SOURCE, DIRECT, ANY, ONE, RUN, OPEN, PASS];
    for set in [BRIDGES, FORWARD_IN, FORWARD_OUT].iter().chain(pairs.iter().flatten()) {
        batch.add_set(set);
    }
    batch.add_base_chain("raw-prerouting", "filter", Hook::Prerouting, -300);
    batch.add_base_chain("prerouting", "nat", Hook::Prerouting, -100);
    batch.add_base_chain("output", "nat", Hook::Output, -100);
    batch.add_base_chain("forward", "filter", Hook::Forward, 0);
    batch.add_base_chain("postrouting", "nat", Hook::Postrouting, 100);
    batch.add_chain("ports");

    // route_localnet on the bridges lets answers to 127.0.0.1 come back; without this it would let containers reach the host's loopback.
    let guard = Rule::new().in_set(&[Field::InputName], false, BRIDGES.name, true);
    batch.append("raw-prerouting", &guard.destination(loopback4(), 8, true).verdict(Verdict::Drop));
    for v6 in [false, true] {
        let direct =
            Rule::new().family_of(v6).verdict_map(&[Field::Destination], v6, DIRECT[usize::from(v6)].name);
        batch.append("raw-prerouting", &direct);
    }
    // From outside nothing is for 127/8, whatever it says.
    batch.append("prerouting", &Rule::new().destination(loopback4(), 8, true).verdict(Verdict::Return));
    let local = || Rule::new().to_this_host(true).verdict(Verdict::Jump("ports".into()));
    if !view.host_firewall {
        batch.append("prerouting", &local());
    }
    batch.append("output", &local());
    // The answer from a bridge could not come back to ::1; the helper carries these.
    let v6_loopback = std::net::Ipv6Addr::LOCALHOST.into();
    batch.append("ports", &Rule::new().destination(v6_loopback, 128, true).verdict(Verdict::Return));
    for v6 in [false, true] {
        let at = usize::from(v6);
        let family = || Rule::new().family_of(v6);
        batch.append("ports", &family().rewrite_destination(&TO_ADDRESS_PORT, v6, ONE[at].name, true));
        batch.append("ports", &family().rewrite_destination(&TO_PORT, v6, ANY[at].name, true));
        batch.append("ports", &family().rewrite_destination(&TO_ADDRESS_PORT, v6, RUN[at].name, false));
    }
    batch.append("forward", &Rule::new().verdict_map(&[Field::OutputName], false, FORWARD_IN.name));
    batch.append("forward", &Rule::new().verdict_map(&[Field::InputName], false, FORWARD_OUT.name));
    let from_loopback = Rule::new().source(loopback4(), 8, true);
    batch.append(
        "postrouting",
        &from_loopback.in_set(&[Field::OutputName], false, BRIDGES.name, true).masquerade(),
    );
    for v6 in [false, true] {
        let source =
            Rule::new().family_of(v6).verdict_map(&[Field::Source], v6, SOURCE[usize::from(v6)].name);
        batch.append("postrouting", &source);
    }
    for bridge in &view.bridges {
        add_bridge(&mut batch, bridge);
    }
    ports(&mut batch, &view.ports, true);
    passes(&mut batch, &view.passes, true);
    batch
}

fn jump(link: &str, chain: String) -> Element {
    Element::new(Key::new().interface(link)).with(Data::Jump(chain))
}

/// The chains and elements of one more bridge.
pub fn add_bridge(batch: &mut Batch, bridge: &Bridge) {
    let link = bridge.link.as_str();
    let (inward, outward, nat) = (format!("in-{link}"), format!("out-{link}"), format!("nat-{link}"));
    let direct = format!("direct-{link}");
    for chain in [&inward, &outward, &nat, &direct] {
        batch.add_chain(chain);
    }
    let icc = if bridge.icc { Verdict::Accept } else { Verdict::Drop };
    batch.append(&inward, &Rule::new().established().counter().verdict(Verdict::Accept));
    if !bridge.icc {
        let fields = [Field::Source, Field::Destination, Field::Protocol, Field::DestinationPort];
        for v6 in [false, true] {
            let pass = Rule::new().family_of(v6).in_set(&fields, v6, PASS[usize::from(v6)].name, true);
            batch.append(&inward, &pass.verdict(Verdict::Accept));
        }
    }
    if !bridge.icc && !bridge.internal {
        // A neighbour that comes by way of the host's address is a visitor like any other.
        let published = Rule::new().input(link, true).destination_rewritten().counter();
        batch.append(&inward, &published.verdict(Verdict::Accept).comment("PUBLISHED"));
    }
    batch.append(&inward, &Rule::new().input(link, true).counter().verdict(icc).comment("ICC"));
    if bridge.internal {
        batch.append(
            &inward,
            &Rule::new().counter().verdict(Verdict::Drop).comment("INTERNAL NETWORK INGRESS"),
        );
        batch.append(&outward, &Rule::new().output(link, true).counter().verdict(Verdict::Accept));
        batch.append(
            &outward,
            &Rule::new().counter().verdict(Verdict::Drop).comment("INTERNAL NETWORK EGRESS"),
        );
    } else {
        for v6 in [false, true] {
            let at = usize::from(v6);
            let family = || Rule::new().family_of(v6);
            match bridge.gateway[at] {
                Gateway::Nat if bridge.reached_directly() => {
                    let open = family().in_set(&TO_ADDRESS_PORT, v6, OPEN[at].name, true);
                    batch.append(&inward, &open.counter().verdict(Verdict::Accept).comment("DIRECT"));
                }
                Gateway::Nat => {}
                Gateway::NatUnprotected => {
                    batch
                        .append(&inward, &family().counter().verdict(Verdict::Accept).comment("UNPROTECTED"));
                }
                Gateway::Routed => {
                    batch.append(
                        &inward,
                        &family().protocol(ICMP[at]).counter().verdict(Verdict::Accept).comment("ICMP"),
                    );
                    let open = family().in_set(&TO_ADDRESS_PORT, v6, OPEN[at].name, true);
                    batch.append(&inward, &open.counter().verdict(Verdict::Accept));
                }
                Gateway::Isolated => {
                    batch.append(&inward, &family().counter().verdict(Verdict::Drop).comment("ISOLATED"));
                }
            }
        }
        batch.append(
            &inward,
            &Rule::new().destination_rewritten().counter().verdict(Verdict::Accept).comment("PUBLISHED"),
        );
        batch.append(&inward, &Rule::new().counter().verdict(Verdict::Drop).comment("UNPUBLISHED PORT DROP"));
        batch.append(&outward, &Rule::new().counter().verdict(Verdict::Accept).comment("OUTGOING"));
        // A container that reaches itself or a neighbour through a published port: the answer must come back this way.
        batch.append(
            &nat,
            &Rule::new().output(link, true).destination_rewritten().masquerade().comment("HAIRPIN"),
        );
        if bridge.masquerade {
            for v6 in [false, true] {
                let at = usize::from(v6);
                if matches!(bridge.gateway[at], Gateway::Nat | Gateway::NatUnprotected) {
                    let out = Rule::new().family_of(v6).output(link, false);
                    batch.append(
                        &nat,
                        &match bridge.source[at] {
                            Some(ip) => out.rewrite(false, ip, None),
                            None => out.masquerade(),
                        },
                    );
                }
            }
        }
    }
    for trusted in bridge.trusted.iter().map(String::as_str).chain([link]) {
        batch.append(&direct, &Rule::new().input(trusted, true).verdict(Verdict::Return));
    }
    batch.append(&direct, &Rule::new().to_this_host(true).verdict(Verdict::Return));
    batch.append(&direct, &Rule::new().counter().verdict(Verdict::Drop).comment("DROP DIRECT ACCESS"));
    batch.add_elements(BRIDGES.name, &[Element::new(Key::new().interface(link))]);
    batch.add_elements(FORWARD_IN.name, &[jump(link, inward)]);
    batch.add_elements(FORWARD_OUT.name, &[jump(link, outward)]);
    for (set, elements) in networks(bridge) {
        batch.add_elements(set, &elements);
    }
}

/// Takes a bridge's chains and elements away.
pub fn remove_bridge(batch: &mut Batch, bridge: &Bridge) {
    let link = bridge.link.as_str();
    batch.delete_elements(BRIDGES.name, &[Element::new(Key::new().interface(link))]);
    batch.delete_elements(FORWARD_IN.name, &[jump(link, format!("in-{link}"))]);
    batch.delete_elements(FORWARD_OUT.name, &[jump(link, format!("out-{link}"))]);
    for (set, elements) in networks(bridge) {
        batch.delete_elements(set, &elements);
    }
    for chain in ["in", "out", "nat", "direct"].map(|kind| format!("{kind}-{link}")) {
        batch.flush_chain(&chain);
        batch.delete_chain(&chain);
    }
}

fn networks(bridge: &Bridge) -> Vec<(&'static str, Vec<Element>)> {
    let mut all = Vec::new();
    for subnet in bridge.subnets.iter().map(Prefix::network) {
        let at = usize::from(subnet.ip.is_ipv6());
        let to = |kind: &str| Some(Data::Jump(format!("{kind}-{}", bridge.link)));
        all.push((SOURCE[at].name, Element::network(subnet.ip, subnet.len, to("nat"))));
        if !bridge.direct
            && bridge.gateway[at] != Gateway::Routed
            && bridge.gateway[at] != Gateway::NatUnprotected
        {
            all.push((DIRECT[at].name, Element::network(subnet.ip, subnet.len, to("direct"))));
        }
    }
    all
}

/// Adds or removes published ports.
pub fn ports(batch: &mut Batch, ports: &[Port], add: bool) {
    let mut elements: Vec<(&'static str, Vec<Element>)> = Vec::new();
    let mut push =
        |set: &'static str, element: Element| match elements.iter_mut().find(|(name, _)| *name == set) {
            Some((_, list)) => list.push(element),
            None => elements.push((set, vec![element])),
        };
    for port in ports {
        let at = usize::from(port.to.is_ipv6());
        let number = port.protocol.number();
        let last = |first: u16| first.saturating_add(port.count - 1);
        if port.routed {
            let key = |service| Key::new().ip(port.to).protocol(number).port(service);
            push(OPEN[at].name, Element::between(key(port.port), key(last(port.port))));
        } else if port.count > 1 && port.host_port == port.port {
            let (low, high) = if port.host_ip.is_unspecified() {
                Prefix::new(port.host_ip, 0).bounds()
            } else {
                Prefix::new(port.host_ip, Prefix::new(port.host_ip, 0).width()).bounds()
            };
            let key = |ip, service| {
                Key::new()
                    .ip(super::model::number_to_ip(ip, port.host_ip.is_ipv6()))
                    .protocol(number)
                    .port(service)
            };
            let run = Element::between(key(low, port.host_port), key(high, last(port.host_port)));
            push(RUN[at].name, run.with(Data::Value(Key::new().ip(port.to))));
        } else {
            for offset in 0..port.count {
                let to = Data::Value(Key::new().ip(port.to).port(port.port + offset));
                let key =
                    if port.host_ip.is_unspecified() { Key::new() } else { Key::new().ip(port.host_ip) };
                let key = key.protocol(number).port(port.host_port + offset);
                let set = if port.host_ip.is_unspecified() { ANY[at].name } else { ONE[at].name };
                push(set, Element::new(key).with(to));
            }
        }
    }
    for (set, elements) in elements {
        if add {
            batch.add_elements(set, &elements);
        } else {
            batch.delete_elements(set, &elements);
        }
    }
}

/// Adds or removes exceptions for links.
pub fn passes(batch: &mut Batch, passes: &[Pass], add: bool) {
    for v6 in [false, true] {
        let mut elements: Vec<Element> = Vec::new();
        for pass in passes.iter().filter(|pass| pass.to.is_ipv6() == v6) {
            let key = Key::new().ip(pass.from).ip(pass.to).protocol(pass.protocol.number()).port(pass.port);
            let element = Element::new(key);
            if !elements.contains(&element) {
                elements.push(element);
            }
        }
        let set = PASS[usize::from(v6)].name;
        if add {
            batch.add_elements(set, &elements);
        } else {
            batch.delete_elements(set, &elements);
        }
    }
}
