#!/usr/bin/env python3
"""How long a pull with unpacking takes, ours beside others.

    pull.py --containerd NAME=SOCKET … --docker NAME=SOCKET … [--ctr CTR] [--docker-cli DOCKER] [--runs 3] [--clients 10] [--mib 1024]

Makes an image of 8 gzip layers (files of 1 KiB to 1 MiB, about 1.7 to 1), serves it on the loopback interface of its own network
namespace (so run it in the one the daemons are in), and lets each daemon pull it in turn, with stock clients. An image is removed, and what
it left collected, before the next pull. `--clients N` then pulls it with so many clients at once and tells how often each layer was asked for.
"""

import argparse
import collections
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time

LAYERS = 8
CACHE = os.path.join(tempfile.gettempdir(), "pull-bench")


def layer(seed, size):
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz_(){};=\\n", k=rng.randint(2, 9))) for _ in range(4000)]
    text = b" ".join(rng.choices(words, k=1_500_000))
    noise = rng.randbytes(4 << 20)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        number, written = 0, 0
        while written < size:
            length = min(size - written, int(1024 * 2 ** rng.uniform(0, 10)))
            source = noise if rng.random() < 0.25 else text
            at = rng.randrange(len(source) - length)
            info = tarfile.TarInfo(f"usr/share/part{seed}/dir{number % 50}/file{number}")
            info.size = length
            archive.addfile(info, io.BytesIO(source[at:at + length]))
            number, written = number + 1, written + length
    return out.getvalue()


def image(mib):
    """The image's blobs in a folder, made once. Returns the manifest's bytes."""
    folder = os.path.join(CACHE, str(mib))
    manifest = os.path.join(folder, "manifest")
    if os.path.exists(manifest):
        return folder, open(manifest, "rb").read()
    os.makedirs(folder, exist_ok=True)
    diff_ids, layers = [], []

    def blob(kind, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with open(os.path.join(folder, digest), "wb") as file:
            file.write(data)
        return {"mediaType": "application/vnd.oci.image." + kind, "digest": digest, "size": len(data)}

    for number in range(LAYERS):
        data = layer(number, mib * (1 << 20) // LAYERS)
        diff_ids.append("sha256:" + hashlib.sha256(data).hexdigest())
        layers.append(blob("layer.v1.tar+gzip", gzip.compress(data, 6, mtime=0)))
    config = blob("config.v1+json", json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
        "type": "layers", "diff_ids": diff_ids}}).encode())
    data = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                       "layers": layers}).encode()
    with open(manifest, "wb") as file:
        file.write(data)
    return folder, data


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = collections.Counter()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.split("/")[-1]
        if "/manifests/" in self.path:
            return self.reply(io.BytesIO(self.server.manifest), len(self.server.manifest),
                              "application/vnd.oci.image.manifest.v1+json")
        path = os.path.join(self.server.folder, name)
        if "/blobs/" not in self.path or not os.path.exists(path):
            return self.reply(io.BytesIO(b"{}"), 2, "application/json")
        with open(path, "rb") as file:
            self.reply(file, os.path.getsize(path), "application/octet-stream")

    def reply(self, file, size, kind):
        start, end = 0, size - 1
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, last = wanted[6:].split("-")
            start, end = int(first), min(int(last), end) if last else end
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Type", kind)
        self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(self.server.manifest).hexdigest())
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "application/octet-stream":
            self.asked[self.path.split("/")[-1]] += end + 1 - start
            self.wfile.flush()
            self.connection.sendfile(file, start, end + 1 - start)
        else:
            self.wfile.write(file.read())


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-500:]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--containerd", action="append", default=[])
    parser.add_argument("--docker", action="append", default=[])
    parser.add_argument("--ctr", default="ctr")
    parser.add_argument("--docker-cli", default="docker")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--mib", type=int, default=1024)
    options = parser.parse_args()
    folder, manifest = image(options.mib)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.folder, server.manifest = folder, manifest
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = f"127.0.0.1:{server.server_address[1]}/bench:1"
    sides = []
    for kind, given in (("containerd", options.containerd), ("docker", options.docker)):
        for side in given:
            label, socket = side.split("=", 1)
            if kind == "containerd":
                ctr = [options.ctr, "-a", socket, "-n", "bench", "image"]
                sides.append((label, ctr + ["pull", "--plain-http", name], ctr + ["rm", "--sync", name]))
            else:
                docker = [options.docker_cli, "-H", "unix://" + socket]
                sides.append((label, docker + ["pull", "-q", name], docker + ["rmi", name]))
    times = collections.defaultdict(list)
    for _ in range(options.runs):
        for label, pull, remove in sides:
            os.sync()
            began = time.perf_counter()
            run(pull)
            times[label].append(time.perf_counter() - began)
            run(remove)
    first = statistics.median(times[sides[0][0]])
    for label, _, _ in sides:
        middle = statistics.median(times[label])
        each = " ".join(f"{t:.2f}" for t in times[label])
        print(f"{label:24} {middle:6.2f} s   {options.mib / middle:5.0f} MiB/s   {sides[0][0]} takes {first / middle:.2f} of it   ({each})")
    if options.clients:
        total = sum(os.path.getsize(os.path.join(folder, b)) for b in os.listdir(folder) if b.startswith("sha256"))
        for label, pull, remove in sides:
            Registry.asked.clear()
            began = time.perf_counter()
            clients = [subprocess.Popen(pull, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(options.clients)]
            failed = sum(c.wait() != 0 for c in clients)
            print(f"{label:24} {options.clients} clients: {time.perf_counter() - began:.2f} s, {failed} failed, "
                  f"{sum(Registry.asked.values()) / total:.2f} times the image was sent")
            run(remove)


if __name__ == "__main__":
    main()
