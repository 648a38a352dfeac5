"""Private engines, each on roots, a socket and a network namespace of its own: Docker Engine, ours, and mixtures of the two."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time


class Refused(Exception):
    """An engine that did not come up, with the end of its log."""


def ping(path):
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            return b" 200 " in sock.recv(64)
    except OSError:
        return False


class Daemon:
    """A program in a network namespace, from its start to its end."""

    def __init__(self, argv, netns, log, path, ready, seconds=30, env=None):
        self.log = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen(["nsenter", f"--net=/run/netns/{netns}", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            start_new_session=True, env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **(env or {})})
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Refused(f"{os.path.basename(argv[0])} does not answer; its log ends:\n" + "".join(open(log, errors="replace").readlines()[-15:]))
            time.sleep(0.05)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Engine:
    """`kind` is docker or ours; `containerd`, `shim` and `runtime` may be named for a mixture, else they are the kind's own."""

    def __init__(self, kind, root, ours, peer, containerd=None, shim=None, runtime=None):
        self.kind, self.root, self.netns = kind, root, f"compat-{os.path.basename(root)}-{os.getpid()}"
        self.socket = os.path.join(root, "docker.sock")
        self.host = f"unix://{self.socket}"
        self.daemons = []
        containerd, shim = containerd or kind, shim or kind
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        try:
            subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True)
            self.start(containerd, shim, runtime, os.path.abspath(ours), os.path.abspath(peer))
        except BaseException:
            self.stop()
            raise

    def start(self, containerd, shim, runtime, ours, peer):
        # What one daemon looks for beside itself or in PATH: a folder with the programs of this mixture and no others.
        programs = os.path.join(self.root, "bin")
        os.makedirs(programs)
        for name in ("docker-proxy", "docker-init"):
            os.symlink(f"{peer}/{name}", f"{programs}/{name}")
        os.symlink({"docker": f"{peer}/dockerd", "ours": f"{ours}/dockerd-rs"}[self.kind], f"{programs}/dockerd")
        os.symlink(f"{ours}/docker-rs", f"{programs}/docker-rs")
        for name in ("containerd-rs", "containerd-shim-rs-v2"):
            os.symlink(f"{ours}/{name}", f"{programs}/{name}")
        for name in ("containerd", "containerd-shim-runc-v2"):
            os.symlink(f"{peer}/{name}", f"{programs}/{name}")
        program = {"docker": f"{peer}/dockerd", "ours": f"{ours}/dockerd-rs"}[self.kind]
        argv = [program, "--config-file", "/dev/null", "--data-root", f"{self.root}/data", "--exec-root", f"{self.root}/exec",
                "--pidfile", f"{self.root}/pid", "-H", self.host]
        pure = (containerd, shim, runtime) == (self.kind, self.kind, None)
        if not pure:
            argv += self.mixture(containerd, shim, runtime, ours, peer, programs)
        # Ours alone must do without anything of the stock engine.
        path = programs if self.kind == "docker" else ours if pure else f"{ours}:{programs}"
        self.daemons.append(Daemon(argv, self.netns, f"{self.root}/log", path, lambda: ping(self.socket)))

    def mixture(self, containerd, shim, runtime, ours, peer, programs):
        """Starts the containerd of the mixture; the flags that make the engine use it."""
        address = f"{self.root}/containerd.sock"
        config = f"{self.root}/containerd.toml"
        with open(config, "w") as file:
            file.write(f'version = 2\nroot = "{self.root}/containerd"\nstate = "{self.root}/containerd-state"\n'
                       f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{address}"\n')
        program = {"docker": f"{peer}/containerd", "ours": f"{ours}/containerd-rs"}[containerd]
        self.daemons.append(Daemon([program, "--config", config], self.netns, f"{self.root}/containerd.log", programs, lambda: os.path.exists(address)))
        kind = {"docker": "io.containerd.runc.v2", "ours": "io.containerd.rs.v2"}[shim]
        entry = {"runtimeType": kind}
        if runtime:
            entry["options"] = {"BinaryName": runtime}
        file = f"{self.root}/daemon.json"
        with open(file, "w") as out:
            json.dump({"runtimes": {"mixed": entry}, "default-runtime": "mixed"}, out)
        return ["--containerd", address, "--config-file", file]

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.stop()
        # A shim outlives its daemon by design; what still stands under this root is this engine's.
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    mine = f"{self.root}/".encode() in file.read()
                if mine and int(pid) != os.getpid() and os.readlink(f"/proc/{pid}/exe").rsplit("/", 1)[-1].startswith(
                        ("containerd", "docker", "dockerd", "runc")):
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split()[4] for line in file]
        for mount in sorted((mount for mount in mounts if mount.startswith(self.root + "/")), reverse=True):
            subprocess.run(["umount", "-l", mount])
        subprocess.run(["ip", "netns", "del", self.netns], stderr=subprocess.DEVNULL)

    def remove(self):
        shutil.rmtree(self.root, ignore_errors=True)


class Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path):
        super().__init__("docker", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def load(path, images):
    """Loads image files over the API, so that the programs under test are not needed for it."""
    for image in images:
        connection = Connection(path)
        with open(image, "rb") as file:
            connection.request("POST", "/images/load?quiet=1", file, {"Content-Type": "application/x-tar", "Content-Length": str(os.path.getsize(image))})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != 200 or b"errorDetail" in text:
            raise Refused(f"load of {image}: {answer.status} {text[-300:]!r}")
        connection.close()


def leftovers(path):
    """Containers, named volumes and networks that clients left, once their reapers had time to end; empty when there are none."""
    def get(url):
        connection = Connection(path)
        connection.request("GET", url)
        return json.loads(connection.getresponse().read())
    deadline = time.monotonic() + 20
    while True:
        left = ["container " + item["Names"][0] for item in get("/containers/json?all=1")]
        left += ["volume " + item["Name"] for item in get("/volumes")["Volumes"] or [] if len(item["Name"]) != 64]
        left += ["network " + item["Name"] for item in get("/networks") if item["Name"] not in ("bridge", "host", "none")]
        if not left or time.monotonic() > deadline:
            return ", ".join(left)
        time.sleep(0.1)
