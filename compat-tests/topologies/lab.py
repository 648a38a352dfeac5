"""A host under an engine, a client beside it, and real traffic between them and the engine's containers.

The engine's network namespace is found through its API socket. The client is another one, on a link of its own: 10.250.0.1 and fd00:250::1 are the
engine's host, 10.250.0.2 and fd00:250::2 the client, which routes everything through the host. Servers and probes are sockets that this process
opens inside the namespaces, so nothing needs to be installed in a container.
"""
import ctypes
import http.client
import io
import json
import os
import selectors
import socket
import struct
import subprocess
import tarfile
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
HOST = {4: "10.250.0.1", 6: "fd00:250::1"}
SECOND = "10.250.0.9"
CLIENT = {4: "10.250.0.2", 6: "fd00:250::2"}
IMAGE = "topologies:latest"
# How long a probe may take before it counts as unanswered, seconds.
PATIENCE = 0.8


def inside(namespace, work):
    """What `work` returns when it is called in a network namespace (a descriptor). For the calling thread only."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if LIBC.setns(namespace, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
        return work()
    finally:
        LIBC.setns(here, 0x40000000)
        os.close(here)


class Refused(Exception):
    """The engine's refusal: status and message."""

    def __init__(self, status, message):
        super().__init__(f"{status} {message}")


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    """An engine's API, and the network namespace it lives in."""

    def __init__(self, url):
        self.path = url.removeprefix("unix://")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.path)
            pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        self.version = self.call("GET", "/version")["Version"]

    def call(self, method, path, body=None):
        """One request; the JSON of the answer."""
        connection = Connection(self.path)
        raw = isinstance(body, bytes)
        data = body if raw or body is None else json.dumps(body).encode()
        kind = "application/x-tar" if raw else "application/json"
        connection.request(method, "/v1.48" + path, data, {"Content-Type": kind} if data is not None else {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 400:
            raise Refused(answer.status, json.loads(text).get("message", ""))
        return json.loads(text) if text and path != "/images/load" and "fromSrc" not in path else None

    def load(self):
        """An image that only waits."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.add("/bin/busybox", "bin/busybox")
        self.call("POST", f"/images/create?fromSrc=-&repo={IMAGE.split(':')[0]}&tag=latest", out.getvalue())

    def links(self):
        """Names of the host's links that are no container's or network's business."""
        names = inside(self.namespace, lambda: [name for _, name in socket.if_nameindex()])
        return sorted(names)


def ip(namespace, *args):
    """The ip command in a namespace; its JSON."""
    text = subprocess.run(["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}", "ip", "-j", *args], capture_output=True, check=True).stdout
    return json.loads(text or b"[]")


class Lab:
    """Engine, client, and the servers on both."""

    def __init__(self, engine):
        self.engine = engine
        self.client = self._make_client()
        self.servers = Servers()
        for port in (7000,):
            self.servers.open(self.client, port)
            self.servers.open(engine.namespace, port)

    def _make_client(self):
        """A namespace, linked to the engine's host. It is gone with the last descriptor."""
        made = []

        def unshare():
            if LIBC.unshare(0x40000000):
                raise OSError(ctypes.get_errno(), "unshare")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=unshare)
        thread.start()
        thread.join()
        client, host = made[0], self.engine.namespace
        run = lambda ns, *words: subprocess.run(["nsenter", f"--net=/proc/{os.getpid()}/fd/{ns}", *words], check=True, capture_output=True)
        run(client, "ip", "link", "set", "lo", "up")
        run(client, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "lan0", "netns", f"/proc/{os.getpid()}/fd/{host}")
        for ns, link, addresses in ((host, "lan0", [HOST[4] + "/24", SECOND + "/24", HOST[6] + "/64"]), (client, "eth0", [CLIENT[4] + "/24", CLIENT[6] + "/64"])):
            for address in addresses:
                run(ns, "ip", "addr", "add", address, "dev", link, *(["nodad"] if ":" in address else []))
            run(ns, "ip", "link", "set", link, "up")
        run(client, "ip", "route", "add", "default", "via", HOST[4])
        run(client, "ip", "-6", "route", "add", "default", "via", HOST[6])
        return client

    def close(self):
        """Takes the link away again."""
        self.servers.close()
        subprocess.run(["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.client}", "ip", "link", "delete", "eth0"], check=False, capture_output=True)
        os.close(self.client)


class Servers:
    """TCP and UDP servers that tell who asks, until they are closed."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.lock = threading.Lock()
        self.wake, other = socket.socketpair()
        self.ended = False
        self.selector.register(other, selectors.EVENT_READ, ("wake", None))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def open(self, namespace, port):
        """Serves a port on all addresses, TCP and UDP, both families. The sockets made."""
        made = []
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = inside(namespace, lambda: socket.socket(family, kind))
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((any_address, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
                made.append(sock)
        with self.lock:
            for sock in made:
                self.selector.register(sock, selectors.EVENT_READ, ("server", None))
        self.wake.send(b"x")
        return made

    def stop(self, socks):
        """Closes servers."""
        with self.lock:
            for sock in socks:
                self.selector.unregister(sock)
                sock.close()

    def _serve(self):
        while not self.ended:
            for key, _ in self.selector.select(0.2):
                sock = key.fileobj
                try:
                    if key.data[0] == "wake":
                        sock.recv(100)
                    elif sock.type == socket.SOCK_STREAM:
                        stream, peer = sock.accept()
                        stream.sendall(peer[0].encode())
                        stream.close()
                    else:
                        _, peer = sock.recvfrom(100)
                        sock.sendto(peer[0].encode(), peer)
                except OSError:
                    pass

    def close(self):
        """Ends all."""
        self.ended = True
        self.thread.join()


def probe(wanted):
    """Asks many servers at once. `wanted`: {key: (namespace, protocol, address, port)}; the answers: {key: word}, a word being the address the server
    saw, or `refused`, `unreachable`, `silence`."""
    selector, results, sending = selectors.DefaultSelector(), {}, {}
    for key, (namespace, protocol, address, port) in wanted.items():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM

        def open_it():
            sock = socket.socket(family, kind)
            sock.setblocking(False)
            try:
                sock.connect((address, port))
            except BlockingIOError:
                pass
            except OSError as err:
                sock.close()
                return word(err)
            return sock

        sock = inside(namespace, open_it)
        if isinstance(sock, str):
            results[key] = sock
            continue
        sending[sock] = key
        if protocol == "udp":
            try:
                sock.send(b"?")
            except OSError as err:
                results[key] = word(err)
                sock.close()
                continue
        selector.register(sock, selectors.EVENT_READ, key)
    deadline = time.monotonic() + PATIENCE
    while len(results) < len(wanted) and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            try:
                data = key.fileobj.recv(200)
                results[key.data] = data.decode() if data else "closed"
            except BlockingIOError:
                continue
            except OSError as err:
                results[key.data] = word(err)
            selector.unregister(key.fileobj)
            key.fileobj.close()
    for key in list(selector.get_map().values()):
        results[key.data] = "silence"
        key.fileobj.close()
    selector.close()
    return results


def word(err):
    """An error of a socket as one word."""
    if isinstance(err, ConnectionRefusedError):
        return "refused"
    if isinstance(err, ConnectionResetError):
        return "closed"
    return "unreachable" if err.errno in (101, 113, 13, 1, 22, 99, 19) else os.strerror(err.errno)


def lookup(namespace, names):
    """Asks the resolver at 127.0.0.11: {(name, type): (rcode, [answers])}; `silence` where nothing came."""
    numbers = {"A": 1, "AAAA": 28, "PTR": 12}
    found, open_queries = {}, {}
    selector = selectors.DefaultSelector()
    for at, (name, kind) in enumerate(names):
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        query = struct.pack(">6H", at, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", numbers[kind], 1)
        sock = inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.setblocking(False)
        try:
            sock.connect(("127.0.0.11", 53))
            sock.send(query)
        except OSError as err:
            found[name, kind] = word(err)
            sock.close()
            continue
        selector.register(sock, selectors.EVENT_READ, (name, kind))
        open_queries[name, kind] = sock
    deadline = time.monotonic() + PATIENCE
    while open_queries and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            try:
                found[key.data] = answers(key.fileobj.recv(1500))
            except OSError as err:
                found[key.data] = word(err)
            selector.unregister(key.fileobj)
            open_queries.pop(key.data).close()
    for key, sock in open_queries.items():
        found[key] = "silence"
        sock.close()
    selector.close()
    return found


def answers(message):
    """The status and the records of a DNS answer."""
    flags, _, count = struct.unpack(">3H", message[2:8])
    at = 12
    while message[at]:
        at += message[at] + 1
    at += 5
    records = []
    for _ in range(count):
        _, at = dns_name(message, at)
        kind, _, _, length = struct.unpack(">2HIH", message[at:at + 10])
        at += 10
        data = message[at:at + length]
        if kind == 12:
            records.append(dns_name(message, at)[0])
        else:
            records.append(socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data))
        at += length
    return {0: "ok", 2: "servfail", 3: "nxdomain"}.get(flags & 15, str(flags & 15)), sorted(records)


def dns_name(message, at):
    """A name in a DNS message, and where it ends."""
    parts, end = [], None
    while message[at]:
        if message[at] & 0xC0:
            end = end or at + 2
            at = struct.unpack(">H", message[at:at + 2])[0] & 0x3FFF
            continue
        parts.append(message[at + 1:at + 1 + message[at]].decode())
        at += message[at] + 1
    return ".".join(parts), end or at + 1
