//! The sockets of the API: unix, TCP, TCP with TLS, and those systemd hands over.
//!
//! Invariant: a unix socket is never open to more than `--group` (mode 0660), not even for a moment; a socket that somebody serves is not
//! taken away from them.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, chown};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::api::authz::Peer;
use crate::api::server::Client;
use crate::config::{Config, Tls};
use crate::engine::Engine;
use crate::error::{Error, Result, sys_text};

/// Connections served at the same time on one socket; more wait in the backlog.
const MAX_CONNECTIONS: usize = 8192;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to rest after an accept that failed for want of descriptors or memory.
const REST: Duration = Duration::from_millis(50);

/// A socket that is open but not served yet.
pub enum Socket {
    /// A unix socket, and the file to remove at the end.
    Unix(UnixListener, Option<PathBuf>),
    /// A TCP socket, with TLS or without.
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// Opens every `-H`.
///
/// # Errors
/// An address is taken or wrong, or the TLS files cannot be read.
pub fn open(config: &Config) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for host in &config.hosts {
        let failed = |what: &str| Error::system(format!("failed to load listener on {host}: {what}"));
        match host.split_once("://") {
            Some(("unix", path)) => {
                let path = PathBuf::from(path);
                let listener = unix(&path, &config.group).map_err(|err| failed(&sys_text(&err)))?;
                sockets.push(Socket::Unix(listener, Some(path)));
            }
            Some(("tcp", address)) => {
                let acceptor = if config.tls.enabled { Some(acceptor(&config.tls)?) } else { None };
                if acceptor.is_none() {
                    tracing::warn!(
                        host,
                        "the API is open without encryption: whoever reaches it is root on this machine"
                    );
                } else if !config.tls.verify {
                    tracing::warn!(
                        host,
                        "the API asks clients for no certificate: whoever reaches it is root on this machine"
                    );
                }
                let listener = std::net::TcpListener::bind(address)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                    .and_then(TcpListener::from_std)
                    .map_err(|err| failed(&format!("listen tcp {address}: bind: {}", sys_text(&err))))?;
                sockets.push(Socket::Tcp(listener, acceptor));
            }
            Some(("fd", which)) => {
                sockets.extend(handed_over(which, &config.tls).map_err(|err| failed(&err))?)
            }
            _ => return Err(failed("unknown address")),
        }
    }
    Ok(sockets)
}

fn unix(path: &Path, group: &str) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A socket nobody listens on is a left-over; one that answers belongs to a living engine.
    match sys::unixpath::connect(path) {
        Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = sys::unixpath::bind(path, 0o600)?;
    listener.set_nonblocking(true)?;
    match group_id(group) {
        Some(gid) => chown(path, None, Some(Gid::from_raw(gid)))?,
        None => tracing::warn!(group, "no such group: the socket is root's alone"),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    UnixListener::from_std(listener)
}

/// A group's number, by name or as a number.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Sockets of systemd (`fd://` takes all, `fd://4` the one of that number).
fn handed_over(which: &str, tls: &Tls) -> Result<Vec<Socket>, String> {
    let mut fds = listenfd::ListenFd::from_env();
    if fds.len() == 0 {
        return Err(
            "no sockets found via socket activation: make sure the service was started by systemd".into()
        );
    }
    let wanted: Vec<usize> = match which.trim_start_matches('/') {
        "" | "*" => (0..fds.len()).collect(),
        number => {
            let number: usize = number
                .parse()
                .map_err(|_| format!("failed to parse systemd fd address: should be a number: {number}"))?;
            vec![number.checked_sub(3).ok_or("systemd's sockets begin at 3")?]
        }
    };
    let mut sockets = Vec::new();
    for at in wanted {
        let text = |err: io::Error| sys_text(&err);
        if let Ok(Some(listener)) = fds.take_unix_listener(at) {
            listener.set_nonblocking(true).map_err(text)?;
            sockets.push(Socket::Unix(UnixListener::from_std(listener).map_err(text)?, None));
            continue;
        }
        match fds.take_tcp_listener(at) {
            Ok(Some(listener)) => {
                listener.set_nonblocking(true).map_err(text)?;
                let acceptor =
                    if tls.enabled { Some(acceptor(tls).map_err(|err| err.to_string())?) } else { None };
                sockets.push(Socket::Tcp(TcpListener::from_std(listener).map_err(text)?, acceptor));
            }
            Ok(None) => return Err(format!("no such file descriptor {}", at + 3)),
            Err(err) => return Err(text(err)),
        }
    }
    Ok(sockets)
}

/// What TLS needs: our certificate and key, and with `--tlsverify` the authority that clients' certificates must be of.
fn acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    let failed = |what: &str, path: &Path, err: &dyn std::fmt::Display| {
        Error::system(format!("could not load {what} ({}): {err}", path.display()))
    };
    let certificates = certificates(&tls.cert).map_err(|err| failed("X509 key pair", &tls.cert, &err))?;
    let key =
        PrivateKeyDer::from_pem_file(&tls.key).map_err(|err| failed("X509 key pair", &tls.key, &err))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|err| Error::system(format!("tls: {err}")))?;
    let builder = if tls.verify {
        let mut roots = RootCertStore::empty();
        for certificate in
            self::certificates(&tls.ca).map_err(|err| failed("CA certificate", &tls.ca, &err))?
        {
            roots.add(certificate).map_err(|err| failed("CA certificate", &tls.ca, &err))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|err| failed("CA certificate", &tls.ca, &err))?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .map_err(|err| failed("X509 key pair", &tls.cert, &err))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Serves a socket until the engine stops. Connections are tasks of `tracker`.
pub async fn serve(socket: Socket, engine: Arc<Engine>, router: Arc<api::Router>, tracker: TaskTracker) {
    let permits = Arc::new(Semaphore::new(connections()));
    let (file, identity) = match &socket {
        Socket::Unix(_, Some(path)) => (Some(path.clone()), identity(path)),
        _ => (None, None),
    };
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = accept(&socket) => accepted,
            () = engine.phase.stopping() => break,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(err) => {
                // Out of descriptors, or the client is gone already. Waiting for others to end is all that helps.
                tracing::warn!(error = %err, "connection not accepted");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (engine, router) = (Arc::clone(&engine), Arc::clone(&router));
        let tls = match &socket {
            Socket::Tcp(_, tls) => tls.clone(),
            Socket::Unix(..) => None,
        };
        tracker.spawn(async move {
            let _permit = permit;
            match stream {
                Accepted::Unix(stream) => {
                    api::server::connection(engine, router, stream, Client::Local).await
                }
                Accepted::Tcp(stream) => {
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => {
                            let client = Client::Remote(None);
                            api::server::connection(engine, router, stream, client).await;
                        }
                        Some(acceptor) => {
                            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                                Ok(Ok(stream)) => {
                                    let certificates = stream.get_ref().1.peer_certificates();
                                    let peer = certificates.map(|all| Arc::new(Peer::of_certificates(all)));
                                    let client = Client::Remote(peer);
                                    api::server::connection(engine, router, stream, client).await;
                                }
                                Ok(Err(err)) => tracing::debug!(error = %err, "TLS handshake failed"),
                                Err(_) => tracing::debug!("TLS handshake took too long"),
                            }
                        }
                    }
                }
            }
        });
    }
    drop(socket);
    // Only our own: another engine may have put its socket there meanwhile.
    if let Some(path) = file
        && identity.is_some()
        && self::identity(&path) == identity
    {
        let _ = std::fs::remove_file(path);
    }
}

/// How many connections may be open: some descriptors stay for everything else.
fn connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit - limit / 10).unwrap_or(usize::MAX));
    most.saturating_sub(64).clamp(16, MAX_CONNECTIONS)
}

async fn accept(socket: &Socket) -> io::Result<Accepted> {
    match socket {
        Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        Socket::Tcp(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/api.sock");
        let first = unix(&path, "root").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(unix(&path, "root").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        unix(&path, "root").unwrap();
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("1234"), Some(1234));
        assert_eq!(group_id("no-such-group-here"), None);
    }
}
