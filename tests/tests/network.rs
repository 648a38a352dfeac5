//! Networks with real traffic: published ports, names, what is kept apart, and what goes on while the daemons are dead.

use std::path::Path;
use std::process::Stdio;

use e2e_tests::Engine;
use e2e_tests::host::{cmdline, pids};
use e2e_tests::lan::{Lan, NEIGHBOUR, of, resolve, tcp, udp};

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
        assert_eq!(tcp(&neighbour, "10.250.0.1:8081"), None, "{when}: bound to loopback");
        assert_eq!(tcp(&neighbour, &format!("{ip}:80")), None, "{when}: addressed directly");
        assert_eq!(tcp(&apart, &format!("{ip}:80")), None, "{when}: from another network");
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
    lan.serve(&of(&engine, "web"), 80);
    let (host, neighbour) = (lan.host(), lan.neighbour());
    let reached = |when: &str| {
        for (from, to) in [(&neighbour, "10.250.0.1:8080"), (&host, "127.0.0.1:8080"), (&host, "[::1]:8080")]
        {
            assert!(tcp(from, to).is_some(), "{when}: {to}");
        }
    };
    reached("in the first network");
    engine.docker(&["network", "connect", "--gw-priority", "5", "n2", "web"]).ok();
    reached("with its gateway in the second");
    engine.docker(&["network", "disconnect", "n1", "web"]).ok();
    reached("in the second only");
    engine.docker(&["network", "disconnect", "n2", "web"]).ok();
    assert_eq!(tcp(&neighbour, "10.250.0.1:8080"), None, "in none");
    engine.docker(&["network", "connect", "n1", "web"]).ok();
    reached("back in the first");
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
