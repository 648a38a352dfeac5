//! Makes requests acceptable whose `:authority` is a socket path.
//!
//! gRPC clients in Python and Java put the path of a unix socket there. It is no valid authority, and the HTTP/2 library resets such streams
//! before anybody could look at them. So what a client sends passes through [`Rewriter`] first: it follows the HTTP/2 frames and the
//! structure of header blocks (RFC 9113 §4.1, RFC 7541 §6), and overwrites the bytes of a literal `:authority` value with letters, whether the
//! name is an index of the static table or spelled out (as gRPC's C core does). Nothing here uses the authority.
//!
//! Invariant: every byte keeps its place, so nothing is buffered or delayed, lengths stay true, and the peers' compression tables, which
//! count lengths, stay in step. A Huffman-coded value is left alone: it cannot be overwritten without knowing its length. Those clients send
//! short values plain.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// What an authority is made of after this.
const LETTER: u8 = b'a';
const PREFACE_BYTES: u32 = 24;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// Index of `:authority` in the static table.
const AUTHORITY_INDEX: u64 = 1;
const AUTHORITY: &[u8] = b":authority";

/// An accepted connection whose requests are made acceptable.
pub struct Connection {
    stream: UnixStream,
    rewriter: Rewriter,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, rewriter: Rewriter::default() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &result {
            self.rewriter.process(&mut buf.filled_mut()[before..]);
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

/// Follows one client's bytes.
#[derive(Debug)]
struct Rewriter {
    at: At,
    block: Block,
}

/// Where in the frames the next byte is.
#[derive(Debug, Clone, Copy)]
enum At {
    /// That many bytes nobody looks at, then the next frame.
    Skip(u32),
    /// The nine bytes before a frame's payload; how many of them are here.
    Head { seen: u8, bytes: [u8; 9] },
    /// The length of the padding of a HEADERS frame.
    PadLength { left: u32, priority: bool },
    /// The priority fields: how many bytes of them are left.
    Priority { left: u32, padding: u32, fields: u8 },
    /// The header block: how many bytes of it are in this frame.
    Fragment { left: u32, padding: u32 },
}

/// Where in a header block the next byte is.
#[derive(Debug, Clone, Copy)]
enum Block {
    /// A new representation.
    Start,
    /// An index or table size goes on; what follows when it ends.
    Number { value: u64, shift: u32, then: AfterNumber },
    /// A string's length begins. `name` is whether it is a name, `authority` whether it is the value to overwrite.
    StringStart { name: bool, authority: bool },
    /// A string's length goes on.
    StringLength { value: u64, shift: u32, huffman: bool, name: bool, authority: bool },
    /// Inside a value.
    Value { left: u64, overwrite: bool },
    /// Inside a name: how many bytes of `:authority` it has been so far, `None` once it is another.
    Name { left: u64, matched: Option<usize> },
    /// The block makes no sense; its receiver will say so. Nothing more is looked at.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterNumber {
    Representation,
    /// The number is the index of a literal's name.
    Value,
}

impl Default for Rewriter {
    fn default() -> Self {
        Self { at: At::Skip(PREFACE_BYTES), block: Block::Start }
    }
}

impl Rewriter {
    fn process(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.at {
                At::Skip(left) => {
                    let used = take(bytes, *left);
                    *left -= used as u32;
                    used
                }
                At::Fragment { left, .. } => {
                    let used = take(bytes, *left);
                    *left -= used as u32;
                    for byte in &mut bytes[..used] {
                        self.block = self.block.next(byte);
                    }
                    used
                }
                At::Head { .. } | At::PadLength { .. } | At::Priority { .. } => {
                    self.step(bytes[0]);
                    1
                }
            };
            bytes = &mut bytes[used..];
            match self.at {
                At::Skip(0) => self.at = At::Head { seen: 0, bytes: [0; 9] },
                At::Fragment { left: 0, padding } => self.at = skip(padding),
                _ => {}
            }
        }
    }

    fn step(&mut self, byte: u8) {
        self.at = match self.at {
            At::Head { seen, mut bytes } => {
                bytes[usize::from(seen)] = byte;
                if seen < 8 { At::Head { seen: seen + 1, bytes } } else { self.frame(bytes) }
            }
            At::PadLength { left, priority } => {
                let padding = u32::from(byte);
                match left.checked_sub(1 + padding) {
                    Some(left) => fields(left, padding, priority),
                    // More padding than frame: the receiver ends the connection.
                    None => skip(left.saturating_sub(1)),
                }
            }
            At::Priority { left, padding, fields } => match (left.checked_sub(1), fields) {
                (Some(left), 1) => At::Fragment { left, padding },
                (Some(left), _) => At::Priority { left, padding, fields: fields - 1 },
                (None, _) => skip(padding),
            },
            at @ (At::Skip(_) | At::Fragment { .. }) => at,
        };
    }

    fn frame(&mut self, head: [u8; 9]) -> At {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        match kind {
            HEADERS => {
                self.block = Block::Start;
                let priority = flags & FLAG_PRIORITY != 0;
                if flags & FLAG_PADDED != 0 && length > 0 {
                    At::PadLength { left: length, priority }
                } else {
                    fields(length, 0, priority)
                }
            }
            CONTINUATION => At::Fragment { left: length, padding: 0 },
            _ => skip(length),
        }
    }
}

fn fields(left: u32, padding: u32, priority: bool) -> At {
    if priority && left >= 5 {
        At::Priority { left, padding, fields: 5 }
    } else {
        At::Fragment { left, padding }
    }
}

/// Past `left` bytes; of nothing, straight to the next frame.
fn skip(left: u32) -> At {
    At::Skip(left)
}

fn take(bytes: &[u8], left: u32) -> usize {
    bytes.len().min(left as usize)
}

impl Block {
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => start(*byte),
            Self::Number { value, shift, then } => match more(value, shift, *byte) {
                None => Self::Lost,
                Some((value, true)) => Self::Number { value, shift: shift + 7, then },
                Some((value, false)) => after_number(value, then),
            },
            Self::StringStart { name, authority } => {
                let huffman = *byte & 0x80 != 0;
                match *byte & 0x7f {
                    0x7f => Self::StringLength { value: 0x7f, shift: 0, huffman, name, authority },
                    length => string(u64::from(length), huffman, name, authority),
                }
            }
            Self::StringLength { value, shift, huffman, name, authority } => {
                match more(value, shift, *byte) {
                    None => Self::Lost,
                    Some((value, true)) => {
                        Self::StringLength { value, shift: shift + 7, huffman, name, authority }
                    }
                    Some((value, false)) => string(value, huffman, name, authority),
                }
            }
            Self::Value { left, overwrite } => {
                if overwrite {
                    *byte = LETTER;
                }
                match left - 1 {
                    0 => Self::Start,
                    left => Self::Value { left, overwrite },
                }
            }
            Self::Name { left, matched } => {
                let matched = matched.filter(|at| AUTHORITY.get(*at) == Some(byte)).map(|at| at + 1);
                match left - 1 {
                    0 => Self::StringStart { name: false, authority: matched == Some(AUTHORITY.len()) },
                    left => Self::Name { left, matched },
                }
            }
            Self::Lost => Self::Lost,
        }
    }
}

/// The first byte of a representation: what it is, and how many of its bits begin a number.
fn start(byte: u8) -> Block {
    let (bits, then) = match byte {
        0x80.. => (7, AfterNumber::Representation),
        0x40..=0x7f => (6, AfterNumber::Value),
        0x20..=0x3f => (5, AfterNumber::Representation),
        0x00..=0x1f => (4, AfterNumber::Value),
    };
    let mask = (1u8 << bits) - 1;
    match byte & mask {
        full if full == mask => Block::Number { value: u64::from(mask), shift: 0, then },
        index => after_number(u64::from(index), then),
    }
}

fn after_number(value: u64, then: AfterNumber) -> Block {
    match then {
        AfterNumber::Representation => Block::Start,
        AfterNumber::Value if value == 0 => Block::StringStart { name: true, authority: false },
        AfterNumber::Value => Block::StringStart { name: false, authority: value == AUTHORITY_INDEX },
    }
}

fn string(length: u64, huffman: bool, name: bool, authority: bool) -> Block {
    match (length, name) {
        (0, true) => Block::StringStart { name: false, authority: false },
        (0, false) => Block::Start,
        (left, true) => Block::Name { left, matched: (!huffman).then_some(0) },
        (left, false) => Block::Value { left, overwrite: authority && !huffman },
    }
}

/// One more byte of a number: its value so far, and whether it goes on.
fn more(value: u64, shift: u32, byte: u8) -> Option<(u64, bool)> {
    if shift > 28 {
        return None;
    }
    Some((value + (u64::from(byte & 0x7f) << shift), byte & 0x80 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn literal(first: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![first, value.len() as u8];
        out.extend_from_slice(value);
        out
    }

    /// `:method` indexed, a literal with a literal name, then the authority, then a path.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83];
        block.extend([0x00, 1, b'x']);
        block.extend([2, 0x41, 0x41]);
        block.extend(literal(0x41, authority));
        block.extend(literal(0x44, b"/unix/path"));
        block
    }

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    fn rewritten(mut bytes: Vec<u8>, piece: usize) -> Vec<u8> {
        let mut rewriter = Rewriter::default();
        bytes.chunks_mut(piece).for_each(|chunk| rewriter.process(chunk));
        bytes
    }

    #[test]
    fn a_socket_path_becomes_letters_wherever_reads_are_cut() {
        let path = b"%2Frun%2Fcontainerd.sock";
        let letters = vec![LETTER; path.len()];
        let stream = |authority: &[u8]| {
            let mut bytes = preface();
            bytes.extend(frame(4, 0, &[]));
            bytes.extend(frame(HEADERS, 4, &block(authority)));
            bytes.extend(frame(0, 0, &literal(0x41, path)));
            let mut padded = vec![3, 0, 0, 0, 0, 16];
            padded.extend(block(authority));
            padded.extend([0x41, 1, 0x41]);
            bytes.extend(frame(HEADERS, 4 | FLAG_PADDED | FLAG_PRIORITY, &padded));
            let whole = block(authority);
            let (first, second) = whole.split_at(12);
            bytes.extend(frame(HEADERS, 0, first));
            bytes.extend(frame(CONTINUATION, 4, second));
            bytes
        };
        for piece in [1, 2, 7, 16, 1000] {
            assert_eq!(rewritten(stream(path), piece), stream(&letters), "pieces of {piece}");
        }
    }

    #[test]
    fn a_name_spelled_out_is_known() {
        let stream = |name: &[u8], value: &[u8]| {
            let mut block = literal(0x40, name);
            block.push(value.len() as u8);
            block.extend_from_slice(value);
            block.push(0x83);
            let mut bytes = preface();
            bytes.extend(frame(HEADERS, 4, &block));
            bytes
        };
        let path = b"tmp%2Fc.sock";
        for piece in [1, 3, 100] {
            assert_eq!(rewritten(stream(b":authority", path), piece), stream(b":authority", &[LETTER; 12]));
            for other in [&b":authoritY"[..], b":authority2", b":authorit", b"x:authority"] {
                assert_eq!(rewritten(stream(other, path), piece), stream(other, path));
            }
        }
    }

    #[test]
    fn a_long_value_and_its_length_of_two_bytes() {
        let mut block = vec![0x41, 0x7f, 0x49];
        block.extend(vec![b'/'; 200]);
        let mut bytes = preface();
        bytes.extend(frame(HEADERS, 4, &block));
        let out = rewritten(bytes, 5);
        assert!(out.ends_with(&[LETTER; 200]));
    }

    proptest! {
        /// Whatever comes: no panic, and cutting the reads differently changes nothing.
        #[test]
        fn cuts_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1usize..50) {
            let mut stream = preface();
            stream.extend(bytes);
            prop_assert_eq!(rewritten(stream.clone(), piece), rewritten(stream, 4096));
        }
    }
}
