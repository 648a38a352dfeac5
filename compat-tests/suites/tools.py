"""Tools over the engine's API and over containerd's: a watcher of many containers, ctr."""

import http.client
import json
import os
import socket
import threading

from scenarios import BUSYBOX, TMP, docker, equal, has, main, matches, scenario, sh, until

HOST = os.environ["DOCKER_HOST"]
ROOT = os.environ["COMPAT_ROOT"]


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(HOST.removeprefix("unix://"))


@scenario
def stats_of_100_containers():
    names = [f"tools-{number}" for number in range(100)]
    try:
        def start(some):
            for name in some:
                docker("run", "-d", "--network", "none", "--stop-signal", "KILL", "--name", name, BUSYBOX, "sleep", "10000")
        starters = [threading.Thread(target=start, args=(names[part::4],)) for part in range(4)]
        for thread in starters:
            thread.start()
        for thread in starters:
            thread.join()
        lines = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", timeout=120).splitlines()
        shown = [line for line in lines if line.startswith("tools-")]
        equal(len(shown), 100)
        # A watcher keeps one stream open for each container and reads them all.
        samples = []

        def watch(name):
            connection = Connection("docker", timeout=60)
            connection.request("GET", f"/containers/{name}/stats?stream=1")
            answer = connection.getresponse()
            seen = [json.loads(answer.readline()) for _ in range(3)]
            samples.append((seen[0]["read"] < seen[1]["read"] < seen[2]["read"], seen[2]["memory_stats"]["usage"] > 0))
            connection.close()
        watchers = [threading.Thread(target=watch, args=(name,)) for name in names]
        for thread in watchers:
            thread.start()
        for thread in watchers:
            thread.join()
        equal(samples, [(True, True)] * 100)
    finally:
        docker("rm", "-f", *names, code=None, timeout=120)


def ctr(*words, **options):
    return sh("ctr", "-a", os.path.join(ROOT, "exec/containerd/containerd.sock"), *words, **options)


@scenario
def ctr_sees_the_engines_containers():
    ident = docker("run", "-d", "--init", "--name", "tools-seen", BUSYBOX, "sleep", "1000").strip()
    has(ctr("version"), "Server:")
    has(ctr("namespaces", "ls", "-q"), "moby")
    has(ctr("-n", "moby", "containers", "ls", "-q"), ident)
    matches(ctr("-n", "moby", "tasks", "ls"), rf"^{ident} +\d+ +RUNNING$")
    has(ctr("-n", "moby", "tasks", "ps", ident), "PID")
    ctr("-n", "moby", "tasks", "kill", "-s", "SIGKILL", "-a", ident)
    equal(docker("wait", "tools-seen").strip(), "137")
    docker("rm", "tools-seen")


@scenario
def ctr_runs_a_container_of_its_own():
    tar = os.path.join(TMP, "busybox.tar")
    docker("save", "-o", tar, BUSYBOX)
    name = "docker.io/library/compat-busybox:1"
    own = ("-n", "tools")
    ctr(*own, "images", "import", tar)
    has(ctr(*own, "images", "ls", "-q"), name)
    equal(ctr(*own, "run", "--rm", name, "one", "echo", "hello"), "hello\n")
    ctr(*own, "run", "--rm", name, "two", "sh", "-c", "exit 7", code=7)
    ctr(*own, "run", "-d", name, "three", "sleep", "1000")
    equal(ctr(*own, "tasks", "exec", "--exec-id", "e", "three", "echo", "inside"), "inside\n")
    ctr(*own, "tasks", "pause", "three")
    matches(ctr(*own, "tasks", "ls"), r"^three +\d+ +PAUSED$")
    ctr(*own, "tasks", "resume", "three")
    ctr(*own, "tasks", "kill", "-s", "SIGKILL", "three")
    until(lambda: "STOPPED" in ctr(*own, "tasks", "ls"), "the end of the task")
    ctr(*own, "tasks", "rm", "three", code=None)
    ctr(*own, "containers", "rm", "three")
    ctr(*own, "images", "rm", "--sync", name)
    ctr("namespaces", "rm", "tools", code=None)


main()
