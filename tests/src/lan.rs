//! A neighbour of the engine's host, and real traffic between it, the host and containers.
//!
//! The host is 10.250.0.1 and fd00:250::1, the neighbour 10.250.0.2 and fd00:250::2. Servers and visitors are sockets of the test, opened inside the
//! namespaces, so that they work while every daemon is dead.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Engine;
use crate::host::Netns;

/// The neighbour's addresses.
pub const NEIGHBOUR: [&str; 2] = ["10.250.0.2", "fd00:250::2"];
/// How long a visitor waits for an answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// Runs `work` on a thread of its own inside a network namespace, given by its file.
///
/// # Panics
/// The namespace is not there, or `work` panicked.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(namespace).expect("a network namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
            work()
        });
        thread.join().expect("no panic inside")
    })
}

/// The neighbour, its link to the host, and what serves in it and in containers.
pub struct Lan {
    neighbour: Netns,
    host: PathBuf,
    servers: Vec<Server>,
}

impl Lan {
    /// A neighbour of an engine's host.
    pub fn beside(engine: &Engine) -> Self {
        let neighbour = Netns::new(&format!("{}-lan", engine.netns().name()));
        let ip = |line: &str| {
            let output = Command::new("ip").args(line.split(' ')).output().expect("ip runs");
            assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let (host, name) = (engine.netns().name(), neighbour.name());
        ip(&format!("-n {name} link add eth0 type veth peer name lan0 netns {host}"));
        for (ns, link, last) in [(host, "lan0", 1), (name, "eth0", 2)] {
            ip(&format!("-n {ns} addr add 10.250.0.{last}/24 dev {link}"));
            ip(&format!("-n {ns} addr add fd00:250::{last}/64 dev {link} nodad"));
            ip(&format!("-n {ns} link set {link} up"));
        }
        ip(&format!("-n {name} route add default via 10.250.0.1"));
        ip(&format!("-n {name} -6 route add default via fd00:250::1"));
        Self { neighbour, host: namespace(host), servers: Vec::new() }
    }

    /// The neighbour's namespace.
    pub fn neighbour(&self) -> PathBuf {
        namespace(self.neighbour.name())
    }

    /// The host's namespace.
    pub fn host(&self) -> PathBuf {
        self.host.clone()
    }

    /// Serves a port in a namespace, TCP and UDP, until the test ends: every visitor is told the address it has there.
    pub fn serve(&mut self, namespace: &Path, port: u16) {
        self.servers.push(Server::start(namespace, port));
    }
}

fn namespace(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// The network namespace of a running container.
pub fn of(engine: &Engine, container: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", engine.inspect(container, "{{.State.Pid}}")))
}

/// The links in a namespace, in order of their names.
pub fn links(namespace: &Path) -> Vec<String> {
    let text = inside(namespace, || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default());
    let mut names: Vec<String> =
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}

/// The link by which IPv4 leaves a namespace; `None` if it does not.
pub fn way_out(namespace: &Path) -> Option<String> {
    let text =
        inside(namespace, || std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default());
    // Link, destination, gateway, …; the default route's destination is 0.
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let link = words.next()?;
        (words.next()? == "00000000").then(|| link.to_owned())
    })
}

struct Server {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &Path, port: u16) -> Self {
        let (tcp, udp) = inside(namespace, || {
            let tcp = TcpListener::bind(("::", port)).expect("a free TCP port");
            let udp = UdpSocket::bind(("::", port)).expect("a free UDP port");
            (tcp, udp)
        });
        let ended = Arc::new(AtomicBool::new(false));
        let tick = Duration::from_millis(20);
        tcp.set_nonblocking(true).expect("a socket");
        udp.set_read_timeout(Some(tick)).expect("a socket");
        let (a, b) = (Arc::clone(&ended), Arc::clone(&ended));
        let seen = |peer: SocketAddr| peer.ip().to_canonical().to_string();
        let tcp = std::thread::spawn(move || {
            while !a.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, peer)) => drop(stream.write_all(seen(peer).as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let udp = std::thread::spawn(move || {
            let mut buf = [0; 100];
            while !b.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buf) {
                    let _ = udp.send_to(seen(peer).as_bytes(), peer);
                }
            }
        });
        Self { ended, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a TCP server at `to` answers a visitor from a namespace; `None` if it is not reached.
pub fn tcp(from: &Path, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().expect("an address");
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    })
}

/// The same by UDP.
pub fn udp(from: &Path, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().expect("an address");
    inside(from, || {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        socket.send(b"?").ok()?;
        let mut buf = [0; 100];
        let len = socket.recv(&mut buf).ok()?;
        Some(String::from_utf8_lossy(&buf[..len]).into_owned())
    })
}

/// The addresses the resolver in a namespace gives for a name, by asking 127.0.0.11 as a container would.
pub fn resolve(from: &Path, name: &str) -> Option<Vec<String>> {
    inside(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("127.0.0.11:53").ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).ok()?);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        socket.send(&query).ok()?;
        let mut buf = [0; 1500];
        let len = socket.recv(&mut buf).ok()?;
        let (answer, count) = (buf.get(..len)?, usize::from(buf[7]));
        if answer[3] & 15 != 0 {
            return None;
        }
        // Each record: a pointer to the name, type, class, time, length, address; 16 bytes in all.
        let records = answer.get(query.len()..)?.chunks_exact(16).take(count);
        Some(
            records
                .map(|record| IpAddr::from([record[12], record[13], record[14], record[15]]).to_string())
                .collect(),
        )
    })
}
