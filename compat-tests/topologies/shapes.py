"""The topologies: networks, containers in them, and what is done to them while they run.

`T(name, nets, containers, steps)`. A network is `N(name, …)`, a container `C(name, networks, …)`; the first of its networks is its mode. Steps are
tuples: ("connect", network, container, settings), ("disconnect", network, container), ("stop" | "start" | "restart" | "pause" | "remove", container).
"""
from lab import HOST, SECOND

BRIDGE = "com.docker.network.bridge."


def N(name, *subnets, driver="bridge", v4=None, v6=False, internal=False, opts=None, ipam=None, **more):
    """A network's create request. `subnets` are `subnet[,gateway[,range]]`."""
    body = {"Name": name, "Driver": driver, "EnableIPv6": v6, "Internal": internal, "Options": opts or {}, **more}
    if v4 is not None:
        body["EnableIPv4"] = v4
    config = []
    for text in subnets:
        parts = dict(zip(("Subnet", "Gateway", "IPRange"), text.split(",")))
        config.append({key: value for key, value in parts.items() if value})
    if config or ipam:
        body["IPAM"] = {"Driver": "default", "Config": [one | (ipam or {}) for one in config] or [ipam]}
    return body


def C(letter, *nets, ports=(), all_ports=False, expose=(), links=(), mode=None, host=None, **more):
    """A container's create request; its name is `topo-LETTER`. `nets` are names or (name, endpoint settings); `ports` are (container port, host address, host port)."""
    ends = {}
    for net in nets:
        key, settings = net if isinstance(net, tuple) else (net, {})
        ends[key] = settings
    bindings = {}
    for port, address, number in ports:
        bindings.setdefault(port, []).append({"HostIp": address, "HostPort": number})
    first = mode or (next(iter(ends)) if ends else "bridge")
    if first in ("bridge", "host", "none") and ends.get(first) == {}:
        del ends[first]
    exposed = {port: {} for port in [*bindings, *expose]}
    config = {"NetworkMode": first, "PortBindings": bindings, "PublishAllPorts": all_ports, "Links": [f"topo-{link}" for link in links], **(host or {})}
    return {"name": f"topo-{letter}", "body": {"ExposedPorts": exposed, "HostConfig": config, "NetworkingConfig": {"EndpointsConfig": ends}, **more}}


def T(name, nets=(), containers=(), *steps):
    """One topology."""
    return {"name": name, "nets": list(nets), "containers": list(containers), "steps": list(steps)}


def static(v4=None, v6=None, aliases=None, **more):
    """Endpoint settings."""
    addresses = {key: value for key, value in (("IPv4Address", v4), ("IPv6Address", v6)) if value}
    return {"IPAMConfig": addresses or None, "Aliases": aliases, **more}


def web(letter, *nets, **more):
    """A container with port 80 published on 8080."""
    return C(letter, *nets, ports=[("80/tcp", "", "8080")], **more)


DUAL = N("n1", "10.81.0.0/24", "fd00:81::/64", v6=True)
SIX = N("n1", "fd00:81::/64", v4=False, v6=True)


def gateway(mode4=None, mode6=None, **more):
    """Options for a bridge with gateway modes."""
    opts = {BRIDGE + f"gateway_mode_ipv{f}": m for f, m in ((4, mode4), (6, mode6)) if m}
    return opts | {BRIDGE + key: value for key, value in more.items()}


TOPOLOGIES = [
    # Published ports on the default bridge.
    T("bridge: port on all addresses", [], [web("a"), C("b")]),
    T("bridge: port on loopback", [], [C("a", ports=[("80/tcp", "127.0.0.1", "8080")]), C("b")]),
    T("bridge: port on ::1", [], [C("a", ports=[("80/tcp", "::1", "8080")]), C("b")]),
    T("bridge: port on the host's address", [], [C("a", ports=[("80/tcp", HOST[4], "8080")]), C("b")]),
    T("bridge: port on the host's second address", [], [C("a", ports=[("80/tcp", SECOND, "8080")]), C("b")]),
    T("bridge: port on 0.0.0.0 only", [], [C("a", ports=[("80/tcp", "0.0.0.0", "8080")])]),
    T("bridge: port on :: only", [], [C("a", ports=[("80/tcp", "::", "8080")])]),
    T("bridge: port on the host's IPv6 address", [], [C("a", ports=[("80/tcp", HOST[6], "8080")])]),
    T("bridge: port on an address the host has not", [], [C("a", ports=[("80/tcp", "192.0.2.7", "8080")])]),
    T("bridge: ephemeral port", [], [C("a", ports=[("80/tcp", "", "")])]),
    T("bridge: ephemeral ports of two protocols", [], [C("a", ports=[("80/tcp", "", ""), ("80/udp", "", "")])]),
    T("bridge: UDP port", [], [C("a", ports=[("80/udp", "", "8080")]), C("b")]),
    T("bridge: UDP port on loopback", [], [C("a", ports=[("80/udp", "127.0.0.1", "8080")])]),
    T("bridge: SCTP port", [], [C("a", ports=[("80/sctp", "", "8080")])]),
    T("bridge: TCP and UDP of one number", [], [C("a", ports=[("80/tcp", "", "8080"), ("80/udp", "", "8080")]), C("b")]),
    T("bridge: a range", [], [C("a", ports=[(f"{n}/tcp", "", str(n + 1000)) for n in range(80, 90)])]),
    T("bridge: a range that keeps its numbers", [], [C("a", ports=[(f"{n}/tcp", "", str(n)) for n in range(9000, 9010)])]),
    T("bridge: one of a host range", [], [C("a", ports=[("80/tcp", "", "8080-8082")]), C("b", ports=[("80/tcp", "", "8080-8082")])]),
    T("bridge: a host range is used up", [], [C("a", ports=[("80/tcp", "", "8080-8081")]), C("b", ports=[("80/tcp", "", "8080-8081")]), C("c", ports=[("80/tcp", "", "8080-8081")])]),
    T("bridge: a taken port", [], [web("a"), web("b")]),
    T("bridge: one port, two host ports", [], [C("a", ports=[("80/tcp", "", "8080"), ("80/tcp", "127.0.0.1", "8081")])]),
    T("bridge: one number on two addresses", [], [C("a", ports=[("80/tcp", HOST[4], "8080")]), C("b", ports=[("80/tcp", SECOND, "8080")])]),
    T("bridge: publish all", [], [C("a", all_ports=True, expose=["80/tcp", "81/udp"])]),
    T("bridge: exposed only", [], [C("a", expose=["80/tcp"]), C("b")]),
    # Networks of users.
    T("user: two containers", [N("n1")], [web("a", "n1"), C("b", "n1")]),
    T("user: two networks", [N("n1"), N("n2")], [web("a", "n1"), C("b", "n2"), C("c")]),
    T("user: a container in both", [N("n1"), N("n2")], [web("a", "n1", "n2"), C("b", "n1"), C("c", "n2")]),
    T("user: aliases", [N("n1")], [C("a", ("n1", static(aliases=["db", "store"]))), C("b", ("n1", static(aliases=["db"]))), C("c", "n1")]),
    T("user: aliases of another network", [N("n1"), N("n2")], [C("a", ("n1", static(aliases=["one"])), ("n2", static(aliases=["two"]))), C("b", "n1"), C("c", "n2")]),
    T("user: links", [N("n1")], [C("a", "n1", expose=["80/tcp"]), C("b", ("n1", {"Links": ["topo-a:db"]}))]),
    T("user: hostname and domain", [N("n1")], [C("a", "n1", Hostname="web", Domainname="example.test"), C("b", "n1")]),
    T("user: static IPv4", [N("n1", "10.81.0.0/24")], [web("a", ("n1", static("10.81.0.77"))), C("b", "n1")]),
    T("user: static IPv4 of the gateway", [N("n1", "10.81.0.0/24")], [C("a", ("n1", static("10.81.0.1")))]),
    T("user: static IPv4 outside", [N("n1", "10.81.0.0/24")], [C("a", ("n1", static("10.99.0.5")))]),
    T("user: static IPv4 twice", [N("n1", "10.81.0.0/24")], [C("a", ("n1", static("10.81.0.5"))), C("b", ("n1", static("10.81.0.5")))]),
    T("user: a MAC address", [N("n1")], [C("a", ("n1", {"MacAddress": "02:42:ac:11:00:99"})), C("b", "n1")]),
    T("user: a range and a gateway", [N("n1", "10.81.0.0/16,10.81.9.254,10.81.5.0/24")], [web("a", "n1"), C("b", "n1")]),
    T("user: auxiliary addresses", [N("n1", "10.81.0.0/29", ipam={"AuxiliaryAddresses": {"x": "10.81.0.2", "y": "10.81.0.3"}})], [C("a", "n1")]),
    T("user: a full network", [N("n1", "10.81.0.0/30")], [C("a", "n1"), C("b", "n1")]),
    T("user: overlapping networks", [N("n1", "10.81.0.0/24"), N("n2", "10.81.0.128/25")], []),
    T("user: own bridge name and MTU", [N("n1", opts={BRIDGE + "name": "br-topo", "com.docker.network.driver.mtu": "1400"})], [C("a", "n1")]),
    T("user: interface name and sysctl", [N("n1")], [C("a", ("n1", {"DriverOpts": {"com.docker.network.endpoint.ifname": "lan7", "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1"}}))]),
    T("user: no masquerade", [N("n1", "10.81.0.0/24", opts={BRIDGE + "enable_ip_masquerade": "false"})], [web("a", "n1")]),
    T("user: default host address", [N("n1", opts={BRIDGE + "host_binding_ipv4": "127.0.0.1"})], [web("a", "n1")]),
    T("user: masquerade as", [N("n1", opts={"com.docker.network.host_ipv4": SECOND})], [C("a", "n1")]),
    # Keeping apart.
    T("internal", [N("n1", internal=True)], [web("a", "n1"), C("b", "n1"), C("c")]),
    T("internal and another", [N("n1", internal=True), N("n2")], [web("a", "n1", "n2"), C("b", "n1"), C("c", "n2")]),
    T("internal with IPv6", [N("n1", "10.81.0.0/24", "fd00:81::/64", v6=True, internal=True)], [C("a", "n1"), C("b", "n1")]),
    T("icc off", [N("n1", opts={BRIDGE + "enable_icc": "false"})], [web("a", "n1"), C("b", "n1")]),
    T("icc off, linked", [N("n1", opts={BRIDGE + "enable_icc": "false"})], [C("a", "n1", expose=["80/tcp"]), C("b", ("n1", {"Links": ["topo-a:db"]}))]),
    # IPv6.
    T("dual stack", [DUAL], [web("a", "n1"), C("b", "n1")]),
    T("dual stack, default pool", [N("n1", v6=True)], [web("a", "n1"), C("b", "n1")]),
    T("dual stack, static", [DUAL], [web("a", ("n1", static("10.81.0.50", "fd00:81::50"))), C("b", "n1")]),
    T("dual stack: UDP", [DUAL], [C("a", "n1", ports=[("80/udp", "", "8080")]), C("b", "n1")]),
    T("dual stack: loopback only", [DUAL], [C("a", "n1", ports=[("80/tcp", "127.0.0.1", "8080"), ("80/tcp", "::1", "8080")])]),
    T("dual stack: ephemeral", [DUAL], [C("a", "n1", ports=[("80/tcp", "", "")])]),
    T("dual stack beside IPv4 only", [DUAL, N("n2")], [web("a", "n1", "n2"), C("b", "n1"), C("c", "n2")]),
    T("IPv6 only", [SIX], [web("a", "n1"), C("b", "n1")]),
    T("IPv6 only, IPv4 address asked", [SIX], [C("a", "n1", ports=[("80/tcp", "0.0.0.0", "8080")])]),
    T("no address family", [N("n1", v4=False)], []),
    # Gateway modes.
    T("gateway nat-unprotected", [N("n1", "10.81.0.0/24", opts=gateway("nat-unprotected"))], [web("a", "n1"), C("b", "n1")]),
    T("gateway routed", [N("n1", "10.81.0.0/24", opts=gateway("routed"))], [web("a", "n1"), C("b", "n1")]),
    T("gateway routed, exposed by range", [N("n1", "10.81.0.0/24", opts=gateway("routed"))], [C("a", "n1", ports=[("80/tcp", "", ""), ("81/tcp", "", "")])]),
    T("gateway nat and routed IPv6", [N("n1", "10.81.0.0/24", "fd00:81::/64", v6=True, opts=gateway("nat", "routed"))], [web("a", "n1"), C("b", "n1")]),
    T("gateway isolated", [N("n1", "10.81.0.0/24", internal=True, opts=gateway("isolated"))], [C("a", "n1"), C("b", "n1")]),
    T("trusted host interface", [N("n1", "10.81.0.0/24", opts={BRIDGE + "trusted_host_interfaces": "lan0"})], [web("a", "n1")]),
    T("gateway routed beside nat", [N("n1", "10.81.0.0/24", opts=gateway("routed")), N("n2")], [web("a", "n1"), C("b", "n2")]),
    # Other drivers and modes.
    T("host", [], [C("a", "host"), C("b")]),
    T("none", [], [C("a", "none"), C("b")]),
    T("another container's", [N("n1")], [web("a", "n1"), C("b", mode="container:topo-a")]),
    T("macvlan", [N("n1", "10.82.0.0/24", driver="macvlan", opts={"parent": "lan0"})], [C("a", "n1"), C("b", "n1"), C("c")]),
    T("macvlan and a bridge", [N("n1", "10.82.0.0/24", driver="macvlan", opts={"parent": "lan0"}), N("n2")], [web("a", "n1", "n2"), C("b", "n2")]),
    T("macvlan, internal", [N("n1", "10.82.0.0/24", driver="macvlan", internal=True)], [C("a", "n1"), C("b", "n1")]),
    T("macvlan, private", [N("n1", "10.82.0.0/24", driver="macvlan", opts={"parent": "lan0", "macvlan_mode": "private"})], [C("a", "n1"), C("b", "n1")]),
    T("macvlan on a missing parent", [N("n1", "10.82.0.0/24", driver="macvlan", opts={"parent": "nosuch0.5"})], []),
    T("macvlan on a VLAN", [N("n1", "10.82.0.0/24", driver="macvlan", opts={"parent": "lan0.42"})], [C("a", "n1"), C("b", "n1")]),
    # Which way out.
    T("gateway priority", [N("n1"), N("n2")], [web("a", "n1", ("n2", {"GwPriority": 10})), C("b", "n2")]),
    T("gateway priority, negative", [N("n1"), N("n2")], [web("a", ("n1", {"GwPriority": -1}), "n2")]),
    T("the name decides the gateway", [N("zz"), N("aa")], [web("a", "zz", "aa")]),
    # Links of the default bridge.
    T("bridge: link", [], [C("a", expose=["80/tcp"]), C("b", links=["a:db"])]),
    T("bridge: link and restart", [], [C("a", expose=["80/tcp"]), C("b", links=["a:db"])], ("restart", "topo-a")),
    T("bridge: host-gateway and extra hosts", [], [C("a", host={"ExtraHosts": ["gw:host-gateway", "x:192.0.2.1"]})]),
    T("user: dns, search, options", [N("n1")], [C("a", "n1", host={"Dns": ["192.0.2.53"], "DnsSearch": ["example.test"], "DnsOptions": ["ndots:2"]}), C("b", "n1")]),
    T("bridge: dns, search, options", [], [C("a", host={"Dns": ["192.0.2.53"], "DnsSearch": ["example.test"], "DnsOptions": ["ndots:2"]})]),
    # While they run.
    T("live connect", [N("n1"), N("n2")], [web("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", {"Aliases": ["later"]})),
    T("live connect of the default bridge's", [N("n1")], [web("a"), C("b", "n1")], ("connect", "n1", "topo-a", {})),
    T("live connect with an address", [N("n1"), N("n2", "10.83.0.0/24")], [C("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", static("10.83.0.44"))),
    T("live connect with priority", [N("n1"), N("n2")], [web("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", {"GwPriority": 5})),
    T("live connect to dual stack", [N("n1"), N("n2", "10.83.0.0/24", "fd00:83::/64", v6=True)], [web("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", {})),
    T("live connect to internal", [N("n1"), N("n2", internal=True)], [web("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", {})),
    T("live disconnect of the second", [N("n1"), N("n2")], [web("a", "n1", "n2"), C("b", "n2")], ("disconnect", "n2", "topo-a")),
    T("live disconnect of the first", [N("n1"), N("n2")], [web("a", "n1", "n2"), C("b", "n2")], ("disconnect", "n1", "topo-a")),
    T("live disconnect of the only one", [N("n1")], [web("a", "n1"), C("b", "n1")], ("disconnect", "n1", "topo-a")),
    T("disconnect and connect again", [N("n1")], [web("a", "n1"), C("b", "n1")], ("disconnect", "n1", "topo-a"), ("connect", "n1", "topo-a", {"Aliases": ["back"]})),
    T("connect, then restart", [N("n1"), N("n2")], [web("a", "n1"), C("b", "n2")], ("connect", "n2", "topo-a", {}), ("restart", "topo-a")),
    T("stop and start", [N("n1")], [web("a", "n1"), C("b", "n1")], ("stop", "topo-a"), ("start", "topo-a")),
    T("stopped", [N("n1")], [web("a", "n1"), C("b", "n1")], ("stop", "topo-a")),
    T("a removed container's port", [N("n1")], [web("a", "n1"), C("b", "n1")], ("remove", "topo-a")),
    T("ephemeral port after a restart", [], [C("a", ports=[("80/tcp", "", "")])], ("restart", "topo-a")),
    T("renamed", [N("n1")], [C("a", "n1"), C("b", "n1")], ("rename", "topo-a", "topo-new")),
]
