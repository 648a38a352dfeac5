"""Docker Compose over one realistic application (app/compose.yaml), from its start to its end."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import urllib.request

from scenarios import DOCKER, TMP, docker, equal, has, lacks, main, matches, scenario, sh, until

APP = os.path.join(TMP, "app")
shutil.copytree(os.path.join(os.path.dirname(os.path.abspath(__file__)), "app"), APP)


def compose(*words, **options):
    return sh(DOCKER, "compose", *words, cwd=options.pop("cwd", APP), timeout=options.pop("timeout", 120), **options)


def containers(*filters):
    words = [word for text in ("label=com.docker.compose.project=shop", *filters) for word in ("--filter", text)]
    return dict(line.split(" ", 1) for line in docker("ps", "-a", "--format", "{{.Names}} {{.ID}}", *words).splitlines())


def state(name, field="Status"):
    return docker("inspect", "--format", "{{.State." + field + "}}", name).strip()


@scenario
def config_is_read():
    equal(sorted(compose("config", "--services").split()), ["migrate", "proxy", "store", "web", "worker"])
    equal(sorted(compose("--profile", "tools", "config", "--services").split()), ["migrate", "proxy", "shell", "store", "web", "worker"])
    equal(sorted(compose("config", "--volumes").split()), ["scratch", "store-data"])
    has(compose("config", "--images"), "compat-redis:1")


@scenario
def up_in_the_order_of_health():
    out = compose("up", "-d", "--wait", "--wait-timeout", "60", "store", "web", "proxy", "worker")
    has(out.err, "shop-store-1", "Healthy", "shop-migrate-1", "Exited", "shop-web-2")
    equal(sorted(containers()), ["shop-migrate-1", "shop-proxy-1", "shop-store-1", "shop-web-1", "shop-web-2", "shop-worker-1"])
    started = {name: docker("inspect", "--format", "{{.State.StartedAt}}", f"shop-{name}-1").strip() for name in ("store", "migrate", "web", "proxy")}
    equal(sorted(started, key=started.get), ["store", "migrate", "web", "proxy"])
    equal(state("shop-migrate-1", "ExitCode"), "0")
    equal(docker("inspect", "--format", "{{.State.Health.Status}}", "shop-web-1").strip(), "healthy")


@scenario
def a_second_up_changes_nothing():
    before = containers()
    out = compose("up", "-d")
    equal(containers(), before)
    lacks(out.err, "Recreate", "Creating")


@scenario
def ps_and_ls():
    rows = [json.loads(line) for line in compose("ps", "-a", "--format", "json").splitlines()]
    states = {row["Name"]: (row["State"], row["Health"]) for row in rows}
    equal(states["shop-web-1"], ("running", "healthy"))
    equal(states["shop-migrate-1"], ("exited", ""))
    ports = next(row["Publishers"] for row in rows if row["Name"] == "shop-proxy-1")
    has(str(ports), "'TargetPort': 80", "'PublishedPort': 18080")
    has(compose("ps"), "NAME", "IMAGE", "(healthy)", "127.0.0.1:18080->80/tcp")
    equal(len(compose("ps", "-q", "web").split()), 2)
    equal(compose("ps", "--services", "--status", "exited", "-a").strip(), "migrate")
    project = json.loads(compose("ls", "--format", "json"))[0]
    equal((project["Name"], project["Status"]), ("shop", "exited(1), running(5)") if "exited" in project["Status"] else ("shop", "running(5)"))


@scenario
def published_ports():
    equal(compose("port", "proxy", "80").strip(), "127.0.0.1:18080")
    matches(compose("port", "proxy", "9000"), r"^0\.0\.0\.0:\d+$|^\[::\]:\d+$")

    def page():
        try:
            return urllib.request.urlopen("http://127.0.0.1:18080/settings", timeout=5).read()
        except OSError:
            return None
    equal(until(page, "an answer of the proxy"), b"color=blue\n")


@scenario
def configs_secrets_environment():
    equal(compose("exec", "-T", "web", "cat", "/run/secrets/token"), "sesame")
    equal(compose("exec", "-T", "web", "sh", "-c", "echo $LEVEL $STORE $GREETING"), "info cache hello world\n")
    equal(compose("exec", "-T", "--index", "2", "web", "hostname").strip(), containers()["shop-web-2"][:12])


@scenario
def names_between_services():
    equal(compose("exec", "-T", "worker", "sh", "-c", "echo GET schema | nc cache 6379 | tail -n 1 & sleep 0.5; kill $! 2>/dev/null; true").strip(), "7")
    addresses = compose("exec", "-T", "proxy", "nslookup", "web")
    equal(len({line for line in addresses.splitlines() if line.startswith("Address") and "10.88.1." in line}), 2)
    # `back` is internal, `front` is another network: the worker sees neither the proxy nor a way out.
    has(compose("exec", "-T", "worker", "sh", "-c", "nslookup proxy 2>&1 || true"), "can't")
    lacks(compose("exec", "-T", "worker", "ip", "route"), "default")


@scenario
def exec_codes_users_input():
    equal(compose("exec", "-T", "web", "sh", "-c", "exit 42", code=42).code, 42)
    equal(compose("exec", "-T", "-u", "nobody", "-w", "/tmp", "-e", "A=b", "web", "sh", "-c", "id -un; pwd; echo $A"), "nobody\n/tmp\nb\n")
    equal(compose("exec", "-T", "web", "md5sum", input="x" * 200000).split()[0], hashlib.md5(b"x" * 200000).hexdigest())
    has(compose("exec", "-T", "migrate", "true", code=None).err, "is not running")


@scenario
def cp_both_ways():
    source = os.path.join(APP, "sent")
    os.makedirs(os.path.join(source, "deep"))
    with open(os.path.join(source, "deep", "file"), "w") as file:
        file.write("content\n")
    compose("cp", source, "worker:/tmp/got")
    equal(compose("exec", "-T", "worker", "cat", "/tmp/got/deep/file"), "content\n")
    compose("cp", "worker:/in/input", os.path.join(APP, "back"))
    equal(open(os.path.join(APP, "back")).read(), "an input\n")
    compose("cp", "--all", os.path.join(APP, "back"), "web:/www/both")
    for index in "12":
        equal(compose("exec", "-T", "--index", index, "web", "cat", "/www/both"), "an input\n")


@scenario
def logs_and_logs_follow():
    has(compose("logs", "--no-color", "web"), "web-1  | web is up", "web-2  | web is up")
    equal(len(compose("logs", "--no-log-prefix", "--tail", "3", "worker").splitlines()), 3)
    follow = subprocess.Popen([DOCKER, "compose", "logs", "-f", "--no-color", "--tail", "0", "worker", "store"], cwd=APP, stdout=subprocess.PIPE, text=True)
    try:
        lines = [follow.stdout.readline() for _ in range(3)]
        for line in lines:
            matches(line, r"^worker-1  \| tick \d+$")
        compose("stop", "worker", "store")
        follow.communicate(timeout=30)
        equal(follow.returncode, 0)
    finally:
        follow.kill()
    compose("start", "store", "worker")


@scenario
def restart_stop_start_kill():
    before = state("shop-worker-1", "StartedAt")
    compose("restart", "-t", "1", "worker")
    assert state("shop-worker-1", "StartedAt") > before
    compose("kill", "-s", "SIGKILL", "worker")
    until(lambda: state("shop-worker-1") == "exited", "the end of the worker")
    equal(state("shop-worker-1", "ExitCode"), "137")
    compose("start", "worker")
    equal(state("shop-worker-1"), "running")


@scenario
def pause_and_unpause():
    compose("pause", "worker")
    equal(state("shop-worker-1"), "paused")
    has(compose("ps", "worker"), "(Paused)")
    compose("unpause", "worker")
    equal(state("shop-worker-1"), "running")


@scenario
def top_stats_images():
    has(compose("top", "store"), "store", "redis-server")
    has(compose("stats", "--no-stream", "--format", "json"), '"Name":"shop-web-1"', '"MemPerc"')
    rows = json.loads(compose("images", "--format", "json"))
    equal({row["Repository"] for row in rows}, {"compat-busybox", "compat-redis"})
    has(compose("volumes"), "shop_scratch")


@scenario
def events():
    follow = subprocess.Popen([DOCKER, "compose", "events", "--json", "worker"], cwd=APP, stdout=subprocess.PIPE, text=True)
    try:
        seen = []
        # The stream is open when it shows something; until then there is nothing to wait for but the engine's own report of its listeners.
        until(lambda: docker("info", "--format", "{{.NEventsListener}}").strip() != "0", "a listener")
        compose("restart", "-t", "1", "worker")
        while "start" not in seen:
            event = json.loads(follow.stdout.readline())
            equal(event["service"], "worker")
            seen.append(event["action"])
        # Which of an end and a stop is told first is not promised.
        equal(sorted(action for action in seen if action in ("die", "stop", "start")), ["die", "start", "stop"])
    finally:
        follow.send_signal(signal.SIGINT)
        follow.communicate(timeout=20)


@scenario
def scale_up_and_down():
    compose("up", "-d", "--no-recreate", "--scale", "web=4", "--wait")
    equal(len(compose("ps", "-q", "web").split()), 4)
    compose("scale", "web=2")
    equal(len(compose("ps", "-q", "web").split()), 2)


@scenario
def a_change_recreates_only_its_service():
    before = containers()
    out = compose("up", "-d", "--wait", env={"LEVEL": "debug"})
    after = containers()
    changed = {name for name in before if before[name] != after.get(name)}
    equal({name for name in changed if "-web-" not in name}, set())
    equal(len(changed), 2)
    has(out.err, "Recreate")
    equal(compose("exec", "-T", "web", "sh", "-c", "echo $LEVEL"), "debug\n")
    compose("up", "-d", "--force-recreate", "--no-deps", "worker")
    assert containers()["shop-worker-1"] != after["shop-worker-1"]


@scenario
def a_profile_and_one_off_runs():
    compose("--profile", "tools", "up", "-d", "shell")
    equal(state("shop-shell-1"), "running")
    equal(compose("run", "--rm", "-T", "--no-deps", "worker", "sh", "-c", "echo once; exit 3", code=3), "once\n")
    compose("run", "-d", "--no-deps", "--name", "shop-extra", "-v", "scratch:/s", "worker", "sleep", "60")
    has(docker("inspect", "--format", "{{range .Mounts}}{{.Name}} {{end}}", "shop-extra"), "shop_scratch")
    docker("rm", "-f", "shop-extra")
    compose("--profile", "tools", "rm", "-sf", "shell")
    lacks(str(containers()), "shop-shell-1")


@scenario
def data_outlives_containers():
    compose("exec", "-T", "store", "redis-cli", "set", "kept", "yes")
    compose("exec", "-T", "store", "redis-cli", "save")
    compose("down", "--timeout", "1", "--remove-orphans")
    equal(containers(), {})
    equal(sorted(docker("volume", "ls", "-q", "--filter", "name=shop_").split()), ["shop_scratch", "shop_store-data"])
    equal(docker("network", "ls", "-q", "--filter", "name=shop_").strip(), "")
    compose("up", "-d", "--wait", "store")
    equal(compose("exec", "-T", "store", "redis-cli", "get", "kept").strip(), "yes")


@scenario
def create_then_start():
    compose("create", "migrate")
    equal(state("shop-migrate-1"), "created")
    compose("start", "migrate")
    equal(docker("wait", "shop-migrate-1").strip(), "0")
    has(compose("logs", "migrate"), "migrated")


@scenario
def attached_up_ends_with_the_code():
    folder = os.path.join(TMP, "job")
    os.makedirs(folder)
    with open(os.path.join(folder, "compose.yaml"), "w") as file:
        file.write("services:\n  job: {image: compat-busybox:1, command: sh -c 'echo working; sleep 0.5; exit 5'}\n"
                   "  side: {image: compat-busybox:1, command: sleep 1000, init: true}\n")
    out = compose("up", "--abort-on-container-exit", "--exit-code-from", "job", "--no-color", cwd=folder, code=5)
    has(out, "job-1", "working", "job-1 exited with code 5")
    compose("down", "-v", "-t", "0", cwd=folder)


@scenario
def commit_and_export():
    compose("commit", "store", "shop-store:copy")
    has(docker("image", "inspect", "--format", "{{.Config.ExposedPorts}}", "shop-store:copy"), "6379")
    compose("export", "-o", os.path.join(TMP, "store.tar"), "store")
    has(sh("tar", "tf", os.path.join(TMP, "store.tar")), "usr/bin/redis-server")
    docker("rmi", "shop-store:copy")


@scenario
def errors_are_told():
    has(compose("exec", "nosuch", "true", code=None).err, "nosuch")
    folder = os.path.join(TMP, "bad")
    os.makedirs(folder)
    with open(os.path.join(folder, "compose.yaml"), "w") as file:
        file.write("services:\n  a: {image: nosuch-image:1, pull_policy: never}\n  b: {image: compat-busybox:1, command: [nosuch-program]}\n")
    has(compose("up", "-d", "a", cwd=folder, code=1).err, "nosuch-image:1")
    has(compose("up", "-d", "b", cwd=folder, code=1).err, "executable file not found in $PATH")
    compose("down", cwd=folder)


@scenario
def down_leaves_nothing():
    compose("up", "-d", "--wait")
    out = compose("--profile", "*", "down", "-v", "--remove-orphans", "-t", "1")
    has(out.err, "Removed")
    equal(containers(), {})
    equal(docker("volume", "ls", "-q", "--filter", "name=shop_").strip(), "")
    equal(docker("network", "ls", "-q", "--filter", "name=shop_").strip(), "")
    equal(json.loads(compose("ls", "-a", "--format", "json")), [])


main()
