#!/usr/bin/env python3
"""What published ports cost, on one engine or on two in turn: time to start and to remove a container with many, processes and memory they add.

usage: ports.py OUR.sock [THEIR.sock] [--ports N] [--rounds N]
The same container without ports is measured beside it, so that what is told is the ports' own share. Needs root: processes and their memory are those of
the engine's network namespace. The image is made here from the system's static busybox.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import time

from cycle import IMAGE, Engine


def processes(socket_path):
    """The processes in the engine's network namespace: pid to PSS, MiB."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(socket_path)
        pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    here = os.readlink(f"/proc/{pid}/ns/net")
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{entry}/ns/net") == here:
                with open(f"/proc/{entry}/smaps_rollup") as text:
                    found[entry] = next(int(line.split()[1]) / 1024 for line in text if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return found


def once(engine, path, count):
    """Starts and removes a container with `count` ports: milliseconds of start and removal, processes and MiB while it ran."""
    bindings = {f"{20000 + n}/tcp": [{"HostPort": str(30000 + 2 * n)}] for n in range(count)}
    body = {"Image": IMAGE, "Cmd": ["sleep", "1000"], "ExposedPorts": {port: {} for port in bindings}, "HostConfig": {"PortBindings": bindings}}
    name = json.loads(engine.call("POST", "/containers/create", body))["Id"]
    before = time.perf_counter()
    engine.call("POST", f"/containers/{name}/start")
    started = time.perf_counter()
    time.sleep(0.5)
    running = processes(path)
    removing = time.perf_counter()
    engine.call("DELETE", f"/containers/{name}?force=1")
    gone = time.perf_counter()
    return 1e3 * (started - before), 1e3 * (gone - removing), len(running), sum(running.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sockets", nargs="+")
    parser.add_argument("--ports", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    engines = [(path, Engine(path)) for path in options.sockets]
    for path, engine in engines:
        engine.load()
        once(engine, path, 1)
    rows = {path: ([], []) for path, _ in engines}
    for _ in range(options.rounds):
        for path, engine in engines:
            for with_ports in (False, True):
                rows[path][with_ports].append(once(engine, path, options.ports if with_ports else 0))
    shares = []
    for path, (without, with_ports) in rows.items():
        median = lambda rows, at: statistics.median(row[at] for row in rows)
        share = [median(with_ports, at) - median(without, at) for at in range(4)]
        shares.append(share)
        print(f"{path}\n  start {median(with_ports, 0):.1f} ms, of which ports {share[0]:.1f}; removal {median(with_ports, 1):.1f} ms, of which ports {share[1]:.1f}; "
              f"{share[2]:+.0f} processes, {share[3]:+.1f} MiB")
    if len(shares) == 2:
        ours, theirs = shares
        print(f"ports' share of start and removal, ours over theirs: {(ours[0] + ours[1]) / (theirs[0] + theirs[1]):.2f}")


if __name__ == "__main__":
    main()
