//! Published ports: what was asked for becomes host ports that nobody else has.
//!
//! Invariant: a host port is taken in [`Ports`] before anything is opened for it, and a socket of ours is bound to it while it is published (for
//! long runs of ports, others' sockets are looked for instead). Ports that keep their numbers are one [`Published`] run, however long.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use docker_api::{Port, PortMap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::model::{Protocol, Published};
use crate::error::{Error, Result};
use crate::nethelper::wire::Held;

/// Above this many ports of one container no sockets are bound: descriptors are finite, and so is patience.
const MANY: usize = 512;
/// Where ports are taken from when any will do (the kernel's default ephemeral range).
const ANY: std::ops::RangeInclusive<u16> = 32768..=60999;

/// One port of a container and where it is wanted on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// In the container.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// On the host: one address, or all.
    pub host_ip: Option<IpAddr>,
    /// The host ports that will do; empty is any.
    pub host_ports: Option<(u16, u16)>,
}

/// Reads a host port: empty, a number, or a range.
///
/// # Errors
/// It is none of these; in Docker's words.
pub fn parse_host_port(text: &str) -> Result<Option<(u16, u16)>> {
    let bad = || Error::invalid(format!("invalid port specification: {text:?}"));
    if text.is_empty() {
        return Ok(None);
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high): (u16, u16) = (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
    match (low, high) {
        (0, 0) => Ok(None),
        (low, high) if low > high => Err(bad()),
        pair => Ok(Some(pair)),
    }
}

/// What a container's configuration asks for, in order of port and protocol.
///
/// # Errors
/// A host port cannot be read.
pub fn asked(exposed: &[Port], bindings: &PortMap, publish_all: bool) -> Result<Vec<Asked>> {
    let mut all: Vec<&Port> = bindings.keys().chain(exposed).collect();
    all.sort();
    all.dedup();
    let mut asked = Vec::new();
    for port in all {
        let Some(protocol) = Protocol::of(&port.proto) else { continue };
        let wanted = bindings.get(port).and_then(Option::as_deref).unwrap_or_default();
        for binding in wanted {
            let host_ip = binding.host_ip.0;
            let host_ports = parse_host_port(&binding.host_port)?;
            asked.push(Asked { port: port.number, protocol, host_ip, host_ports });
        }
        if wanted.is_empty() && publish_all && exposed.contains(port) {
            asked.push(Asked { port: port.number, protocol, host_ip: None, host_ports: None });
        }
    }
    Ok(asked)
}

/// Where a container's ports lead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target {
    /// Its IPv4 address in the network that publishes.
    pub v4: Option<IpAddr>,
    /// Its IPv6 address there.
    pub v6: Option<IpAddr>,
    /// Whether IPv4, IPv6 ports are only let through (gateway mode `routed`).
    pub routed: [bool; 2],
    /// What "all addresses" means for IPv4 in this network.
    pub default_v4: Option<IpAddr>,
    /// Whether the host has IPv6.
    pub host_v6: bool,
    /// Whether every port needs a socket, because visitors come by no other way.
    pub carried: bool,
}

/// The host's ports that are taken by this engine.
#[derive(Default)]
pub struct Ports {
    taken: HashMap<(Protocol, u16), Vec<IpAddr>>,
    last_any: u16,
}

/// What a container got: its runs, and the sockets that hold them.
#[derive(Debug, Default)]
pub struct Reserved {
    /// For the record.
    pub published: Vec<Published>,
    /// For the helper.
    pub sockets: Vec<(Held, OwnedFd)>,
}

fn clash(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

impl Ports {
    fn is_free(&self, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
        self.taken.get(&(protocol, port)).is_none_or(|others| others.iter().all(|other| !clash(*other, ip)))
    }

    fn take(&mut self, protocol: Protocol, ip: IpAddr, port: u16) {
        self.taken.entry((protocol, port)).or_default().push(ip);
    }

    /// Takes the ports a record says are published.
    pub fn adopt(&mut self, published: &[Published]) {
        for run in published.iter().filter(|run| run.host_port != 0) {
            for offset in 0..run.count {
                self.take(run.protocol, run.host_ip, run.host_port.saturating_add(offset));
            }
        }
    }

    /// Gives ports back.
    pub fn release(&mut self, published: &[Published]) {
        for run in published.iter().filter(|run| run.host_port != 0) {
            for offset in 0..run.count {
                let key = (run.protocol, run.host_port.saturating_add(offset));
                if let Some(ips) = self.taken.get_mut(&key) {
                    if let Some(at) = ips.iter().position(|ip| *ip == run.host_ip) {
                        ips.swap_remove(at);
                    }
                    if ips.is_empty() {
                        self.taken.remove(&key);
                    }
                }
            }
        }
    }

    /// Finds and takes host ports for all that is asked; on a failure nothing is taken.
    ///
    /// # Errors
    /// A port is taken, by a container or by a program of the host; in Docker's words.
    pub fn reserve(&mut self, asked: &[Asked], target: Target) -> Result<Reserved> {
        let busy = (asked.len() > MANY && !target.carried).then(listening).transpose()?;
        let mut reserved = Reserved::default();
        for one in asked {
            if let Err(err) = self.reserve_one(one, target, busy.as_ref(), &mut reserved) {
                self.release(&reserved.published);
                return Err(err);
            }
        }
        Ok(reserved)
    }

    fn reserve_one(
        &mut self,
        asked: &Asked,
        target: Target,
        busy: Option<&HashSet<(Protocol, bool, u16)>>,
        reserved: &mut Reserved,
    ) -> Result<()> {
        let all_v4 = target.default_v4.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let addresses: Vec<IpAddr> = match asked.host_ip {
            Some(ip) => vec![ip],
            None if target.host_v6 && target.default_v4.is_none_or(|ip| ip.is_unspecified()) => {
                vec![all_v4, Ipv6Addr::UNSPECIFIED.into()]
            }
            None => vec![all_v4],
        };
        let (mut free, mut through) = (Vec::new(), Vec::new());
        for ip in addresses {
            let v6 = ip.is_ipv6();
            match if v6 { target.v6 } else { target.v4 } {
                Some(to) if target.routed[usize::from(v6)] => through.push((ip, to)),
                // Only IPv6 is carried to IPv4, and SCTP not at all: without an address of the family there is nothing to publish.
                None if asked.protocol == Protocol::Sctp || !v6 => {}
                _ if target.v4.or(target.v6).is_none() => {}
                to => free.push((ip, to)),
            }
        }
        for (ip, to) in through {
            extend(
                &mut reserved.published,
                Published {
                    protocol: asked.protocol,
                    host_ip: ip,
                    host_port: 0,
                    container_port: asked.port,
                    count: 1,
                    rewrite_to: Some(to),
                    carry_to: to,
                },
            );
        }
        if free.is_empty() {
            return Ok(());
        }
        let first = free[0].0;
        let candidates: Box<dyn Iterator<Item = u16>> = match asked.host_ports {
            Some((low, high)) => Box::new(low..=high),
            None => {
                let start =
                    self.last_any.checked_add(1).filter(|port| ANY.contains(port)).unwrap_or(*ANY.start());
                Box::new((start..=*ANY.end()).chain(*ANY.start()..start))
            }
        };
        let many = asked.host_ports.is_none_or(|(low, high)| low < high);
        let mut refusal = Error::system("all ports are allocated");
        for port in candidates {
            if let Some((ip, _)) = free.iter().find(|(ip, _)| !self.is_free(asked.protocol, *ip, port)) {
                if many {
                    continue;
                }
                refusal = Error::system(format!(
                    "Bind for {} failed: port is already allocated",
                    SocketAddr::new(*ip, port)
                ));
                continue;
            }
            let bound: io::Result<Vec<_>> = free
                .iter()
                .map(|(ip, _)| match busy {
                    Some(busy) if busy.contains(&(asked.protocol, ip.is_ipv6(), port)) => {
                        Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
                    }
                    Some(_) => Ok(None),
                    None => bind(asked.protocol, SocketAddr::new(*ip, port)),
                })
                .collect();
            match bound {
                Ok(sockets) => {
                    for ((ip, to), socket) in free.into_iter().zip(sockets) {
                        let to_same = if ip.is_ipv6() { target.v6 } else { target.v4 };
                        let Some(carry_to) = to_same.or(target.v4).or(target.v6) else { continue };
                        self.take(asked.protocol, ip, port);
                        extend(
                            &mut reserved.published,
                            Published {
                                protocol: asked.protocol,
                                host_ip: ip,
                                host_port: port,
                                container_port: asked.port,
                                count: 1,
                                rewrite_to: to,
                                carry_to,
                            },
                        );
                        if let Some(socket) = socket {
                            let carry_to = SocketAddr::new(carry_to, asked.port);
                            reserved.sockets.push((Held { protocol: asked.protocol, carry_to }, socket));
                        }
                    }
                    if asked.host_ports.is_none() {
                        self.last_any = port;
                    }
                    return Ok(());
                }
                Err(err) => {
                    let address = SocketAddr::new(first, port);
                    refusal = Error::system(format!(
                        "failed to bind host port {address}/{}: {}",
                        asked.protocol.name(),
                        crate::error::sys_text(&err)
                    ));
                }
            }
        }
        Err(refusal)
    }

    /// Binds the sockets of what is published already, for a helper that lost them. A port somebody else has by now is left to them.
    pub fn rebind(published: &[Published], carried: bool) -> Vec<(Held, OwnedFd)> {
        let count: usize = published.iter().map(|run| usize::from(run.count)).sum();
        if count > MANY && !carried {
            return Vec::new();
        }
        let mut sockets = Vec::new();
        for run in published.iter().filter(|run| run.host_port != 0) {
            for offset in 0..run.count {
                let address = SocketAddr::new(run.host_ip, run.host_port.saturating_add(offset));
                let carry_to = SocketAddr::new(run.carry_to, run.container_port.saturating_add(offset));
                match bind(run.protocol, address) {
                    Ok(socket) => {
                        sockets.extend(socket.map(|fd| (Held { protocol: run.protocol, carry_to }, fd)))
                    }
                    Err(err) => {
                        tracing::warn!(%address, error = %err, "published port is no longer reserved")
                    }
                }
            }
        }
        sockets
    }
}

/// Adds a port to the run it continues, or starts one.
fn extend(published: &mut Vec<Published>, port: Published) {
    let continues = |run: &&mut Published| {
        (run.protocol, run.host_ip, run.rewrite_to, run.carry_to)
            == (port.protocol, port.host_ip, port.rewrite_to, port.carry_to)
            && run.container_port.checked_add(run.count) == Some(port.container_port)
            && (run.host_port == 0 && port.host_port == 0
                || run.host_port != 0 && run.host_port.checked_add(run.count) == Some(port.host_port))
    };
    match published.iter_mut().rev().take(2).find(continues) {
        Some(run) => run.count += 1,
        None => published.push(port),
    }
}

/// Takes a port for ourselves. SCTP on a kernel without it has nobody to take it from.
fn bind(protocol: Protocol, address: SocketAddr) -> io::Result<Option<OwnedFd>> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Tcp | Protocol::Sctp => SocketType::STREAM,
    };
    let number = (protocol == Protocol::Sctp).then_some(rustix::net::ipproto::SCTP);
    let socket = match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, number) {
        Ok(socket) => socket,
        Err(_) if protocol == Protocol::Sctp => return Ok(None),
        Err(err) => return Err(err.into()),
    };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Old connections of the port must not stand in the way; another listener still does.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    match rustix::net::bind(&socket, &address) {
        // An address the host does not have yet, or no longer: the rules wait for it.
        Err(rustix::io::Errno::ADDRNOTAVAIL) if address.is_ipv6() => return Ok(None),
        other => other?,
    }
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, 1024)?;
    }
    Ok(Some(socket))
}

/// Ports programs of the host listen on.
fn listening() -> Result<HashSet<(Protocol, bool, u16)>> {
    let mut busy = HashSet::new();
    for (file, protocol, v6) in [
        ("tcp", Protocol::Tcp, false),
        ("tcp6", Protocol::Tcp, true),
        ("udp", Protocol::Udp, false),
        ("udp6", Protocol::Udp, true),
    ] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let (local, _, state) = (words.next(), words.next(), words.next());
            let port = local.and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            if let Some(port) = port
                && (protocol == Protocol::Udp || state == Some("0A"))
            {
                busy.insert((protocol, v6, port));
            }
        }
    }
    Ok(busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use docker_api::PortBinding;

    fn target() -> Target {
        Target { v4: Some([10, 0, 0, 2].into()), host_v6: true, ..Target::default() }
    }

    fn bindings(list: &[(&str, &str, &str)]) -> PortMap {
        let mut map = PortMap::new();
        for (port, ip, host) in list {
            let binding = PortBinding { host_ip: ip.parse().unwrap(), host_port: (*host).into() };
            map.entry(port.parse().unwrap()).or_default().get_or_insert_with(Vec::new).push(binding);
        }
        map
    }

    #[test]
    fn both_families_get_the_same_number_and_runs_are_one() {
        let mut ports = Ports::default();
        let wanted: Vec<(String, String)> =
            (0..600).map(|n| (format!("{}/udp", 20_000 + n), format!("{}", 20_000 + n))).collect();
        let list: Vec<(&str, &str, &str)> =
            wanted.iter().map(|(p, h)| (p.as_str(), "", h.as_str())).collect();
        let asked = asked(&[], &bindings(&list), false).unwrap();
        let reserved = ports.reserve(&asked, target()).unwrap();
        assert_eq!(reserved.published.len(), 2, "{:?}", reserved.published);
        assert!(reserved.published.iter().all(|run| run.count == 600 && run.host_port == 20_000));
        assert_eq!(reserved.published[1].rewrite_to, None);
        assert!(reserved.sockets.is_empty(), "too many to bind");
        ports.release(&reserved.published);
        assert!(ports.taken.is_empty());
    }

    #[test]
    fn a_taken_port_is_refused_in_dockers_words() {
        let mut ports = Ports::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port().to_string();
        let ask = |ip: &str| asked(&[], &bindings(&[("80/tcp", ip, &number)]), false).unwrap();
        let err = ports.reserve(&ask("127.0.0.1"), target()).unwrap_err();
        assert_eq!(
            err.message(),
            format!("failed to bind host port 127.0.0.1:{number}/tcp: address already in use")
        );
        drop(listener);
        let held = ports.reserve(&ask("127.0.0.1"), target()).unwrap();
        assert_eq!(held.sockets.len(), 1);
        let err = ports.reserve(&ask("0.0.0.0"), target()).unwrap_err();
        assert_eq!(err.message(), format!("Bind for 0.0.0.0:{number} failed: port is already allocated"));
        ports.release(&held.published);
        drop(held);
        let both = ports
            .reserve(&asked(&["80/tcp".parse().unwrap()], &PortMap::new(), true).unwrap(), target())
            .unwrap();
        assert_eq!(both.published.len(), 2);
        assert_eq!(both.published[0].host_port, both.published[1].host_port);
    }

    #[test]
    fn ipv6_is_carried_to_ipv4_but_not_the_other_way() {
        let ask = asked(&["80/tcp".parse().unwrap()], &PortMap::new(), true).unwrap();
        let only = |v4: Option<&str>, v6: Option<&str>| {
            let ip = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let target = Target { v4: ip(v4), v6: ip(v6), host_v6: true, ..Target::default() };
            let published = Ports::default().reserve(&ask, target).unwrap().published;
            published.iter().map(|run| (run.host_ip.is_ipv6(), run.rewrite_to.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(only(Some("10.0.0.2"), None), [(false, true), (true, false)]);
        assert_eq!(only(None, Some("fd00::2")), [(true, true)]);
        assert!(only(None, None).is_empty());
    }

    #[test]
    fn a_range_is_used_up() {
        let mut ports = Ports::default();
        let ask = asked(&[], &bindings(&[("80/tcp", "127.0.0.1", "61200-61201")]), false).unwrap();
        let first = ports.reserve(&ask, target()).unwrap();
        let second = ports.reserve(&ask, target()).unwrap();
        assert_eq!((first.published[0].host_port, second.published[0].host_port), (61200, 61201));
        assert_eq!(ports.reserve(&ask, target()).unwrap_err().message(), "all ports are allocated");
    }

    #[test]
    fn host_ports_are_numbers_or_ranges() {
        assert_eq!(parse_host_port("").unwrap(), None);
        assert_eq!(parse_host_port("80-90").unwrap(), Some((80, 90)));
        assert_eq!(parse_host_port("abc").unwrap_err().message(), "invalid port specification: \"abc\"");
        assert!(parse_host_port("99999").is_err());
    }
}
