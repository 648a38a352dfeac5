//! Carrying what reaches a published port's own socket on the host to the container.
//!
//! The rules rewrite nearly all connections before they get here; what arrives is what they cannot do: IPv6 to a container that has only IPv4,
//! `::1`, and everything during the moment in which somebody has flushed the rules. The sockets also keep the ports taken.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections of one port at a time.
const CONNECTIONS: usize = 4096;
/// UDP peers of one port at a time; further ones are ignored until one has been silent for long enough.
const PEERS: usize = 1024;
/// After this much silence a UDP peer is forgotten (as docker-proxy does).
const SILENCE: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a socket leads; it may change while the container is connected to another network. An unspecified address is nowhere.
pub type Target = Rc<Cell<SocketAddr>>;

/// Everything that is carried for one sandbox. Whoever waits for the end of all knows that the ports are free: no socket outlives its task.
#[derive(Clone, Default)]
pub struct Carried(Rc<RefCell<JoinSet<()>>>);

impl Carried {
    /// One more task; those that have ended are forgotten.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task);
    }

    /// Ends all of it.
    pub async fn end(&self) {
        let mut tasks = self.0.take();
        tasks.shutdown().await;
    }
}

/// Carries TCP connections until the task is aborted.
pub async fn tcp(listener: TcpListener, to: Target, carried: Carried) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let mut near = match listener.accept().await {
            Ok((near, _)) => near,
            // Out of descriptors, or the client left: neither ends the port.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let to = to.get();
        if to.ip().is_unspecified() {
            continue;
        }
        carried.spawn(async move {
            let _permit = permit;
            if let Ok(Ok(mut far)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
                let _ = near.set_nodelay(true);
                let _ = far.set_nodelay(true);
                let _ =
                    tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 32 * 1024, 32 * 1024).await;
            }
        });
    }
}

/// Carries UDP until the task is aborted: a socket towards the container for each peer.
pub async fn udp(socket: UdpSocket, to: Target, carried: Carried) {
    let socket = Rc::new(socket);
    let peers: Rc<RefCell<HashMap<SocketAddr, Rc<UdpSocket>>>> = Rc::default();
    let mut buf = vec![0; 64 * 1024];
    loop {
        let (len, peer) = match socket.recv_from(&mut buf).await {
            Ok(received) => received,
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let to = to.get();
        if to.ip().is_unspecified() {
            continue;
        }
        let known =
            peers.borrow().get(&peer).filter(|far| far.peer_addr().is_ok_and(|now| now == to)).cloned();
        let far = match known {
            Some(far) => far,
            None if peers.borrow().len() >= PEERS => continue,
            None => {
                let Ok(far) = towards(to).await else { continue };
                let far = Rc::new(far);
                peers.borrow_mut().insert(peer, Rc::clone(&far));
                let (socket, peers, back) = (Rc::clone(&socket), Rc::clone(&peers), Rc::clone(&far));
                carried.spawn(async move {
                    let mut buf = vec![0; 64 * 1024];
                    while let Ok(Ok(len)) = tokio::time::timeout(SILENCE, back.recv(&mut buf)).await {
                        let _ = socket.send_to(&buf[..len], peer).await;
                    }
                    let mut peers = peers.borrow_mut();
                    // Unless it has been replaced by one that leads elsewhere.
                    if peers.get(&peer).is_some_and(|now| Rc::ptr_eq(now, &back)) {
                        peers.remove(&peer);
                    }
                });
                far
            }
        };
        let _ = far.try_send(&buf[..len]);
    }
}

async fn towards(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: std::net::IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let far = UdpSocket::bind((any, 0)).await?;
    far.connect(to).await?;
    // Ready to send at once: the first datagram must not be lost to a readiness that was not yet seen.
    far.writable().await?;
    Ok(far)
}
