//! The helper: `dockerd-rs net-helper`, one small process for all networks of an engine.
//!
//! It answers DNS for containers and holds the sockets of published ports, so that both go on while dockerd-rs is away. It decides nothing:
//! dockerd-rs tells it what to hold ([`wire`]), and finds it again after a restart through the socket both know. Its own state is what it was told.
//! It ends when it is told to leave, or when it holds nothing and nobody has been connected for a while.
//!
//! Single-threaded: so it may step into a container's namespace to open a socket, as long as nothing awaits in between.

pub mod dns;
pub mod names;
mod relay;
pub mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet};

use self::dns::{Resolver, Table};
use self::relay::{Carried, Target};
use self::wire::{Aim, Held, Incoming, Reply, Request, VERSION};
use crate::network::model::Protocol;

/// How long an idle helper waits for somebody to need it.
const IDLE: Duration = Duration::from_secs(20);

/// Runs the helper: the listening socket is standard input.
///
/// # Errors
/// Standard input is no socket, or no runtime can be made.
pub fn main() -> io::Result<()> {
    use std::os::fd::AsFd;
    // A session of its own: signals meant for dockerd-rs's group must not reach it.
    let _ = rustix::process::setsid();
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    serve(listener)
}

/// Serves requests on `listener` until there is nothing left to do.
///
/// # Errors
/// No runtime can be made, or the network namespace is not readable.
pub fn serve(listener: UnixListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let host = Rc::new(OwnedFd::from(sys::netns::current()?));
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let leave = Rc::new(Notify::new());
        let helper =
            Helper { table: Table::default(), host, tasks: HashMap::new(), leave: Rc::clone(&leave) };
        let helper = Rc::new(RefCell::new(helper));
        let clients = Rc::new(());
        loop {
            let accepted = tokio::select! {
                accepted = tokio::time::timeout(IDLE, listener.accept()) => accepted,
                () = leave.notified() => return Ok(()),
            };
            match accepted {
                Ok(Ok((stream, _))) => {
                    let (helper, client) = (Rc::clone(&helper), Rc::clone(&clients));
                    tokio::task::spawn_local(async move {
                        let _client = client;
                        let _ = conversation(&helper, stream).await;
                    });
                }
                Ok(Err(err)) => return Err(err),
                Err(_) => {
                    let alone = Rc::strong_count(&clients) == 1;
                    if alone && helper.borrow().tasks.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    })
}

/// What is held for one sandbox: aborting a task closes its socket.
#[derive(Default)]
struct Tasks {
    resolver: Vec<JoinHandle<()>>,
    /// Published ports' sockets at work, and how many they are.
    carried: Carried,
    sockets: Vec<Socket>,
    /// Sockets that only keep a port taken.
    kept: Vec<OwnedFd>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.resolver.iter().for_each(JoinHandle::abort);
    }
}

/// A published port's socket: where it listens, and where it leads.
struct Socket {
    protocol: Protocol,
    host: SocketAddr,
    target: Target,
}

struct Helper {
    table: Table,
    host: Rc<OwnedFd>,
    tasks: HashMap<String, Tasks>,
    leave: Rc<Notify>,
}

async fn conversation(helper: &RefCell<Helper>, stream: tokio::net::UnixStream) -> io::Result<()> {
    let mut incoming = Incoming::default();
    loop {
        while let Some((request, fds)) = incoming.message()? {
            let gone = match &request {
                Request::Remove { sandbox } => helper.borrow_mut().tasks.remove(sandbox),
                _ => None,
            };
            if let Some(gone) = gone {
                // Before the answer: whoever hears it may bind the ports again.
                gone.carried.end().await;
            }
            let reply = helper.borrow_mut().handle(request, fds);
            // Replies are small and the other side waits for each: the buffer has room.
            wire::send(&stream, &reply, &[])?;
        }
        stream.readable().await?;
        match stream.try_io(tokio::io::Interest::READABLE, || incoming.receive(&stream)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
}

impl Helper {
    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> Reply {
        let mut reply = Reply { version: VERSION, ..Reply::default() };
        let done = match request {
            Request::Hello => {
                let table = self.table.borrow();
                reply.sandboxes = table
                    .ids()
                    .map(|id| {
                        let tasks = self.tasks.get(id);
                        let resolves = tasks.is_some_and(|tasks| !tasks.resolver.is_empty());
                        let held = tasks.map_or(0, |tasks| tasks.sockets.len() + tasks.kept.len());
                        (id.clone(), resolves, held)
                    })
                    .collect();
                Ok(())
            }
            Request::Put { sandbox, fresh } => {
                let id = sandbox.id.clone();
                self.table.borrow_mut().put(sandbox);
                self.tasks.entry(id.clone()).or_default();
                if fresh { self.resolve(&id, fds) } else { Ok(()) }
            }
            Request::Hold { sandbox, sockets } => self.hold(&sandbox, &sockets, fds),
            Request::Aim { sandbox, aims } => {
                self.aim(&sandbox, &aims);
                Ok(())
            }
            Request::Remove { sandbox } => {
                self.table.borrow_mut().remove(&sandbox);
                Ok(())
            }
            Request::Leave => {
                self.leave.notify_one();
                Ok(())
            }
        };
        if let Err(err) = done {
            reply.error = err.to_string();
        }
        reply
    }

    fn resolve(&mut self, id: &str, fds: Vec<OwnedFd>) -> io::Result<()> {
        let [udp, tcp, namespace]: [OwnedFd; 3] =
            fds.try_into().map_err(|_| io::Error::other("a resolver has three descriptors"))?;
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let resolver = Resolver::new(id, Rc::clone(&self.table), namespace, Rc::clone(&self.host));
        let tasks = self.tasks.entry(id.to_owned()).or_default();
        tasks.resolver.drain(..).for_each(|old| old.abort());
        tasks.resolver.push(tokio::task::spawn_local(Rc::clone(&resolver).serve_udp(udp)));
        tasks.resolver.push(tokio::task::spawn_local(resolver.serve_tcp(tcp)));
        Ok(())
    }

    fn aim(&mut self, id: &str, aims: &[Aim]) {
        for socket in self.tasks.get(id).into_iter().flat_map(|tasks| &tasks.sockets) {
            for aim in
                aims.iter().filter(|aim| aim.protocol == socket.protocol && aim.host.ip() == socket.host.ip())
            {
                if let Some(nth) =
                    socket.host.port().checked_sub(aim.host.port()).filter(|nth| *nth < aim.count)
                {
                    let port = aim.carry_to.port().saturating_add(nth);
                    socket.target.set(SocketAddr::new(aim.carry_to.ip(), port));
                }
            }
        }
    }

    fn hold(&mut self, id: &str, sockets: &[Held], fds: Vec<OwnedFd>) -> io::Result<()> {
        let tasks = self.tasks.entry(id.to_owned()).or_default();
        let carried = tasks.carried.clone();
        let mut note = |held: &Held, host: SocketAddr| {
            let target = Target::new(Cell::new(held.carry_to));
            tasks.sockets.push(Socket { protocol: held.protocol, host, target: Rc::clone(&target) });
            target
        };
        for (held, fd) in sockets.iter().zip(fds) {
            match held.protocol {
                Protocol::Tcp => {
                    let listener = std::net::TcpListener::from(fd);
                    listener.set_nonblocking(true)?;
                    let listener = TcpListener::from_std(listener)?;
                    let target = note(held, listener.local_addr()?);
                    carried.spawn(relay::tcp(listener, target, carried.clone()));
                }
                Protocol::Udp => {
                    let socket = std::net::UdpSocket::from(fd);
                    socket.set_nonblocking(true)?;
                    let socket = UdpSocket::from_std(socket)?;
                    let target = note(held, socket.local_addr()?);
                    carried.spawn(relay::udp(socket, target, carried.clone()));
                }
                Protocol::Sctp => tasks.kept.push(fd),
            }
        }
        Ok(())
    }
}
