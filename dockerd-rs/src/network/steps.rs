//! Setting a container's networks up, and taking them down: one list of steps, walked forward and back.
//!
//! Runs on a thread of its own, which moves into the container's namespace and ends there. Sockets to the host's side are opened before. What a
//! step did, its `revert` undoes; a revert that finds nothing to undo is content, because after a crash nobody knows how far the set-up came.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nl::nft::{Batch, Family, Hook, Rule};
use nl::{Messages, Socket, addr, link};

use super::firewall::Firewall;
use super::helper::Helper;
use super::model::{Driver, Endpoint, Mac, Network, Protocol};
use super::rules::{Pass, Port};
use crate::error::{Error, Result};
use crate::nethelper::wire::{Aim, Held, Sandbox};

/// The address containers ask for names at.
pub const RESOLVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11));
/// Our table in a container's namespace.
const RESOLVER_TABLE: &str = "dockerd-rs-dns";

/// An endpoint and what its link is made from.
#[derive(Clone, Debug)]
pub struct LinkPlan {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its network.
    pub network: Network,
    /// Whether the container publishes ports.
    pub publishes: bool,
    /// Whether the host's rules see packets that are only bridged.
    pub bridge_filter: bool,
    /// Settings of the link's own, `name=value`, with `IFNAME` for its name.
    pub sysctls: Vec<String>,
}

/// Everything one set-up, change or tear-down needs to know.
#[derive(Default)]
pub struct Plan {
    /// The place's id, by which the helper knows it.
    pub id: String,
    /// Where the namespace is bound.
    pub namespace: PathBuf,
    /// Links to make, in order.
    pub links: Vec<LinkPlan>,
    /// Links that go.
    pub links_gone: Vec<LinkPlan>,
    /// The default routes: gateway, and the endpoint's link.
    pub routes: Vec<(IpAddr, String)>,
    /// Default routes of families that have none any more.
    pub drop_routes: Vec<IpAddr>,
    /// The default routes as they were, and those of families that had none: for the way back.
    pub routes_before: Vec<(IpAddr, String)>,
    /// See there.
    pub drop_routes_before: Vec<IpAddr>,
    /// Ports to open.
    pub ports: Vec<Port>,
    /// Exceptions for links.
    pub passes: Vec<Pass>,
    /// Ports that lead elsewhere from now on.
    pub closes: Vec<Port>,
    /// Exceptions that end.
    pub passes_gone: Vec<Pass>,
    /// What the helper is told; `None` if it need not know.
    pub sandbox: Option<Sandbox>,
    /// What the helper is told when this is undone; `None` forgets the sandbox.
    pub before: Option<Sandbox>,
    /// Whether the resolver is to be opened.
    pub resolver: bool,
    /// Sockets for the helper.
    pub sockets: Vec<(Held, OwnedFd)>,
    /// Where the helper carries visitors from now on.
    pub aims: Vec<Aim>,
    /// Where it carried them.
    pub aims_before: Vec<Aim>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new namespace, named.
    Namespace,
    /// Into the namespace there is.
    Enter,
    /// A link.
    Link(usize),
    /// Default routes.
    Routes,
    /// A link goes.
    Unlink(usize),
    /// The resolver's sockets and the rules that lead to them.
    Resolver,
    /// Ports that led elsewhere.
    Close,
    /// Published ports.
    Rules,
    /// The helper knows.
    Names,
    /// The helper carries to where the ports lead now.
    Aims,
}

/// The steps of a container's start.
pub fn start(plan: &Plan) -> Vec<Step> {
    let mut steps = vec![Step::Namespace];
    steps.extend((0..plan.links.len()).map(Step::Link));
    steps.push(Step::Routes);
    steps.extend(plan.resolver.then_some(Step::Resolver));
    steps.extend([Step::Rules, Step::Names]);
    steps
}

/// The steps of a change to a running container.
pub fn change(plan: &Plan) -> Vec<Step> {
    let mut steps = vec![Step::Enter];
    steps.extend((0..plan.links.len()).map(Step::Link));
    // Before links go and, on the way back, after they have come again.
    steps.push(Step::Routes);
    steps.extend((0..plan.links_gone.len()).map(Step::Unlink));
    steps.extend(plan.resolver.then_some(Step::Resolver));
    // Old ways are closed before new ones open: a port leads to one place at a time.
    steps.extend([Step::Close, Step::Rules, Step::Names, Step::Aims]);
    steps
}

/// Where the steps are taken: the host's side, and the namespace once there is one.
pub struct Ground<'a> {
    firewall: &'a Firewall,
    helper: &'a Arc<Helper>,
    host: Socket,
    flows: Socket,
    namespace: Option<File>,
    inside: Option<Socket>,
    resolver: Option<(UdpSocket, TcpListener)>,
    /// Links that were made here, by their names in the container: only those are this walk's to take away again.
    made: Vec<String>,
    /// For tests: the step, counted from 0, that fails after it was done.
    pub fail_at: Option<usize>,
}

fn kernel(err: &nl::Error) -> Error {
    Error::system(err.to_string())
}

impl<'a> Ground<'a> {
    /// Opens the host's side in the calling thread's namespace.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn new(firewall: &'a Firewall, helper: &'a Arc<Helper>) -> Result<Self> {
        let host = Socket::route().map_err(|err| kernel(&err))?;
        let flows = Socket::netfilter().map_err(|err| kernel(&err))?;
        Ok(Self {
            firewall,
            helper,
            host,
            flows,
            namespace: None,
            inside: None,
            resolver: None,
            made: Vec::new(),
            fail_at: None,
        })
    }

    /// Walks the steps forward; on a failure back again from the one that failed.
    ///
    /// # Errors
    /// The first step's that failed.
    pub fn apply(&mut self, steps: &[Step], plan: &mut Plan) -> Result<()> {
        if plan.sandbox.is_some() && self.namespace.is_none() {
            self.helper.ready().map_err(|err| Error::from(err).context("network helper"))?;
        }
        for (at, step) in steps.iter().enumerate() {
            let done = self.apply_one(*step, plan);
            let done = if self.fail_at == Some(at) { done.and(Err(Error::system("injected"))) } else { done };
            let Err(err) = done else { continue };
            // The one that failed too: it may have got halfway.
            self.revert(&steps[..=at], plan);
            return Err(err);
        }
        Ok(())
    }

    /// Walks steps that bring back what should be there anyway: on a failure what succeeded stays.
    ///
    /// # Errors
    /// The first step's that failed.
    pub fn repeat(&mut self, steps: &[Step], plan: &mut Plan) -> Result<()> {
        steps.iter().try_for_each(|step| self.apply_one(*step, plan))
    }

    /// Walks the steps back. What fails is logged: there is nobody to do it later but the next start of the engine, which looks for leftovers.
    pub fn revert(&mut self, steps: &[Step], plan: &Plan) {
        let goes = steps.contains(&Step::Namespace);
        for step in steps.iter().rev() {
            if let Err(err) = self.revert_one(*step, plan, goes) {
                tracing::warn!(?step, error = %err, "cannot undo a step of the network set-up");
            }
        }
    }

    fn apply_one(&mut self, step: Step, plan: &mut Plan) -> Result<()> {
        match step {
            Step::Namespace => self.make_namespace(&plan.namespace),
            Step::Enter => self.enter(&plan.namespace),
            Step::Link(at) => self.add_link(&plan.links[at]),
            Step::Routes => self.set_routes(&plan.routes, &plan.drop_routes),
            Step::Unlink(at) => self.remove_link(&plan.links_gone[at].endpoint),
            Step::Resolver => self.open_resolver(),
            Step::Close => self.firewall.remove(&plan.closes, &plan.passes_gone),
            Step::Rules => self.open_ports(&plan.ports, &plan.passes),
            Step::Names => self.tell(plan),
            Step::Aims => self.helper.aim(&plan.id, plan.aims.clone()).map_err(Error::from),
        }
    }

    fn revert_one(&mut self, step: Step, plan: &Plan, namespace_goes: bool) -> Result<()> {
        match step {
            Step::Namespace => {
                // The links' own ends in the namespace keep nothing alive: both go when the kernel takes it down.
                self.namespace = None;
                self.inside = None;
                sys::netns::unpin(&plan.namespace).map_err(Error::from)
            }
            Step::Enter => Ok(()),
            Step::Link(_) if namespace_goes && self.namespace.is_none() => Ok(()),
            Step::Link(at) => self.take_back(&plan.links[at].endpoint),
            Step::Routes if namespace_goes => Ok(()),
            Step::Routes => self.set_routes(&plan.routes_before, &plan.drop_routes_before),
            Step::Unlink(at) => self.put_back(&plan.links_gone[at]),
            Step::Resolver => {
                self.resolver = None;
                if namespace_goes { Ok(()) } else { close_resolver() }
            }
            Step::Close => self.open_ports(&plan.closes, &plan.passes_gone),
            Step::Rules => self.firewall.remove(&plan.ports, &plan.passes),
            Step::Names => match &plan.before {
                Some(before) => self.helper.put(before, None).map_err(Error::from),
                // Also where nothing was told: it may know of the place from an earlier network.
                None => self.helper.remove(&plan.id).map_err(Error::from),
            },
            Step::Aims => self.helper.aim(&plan.id, plan.aims_before.clone()).map_err(Error::from),
        }
    }

    fn open_ports(&mut self, ports: &[Port], passes: &[Pass]) -> Result<()> {
        self.firewall.add(ports, passes)?;
        forget_udp(&mut self.flows, ports);
        Ok(())
    }

    fn make_namespace(&mut self, path: &Path) -> Result<()> {
        let failed = |err: io::Error| Error::from(err).context("create network namespace");
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        sys::netns::unpin(path).map_err(failed)?;
        sys::netns::enter_new().map_err(failed)?;
        sys::netns::pin(path).map_err(failed)?;
        self.namespace = Some(sys::netns::current().map_err(failed)?);
        let mut inside = Socket::route().map_err(|err| kernel(&err))?;
        let mut out = Messages::new();
        // The loopback device is a namespace's first link.
        link::set_up(&mut out, 1);
        inside.all(out).map_err(|err| kernel(&err))?;
        self.inside = Some(inside);
        Ok(())
    }

    fn enter(&mut self, path: &Path) -> Result<()> {
        let failed = |err: io::Error| Error::from(err).context("enter network namespace");
        let namespace = File::open(path).map_err(failed)?;
        sys::netns::enter(namespace.as_fd()).map_err(failed)?;
        self.inside = Some(Socket::route().map_err(|err| kernel(&err))?);
        self.namespace = Some(namespace);
        Ok(())
    }

    fn add_link(&mut self, plan: &LinkPlan) -> Result<()> {
        let LinkPlan { endpoint, network, sysctls, .. } = plan;
        let (Some(namespace), Some(inside)) = (&self.namespace, &mut self.inside) else {
            return Err(Error::system("no namespace to put a link into"));
        };
        let name = endpoint.link.as_str();
        let mac = endpoint.mac.unwrap_or_else(Mac::random).0;
        let mtu = network.mtu();
        let missing = |what: &str| Error::not_found(format!("{what} {} not found", network.link));
        let mut out = Messages::new();
        match network.driver {
            Driver::Host | Driver::Null => return Ok(()),
            Driver::Bridge => {
                let bridge = link::find(&mut self.host, &network.link).map_err(|err| kernel(&err))?;
                let bridge = bridge.ok_or_else(|| missing("bridge"))?.index;
                let peer = link::Peer { name, mac, ns: namespace.as_fd() };
                link::add_veth(&mut out, &endpoint.host_link, Mac::random().0, bridge, mtu, &peer);
            }
            Driver::Macvlan | Driver::Ipvlan => {
                let parent = link::find(&mut self.host, &network.link).map_err(|err| kernel(&err))?;
                let parent = parent.ok_or_else(|| missing("parent link"))?.index;
                if network.driver == Driver::Macvlan {
                    let mode = match network.option("macvlan_mode") {
                        Some("private") => 1,
                        Some("vepa") => 2,
                        Some("passthru") => 8,
                        _ => 4,
                    };
                    link::add_macvlan(&mut out, name, parent, mode, mtu, mac, namespace.as_fd());
                } else {
                    let mode = match network.option("ipvlan_mode") {
                        Some("l3") => 1,
                        Some("l3s") => 2,
                        _ => 0,
                    };
                    link::add_ipvlan(&mut out, name, parent, mode, mtu, namespace.as_fd());
                }
            }
        }
        self.host.all(out).map_err(|err| kernel(&err))?;
        self.made.push(name.to_owned());
        let index =
            link::find(inside, name).map_err(|err| kernel(&err))?.ok_or_else(|| missing("link in"))?.index;
        prepare(name, endpoint.v6.is_some(), sysctls)?;
        let mut out = Messages::new();
        for address in endpoint.v4.iter().chain(&endpoint.v6) {
            addr::add(&mut out, index, address.ip, address.len);
        }
        // Last, so that neighbours are told of the address when the link comes up.
        link::set_up(&mut out, index);
        inside.all(out).map_err(|err| kernel(&err))?;
        self.set_port(plan)
    }

    fn set_port(&mut self, plan: &LinkPlan) -> Result<()> {
        let no_icc = !plan.network.flag("com.docker.network.bridge.enable_icc", true);
        // The rules see bridged packets only with the kernel's bridge filter; without it the ports themselves keep apart.
        let isolated = no_icc && !plan.bridge_filter;
        // With it, a container that reaches itself through a published port is sent back by the bridge, to where it came from.
        let hairpin = plan.publishes && plan.bridge_filter;
        if plan.network.driver != Driver::Bridge || !(isolated || hairpin) {
            return Ok(());
        }
        let found = link::find(&mut self.host, &plan.endpoint.host_link).map_err(|err| kernel(&err))?;
        let Some(port) = found else { return Ok(()) };
        let mut out = Messages::new();
        link::set_port(&mut out, port.index, isolated, hairpin);
        self.host.all(out).map_err(|err| kernel(&err))
    }

    fn set_routes(&mut self, routes: &[(IpAddr, String)], drop: &[IpAddr]) -> Result<()> {
        let Some(inside) = &mut self.inside else { return Ok(()) };
        let mut out = Messages::new();
        for gateway in drop {
            addr::remove_default(&mut out, *gateway);
        }
        // A route that went with its link is content.
        let _ = inside.each(out);
        let mut out = Messages::new();
        for (gateway, name) in routes {
            let found = link::find(inside, name).map_err(|err| kernel(&err))?;
            if let Some(found) = found {
                addr::replace_default(&mut out, *gateway, found.index);
            }
        }
        inside.all(out).map_err(|err| kernel(&err))
    }

    fn open_resolver(&mut self) -> Result<()> {
        let failed = |err: io::Error| Error::from(err).context("open the resolver's sockets");
        let udp = UdpSocket::bind((RESOLVER, 0)).map_err(failed)?;
        let tcp = TcpListener::bind((RESOLVER, 0)).map_err(failed)?;
        let ports = (udp.local_addr().map_err(failed)?.port(), tcp.local_addr().map_err(failed)?.port());
        // Port 53 itself stays free for a name server in the container.
        let mut batch = Batch::new(Family::Ip, RESOLVER_TABLE);
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        batch.add_base_chain("output", "nat", Hook::Output, -100);
        for (protocol, port) in [(Protocol::Udp, ports.0), (Protocol::Tcp, ports.1)] {
            let rule =
                Rule::new().destination(RESOLVER, 32, true).protocol(protocol.number()).destination_port(53);
            batch.append("output", &rule.rewrite(true, RESOLVER, Some(port)));
        }
        let mut socket = Socket::netfilter().map_err(|err| kernel(&err))?;
        socket.transaction(batch.into_messages()).map_err(|err| kernel(&err))?;
        self.resolver = Some((udp, tcp));
        Ok(())
    }

    fn tell(&mut self, plan: &mut Plan) -> Result<()> {
        let failed = |err: io::Error| Error::from(err).context("network helper");
        let Some(sandbox) = &plan.sandbox else { return Ok(()) };
        let fds: Option<[BorrowedFd<'_>; 3]> = match (&self.resolver, &self.namespace) {
            (Some((udp, tcp)), Some(namespace)) => Some([udp.as_fd(), tcp.as_fd(), namespace.as_fd()]),
            _ => None,
        };
        self.helper.put(sandbox, fds).map_err(failed)?;
        self.helper.hold(&sandbox.id, &plan.sockets).map_err(failed)?;
        plan.sockets.clear();
        self.resolver = None;
        Ok(())
    }

    /// Takes a link out of the container.
    fn remove_link(&mut self, endpoint: &Endpoint) -> Result<()> {
        let Some(inside) = &mut self.inside else { return Ok(()) };
        let mut out = Messages::new();
        link::delete_named(&mut out, &endpoint.link);
        match inside.all(out) {
            Err(err) if !err.missing() => Err(kernel(&err)),
            _ => Ok(()),
        }
    }

    /// Undoes a link that this walk made. Another of the same name, on which it failed, stays.
    fn take_back(&mut self, endpoint: &Endpoint) -> Result<()> {
        let Some(at) = self.made.iter().position(|name| *name == endpoint.link) else { return Ok(()) };
        self.made.swap_remove(at);
        self.remove_link(endpoint)
    }

    /// Makes a link again that this walk took away, if it came to that.
    fn put_back(&mut self, plan: &LinkPlan) -> Result<()> {
        let Some(inside) = &mut self.inside else { return Ok(()) };
        match link::find(inside, &plan.endpoint.link).map_err(|err| kernel(&err))? {
            Some(_) => Ok(()),
            None => self.add_link(plan),
        }
    }
}

/// Takes the resolver's rules out of the calling thread's namespace.
fn close_resolver() -> Result<()> {
    let mut batch = Batch::new(Family::Ip, RESOLVER_TABLE);
    batch.add_table();
    batch.delete_table();
    let mut socket = Socket::netfilter().map_err(|err| kernel(&err))?;
    socket.transaction(batch.into_messages()).map_err(|err| kernel(&err))
}

/// The kernel's switch that shows bridged packets to the rules.
pub const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Writes a kernel setting of the calling thread's namespace. One that does not exist here is content: its feature is off.
pub fn sysctl(path: &str, value: &str) -> Result<()> {
    match std::fs::write(format!("/proc/sys/{path}"), value) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(Error::from(err).context(format!("set {}", path.replace('/', "."))))
        }
        _ => Ok(()),
    }
}

/// Settings of a link in the calling thread's namespace, before it comes up.
fn prepare(name: &str, v6: bool, sysctls: &[String]) -> Result<()> {
    // A link without an IPv6 network gets no link-local address either, as Docker's.
    sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), if v6 { "0" } else { "1" })?;
    // Neighbours learn at once that an address has a new owner; it may have been another container's a moment ago.
    sysctl(&format!("net/ipv4/conf/{name}/arp_notify"), "1")?;
    if v6 {
        sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl(&format!("net/ipv6/conf/{name}/ndisc_notify"), "1")?;
    }
    for setting in sysctls {
        let Some((key, value)) = setting.split_once('=') else { continue };
        // `IFNAME` may hold the place of a name with dots in it; the rest has none.
        let path: Vec<&str> = key.split('.').map(|part| if part == "IFNAME" { name } else { part }).collect();
        let allowed = path.len() == 5 && path[0] == "net" && matches!(path[1], "ipv4" | "ipv6" | "mpls");
        if !allowed || path.iter().any(|part| part.is_empty() || part.contains(['/', '\0']) || *part == "..")
        {
            return Err(Error::invalid(format!("unrecognised network interface sysctl '{key}'")));
        }
        sysctl(&path.join("/"), value)?;
    }
    Ok(())
}

/// UDP flows of these ports that were tracked before follow their old way for as long as packets come: they are forgotten.
fn forget_udp(socket: &mut Socket, ports: &[Port]) {
    let udp: Vec<&Port> =
        ports.iter().filter(|port| port.protocol == Protocol::Udp && !port.routed).collect();
    if udp.is_empty() {
        return;
    }
    let hit = |protocol: u8, number: u16| {
        protocol == Protocol::Udp.number()
            && udp
                .iter()
                .any(|port| number.checked_sub(port.host_port).is_some_and(|offset| offset < port.count))
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        if let Err(err) = nl::conntrack::delete(socket, family as u8, |to, _| hit(to.protocol, to.port)) {
            tracing::debug!(error = %err, "cannot forget old flows");
        }
    }
}
