"""Docker's SDK for Python, as a program that manages containers uses it."""

import io
import os
import socket
import tarfile
import threading

import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import IPAMConfig, IPAMPool, LogConfig, Mount, Ulimit
from scenarios import BUSYBOX, TMP, equal, has, main, matches, raises, scenario, until

client = docker.from_env()
api = client.api


def run(command, **options):
    return client.containers.run(BUSYBOX, command, **options)


def sleeper(name, **options):
    return run("sleep 1000", name=name, detach=True, init=True, **options)


@scenario
def the_engine():
    assert client.ping()
    equal(client.version()["Os"], "linux")
    info = client.info()
    for field in ("ID", "Containers", "Driver", "KernelVersion", "NCPU", "MemTotal", "DockerRootDir", "Plugins"):
        assert field in info, field
    assert float(client.version()["ApiVersion"]) >= 1.44
    for kind in ("Images", "Containers", "Volumes", "BuildCache"):
        assert kind in client.df(), kind


@scenario
def containers():
    equal(run(["echo", "hello"], remove=True), b"hello\n")
    container = sleeper("py-a", environment={"A": "b"}, labels={"kind": "test"}, hostname="host-a", mem_limit="64m", nano_cpus=500_000_000,
                        cap_add=["NET_ADMIN"], ulimits=[Ulimit(name="nofile", soft=100, hard=200)], tmpfs={"/t": "size=1m"},
                        extra_hosts={"other": "192.0.2.9"}, log_config=LogConfig(type="json-file", config={"max-size": "1m"}))
    equal(container.status, "created")
    container.reload()
    equal(container.status, "running")
    equal(container.attrs["HostConfig"]["Memory"], 64 << 20)
    equal([found.name for found in client.containers.list(filters={"label": "kind=test"})], ["py-a"])
    has(str(container.top()["Processes"]), "sleep 1000")
    container.pause()
    equal(client.containers.get("py-a").status, "paused")
    container.unpause()
    container.rename("py-b")
    container.update(mem_limit="128m", memswap_limit="256m")
    container.reload()
    equal((container.name, container.attrs["HostConfig"]["Memory"]), ("py-b", 128 << 20))
    container.restart(timeout=0)
    container.kill(signal="SIGTERM")
    equal(container.wait()["StatusCode"], 143)
    container.start()
    container.stop(timeout=0)
    equal(container.diff() is None or isinstance(container.diff(), list), True)
    container.remove(v=True)
    raises(NotFound, container.reload, "No such container")


@scenario
def wait_with_a_condition():
    container = client.containers.create(BUSYBOX, "sh -c 'exit 9'", name="py-wait")
    # The answer's head comes when the engine waits, its body when the container has ended.
    waiting = api._post(api._url("/containers/{0}/wait", container.id), params={"condition": "next-exit"}, stream=True, timeout=30)
    removed = api._post(api._url("/containers/{0}/wait", container.id), params={"condition": "removed"}, stream=True, timeout=30)
    container.start()
    equal(waiting.json()["StatusCode"], 9)
    container.remove()
    equal(removed.json()["StatusCode"], 9)


@scenario
def exec_():
    container = sleeper("py-exec")
    code, out = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)
    equal((code, out), (3, (b"out\n", b"err\n")))
    code, out = container.exec_run("sh -c 'echo $A; pwd; id -u'", environment=["A=x"], workdir="/tmp", user="nobody")
    equal((code, out), (0, b"x\n/tmp\n65534\n"))
    _, stream = container.exec_run("sh -c 'for i in 1 2 3; do echo $i; done'", stream=True)
    equal(b"".join(stream), b"1\n2\n3\n")
    _, sock = container.exec_run("cat", stdin=True, socket=True)
    raw = sock._sock
    raw.sendall(b"through\n")
    raw.shutdown(socket.SHUT_WR)
    data = b"".join(iter(lambda: raw.recv(4096), b""))
    equal(data, b"\x01\0\0\0\0\0\0\x08through\n")
    made = api.exec_create(container.id, "tty", tty=True)
    has(api.exec_start(made["Id"], tty=True).decode(), "/dev/pts/")
    equal((api.exec_inspect(made["Id"])["ExitCode"], api.exec_inspect(made["Id"])["Running"]), (0, False))
    equal(container.exec_run("nosuch-program")[0], 127)
    container.remove(force=True)
    raises(NotFound, lambda: api.exec_create("nosuch", "x"))


@scenario
def attach_both_ways():
    container = client.containers.create(BUSYBOX, "sh -c 'read line; echo got $line; echo bad >&2'", name="py-attach", stdin_open=True)
    sock = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    sock._sock.sendall(b"word\n")
    data = b"".join(iter(lambda: sock._sock.recv(4096), b""))
    has(data.decode(), "got word\n", "bad\n")
    equal(container.wait()["StatusCode"], 0)
    container.remove()
    container = client.containers.create(BUSYBOX, "sh", name="py-tty", stdin_open=True, tty=True)
    sock = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    container.resize(height=33, width=99)
    sock._sock.sendall(b"stty size; exit\n")
    data = b"".join(iter(lambda: sock._sock.recv(4096), b""))
    has(data.decode(), "33 99")
    container.remove(force=True)
    container = client.containers.create(BUSYBOX, "sh -c 'for i in 1 2 3; do echo line $i; done'", name="py-stream")
    stream = container.attach(stream=True, logs=True)
    container.start()
    equal(b"".join(stream), b"line 1\nline 2\nline 3\n")
    container.remove(force=True)


@scenario
def logs_follow():
    container = run("sh -c 'echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.1; done; echo three'", name="py-logs", detach=True)
    until(lambda: container.logs() == b"one\ntwo\n" or container.logs() == b"two\none\n", "two lines")
    equal(container.logs(stdout=True, stderr=False), b"one\n")
    equal(container.logs(stdout=False, stderr=True), b"two\n")
    matches(container.logs(timestamps=True, tail=1).decode(), r"^20\d\d-\d\d-\d\dT[\d:.]+Z (one|two)$")
    lines = container.logs(stream=True, follow=True)
    seen = [next(lines), next(lines)]
    container.exec_run("touch /go")
    seen += list(lines)
    equal(sorted(seen), [b"one\n", b"three\n", b"two\n"])
    equal(container.logs(since=4_000_000_000), b"")
    container.remove(force=True)


@scenario
def events():
    stream = client.events(decode=True, filters={"container": "py-events", "type": "container"})
    seen = []
    reader = threading.Thread(target=lambda: [seen.append(event) for event in stream])
    reader.start()
    until(lambda: client.info()["NEventsListener"] > 0, "a listener")
    container = client.containers.create(BUSYBOX, "true", name="py-events", labels={"x": "y"})
    container.start()
    container.wait()
    container.remove()
    until(lambda: any(event["Action"] == "destroy" for event in seen), "destroy")
    stream.close()
    reader.join(10)
    equal([event["Action"] for event in seen], ["create", "start", "die", "destroy"])
    equal((seen[0]["Actor"]["Attributes"]["x"], seen[2]["Actor"]["Attributes"]["exitCode"]), ("y", "0"))
    past = list(client.events(decode=True, since=seen[0]["time"], until=seen[-1]["time"] + 1, filters={"container": "py-events"}))
    has(" ".join(event["Action"] for event in past), "create", "start", "die", "destroy")


@scenario
def stats():
    container = sleeper("py-stats")
    once = container.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0 and once["cpu_stats"]["cpu_usage"]["total_usage"] > 0 and once["pids_stats"]["current"] >= 1
    assert once["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    has(str(once["networks"]), "eth0")
    stream = container.stats(decode=True)
    first, second = next(stream), next(stream)
    assert second["read"] > first["read"]
    equal(second["precpu_stats"]["system_cpu_usage"], first["cpu_stats"]["system_cpu_usage"])
    stream.close()
    container.remove(force=True)


@scenario
def archive():
    container = client.containers.create(BUSYBOX, "true", name="py-archive")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("dir/file")
        info.size, info.uid, info.mode = 5, 12, 0o640
        tar.addfile(info, io.BytesIO(b"hello"))
    assert container.put_archive("/tmp", out.getvalue())
    stream, stat = container.get_archive("/tmp/dir/file")
    equal((stat["name"], stat["size"], stat["mode"] & 0o777), ("file", 5, 0o640))
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        member = tar.getmember("file")
        equal((member.uid, tar.extractfile(member).read()), (12, b"hello"))
    equal({change["Path"] for change in container.diff()}, {"/tmp", "/tmp/dir", "/tmp/dir/file"})
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
        has(" ".join(tar.getnames()), "tmp/dir/file", "bin/busybox")
    raises(NotFound, lambda: container.get_archive("/nosuch"), "/nosuch")
    container.remove()


@scenario
def images():
    image = client.images.get(BUSYBOX)
    equal(image.tags, [BUSYBOX])
    equal(image.attrs["Os"], "linux")
    assert image.tag("py-image", "two")
    equal(client.images.get("py-image:two").id, image.id)
    assert any("py-image:two" in found.tags for found in client.images.list(name="py-image"))
    path = os.path.join(TMP, "image.tar")
    with open(path, "wb") as file:
        for chunk in client.images.get("py-image:two").save(named="py-image:two"):
            file.write(chunk)
    client.images.remove("py-image:two")
    with open(path, "rb") as file:
        equal([tag for found in client.images.load(file) for tag in found.tags if tag.startswith("py-")], ["py-image:two"])
    container = client.containers.create(BUSYBOX, "sh -c 'echo changed > /changed'", name="py-commit")
    container.start()
    container.wait()
    made = container.commit("py-image", "three", message="a message", author="me", changes=["ENV X=y", "CMD cat /changed"])
    equal(client.containers.run("py-image:three", remove=True), b"changed\n")
    equal(made.attrs["Config"]["Env"][-1], "X=y")
    equal(made.history()[0]["Comment"], "a message")
    container.remove()
    imported = api.import_image_from_data(b"".join(client.containers.create(BUSYBOX, name="py-flat").export()), repository="py-image", tag="flat")
    has(imported, "sha256:")
    client.containers.get("py-flat").remove()
    raises(APIError, lambda: client.images.remove("nosuch"), "No such image")
    raises(ImageNotFound, lambda: client.images.get("nosuch:1"), "No such image")
    for tag in ("two", "three", "flat"):
        client.images.remove(f"py-image:{tag}")
    equal(client.images.list(name="py-image"), [])


@scenario
def networks():
    network = client.networks.create("py-net", driver="bridge", labels={"a": "b"}, ipam=IPAMConfig(pool_configs=[IPAMPool(subnet="10.88.7.0/24", gateway="10.88.7.1")]))
    server = client.containers.create(BUSYBOX, ["sh", "-c", "mkdir /w; echo found > /w/x; exec httpd -f -h /w"], name="py-server")
    network.connect(server, aliases=["site"], ipv4_address="10.88.7.7")
    server.start()
    until(lambda: b"httpd" in server.exec_run("ps")[1], "the server")
    equal(run("wget -qO- http://site/x", network="py-net", remove=True), b"found\n")
    equal(run("wget -qO- http://py-server/x", network="py-net", remove=True), b"found\n")
    network.reload()
    equal(list(network.attrs["Containers"].values())[0]["IPv4Address"], "10.88.7.7/24")
    raises(APIError, network.remove, "has active endpoints")
    network.disconnect(server)
    network.reload()
    equal(network.attrs["Containers"], {})
    server.remove(force=True)
    equal([found.name for found in client.networks.list(filters={"label": "a=b"})], ["py-net"])
    network.remove()
    raises(NotFound, lambda: client.networks.get("py-net"), "not found")
    raises(APIError, lambda: client.networks.create("py-bad", ipam=IPAMConfig(pool_configs=[IPAMPool(subnet="nonsense")])))


@scenario
def published_ports():
    container = run(["sh", "-c", "mkdir /w; echo page > /w/x; exec httpd -f -p 8080 -h /w"], name="py-port", detach=True, init=True,
                    ports={"8080/tcp": None, "9/udp": ("127.0.0.1", 19009)})
    until(lambda: container.reload() or container.ports.get("8080/tcp"), "a port")
    equal(container.ports["9/udp"], [{"HostIp": "127.0.0.1", "HostPort": "19009"}])
    port = int(container.ports["8080/tcp"][0]["HostPort"])

    def page():
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"GET /x HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(4096), b""))
        except OSError:
            return b""
    has(until(page, "a page").decode(), "page")
    other = client.containers.create(BUSYBOX, "true", name="py-taken", ports={"1/tcp": port})
    raises(APIError, other.start, "port is already allocated")
    other.remove(force=True)
    container.remove(force=True)


@scenario
def volumes():
    volume = client.volumes.create("py-vol", labels={"a": "b"})
    run("sh -c 'echo kept > /v/file'", volumes={"py-vol": {"bind": "/v", "mode": "rw"}}, remove=True)
    equal(run("cat /v/file", mounts=[Mount("/v", "py-vol", read_only=True)], remove=True), b"kept\n")
    container = client.containers.create(BUSYBOX, "true", name="py-volume", volumes=["py-vol:/v:ro"])
    raises(APIError, volume.remove, "volume is in use")
    container.remove()
    equal([found.name for found in client.volumes.list(filters={"label": "a=b"})], ["py-vol"])
    volume.remove()
    raises(NotFound, lambda: client.volumes.get("py-vol"), "no such volume")
    folder = os.path.join(TMP, "bound")
    os.makedirs(folder)
    run("sh -c 'echo out > /b/file'", volumes=[f"{folder}:/b"], remove=True)
    equal(open(os.path.join(folder, "file")).read(), "out\n")


@scenario
def health():
    second = 1_000_000_000
    container = sleeper("py-health", healthcheck={"test": ["CMD-SHELL", "test -e /well"], "interval": second // 5, "timeout": 5 * second, "retries": 2})
    until(lambda: container.reload() or container.health == "unhealthy", "unhealthy")
    container.exec_run("touch /well")
    until(lambda: container.reload() or container.health == "healthy", "healthy")
    assert container.attrs["State"]["Health"]["Log"]
    container.remove(force=True)


@scenario
def errors():
    err = raises(ContainerError, lambda: run("sh -c 'echo why >&2; exit 4'", remove=True), "why")
    equal(err.exit_status, 4)
    raises(APIError, lambda: run("nosuch-program", name="py-unstarted"), "executable file not found in $PATH")
    client.containers.get("py-unstarted").remove()
    raises(NotFound, lambda: client.containers.get("nosuch"), "No such container: nosuch")
    first = client.containers.create(BUSYBOX, name="py-twice")
    err = raises(APIError, lambda: client.containers.create(BUSYBOX, name="py-twice"), "is already in use by container")
    equal(err.status_code, 409)
    raises(APIError, first.pause, "is not running")
    raises(APIError, lambda: first.exec_run("true"), "is not running")
    first.remove()
    raises(APIError, lambda: client.containers.create(BUSYBOX, mem_limit="1m"), "Minimum memory limit allowed is 6MB")


@scenario
def prune():
    client.containers.create(BUSYBOX, labels={"prune": "me"})
    client.networks.create("py-prune", labels={"prune": "me"})
    client.volumes.create(labels={"prune": "me"})
    equal(len(client.containers.prune({"label": "prune=me"})["ContainersDeleted"]), 1)
    equal(client.networks.prune({"label": "prune=me"})["NetworksDeleted"], ["py-prune"])
    equal(len(client.volumes.prune({"label": "prune=me"})["VolumesDeleted"]), 1)
    equal(client.images.prune({"label": "prune=me"})["ImagesDeleted"], None)


main()
