//! Connections to where logs go.
//!
//! Invariant: a write is taken whole or the connection is given up, so that what follows never begins in the middle of a message.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};
use tokio::time::{Instant, timeout};

use super::spool::Batch;
use crate::error::sys_text;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a target may take none of a write, or not confirm what it has, before the connection counts as dead.
const STALL: Duration = Duration::from_secs(30);
/// Where the local syslog daemon listens, on one system or another.
const LOCAL: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A stream socket.
    Unix(PathBuf),
    /// A datagram socket.
    Unixgram(PathBuf),
    /// Host and port.
    Tcp(String),
    /// Host and port, encrypted.
    Tls(String, Tls),
    /// Host and port.
    Udp(String),
    /// Whatever socket the local syslog daemon has.
    LocalSyslog,
}

/// What is trusted, and what is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// A file of authorities.
    pub ca: Option<PathBuf>,
    /// A file with our certificate.
    pub cert: Option<PathBuf>,
    /// A file with its key.
    pub key: Option<PathBuf>,
    /// Whether any certificate will do.
    pub skip_verify: bool,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Unixgram(path) => write!(f, "unixgram://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Tls(host, _) => write!(f, "tls://{host}"),
            Self::Udp(host) => write!(f, "udp://{host}"),
            Self::LocalSyslog => f.write_str("the local syslog daemon"),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

enum Socket {
    Stream(Box<dyn Io>),
    Unixgram(UnixDatagram),
    Udp(UdpSocket),
}

/// A connection.
pub struct Connection {
    socket: Socket,
    made: Instant,
    write_timeout: Duration,
}

/// How a write went: messages too large for the target's kind of socket.
pub type TooLarge = u64;

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Docker's words for what failed.
    pub async fn open(address: &Address, write_timeout: Option<Duration>) -> Result<Self, String> {
        let opened = match timeout(CONNECT, open(address)).await {
            Ok(opened) => opened,
            Err(_) => Err(match address {
                Address::Tcp(host) | Address::Tls(host, _) => format!("dial tcp {host}: i/o timeout"),
                other => format!("dial {other}: i/o timeout"),
            }),
        };
        let write_timeout = write_timeout.unwrap_or(STALL);
        Ok(Self { socket: opened?, made: Instant::now(), write_timeout })
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// Whether a write that was taken may be lost when the connection breaks.
    pub fn is_stream(&self) -> bool {
        matches!(self.socket, Socket::Stream(_))
    }

    /// Writes a batch, and waits until the target confirms `chunk` if there is one.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn send(&mut self, batch: &Batch, chunk: Option<&str>) -> io::Result<TooLarge> {
        match &mut self.socket {
            Socket::Stream(stream) => {
                check_open(stream)?;
                write(stream, &batch.bytes, self.write_timeout).await?;
                if let Some(chunk) = chunk {
                    timeout(STALL, confirmed(stream, chunk)).await.map_err(|_| io::ErrorKind::TimedOut)??;
                }
                Ok(0)
            }
            Socket::Unixgram(socket) => {
                let mut too_large = 0;
                for message in messages(batch) {
                    let sent = timeout(self.write_timeout, socket.send(message)).await;
                    match sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? {
                        Ok(_) => {}
                        Err(err) if err.raw_os_error() == Some(libc::EMSGSIZE) => too_large += 1,
                        Err(err) => return Err(err),
                    }
                }
                Ok(too_large)
            }
            Socket::Udp(socket) => {
                let mut too_large = 0;
                for message in messages(batch) {
                    let sent = match socket.send(message).await {
                        // The answer to an earlier datagram: nobody listens, as nobody has to.
                        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                            socket.send(message).await
                        }
                        sent => sent,
                    };
                    match sent {
                        Ok(_) => {}
                        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {}
                        Err(err) if err.raw_os_error() == Some(libc::EMSGSIZE) => too_large += 1,
                        Err(err) => return Err(err),
                    }
                }
                Ok(too_large)
            }
        }
    }

    /// Ends the connection in order.
    pub async fn close(self) {
        if let Socket::Stream(mut stream) = self.socket {
            let _ = timeout(CONNECT, stream.shutdown()).await;
        }
    }
}

fn messages(batch: &Batch) -> impl Iterator<Item = &[u8]> {
    let begins = std::iter::once(0).chain(batch.ends.iter().copied());
    begins.zip(&batch.ends).filter_map(|(begin, end)| batch.bytes.get(begin..*end))
}

/// What the target has said is not listened to, but that it has gone is: a first write to a closed connection succeeds.
fn check_open(stream: &mut Box<dyn Io>) -> io::Result<()> {
    let mut said = [0; 256];
    loop {
        match stream.read(&mut said).now_or_never() {
            None => return Ok(()),
            Some(Ok(0)) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Ok(_)) => {}
            Some(Err(err)) => return Err(err),
        }
    }
}

/// Slow targets are waited for as long as they take something now and then.
async fn write(stream: &mut Box<dyn Io>, mut bytes: &[u8], stall: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = timeout(stall, stream.write(bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }
    timeout(stall, stream.flush()).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Waits for the target's `{"ack": chunk}`. The chunk is unique, so finding it is enough.
async fn confirmed(stream: &mut Box<dyn Io>, chunk: &str) -> io::Result<()> {
    let mut heard = Vec::new();
    loop {
        let mut part = [0; 256];
        match stream.read(&mut part).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => heard.extend_from_slice(&part[..count]),
        }
        if memchr::memmem::find(&heard, chunk.as_bytes()).is_some() {
            return Ok(());
        }
        if heard.len() > 4096 {
            return Err(io::Error::other("the target confirms something else"));
        }
    }
}

async fn open(address: &Address) -> Result<Socket, String> {
    match address {
        Address::Unix(path) => unix(path).map_err(|err| dial("unix", &path.display().to_string(), &err)),
        Address::Unixgram(path) => {
            unixgram(path).map_err(|err| dial("unixgram", &path.display().to_string(), &err))
        }
        Address::LocalSyslog => {
            let datagram = LOCAL.iter().find_map(|path| unixgram(Path::new(path)).ok());
            let socket = datagram.or_else(|| LOCAL.iter().find_map(|path| unix(Path::new(path)).ok()));
            socket.ok_or_else(|| "Unix syslog delivery error".to_owned())
        }
        Address::Tcp(host) => Ok(Socket::Stream(Box::new(tcp(host).await?))),
        Address::Tls(host, settings) => tls(host, settings).await,
        Address::Udp(host) => {
            let connected = async {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for target in tokio::net::lookup_host(host).await? {
                    let local = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(local).await?;
                    match socket.connect(target).await {
                        Ok(()) => return Ok(socket),
                        Err(err) => last = err,
                    }
                }
                Err(last)
            };
            connected.await.map(Socket::Udp).map_err(|err: io::Error| dial("udp", host, &err))
        }
    }
}

fn dial(network: &str, address: &str, err: &io::Error) -> String {
    // Without a number of the kernel's it is the resolver that failed.
    if err.raw_os_error().is_none() {
        return format!("dial {network}: {}", sys_text(err));
    }
    format!("dial {network} {address}: connect: {}", sys_text(err))
}

fn unix(path: &Path) -> io::Result<Socket> {
    let stream = sys::unixpath::connect_nonblocking(path).and_then(UnixStream::from_std)?;
    Ok(Socket::Stream(Box::new(stream)))
}

fn unixgram(path: &Path) -> io::Result<Socket> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(Socket::Unixgram(socket))
}

async fn tcp(host: &str) -> Result<TcpStream, String> {
    TcpStream::connect(host).await.map_err(|err| dial("tcp", host, &err))
}

async fn tls(host: &str, settings: &Tls) -> Result<Socket, String> {
    for (what, path) in [("read CA certificate", &settings.ca), ("load X509 key pair", &settings.cert)] {
        let Some(path) = path else { continue };
        if let Err(err) = std::fs::metadata(path) {
            let shown = path.display().to_string();
            let opened = format!("open {shown}: {}", sys_text(&err));
            return Err(match what {
                "read CA certificate" => {
                    format!("could not {what} {}: {opened}", crate::api::params::quote(&shown))
                }
                _ => format!("Could not {what}: {opened}"),
            });
        }
    }
    let ca: Vec<PathBuf> = settings.ca.iter().cloned().collect();
    let shown = settings.cert.clone().zip(settings.key.clone());
    let skip = settings.skip_verify;
    let read = tokio::task::spawn_blocking(move || registry::tls_client(&ca, shown.as_ref(), skip));
    let config = read.await.map_err(|err| err.to_string())?.map_err(|err| err.to_string())?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(|err| format!("dial tcp {host}: {err}"))?;
    let stream = tcp(host).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|err| err.to_string())?;
    Ok(Socket::Stream(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(messages: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for message in messages {
            batch.bytes.extend_from_slice(message.as_bytes());
            batch.ends.push(batch.bytes.len());
        }
        batch
    }

    #[tokio::test]
    async fn failures_are_told_as_docker_tells_them() {
        let text = async |address: Address| Connection::open(&address, None).await.err().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            text(Address::Tcp(free.to_string())).await,
            format!("dial tcp {free}: connect: connection refused")
        );
        assert_eq!(
            text(Address::Unix("/nonexist".into())).await,
            "dial unix /nonexist: connect: no such file or directory"
        );
        let settings = Tls { ca: Some("/nope".into()), ..Tls::default() };
        assert_eq!(
            text(Address::Tls("127.0.0.1:1".into(), settings)).await,
            "could not read CA certificate \"/nope\": open /nope: no such file or directory"
        );
        let settings = Tls { cert: Some("/nope".into()), ..Tls::default() };
        assert_eq!(
            text(Address::Tls("127.0.0.1:1".into(), settings)).await,
            "Could not load X509 key pair: open /nope: no such file or directory"
        );
    }

    #[tokio::test]
    async fn datagrams_are_one_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let target = UnixDatagram::bind(&path).unwrap();
        let mut connection = Connection::open(&Address::Unixgram(path), None).await.unwrap();
        assert!(!connection.is_stream());
        assert_eq!(connection.send(&batch(&["one", "two"]), None).await.unwrap(), 0);
        let mut heard = [0; 10];
        for expected in ["one", "two"] {
            let count = target.recv(&mut heard).await.unwrap();
            assert_eq!(&heard[..count], expected.as_bytes());
        }
        drop(target);
        assert!(connection.send(&batch(&["three"]), None).await.is_err());
    }

    #[tokio::test]
    async fn a_target_that_has_gone_is_noticed_at_the_first_write_and_acks_are_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let mut connection = Connection::open(&address, None).await.unwrap();
        let (mut target, _) = listener.accept().await.unwrap();
        let answering = tokio::spawn(async move {
            let mut heard = [0; 3];
            target.read_exact(&mut heard).await.unwrap();
            target.write_all(b"\x81\xa3ack\xa5").await.unwrap();
            target.write_all(b"chunk").await.unwrap();
            target
        });
        connection.send(&batch(&["one"]), Some("chunk")).await.unwrap();
        let target = answering.await.unwrap();
        assert!(connection.is_stream());
        drop(target);
        // The end arrives when the kernel has carried it over, and not before.
        let gone = async {
            while connection.send(&batch(&[]), None).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }
}
