//! Sets and maps of nf_tables, and their elements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::writer::Body;

const ANY_VERDICT: u32 = 0xffff_ff00;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const CONCAT: u32 = 0x80;

/// What one field of a key, or of a map's data, holds. The numbers are the `nft` program's, which prints by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// A link's name.
    Interface,
    /// Only as a map's data: what to do with the packet.
    Verdict,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Interface => 41,
            Self::Verdict => ANY_VERDICT,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::Interface | Self::Verdict => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// A set (no `data`) or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// The fields of its key; several are a concatenation.
    pub key: &'static [Kind],
    /// The fields of what it maps to; empty for a set.
    pub data: &'static [Kind],
    /// Whether keys may be ranges.
    pub ranges: bool,
}

/// Type number and length of a list of fields. A lone field has its own length; in a concatenation each is padded to four bytes.
fn layout(fields: &[Kind]) -> (u32, u32) {
    match fields {
        [one] => (one.number(), one.len() as u32),
        many => many.iter().fold((0, 0), |(number, len), field| {
            (number << 6 | field.number(), len + field.len().next_multiple_of(4) as u32)
        }),
    }
}

impl Set {
    pub(super) fn encode(&self, message: &mut Body<'_>, id: u32) {
        const NAME: u16 = 2;
        const FLAGS: u16 = 3;
        const KEY_TYPE: u16 = 4;
        const KEY_LEN: u16 = 5;
        const DATA_TYPE: u16 = 6;
        const DATA_LEN: u16 = 7;
        const DESC: u16 = 9;
        const ID: u16 = 10;
        const DESC_CONCAT: u16 = 2;
        let concat_ranges = self.ranges && self.key.len() > 1;
        let mut flags = 0;
        flags |= if self.ranges { INTERVAL } else { 0 };
        flags |= if self.data.is_empty() { 0 } else { MAP };
        flags |= if concat_ranges { CONCAT } else { 0 };
        let (key_type, key_len) = layout(self.key);
        message.str(NAME, self.name).be32(FLAGS, flags).be32(KEY_TYPE, key_type).be32(KEY_LEN, key_len);
        if !self.data.is_empty() {
            let (data_type, data_len) = layout(self.data);
            message.be32(DATA_TYPE, data_type).be32(DATA_LEN, data_len);
        }
        if concat_ranges {
            message.nest(DESC, |desc| {
                desc.nest(DESC_CONCAT, |list| {
                    for field in self.key {
                        list.nest(1, |element| {
                            element.be32(1, field.len() as u32);
                        });
                    }
                });
            });
        }
        message.be32(ID, id);
    }
}

/// A key: its fields one after the other, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

impl Key {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// An address.
    #[must_use]
    pub fn ip(self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => self.v4(v4),
            IpAddr::V6(v6) => self.v6(v6),
        }
    }

    /// An IPv4 address.
    #[must_use]
    pub fn v4(self, ip: Ipv4Addr) -> Self {
        self.field(&ip.octets())
    }

    /// An IPv6 address.
    #[must_use]
    pub fn v6(self, ip: Ipv6Addr) -> Self {
        self.field(&ip.octets())
    }

    /// A transport protocol.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.field(&[number])
    }

    /// A port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// A link's name, cut to what the kernel keeps.
    #[must_use]
    pub fn interface(self, name: &str) -> Self {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.field(&bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a map's element holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Fields, as in a key.
    Value(Key),
    /// Go on in a chain.
    Jump(String),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    key: Key,
    key_end: Option<Key>,
    data: Option<Data>,
    /// Marks the first key after a range, in sets of ranges over one field.
    range_end: bool,
}

impl Element {
    /// A lone key.
    pub fn new(key: Key) -> Self {
        Self { key, key_end: None, data: None, range_end: false }
    }

    /// All keys that are, field by field, between `first` and `last`: for concatenations with ranges.
    pub fn between(first: Key, last: Key) -> Self {
        Self { key: first, key_end: Some(last), data: None, range_end: false }
    }

    /// With data: an element of a map.
    #[must_use]
    pub fn with(mut self, data: Data) -> Self {
        self.data = Some(data);
        self
    }

    /// The two elements that stand for a network, in a map of ranges over one address.
    pub fn network(ip: IpAddr, prefix: u8, data: Option<Data>) -> Vec<Self> {
        let start = Self { key: Key::new().ip(ip), key_end: None, data, range_end: false };
        let after = match ip {
            IpAddr::V4(v4) => {
                let last = u32::from(v4) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                last.checked_add(1).map(|next| Key::new().v4(next.into()))
            }
            IpAddr::V6(v6) => {
                let last = u128::from(v6) | u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
                last.checked_add(1).map(|next| Key::new().v6(next.into()))
            }
        };
        let end = after.map(|key| Self { key, key_end: None, data: None, range_end: true });
        std::iter::once(start).chain(end).collect()
    }

    pub(super) fn encode(&self, list: &mut Body<'_>) {
        const KEY: u16 = 1;
        const DATA: u16 = 2;
        const FLAGS: u16 = 3;
        const KEY_END: u16 = 10;
        list.nest(1, |element| {
            element.nest(KEY, |key| {
                key.attr(1, self.key.bytes());
            });
            if let Some(end) = &self.key_end {
                element.nest(KEY_END, |key| {
                    key.attr(1, end.bytes());
                });
            }
            match &self.data {
                None => {}
                Some(Data::Value(value)) => {
                    element.nest(DATA, |data| {
                        data.attr(1, value.bytes());
                    });
                }
                Some(Data::Jump(chain)) => {
                    element.nest(DATA, |data| {
                        data.nest(2, |verdict| {
                            verdict.be32(1, super::expr::JUMP as u32).str(2, chain);
                        });
                    });
                }
            }
            if self.range_end {
                element.be32(FLAGS, 1);
            }
        });
    }
}
