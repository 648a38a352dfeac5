#!/usr/bin/env python3
"""Builds the same networks on two engines, sends real traffic, and prints where the reachability differs.

    run.py --a unix:///A.sock --b unix:///B.sock [--only TEXT] [--list] [--json FILE]

Each engine must live in a network namespace of its own, with no containers and networks of anybody else. Needs root, iproute2 and a static busybox.
In each topology (shapes.py): every container, the host and a client beside it ask every container's addresses (a published port's number and another
one, TCP and UDP), every published port at every address of the host, and the outside; who the server saw is part of the answer. Containers ask the
resolver for every name, and their links, routes, hosts and resolv.conf are looked at. What is left on the host afterwards is looked at too.

Exit status 0 when all is equal but the differences named in `STRICTER`, 1 otherwise.
"""
import argparse
import concurrent.futures
import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import CLIENT, HOST, IMAGE, SECOND, Engine, Lab, Refused, ip, lookup, probe  # noqa: E402
from shapes import TOPOLOGIES  # noqa: E402

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
# Differences that are meant: a regular expression on "topology: line", and why.
STRICTER = [
    (r": left on the host: '' \| 'veth", "Docker Engine leaves a link behind when a port cannot be published"),
    (r"published .*: 'refused' \| 'closed'", "nobody accepts a connection for a container that does not listen"),
    (r"SCTP port: start topo-a: '-'", "SCTP ports are rules only: a kernel without SCTP sockets can forward it"),
    (r"start .*failed to bind host port .*\|.*failed to bind host port for", "the text of Docker Engine 29"),
    (r"no configured subnet contains .*\|.*no configured subnet or ip-range contain the", "the text of Docker Engine 29"),
    (r"no available IPv4 addresses on this network's address pools: .*containers hold", "who holds the addresses is told"),
]


class Running:
    """A topology on one engine."""

    def __init__(self, lab, topology):
        self.lab, self.engine, self.topology = lab, lab.engine, topology
        self.facts = {}
        self.names = {}
        self.labels = {address: f"loopback{family}" for family, address in LOOPBACK.items()}
        for family in (4, 6):
            self.labels[HOST[family]] = f"host{family}"
            self.labels[CLIENT[family]] = f"client{family}"
        self.labels[SECOND] = "host4b"
        self.socks = []

    def note(self, key, value):
        """One fact."""
        self.facts[key] = value

    def attempt(self, key, *request):
        """A request; a refusal is a fact."""
        try:
            return self.engine.call(*request)
        except Refused as err:
            self.note(key, mask(str(err)))
            return None

    def build(self):
        """Networks and containers, in order; then the steps."""
        for body in self.topology["nets"]:
            self.attempt(f"create network {body['Name']}", "POST", "/networks/create", body)
        for container in self.topology["containers"]:
            name = container["name"]
            body = {"Image": IMAGE, "Cmd": ["/bin/busybox", "sleep", "100000"], "StopSignal": "SIGKILL", **container["body"]}
            made = self.attempt(f"create {name}", "POST", f"/containers/create?name={name}", body)
            if made:
                self.names[made["Id"]] = name
                self.attempt(f"start {name}", "POST", f"/containers/{name}/start")
        for step in self.topology["steps"]:
            self.step(step)

    def step(self, step):
        """One change to what runs."""
        action, key = step[0], " ".join(str(word) for word in step[:3])
        if action in ("connect", "disconnect"):
            body = {"Container": step[2]} | ({"EndpointConfig": step[3]} if action == "connect" else {})
            self.attempt(key, "POST", f"/networks/{step[1]}/{action}", body)
        elif action == "remove":
            self.attempt(key, "DELETE", f"/containers/{step[1]}?force=1")
        elif action == "rename":
            self.attempt(key, "POST", f"/containers/{step[1]}/rename?name={step[2]}")
        else:
            self.attempt(key, "POST", f"/containers/{step[1]}/{action}")

    def look(self):
        """What the engine says, and what is inside."""
        self.pids, self.asked_names, targets = {}, set(), []
        published = []
        for identity in self.names:
            try:
                state = self.engine.call("GET", f"/containers/{identity}/json")
            except Refused:
                continue
            name = state["Name"].strip("/")
            self.names[identity] = name
            self.asked_names |= {name, identity[:12]}
            if state["State"]["Running"]:
                self.pids[name] = state["State"]["Pid"]
            for network, end in (state["NetworkSettings"]["Networks"] or {}).items():
                self.asked_names |= {f"{name}.{network}", *(end["DNSNames"] or []), *(link.split(":")[1] for link in end["Links"] or [])}
                for address, gateway, family in ((end["IPAddress"], end["Gateway"], 4), (end["GlobalIPv6Address"], end["IPv6Gateway"], 6)):
                    if address:
                        self.labels[address] = f"{name}@{network}/{family}"
                        targets.append(address)
                    if gateway:
                        self.labels.setdefault(gateway, f"gateway@{network}/{family}")
            shown = state["NetworkSettings"]["Ports"]
            wanted = {port: [b["HostPort"] for b in bindings] for port, bindings in (state["HostConfig"]["PortBindings"] or {}).items()}
            self.note(f"ports of {name}", self.ports(shown, wanted))
            for port, bindings in shown.items():
                for binding in bindings or []:
                    published.append((name, port, binding))
            mode = state["HostConfig"]["NetworkMode"]
            if name in self.pids and mode != "host":
                self.inside(name)
        return targets, published

    def ports(self, shown, wanted):
        """The ports of inspect, with numbers the engine chose as `any`; the same number for both families is told."""
        result = {}
        for port, bindings in shown.items():
            chosen = [b for b in bindings or [] if b["HostPort"] not in wanted.get(port, [])]
            same = len({b["HostPort"] for b in chosen}) == 1
            result[port] = sorted(f"{b['HostIp']}:{('any' if same else 'differ') if b in chosen else b['HostPort']}" for b in bindings or [])
        return json.dumps(result, sort_keys=True)

    def namespace(self, name):
        """A container's network namespace."""
        return os.open(f"/proc/{self.pids[name]}/ns/net", os.O_RDONLY)

    def inside(self, name):
        """Links, routes and files of a container."""
        namespace = self.namespace(name)
        lines = []
        for link in ip(namespace, "addr"):
            if link["ifname"] == "lo" or link.get("operstate") == "DOWN" and link["ifname"].startswith(("sit", "tunl", "gre", "ip")):
                continue
            addresses = sorted(f"{self.label(a['local'])}/{a['prefixlen']}" for a in link["addr_info"] if a.get("scope") == "global")
            named = link["ifname"] if len(self.topology["nets"]) < 2 or not link["ifname"].startswith("eth") else "eth*"
            lines.append(f"{named} mtu {link['mtu']} {' '.join(addresses)}")
        self.note(f"links of {name}", "; ".join(sorted(lines)))
        routes = []
        for family in ("-4", "-6"):
            for route in ip(namespace, family, "route"):
                if route["dst"] == "default":
                    # With several networks the order of the links is chance on Docker Engine.
                    dev = route["dev"] if len(self.topology["nets"]) < 2 else "eth*"
                    routes.append(f"{family} via {self.label(route.get('gateway', '-'))} dev {dev}")
        self.note(f"routes of {name}", "; ".join(sorted(routes)))
        os.close(namespace)
        root = f"/proc/{self.pids[name]}/root/etc/"
        for file in ("hosts", "resolv.conf"):
            try:
                with open(root + file) as text:
                    lines = self.relabel(text.read()).split("\n")
                    self.note(f"{file} of {name}", "\n".join(lines if len(self.topology["nets"]) < 2 else sorted(lines)))
            except OSError as err:
                self.note(f"{file} of {name}", os.strerror(err.errno))

    def label(self, address):
        """The role an address has."""
        return self.labels.get(address, address)

    def relabel(self, text):
        """A text with roles instead of addresses and ids."""
        for identity, name in self.names.items():
            text = text.replace(identity[:12], f"<{name}>")
        words = re.split(r"(\s+)", text)
        return "".join(self.label(word) for word in words)

    def serve(self):
        """Servers in every container: on 80, 81 and the first and last of what is published."""
        for name in self.pids:
            namespace = self.namespace(name)
            here = {80, 81}
            for container in self.topology["containers"]:
                if container["name"] == name:
                    numbers = sorted(int(port.split("/")[0]) for port in container["body"]["ExposedPorts"])
                    here |= {*numbers[:1], *numbers[-1:]}
            for port in sorted(here):
                try:
                    self.socks += self.lab.servers.open(namespace, port)
                except OSError:
                    pass  # It shares a namespace with one that serves already.
            os.close(namespace)

    def traffic(self, targets, published):
        """The matrix."""
        sources = {"client": self.lab.client, "host": self.engine.namespace}
        opened = []
        for name in self.pids:
            sources[name] = self.namespace(name)
            opened.append(sources[name])
        wanted = {}
        gateways = [address for address, label in self.labels.items() if label.startswith("gateway@")]
        for source, namespace in sources.items():
            for address in targets:
                for port in (80, 81):
                    for protocol in ("tcp", "udp"):
                        wanted[f"{source} -> {self.label(address)}:{port}/{protocol}"] = (namespace, protocol, address, port)
            asked = [HOST[4], HOST[6], SECOND, *gateways]
            if source == "host":
                asked += LOOPBACK.values()
            for name, port, binding in published:
                number, protocol = port.split("/")
                if protocol == "sctp" or not binding["HostPort"] or binding["HostPort"] == "0":
                    continue
                for address in asked:
                    key = f"{source} -> {self.label(address)} published {name} {port} {binding['HostIp'] or 'routed'}"
                    wanted[key] = (namespace, protocol, address, int(binding["HostPort"]))
            for family in (4, 6):
                for protocol in ("tcp", "udp"):
                    if source != "client":
                        wanted[f"{source} -> client{family}/{protocol}"] = (namespace, protocol, CLIENT[family], 7000)
                    if source != "host":
                        wanted[f"{source} -> host{family}/{protocol}"] = (namespace, protocol, HOST[family], 7000)
            for address in gateways:
                if source != "host":
                    wanted[f"{source} -> {self.label(address)} host's own"] = (namespace, "tcp", address, 7000)
        # A thousand sockets at a time would be dropped by the listeners' queues, not by the rules.
        keys = sorted(wanted)
        for first in range(0, len(keys), 400):
            for key, seen in probe({key: wanted[key] for key in keys[first:first + 400]}).items():
                self.note(key, self.label(seen.removeprefix("::ffff:")))
        for name in self.pids:
            self.names_of(name, sources[name])
        for namespace in opened:
            os.close(namespace)

    def names_of(self, name, namespace):
        """What a container's resolver says."""
        try:
            with open(f"/proc/{self.pids[name]}/root/etc/resolv.conf") as text:
                if "127.0.0.11" not in text.read():
                    return
        except OSError:
            return
        asked = [(host, kind) for host in sorted(self.asked_names | {"nosuch"}) for kind in ("A", "AAAA")]
        for address, label in self.labels.items():
            if "@" in label and ":" not in address:
                asked.append((".".join(reversed(address.split("."))) + ".in-addr.arpa", "PTR"))
        for (host, kind), found in lookup(namespace, asked).items():
            if isinstance(found, tuple):
                found = f"{found[0]} {' '.join(sorted(self.relabel(one) for one in found[1]))}"
            if kind == "PTR":
                host = self.label(".".join(reversed(host.split(".")[:4])))
            self.note(f"{name} asks {kind} {self.relabel(host)}", found)

    def clear(self):
        """Everything away; what stays on the host is a fact."""
        self.lab.servers.stop(self.socks)
        for identity in self.names:
            try:
                self.engine.call("DELETE", f"/containers/{identity}?force=1&v=1")
            except Refused:
                pass
        for body in reversed(self.topology["nets"]):
            try:
                self.engine.call("DELETE", f"/networks/{body['Name']}")
            except Refused as err:
                if not str(err).startswith("404"):
                    self.note(f"remove network {body['Name']}", mask(str(err)))


def mask(text):
    """A message without what is random."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "<id>", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "<short id>", text)
    return re.sub(r"(32[789]\d\d|3[3-9]\d{3}|[45]\d{4}|60\d{3})", "<port>", text)


def run(lab, topology):
    """The facts of a topology on one engine."""
    before = lab.engine.links()
    running = Running(lab, topology)
    try:
        running.build()
        targets, published = running.look()
        running.serve()
        running.traffic(targets, published)
    finally:
        running.clear()
    # The kernel takes a namespace's links down a little after its last process.
    deadline = time.monotonic() + 5
    while (left := set(lab.engine.links()) - set(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.note("left on the host", " ".join(sorted(left)))
    return running.facts


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a", required=True)
    parser.add_argument("--b")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", help="all facts of both, for looking closer")
    options = parser.parse_args()
    chosen = [topology for topology in TOPOLOGIES if options.only in topology["name"]]
    if options.list:
        print("\n".join(topology["name"] for topology in chosen))
        return 0
    engines = [Engine(url) for url in (options.a, options.b) if url]
    labs = [Lab(engine) for engine in engines]
    for engine in engines:
        engine.load()
    everything, differ, meant, equal = {}, 0, 0, 0
    try:
        for topology in chosen:
            with concurrent.futures.ThreadPoolExecutor(len(labs)) as pool:
                facts = list(pool.map(lambda lab: run(lab, topology), labs))
            everything[topology["name"]] = facts
            if len(facts) == 1:
                print(f"{topology['name']}\n  " + "\n  ".join(f"{key}: {value!r}" for key, value in facts[0].items()), flush=True)
                continue
            lines = []
            # Where one refuses what the other does, the rest follows from it.
            refused = {key for key in facts[0].keys() ^ facts[1].keys() if key.split(" ")[0] in ("create", "start", "connect", "disconnect")}
            for key in sorted(facts[0].keys() | facts[1].keys()):
                values = [fact.get(key, "-") for fact in facts]
                if refused and key not in refused:
                    continue
                if values[0] != values[1]:
                    line = f"{key}: {values[0]!r} | {values[1]!r}"
                    if any(re.search(pattern, f"{topology['name']}: {line}") for pattern, _ in STRICTER):
                        meant += 1
                    else:
                        lines.append(line)
                else:
                    equal += 1
            differ += bool(lines)
            print(f"{'DIFFERS' if lines else 'same   '} {topology['name']} ({len(facts[0])} facts)", flush=True)
            for line in lines:
                print(f"        {line}", flush=True)
    finally:
        for lab in labs:
            lab.close()
        if options.json:
            with open(options.json, "w") as file:
                json.dump(everything, file, indent=1)
    print(f"{len(chosen)} topologies, {differ} differ; {equal} facts equal, {meant} differ as meant")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
