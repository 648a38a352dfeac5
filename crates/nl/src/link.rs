//! Links: bridges, veth pairs, macvlan and vlan devices.
//!
//! Functions with a [`Messages`] append a request; several are sent at once with [`crate::Socket::all`]. The others ask the kernel.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sock::{ACK, CREATE, DUMP, EXCL, REQUEST};
use crate::writer::{Body, Messages, Received, attrs};
use crate::{Result, Socket};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const UP: u32 = 1;

const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const PROTINFO: u16 = 12;
const LINKINFO: u16 = 18;
const IFALIAS: u16 = 20;
const NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const BRPORT_ISOLATED: u16 = 33;
const BRPORT_HAIRPIN: u16 = 4;
/// Longest name of a link, without the final zero.
pub const NAME_MAX: usize = 15;

/// A hardware address.
pub type Mac = [u8; 6];

/// A link as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
    /// Its alias: here engines leave their mark.
    pub alias: String,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Whether it is the loopback device.
    pub loopback: bool,
}

/// The far end of a veth pair.
pub struct Peer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
    /// The namespace it is made in.
    pub ns: BorrowedFd<'a>,
}

fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn create(out: &mut Messages, name: &str, up: bool, kind: &str, body: impl FnOnce(&mut Body<'_>)) {
    let what = format!("add {kind} {name}");
    out.add(NEWLINK, REQUEST | ACK | CREATE | EXCL, what, |message| {
        let flags = if up { UP } else { 0 };
        message.raw(&header(0, flags, flags)).str(IFNAME, name);
        body(message);
    });
}

/// A bridge, down.
pub fn add_bridge(out: &mut Messages, name: &str, mtu: Option<u32>, mac: Mac) {
    create(out, name, false, "bridge", |message| {
        // An address of its own: without one a bridge takes that of its lowest port and changes it when ports come and go.
        message.attr(ADDRESS, &mac);
        if let Some(mtu) = mtu {
            message.u32(MTU, mtu);
        }
        message.nest(LINKINFO, |info| {
            info.str(INFO_KIND, "bridge");
        });
    });
}

/// A veth pair: `name` here, up, a port of `master`; its peer in the other namespace, down.
pub fn add_veth(out: &mut Messages, name: &str, mac: Mac, master: u32, mtu: Option<u32>, peer: &Peer<'_>) {
    create(out, name, true, "veth", |message| {
        message.u32(MASTER, master).attr(ADDRESS, &mac);
        if let Some(mtu) = mtu {
            message.u32(MTU, mtu);
        }
        message.nest(LINKINFO, |info| {
            info.str(INFO_KIND, "veth").nest(INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |far| {
                    far.raw(&header(0, 0, 0)).str(IFNAME, peer.name).attr(ADDRESS, &peer.mac);
                    if let Some(mtu) = mtu {
                        far.u32(MTU, mtu);
                    }
                    far.u32(NET_NS_FD, peer.ns.as_raw_fd() as u32);
                });
            });
        });
    });
}

/// A macvlan device over `parent`, made in another namespace, down. `mode`: 1 private, 2 vepa, 4 bridge, 8 passthru.
pub fn add_macvlan(
    out: &mut Messages,
    name: &str,
    parent: u32,
    mode: u32,
    mtu: Option<u32>,
    mac: Mac,
    ns: BorrowedFd<'_>,
) {
    create(out, name, false, "macvlan", |message| {
        message.u32(LINK, parent).attr(ADDRESS, &mac).u32(NET_NS_FD, ns.as_raw_fd() as u32);
        if let Some(mtu) = mtu {
            message.u32(MTU, mtu);
        }
        message.nest(LINKINFO, |info| {
            info.str(INFO_KIND, "macvlan").nest(INFO_DATA, |data| {
                data.u32(1, mode);
            });
        });
    });
}

/// An ipvlan device over `parent`, made in another namespace, down. `mode`: 0 l2, 1 l3, 2 l3s.
pub fn add_ipvlan(
    out: &mut Messages,
    name: &str,
    parent: u32,
    mode: u16,
    mtu: Option<u32>,
    ns: BorrowedFd<'_>,
) {
    create(out, name, false, "ipvlan", |message| {
        message.u32(LINK, parent).u32(NET_NS_FD, ns.as_raw_fd() as u32);
        if let Some(mtu) = mtu {
            message.u32(MTU, mtu);
        }
        message.nest(LINKINFO, |info| {
            info.str(INFO_KIND, "ipvlan").nest(INFO_DATA, |data| {
                data.u16(1, mode);
            });
        });
    });
}

/// A tagged sub-interface of `parent`, up.
pub fn add_vlan(out: &mut Messages, name: &str, parent: u32, id: u16) {
    create(out, name, true, "vlan", |message| {
        message.u32(LINK, parent).nest(LINKINFO, |info| {
            info.str(INFO_KIND, "vlan").nest(INFO_DATA, |data| {
                data.u16(1, id);
            });
        });
    });
}

/// A device that leads nowhere, up.
pub fn add_dummy(out: &mut Messages, name: &str) {
    create(out, name, true, "dummy", |message| {
        message.nest(LINKINFO, |info| {
            info.str(INFO_KIND, "dummy");
        });
    });
}

/// Brings a link up.
pub fn set_up(out: &mut Messages, index: u32) {
    out.add(NEWLINK, REQUEST | ACK, "set link up", |message| {
        message.raw(&header(index, UP, UP));
    });
}

/// Writes a link's alias.
pub fn set_alias(out: &mut Messages, index: u32, alias: &str) {
    out.add(NEWLINK, REQUEST | ACK, "set link alias", |message| {
        message.raw(&header(index, 0, 0)).attr(IFALIAS, alias.as_bytes());
    });
}

/// Changes the largest packet of a link.
pub fn set_mtu(out: &mut Messages, index: u32, mtu: u32) {
    out.add(NEWLINK, REQUEST | ACK, "set link mtu", |message| {
        message.raw(&header(index, 0, 0)).u32(MTU, mtu);
    });
}

/// Sets two properties of a bridge's port: whether isolated ports reach each other, and whether frames may leave where they came in.
pub fn set_port(out: &mut Messages, index: u32, isolated: bool, hairpin: bool) {
    const AF_BRIDGE: u8 = 7;
    // Only this message type reaches the bridge; the other would be accepted and do nothing.
    out.add(SETLINK, REQUEST | ACK, "set bridge port", |message| {
        let mut head = header(index, 0, 0);
        head[0] = AF_BRIDGE;
        message.raw(&head).nest(PROTINFO, |port| {
            port.u8(BRPORT_HAIRPIN, u8::from(hairpin)).u8(BRPORT_ISOLATED, u8::from(isolated));
        });
    });
}

/// Removes a link (a veth takes its peer along).
pub fn delete(out: &mut Messages, index: u32) {
    out.add(DELLINK, REQUEST | ACK, "delete link", |message| {
        message.raw(&header(index, 0, 0));
    });
}

/// Removes a link by name.
pub fn delete_named(out: &mut Messages, name: &str) {
    out.add(DELLINK, REQUEST | ACK, format!("delete link {name}"), |message| {
        message.raw(&header(0, 0, 0)).str(IFNAME, name);
    });
}

/// All links of the socket's namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut out = Messages::new();
    out.add(GETLINK, REQUEST | DUMP, "list links", |message| {
        message.raw(&header(0, 0, 0));
    });
    let mut found = Vec::new();
    socket.dump(out, |message| found.extend(parse(message)))?;
    Ok(found)
}

/// One link by name; `None` if there is none.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut out = Messages::new();
    out.add(GETLINK, REQUEST | ACK, format!("find link {name}"), |message| {
        message.raw(&header(0, 0, 0)).str(IFNAME, name);
    });
    let mut found = None;
    match socket.dump(out, |message| found = parse(message)) {
        Ok(()) => Ok(found),
        Err(err) if err.missing() => Ok(None),
        Err(err) => Err(err),
    }
}

fn parse(message: Received<'_>) -> Option<Link> {
    if message.kind != NEWLINK {
        return None;
    }
    let word =
        |at: usize| message.payload.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let flags = word(8)?;
    let mut link = Link {
        index: word(4)?,
        up: flags & UP != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Link::default()
    };
    for attr in attrs(message.payload.get(16..)?) {
        match attr.kind {
            IFNAME => link.name = attr.string(),
            MTU => link.mtu = attr.u32(),
            MASTER => link.master = Some(attr.u32()).filter(|index| *index != 0),
            IFALIAS => link.alias = attr.string(),
            ADDRESS => link.mac = attr.value.try_into().ok(),
            LINKINFO => {
                if let Some(kind) = attr.nested().find(|inner| inner.kind == INFO_KIND) {
                    link.kind = kind.string();
                }
            }
            _ => {}
        }
    }
    Some(link)
}
