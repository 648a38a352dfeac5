"""Testcontainers for Python, as a test suite uses it: real servers, wait strategies, mapped ports, clean-up by the reaper."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import urllib.request

import docker
import psycopg
from scenarios import BUSYBOX, POSTGRES, REDIS, TMP, equal, has, main, raises, scenario, until
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer
from testcontainers.core.container import DockerContainer, Reaper
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import HealthcheckWaitStrategy, HttpWaitStrategy, LogMessageWaitStrategy, PortWaitStrategy

client = docker.from_env()


@scenario
def redis_by_its_module():
    with RedisContainer(REDIS) as redis:
        connection = redis.get_client()
        connection.set("a", 1)
        equal(connection.incr("a"), 2)
        ident = redis.get_container_id()
    raises(docker.errors.NotFound, lambda: client.containers.get(ident), "No such container")


@scenario
def postgresql_by_its_module():
    with PostgresContainer(POSTGRES, username="me", password="secret", dbname="shop", driver=None) as postgres:
        with psycopg.connect(postgres.get_connection_url()) as connection:
            connection.execute("create table t (n int)")
            connection.execute("insert into t select generate_series(1, 1000)")
            equal(connection.execute("select sum(n) from t").fetchone(), (500500,))


@scenario
def wait_strategies():
    page = "mkdir /w; echo hello > /w/index.html; sleep 0.5; echo serving; exec httpd -f -p 8080 -h /w"
    web = DockerContainer(BUSYBOX).with_command(["sh", "-c", page]).with_exposed_ports(8080)
    with web.waiting_for(HttpWaitStrategy(8080).for_status_code(200)):
        equal(urllib.request.urlopen(f"http://{web.get_container_host_ip()}:{web.get_exposed_port(8080)}/").read(), b"hello\n")
    log = DockerContainer(BUSYBOX).with_command(["sh", "-c", "sleep 0.3; echo ready; sleep 100"])
    with log.waiting_for(LogMessageWaitStrategy("ready")):
        has(log.get_logs()[0].decode(), "ready")
    port = DockerContainer(BUSYBOX).with_command(["sh", "-c", page]).with_exposed_ports(8080)
    with port.waiting_for(PortWaitStrategy(8080)):
        pass
    well = DockerContainer(BUSYBOX).with_command(["sh", "-c", "sleep 0.3; touch /well; sleep 100"]).with_kwargs(
        healthcheck={"test": ["CMD-SHELL", "test -e /well"], "interval": 300_000_000, "retries": 50})
    with well.waiting_for(HealthcheckWaitStrategy()):
        equal(well.get_wrapped_container().health, "healthy")


@scenario
def exec_copy_volumes():
    path = os.path.join(TMP, "mapped")
    os.makedirs(path)
    open(os.path.join(path, "in"), "w").write("from the host")
    with DockerContainer(BUSYBOX).with_command("sleep 1000").with_env("A", "b").with_volume_mapping(path, "/mapped", "ro").with_tmpfs_mount("/t", "size=1m") as box:
        code, out = box.exec(["sh", "-c", "echo $A; cat /mapped/in; exit 3"])
        equal((code, out), (3, b"b\nfrom the host"))
        box.copy_into_container(b"sent", "/tmp/sent")
        equal(box.exec("cat /tmp/sent")[1], b"sent")
        box.copy_from_container("/tmp/sent", pathlib.Path(TMP) / "got")
        equal((pathlib.Path(TMP) / "got").read_bytes(), b"sent")


@scenario
def containers_on_one_network():
    with Network() as network:
        with RedisContainer(REDIS).with_network(network).with_network_aliases("store"):
            with DockerContainer(REDIS).with_command("redis-cli -h store ping").with_network(network) as asker:
                equal(asker.wait(), 0)
                has(asker.get_logs()[0].decode(), "PONG")


@scenario
def tests_in_parallel():
    def one(number):
        with RedisContainer(REDIS) as redis:
            redis.get_client().set("n", number)
            return int(redis.get_client().get("n"))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        equal(list(pool.map(one, range(4))), [0, 1, 2, 3])


@scenario
def a_killed_client_is_cleaned_up_after():
    script = ("from testcontainers.community.redis import RedisContainer\nfrom testcontainers.core.network import Network\n"
              f"network = Network().create()\nredis = RedisContainer('{REDIS}').with_network(network).start()\n"
              "print(redis.get_container_id(), network.id, flush=True)\nimport time\ntime.sleep(1000)\n")
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "RYUK_RECONNECTION_TIMEOUT": "1s"})
    ident, network = child.stdout.readline().split()
    equal(client.containers.get(ident).status, "running")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    until(lambda: not client.containers.list(all=True, filters={"id": ident}), "the reaper removes the container", 60)
    until(lambda: not client.networks.list(filters={"id": network}), "the reaper removes the network", 60)


@scenario
def the_reaper_itself_goes():
    Reaper.delete_instance()
    until(lambda: not client.containers.list(all=True, filters={"name": "testcontainers-ryuk"}), "no reaper is left", 60)


main()
