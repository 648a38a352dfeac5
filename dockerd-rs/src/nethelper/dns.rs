//! The resolver at 127.0.0.11: names of containers from the table, all others from the servers behind.
//!
//! The sockets were opened in the container's network namespace by dockerd-rs. A query for a name of ours never waits for anything; others
//! are passed on as they are, their servers tried one after the other, a second's head start each.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::names::{Found, Names};
use super::wire::Upstream;

/// Seconds an answer may be kept, as Docker's.
const TTL: u32 = 600;
/// Queries of one container that may be under way to servers; more are answered with a failure.
const IN_FLIGHT: usize = 1024;
/// TCP connections of one container at a time.
const CONNECTIONS: usize = 64;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(4);
const HEAD_START: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);

/// The table all resolvers of this process share.
pub type Table = Rc<RefCell<Names>>;

/// How a query is dealt with.
enum Verdict {
    Answer(Vec<u8>),
    Ask(Vec<Upstream>),
    Ignore,
}

/// One container's resolver.
pub struct Resolver {
    sandbox: String,
    table: Table,
    namespace: OwnedFd,
    host: Rc<OwnedFd>,
    slots: Semaphore,
}

impl Resolver {
    /// A resolver that asks outside from `namespace`, or from `host`.
    pub fn new(sandbox: &str, table: Table, namespace: OwnedFd, host: Rc<OwnedFd>) -> Rc<Self> {
        Rc::new(Self {
            sandbox: sandbox.to_owned(),
            table,
            namespace,
            host,
            slots: Semaphore::new(IN_FLIGHT),
        })
    }

    /// Answers on a UDP socket until the task is aborted.
    pub async fn serve_udp(self: Rc<Self>, socket: UdpSocket) {
        let socket = Rc::new(socket);
        let mut buf = vec![0; 4096];
        loop {
            let (len, peer) = match socket.recv_from(&mut buf).await {
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            };
            match self.judge(&buf[..len]) {
                Verdict::Ignore => {}
                Verdict::Answer(answer) => {
                    // A full buffer: the client asks again.
                    let _ = socket.try_send_to(&answer, peer);
                }
                Verdict::Ask(upstreams) => {
                    let (resolver, socket, query) =
                        (Rc::clone(&self), Rc::clone(&socket), buf[..len].to_vec());
                    tokio::task::spawn_local(async move {
                        let answer = resolver.ask(&query, &upstreams, false).await;
                        let _ = socket.try_send_to(&answer, peer);
                    });
                }
            }
        }
    }

    /// Answers on a TCP socket until the task is aborted.
    pub async fn serve_tcp(self: Rc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { return };
            let resolver = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let _permit = permit;
                let _ = resolver.connection(stream).await;
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let len = tokio::time::timeout(IDLE, stream.read_u16()).await??;
            let mut query = vec![0; len.into()];
            tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
            let answer = match self.judge(&query) {
                Verdict::Ignore => return Ok(()),
                Verdict::Answer(answer) => answer,
                Verdict::Ask(upstreams) => self.ask(&query, &upstreams, true).await,
            };
            let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await?;
        }
    }

    fn judge(&self, query: &[u8]) -> Verdict {
        let Ok(message) = Message::from_vec(query) else { return Verdict::Ignore };
        if message.metadata.message_type != MessageType::Query {
            return Verdict::Ignore;
        }
        let [question] = message.queries.as_slice() else { return refuse(&message, ResponseCode::FormErr) };
        if message.metadata.op_code != OpCode::Query {
            return refuse(&message, ResponseCode::NotImp);
        }
        let (kind, name) = (question.query_type(), question.name());
        let text = name.to_ascii();
        let text = text.trim_end_matches('.');
        let mut table = self.table.borrow_mut();
        if kind == RecordType::PTR
            && let Some(ip) = reversed(text)
            && let Some(target) = table.reverse(&self.sandbox, ip)
            && let Ok(target) = Name::from_ascii(format!("{target}."))
        {
            return reply(&message, vec![Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))]);
        }
        // Any type of a name of ours is answered here: what is not an address there is none of.
        if kind != RecordType::PTR
            && let Found::Addresses(addresses) = table.find(&self.sandbox, text)
        {
            let records = addresses
                .into_iter()
                .filter_map(|ip| match (ip, kind) {
                    (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(v4))),
                    (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(v6))),
                    _ => None,
                })
                .map(|data| Record::from_rdata(name.clone(), TTL, data))
                .collect();
            return reply(&message, records);
        }
        let Some(sandbox) = table.sandbox(&self.sandbox) else {
            return refuse(&message, ResponseCode::ServFail);
        };
        let address = matches!(kind, RecordType::A | RecordType::AAAA);
        if address && sandbox.ndots_set && !text.contains('.') {
            return reply(&message, Vec::new());
        }
        if !sandbox.forward || sandbox.upstreams.is_empty() {
            return refuse(&message, ResponseCode::ServFail);
        }
        Verdict::Ask(sandbox.upstreams.clone())
    }

    /// Passes a query on; what comes back, or a failure.
    async fn ask(&self, query: &[u8], upstreams: &[Upstream], tcp: bool) -> Vec<u8> {
        let Ok(_slot) = self.slots.try_acquire() else { return failure(query) };
        let attempt = |nth: usize, upstream: Upstream| async move {
            tokio::time::sleep(HEAD_START * nth as u32).await;
            let asked = async {
                if tcp { self.ask_tcp(query, upstream).await } else { self.ask_udp(query, upstream).await }
            };
            tokio::time::timeout(UPSTREAM_TIMEOUT, asked).await.map_err(io::Error::from).flatten_result()
        };
        let attempts: Vec<_> = upstreams
            .iter()
            .take(3)
            .enumerate()
            .map(|(nth, upstream)| Box::pin(attempt(nth, *upstream)))
            .collect();
        match futures_util::future::select_ok(attempts).await {
            Ok((answer, _)) => answer,
            Err(_) => failure(query),
        }
    }

    /// Opens something in the namespace an upstream is asked from. Nothing awaits in between, so no other task sees the change.
    fn inside<T>(&self, upstream: Upstream, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if upstream.from_host {
            return open();
        }
        sys::netns::enter(self.namespace.as_fd())?;
        let opened = open();
        sys::netns::enter(self.host.as_fd())?;
        opened
    }

    async fn ask_udp(&self, query: &[u8], upstream: Upstream) -> io::Result<Vec<u8>> {
        let any: IpAddr =
            if upstream.ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.inside(upstream, || std::net::UdpSocket::bind((any, 0)))?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect((upstream.ip, 53)).await?;
        socket.send(query).await?;
        let mut buf = vec![0; 4096];
        loop {
            let len = socket.recv(&mut buf).await?;
            // Only the answer to this very query: its number, and (by the connected socket) from this server.
            if len >= 12 && buf[..2] == query[..2] && buf[2] & 0x80 != 0 {
                buf.truncate(len);
                return Ok(buf);
            }
        }
    }

    async fn ask_tcp(&self, query: &[u8], upstream: Upstream) -> io::Result<Vec<u8>> {
        let socket = self.inside(upstream, || {
            if upstream.ip.is_ipv4() {
                tokio::net::TcpSocket::new_v4()
            } else {
                tokio::net::TcpSocket::new_v6()
            }
        })?;
        let mut stream = socket.connect(SocketAddr::new(upstream.ip, 53)).await?;
        stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

fn base(query: &Message) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    message
}

fn encode(message: &Message) -> Verdict {
    message.to_vec().map_or(Verdict::Ignore, Verdict::Answer)
}

fn refuse(query: &Message, code: ResponseCode) -> Verdict {
    let mut message = base(query);
    message.metadata.response_code = code;
    encode(&message)
}

fn reply(query: &Message, records: Vec<Record>) -> Verdict {
    let mut message = base(query);
    message.add_answers(records);
    encode(&message)
}

/// A failure in answer to a query that was not taken apart.
fn failure(query: &[u8]) -> Vec<u8> {
    match Message::from_vec(query).map(|message| refuse(&message, ResponseCode::ServFail)) {
        Ok(Verdict::Answer(bytes)) => bytes,
        _ => Vec::new(),
    }
}

/// The address in `4.3.2.1.in-addr.arpa` or its IPv6 kin.
fn reversed(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = digits.split('.').rev().map(|part| part.parse().ok()).collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(parts).ok().map(IpAddr::from);
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u8> =
        digits.split('.').rev().map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> = nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Result of a result.
trait FlattenResult<T> {
    fn flatten_result(self) -> io::Result<T>;
}

impl<T> FlattenResult<T> for io::Result<io::Result<T>> {
    fn flatten_result(self) -> io::Result<T> {
        self.and_then(|inner| inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names() {
        assert_eq!(reversed("2.0.17.172.in-addr.arpa"), Some([172, 17, 0, 2].into()));
        let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reversed(v6), "fd00::2".parse().ok());
        assert_eq!(reversed("x.in-addr.arpa"), None);
        assert_eq!(reversed("example.com"), None);
    }
}
