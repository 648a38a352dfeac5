//! The controller against the kernel: real namespaces, real traffic. Each test has a network namespace of its own; needs root.
//!
//! A test's namespace is the engine's host. A LAN neighbour is another one, reached over a bridge `lan0` (10.250.0.1 is the engine's host, 10.250.0.2
//! the neighbour). Containers are threads in the namespaces the controller made.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use docker_api::{EndpointSettings, PortBinding};
use nl::{Messages, Socket, addr, link};

use super::groundwork::{Groundwork, STEPS};
use super::helper::Launch;
use super::model::{Naming, Wanted};
use super::sandbox::Namespace;
use super::spec::Create;
use super::steps::{self, Ground};
use super::{Controller, Options};
use crate::engine::Parts;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::runtime::Runtime;
use crate::store::Store;

const HOST: &str = "10.250.0.1";

/// An engine's networks in a namespace of its own.
struct Engine {
    dir: tempfile::TempDir,
    parts: Parts,
    controller: Controller,
    neighbour: OwnedFd,
}

fn options() -> Options {
    Options { ipv6: true, ..Options::default() }
}

impl Engine {
    async fn start() -> Self {
        let mut host = Socket::route().unwrap();
        let mut out = Messages::new();
        link::set_up(&mut out, 1);
        link::add_bridge(&mut out, "lan0", None, [2, 0, 0, 0, 9, 1]);
        host.all(out).unwrap();
        let lan = link::find(&mut host, "lan0").unwrap().unwrap().index;
        let mut out = Messages::new();
        addr::add(&mut out, lan, HOST.parse().unwrap(), 24);
        addr::add(&mut out, lan, "fd00:250::1".parse().unwrap(), 64);
        link::set_up(&mut out, lan);
        host.all(out).unwrap();
        let neighbour = sys::netns::scoped(|| {
            sys::netns::enter_new().unwrap();
            let here = sys::netns::current().unwrap();
            let mut out = Messages::new();
            let peer = link::Peer { name: "eth0", mac: [2, 0, 0, 0, 9, 3], ns: here.as_fd() };
            link::add_veth(&mut out, "vethlan", [2, 0, 0, 0, 9, 2], lan, None, &peer);
            host.all(out).unwrap();
            let mut inside = Socket::route().unwrap();
            let eth0 = link::find(&mut inside, "eth0").unwrap().unwrap().index;
            let mut out = Messages::new();
            link::set_up(&mut out, 1);
            addr::add(&mut out, eth0, "10.250.0.2".parse().unwrap(), 24);
            addr::add(&mut out, eth0, "fd00:250::2".parse().unwrap(), 64);
            link::set_up(&mut out, eth0);
            addr::replace_default(&mut out, HOST.parse().unwrap(), eth0);
            inside.all(out).unwrap();
            OwnedFd::from(here)
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::config::Config::default();
        config.data_root = dir.path().join("data");
        config.exec_root = dir.path().join("exec");
        std::fs::create_dir_all(&config.data_root).unwrap();
        std::fs::create_dir_all(&config.exec_root).unwrap();
        let parts = Parts {
            store: Store::open(&config.store_path()).unwrap(),
            runtime: Runtime::new(Path::new("/nonexistent"), "moby").unwrap(),
            events: Events::open(&config.data_root.join("events")).unwrap(),
            config: config.into(),
        };
        let controller = Controller::with(&parts, options(), Launch::Thread).unwrap();
        controller.bring_up().await.unwrap();
        Self { dir, parts, controller, neighbour }
    }

    /// As after `kill -9`: nothing is undone, all is read again.
    async fn restart(&mut self) {
        self.controller = Controller::with(&self.parts, options(), Launch::Thread).unwrap();
        self.controller.bring_up().await.unwrap();
    }

    fn wanted(&self, name: &str, mode: &str) -> Wanted {
        let id = format!("{:0<64}", hex::encode(name));
        Wanted {
            container: id.clone(),
            name: name.into(),
            mode: mode.into(),
            naming: Naming {
                hostname: id[..12].into(),
                dir: self.dir.path().join("data/containers").join(&id),
                ..Naming::default()
            },
            ..Wanted::default()
        }
    }

    async fn run(&self, wanted: &Wanted) -> Result<Container> {
        let sandbox = self.controller.allocate(wanted.clone()).await?;
        let Namespace::Path(path) = sandbox.namespace else { panic!("{:?}", sandbox.namespace) };
        let state = self.controller.0.state();
        let place = &state.places[&wanted.container];
        let first = &place.endpoints[0];
        Ok(Container {
            id: wanted.container.clone(),
            namespace: File::open(&path).unwrap().into(),
            path,
            ip: first.v4.unwrap().ip,
            v6: first.v6.map(|p| p.ip),
        })
    }

    async fn stop(&self, container: &Container) {
        self.controller.release(&container.id).await.unwrap();
    }

    async fn network(&self, body: &str) -> String {
        self.controller
            .create(docker_api::json::from_slice::<Create>(body.as_bytes()).unwrap())
            .await
            .unwrap()
    }

    fn links(&self) -> Vec<String> {
        let mut names: Vec<String> =
            link::list(&mut Socket::route().unwrap()).unwrap().into_iter().map(|link| link.name).collect();
        names.sort();
        names
    }
}

struct Container {
    id: String,
    namespace: OwnedFd,
    path: PathBuf,
    ip: IpAddr,
    v6: Option<IpAddr>,
}

/// Who opens a connection.
enum From<'a> {
    Host,
    Inside(&'a OwnedFd),
}

fn at<T: Send>(from: &From<'_>, work: impl FnOnce() -> T + Send) -> T {
    match from {
        From::Host => sys::netns::scoped(work).unwrap(),
        From::Inside(ns) => sys::netns::run_in(ns.as_fd(), work).unwrap(),
    }
}

/// Serves TCP in a namespace for as long as the test runs: answers with the peer's address as it sees it.
fn serve(ns: &OwnedFd, port: u16) {
    let listener = sys::netns::run_in(ns.as_fd(), || TcpListener::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer =
                stream.peer_addr().map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// Serves UDP likewise.
fn serve_udp(ns: &OwnedFd, port: u16) {
    let socket = sys::netns::run_in(ns.as_fd(), || UdpSocket::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 100];
        while let Ok((len, peer)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..len], peer);
        }
    });
}

/// What a TCP server at `to` answers; `None` if it is not reached.
fn reach(from: &From<'_>, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    at(from, || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(1500))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    })
}

fn reach_udp(from: &From<'_>, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    at(from, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let mut buf = [0; 10];
        socket.send(b"hi").is_ok() && socket.recv(&mut buf).is_ok_and(|len| &buf[..len] == b"hi")
    })
}

fn binding(ip: &str, port: &str) -> Option<Vec<PortBinding>> {
    Some(vec![PortBinding { host_ip: ip.parse().unwrap(), host_port: port.into() }])
}

/// Runs a test on a thread in a new namespace, with a runtime there.
fn with_engine<F: Future<Output = ()>>(test: impl FnOnce(Engine) -> F + Send) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    sys::netns::scoped(|| {
        sys::netns::enter_new().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Engine::start().await).await });
    })
    .unwrap();
}

#[test]
fn published_ports_are_reached_from_everywhere_and_nothing_else_is() {
    with_engine(|engine| async move {
        let mut wanted = engine.wanted("web", "bridge");
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        wanted.bindings.insert("81/tcp".parse().unwrap(), binding("127.0.0.1", "8081"));
        wanted.bindings.insert("53/udp".parse().unwrap(), binding("", "5353"));
        for port in 9000..9020 {
            let key = format!("{port}/tcp").parse().unwrap();
            wanted.bindings.insert(key, binding("0.0.0.0", &port.to_string()));
        }
        let web = engine.run(&wanted).await.unwrap();
        let other = engine.run(&engine.wanted("other", "bridge")).await.unwrap();
        engine.network(r#"{"Name":"n1"}"#).await;
        let far = engine.run(&engine.wanted("far", "n1")).await.unwrap();
        engine.network(r#"{"Name":"inside","Internal":true}"#).await;
        let shut = engine.run(&engine.wanted("shut", "inside")).await.unwrap();
        for port in [80, 81, 82, 9005] {
            serve(&web.namespace, port);
        }
        serve_udp(&web.namespace, 53);
        serve(&other.namespace, 80);
        let lan = From::Inside(&engine.neighbour);
        let (inside, beside, apart) =
            (From::Inside(&web.namespace), From::Inside(&other.namespace), From::Inside(&far.namespace));

        // From outside, and with the visitor's own address.
        assert_eq!(reach(&lan, "10.250.0.1:8080").as_deref(), Some("10.250.0.2"));
        assert_eq!(reach(&lan, "[fd00:250::1]:8080").as_deref(), Some("fd00:250::2"));
        assert_eq!(reach(&lan, "10.250.0.1:9005").as_deref(), Some("10.250.0.2"));
        // From the host.
        for to in ["127.0.0.1:8080", "[::1]:8080", "10.250.0.1:8080", "[fd00:250::1]:8080", "127.0.0.1:8081"]
        {
            assert!(reach(&From::Host, to).is_some(), "{to} from the host");
        }
        assert!(reach_udp(&From::Host, "127.0.0.1:5353"));
        assert!(reach_udp(&From::Host, "[::1]:5353"));
        assert!(reach_udp(&lan, "10.250.0.1:5353"));
        // From a neighbour on the bridge, from itself, from another network.
        for (who, from) in [("beside", &beside), ("itself", &inside), ("apart", &apart)] {
            assert!(reach(from, "10.250.0.1:8080").is_some(), "{who}");
        }
        assert!(reach(&beside, &format!("{}:82", web.ip)).is_some(), "icc");
        // And nothing else.
        assert_eq!(reach(&lan, "10.250.0.1:8081"), None, "bound to loopback");
        assert_eq!(reach(&lan, &format!("{}:80", web.ip)), None, "addressed directly");
        assert_eq!(reach(&apart, &format!("{}:82", web.ip)), None, "from another network");
        assert_eq!(
            reach(&From::Inside(&shut.namespace), &format!("{}:80", web.ip)),
            None,
            "from an internal network"
        );
        assert_eq!(reach(&From::Inside(&shut.namespace), "10.250.0.2:80"), None);
        assert_eq!(reach(&lan, "10.250.0.1:82"), None, "not published");
        // Out into the world, with the host's address.
        serve(&engine.neighbour, 7000);
        assert_eq!(reach(&inside, "10.250.0.2:7000").as_deref(), Some(HOST));
        assert_eq!(reach(&apart, "10.250.0.2:7000").as_deref(), Some(HOST));
        assert!(web.v6.is_some());

        // Taken.
        let mut second = engine.wanted("second", "bridge");
        second.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        let err = engine.run(&second).await.err().unwrap();
        assert!(err.message().starts_with("failed to set up container networking: driver failed programming external connectivity on endpoint second ("), "{err}");
        assert!(
            err.message().ends_with("): Bind for 0.0.0.0:8080 failed: port is already allocated"),
            "{err}"
        );
        assert!(!engine.controller.has_place(&second.container));
        // A stopped container's port is free, and leads to its next owner.
        engine.stop(&web).await;
        let second = engine.run(&second).await.unwrap();
        serve(&second.namespace, 80);
        assert!(reach(&lan, "10.250.0.1:8080").is_some());
        for container in [&other, &far, &shut, &second] {
            engine.stop(container).await;
        }
    });
}

#[test]
fn a_failure_at_any_step_leaves_the_host_as_it_was() {
    with_engine(|engine| async move {
        engine.network(r#"{"Name":"n1","EnableIPv6":true}"#).await;
        let mut wanted = engine.wanted("c", "n1");
        wanted.endpoints.insert("bridge".into(), EndpointSettings::default());
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        let inner = &engine.controller.0;
        // The first start of the helper is not part of what is undone.
        inner.helper.ready().unwrap();
        let before = engine.links();
        let count = {
            let place = inner.plan_place(&wanted).unwrap();
            let plan = inner.plan_of(&place);
            inner.forget(&place).await.unwrap();
            steps::start(&plan).len()
        };
        assert_eq!(count, 7);
        for fail_at in 0..count {
            let place = inner.plan_place(&wanted).unwrap();
            let mut plan = inner.plan_of(&place);
            let err = sys::netns::scoped(|| {
                let mut ground = Ground::new(inner.firewall().unwrap(), &inner.helper).unwrap();
                ground.fail_at = Some(fail_at);
                let steps = steps::start(&plan);
                ground.apply(&steps, &mut plan)
            })
            .unwrap();
            assert_eq!(err.unwrap_err().message(), "injected");
            inner.forget(&place).await.unwrap();
            // The kernel takes the namespace down, and the links' ends with it, a little later.
            let deadline = Instant::now() + Duration::from_secs(5);
            while engine.links() != before {
                assert!(Instant::now() < deadline, "step {fail_at} left {:?}", engine.links());
                std::thread::yield_now();
            }
            assert_eq!(std::fs::read_dir(&inner.namespaces).unwrap().count(), 0, "step {fail_at}");
            assert!(inner.helper.holdings().unwrap().is_empty(), "step {fail_at}");
        }
        // And after all that it works.
        let c = engine.run(&wanted).await.unwrap();
        serve(&c.namespace, 80);
        assert!(reach(&From::Inside(&engine.neighbour), "10.250.0.1:8080").is_some());
        engine.stop(&c).await;
    });
}

/// What there is in the calling thread's namespace: links, addresses, default routes and rules, one line a thing.
fn seen() -> Vec<String> {
    let mut socket = Socket::route().unwrap();
    let links = link::list(&mut socket).unwrap();
    let name = |index| links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str());
    let mut lines: Vec<String> = links.iter().map(|link| format!("link {} {}", link.name, link.up)).collect();
    for address in addr::list(&mut socket).unwrap() {
        if !matches!(address.ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            lines.push(format!("address {}/{} {}", address.ip, address.prefix, name(address.link)));
        }
    }
    for route in addr::routes(&mut socket).unwrap().iter().filter(|route| route.prefix == 0) {
        lines.push(format!("route {:?} {}", route.gateway, route.link.map_or("?", name)));
    }
    // Without counters.
    let rules = std::process::Command::new("nft").args(["-s", "list", "ruleset"]).output().unwrap();
    lines.extend(String::from_utf8(rules.stdout).unwrap().lines().map(|line| line.trim().to_owned()));
    lines.sort();
    lines
}

/// Waits until two looks are the same: the kernel takes things down a little later than it says.
fn becomes(what: &str, expected: &[String], look: impl Fn() -> Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let now = look();
        if now == expected {
            return;
        }
        let less: Vec<_> = expected.iter().filter(|line| !now.contains(line)).collect();
        let more: Vec<_> = now.iter().filter(|line| !expected.contains(line)).collect();
        assert!(Instant::now() < deadline, "{what}: gone {less:#?}, new {more:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_change_that_fails_at_any_step_changes_nothing() {
    use hickory_proto::rr::RecordType::A;
    with_engine(|engine| async move {
        engine.network(r#"{"Name":"n1","EnableIPv6":true}"#).await;
        engine.network(r#"{"Name":"flat","Driver":"macvlan","Options":{"parent":"lan0"}}"#).await;
        let mut wanted = engine.wanted("web", "bridge");
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        wanted.bindings.insert("53/udp".parse().unwrap(), binding("", "5353"));
        let web = engine.run(&wanted).await.unwrap();
        serve(&web.namespace, 80);
        let db = engine.run(&engine.wanted("db", "n1")).await.unwrap();
        let inner = &engine.controller.0;
        let lan = From::Inside(&engine.neighbour);
        let host = || at(&From::Host, seen);
        let inside = || at(&From::Inside(&web.namespace), seen);
        let held = || {
            let held = inner.helper.holdings().unwrap();
            let mut held: Vec<_> = held.into_iter().map(|(id, (_, sockets))| (id, sockets)).collect();
            held.sort();
            held
        };
        let goes_on = |when: &str| {
            for (from, to) in
                [(&lan, "10.250.0.1:8080"), (&From::Host, "127.0.0.1:8080"), (&From::Host, "[::1]:8080")]
            {
                assert!(reach(from, to).is_some(), "{when}: {to}");
            }
        };
        // In one network more, which takes the default route and the ports along; in one with a link of another kind; and out of each again.
        for (network, joins) in [("n1", true), ("flat", true), ("flat", false), ("n1", false)] {
            let settings = EndpointSettings { gw_priority: 5, ..EndpointSettings::default() };
            let before = inner.state().places[&web.id].clone();
            let id = engine.controller.find(network).unwrap().id;
            let other = |joined: bool| {
                let mut after = before.clone();
                if joined {
                    let mut more = engine.wanted("web", network);
                    more.container = "another".into();
                    more.endpoints.insert(network.into(), settings.clone());
                    let mut endpoint = inner.plan_place(&more).unwrap().endpoints.remove(0);
                    inner.state().places.remove("another");
                    endpoint.link = format!("eth{}", before.endpoints.len());
                    after.endpoints.push(endpoint);
                } else {
                    after.endpoints.retain(|endpoint| endpoint.network != id);
                }
                after
            };
            let (outside_before, inside_before, held_before) = (host(), inside(), held());
            let count = steps::change(&inner.plan_change(&before, &mut other(joins))).len();
            assert!(count >= 7, "{count} steps");
            for fail_at in 0..count {
                let mut after = other(joins);
                let mut plan = inner.plan_change(&before, &mut after);
                let failed = sys::netns::scoped(|| {
                    let mut ground = Ground::new(inner.firewall().unwrap(), &inner.helper).unwrap();
                    ground.fail_at = Some(fail_at);
                    ground.apply(&steps::change(&plan), &mut plan)
                });
                assert_eq!(failed.unwrap().unwrap_err().message(), "injected");
                let what = format!("{network} (joins: {joins}), step {fail_at}");
                becomes(&format!("{what}, on the host"), &outside_before, host);
                becomes(&format!("{what}, in the container"), &inside_before, inside);
                assert_eq!(held(), held_before, "{what}");
                goes_on(&what);
            }
            if joins {
                engine.controller.connect(&web.id, network, settings).await.unwrap();
            } else {
                engine.controller.disconnect(&web.id, network).await.unwrap();
            }
            goes_on(&format!("{network} (joins: {joins}), at last"));
            if joins {
                assert_eq!(ask(&web.namespace, "db", A, false), (0, vec![db.ip.to_string()]));
            }
        }
        engine.stop(&web).await;
        engine.stop(&db).await;
        assert!(
            inner.helper.holdings().unwrap().is_empty(),
            "the helper forgets who has left every network of users'"
        );
    });
}

#[test]
fn a_network_that_fails_at_any_step_is_as_it_was() {
    with_engine(|engine| async move {
        let inner = &engine.controller.0;
        let without_talk =
            r#"{"Name":"n2","Internal":true,"Options":{"com.docker.network.bridge.enable_icc":"false"}}"#;
        for body in [r#"{"Name":"n1","EnableIPv6":true}"#, without_talk] {
            let id = engine.network(body).await;
            let network = engine.controller.find(&id).unwrap();
            let rules = inner.bridge_rules(&network);
            let groundwork = |fail_at| Groundwork {
                firewall: inner.firewall().unwrap(),
                network: &network,
                rules: &rules,
                instance: &inner.instance,
                forward: true,
                fail_at,
            };
            let whole = seen();
            for at in 0..STEPS.len() {
                assert_eq!(groundwork(Some(at)).unmake().unwrap_err().message(), "injected");
                becomes(&format!("{body}: removal, step {at}"), &whole, seen);
            }
            groundwork(None).unmake().unwrap();
            let bare = seen();
            assert!(!bare.iter().any(|line| line.contains(&network.link)), "{bare:#?}");
            for at in 0..STEPS.len() {
                assert_eq!(groundwork(Some(at)).make().unwrap_err().message(), "injected");
                becomes(&format!("{body}: creation, step {at}"), &bare, seen);
            }
            groundwork(None).make().unwrap();
            becomes(body, &whole, seen);
        }
    });
}

/// Asks a container's resolver: the response code, and the addresses or names it gives.
fn ask(ns: &OwnedFd, name: &str, kind: hickory_proto::rr::RecordType, tcp: bool) -> (u16, Vec<String>) {
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::Name;
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    let query = message.to_vec().unwrap();
    let answer = sys::netns::run_in(ns.as_fd(), || {
        let mut buf = vec![0; 4096];
        if tcp {
            let mut stream = TcpStream::connect("127.0.0.11:53").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
            stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            buf.truncate(u16::from_be_bytes(len).into());
            stream.read_exact(&mut buf).unwrap();
        } else {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
            socket.connect("127.0.0.11:53").unwrap();
            socket.send(&query).unwrap();
            let len = socket.recv(&mut buf).unwrap();
            buf.truncate(len);
        }
        buf
    })
    .unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    let texts = answer.answers.iter().map(|record| record.data.to_string()).collect();
    (answer.metadata.response_code.into(), texts)
}

#[test]
fn names_are_answered_also_while_the_engine_is_away() {
    use hickory_proto::rr::RecordType::{A, AAAA, PTR};
    with_engine(|mut engine| async move {
        engine.network(r#"{"Name":"n1"}"#).await;
        let mut wanted = engine.wanted("db", "n1");
        let settings =
            EndpointSettings { aliases: Some(vec!["alias".into()]), ..EndpointSettings::default() };
        wanted.endpoints.insert("n1".into(), settings);
        let db = engine.run(&wanted).await.unwrap();
        // The server behind: answers whatever it is asked with 192.0.2.7.
        let upstream = UdpSocket::bind("10.250.0.1:53").unwrap();
        std::thread::spawn(move || {
            let mut buf = [0; 512];
            while let Ok((len, peer)) = upstream.recv_from(&mut buf) {
                let mut answer = buf[..len].to_vec();
                answer[2] |= 0x80;
                answer[7] = 1;
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
                let _ = upstream.send_to(&answer, peer);
            }
        });
        let mut wanted = engine.wanted("app", "n1");
        wanted.naming.dns = vec![HOST.parse().unwrap()];
        let app = engine.run(&wanted).await.unwrap();
        let ip = db.ip.to_string();
        for name in ["db", "DB", "alias", &db.id[..12], "db.n1"] {
            assert_eq!(ask(&app.namespace, name, A, false), (0, vec![ip.clone()]), "{name}");
        }
        assert_eq!(ask(&app.namespace, "db", A, true), (0, vec![ip.clone()]));
        assert_eq!(ask(&app.namespace, "db", AAAA, false), (0, vec![]));
        let reversed: Vec<String> = ip.split('.').rev().map(str::to_owned).collect();
        let arpa = format!("{}.in-addr.arpa.", reversed.join("."));
        assert_eq!(ask(&app.namespace, &arpa, PTR, false), (0, vec!["db.n1.".to_owned()]));
        assert_eq!(ask(&app.namespace, "example.com", A, false), (0, vec!["192.0.2.7".to_owned()]));
        let hosts =
            std::fs::read_to_string(engine.dir.path().join("data/containers").join(&app.id).join("hosts"))
                .unwrap();
        assert!(hosts.ends_with(&format!("{}\t{}\n", app.ip, &app.id[..12])), "{hosts}");

        // The engine dies and comes back; nothing is asked of it in between, and nothing changes.
        engine.controller = {
            let gone = engine.controller.clone();
            drop(gone);
            engine.controller.clone()
        };
        engine.restart().await;
        assert_eq!(ask(&app.namespace, "db", A, false), (0, vec![ip.clone()]));
        // A container that comes now gets another address than those that stayed.
        let late = engine.run(&engine.wanted("late", "n1")).await.unwrap();
        assert!(late.ip != db.ip && late.ip != app.ip);
        assert_eq!(ask(&app.namespace, "late", A, false), (0, vec![late.ip.to_string()]));
        engine.stop(&db).await;
        assert_eq!(ask(&app.namespace, "db", A, false).1, ["192.0.2.7"]);
        // Connected and disconnected while it runs.
        engine.network(r#"{"Name":"n2"}"#).await;
        engine.controller.connect(&app.id, "n2", EndpointSettings::default()).await.unwrap();
        let two = engine.run(&engine.wanted("two", "n2")).await.unwrap();
        serve(&two.namespace, 80);
        assert_eq!(ask(&app.namespace, "two", A, false), (0, vec![two.ip.to_string()]));
        assert!(reach(&From::Inside(&app.namespace), &format!("{}:80", two.ip)).is_some());
        assert_eq!(reach(&From::Inside(&late.namespace), &format!("{}:80", two.ip)), None);
        let err = engine.controller.connect(&app.id, "n2", EndpointSettings::default()).await.unwrap_err();
        assert_eq!(err.message(), "endpoint with name app already exists in network n2");
        engine.controller.disconnect(&app.id, "n2").await.unwrap();
        assert_eq!(reach(&From::Inside(&app.namespace), &format!("{}:80", two.ip)), None);
        let err = engine.controller.disconnect(&app.id, "n2").await.unwrap_err();
        assert_eq!(err.message(), format!("container {} is not connected to network n2", app.id));
        for container in [&app, &late, &two] {
            engine.stop(container).await;
        }
    });
}

#[test]
fn what_a_crash_left_is_removed_and_what_runs_is_kept() {
    with_engine(|mut engine| async move {
        let mut wanted = engine.wanted("stays", "bridge");
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        let stays = engine.run(&wanted).await.unwrap();
        serve(&stays.namespace, 80);
        // A namespace and a link without a record, as if the engine had died before its record was... and one whose namespace is gone.
        let lost = engine.run(&engine.wanted("lost", "bridge")).await.unwrap();
        let orphan = engine.run(&engine.wanted("orphan", "bridge")).await.unwrap();
        engine.parts.store.delete(crate::store::Table::Endpoints, orphan.id.clone()).await.unwrap();
        sys::netns::unpin(&lost.path).unwrap();
        engine.restart().await;
        assert!(engine.controller.has_place(&stays.id));
        assert!(!engine.controller.has_place(&lost.id));
        assert!(!orphan.path.exists());
        drop((lost, orphan));
        let ports = |engine: &Engine| {
            engine.links().iter().filter(|n| n.starts_with("veth") && *n != "vethlan").count()
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while ports(&engine) != 1 {
            assert!(Instant::now() < deadline, "{:?}", engine.links());
            std::thread::yield_now();
        }
        assert!(reach(&From::Inside(&engine.neighbour), "10.250.0.1:8080").is_some());
        let again = engine.run(&wanted).await;
        assert!(again.is_ok(), "its own port is not in its way");
        engine.stop(&again.unwrap()).await;
    });
}

#[test]
fn what_a_crash_at_any_step_left_is_removed() {
    with_engine(|mut engine| async move {
        let network = engine.network(r#"{"Name":"n1","EnableIPv6":true}"#).await;
        let before = engine.links();
        let mut wanted = engine.wanted("c", "bridge");
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        let clean = |engine: &Engine, step: &str| {
            let deadline = Instant::now() + Duration::from_secs(5);
            while engine.links() != before {
                assert!(Instant::now() < deadline, "{step} left {:?}", engine.links());
                std::thread::yield_now();
            }
            let inner = &engine.controller.0;
            assert_eq!(std::fs::read_dir(&inner.namespaces).map_or(0, Iterator::count), 0, "{step}");
            assert!(inner.helper.holdings().unwrap().is_empty(), "{step}");
            let rules = std::process::Command::new("nft").args(["list", "ruleset"]).output();
            let rules = String::from_utf8(rules.map(|output| output.stdout).unwrap_or_default()).unwrap();
            assert!(!rules.contains("8080"), "{step} left a rule:\n{rules}");
            let state = inner.state();
            assert_eq!(state.used(&state.networks[&network]).len(), 2, "{step}: only the gateways are taken");
        };
        // A start: what was done up to a step stays done, and the engine begins anew.
        for done in 0..=6 {
            let inner = engine.controller.0.clone();
            let place = inner.plan_place(&wanted).unwrap();
            inner.store.put(crate::store::Table::Endpoints, place.container.clone(), &place).await.unwrap();
            inner.helper.ready().unwrap();
            let mut plan = inner.plan_of(&place);
            plan.resolver = true;
            let steps = steps::start(&plan);
            sys::netns::scoped(|| {
                let mut ground = Ground::new(inner.firewall().unwrap(), &inner.helper).unwrap();
                ground.apply(&steps[..done.min(steps.len())], &mut plan).unwrap();
            })
            .unwrap();
            drop(inner);
            engine.restart().await;
            // What the container registry does for one that does not run.
            engine.controller.release(&wanted.container).await.unwrap();
            clean(&engine, &format!("start, {done} steps"));
        }
        // A connect to one more network, cut short in the same way.
        for done in 0..=8 {
            let c = engine.run(&wanted).await.unwrap();
            let inner = engine.controller.0.clone();
            let mut after = inner.state().places[&c.id].clone();
            let mut more = engine.wanted("c", "n1");
            more.container = "another".into();
            let mut endpoint = inner.plan_place(&more).unwrap().endpoints.remove(0);
            inner.state().places.remove("another");
            endpoint.link = "eth1".into();
            after.endpoints.push(endpoint);
            let before = inner.state().places[&c.id].clone();
            let mut plan = inner.plan_change(&before, &mut after);
            inner.store.put(crate::store::Table::Endpoints, c.id.clone(), &after).await.unwrap();
            let steps = steps::change(&plan);
            sys::netns::scoped(|| {
                let mut ground = Ground::new(inner.firewall().unwrap(), &inner.helper).unwrap();
                ground.apply(&steps[..done.min(steps.len())], &mut plan).unwrap();
            })
            .unwrap();
            drop((inner, c));
            engine.restart().await;
            engine.controller.release(&wanted.container).await.unwrap();
            clean(&engine, &format!("connect, {done} steps"));
        }
    });
}

#[test]
fn two_engines_choose_pools_apart_and_say_who_has_them() {
    with_engine(|engine| async move {
        // Another engine on the same host, with its own records.
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::config::Config::default();
        config.data_root = dir.path().join("data");
        config.exec_root = dir.path().join("exec");
        std::fs::create_dir_all(&config.data_root).unwrap();
        std::fs::create_dir_all(&config.exec_root).unwrap();
        let parts = Parts {
            store: Store::open(&config.store_path()).unwrap(),
            runtime: Runtime::new(Path::new("/nonexistent"), "moby").unwrap(),
            events: Events::open(&config.data_root.join("events")).unwrap(),
            config: config.into(),
        };
        let bridge = |name: &str| Options { bridge: name.into(), ..options() };
        let other = Controller::with(&parts, bridge("other0"), Launch::Thread).unwrap();
        other.bring_up().await.unwrap();
        let create = |name: &str| {
            docker_api::json::from_slice::<Create>(format!(r#"{{"Name":"{name}"}}"#).as_bytes()).unwrap()
        };
        let mut pools = Vec::new();
        let mut refusal = None;
        'all: for nth in 0..40 {
            for controller in [&engine.controller, &other] {
                match controller.create(create(&format!("n{nth}"))).await {
                    Ok(id) => {
                        let state = controller.0.state();
                        pools.push(state.networks[&id].pools[0].subnet);
                    }
                    Err(err) => {
                        refusal = Some(err);
                        break 'all;
                    }
                }
            }
        }
        for (at, pool) in pools.iter().enumerate() {
            assert!(!pools[..at].iter().any(|earlier| earlier.overlaps(pool)), "{pool} was given twice");
        }
        let text = refusal.unwrap().message().to_owned();
        assert!(
            text.starts_with("all predefined address pools have been fully subnetted: held by "),
            "{text}"
        );
        assert!(text.contains("n0 (172.") && text.contains("links and routes of the host ("), "{text}");
        other.leave().await.unwrap();
    });
}

#[test]
fn rules_come_back_and_a_forward_chain_that_drops_is_passed() {
    with_engine(|engine| async move {
        let mut wanted = engine.wanted("web", "bridge");
        wanted.bindings.insert("80/tcp".parse().unwrap(), binding("", "8080"));
        let web = engine.run(&wanted).await.unwrap();
        serve(&web.namespace, 80);
        let lan = From::Inside(&engine.neighbour);
        let run = |args: &str| {
            let words: Vec<&str> = args.split(' ').collect();
            std::process::Command::new(words[0])
                .args(&words[1..])
                .status()
                .is_ok_and(|status| status.success())
        };
        assert!(reach(&lan, "10.250.0.1:8080").is_some());
        let back_within = |what: &str| {
            let start = Instant::now();
            while reach(&lan, "10.250.0.1:8080").as_deref() != Some("10.250.0.2") {
                assert!(start.elapsed() < Duration::from_secs(1), "{what}");
            }
        };
        if run("nft flush ruleset") {
            back_within("flush ruleset");
        }
        if run("iptables -P FORWARD DROP") {
            back_within("a policy that drops");
            assert!(run("iptables -F FORWARD"));
            back_within("a flush under a policy that drops");
            assert!(run("iptables -N DOCKER-USER") && run("iptables -I DOCKER-USER -j DROP"));
            // A rule of the operator's own chain has the last word.
            let start = Instant::now();
            while reach(&lan, "10.250.0.1:8080").is_some() {
                assert!(start.elapsed() < Duration::from_secs(5), "DOCKER-USER is not asked");
            }
            assert!(run("iptables -F DOCKER-USER"));
            back_within("an empty DOCKER-USER");
            // As firewall scripts begin: nothing of ours holds on to the operator's chains.
            assert!(run("iptables -P FORWARD ACCEPT") && run("iptables -F") && run("iptables -X"));
            assert!(run("nft delete table ip filter"));
            // Without a FORWARD, which iptables makes when it first needs it.
            assert!(run("iptables -N DOCKER-USER") && run("iptables -A DOCKER-USER -s 10.250.0.2 -j DROP"));
            let start = Instant::now();
            while reach(&lan, "10.250.0.1:8080").is_some() {
                assert!(start.elapsed() < Duration::from_secs(5), "DOCKER-USER without FORWARD is not asked");
            }
            assert!(run("iptables -F") && run("iptables -X"));
            back_within("no DOCKER-USER any more");
            let rules = std::process::Command::new("iptables-save").output().unwrap().stdout;
            assert!(!String::from_utf8(rules).unwrap().contains("DOCKER-USER"));
        }
        engine.stop(&web).await;
    });
}

#[test]
fn fifty_at_once_and_how_long_it_takes() {
    with_engine(|engine| async move {
        engine.network(r#"{"Name":"n1"}"#).await;
        let starts = (0..50).map(|n| {
            let mut wanted = engine.wanted(&format!("c{n}"), if n % 2 == 0 { "n1" } else { "bridge" });
            wanted.exposed.push("80/tcp".parse().unwrap());
            wanted.publish_all = true;
            engine.controller.allocate(wanted)
        });
        let start = Instant::now();
        let results = futures_util::future::join_all(starts).await;
        let parallel = start.elapsed();
        assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find_map(|r| r.as_ref().err()));
        let state: Vec<IpAddr> = {
            let state = engine.controller.0.state();
            state
                .places
                .values()
                .flat_map(|p| p.endpoints.iter().filter_map(|e| e.v4.map(|p| p.ip)))
                .collect()
        };
        let distinct: std::collections::HashSet<_> = state.iter().collect();
        assert_eq!((state.len(), distinct.len()), (50, 50));
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for n in 0..20 {
            let mode = if n % 2 == 0 { "n1" } else { "bridge" };
            let wanted = engine.wanted(&format!("solo{n}"), mode);
            let start = Instant::now();
            engine.controller.allocate(wanted.clone()).await.unwrap();
            up.push(start.elapsed());
            let start = Instant::now();
            engine.controller.release(&wanted.container).await.unwrap();
            down.push(start.elapsed());
        }
        for n in 0..50 {
            engine.controller.release(&engine.wanted(&format!("c{n}"), "").container).await.unwrap();
        }
        up.sort();
        down.sort();
        eprintln!(
            "50 at once {parallel:?}; one: up {:?} (max {:?}), down {:?} (max {:?})",
            up[10], up[19], down[10], down[19]
        );
        let place = |_: Error| ();
        let _ = place;
    });
}
