//! The codecs against the kernel, in network namespaces of their own. Needs root; without it there is nothing to test against.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use nl::nft::{Batch, Data, Element, Family, Field, Hook, Key, Kind, Rule, Set, Verdict};
use nl::{Messages, Socket, addr, link, nft};

fn in_new_namespace(test: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    sys::netns::scoped(|| {
        sys::netns::enter_new().expect("a new network namespace");
        test();
    })
    .expect("the test's thread");
}

#[test]
fn a_bridge_with_a_veth_into_another_namespace() {
    in_new_namespace(|| {
        let mut host = Socket::route().unwrap();
        let mut out = Messages::new();
        link::add_bridge(&mut out, "br0", Some(1400), [2, 0, 0, 0, 0, 1]);
        host.all(out).unwrap();
        let bridge = link::find(&mut host, "br0").unwrap().unwrap();
        assert_eq!((bridge.kind.as_str(), bridge.mtu, bridge.up), ("bridge", 1400, false));
        let mut out = Messages::new();
        link::set_alias(&mut out, bridge.index, "ours");
        addr::add(&mut out, bridge.index, "10.9.0.1".parse().unwrap(), 24);
        addr::add(&mut out, bridge.index, "fd00:9::1".parse().unwrap(), 64);
        link::set_up(&mut out, bridge.index);
        host.all(out).unwrap();
        sys::netns::scoped(|| {
            sys::netns::enter_new().unwrap();
            let here = sys::netns::current().unwrap();
            let mut out = Messages::new();
            let peer = link::Peer { name: "eth0", mac: [2, 0, 0, 0, 0, 3], ns: here.as_fd() };
            link::add_veth(&mut out, "veth0", [2, 0, 0, 0, 0, 2], bridge.index, Some(1400), &peer);
            host.all(out).unwrap();
            let mut inside = Socket::route().unwrap();
            let eth0 = link::find(&mut inside, "eth0").unwrap().unwrap();
            assert_eq!((eth0.mac, eth0.mtu), (Some([2, 0, 0, 0, 0, 3]), 1400));
            let mut out = Messages::new();
            addr::add(&mut out, eth0.index, "10.9.0.2".parse().unwrap(), 24);
            link::set_up(&mut out, eth0.index);
            addr::replace_default(&mut out, "10.9.0.1".parse().unwrap(), eth0.index);
            inside.all(out).unwrap();
            let routes = addr::routes(&mut inside).unwrap();
            assert!(routes.iter().any(|route| route.prefix == 0 && route.gateway == "10.9.0.1".parse().ok()));
            assert!(routes.iter().any(|route| route.prefix == 24 && route.link == Some(eth0.index)));
            let veth = link::find(&mut host, "veth0").unwrap().unwrap();
            assert_eq!((veth.master, veth.up), (Some(bridge.index), true));
            let mut out = Messages::new();
            link::set_port(&mut out, veth.index, true, true);
            host.all(out).unwrap();
            let mut out = Messages::new();
            link::delete_named(&mut out, "veth0");
            host.all(out).unwrap();
            assert_eq!(link::find(&mut inside, "eth0").unwrap(), None);
        })
        .unwrap();
        assert_eq!(link::find(&mut host, "br0").unwrap().unwrap().alias, "ours");
        let addresses = addr::list(&mut host).unwrap();
        assert!(addresses.iter().any(|a| a.ip == IpAddr::from([10, 9, 0, 1]) && a.prefix == 24));
        assert!(addresses.iter().any(|a| a.ip == "fd00:9::1".parse::<IpAddr>().unwrap() && a.prefix == 64));
    });
}

#[test]
fn each_message_of_several_has_its_own_answer() {
    in_new_namespace(|| {
        let mut host = Socket::route().unwrap();
        let mut out = Messages::new();
        link::add_bridge(&mut out, "br0", None, [2, 0, 0, 0, 0, 1]);
        link::add_bridge(&mut out, "br0", None, [2, 0, 0, 0, 0, 1]);
        link::delete_named(&mut out, "nosuch");
        let answers = host.each(out).unwrap();
        assert!(answers[0].is_ok());
        assert!(answers[1].as_ref().unwrap_err().exists());
        assert!(answers[2].as_ref().unwrap_err().missing());
        assert_eq!(answers[2].as_ref().unwrap_err().to_string(), "delete link nosuch: no such device");
    });
}

const PORTS: Set =
    Set { name: "ports", key: &[Kind::Protocol, Kind::Port], data: &[Kind::Ipv4, Kind::Port], ranges: false };
const RANGES: Set =
    Set { name: "ranges", key: &[Kind::Ipv4, Kind::Protocol, Kind::Port], data: &[Kind::Ipv4], ranges: true };
const JUMPS: Set = Set { name: "jumps", key: &[Kind::Interface], data: &[Kind::Verdict], ranges: false };
const NETS: Set = Set { name: "nets", key: &[Kind::Ipv4], data: &[Kind::Verdict], ranges: true };
const NETS6: Set = Set { name: "nets6", key: &[Kind::Ipv6], data: &[Kind::Verdict], ranges: true };
const PORTS6: Set = Set {
    name: "ports6",
    key: &[Kind::Protocol, Kind::Port],
    data: &[Kind::Ipv6, Kind::Port],
    ranges: false,
};
const NAMES: Set = Set { name: "names", key: &[Kind::Interface], data: &[], ranges: false };

fn port(number: u16) -> Element {
    let to = Key::new().v4(Ipv4Addr::new(10, 0, 0, 2)).port(80);
    Element::new(Key::new().protocol(6).port(number)).with(Data::Value(to))
}

#[test]
fn a_table_with_everything_in_it() {
    in_new_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.add_table();
        for set in [&PORTS, &RANGES, &JUMPS, &NETS, &NETS6, &PORTS6, &NAMES] {
            batch.add_set(set);
        }
        batch.add_base_chain("pre", "nat", Hook::Prerouting, -100);
        batch.add_base_chain("post", "nat", Hook::Postrouting, 100);
        batch.add_base_chain("fwd", "filter", Hook::Forward, 0);
        batch.add_base_chain("raw", "filter", Hook::Prerouting, -300);
        batch.add_chain("in");
        batch.add_elements(
            "jumps",
            &[Element::new(Key::new().interface("br0")).with(Data::Jump("in".into()))],
        );
        let network = Element::network([10, 0, 0, 0].into(), 8, Some(Data::Jump("in".into())));
        batch.add_elements("nets", &network);
        let network = Element::network("fd00::".parse().unwrap(), 64, Some(Data::Jump("in".into())));
        batch.add_elements("nets6", &network);
        batch.add_elements("names", &[Element::new(Key::new().interface("br0"))]);
        let range = |low, high| {
            let key = |ip: [u8; 4], port| Key::new().v4(ip.into()).protocol(17).port(port);
            Element::between(key([0, 0, 0, 0], low), key([255, 255, 255, 255], high))
                .with(Data::Value(Key::new().v4([10, 0, 0, 3].into())))
        };
        batch.add_elements("ranges", &[range(10_000, 19_999)]);
        let key = [Field::Protocol, Field::DestinationPort];
        batch.append(
            "pre",
            &Rule::new().family_of(false).rewrite_destination(&key, false, "ports", true).comment("ports"),
        );
        batch.append("pre", &Rule::new().family_of(true).rewrite_destination(&key, true, "ports6", true));
        let key = [Field::Destination, Field::Protocol, Field::DestinationPort];
        batch.append("pre", &Rule::new().family_of(false).rewrite_destination(&key, false, "ranges", false));
        batch.append("pre", &Rule::new().protocol(6).destination_port(7).redirect(8));
        batch.append("fwd", &Rule::new().verdict_map(&[Field::OutputName], false, "jumps"));
        batch.append("in", &Rule::new().established().counter().verdict(Verdict::Accept));
        batch.append("in", &Rule::new().destination_rewritten().verdict(Verdict::Accept));
        batch.append("post", &Rule::new().family_of(false).verdict_map(&[Field::Source], false, "nets"));
        batch.append(
            "post",
            &Rule::new().source([10, 0, 0, 0].into(), 8, true).output("br0", false).masquerade(),
        );
        batch.append(
            "post",
            &Rule::new().source([10, 1, 0, 0].into(), 16, true).rewrite(false, [1, 2, 3, 4].into(), None),
        );
        batch.append(
            "raw",
            &Rule::new().to_this_host(false).in_set(&[Field::InputName], false, "names", true),
        );
        batch.append("raw", &Rule::new().destination([127, 0, 0, 0].into(), 8, true).verdict(Verdict::Drop));
        socket.transaction(batch.into_messages()).unwrap();
        assert_eq!(nft::tables(&mut socket, Family::Inet).unwrap(), ["t"]);
        assert_eq!(nft::rules(&mut socket, Family::Inet, "t", None).unwrap().len(), 12);
        let pre = nft::rules(&mut socket, Family::Inet, "t", Some("pre")).unwrap();
        assert_eq!(pre[0].comment, "ports");
        if let Ok(text) = std::process::Command::new("nft").args(["list", "ruleset"]).output() {
            let text = String::from_utf8_lossy(&text.stdout);
            for line in [
                "elements = { 0.0.0.0/0 . udp . 10000-19999 : 10.0.0.3 }",
                "elements = { 10.0.0.0/8 : jump in }",
                "dnat ip to meta l4proto . th dport map @ports comment \"ports\"",
                "ct state established,related counter packets 0 bytes 0 accept",
                "ct status dnat accept",
                "ip saddr 10.1.0.0/16 snat ip to 1.2.3.4",
                "fib daddr type != local iifname @names",
                "ip daddr 127.0.0.0/8 drop",
                "tcp dport 7 redirect to :8",
            ] {
                assert!(text.contains(line), "{line} not in {text}");
            }
        }

        // Ten thousand elements are more than one message and one default send buffer can hold.
        let many: Vec<Element> = (1..=10_000).map(port).collect();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.add_elements("ports", &many);
        socket.transaction(batch.into_messages()).unwrap();

        // All or nothing: the second change fails, so the first is undone.
        let mut batch = Batch::new(Family::Inet, "t");
        batch.delete_elements("ports", &[port(5)]);
        batch.delete_elements("ports", &[port(20_000)]);
        let err = socket.transaction(batch.into_messages()).unwrap_err();
        assert!(err.missing(), "{err}");
        let mut batch = Batch::new(Family::Inet, "t");
        batch.delete_elements("ports", &many);
        socket.transaction(batch.into_messages()).unwrap();

        let mut batch = Batch::new(Family::Inet, "t");
        batch.delete_table();
        socket.transaction(batch.into_messages()).unwrap();
        assert!(nft::tables(&mut socket, Family::Inet).unwrap().is_empty());
    });
}

#[test]
fn a_flush_by_another_is_noticed() {
    in_new_namespace(|| {
        let mut watch = Socket::netfilter().unwrap();
        watch.subscribe(nft::NOTIFICATIONS).unwrap();
        let mut ours = Socket::netfilter().unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.add_table();
        batch.add_chain("c");
        batch.append("c", &Rule::new().counter());
        ours.transaction(batch.into_messages()).unwrap();
        let mut other = Socket::netfilter().unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.flush_chain("c");
        other.transaction(batch.into_messages()).unwrap();
        let mut removed = Vec::new();
        while removed.is_empty() {
            watch
                .notification(|message| {
                    removed
                        .extend(nft::changed(message).filter(|c| c.removed).map(|c| (c.table, message.port)));
                })
                .unwrap();
        }
        assert_eq!(removed[0], ("t".to_owned(), other.port()));
        assert_ne!(removed[0].1, ours.port());
    });
}
