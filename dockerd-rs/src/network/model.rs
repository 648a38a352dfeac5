//! What a network, an endpoint and a container's place in them are: the records as they are stored, and the shapes clients send and read.
//!
//! Invariant: an address is in use exactly if a stored [`Place`] or [`Network`] names it. There is no second book of addresses that could disagree.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use docker_api::{EndpointSettings, Port, PortMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::nethelper::wire::Aim;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A random address, locally administered, for one station.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        fill_random(&mut bytes);
        bytes[0] = bytes[0] & 0xfe | 0x02;
        Self(bytes)
    }

    /// The one that goes with an IPv4 address, as Docker made them for long; none for IPv6.
    pub fn of(ip: IpAddr) -> Option<Self> {
        let IpAddr::V4(ip) = ip else { return None };
        let [a, b, c, d] = ip.octets();
        Some(Self([0x02, 0x42, a, b, c, d]))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("address {text}: invalid MAC address");
        let separator = if text.contains('-') { '-' } else { ':' };
        let bytes: Vec<u8> = text
            .split(separator)
            .map(|part| {
                (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten().ok_or_else(invalid)
            })
            .collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| invalid())
    }
}

/// An address and the length of its network's prefix; also a network, when the host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub len: u8,
}

impl Prefix {
    /// An address in a network of `len` bits.
    pub fn new(ip: IpAddr, len: u8) -> Self {
        Self { ip, len }
    }

    /// Bits of an address of this family.
    pub fn width(&self) -> u8 {
        if self.ip.is_ipv4() { 32 } else { 128 }
    }

    fn host_mask(&self) -> u128 {
        let bits = self.width() - self.len.min(self.width());
        if bits == 128 { u128::MAX } else { (1 << bits) - 1 }
    }

    /// The network, with zero host bits.
    pub fn network(&self) -> Self {
        Self::new(number_to_ip(number(self.ip) & !self.host_mask(), self.ip.is_ipv6()), self.len)
    }

    /// First and last address, as numbers.
    pub fn bounds(&self) -> (u128, u128) {
        let first = number(self.ip) & !self.host_mask();
        (first, first | self.host_mask())
    }

    /// Whether the address is in the network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (first, last) = self.bounds();
        ip.is_ipv4() == self.ip.is_ipv4() && (first..=last).contains(&number(ip))
    }

    /// Whether the two networks share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ((a, b), (c, d)) = (self.bounds(), other.bounds());
        self.ip.is_ipv4() == other.ip.is_ipv4() && a <= d && c <= b
    }
}

/// An address as a number.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// A number as an address of a family.
pub fn number_to_ip(number: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// As Go's `netip.ParsePrefix`, with its errors.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("netip.ParsePrefix({text:?}): {why}");
        let (ip, len) = text.rsplit_once('/').ok_or_else(|| bad("no '/'"))?;
        let ip: IpAddr = ip.parse().map_err(|_| bad(&format!("ParseAddr({ip:?}): unable to parse IP")))?;
        let digits = !len.is_empty()
            && len.bytes().all(|b| b.is_ascii_digit())
            && (len == "0" || !len.starts_with('0'));
        let bits: u32 = if digits {
            len.parse().unwrap_or(999)
        } else {
            return Err(bad(&format!("bad bits after slash: {len:?}")));
        };
        if bits > if ip.is_ipv4() { 32 } else { 128 } {
            return Err(bad("prefix length out of range"));
        }
        Ok(Self::new(ip, bits as u8))
    }
}

/// Serialises by `Display` and reads by `FromStr`.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Mac, Prefix);

/// Who makes a network's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge on the host.
    Bridge,
    /// The host's own network.
    Host,
    /// No network.
    Null,
    /// A device over one of the host's.
    Macvlan,
    /// The same, sharing its hardware address.
    Ipvlan,
}

impl Driver {
    /// Docker's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// One address pool of a network, as the client wrote it or as it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The network.
    pub subnet: Prefix,
    /// Where addresses are handed out from; the whole subnet if `None`.
    pub range: Option<Prefix>,
    /// The host's address.
    pub gateway: Option<IpAddr>,
    /// Addresses that are never handed out, by the name their owner gave them.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// A network's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hex digits.
    pub id: String,
    /// Its name, which is never used as a path.
    pub name: String,
    /// When it was made (RFC 3339, nanoseconds).
    pub created: String,
    /// `local`, or what the client sent.
    pub scope: String,
    /// Who makes its links.
    pub driver: Driver,
    /// Whether endpoints get an IPv4 address.
    pub ipv4: bool,
    /// Whether endpoints get an IPv6 address.
    pub ipv6: bool,
    /// The address manager's options, as sent.
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// Its pools, in the order they are shown.
    pub pools: Vec<Pool>,
    /// Without a way out.
    pub internal: bool,
    /// Kept for the answer.
    pub attachable: bool,
    /// The configuration network it was made from.
    pub config_from: String,
    /// Only a configuration for others.
    pub config_only: bool,
    /// Driver options, as sent.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The host's link: the bridge, or the parent of macvlan devices.
    pub link: String,
    /// Whether the host's link was made by us and goes with the network.
    pub owns_link: bool,
}

impl Network {
    /// Whether the engine made it by itself.
    pub fn predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }

    /// A driver option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// Largest packet of its links.
    pub fn mtu(&self) -> Option<u32> {
        self.option("com.docker.network.driver.mtu").and_then(|text| text.parse().ok()).filter(|mtu| *mtu > 0)
    }

    /// A boolean driver option.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.option(key).and_then(super::spec::parse_bool).unwrap_or(default)
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol of that name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.name() == name)
    }

    /// Its IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A run of host ports that leads to a container: `count` ports, numbered alike on both sides from the two first ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address; unspecified is all of its family.
    pub host_ip: IpAddr,
    /// First host port.
    pub host_port: u16,
    /// First container port.
    pub container_port: u16,
    /// How many.
    pub count: u16,
    /// The container's address packets are rewritten to; `None` if only the helper can carry them there.
    pub rewrite_to: Option<IpAddr>,
    /// Where the helper carries what reaches the socket on the host.
    pub carry_to: IpAddr,
}

impl Published {
    /// Where the helper's sockets of the run lead; `None` if it has none.
    pub fn aim(&self) -> Option<Aim> {
        (self.host_port != 0).then(|| Aim {
            protocol: self.protocol,
            host: SocketAddr::new(self.host_ip, self.host_port),
            carry_to: SocketAddr::new(self.carry_to, self.container_port),
            count: self.count,
        })
    }
}

/// A container's endpoint in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// 64 hex digits.
    pub id: String,
    /// The network's id.
    pub network: String,
    /// Hardware address; none in `host` and `none`.
    pub mac: Option<Mac>,
    /// IPv4 address in its network.
    pub v4: Option<Prefix>,
    /// IPv6 address in its network.
    pub v6: Option<Prefix>,
    /// IPv4 gateway.
    pub gateway4: Option<IpAddr>,
    /// IPv6 gateway.
    pub gateway6: Option<IpAddr>,
    /// The link on the host; empty where there is none.
    pub host_link: String,
    /// The link in the container.
    pub link: String,
    /// Names in this network, the container's own first.
    pub names: Vec<String>,
    /// Names only this container uses for others: alias, and the other's id.
    pub links: Vec<(String, String)>,
    /// The endpoint with the highest is the default route.
    pub priority: i64,
    /// Kernel settings of its link, `name=value`.
    #[serde(default)]
    pub sysctls: Vec<String>,
}

/// A running container's place in the networks: what is set up on the host for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Record version.
    pub version: u32,
    /// The sandbox: 64 hex digits.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// The container's name, without the slash.
    pub name: String,
    /// Whether it has a network namespace of its own (not the host's).
    pub own_namespace: bool,
    /// Its endpoints, in the order of their links.
    pub endpoints: Vec<Endpoint>,
    /// Its published ports.
    pub ports: Vec<Published>,
    /// Ports it exposes, published or not.
    pub exposed: Vec<Port>,
    /// What its files and its resolver are made from.
    pub naming: Naming,
}

/// What a container's hosts and resolv.conf are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// Its host name.
    pub hostname: String,
    /// Its domain.
    pub domainname: String,
    /// Nameservers asked for.
    pub dns: Vec<IpAddr>,
    /// Search domains asked for.
    pub search: Vec<String>,
    /// Resolver options asked for.
    pub options: Vec<String>,
    /// `name:address` pairs.
    pub extra_hosts: Vec<String>,
    /// The directory the files are in.
    pub dir: PathBuf,
}

impl Wanted {
    /// What a container's record asks for. `links` are its `HostConfig.Links` with the containers found; the files go to `dir`.
    pub fn of(record: &crate::container::Record, links: Vec<Link>, dir: PathBuf) -> Self {
        let (config, host) = (&record.config, &record.host_config);
        Self {
            container: record.id.clone(),
            name: record.name.clone(),
            mode: host.network_mode.clone(),
            endpoints: record.networks.clone(),
            exposed: config.exposed_ports.iter().flatten().map(|(port, _)| port.clone()).collect(),
            bindings: host.port_bindings.clone().unwrap_or_default(),
            publish_all: host.publish_all_ports,
            links,
            naming: Naming {
                hostname: config.hostname.clone(),
                domainname: config.domainname.clone(),
                dns: host.dns.iter().flatten().filter_map(|addr| addr.0).collect(),
                search: host.dns_search.clone().unwrap_or_default(),
                options: host.dns_options.clone().unwrap_or_default(),
                extra_hosts: host.extra_hosts.clone().unwrap_or_default(),
                dir,
            },
        }
    }
}

impl Place {
    /// The file its namespace is bound to, below the engine's run directory.
    pub fn namespace_file(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// Its endpoint in a network.
    pub fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.network == network)
    }
}

/// Another container, and the name this one has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other container's id.
    pub container: String,
    /// The name.
    pub alias: String,
}

/// What a container that starts wants of the networks.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its id.
    pub container: String,
    /// Its name, without the slash.
    pub name: String,
    /// `HostConfig.NetworkMode`: `bridge`, `host`, `none`, `container:<full id>`, or a network's name or id. Empty and `default` are `bridge`.
    pub mode: String,
    /// By network name (or id) what was asked for.
    pub endpoints: BTreeMap<String, EndpointSettings>,
    /// `Config.ExposedPorts`.
    pub exposed: Vec<Port>,
    /// `HostConfig.PortBindings`.
    pub bindings: PortMap,
    /// `HostConfig.PublishAllPorts`.
    pub publish_all: bool,
    /// `HostConfig.Links`, resolved.
    pub links: Vec<Link>,
    /// Host name, resolver settings, where the files go.
    pub naming: Naming,
}

/// Fills a buffer from the kernel's generator.
pub fn fill_random(bytes: &mut [u8]) {
    // The only failure is a kernel without the call, which none that runs containers is.
    getrandom::fill(bytes).expect("the kernel gives random bytes");
}

/// A new identifier: 64 hex digits.
pub fn new_id() -> String {
    let mut bytes = [0; 32];
    fill_random(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_read_and_refuse_as_go_does() {
        let text = |text: &str| text.parse::<Prefix>().map(|p| p.to_string());
        assert_eq!(text("10.0.0.5/24").unwrap(), "10.0.0.5/24");
        assert_eq!(text("fd00::/64").unwrap(), "fd00::/64");
        assert_eq!(text("bogus").unwrap_err(), "netip.ParsePrefix(\"bogus\"): no '/'");
        assert_eq!(
            text("10.0.0.0/40").unwrap_err(),
            "netip.ParsePrefix(\"10.0.0.0/40\"): prefix length out of range"
        );
    }

    #[test]
    fn networks_overlap_or_not() {
        let p = |text: &str| text.parse::<Prefix>().unwrap();
        assert!(p("10.0.0.0/8").overlaps(&p("10.9.0.0/16")));
        assert!(!p("10.0.0.0/16").overlaps(&p("10.1.0.0/16")));
        assert!(!p("0.0.0.0/0").overlaps(&p("::/0")));
        assert!(p("10.79.0.5/24").network() == p("10.79.0.0/24"));
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!("02:42:AC:11:00:02".parse::<Mac>().unwrap().to_string(), "02:42:ac:11:00:02");
        assert_eq!("zz".parse::<Mac>().unwrap_err(), "address zz: invalid MAC address");
        assert_eq!(Mac::random().0[0] & 3, 2);
        let of = |ip: &str| Mac::of(ip.parse().unwrap()).map(|mac| mac.to_string());
        assert_eq!(of("172.17.0.2").as_deref(), Some("02:42:ac:11:00:02"));
        assert_eq!(of("fd00::2"), None);
    }
}
