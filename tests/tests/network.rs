//! Networks with real traffic: published ports, names, what is kept apart, and what goes on while the daemons are dead.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use e2e_tests::host::{cmdline, pids};
use e2e_tests::lan::{Lan, NEIGHBOUR, links, of, resolve, tcp, udp, way_out};
use e2e_tests::{Engine, PATIENCE, wait_for};

fn engine() -> (Engine, Lan) {
    let engine = Engine::start();
    engine.load_busybox();
    let lan = Lan::beside(&engine);
    (engine, lan)
}

/// Runs a container that waits.
fn run(engine: &Engine, name: &str, options: &[&str]) {
    let words = [&["run", "-d", "--name", name], options, &["busybox", "sleep", "1000"]].concat();
    engine.docker(&words).ok();
}

fn address(engine: &Engine, container: &str, network: &str) -> String {
    engine.inspect(container, &format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
}

/// A command in the engine's host.
fn on_host(engine: &Engine, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = engine.netns().command(words.next().expect("a program"));
    let output = command.args(words).stdin(Stdio::null()).output().expect("it runs");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// None of these is answered, by TCP: who asks, and what. Asked side by side, as each refusal takes its time.
#[track_caller]
fn not_reached(when: &str, attempts: &[(&Path, &str)]) {
    let reached: Vec<_> = std::thread::scope(|scope| {
        let ask = |(from, to): &(&Path, &str)| tcp(from, to).map(|_| format!("{to} from {}", from.display()));
        let asked: Vec<_> = attempts.iter().map(|attempt| scope.spawn(move || ask(attempt))).collect();
        asked.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(reached.is_empty(), "{when}: {reached:?}");
}

/// Gives a table to `iptables-restore` or its like, in the engine's host.
fn restore(engine: &Engine, program: &str, table: &str) {
    let mut command = engine.netns().command(program);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(table.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{program}:\n{table}");
}

#[test]
fn ports_and_names_work_without_the_daemons() {
    let (mut engine, mut lan) = engine();
    engine.docker(&["network", "create", "n1"]).ok();
    let ports = [
        "--network",
        "n1",
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
        "-p",
        "127.0.0.1:8081:80",
        "-p",
        "9000-9019:9000-9019",
    ];
    run(&engine, "web", &ports);
    run(&engine, "beside", &["--network", "n1", "--network-alias", "other"]);
    run(&engine, "apart", &[]);
    let (web, beside, apart) = (of(&engine, "web"), of(&engine, "beside"), of(&engine, "apart"));
    let (ip, other) = (address(&engine, "web", "n1"), address(&engine, "beside", "n1"));
    for port in [80, 9000, 9019] {
        lan.serve(&web, port);
    }
    let (host, neighbour) = (lan.host(), lan.neighbour());
    let all = |when: &str| {
        let reached = |from: &Path, to: &str| assert!(tcp(from, to).is_some(), "{when}: {to} from {from:?}");
        assert_eq!(tcp(&neighbour, "10.250.0.1:8080").as_deref(), Some(NEIGHBOUR[0]), "{when}");
        assert_eq!(udp(&neighbour, "10.250.0.1:8080").as_deref(), Some(NEIGHBOUR[0]), "{when}");
        for to in ["10.250.0.1:9000", "10.250.0.1:9019", "[fd00:250::1]:8080"] {
            reached(&neighbour, to);
        }
        for to in ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "10.250.0.1:8080", "127.0.0.1:9019"] {
            reached(&host, to);
        }
        assert!(udp(&host, "127.0.0.1:8080").is_some() && udp(&host, "[::1]:8080").is_some(), "{when}");
        // By way of the host: itself, its neighbour on the bridge, another network.
        for from in [&web, &beside, &apart] {
            reached(from, "10.250.0.1:8080");
        }
        // Bound to loopback, addressed directly, from another network.
        let direct = format!("{ip}:80");
        not_reached(when, &[(&neighbour, "10.250.0.1:8081"), (&neighbour, &direct), (&apart, &direct)]);
        assert_eq!(resolve(&beside, "web"), Some(vec![ip.clone()]), "{when}");
        assert_eq!(resolve(&web, "other"), Some(vec![other.clone()]), "{when}");
    };
    all("at first");
    engine.kill_containerd();
    engine.kill_dockerd();
    all("without the daemons");
    engine.spawn();
    all("after their return");
    // What a container held is free at once, also the UDP port somebody just talked to.
    engine.docker(&["rm", "-f", "web"]).ok();
    assert_eq!(tcp(&neighbour, "10.250.0.1:8080"), None, "the container is gone");
    run(&engine, "next", &ports);
    let next = of(&engine, "next");
    lan.serve(&next, 80);
    assert!(tcp(&neighbour, "10.250.0.1:8080").is_some() && udp(&host, "[::1]:8080").is_some());
    // One helper carries for all: a port is no process.
    let here = |pid: &i32| {
        let of =
            |path: &Path| std::fs::metadata(path).ok().map(|file| std::os::unix::fs::MetadataExt::ino(&file));
        of(Path::new(&format!("/proc/{pid}/ns/net"))) == of(&host)
    };
    let programs: Vec<String> = pids().into_iter().filter(here).map(cmdline).collect();
    assert_eq!(programs.iter().filter(|line| line.ends_with("net-helper")).count(), 1, "{programs:?}");
    assert!(!programs.iter().any(|line| line.contains("proxy")), "{programs:?}");
}

#[test]
fn a_port_follows_its_container_to_another_network() {
    let (engine, mut lan) = engine();
    for network in ["n1", "n2"] {
        engine.docker(&["network", "create", network]).ok();
    }
    run(&engine, "web", &["--network", "n1", "-p", "8080:80"]);
    run(&engine, "far", &["--network", "n2"]);
    let (web, far) = (of(&engine, "web"), address(&engine, "far", "n2"));
    lan.serve(&web, 80);
    lan.serve(&of(&engine, "far"), 80);
    let (host, neighbour) = (lan.host(), lan.neighbour());
    let far_is = |joined: bool, when: &str| {
        assert_eq!(resolve(&web, "far"), joined.then(|| vec![far.clone()]), "{when}");
        assert_eq!(tcp(&web, &format!("{far}:80")).is_some(), joined, "{when}");
    };
    let reached = |when: &str| {
        for (from, to) in [(&neighbour, "10.250.0.1:8080"), (&host, "127.0.0.1:8080"), (&host, "[::1]:8080")]
        {
            assert!(tcp(from, to).is_some(), "{when}: {to}");
        }
    };
    reached("in the first network");
    far_is(false, "in the first network");
    assert_eq!(way_out(&web).as_deref(), Some("eth0"));
    engine.docker(&["network", "connect", "--gw-priority", "5", "n2", "web"]).ok();
    reached("with its gateway in the second");
    far_is(true, "with its gateway in the second");
    assert_eq!(way_out(&web).as_deref(), Some("eth1"));
    engine.docker(&["network", "disconnect", "n1", "web"]).ok();
    reached("in the second only");
    engine.docker(&["network", "disconnect", "n2", "web"]).ok();
    assert_eq!(tcp(&neighbour, "10.250.0.1:8080"), None, "in none");
    far_is(false, "in none");
    assert_eq!((links(&web), way_out(&web)), (vec!["lo".to_owned()], None));
    engine.docker(&["network", "connect", "n1", "web"]).ok();
    reached("back in the first");
    engine.docker(&["network", "connect", "--gw-priority", "-1", "n2", "web"]).ok();
    reached("with its gateway still in the first");
    assert_eq!(way_out(&web).as_deref(), Some("eth0"));
    engine.docker(&["network", "disconnect", "n2", "web"]).ok();
    engine.docker(&["rm", "-f", "web"]).ok();
    // Nothing of all that is in the next one's way.
    run(&engine, "next", &["--network", "n2", "-p", "8080:80"]);
    lan.serve(&of(&engine, "next"), 80);
    reached("another container");
    for network in ["n1", "n2"] {
        engine.docker(&["network", "disconnect", "-f", network, "next"]);
    }
    engine.docker(&["rm", "-f", "next"]).ok();
    let rules = on_host(&engine, "nft list ruleset");
    assert!(!rules.contains("8080"), "a rule stayed:\n{rules}");
}

#[test]
fn published_ports_obey_the_hosts_firewall_if_told_to() {
    let engine = Engine::start_with(&["--host-firewall"]);
    engine.load_busybox();
    let mut lan = Lan::beside(&engine);
    run(&engine, "web", &["-p", "8080:80"]);
    lan.serve(&of(&engine, "web"), 80);
    let (host, neighbour) = (lan.host(), lan.neighbour());
    assert!(tcp(&neighbour, "10.250.0.1:8080").is_some() && udp(&neighbour, "10.250.0.1:8080").is_none());
    let said = engine.docker_rs(&["explain", "port", "8080"]);
    assert!(said.ok().contains("in container web") && said.ok().contains("--host-firewall"), "{said:?}");
    // As for any service of the host's: what its input chain does not accept stays outside.
    on_host(&engine, "iptables -A INPUT -p tcp --dport 8080 -j DROP -i lan0");
    assert_eq!(tcp(&neighbour, "10.250.0.1:8080"), None);
    assert!(tcp(&host, "127.0.0.1:8080").is_some(), "the host itself is let in");
    on_host(&engine, "iptables -F INPUT");
    assert!(tcp(&neighbour, "10.250.0.1:8080").is_some());
    assert!(
        engine.docker_rs(&["explain", "port", "81/udp"]).ok().contains("published by no running container")
    );
}

#[test]
fn rules_come_back_and_docker_user_is_asked_first() {
    let (engine, mut lan) = engine();
    engine.docker(&["network", "create", "--ipv6", "n1"]).ok();
    run(&engine, "web", &["--network", "n1", "-p", "8080:80"]);
    lan.serve(&of(&engine, "web"), 80);
    let (host, neighbour) = (lan.host(), lan.neighbour());
    let both =
        [("iptables", "10.250.0.1:8080", NEIGHBOUR[0]), ("ip6tables", "[fd00:250::1]:8080", NEIGHBOUR[1])];
    // While the rules are away the helper carries visitors: then the container sees the host's address.
    let by_the_rules = |when: &str| {
        for (_, to, own) in both {
            wait_for(&format!("{when}: {to} by the rules"), || tcp(&neighbour, to).as_deref() == Some(own));
        }
    };
    by_the_rules("at first");
    on_host(&engine, "nft flush ruleset");
    by_the_rules("after a flush of everything");
    for (iptables, to, own) in both {
        on_host(&engine, &format!("{iptables} -P FORWARD DROP"));
        by_the_rules("with a policy that drops");
        on_host(&engine, &format!("{iptables} -F"));
        by_the_rules("after a flush under it");
        on_host(&engine, &format!("{iptables} -P FORWARD ACCEPT"));
        on_host(
            &engine,
            &format!("nft delete table {} filter", if to.starts_with('[') { "ip6" } else { "ip" }),
        );

        // As on Docker Engine; without a FORWARD chain, which iptables makes when it first needs one.
        on_host(&engine, &format!("{iptables} -N DOCKER-USER"));
        on_host(&engine, &format!("{iptables} -I DOCKER-USER -s {own} -j DROP"));
        wait_for("DOCKER-USER to be asked", || tcp(&neighbour, to).is_none());
        assert!(tcp(&host, to).is_some() && tcp(&host, "127.0.0.1:8080").is_some(), "the host is not meant");
        let said = engine.docker_rs(&["explain", "port", "8080"]);
        assert!(said.ok().contains("DOCKER-USER"), "{said:?}");
        assert!(on_host(&engine, &format!("{iptables} -S FORWARD")).contains("-j DOCKER-USER"));
        on_host(&engine, &format!("{iptables} -D DOCKER-USER 1"));
        by_the_rules("without the rule");
        // As firewall scripts begin: nothing of ours holds on to the chain.
        on_host(&engine, &format!("{iptables} -I DOCKER-USER -s {own} -j DROP"));
        wait_for("DOCKER-USER to be asked again", || tcp(&neighbour, to).is_none());
        on_host(&engine, &format!("{iptables} -F"));
        on_host(&engine, &format!("{iptables} -X"));
        by_the_rules("without the chain");

        // A FORWARD that drops and asks late: not after what lets our bridges pass.
        let table = format!(
            "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
             -A DOCKER-USER -s {own} -j DROP\nCOMMIT\n"
        );
        restore(&engine, &format!("{iptables}-restore"), &table);
        wait_for("the last of the rules to be asked", || tcp(&neighbour, to).is_none());
        on_host(&engine, &format!("{iptables} -D DOCKER-USER 1"));
        by_the_rules("without its rule");
    }
}

/// A firewall as ufw makes it: chains of its own behind INPUT and FORWARD, which drop by default.
const DROPPING: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:wall-input - [0:0]
:wall-forward - [0:0]
:wall-reject - [0:0]
-A INPUT -j wall-input
-A INPUT -j wall-reject
-A FORWARD -j wall-forward
-A FORWARD -j wall-reject
-A wall-input -i lo -j ACCEPT
-A wall-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A wall-input -m conntrack --ctstate INVALID -j DROP
-A wall-input -p PING -j ACCEPT
-A wall-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A wall-reject -p udp --dport 9 -j REJECT
COMMIT
";

#[test]
fn a_firewall_that_drops_lets_published_ports_through() {
    let (engine, mut lan) = engine();
    engine.docker(&["network", "create", "--ipv6", "n1"]).ok();
    run(&engine, "web", &["--network", "n1", "-p", "8080:80"]);
    run(&engine, "beside", &["--network", "n1"]);
    let (web, beside) = (of(&engine, "web"), of(&engine, "beside"));
    let (host, neighbour) = (lan.host(), lan.neighbour());
    let ip = address(&engine, "web", "n1");
    lan.serve(&web, 80);
    lan.serve(&host, 7070);
    lan.serve(&neighbour, 7000);
    for (program, ping) in [("iptables-restore", "icmp"), ("ip6tables-restore", "ipv6-icmp")] {
        // The second time is a reload: all that is not in the file goes.
        for time in ["first", "second"] {
            restore(&engine, program, &DROPPING.replace("PING", ping));
            wait_for(&format!("{program}, {time} time: to be let through"), || {
                tcp(&neighbour, "10.250.0.1:8080").as_deref() == Some(NEIGHBOUR[0])
                    && tcp(&neighbour, "[fd00:250::1]:8080").as_deref() == Some(NEIGHBOUR[1])
            });
        }
    }
    for to in ["127.0.0.1:8080", "[::1]:8080", "10.250.0.1:8080"] {
        assert!(tcp(&host, to).is_some(), "{to} from the host");
    }
    for from in [&web, &beside] {
        assert!(tcp(from, "10.250.0.1:8080").is_some(), "by way of the host");
        assert!(tcp(from, "10.250.0.2:7000").is_some(), "out");
        assert!(tcp(from, "[fd00:250::2]:7000").is_some(), "out by IPv6");
    }
    assert!(udp(&beside, &format!("{ip}:80")).is_some(), "to a neighbour on the bridge");
    not_reached(
        "behind the wall",
        &[
            (&web, "10.250.0.1:7070"),
            (&beside, "10.250.0.1:7070"),
            (&neighbour, "10.250.0.1:7070"),
            (&neighbour, &format!("{ip}:80")),
        ],
    );
}

#[test]
fn networks_keep_apart_what_they_should() {
    let (engine, mut lan) = engine();
    engine.docker(&["network", "create", "--internal", "shut"]).ok();
    engine.docker(&["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "quiet"]).ok();
    for (name, options) in [
        ("s1", &["--network", "shut"][..]),
        ("s2", &["--network", "shut"]),
        ("q1", &["--network", "quiet"]),
        ("q2", &["--network", "quiet", "-p", "8080:80"]),
        ("open", &[]),
    ] {
        run(&engine, name, options);
    }
    let [s1, s2, q1, q2, open] = ["s1", "s2", "q1", "q2", "open"].map(|name| of(&engine, name));
    let neighbour = lan.neighbour();
    for at in [&s2, &q2, &open] {
        lan.serve(at, 80);
    }
    lan.serve(&neighbour, 7000);
    let at = |container: &str, network: &str| format!("{}:80", address(&engine, container, network));

    // An internal network: its members, their names, and nothing else.
    let s2_at = at("s2", "shut");
    assert!(tcp(&s1, &s2_at).is_some() && udp(&s1, &s2_at).is_some());
    assert_eq!(resolve(&s1, "s2").map(|found| format!("{}:80", found[0])), Some(s2_at.clone()));
    assert_eq!(way_out(&s1), None);
    let open_at = at("open", "bridge");
    not_reached("without a route", &[(&s1, "10.250.0.2:7000"), (&s1, &open_at)]);
    // Also by a route of its own making: the rules decide, not the missing route.
    let gateway = engine.inspect("shut", "{{(index .IPAM.Config 0).Gateway}}");
    let add = engine
        .netns()
        .command("nsenter")
        .args(["--net=/proc/self/ns/net"])
        .arg(format!("--net={}", s1.display()))
        .args(["ip", "route", "add", "default", "via", &gateway])
        .output()
        .expect("nsenter runs");
    assert!(add.status.success(), "{add:?}");
    // Without talk among containers: out, and to what is published, but not to each other.
    let q2_at = at("q2", "quiet");
    not_reached(
        "by the rules",
        &[
            (&s1, "10.250.0.2:7000"),
            (&s1, &open_at),
            (&open, &s2_at),
            (&neighbour, &s2_at),
            (&q1, &q2_at),
            (&q2, &s2_at),
        ],
    );
    assert_eq!(udp(&q1, &q2_at), None);
    assert!(tcp(&q1, "10.250.0.2:7000").is_some());
    for from in [&q1, &q2, &open] {
        assert!(tcp(from, "10.250.0.1:8080").is_some(), "published");
    }
    engine.docker(&["network", "connect", "shut", "q1"]).ok();
    assert!(tcp(&q1, &s2_at).is_some() && tcp(&q1, "10.250.0.2:7000").is_some(), "in both");
    assert_eq!(way_out(&q1).as_deref(), Some("eth0"), "an internal network is no way out");
}

#[test]
fn ipv6_alone_and_beside_ipv4() {
    let (engine, mut lan) = engine();
    engine.docker(&["network", "create", "--ipv6", "dual"]).ok();
    engine.docker(&["network", "create", "--ipv6", "--ipv4=false", "six"]).ok();
    run(&engine, "d1", &["--network", "dual", "-p", "8080:80"]);
    run(&engine, "d2", &["--network", "dual"]);
    run(&engine, "s1", &["--network", "six", "-p", "8081:80"]);
    let [d1, d2, s1] = ["d1", "d2", "s1"].map(|name| of(&engine, name));
    let (host, neighbour) = (lan.host(), lan.neighbour());
    lan.serve(&d1, 80);
    lan.serve(&s1, 80);
    lan.serve(&neighbour, 7000);
    let v6 = |name: &str, network: &str| {
        engine.inspect(
            name,
            &format!("{{{{(index .NetworkSettings.Networks \"{network}\").GlobalIPv6Address}}}}"),
        )
    };
    for (to, seen) in [
        ("10.250.0.1:8080", NEIGHBOUR[0]),
        ("[fd00:250::1]:8080", NEIGHBOUR[1]),
        ("[fd00:250::1]:8081", NEIGHBOUR[1]),
    ] {
        assert_eq!(tcp(&neighbour, to).as_deref(), Some(seen), "{to}");
    }
    for to in ["[::1]:8080", "[::1]:8081", "127.0.0.1:8080", "[fd00:250::1]:8081"] {
        assert!(tcp(&host, to).is_some(), "{to} from the host");
    }
    for (from, to) in [
        (&d1, "[fd00:250::1]:8080"),
        (&d2, "[fd00:250::1]:8080"),
        (&s1, "[fd00:250::1]:8081"),
        (&s1, "[fd00:250::1]:8080"),
        (&d2, &*format!("[{}]:80", v6("d1", "dual"))),
    ] {
        assert!(tcp(from, to).is_some(), "{to} from a container");
    }
    for from in [&d1, &s1] {
        assert_eq!(
            tcp(from, "[fd00:250::2]:7000").as_deref(),
            Some("fd00:250::1"),
            "out with the host's address"
        );
    }
    assert_eq!(address(&engine, "s1", "six"), "", "no IPv4 address");
    let s1_at = format!("[{}]:80", v6("s1", "six"));
    not_reached("apart", &[(&s1, "10.250.0.2:7000"), (&neighbour, &s1_at), (&d2, &s1_at)]);
}

#[test]
fn used_up_addresses_and_pools_say_who_has_them() {
    let engine = Engine::start_with(&["--default-address-pool", "base=10.99.0.0/24,size=26"]);
    engine.load_busybox();
    engine.docker(&["network", "create", "--subnet", "10.98.0.0/30", "tiny"]).ok();
    run(&engine, "first", &["--network", "tiny"]);
    let second = ["run", "-d", "--name", "second", "--network", "tiny", "busybox", "sleep", "1000"];
    let refused = engine.docker(&second);
    refused.fails(125, "no available IPv4 addresses on this network's address pools: tiny (");
    refused.fails(125, "); 1 containers hold addresses of it");
    engine.docker(&["rm", "second"]).ok();
    engine.docker(&["rm", "-f", "first"]).ok();
    engine.docker(&second).ok();
    assert_eq!(address(&engine, "second", "tiny"), "10.98.0.2", "given back and given again");

    // The default bridge has one of the pool's four.
    for name in ["n1", "n2", "n3"] {
        engine.docker(&["network", "create", name]).ok();
    }
    let refused = engine.docker(&["network", "create", "n4"]);
    refused.fails(1, "all predefined address pools have been fully subnetted: held by ");
    for name in ["bridge (10.99.0.", "n1 (10.99.0.", "n3 (10.99.0."] {
        refused.fails(1, name);
    }
    engine.docker(&["network", "rm", "n2"]).ok();
    engine.docker(&["network", "create", "n4"]).ok();
}

/// What there is of containers on the engine's host: links, namespaces, rules, programs, and what containerd knows.
fn traces(engine: &Engine, host: &Path) -> Vec<String> {
    let mut found: Vec<String> = links(host).into_iter().filter(|link| link.starts_with("veth")).collect();
    for dir in ["exec/netns", "data/containers"] {
        for entry in std::fs::read_dir(engine.path(dir)).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
        }
    }
    let rules = on_host(engine, "nft list ruleset");
    found.extend(rules.lines().filter(|line| line.contains("8080")).map(str::to_owned));
    for pid in pids() {
        let line = cmdline(pid);
        let shim = line.contains("containerd-shim") && line.contains(engine.netns().name());
        if shim || contained(engine, pid) {
            found.push(format!("process {pid} {line}"));
        }
    }
    found
}

/// Whether a process runs in a container of the engine's.
fn contained(engine: &Engine, pid: i32) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.contains(&format!("{}/", engine.cgroup_parent()))
}

/// Waits for a moment in what a client has asked for, or for the client's end if the moment is past before it is seen.
fn until(client: &mut Child, mut moment: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !moment() && client.try_wait().expect("a client").is_none() {
        assert!(Instant::now() < deadline, "neither the moment nor the end comes");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Asks for something, kills dockerd-rs at a moment of it, and starts it again. What the client complained of.
fn cut_short(engine: &mut Engine, ask: &[&str], mut moment: impl FnMut(&Engine) -> bool) -> String {
    let mut command = engine.docker_command(ask);
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("docker runs");
    until(&mut client, || moment(engine));
    engine.kill_dockerd();
    let said = client.wait_with_output().expect("the client ends").stderr;
    engine.spawn();
    String::from_utf8_lossy(&said).into_owned()
}

fn any_file(engine: &Engine, dir: &str) -> bool {
    std::fs::read_dir(engine.path(dir)).is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn a_start_that_is_cut_short_leaves_nothing() {
    let (mut engine, lan) = engine();
    let host = lan.host();
    engine.docker(&["network", "create", "n1"]).ok();
    let moments: [(&str, &dyn Fn(&Engine) -> bool); 7] = [
        ("at once", &|_| true),
        ("on record", &|engine| any_file(engine, "data/containers")),
        ("a namespace", &|engine| any_file(engine, "exec/netns")),
        ("a link", &|_| links(&host).iter().any(|link| link.starts_with("veth"))),
        ("a rule", &|engine| on_host(engine, "nft list ruleset").contains("8080")),
        ("a shim", &|engine| {
            let name = engine.netns().name();
            pids()
                .into_iter()
                .map(cmdline)
                .any(|line| line.contains("containerd-shim") && line.contains(name))
        }),
        ("a process", &|engine| pids().into_iter().any(|pid| contained(engine, pid))),
    ];
    let ask = ["run", "-d", "--name", "cut", "--network", "n1", "-p", "8080:80", "busybox", "sleep", "1000"];
    for (moment, seen) in moments {
        let said = cut_short(&mut engine, &ask, seen);
        // What was cut short before left its name and its port.
        assert!(!said.contains("already"), "{moment}: {said}");
        // Made or not, and running or not; but whole.
        let state = engine.docker(&["inspect", "--format", "{{.State.Status}}", "cut"]).stdout;
        match state.trim() {
            "running" => drop(engine.docker(&["exec", "cut", "true"]).ok()),
            _ => {
                let mut left = Vec::new();
                wait_for(&format!("{moment}: nothing of it to be left"), || {
                    left = traces(&engine, &host);
                    left.retain(|line| !line.contains("data/containers"));
                    left.is_empty()
                });
            }
        }
        if !state.trim().is_empty() {
            engine.docker(&["rm", "-f", "cut"]).ok();
        }
        wait_for(&format!("{moment}: nothing at all to be left"), || traces(&engine, &host).is_empty());
        assert_eq!(engine.ctr(&["containers", "ls", "-q"]).ok(), "", "{moment}");
    }
    engine.docker(&ask).ok();
    engine.docker(&["rm", "-f", "cut"]).ok();
    wait_for("the last to be gone", || traces(&engine, &host).is_empty());
}

#[test]
fn a_change_of_networks_that_is_cut_short_is_whole_or_undone() {
    let (mut engine, mut lan) = engine();
    for name in ["n1", "n2"] {
        engine.docker(&["network", "create", name]).ok();
    }
    run(&engine, "web", &["--network", "n1", "-p", "8080:80"]);
    let (host, neighbour, web) = (lan.host(), lan.neighbour(), of(&engine, "web"));
    lan.serve(&web, 80);
    let veths = || links(&host).into_iter().filter(|link| link.starts_with("veth")).count();
    let joined = |engine: &Engine| {
        engine
            .inspect("web", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}")
            .contains("n2")
    };
    let whole = |engine: &Engine, when: &str| {
        let joined = joined(engine);
        assert_eq!(links(&web).contains(&"eth1".to_owned()), joined, "{when}");
        assert_eq!(veths(), if joined { 2 } else { 1 }, "{when}");
        assert_eq!(way_out(&web).as_deref(), Some(if joined { "eth1" } else { "eth0" }), "{when}");
        assert_eq!(tcp(&neighbour, "10.250.0.1:8080").as_deref(), Some(NEIGHBOUR[0]), "{when}");
        assert!(tcp(&host, "[::1]:8080").is_some(), "{when}");
        joined
    };
    let connect = ["network", "connect", "--gw-priority", "5", "n2", "web"];
    let moments: [(&str, &dyn Fn(&Engine) -> bool); 4] = [
        ("at once", &|_| true),
        ("a link on the host", &|_| veths() == 2),
        ("a link in the container", &|_| links(&web).contains(&"eth1".to_owned())),
        ("its way out", &|_| way_out(&web).as_deref() == Some("eth1")),
    ];
    for (moment, seen) in moments {
        cut_short(&mut engine, &connect, seen);
        if !whole(&engine, &format!("connect, {moment}")) {
            engine.docker(&connect).ok();
        }
        assert!(whole(&engine, "connected"));
        engine.docker(&["network", "disconnect", "n2", "web"]).ok();
        assert!(!whole(&engine, "disconnected"));
    }
    for moment in ["at once", "no link"] {
        engine.docker(&connect).ok();
        cut_short(&mut engine, &["network", "disconnect", "n2", "web"], |_| {
            moment == "at once" || veths() == 1
        });
        if whole(&engine, &format!("disconnect, {moment}")) {
            engine.docker(&["network", "disconnect", "n2", "web"]).ok();
        }
    }
}

#[test]
fn a_network_that_is_cut_short_is_whole_or_gone() {
    let (mut engine, lan) = engine();
    let host = lan.host();
    let made = || links(&host).into_iter().filter(|link| link.starts_with("br-")).collect::<Vec<_>>();
    let listed = |engine: &Engine| {
        let ids = engine.docker(&["network", "ls", "-q", "--filter", "type=custom"]);
        ids.ok().lines().map(|id| format!("br-{id}")).collect::<Vec<_>>()
    };
    let ruled = |engine: &Engine| on_host(engine, "nft list ruleset").contains("in-br-");
    let whole = |engine: &Engine, when: &str| {
        let networks = listed(engine);
        assert_eq!(made(), networks, "{when}");
        assert_eq!(ruled(engine), !networks.is_empty(), "{when}");
        !networks.is_empty()
    };
    let moments: [(&str, &dyn Fn(&Engine) -> bool); 3] =
        [("at once", &|_| true), ("a link", &|_| !made().is_empty()), ("its rules", &|engine| ruled(engine))];
    for (moment, seen) in moments {
        cut_short(&mut engine, &["network", "create", "n1"], seen);
        if !whole(&engine, &format!("create, {moment}")) {
            engine.docker(&["network", "create", "n1"]).ok();
        }
        assert!(whole(&engine, "created"));
        // A removal, cut short at the counterpart.
        let gone = |engine: &Engine| moment == "at once" || !seen(engine);
        cut_short(&mut engine, &["network", "rm", "n1"], gone);
        if whole(&engine, &format!("remove, {moment}")) {
            engine.docker(&["network", "rm", "n1"]).ok();
        }
        assert!(!whole(&engine, "removed"));
    }
}

#[test]
fn the_older_tables_of_iptables_are_lived_with() {
    let (engine, mut lan) = engine();
    let mut probe = engine.netns().command("iptables-legacy");
    if !probe.args(["-w", "-P", "FORWARD", "DROP"]).output().is_ok_and(|output| output.status.success()) {
        // Neither the program nor the kernel's part of it can be counted on.
        return;
    }
    run(&engine, "web", &["-p", "8080:80"]);
    lan.serve(&of(&engine, "web"), 80);
    let neighbour = lan.neighbour();
    let reached = || tcp(&neighbour, "10.250.0.1:8080").is_some();
    // These tables give no notice; they are looked at when networks come and go, too.
    engine.docker(&["network", "create", "n1"]).ok();
    assert!(reached(), "a policy that drops is passed");
    on_host(&engine, "iptables-legacy -w -N DOCKER-USER");
    on_host(&engine, "iptables-legacy -w -A DOCKER-USER -s 10.250.0.2 -j DROP");
    engine.docker(&["network", "create", "n2"]).ok();
    assert!(!reached(), "DOCKER-USER is asked");
    on_host(&engine, "iptables-legacy -w -F DOCKER-USER");
    engine.docker(&["network", "rm", "n1"]).ok();
    assert!(reached(), "an empty DOCKER-USER");
    on_host(&engine, "iptables-legacy -w -X DOCKER-USER");
    let rules = on_host(&engine, "iptables-legacy -S FORWARD");
    assert_eq!(rules.matches(": to ").count(), 2, "docker0 and n2's bridge:\n{rules}");
    on_host(&engine, "iptables-legacy -w -P FORWARD ACCEPT");
    engine.docker(&["network", "rm", "n2"]).ok();
    assert_eq!(on_host(&engine, "iptables-legacy -S FORWARD").trim(), "-P FORWARD ACCEPT");
}
