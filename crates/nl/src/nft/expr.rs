//! Rules: the small programs packets are judged by.

use std::net::IpAddr;

use super::Key;
use crate::writer::{Attrs, Body, attrs};

pub(super) const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
/// The first of the sixteen 4-byte registers.
const REG: u32 = 8;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass this hook.
    Accept,
    /// It is thrown away.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// Go on in a chain and come back.
    Jump(String),
    /// Go on in a chain and do not come back.
    Goto(String),
}

/// What of a packet is loaded as one field of a lookup's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Source address (of the family the rule is for).
    Source,
    /// Destination address.
    Destination,
    /// Transport protocol.
    Protocol,
    /// Destination port.
    DestinationPort,
    /// Name of the link it came in by.
    InputName,
    /// Name of the link it goes out by.
    OutputName,
}

/// One instruction, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Load meta data.
    Meta { key: u32, register: u32 },
    /// Load header bytes.
    Payload { base: u32, offset: u32, len: u32, register: u32 },
    /// Go on if equal (0) or different (1).
    Compare { register: u32, different: bool, value: Vec<u8> },
    /// Keep some bits.
    Mask { register: u32, mask: Vec<u8> },
    /// Load connection tracking data.
    Conntrack { key: u32, register: u32 },
    /// Load the type of the destination address.
    FibDestinationType { register: u32 },
    /// Go on if the key is in a set; a map loads its data, or takes its verdict.
    Lookup { set: String, register: u32, into: Option<u32>, invert: bool },
    /// Count packets.
    Counter,
    /// Decide.
    Verdict(Verdict),
    /// Load a constant.
    Constant { register: u32, value: Vec<u8> },
    /// Rewrite the source (0) or destination (1).
    Nat { destination: bool, family: u8, address: u32, port: Option<u32> },
    /// Rewrite the source to the address of the link the packet leaves by.
    Masquerade,
    /// Rewrite the destination to this host and a port.
    Redirect { port: u32 },
}

/// A rule: instructions and a comment. Built left to right, as `nft` would write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    exprs: Vec<Expr>,
    comment: String,
}

fn meta(key: u32, register: u32) -> Expr {
    Expr::Meta { key, register }
}

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
/// Conntrack states established and related.
const ESTABLISHED_RELATED: u32 = 2 | 4;
const IPS_DST_NAT: u32 = 1 << 5;
const RTN_LOCAL: u32 = 2;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

impl Rule {
    /// A rule that matches everything and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.exprs.extend(exprs);
        self
    }

    fn compare(self, value: &[u8], different: bool) -> Self {
        self.with([Expr::Compare { register: REG, different, value: value.to_vec() }])
    }

    /// A comment, at most 120 bytes.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        self.comment = text.chars().take(120).collect();
        self
    }

    /// Only packets that came in by this link (or by any other).
    #[must_use]
    pub fn input(self, name: &str, is: bool) -> Self {
        self.with([meta(META_IIFNAME, REG)]).compare(Key::new().interface(name).bytes(), !is)
    }

    /// Only packets that leave by this link (or by any other).
    #[must_use]
    pub fn output(self, name: &str, is: bool) -> Self {
        self.with([meta(META_OIFNAME, REG)]).compare(Key::new().interface(name).bytes(), !is)
    }

    /// Only packets of the address's family. Needed before its addresses are loaded, in a table of both.
    #[must_use]
    pub fn family_of(self, v6: bool) -> Self {
        self.with([meta(META_NFPROTO, REG)]).compare(&[if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }], false)
    }

    fn address(self, ip: IpAddr, prefix: u8, source: bool, is: bool) -> Self {
        let (bytes, offset): (Vec<u8>, u32) = match ip {
            IpAddr::V4(v4) => (v4.octets().to_vec(), if source { 12 } else { 16 }),
            IpAddr::V6(v6) => (v6.octets().to_vec(), if source { 8 } else { 24 }),
        };
        let len = bytes.len() as u32;
        let mut rule =
            self.family_of(ip.is_ipv6()).with([Expr::Payload { base: NETWORK, offset, len, register: REG }]);
        if u32::from(prefix) < len * 8 {
            let mut mask = vec![0u8; bytes.len()];
            for bit in 0..usize::from(prefix) {
                mask[bit / 8] |= 0x80 >> (bit % 8);
            }
            rule = rule.with([Expr::Mask { register: REG, mask }]);
        }
        rule.compare(&bytes, !is)
    }

    /// Only packets from a network (or from elsewhere).
    #[must_use]
    pub fn source(self, ip: IpAddr, prefix: u8, is: bool) -> Self {
        self.address(ip, prefix, true, is)
    }

    /// Only packets to a network (or to elsewhere).
    #[must_use]
    pub fn destination(self, ip: IpAddr, prefix: u8, is: bool) -> Self {
        self.address(ip, prefix, false, is)
    }

    /// Only packets of a transport protocol.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.with([meta(META_L4PROTO, REG)]).compare(&[number], false)
    }

    /// Only packets to a port; after [`Rule::protocol`].
    #[must_use]
    pub fn destination_port(self, port: u16) -> Self {
        self.with([Expr::Payload { base: TRANSPORT, offset: 2, len: 2, register: REG }])
            .compare(&port.to_be_bytes(), false)
    }

    fn bits(self, load: Expr, bits: u32) -> Self {
        self.with([load, Expr::Mask { register: REG, mask: bits.to_ne_bytes().to_vec() }])
            .compare(&0u32.to_ne_bytes(), true)
    }

    /// Only packets of connections that are established, or related to such.
    #[must_use]
    pub fn established(self) -> Self {
        self.bits(Expr::Conntrack { key: CT_STATE, register: REG }, ESTABLISHED_RELATED)
    }

    /// Only packets of connections whose destination was rewritten.
    #[must_use]
    pub fn destination_rewritten(self) -> Self {
        self.bits(Expr::Conntrack { key: CT_STATUS, register: REG }, IPS_DST_NAT)
    }

    /// Only packets to an address of this host (or to others).
    #[must_use]
    pub fn to_this_host(self, is: bool) -> Self {
        self.with([Expr::FibDestinationType { register: REG }]).compare(&RTN_LOCAL.to_ne_bytes(), !is)
    }

    /// Loads fields one after the other, as a concatenated key; the register after the last.
    fn load(&mut self, fields: &[Field], v6: bool) {
        let mut register = REG;
        for field in fields {
            let (expr, words) = match field {
                Field::Source | Field::Destination => {
                    let (offset, len) = match (field, v6) {
                        (Field::Source, false) => (12, 4),
                        (_, false) => (16, 4),
                        (Field::Source, true) => (8, 16),
                        (_, true) => (24, 16),
                    };
                    (Expr::Payload { base: NETWORK, offset, len, register }, len / 4)
                }
                Field::Protocol => (meta(META_L4PROTO, register), 1),
                Field::DestinationPort => (Expr::Payload { base: TRANSPORT, offset: 2, len: 2, register }, 1),
                Field::InputName => (meta(META_IIFNAME, register), 4),
                Field::OutputName => (meta(META_OIFNAME, register), 4),
            };
            self.exprs.push(expr);
            register += words;
        }
    }

    /// Only packets whose fields are in a set (or are not). Fields with addresses need [`Rule::family_of`] before.
    #[must_use]
    pub fn in_set(mut self, fields: &[Field], v6: bool, set: &str, is: bool) -> Self {
        self.load(fields, v6);
        self.with([Expr::Lookup { set: set.to_owned(), register: REG, into: None, invert: !is }])
    }

    /// Takes the verdict a map has for the fields, if it has one.
    #[must_use]
    pub fn verdict_map(mut self, fields: &[Field], v6: bool, map: &str) -> Self {
        self.load(fields, v6);
        self.with([Expr::Lookup { set: map.to_owned(), register: REG, into: Some(0), invert: false }])
    }

    /// Rewrites the destination to what a map has for the fields: an address, and a port if `with_port`.
    #[must_use]
    pub fn rewrite_destination(mut self, fields: &[Field], v6: bool, map: &str, with_port: bool) -> Self {
        self.load(fields, v6);
        let (family, words) = if v6 { (NFPROTO_IPV6, 4) } else { (NFPROTO_IPV4, 1) };
        let port = with_port.then_some(REG + words);
        self.with([
            Expr::Lookup { set: map.to_owned(), register: REG, into: Some(REG), invert: false },
            Expr::Nat { destination: true, family, address: REG, port },
        ])
    }

    /// Rewrites source or destination to a constant.
    #[must_use]
    pub fn rewrite(self, destination: bool, ip: IpAddr, port: Option<u16>) -> Self {
        let (family, words, bytes) = match ip {
            IpAddr::V4(v4) => (NFPROTO_IPV4, 1, v4.octets().to_vec()),
            IpAddr::V6(v6) => (NFPROTO_IPV6, 4, v6.octets().to_vec()),
        };
        let mut rule = self.with([Expr::Constant { register: REG, value: bytes }]);
        if let Some(port) = port {
            rule = rule.with([Expr::Constant { register: REG + words, value: port.to_be_bytes().to_vec() }]);
        }
        rule.with([Expr::Nat { destination, family, address: REG, port: port.map(|_| REG + words) }])
    }

    /// Rewrites the source to the address of the link the packet leaves by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with([Expr::Masquerade])
    }

    /// Sends the packet to a port of this host.
    #[must_use]
    pub fn redirect(self, port: u16) -> Self {
        let value = port.to_be_bytes().to_vec();
        self.with([Expr::Constant { register: REG, value }, Expr::Redirect { port: REG }])
    }

    /// Counts.
    #[must_use]
    pub fn counter(self) -> Self {
        self.with([Expr::Counter])
    }

    /// Decides.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with([Expr::Verdict(verdict)])
    }

    pub(super) fn encode(&self, message: &mut Body<'_>) {
        const EXPRESSIONS: u16 = 4;
        const USERDATA: u16 = 7;
        message.nest(EXPRESSIONS, |list| {
            for expr in &self.exprs {
                list.nest(1, |element| {
                    element.str(1, expr.name()).nest(2, |data| expr.encode(data));
                });
            }
        });
        if !self.comment.is_empty() {
            message.attr(USERDATA, &user_data(&self.comment));
        }
    }
}

/// User data that is a comment: rules and chains have the same.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(120)];
    [&[0, text.len() as u8 + 1], text, &[0]].concat()
}

/// The comment in a rule's or chain's user data.
pub(super) fn comment(user: &[u8]) -> String {
    let mut rest = user;
    while let [kind, len, tail @ ..] = rest {
        let (value, after) = tail.split_at_checked((*len).into()).unwrap_or((tail, &[]));
        if *kind == 0 {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        rest = after;
    }
    String::new()
}

/// The chain a listed expression jumps to.
pub(super) fn jump(expr: Attrs<'_>) -> Option<String> {
    let data = expr.clone().find(|attr| attr.kind == 2)?;
    if expr.clone().find(|attr| attr.kind == 1)?.string() != "immediate" {
        return None;
    }
    let verdict = data.nested().find(|attr| attr.kind == 2)?.nested().find(|attr| attr.kind == 2)?;
    Some(attrs(verdict.value).find(|attr| attr.kind == 2)?.string())
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Conntrack { .. } => "ct",
            Self::FibDestinationType { .. } => "fib",
            Self::Lookup { .. } => "lookup",
            Self::Counter => "counter",
            Self::Verdict(_) | Self::Constant { .. } => "immediate",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Redirect { .. } => "redir",
        }
    }

    fn encode(&self, data: &mut Body<'_>) {
        match self {
            Self::Meta { key, register } => {
                data.be32(1, *register).be32(2, *key);
            }
            Self::Payload { base, offset, len, register } => {
                data.be32(1, *register).be32(2, *base).be32(3, *offset).be32(4, *len);
            }
            Self::Compare { register, different, value } => {
                data.be32(1, *register).be32(2, u32::from(*different)).nest(3, |inner| {
                    inner.attr(1, value);
                });
            }
            Self::Mask { register, mask } => {
                data.be32(1, *register).be32(2, *register).be32(3, mask.len() as u32);
                data.nest(4, |inner| {
                    inner.attr(1, mask);
                });
                data.nest(5, |inner| {
                    inner.attr(1, &vec![0; mask.len()]);
                });
            }
            Self::Conntrack { key, register } => {
                data.be32(1, *register).be32(2, *key);
            }
            Self::FibDestinationType { register } => {
                const RESULT_ADDRTYPE: u32 = 3;
                const FLAG_DADDR: u32 = 2;
                data.be32(1, *register).be32(2, RESULT_ADDRTYPE).be32(3, FLAG_DADDR);
            }
            Self::Lookup { set, register, into, invert } => {
                data.str(1, set).be32(2, *register);
                if let Some(into) = into {
                    data.be32(3, *into);
                }
                if *invert {
                    data.be32(5, 1);
                }
            }
            Self::Counter => {
                data.be64(1, 0).be64(2, 0);
            }
            Self::Verdict(verdict) => {
                let (code, chain) = match verdict {
                    Verdict::Drop => (0, None),
                    Verdict::Accept => (1, None),
                    Verdict::Return => (RETURN, None),
                    Verdict::Jump(chain) => (JUMP, Some(chain)),
                    Verdict::Goto(chain) => (GOTO, Some(chain)),
                };
                data.be32(1, 0).nest(2, |inner| {
                    inner.nest(2, |inner| {
                        inner.be32(1, code as u32);
                        if let Some(chain) = chain {
                            inner.str(2, chain);
                        }
                    });
                });
            }
            Self::Constant { register, value } => {
                data.be32(1, *register).nest(2, |inner| {
                    inner.attr(1, value);
                });
            }
            Self::Nat { destination, family, address, port } => {
                data.be32(1, u32::from(*destination)).be32(2, u32::from(*family)).be32(3, *address);
                if let Some(port) = port {
                    data.be32(5, *port);
                }
            }
            Self::Masquerade => {}
            Self::Redirect { port } => {
                data.be32(1, *port);
            }
        }
    }
}
