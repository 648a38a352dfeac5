//! Writes netlink messages and their attributes; reads them back.
//!
//! Invariant: what leaves here is well formed: lengths are patched when a message or a nest is closed, attributes are padded to four bytes, and
//! a nest longer than an attribute's 16-bit length is an error of the caller that [`Messages::oversized`] reports before anything is sent.

use std::net::IpAddr;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Several messages, sent together and answered one by one.
#[derive(Default, Debug)]
pub struct Messages {
    buf: Vec<u8>,
    /// Where each message starts, and what it asks for (for the error that names it).
    starts: Vec<(usize, String)>,
    oversized: bool,
}

impl Messages {
    /// No messages yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one message. `what` names it in errors; `body` writes the family header and the attributes.
    pub fn add(&mut self, kind: u16, flags: u16, what: impl Into<String>, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.buf.len();
        self.starts.push((start, what.into()));
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
        body(&mut Body { buf: &mut self.buf, oversized: &mut self.oversized });
        let len = (self.buf.len() - start) as u32;
        self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Whether a nest grew beyond what its length field can say.
    pub fn oversized(&self) -> bool {
        self.oversized
    }

    /// What message `index` asks for.
    pub fn what(&self, index: usize) -> &str {
        self.starts.get(index).map_or("", |(_, what)| what)
    }

    /// Numbers the messages from `first` and gives back the bytes.
    pub(crate) fn numbered(&mut self, first: u32) -> &[u8] {
        for (index, (start, _)) in self.starts.iter().enumerate() {
            let sequence = first.wrapping_add(index as u32);
            self.buf[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        &self.buf
    }

    /// Sets a header flag of the last message.
    pub(crate) fn flag_last(&mut self, flag: u16) {
        if let Some((start, _)) = self.starts.last() {
            let at = start + 6;
            let old = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]);
            self.buf[at..at + 2].copy_from_slice(&(old | flag).to_ne_bytes());
        }
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }
}

/// The inside of one message or nest.
pub struct Body<'a> {
    buf: &'a mut Vec<u8>,
    oversized: &'a mut bool,
}

impl Body<'_> {
    /// Bytes that are not an attribute: the family's fixed header. Its length is a multiple of four.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    /// An attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = value.len() + 4;
        *self.oversized |= len > usize::from(u16::MAX);
        self.buf.extend_from_slice(&(len as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
        self
    }

    /// An attribute with no value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.attr(kind, &[])
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attr(kind, &[value])
    }

    /// Two bytes, host order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Four bytes, host order (rtnetlink's habit).
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Four bytes, network order (netfilter's habit).
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Eight bytes, network order.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A string with its final zero.
    pub fn str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An address, four or sixteen bytes.
    pub fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(v4) => self.attr(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attr(kind, &v6.octets()),
        }
    }

    /// Attributes inside an attribute.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Body { buf: self.buf, oversized: self.oversized });
        let len = self.buf.len() - start;
        *self.oversized |= len > usize::from(u16::MAX);
        self.buf[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        self
    }

    /// How many bytes the whole buffer holds: to split long lists.
    pub fn written(&self) -> usize {
        self.buf.len()
    }
}

/// One attribute as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its number without the nested and byte-order bits.
    pub kind: u16,
    /// Its value without padding.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// A string: up to the first zero.
    pub fn string(&self) -> String {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(&self.value[..end]).into_owned()
    }

    /// Four bytes, host order; 0 when the kernel sent fewer.
    pub fn u32(&self) -> u32 {
        self.value.get(..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    /// Four bytes, network order; 0 when the kernel sent fewer.
    pub fn be32(&self) -> u32 {
        self.u32().to_be()
    }

    /// An address, if it has the length of one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.value.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(self.value).ok()?)),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(self.value).ok()?)),
            _ => None,
        }
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        attrs(self.value)
    }
}

/// Reads attributes one after the other; stops at the first that does not fit.
#[derive(Clone, Debug)]
pub struct Attrs<'a>(&'a [u8]);

/// The attributes in `bytes`.
pub fn attrs(bytes: &[u8]) -> Attrs<'_> {
    Attrs(bytes)
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attr { kind, value })
    }
}

/// One message as read: its type, flags, sequence number, sender and payload.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Message type.
    pub kind: u16,
    /// Header flags.
    pub flags: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Port of the socket whose request caused it.
    pub port: u32,
    /// All after the header.
    pub payload: &'a [u8],
}

/// Splits what one `recv` returned into messages.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let half = |at: usize| bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        let len = word(0)? as usize;
        let received = Received {
            kind: half(4)?,
            flags: half(6)?,
            sequence: word(8)?,
            port: word(12)?,
            payload: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(received)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Tree {
        Leaf(u16, Vec<u8>),
        Nest(u16, Vec<Tree>),
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = (1..0x3fffu16, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, value)| Tree::Leaf(kind, value));
        leaf.prop_recursive(4, 40, 6, |inner| {
            (1..0x3fffu16, prop::collection::vec(inner, 0..6))
                .prop_map(|(kind, value)| Tree::Nest(kind, value))
        })
    }

    fn write(body: &mut Body<'_>, tree: &Tree) {
        match tree {
            Tree::Leaf(kind, value) => body.attr(*kind, value),
            Tree::Nest(kind, inner) => {
                body.nest(*kind, |body| inner.iter().for_each(|tree| write(body, tree)))
            }
        };
    }

    fn check(attr: Attr<'_>, tree: &Tree) {
        match tree {
            Tree::Leaf(kind, value) => assert_eq!((attr.kind, attr.value), (*kind, value.as_slice())),
            Tree::Nest(kind, inner) => {
                assert_eq!(attr.kind, *kind);
                assert_eq!(attr.nested().count(), inner.len());
                attr.nested().zip(inner).for_each(|(attr, tree)| check(attr, tree));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trees in prop::collection::vec(tree(), 0..6), count in 1usize..4) {
            let mut out = Messages::new();
            for _ in 0..count {
                out.add(7, 3, "x", |body| trees.iter().for_each(|tree| write(body, tree)));
            }
            let bytes = out.numbered(40).to_vec();
            let read: Vec<_> = messages(&bytes).collect();
            prop_assert_eq!(read.len(), count);
            for (index, message) in read.iter().enumerate() {
                prop_assert_eq!((message.kind, message.flags, message.sequence), (7, 3, 40 + index as u32));
                prop_assert_eq!(attrs(message.payload).count(), trees.len());
                attrs(message.payload).zip(&trees).for_each(|(attr, tree)| check(attr, tree));
            }
        }

        #[test]
        fn no_bytes_panic_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                for attr in attrs(message.payload) {
                    let _ = (attr.string(), attr.be32(), attr.ip(), attr.nested().count());
                }
            }
        }
    }

    #[test]
    fn a_nest_beyond_64_kib_is_noticed() {
        let mut out = Messages::new();
        out.add(1, 0, "big", |body| {
            body.nest(1, |body| {
                (0..9000).for_each(|_| {
                    body.u32(1, 1);
                })
            });
        });
        assert!(out.oversized());
    }
}
