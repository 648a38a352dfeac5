//! The streams that Docker takes over without an upgrade: `POST …/attach` and `POST /exec/…/start` of clients that do not ask for one are
//! answered `200 OK`, and then the connection is a byte stream both ways.
//!
//! hyper gives a connection away only for an upgrade. So this stream, which lies between the socket and hyper, asks for the upgrade on
//! the client's behalf and turns hyper's `101` into what the client expects. It also writes the refusals of such requests, which are plain
//! text without framing ([`STATUS_HEADER`]). All other requests and all bodies pass through as they are.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// In a response: the status line to write instead of `101`.
pub const STATUS_HEADER: &str = "x-hijack-status";
/// In a request: the upgrade was asked for by us.
pub const PLAIN_HEADER: &str = "x-hijack-plain";

/// A request's head longer than this is not looked at.
const HEAD_MAX: usize = 64 << 10;
const END: &[u8] = b"\r\n\r\n";

/// A connection with the rewriting.
pub struct Preface<S> {
    stream: S,
    inbound: Inbound,
    /// Bytes to hand to hyper before anything else is read.
    pending: Vec<u8>,
    outbound: Outbound,
    /// Bytes hyper has written that are still to be sent.
    unsent: Vec<u8>,
    /// How long a head may take.
    patience: Duration,
    /// Runs while a head is incomplete.
    late: Option<Pin<Box<Sleep>>>,
}

enum Inbound {
    /// Reading a request's head, which begins so.
    Head(Vec<u8>),
    /// So many bytes of a request's body follow.
    Body(u64),
    /// A request's body in chunks follows.
    Chunks(Chunks),
    /// Everything passes.
    Raw,
}

enum Outbound {
    /// Everything passes.
    Raw,
    /// The next response's head is looked at; it begins so. `plain` says that the client asked for no upgrade.
    Head { bytes: Vec<u8>, plain: bool },
}

impl<S> Preface<S> {
    /// Wraps a connection before its first request. A head must be complete within `patience` of its first byte.
    pub fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            inbound: Inbound::Head(Vec::new()),
            pending: Vec::new(),
            outbound: Outbound::Raw,
            unsent: Vec::new(),
            patience,
            late: None,
        }
    }

    /// The whole head is there: hands it on, changed where it must be.
    fn take_head(&mut self, mut bytes: Vec<u8>, end: usize) {
        let rest = bytes.split_off(end);
        let head = Head::read(&bytes);
        self.inbound = match &head {
            Some(Head { length: Length::Bytes(length), .. }) => Inbound::Body(*length),
            Some(Head { length: Length::Chunked, .. }) => Inbound::Chunks(Chunks::default()),
            _ => Inbound::Raw,
        };
        // Also of what hyper upgrades without our help (a websocket) the answer tells when the stream begins.
        if let Some(head) = head
            && (head.hijacks || head.upgrades)
        {
            if !head.upgrades {
                bytes.truncate(bytes.len() - 2);
                bytes.extend_from_slice(b"Upgrade: tcp\r\nConnection: Upgrade\r\n");
                bytes.extend_from_slice(PLAIN_HEADER.as_bytes());
                bytes.extend_from_slice(b": 1\r\n\r\n");
            }
            self.outbound = Outbound::Head { bytes: Vec::new(), plain: !head.upgrades };
        }
        self.pending = bytes;
        self.pending.extend_from_slice(&rest);
        let ended = match &mut self.inbound {
            Inbound::Body(left) => {
                let of_body = (rest.len() as u64).min(*left);
                *left -= of_body;
                (*left == 0).then_some(rest.len() as u64 == of_body)
            }
            Inbound::Chunks(chunks) => chunks.take(&rest).map(|end| end == rest.len()),
            Inbound::Head(_) | Inbound::Raw => None,
        };
        if let Some(exactly) = ended {
            self.body_ended(exactly);
        }
    }

    /// A request's body has been read, and no byte more if `exactly`.
    fn body_ended(&mut self, exactly: bool) {
        // A second request right behind the first passes unseen: hyper would answer it before reading on, and clients of streams do not
        // pipeline. Only what is read later is looked at again.
        self.inbound = if exactly { Inbound::Head(Vec::new()) } else { Inbound::Raw };
    }

    /// hyper wrote bytes: those of a head that is looked at are kept until it is whole.
    fn take_output(&mut self, written: &[u8]) {
        let Outbound::Head { bytes, plain } = &mut self.outbound else {
            self.unsent.extend_from_slice(written);
            return;
        };
        bytes.extend_from_slice(written);
        let Some(at) = memchr::memmem::find(bytes, END) else { return };
        let plain = *plain;
        let mut head = std::mem::take(bytes);
        let rest = head.split_off(at + END.len());
        if head.starts_with(b"HTTP/1.1 100") {
            self.unsent.extend_from_slice(&head);
            self.take_output(&rest);
            return;
        }
        if head.starts_with(b"HTTP/1.1 101") {
            // What the client sent meanwhile is the beginning of its stream.
            if let Inbound::Head(early) = std::mem::replace(&mut self.inbound, Inbound::Raw) {
                self.pending.extend_from_slice(&early);
            }
            head = answer(&head, plain);
        }
        self.outbound = Outbound::Raw;
        self.unsent.extend_from_slice(&head);
        self.unsent.extend_from_slice(&rest);
    }
}

/// The head of a `101` as the client is to see it.
fn answer(head: &[u8], plain: bool) -> Vec<u8> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    let status_line = lines.next().unwrap_or_default();
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let status = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(STATUS_HEADER));
    let (status_line, upgraded) = match status {
        Some((_, status)) => (format!("HTTP/1.1 {}", status.trim()), false),
        None if plain => ("HTTP/1.1 200 OK".to_owned(), false),
        None => (status_line.to_owned(), true),
    };
    let mut out = status_line + "\r\n";
    for (name, value) in headers {
        let ours = name.eq_ignore_ascii_case(STATUS_HEADER);
        let of_upgrade = name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("upgrade");
        if !ours && (upgraded || !of_upgrade) {
            out.push_str(name);
            out.push(':');
            out.push_str(value);
            out.push_str("\r\n");
        }
    }
    out.push_str("\r\n");
    out.into_bytes()
}

/// What matters of a request's head.
struct Head {
    hijacks: bool,
    upgrades: bool,
    length: Length,
}

enum Length {
    Bytes(u64),
    Chunked,
}

/// Where in a body of chunks the reader is.
#[derive(Debug)]
enum Chunks {
    /// In the line with a chunk's size: its digits so far, and whether they are over.
    Size { size: u64, over: bool },
    /// So many bytes of a chunk and its line end follow.
    Data(u64),
    /// In a line behind the last chunk, of so many bytes so far; an empty one ends the body.
    Trailer(usize),
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Size { size: 0, over: false }
    }
}

impl Chunks {
    /// Goes on by these bytes; where the body ended, if it did. What is no chunk is for hyper to refuse.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match self {
                Self::Size { size: 0, .. } if byte == b'\n' => *self = Self::Trailer(0),
                Self::Size { size, .. } if byte == b'\n' => *self = Self::Data(size.saturating_add(2)),
                Self::Size { size, over } => match char::from(byte).to_digit(16) {
                    Some(digit) if !*over => *size = size.saturating_mul(16).saturating_add(digit.into()),
                    _ => *over = true,
                },
                Self::Data(left) => {
                    let here = (bytes.len() - at) as u64 + 1;
                    let count = here.min(*left);
                    *left -= count;
                    // At most what is there.
                    at += usize::try_from(count - 1).unwrap_or(0);
                    if *left == 0 {
                        *self = Self::default();
                    }
                }
                Self::Trailer(0) if byte == b'\n' => return Some(at),
                Self::Trailer(length) => match byte {
                    b'\n' => *length = 0,
                    b'\r' => {}
                    _ => *length += 1,
                },
            }
        }
        None
    }
}

impl Head {
    /// `None` for what is no request of HTTP/1.1: hyper will say so.
    fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let mut head = Self {
            hijacks: method == "POST" && version == "HTTP/1.1" && is_hijacked(target),
            upgrades: false,
            length: Length::Bytes(0),
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("upgrade") {
                head.upgrades = true;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.length = Length::Chunked;
            } else if name.eq_ignore_ascii_case("content-length")
                && let Length::Bytes(length) = &mut head.length
            {
                *length = value.trim().parse().ok()?;
            }
        }
        Some(head)
    }
}

/// Whether a path is one of the two kinds.
fn is_hijacked(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let path = match path.strip_prefix("/v") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => path,
    };
    (path.starts_with("/containers/") && path.ends_with("/attach"))
        || (path.starts_with("/exec/") && path.ends_with("/start"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Preface<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.pending.is_empty() {
                let count = this.pending.len().min(buf.remaining());
                buf.put_slice(&this.pending[..count]);
                this.pending.drain(..count);
                if this.pending.is_empty() {
                    this.pending = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            match &mut this.inbound {
                Inbound::Raw => return Pin::new(&mut this.stream).poll_read(cx, buf),
                Inbound::Body(left) => {
                    let limit = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.remaining());
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit));
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
                    let count = part.filled().len();
                    buf.advance(count);
                    *left -= count as u64;
                    if *left == 0 || count == 0 {
                        this.inbound = Inbound::Head(Vec::new());
                    }
                    return Poll::Ready(Ok(()));
                }
                Inbound::Chunks(chunks) => {
                    let before = buf.filled().len();
                    ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                    let read = &buf.filled()[before..];
                    if let Some(end) = chunks.take(read) {
                        let exactly = end == read.len();
                        this.body_ended(exactly);
                    }
                    return Poll::Ready(Ok(()));
                }
                Inbound::Head(bytes) => {
                    let mut chunk = [0; 8192];
                    let mut part = ReadBuf::new(&mut chunk);
                    match Pin::new(&mut this.stream).poll_read(cx, &mut part) {
                        Poll::Ready(read) => read?,
                        // A client that has said nothing may wait; one that is in the middle of a head has to go on.
                        Poll::Pending if bytes.is_empty() => return Poll::Pending,
                        Poll::Pending => {
                            let patience = this.patience;
                            let late =
                                this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                            ready!(late.as_mut().poll(cx));
                            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                        }
                    }
                    let before = bytes.len().saturating_sub(END.len() - 1);
                    bytes.extend_from_slice(part.filled());
                    // Line feeds alone: hyper reads that, we do not.
                    let foreign = memchr::memmem::find(&bytes[before..], b"\n\n").is_some();
                    let end = memchr::memmem::find(&bytes[before..], END).map(|at| before + at + END.len());
                    let bytes = match end {
                        Some(end) => {
                            let bytes = std::mem::take(bytes);
                            this.late = None;
                            this.take_head(bytes, end);
                            continue;
                        }
                        None if foreign || part.filled().is_empty() || bytes.len() > HEAD_MAX => {
                            std::mem::take(bytes)
                        }
                        None => continue,
                    };
                    // The end of the connection, or nothing for us to understand.
                    this.inbound = Inbound::Raw;
                    this.pending = bytes;
                    if this.pending.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Preface<S> {
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Preface<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        if matches!(self.outbound, Outbound::Raw) {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        self.take_output(buf);
        // The bytes are ours now; what the socket does not take at once goes with the next flush.
        if let Poll::Ready(Err(err)) = self.poll_unsent(cx) {
            return Poll::Ready(Err(err));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        if matches!(self.outbound, Outbound::Raw) {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What hyper would read of these pieces.
    async fn read(pieces: &[&str]) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut preface = Preface::new(server, PATIENCE);
        let mut seen = Vec::new();
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
        }
        drop(client);
        preface.read_to_end(&mut seen).await.unwrap();
        String::from_utf8(seen).unwrap()
    }

    const PATIENCE: Duration = Duration::from_secs(30);
    const ADDED: &str = "Upgrade: tcp\r\nConnection: Upgrade\r\nx-hijack-plain: 1\r\n\r\n";

    #[tokio::test]
    async fn only_streams_without_an_upgrade_are_changed() {
        let ping = "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n";
        assert_eq!(read(&[ping]).await, ping);
        let upgrading = "POST /containers/a/attach HTTP/1.1\r\nUpgrade: tcp\r\n\r\n";
        assert_eq!(read(&[upgrading]).await, upgrading);
        let plain = "POST /v1.43/exec/a/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}";
        let changed = plain.replace("\r\n\r\n", &format!("\r\n{ADDED}"));
        assert_eq!(read(&[plain]).await, changed);
        assert_eq!(read(&[&plain[..30], &plain[30..]]).await, changed);
        let other = "POST /containers/a/start HTTP/1.1\r\n\r\n";
        assert_eq!(read(&[other]).await, other);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_not_waited_for_and_silence_is() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut preface = Preface::new(server, PATIENCE);
        let mut buffer = [0; 1024];
        let idle = tokio::time::timeout(PATIENCE * 10, preface.read(&mut buffer)).await;
        assert!(idle.is_err(), "nothing was said, and nothing is wrong");
        client.write_all(b"GET /_ping HTTP/1.1\r\n").await.unwrap();
        let late = preface.read(&mut buffer).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_later_request_is_seen_and_a_body_is_not_taken_for_one() {
        let attach = "POST /containers/a/attach HTTP/1.1\r\n\r\n";
        let put = format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", attach.len());
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut preface = Preface::new(server, PATIENCE);
        let mut buffer = [0; 1024];
        let chunked =
            "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1a;x=0\r\nPOST /containers/a/attach ";
        for (sent, seen) in [
            (put.as_str(), put.clone()),
            (attach, attach.to_owned()),
            (chunked, chunked.to_owned()),
            ("\r\n1\r\n", "\r\n1\r\n".to_owned()),
            ("0\r\n0\r\nA: b\r\n\r\n", "0\r\n0\r\nA: b\r\n\r\n".to_owned()),
            (attach, attach.replace("\r\n\r\n", &format!("\r\n{ADDED}"))),
        ] {
            client.write_all(sent.as_bytes()).await.unwrap();
            let count = preface.read(&mut buffer).await.unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..count]).unwrap(), seen);
        }
    }

    #[tokio::test]
    async fn a_stream_begins_with_the_answer_to_an_upgrade() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut preface = Preface::new(server, PATIENCE);
        let mut buffer = [0; 1024];
        let request = b"GET /containers/a/attach/ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(request).await.unwrap();
        assert_eq!(preface.read(&mut buffer).await.unwrap(), request.len());
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        preface.write_all(answer).await.unwrap();
        preface.flush().await.unwrap();
        let count = client.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], answer);
        client.write_all(b"no head").await.unwrap();
        let count = preface.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"no head");
    }

    #[tokio::test]
    async fn the_answer_is_turned_into_what_the_client_expects_and_then_bytes_pass() {
        for (status, expected) in [
            ("", "HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\nraw"),
            ("x-hijack-status: 404 Not Found\r\n", "HTTP/1.1 404 Not Found\r\nContent-Type: x\r\n\r\nraw"),
        ] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let mut preface = Preface::new(server, PATIENCE);
            client.write_all(b"POST /exec/a/start HTTP/1.1\r\n\r\nPOST ").await.unwrap();
            let mut buffer = [0; 1024];
            assert!(preface.read(&mut buffer).await.unwrap() > 0);
            let head = format!(
                "HTTP/1.1 101 UPGRADED\r\n{status}Content-Type: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
            );
            preface.write_all(&head.as_bytes()[..20]).await.unwrap();
            preface.write_all(&head.as_bytes()[20..]).await.unwrap();
            preface.write_all(b"raw").await.unwrap();
            preface.flush().await.unwrap();
            let count = client.read(&mut buffer).await.unwrap();
            let mut seen = buffer[..count].to_vec();
            while seen.len() < expected.len() {
                let count = client.read(&mut buffer).await.unwrap();
                seen.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(String::from_utf8(seen).unwrap(), expected);
        }
    }
}
