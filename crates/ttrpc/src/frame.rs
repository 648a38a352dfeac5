//! Frames: a 10-byte header (length, stream, kind, flags; big endian) and so many bytes.
//!
//! Invariant: [`FrameReader::next`] can be dropped at any await and called again without losing a byte, and it allocates for
//! what has arrived, not for what a header announces.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a header.
pub const HEADER_LEN: usize = 10;
/// The longest message either side accepts, as in containerd's implementation.
pub const MAX_MESSAGE: usize = 4 << 20;
/// What a connection that waits keeps allocated.
const FIRST: usize = 512;
/// Read at most so much at once.
const CHUNK: usize = 4096;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call, from the client.
    Request,
    /// An answer, from the server.
    Response,
    /// A piece of a stream. Not used by unary calls.
    Data,
    /// Something newer than this code.
    Other(u8),
}

impl From<u8> for Kind {
    fn from(byte: u8) -> Kind {
        match byte {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => Kind::Other(other),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> u8 {
        match kind {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(other) => other,
        }
    }
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub len: u32,
    /// Which call this belongs to; odd, as all calls are begun by the client.
    pub stream: u32,
    /// What follows.
    pub kind: Kind,
    /// Stream flags; 0 for unary calls, and ignored.
    pub flags: u8,
}

impl Header {
    /// Reads a header; any ten bytes are one.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Header {
        let mut bytes = bytes.as_slice();
        Header {
            len: bytes.get_u32(),
            stream: bytes.get_u32(),
            kind: Kind::from(bytes.get_u8()),
            flags: bytes.get_u8(),
        }
    }
}

/// A whole frame, or the head of one that was too long and has been skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message.
    Message(Header, Bytes),
    /// The message was longer than [`MAX_MESSAGE`]; its bytes were read and dropped.
    TooLong(Header),
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer went away inside a frame.
    #[error("connection closed within a frame")]
    Truncated,
    /// The socket failed.
    #[error("read frame")]
    Read(#[source] std::io::Error),
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    buffer: BytesMut,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Body(Header),
    /// Inside a message that is too long: so many bytes of it are still to be dropped.
    Skip(Header, usize),
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `source`.
    pub fn new(source: R) -> FrameReader<R> {
        FrameReader { source, buffer: BytesMut::new(), state: State::Header }
    }

    /// The next frame; `None` when the peer closed the connection between two frames. Cancel safe.
    ///
    /// # Errors
    /// [`FrameError`]: nothing more can be read from this connection.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            let wanted = match self.state {
                State::Header => HEADER_LEN - self.buffer.len(),
                State::Body(header) => header.len as usize - self.buffer.len(),
                State::Skip(_, left) => left,
            };
            // Most frames fit here whole: one read instead of two.
            self.buffer.reserve(wanted.clamp(FIRST, CHUNK));
            match self.source.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() && matches!(self.state, State::Header) => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(_) => {}
                Err(err) => return Err(FrameError::Read(err)),
            }
        }
    }

    /// A frame out of what is buffered, if it is all there.
    fn take(&mut self) -> Option<Frame> {
        loop {
            match self.state {
                State::Header => {
                    let bytes: [u8; HEADER_LEN] = self.buffer.get(..HEADER_LEN)?.try_into().ok()?;
                    self.buffer.advance(HEADER_LEN);
                    let header = Header::parse(bytes);
                    self.state = match header.len as usize {
                        len if len > MAX_MESSAGE => State::Skip(header, len),
                        _ => State::Body(header),
                    };
                }
                State::Body(header) => {
                    if self.buffer.len() < header.len as usize {
                        return None;
                    }
                    let body = self.buffer.split_to(header.len as usize).freeze();
                    if self.buffer.is_empty() {
                        // Let go of the allocation: a big frame does not make this connection big for good.
                        self.buffer = BytesMut::new();
                    }
                    self.state = State::Header;
                    return Some(Frame::Message(header, body));
                }
                State::Skip(header, left) => {
                    let here = left.min(self.buffer.len());
                    self.buffer.advance(here);
                    if here < left {
                        self.state = State::Skip(header, left - here);
                        return None;
                    }
                    self.state = State::Header;
                    return Some(Frame::TooLong(header));
                }
            }
        }
    }
}

/// Appends a frame to `out`. The caller has checked that `body` is at most [`MAX_MESSAGE`] long.
pub fn encode_frame(out: &mut BytesMut, stream: u32, kind: Kind, body: &impl prost::Message) {
    let len = body.encoded_len();
    debug_assert!(len <= MAX_MESSAGE, "a message longer than the peer accepts");
    out.reserve(HEADER_LEN + len);
    out.put_u32(len as u32);
    out.put_u32(stream);
    out.put_u8(kind.into());
    out.put_u8(0);
    body.encode_raw(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// Gives out its bytes in the sizes it was told, pending in between.
    struct Trickle {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
        pending: bool,
    }

    impl AsyncRead for Trickle {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.pending = !self.pending;
            if self.pending {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let turn = self.turn;
            let size = self.sizes[turn % self.sizes.len()].max(1);
            self.turn += 1;
            let end = self.bytes.len().min(self.at + size.min(out.remaining()));
            let at = self.at;
            out.put_slice(&self.bytes[at..end]);
            self.at = end;
            Poll::Ready(Ok(()))
        }
    }

    fn read_all(bytes: Vec<u8>, sizes: Vec<usize>) -> (Vec<Frame>, Option<FrameError>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = FrameReader::new(Trickle { bytes, at: 0, sizes, turn: 0, pending: false });
            let mut frames = Vec::new();
            loop {
                // Polled once and dropped again and again: nothing may get lost.
                let next = loop {
                    let mut step = std::pin::pin!(reader.next());
                    let polled = std::future::poll_fn(|cx| Poll::Ready(step.as_mut().poll(cx))).await;
                    match polled {
                        Poll::Ready(next) => break next,
                        Poll::Pending => tokio::task::yield_now().await,
                    }
                };
                match next {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => return (frames, None),
                    Err(err) => return (frames, Some(err)),
                }
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_survive_any_splitting_of_the_bytes(
            bodies in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
            sizes in proptest::collection::vec(1usize..200, 1..6),
        ) {
            let mut wire = BytesMut::new();
            for (stream, payload) in &bodies {
                let request = Request { payload: payload.clone(), ..Request::default() };
                encode_frame(&mut wire, *stream, Kind::Request, &request);
            }
            let (frames, err) = read_all(wire.to_vec(), sizes);
            prop_assert!(err.is_none());
            prop_assert_eq!(frames.len(), bodies.len());
            for (frame, (stream, payload)) in frames.iter().zip(&bodies) {
                let Frame::Message(header, body) = frame else { panic!("{frame:?}") };
                prop_assert_eq!(header.stream, *stream);
                let request: Request = prost::Message::decode(body.clone()).unwrap();
                prop_assert_eq!(&request.payload, payload);
            }
        }

        #[test]
        fn any_bytes_end_in_frames_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            sizes in proptest::collection::vec(1usize..400, 1..4),
        ) {
            let total = bytes.len();
            let (frames, err) = read_all(bytes, sizes);
            let used: usize = frames.iter().map(|frame| match frame {
                Frame::Message(header, _) | Frame::TooLong(header) => HEADER_LEN + header.len as usize,
            }).sum();
            prop_assert!(used <= total);
            prop_assert_eq!(err.is_none(), used == total);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_skipped_and_the_next_one_read() {
        let mut wire = BytesMut::new();
        let long = MAX_MESSAGE + 1;
        wire.put_u32(long as u32);
        wire.put_u32(3);
        wire.put_slice(&[1, 0]);
        wire.put_bytes(0xaa, long);
        encode_frame(&mut wire, 5, Kind::Request, &Request::default());
        let (frames, err) = read_all(wire.to_vec(), vec![70_000]);
        assert!(err.is_none());
        assert!(matches!(frames[0], Frame::TooLong(Header { stream: 3, .. })));
        assert!(matches!(&frames[1], Frame::Message(Header { stream: 5, len: 0, .. }, _)));
    }

    #[test]
    fn the_end_of_the_connection_inside_a_frame_is_told_from_one_between_frames() {
        let mut wire = BytesMut::new();
        encode_frame(&mut wire, 1, Kind::Response, &Request { service: "abc".into(), ..Request::default() });
        for cut in 1..wire.len() {
            let (frames, err) = read_all(wire[..cut].to_vec(), vec![1]);
            assert!(frames.is_empty());
            assert!(matches!(err, Some(FrameError::Truncated)), "cut at {cut}");
        }
    }
}
