"""The docker command line as people use it: at a terminal where a person would be at one, in pipes where a script would."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import time

from scenarios import BUSYBOX, DOCKER, TMP, docker, equal, has, lacks, main, matches, scenario, sh, until
from terminal import Terminal

PEER = os.environ["COMPAT_PEER"]


def terminal(*words, **options):
    return Terminal(DOCKER, *words, **options)


@scenario
def version_and_info():
    has(docker("version"), "Client:", "Server:", "API version:", "containerd:", "runc:", "docker-init:")
    matches(docker("version", "--format", "{{.Server.APIVersion}}"), r"^1\.\d\d$")
    has(docker("info"), "Server:", " Storage Driver:", " Cgroup Version:", " Runtimes:", " Docker Root Dir:", " Live Restore Enabled:")
    equal(json.loads(docker("info", "--format", "json"))["OSType"], "linux")


@scenario
def a_shell_at_a_terminal():
    shell = terminal("run", "-it", "--name", "cli-shell", "-e", "PS1=ready> ", "--detach-keys", "ctrl-x,x", BUSYBOX, "sh")
    shell.expect("ready> ")
    shell.type("tty; stty size\n")
    shell.expect(r"/dev/pts/0\r\n30 100\r\n")
    shell.size(44, 111)
    os.kill(shell.pid, signal.SIGWINCH)
    until(lambda: docker("exec", "cli-shell", "stty", "-F", "/dev/pts/0", "size").strip() == "44 111", "the new size")
    shell.type("sleep 100\n")
    until(lambda: "sleep 100" in docker("top", "cli-shell"), "the sleep")
    shell.type("\x03")
    shell.expect("ready> ")
    shell.type("kept=yes\n")
    shell.expect("ready> ")
    shell.type("\x18x")
    equal(shell.end(), 0)
    equal(docker("inspect", "--format", "{{.State.Running}}", "cli-shell").strip(), "true")
    again = terminal("attach", "cli-shell")
    again.type("echo kept is $kept\n")
    again.expect("kept is yes")
    again.type("exit 7\n")
    equal(again.end(), 7)
    assert "\r\n" in again.seen
    docker("rm", "cli-shell")


@scenario
def exec_at_a_terminal():
    docker("run", "-d", "--init", "--name", "cli-exec", BUSYBOX, "sleep", "1000")
    shell = terminal("exec", "-it", "-e", "PS1=in> ", "-w", "/tmp", "-u", "nobody", "cli-exec", "sh")
    shell.expect("in> ")
    shell.type("pwd; id -un; stty size\n")
    shell.expect(r"/tmp\r\nnobody\r\n30 100\r\nin> ")
    shell.type("\x04")
    equal(shell.end(), 0)
    equal(terminal("exec", "-t", "cli-exec", "sh", "-c", "exit 5").end(), 5)
    equal(docker("exec", "-i", "cli-exec", "cat", input="piped"), "piped")
    docker("exec", "-d", "cli-exec", "touch", "/made")
    until(lambda: docker("exec", "cli-exec", "ls", "/made", code=None).code == 0, "the file")
    has(docker("exec", "cli-exec", "nosuch", code=127), "executable file not found in $PATH")
    has(docker("exec", "-it", "cli-exec", "true", code=1).err, "TTY")
    docker("rm", "-f", "cli-exec")


@scenario
def pipes_and_exit_codes():
    data = os.urandom(300_000).hex()
    equal(docker("run", "--rm", "-i", BUSYBOX, "sha256sum", input=data).split()[0], hashlib.sha256(data.encode()).hexdigest())
    out = docker("run", "--rm", BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 42", code=42)
    equal((str(out), out.err), ("out\n", "err\n"))
    docker("run", "--rm", BUSYBOX, "nosuch", code=127)
    docker("run", "--rm", BUSYBOX, "/bin", code=126)
    docker("run", "--nosuch", code=125)
    has(docker("run", "--rm", "--pull", "never", "nosuch:1", code=125).err, "No such image: nosuch:1")
    docker("run", "--rm", "--init", BUSYBOX, "sh", "-c", "kill -9 $$", code=137)


@scenario
def signals_reach_the_container():
    client = subprocess.Popen([DOCKER, "run", "--rm", BUSYBOX, "sh", "-c", "trap 'echo asked; exit 9' TERM; echo up; while true; do sleep 0.1; done"],
                              stdout=subprocess.PIPE, text=True)
    equal(client.stdout.readline(), "up\n")
    client.terminate()
    equal(client.communicate(timeout=60)[0], "asked\n")
    equal(client.returncode, 9)


@scenario
def run_options_of_a_script():
    cid, env = os.path.join(TMP, "cid"), os.path.join(TMP, "env")
    with open(env, "w") as file:
        file.write("# a comment\nA=1\nFROM_HERE\n")
    ident = docker("run", "-d", "--cidfile", cid, "--name", "cli-opts", "--env-file", env, "-l", "a=b", "--restart", "on-failure:3", "--memory", "64m",
                   BUSYBOX, "sh", "-c", "echo $A$FROM_HERE; sleep 1000", env={"FROM_HERE": "2"}).strip()
    equal(open(cid).read(), ident)
    until(lambda: docker("logs", "cli-opts") == "12\n", "the output")
    equal(docker("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Memory}} {{index .Config.Labels \"a\"}}", "cli-opts").strip(),
          "on-failure 67108864 b")
    has(docker("update", "--memory", "128m", "--memory-swap", "-1", "cli-opts"), "cli-opts")
    docker("rename", "cli-opts", "cli-named")
    docker("stop", "-t", "0", "cli-named")
    equal(docker("wait", "cli-named").strip(), "137")
    has(docker("rm", "cli-named"), "cli-named")


@scenario
def tables_formats_quiet():
    ident = docker("create", "--name", "cli-table", "-p", "127.0.0.1:18090:80", BUSYBOX, "sh", "-c", "a long command line that is cut").strip()
    has(docker("ps", "-a", "--filter", "name=cli-table"), "CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", ident[:12], '"sh -c \'a long comma…"', "Created")
    equal(docker("ps", "-aq", "--filter", "name=cli-table").strip(), ident[:12])
    equal(docker("ps", "-aq", "--no-trunc", "--filter", "name=cli-table").strip(), ident)
    equal(docker("ps", "-a", "--filter", "name=cli-table", "--format", "table {{.Names}}\t{{.State}}"), "NAMES       STATE\ncli-table   created\n")
    equal(json.loads(docker("ps", "-a", "--filter", "name=cli-table", "--format", "json"))["Names"], "cli-table")
    has(docker("images", BUSYBOX), "compat-busybox")
    matches(docker("images", "-q", BUSYBOX), r"^[0-9a-f]{12}$")
    has(docker("volume", "ls"), "DRIVER", "VOLUME NAME")
    has(docker("network", "ls", "--format", "{{.Name}}:{{.Driver}}:{{.Scope}}"), "bridge:bridge:local", "host:host:local", "none:null:local")
    has(docker("history", BUSYBOX), "IMAGE", "CREATED BY", "SIZE")
    equal(docker("inspect", "-f", "{{.Name}} {{json .Config.Cmd}}", "cli-table"), '/cli-table ["sh","-c","a long command line that is cut"]\n')
    has(docker("inspect", "nosuch", code=1).err, "o such object: nosuch")
    docker("rm", "cli-table")


@scenario
def logs_that_are_followed():
    docker("run", "-d", "--name", "cli-logs", BUSYBOX, "sh", "-c", "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done")
    viewer = terminal("logs", "-f", "--tail", "1", "cli-logs")
    viewer.expect(r"line \d+\r\nline \d+\r\nline \d+\r\n")
    viewer.type("\x03")
    viewer.end()
    assert viewer.code in (130, -2), viewer.code
    matches(docker("logs", "-t", "--tail", "1", "cli-logs"), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line \d+$")
    equal(docker("logs", "--until", "2001-01-01T00:00:00Z", "cli-logs"), "")
    docker("rm", "-f", "cli-logs")


@scenario
def a_screen_of_stats():
    docker("run", "-d", "--init", "--name", "cli-stats", BUSYBOX, "sleep", "1000")
    # With names, `docker stats` stays on its screen after the first Ctrl-C; without, it ends.
    screen = terminal("stats", columns=140)
    for _ in range(2):
        screen.expect(r"CONTAINER ID +NAME +CPU % +MEM USAGE / LIMIT +MEM % +NET I/O +BLOCK I/O +PIDS")
        screen.expect(r"cli-stats +\d+\.\d+% +[\d.]+[kKM]iB / ")
    screen.type("\x03")
    screen.end()
    assert screen.code in (0, 130, -2), screen.code
    matches(docker("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "cli-stats"), r"^cli-stats \d+$")
    docker("rm", "-f", "cli-stats")


@scenario
def events_of_a_time():
    follow = subprocess.Popen([DOCKER, "events", "--filter", "container=cli-ev", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"],
                              stdout=subprocess.PIPE, text=True)
    until(lambda: docker("info", "--format", "{{.NEventsListener}}").strip() != "0", "a listener")
    docker("run", "--name", "cli-ev", BUSYBOX, "true")
    equal(follow.stdout.readline(), "container create cli-ev\n")
    docker("rm", "cli-ev")
    seen = [follow.stdout.readline()]
    while "destroy" not in seen[-1]:
        seen.append(follow.stdout.readline())
    has("".join(seen), "container attach", "container start", "container die", "container destroy")
    follow.kill()
    follow.communicate()
    has(docker("events", "--since", "10m", "--until", str(int(time.time()) + 1), "--filter", "container=cli-ev"), "container create", "exitCode=0", "container destroy")


@scenario
def files_in_and_out():
    docker("create", "--name", "cli-cp", BUSYBOX)
    source = os.path.join(TMP, "tree")
    os.makedirs(os.path.join(source, "sub"))
    open(os.path.join(source, "sub", "file"), "w").write("content")
    os.symlink("sub/file", os.path.join(source, "link"))
    docker("cp", "-q", source, "cli-cp:/opt")
    docker("cp", f"{source}/.", "cli-cp:/tmp")
    equal(docker("cp", "cli-cp:/tmp/sub/file", "-")[:8], "file\0\0\0\0")
    docker("cp", "-L", "cli-cp:/opt/link", os.path.join(TMP, "linked"))
    equal(open(os.path.join(TMP, "linked")).read(), "content")
    has(docker("cp", source, "cli-cp:/no/such", code=1).err, "Could not find the file /no")
    has(docker("diff", "cli-cp"), "A /opt", "A /tmp/sub/file")
    docker("rm", "cli-cp")


@scenario
def export_import_commit():
    docker("run", "--name", "cli-commit", BUSYBOX, "sh", "-c", "echo new > /new")
    docker("commit", "-m", "why", "-c", "CMD cat /new", "cli-commit", "cli-image:1")
    equal(docker("run", "--rm", "cli-image:1"), "new\n")
    docker("export", "-o", os.path.join(TMP, "flat.tar"), "cli-commit")
    docker("import", "-c", "CMD cat /new", os.path.join(TMP, "flat.tar"), "cli-image:2")
    equal(docker("run", "--rm", "cli-image:2"), "new\n")
    docker("rm", "cli-commit")
    has(docker("rmi", "cli-image:1", "cli-image:2"), "Untagged: cli-image:1", "Deleted: sha256:")


@scenario
def save_and_load():
    docker("tag", BUSYBOX, "cli-saved:1")
    tar = os.path.join(TMP, "saved.tar")
    docker("save", "-o", tar, "cli-saved:1")
    has(docker("rmi", "cli-saved:1"), "Untagged: cli-saved:1")
    has(docker("load", "-i", tar), "Loaded image: cli-saved:1")
    screen = terminal("save", "cli-saved:1")
    equal(screen.end(), 1)
    has(screen.seen, "cowardly refusing to save to a terminal")
    docker("rmi", "cli-saved:1")


@scenario
def questions_at_a_terminal():
    docker("create", "--name", "cli-prune", BUSYBOX)
    ask = terminal("container", "prune", "--filter", "label=none")
    ask.expect(r"Are you sure you want to continue\? \[y/N\] ")
    ask.type("n\n")
    ask.end()
    lacks(ask.seen, "Total reclaimed")
    docker("rm", "cli-prune")
    docker("volume", "create", "cli-vol")
    ask = terminal("volume", "prune", "-a", "--filter", "label!=keep")
    ask.expect(r"\[y/N\] ")
    ask.type("y\n")
    equal(ask.end(), 0)
    has(ask.seen, "Deleted Volumes:", "cli-vol", "Total reclaimed space: 0B")


@scenario
def contexts_and_configuration():
    config = os.path.join(TMP, "other-config")
    env = {"DOCKER_CONFIG": config, "DOCKER_HOST": ""}
    docker("context", "create", "here", "--docker", f"host={os.environ['DOCKER_HOST']}", "--description", "this engine", env=env)
    docker("context", "use", "here", env=env)
    equal(json.load(open(os.path.join(config, "config.json")))["currentContext"], "here")
    matches(docker("context", "ls", env=env), r"^here \* +this engine +unix://")
    has(docker("ps", env=env), "CONTAINER ID")
    equal(docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}", env=env).strip(), os.environ["DOCKER_HOST"])
    json.dump({"currentContext": "here", "psFormat": "{{.Names}}!"}, open(os.path.join(config, "config.json"), "w"))
    docker("create", "--name", "cli-format", BUSYBOX, env=env)
    equal(docker("ps", "-a", "--filter", "name=cli-format", env=env), "cli-format!\n")
    docker("rm", "cli-format")
    docker("context", "use", "default", env=env)
    docker("context", "rm", "here", env=env)
    has(docker("-H", "unix:///nosuch.sock", "ps", code=1).err, "unix:///nosuch.sock")


@scenario
def a_registry_with_a_credential_helper():
    folder = os.path.join(TMP, "registry")
    os.makedirs(os.path.join(folder, "bin"))
    sh("htpasswd", "-Bbc", os.path.join(folder, "users"), "me", "secret")
    with open(os.path.join(folder, "config.yml"), "w") as file:
        file.write(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:18500'}}\n"
                   f"auth: {{htpasswd: {{realm: r, path: {folder}/users}}}}\n")
    helper = os.path.join(folder, "bin", "docker-credential-kept")
    with open(helper, "w") as file:
        file.write(f"#!/bin/sh\ncase $1 in store) cat > {folder}/kept;; get) cat > /dev/null; cat {folder}/kept 2> /dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }};;\n"
                   f"erase) rm -f {folder}/kept;; list) echo '{{}}';; esac\n")
    os.chmod(helper, 0o755)
    config = os.path.join(folder, "config")
    os.makedirs(config)
    json.dump({"credsStore": "kept"}, open(os.path.join(config, "config.json"), "w"))
    env = {"DOCKER_CONFIG": config, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    with open(os.path.join(folder, "log"), "w") as log:
        registry = subprocess.Popen([os.path.join(PEER, "docker-registry"), "serve", os.path.join(folder, "config.yml")], stdout=log, stderr=log)
    name = "127.0.0.1:18500/cli/image:1"
    try:
        until(lambda: sh("curl", "-s", "http://127.0.0.1:18500/v2/", code=None).code == 0, "the registry")
        docker("tag", BUSYBOX, name)
        has(docker("push", name, env=env, code=1).err, "no basic auth credentials")
        has(docker("login", "-u", "me", "--password-stdin", "127.0.0.1:18500", input="wrong", env=env, code=1).err, "401 Unauthorized")
        has(docker("login", "-u", "me", "--password-stdin", "127.0.0.1:18500", input="secret", env=env), "Login Succeeded")
        equal(json.load(open(os.path.join(folder, "kept"))), {"ServerURL": "127.0.0.1:18500", "Username": "me", "Secret": "secret"})
        push = terminal("push", name, env=env)
        equal(push.end(), 0)
        has(push.seen, "The push refers to repository [127.0.0.1:18500/cli/image]", "Pushed", "1: digest: sha256:")
        docker("rmi", name)
        pull = terminal("pull", name, env=env)
        equal(pull.end(), 0)
        has(pull.seen, "1: Pulling from cli/image", "Digest: sha256:", name)
        has(docker("pull", name, env=env), "Status: Image is up to date for")
        has(docker("pull", "127.0.0.1:18500/cli/image:none", env=env, code=1).err, "not found")
        has(docker("logout", "127.0.0.1:18500", env=env), "Removing login credentials for 127.0.0.1:18500")
        assert not os.path.exists(os.path.join(folder, "kept"))
        ask = terminal("login", "127.0.0.1:18500", env={**env, "DOCKER_CONFIG": os.path.join(folder, "plain")})
        ask.expect("Username: ")
        ask.type("me\n")
        ask.expect("Password: ")
        until(lambda: not ask.echoes(), "a hidden password")
        ask.type("secret\n")
        equal(ask.end(), 0)
        auth = json.load(open(os.path.join(folder, "plain", "config.json")))["auths"]["127.0.0.1:18500"]["auth"]
        equal(base64.b64decode(auth), b"me:secret")
    finally:
        registry.terminate()
        registry.wait()
        docker("rmi", name, code=None)


@scenario
def networks_volumes_ports():
    docker("network", "create", "--subnet", "10.88.9.0/24", "--label", "x=y", "cli-net")
    docker("volume", "create", "--label", "x=y", "cli-data")
    docker("run", "-d", "--init", "--name", "cli-web", "--network", "cli-net", "--network-alias", "site", "-v", "cli-data:/www", "-p", "127.0.0.1:18091:80", BUSYBOX,
           "sh", "-c", "echo page > /www/x; exec httpd -f -h /www")
    equal(docker("port", "cli-web"), "80/tcp -> 127.0.0.1:18091\n")
    until(lambda: sh("curl", "-sf", "http://127.0.0.1:18091/x", code=None) == "page\n", "the page")
    equal(docker("run", "--rm", "--network", "cli-net", BUSYBOX, "wget", "-qO-", "http://site/x"), "page\n")
    equal(docker("run", "--rm", "--volumes-from", "cli-web:ro", BUSYBOX, "cat", "/www/x"), "page\n")
    has(docker("network", "rm", "cli-net", code=1).err, "has active endpoints")
    has(docker("volume", "rm", "cli-data", code=1).err, "volume is in use")
    docker("network", "connect", "bridge", "cli-web")
    equal(len(json.loads(docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", "cli-web"))), 2)
    docker("network", "disconnect", "bridge", "cli-web")
    docker("rm", "-fv", "cli-web")
    docker("network", "rm", "cli-net")
    docker("volume", "rm", "cli-data")


@scenario
def system_df_and_prune():
    has(docker("system", "df"), "TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE", "Local Volumes")
    has(docker("system", "df", "-v"), "Images space usage:", "Containers space usage:", "Local Volumes space usage:")
    has(docker("image", "prune", "-f", "--filter", "label=none"), "Total reclaimed space: 0B")


main()
