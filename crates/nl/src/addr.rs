//! Addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sock::{ACK, CREATE, DUMP, EXCL, REPLACE, REQUEST};
use crate::writer::{Messages, attrs};
use crate::{Result, Socket};

const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const TABLE_MAIN: u8 = 254;
const PROTO_BOOT: u8 = 3;
const UNICAST: u8 = 1;
const SCOPE_LINK: u8 = 253;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's number.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpAddr,
    /// Bits of the destination; 0 is the default route.
    pub prefix: u8,
    /// The next hop, if it is not on the link.
    pub gateway: Option<IpAddr>,
    /// The link it goes out of.
    pub link: Option<u32>,
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn address_header(ip: IpAddr, prefix: u8, link: u32) -> [u8; 8] {
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut head = [family(ip), prefix, flags, 0, 0, 0, 0, 0];
    head[4..].copy_from_slice(&link.to_ne_bytes());
    head
}

/// Gives a link an address. IPv6 addresses skip duplicate detection: the allocator has handed each out once.
pub fn add(out: &mut Messages, link: u32, ip: IpAddr, prefix: u8) {
    out.add(NEWADDR, REQUEST | ACK | CREATE | EXCL, format!("add address {ip}/{prefix}"), |message| {
        message.raw(&address_header(ip, prefix, link)).ip(IFA_LOCAL, ip).ip(IFA_ADDRESS, ip);
        if let IpAddr::V4(v4) = ip
            && prefix < 31
        {
            let broadcast = u32::from(v4) | (u32::MAX >> prefix.min(31));
            message.attr(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
    });
}

/// Takes an address off a link.
pub fn remove(out: &mut Messages, link: u32, ip: IpAddr, prefix: u8) {
    out.add(DELADDR, REQUEST | ACK, format!("delete address {ip}/{prefix}"), |message| {
        message.raw(&address_header(ip, prefix, link)).ip(IFA_LOCAL, ip);
    });
}

fn route_header(ip: IpAddr, prefix: u8, on_link: bool) -> [u8; 12] {
    let scope = if on_link && ip.is_ipv4() { SCOPE_LINK } else { 0 };
    [family(ip), prefix, 0, 0, TABLE_MAIN, PROTO_BOOT, scope, UNICAST, 0, 0, 0, 0]
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Adds the default route over `gateway`, or replaces the one there is.
pub fn replace_default(out: &mut Messages, gateway: IpAddr, link: u32) {
    out.add(NEWROUTE, REQUEST | ACK | CREATE | REPLACE, format!("set default route {gateway}"), |message| {
        message.raw(&route_header(any(gateway), 0, false)).ip(RTA_GATEWAY, gateway).u32(RTA_OIF, link);
    });
}

/// Adds a route to what is on the link itself.
pub fn add_on_link(out: &mut Messages, destination: IpAddr, prefix: u8, link: u32, source: Option<IpAddr>) {
    let what = format!("add route {destination}/{prefix}");
    out.add(NEWROUTE, REQUEST | ACK | CREATE | REPLACE, what, |message| {
        message.raw(&route_header(destination, prefix, true)).u32(RTA_OIF, link);
        if prefix > 0 {
            message.ip(RTA_DST, destination);
        }
        if let Some(source) = source {
            message.ip(RTA_PREFSRC, source);
        }
    });
}

/// Removes the default route of a family.
pub fn remove_default(out: &mut Messages, gateway: IpAddr) {
    out.add(DELROUTE, REQUEST | ACK, format!("delete default route {gateway}"), |message| {
        message.raw(&route_header(any(gateway), 0, false)).ip(RTA_GATEWAY, gateway);
    });
}

/// All addresses of the socket's namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Address>> {
    let mut out = Messages::new();
    out.add(GETADDR, REQUEST | DUMP, "list addresses", |message| {
        message.raw(&[0; 8]);
    });
    let mut found = Vec::new();
    socket.dump(out, |message| {
        let (Some(head), Some(rest)) = (message.payload.get(..8), message.payload.get(8..)) else { return };
        if message.kind != NEWADDR {
            return;
        }
        let link = head.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let of = |kind| attrs(rest).find(|attr| attr.kind == kind).and_then(|attr| attr.ip());
        if let Some(ip) = of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS)) {
            found.push(Address { link, ip, prefix: head[1] });
        }
    })?;
    Ok(found)
}

/// All unicast routes of the main table.
pub fn routes(socket: &mut Socket) -> Result<Vec<Route>> {
    let mut out = Messages::new();
    out.add(GETROUTE, REQUEST | DUMP, "list routes", |message| {
        message.raw(&[0; 12]);
    });
    let mut found = Vec::new();
    socket.dump(out, |message| {
        let (Some(head), Some(rest)) = (message.payload.get(..12), message.payload.get(12..)) else { return };
        if message.kind != NEWROUTE || head[7] != UNICAST {
            return;
        }
        let of = |kind| attrs(rest).find(|attr| attr.kind == kind);
        let table = of(RTA_TABLE).map_or(u32::from(head[4]), |attr| attr.u32());
        if table != u32::from(TABLE_MAIN) {
            return;
        }
        let zero: IpAddr = if head[0] == libc::AF_INET as u8 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        found.push(Route {
            destination: of(RTA_DST).and_then(|attr| attr.ip()).unwrap_or(zero),
            prefix: head[1],
            gateway: of(RTA_GATEWAY).and_then(|attr| attr.ip()),
            link: of(RTA_OIF).map(|attr| attr.u32()),
        });
    })?;
    Ok(found)
}
