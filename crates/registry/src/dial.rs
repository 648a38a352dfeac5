//! Making TCP connections to registries, directly or through the proxy the environment names.
//!
//! Errors read as Go's dialler words them, because users search for those words.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which proxies to use, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<String>,
}

#[derive(Clone, Debug)]
struct Proxy {
    address: String,
    authorization: Option<String>,
}

impl Proxies {
    /// Reads the environment. Lower case names win, as everywhere.
    pub fn from_env() -> Self {
        let get = |name: &str| {
            std::env::var(name.to_lowercase()).or_else(|_| std::env::var(name)).ok().filter(|v| !v.is_empty())
        };
        Self::new(get("HTTP_PROXY"), get("HTTPS_PROXY"), get("NO_PROXY"))
    }

    fn new(http: Option<String>, https: Option<String>, none: Option<String>) -> Self {
        let exceptions = none.unwrap_or_default();
        Self {
            http: http.as_deref().and_then(Proxy::parse),
            https: https.as_deref().and_then(Proxy::parse),
            exceptions: exceptions
                .split(',')
                .map(|e| e.trim().to_lowercase())
                .filter(|e| !e.is_empty())
                .collect(),
        }
    }

    fn for_uri(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        let host = uri.host()?.trim_matches(['[', ']']).to_lowercase();
        if crate::hosts::is_loopback(&host)
            || host == "::1"
            || self.exceptions.iter().any(|e| exempts(e, &host))
        {
            return None;
        }
        proxy.as_ref()
    }
}

/// Whether an entry of `NO_PROXY` names a host: `*`, a name with its subdomains, an address, or a network.
fn exempts(entry: &str, host: &str) -> bool {
    if entry == "*" {
        return true;
    }
    if let (Some((network, bits)), Ok(address)) = (entry.split_once('/'), host.parse::<std::net::IpAddr>()) {
        return in_network(network, bits, address);
    }
    let name = entry.split(':').next().unwrap_or_default().trim_start_matches("*.").trim_start_matches('.');
    host == entry
        || host == name
        || host.strip_suffix(name).is_some_and(|rest| !name.is_empty() && rest.ends_with('.'))
}

fn in_network(network: &str, bits: &str, address: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (Ok(network), Ok(bits)) = (network.parse(), bits.parse::<u32>()) else { return false };
    match (network, address) {
        (V4(n), V4(a)) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(bits)).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        (V6(n), V6(a)) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        _ => false,
    }
}

impl Proxy {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        // Proxies spoken to by TLS or SOCKS are not known here.
        if rest.contains("://") {
            return None;
        }
        let rest = rest.split('/').next().unwrap_or_default();
        let (user, address) =
            rest.rsplit_once('@').map_or((None, rest), |(user, address)| (Some(user), address));
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:80") };
        let authorization = user.map(|user| {
            let plain = percent_encoding::percent_decode_str(user).decode_utf8_lossy().into_owned();
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain))
        });
        Some(Self { address, authorization })
    }
}

/// Dials for hyper's client.
#[derive(Clone, Debug)]
pub struct Dial {
    pub proxies: Proxies,
}

/// A connection, and whether it ends at a proxy that must be told whole addresses.
pub struct Conn {
    stream: TokioIo<TcpStream>,
    through_proxy: bool,
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DialError(pub String);

impl Dial {
    async fn connect(self, uri: Uri) -> Result<Conn, DialError> {
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_unbounded(&uri)).await;
        dialled.unwrap_or_else(|_| Err(DialError(format!("dial tcp {}: i/o timeout", target(&uri)))))
    }

    async fn connect_unbounded(&self, uri: &Uri) -> Result<Conn, DialError> {
        let to = target(uri);
        let Some(proxy) = self.proxies.for_uri(uri) else {
            let stream = tcp(&to).await?;
            return Ok(Conn { stream: TokioIo::new(stream), through_proxy: false });
        };
        let mut stream =
            tcp(&proxy.address).await.map_err(|err| DialError(format!("proxyconnect tcp: {err}")))?;
        let tunnelled = uri.scheme_str() == Some("https");
        if tunnelled {
            tunnel(&mut stream, &to, proxy.authorization.as_deref())
                .await
                .map_err(|err| DialError(format!("proxyconnect tcp: {err}")))?;
        }
        Ok(Conn { stream: TokioIo::new(stream), through_proxy: !tunnelled })
    }
}

fn target(uri: &Uri) -> String {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

async fn tcp(target: &str) -> Result<TcpStream, DialError> {
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(target).await {
        Ok(found) => found.collect(),
        Err(err) => {
            let text = err.to_string();
            let known =
                ["Name or service not known", "No address associated"].iter().any(|t| text.contains(t));
            let why = if known { "no such host".to_owned() } else { format!("server misbehaving: {text}") };
            return Err(DialError(format!("dial tcp: lookup {host}: {why}")));
        }
    };
    let mut last = DialError(format!("dial tcp: lookup {host}: no such host"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(err) => last = DialError(format!("dial tcp {address}: connect: {}", plain(&err))),
        }
    }
    Err(last)
}

/// The system's text without Rust's number behind it, in lower case.
pub fn plain(err: &io::Error) -> String {
    let text = err.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

async fn tunnel(stream: &mut TcpStream, to: &str, authorization: Option<&str>) -> io::Result<()> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(authorization) = authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer belongs to TLS.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > 16 * 1024 {
            return Err(io::Error::other("answer of the proxy is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(answer.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let status = line.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') { Ok(()) } else { Err(io::Error::other(line)) }
}

impl tower_service::Service<Uri> for Dial {
    type Response = Conn;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.through_proxy)
    }
}

impl Read for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_and_their_exceptions() {
        let proxies = Proxies::new(
            Some("http://u%40x:p@proxy.test:3128/".into()),
            Some("proxy.test".into()),
            Some("internal.test, .dot.test,10.0.0.0/8,exact.test:5000".into()),
        );
        let address = |uri: &str| proxies.for_uri(&uri.parse().unwrap()).map(|p| p.address.clone());
        assert_eq!(address("http://reg.test/").as_deref(), Some("proxy.test:3128"));
        assert_eq!(address("https://reg.test/").as_deref(), Some("proxy.test:80"));
        for none in [
            "http://internal.test/",
            "http://a.internal.test/",
            "https://x.dot.test/",
            "http://10.1.2.3:5000/",
            "http://127.0.0.1:5000/",
            "http://localhost/",
            "http://exact.test:5000/",
        ] {
            assert_eq!(address(none), None, "{none}");
        }
        assert!(address("http://notinternal.test/").is_some());
        let authorization = proxies.http.as_ref().unwrap().authorization.clone().unwrap();
        assert_eq!(
            authorization,
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("u@x:p"))
        );
    }
}
