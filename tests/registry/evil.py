#!/usr/bin/env python3
"""A registry that lies, and the answers a pull must give it.

    evil.py --address SOCKET [--ctr CTR] [--only NAME] [--serve PORT]

Each case is an image with something wrong. The stock client `ctr` pulls it through the daemon at SOCKET; the error must
contain the words of the row, or the pull must succeed where the row says OK, and the image then has what the row's
`look` says (None: is not there). Nothing of a failed pull may stay: no image, no snapshot. With --serve the registry only serves, for looking at it by hand.
"""

import argparse
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import threading

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
INDEX_OF = {"schemaVersion": 2, "mediaType": INDEX}
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OK = None
# A folder of this machine that no layer may touch.
VICTIM = tempfile.mkdtemp(prefix="evil-victim-")


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(*members):
    """A tar of (name, kind, extra) members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, extra in members:
            info = tarfile.TarInfo(name)
            info.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
                         "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE,
                         "uid": tarfile.REGTYPE, "pax": tarfile.REGTYPE}[kind]
            data = b""
            if kind == "file":
                data = extra or b"x"
                info.size = len(data)
            elif kind in ("link", "hard"):
                info.linkname = extra
            elif kind == "uid":
                info.uid = extra
            elif kind == "pax":
                info.pax_headers = extra
            elif kind in ("char", "block"):
                info.devmajor, info.devminor = extra
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Image:
    """An image and the ways in which its registry misbehaves."""

    def __init__(self, *tars, layers=None, diff_ids=None, config=None, manifest=None, **tricks):
        tars = tars or (tar(("f", "file", b"hello")),)
        self.blobs = {}
        self.tricks = tricks
        packed = layers if layers is not None else [gzip.compress(t, mtime=0) for t in tars]
        ids = diff_ids if diff_ids is not None else [sha(t) for t in tars]
        body = config if config is not None else json.dumps(
            {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}}).encode()
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.add(CONFIG, body),
                    "layers": [self.add(LAYER, p) for p in packed]}
        if manifest:
            manifest(document)
        self.root = json.dumps(document).encode() if not tricks.get("raw") else tricks["raw"]
        self.type = tricks.get("type", MANIFEST)
        self.blobs[sha(self.root)] = self.root

    def add(self, media_type, data):
        self.blobs[sha(data)] = data
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}


def edit(path, value):
    """Changes one field of a manifest: edit(("layers", 0, "size"), 7)."""
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value
    return change


def flipped(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 0x40
    return bytes(data)


def patched(at, data, checksum=True):
    """A tar whose first header has other bytes at `at`."""
    whole = bytearray(HELLO)
    whole[at:at + len(data)] = data
    if checksum:
        whole[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


def nested(depth):
    """An index of 40 times the same index, and so on; the blobs and the topmost."""
    image = Image()
    entry = {"mediaType": MANIFEST, "digest": sha(image.root), "size": len(image.root)}
    for _ in range(depth):
        data = json.dumps(INDEX_OF | {"manifests": [entry] * 40}).encode()
        entry = image.add(INDEX, data)
    image.root, image.type = data, INDEX
    return image


def foreign(document):
    document["layers"][0].update(mediaType=FOREIGN, urls=["file:///etc/passwd"])


BIG = tar(("big", "file", random.Random(1).randbytes(3 << 20)))
HELLO = tar(("f", "file", b"hello"))

CASES = {
    "good": (Image(), OK),
    "bit-flipped": (Image(BIG, corrupt=flipped), "filesystem layer verification failed for digest sha256:"),
    "truncated": (Image(BIG, cut=1 << 20, no_ranges=True), "unexpected EOF"),
    "cut-and-resumed": (Image(BIG, cut=1 << 20), OK),
    "layer-missing": (Image(missing="layer"), "not found"),
    "size-too-small": (Image(manifest=edit(("layers", 0, "size"), 7)), "size mismatch"),
    "size-negative": (Image(manifest=edit(("layers", 0, "size"), -7)), "invalid value: integer `-7`"),
    "size-huge": (Image(manifest=edit(("layers", 0, "size"), 1 << 62)), "size mismatch"),
    "digest-is-a-path": (Image(manifest=edit(("layers", 0, "digest"), "sha256:../../tmp/x")),
                         "invalid checksum digest length"),
    "digest-md5": (Image(manifest=edit(("layers", 0, "digest"), "md5:" + "0" * 32)), "unsupported digest algorithm"),
    "diff-id-wrong": (Image(diff_ids=[sha(b"other")]), "layers from manifest don't match image configuration"),
    "diff-id-count": (Image(diff_ids=[]), "layers from manifest don't match image configuration"),
    "config-not-json": (Image(config=b"nonsense"), "expected"),
    "config-os-windows": (Image(config=json.dumps({"architecture": "amd64", "os": "windows", "rootfs": {
        "type": "layers", "diff_ids": [sha(HELLO)]}}).encode()), OK),
    "config-cmd-number": (Image(config=json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": [1]}, "rootfs": {
        "type": "layers", "diff_ids": [sha(HELLO)]}}).encode()), "invalid type: integer `1`, expected a string"),
    "config-too-large": (Image(config=b" " * (9 << 20)), "too large"),
    "manifest-too-large": (Image(raw=b" " * (5 << 20)), "larger than"),
    "manifest-not-json": (Image(raw=b"<html>"), "expected value"),
    "manifest-and-index": (Image(manifest=lambda d: d.update(manifests=[])), "expected manifest but found index"),
    "media-type-lies": (Image(type=INDEX), "if present, mediaType in manifest should be"),
    "schema1": (Image(raw=b'{"schemaVersion":1,"fsLayers":[]}', type="application/vnd.docker.distribution.manifest.v1+json"),
                "schema 1"),
    "too-many-layers": (Image(*([HELLO] * 200)), "max depth exceeded"),
    "no-layers": (Image(layers=[], diff_ids=[]), OK),
    "entry-above-root": (Image(tar(("../x", "file", None))), 'invalid entry name "../x"'),
    "entry-absolute": (Image(tar(("/abs", "file", None))), OK),
    "through-symlink": (Image(tar(("a", "link", "/tmp"), ("a/x", "file", None))), OK),
    "hard-link-outside": (Image(tar(("h", "hard", "../../etc/passwd"))), "invalid hardlink target"),
    "hard-link-missing": (Image(tar(("h", "hard", "etc/passwd"))), "linkat etc/passwd h: no such file or directory"),
    "whiteout-of-parent": (Image(tar((".wh...", "file", None))), 'invalid whiteout entry ".wh..."'),
    "whiteout-device": (Image(tar(("w", "char", (0, 0)))), "not allowed"),
    "name-too-long": (Image(tar(("n" * 256, "file", None))), "file name too long"),
    "not-a-tar": (Image(layers=[gzip.compress(b"z" * 2048)], diff_ids=[sha(b"z" * 2048)]), "archive/tar: invalid tar header"),
    "tar-cut": (Image(layers=[gzip.compress(BIG[:100000])], diff_ids=[sha(BIG[:100000])]), "unexpected EOF"),
    "plain-called-gzip": (Image(layers=[HELLO]), OK),
    "junk-after-gzip": (Image(layers=[gzip.compress(HELLO) + b"\0\0junk"]), OK),
    "redirect": (Image(redirect=True), OK),
    "rootfs-missing": (Image(config=b'{"architecture":"amd64","os":"linux"}'), "layers from manifest don't match image configuration"),
    "manifest-digest": (Image(at="@" + sha(b"asked")), "manifest verification failed for digest sha256:"),
    "index-of-indexes": (nested(5), "index has more than 2000 entries"),
    "foreign-file-url": (Image(missing="layer", manifest=foreign), "not found"),
    "entry-above-root-later": (Image(tar(("a/../../x", "file", None))), 'invalid entry name "'),
    "symlink-above-root": (Image(tar(("a", "link", "../../../tmp"), ("tmp", "dir", None), ("a/x", "file", None)),
                                 look={"tmp/x": b"x"}), OK),
    "symlink-then-directory": (Image(tar(("a", "link", VICTIM)), tar(("a/x", "file", None)), look={"a/x": b"x"}), OK),
    "same-path-twice": (Image(tar(("f", "file", b"first"), ("f", "file", b"last")), look={"f": b"last"}), OK),
    "hard-link-through-symlink": (Image(tar(("l", "link", "/etc"), ("h", "hard", "l/passwd"))),
                                  "linkat l/passwd h: no such file or directory"),
    "whiteout-of-nothing": (Image(tar((".wh.", "file", None))), 'invalid whiteout entry ".wh."'),
    "whiteout-of-itself": (Image(tar((".wh..", "file", None))), 'invalid whiteout entry ".wh.."'),
    "whiteout-below-symlink": (Image(tar(("d", "link", VICTIM)), tar(("d/.wh.f", "file", None), ("d/.wh..wh..opq", "file", None)),
                                     look={"d/f": None}), OK),
    "devices": (Image(tar(("b", "block", (8, 0)), ("c", "char", (1, 1)), ("p", "fifo", None))), OK),
    "path-too-long": (Image(tar(("/".join(["d"] * 2500), "dir", None))), "file name too long"),
    "nul-in-name": (Image(patched(0, b"a\0b"), look={"a": b"hello"}), OK),
    "nul-in-pax-name": (Image(tar(("f", "pax", {"path": "a\0b"}))), "archive/tar: invalid tar header"),
    "bad-checksum": (Image(patched(0, b"g", checksum=False)), "archive/tar: invalid tar header"),
    "negative-file-size": (Image(patched(124, b"\xff" * 12)), "archive/tar: invalid tar header"),
    "pax-record-too-large": (Image(tar(("f", "pax", {"comment": "x" * (2 << 20)}))), "archive/tar: header field too long"),
    "owner-too-large": (Image(tar(("f", "uid", 1 << 40))), "owner 1099511627776 is out of range"),
    "overlay-attribute": (Image(tar(("d", "pax", {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}))), OK),
}

SEEN_CREDENTIALS = []
HITS = {}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.server.elsewhere and self.headers.get("Authorization"):
            SEEN_CREDENTIALS.append(self.path)
        if parts == ["v2"]:
            return self.reply(b"{}", "application/json")
        case = CASES.get(parts[1] if len(parts) > 3 else "")
        if not case:
            return self.fail(404)
        image = case[0]
        if parts[-2] == "manifests":
            data = image.root if parts[-1] == "1" or "at" in image.tricks else image.blobs.get(parts[-1])
            return self.reply(data, image.type) if data is not None else self.fail(404)
        data = image.blobs.get(parts[-1])
        is_layer = data is not None and (data[:2] == b"\x1f\x8b" or data[:1] != b"{")
        if data is None or (is_layer and image.tricks.get("missing") == "layer"):
            return self.fail(404)
        if is_layer and image.tricks.get("redirect") and not self.server.elsewhere:
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{OTHER.server_address[1]}{self.path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if is_layer and "corrupt" in image.tricks:
            data = image.tricks["corrupt"](data)
        self.reply(data, "application/octet-stream", image.tricks if is_layer else {})

    def reply(self, data, media_type, tricks=()):
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and "no_ranges" not in tricks:
            start = int(wanted[6:].split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Docker-Content-Digest", sha(data))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(data)
        if "cut" in tricks:
            end = min(end, start + tricks["cut"])
        self.wfile.write(data[start:end])
        if end < len(data):
            self.close_connection = True

    def fail(self, status):
        self.send_response(status)
        body = b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(port=0, elsewhere=False):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Registry)
    server.elsewhere = elsewhere
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def look(base, image, path):
    """What an image has in a file."""
    with tempfile.TemporaryDirectory() as target:
        subprocess.run(base + ["image", "mount", image, target], check=True, capture_output=True)
        try:
            file = os.path.join(target, path)
            return open(file, "rb").read() if os.path.lexists(file) else None
        finally:
            subprocess.run(base + ["image", "unmount", "--rm", target], check=True, capture_output=True)


def main():
    global OTHER
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--address")
    arguments.add_argument("--ctr", default="ctr")
    arguments.add_argument("--only")
    arguments.add_argument("--serve", type=int)
    options = arguments.parse_args()
    server, OTHER = serve(options.serve or 0), serve(elsewhere=True)
    if options.serve:
        threading.Event().wait()
    base = [options.ctr, "--address", options.address, "--namespace", "evil"]
    wrong = 0
    with open(VICTIM + "/f", "w") as file:
        file.write("mine")
    for name, (case, want) in CASES.items():
        if options.only and options.only != name:
            continue
        image = f"127.0.0.1:{server.server_address[1]}/{name}{case.tricks.get('at', ':1')}"
        command = base + ["image", "pull", "--plain-http", "--user", "u:secret", "--platform", "linux/amd64", image]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        good = (done.returncode == 0) if want is OK else (done.returncode != 0 and want in said)
        left = subprocess.run(base + ["image", "ls", "-q"], capture_output=True, text=True).stdout.split()
        if want is not OK and left:
            good, said = False, f"image left behind: {left}"
        if want is OK and good:
            for path, content in case.tricks.get("look", {}).items():
                found = look(base, image, path)
                if found != content:
                    good, said = False, f"{path} holds {found!r}"
        subprocess.run(base + ["image", "rm", "--sync"] + left, capture_output=True) if left else None
        print(f"{'ok  ' if good else 'FAIL'} {name}: {said or 'pulled'}", flush=True)
        wrong += not good
    active = subprocess.run(base + ["snapshot", "ls"], capture_output=True, text=True).stdout
    if "Active" in active:
        print("FAIL snapshots left behind:\n" + active)
        wrong += 1
    if os.listdir(VICTIM) != ["f"] or open(VICTIM + "/f").read() != "mine":
        print("FAIL a layer reached", VICTIM)
        wrong += 1
    os.unlink(VICTIM + "/f")
    os.rmdir(VICTIM)
    if SEEN_CREDENTIALS:
        print("FAIL credentials sent to another host:", SEEN_CREDENTIALS)
        wrong += 1
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
