//! Forgetting tracked connections.
//!
//! A UDP flow that was tracked before its port was published (or for the port's former owner) keeps its old translation for as long as packets
//! come: the entries must go when a port changes hands.

use std::net::IpAddr;

use crate::sock::{ACK, DUMP, REQUEST};
use crate::writer::{Attrs, Messages, attrs};
use crate::{Result, Socket};

const SUBSYS: u16 = 1 << 8;
const GET: u16 = SUBSYS | 1;
const DELETE: u16 = SUBSYS | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// One direction of a tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// Deletes the tracked flows for which `doomed` says so, given both directions; how many there were.
pub fn delete(socket: &mut Socket, family: u8, doomed: impl Fn(&Tuple, &Tuple) -> bool) -> Result<usize> {
    let mut out = Messages::new();
    out.add(GET, REQUEST | DUMP, "list tracked connections", |message| {
        message.raw(&[family, 0, 0, 0]);
    });
    let mut dead: Vec<Vec<u8>> = Vec::new();
    socket.dump(out, |message| {
        let Some(body) = message.payload.get(4..) else { return };
        let find = |kind| attrs(body).find(|attr| attr.kind == kind);
        let (Some(orig), Some(reply)) = (find(TUPLE_ORIG), find(TUPLE_REPLY)) else { return };
        if let (Some(to), Some(from)) = (tuple(orig.nested()), tuple(reply.nested()))
            && doomed(&to, &from)
        {
            dead.push(orig.value.to_vec());
        }
    })?;
    let mut out = Messages::new();
    for tuple in &dead {
        out.add(DELETE, REQUEST | ACK, "forget tracked connection", |message| {
            message.raw(&[family, 0, 0, 0]).attr(TUPLE_ORIG | 0x8000, tuple);
        });
    }
    // One that ended by itself meanwhile is content.
    Ok(socket.each(out)?.into_iter().filter(std::result::Result::is_ok).count())
}

fn tuple(mut parts: Attrs<'_>) -> Option<Tuple> {
    let (mut source, mut destination, mut protocol, mut port) = (None, None, 0, 0);
    for part in &mut parts {
        for field in part.nested() {
            match (part.kind, field.kind) {
                (1, 1 | 3) => source = field.ip(),
                (1, 2 | 4) => destination = field.ip(),
                (2, 1) => protocol = *field.value.first()?,
                (2, 3) => port = u16::from_be_bytes(field.value.get(..2)?.try_into().ok()?),
                _ => {}
            }
        }
    }
    Some(Tuple { source: source?, destination: destination?, protocol, port })
}
