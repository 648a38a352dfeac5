#!/usr/bin/env python3
"""create + start + exit + delete of one container over the API, on one engine or on two in turn.

usage: cycle.py OUR.sock [THEIR.sock] [--rounds N] [--network bridge|none|host]
The image is made here from the system's static busybox and loaded into each engine.
"""

import argparse
import hashlib
import http.client
import io
import json
import socket
import statistics
import tarfile
import time

IMAGE = "cycle-busybox:latest"


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("docker", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    def __init__(self, path):
        self.connection = Connection(path)

    def call(self, method, path, body=None, raw=None, kind="application/json"):
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        self.connection.request(method, path, data, {"Content-Type": kind} if data else {})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return text

    def load(self):
        self.call("POST", "/images/load?quiet=1", raw=archive(), kind="application/x-tar")

    def cycle(self, network):
        marks = [time.perf_counter()]
        body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
        name = json.loads(self.call("POST", "/containers/create", body))["Id"]
        marks.append(time.perf_counter())
        self.call("POST", f"/containers/{name}/start")
        marks.append(time.perf_counter())
        self.call("POST", f"/containers/{name}/wait")
        marks.append(time.perf_counter())
        self.call("DELETE", f"/containers/{name}")
        marks.append(time.perf_counter())
        steps = dict(zip(("create", "start", "exit", "delete"), (1e3 * (b - a) for a, b in zip(marks, marks[1:]))))
        steps["total"] = 1e3 * (marks[-1] - marks[0])
        return steps


def archive():
    """A docker-archive of one layer: busybox and a few of its names."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        program = open("/bin/busybox", "rb").read()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        for name in ("sh", "true", "sleep"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    layer = layer.getvalue()
    diff = hashlib.sha256(layer).hexdigest()
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
                         "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]}}).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in ((config_name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sockets", nargs="+")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--network", default="bridge")
    args = parser.parse_args()
    engines = [Engine(path) for path in args.sockets]
    for engine in engines:
        engine.load()
        engine.cycle(args.network)
    samples = [[] for _ in engines]
    for at in range(args.rounds):
        order = list(range(len(engines)))
        for which in order if at % 2 == 0 else reversed(order):
            samples[which].append(engines[which].cycle(args.network))
    for step in ("create", "start", "exit", "delete", "total"):
        medians = [statistics.median(sample[step] for sample in mine) for mine in samples]
        ratio = f"   ratio {medians[0] / medians[1]:.2f}" if len(medians) == 2 else ""
        print(f"{step:8}" + "".join(f"{value:10.1f} ms" for value in medians) + ratio)


if __name__ == "__main__":
    main()
