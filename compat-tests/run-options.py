#!/usr/bin/env python3
"""Runs the same `docker run` option sets against two engines and prints where the effect differs.

The effect is looked at inside the container (limits, mounts, capabilities, namespaces, environment, files) and compared line by line
after what is random by nature has been masked. Needs a docker client and, in both engines, an image with a shell and busybox applets.

    run-options.py --a unix:///A.sock --b unix:///B.sock --image busybox [--docker PATH] [--only TEXT] [--list]

Exit status 0 when all outcomes are equal, 1 otherwise.
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

STATUS = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid)' /proc/self/status"
MOUNTS = "cut -d' ' -f2-4 /proc/mounts | sed 's/,lowerdir=.*//' | sort"
LIMITS = "grep -v '^Max pending' /proc/self/limits"


def cgroup(controller, *files):
    """The values of cgroup files of the container, v1 or v2."""
    reads = []
    for name in files:
        reads.append(
            f"for f in /sys/fs/cgroup/{controller}$(grep ':{controller}:\\|:{controller},\\|,{controller}:' /proc/self/cgroup | cut -d: -f3)/{name} "
            f"/sys/fs/cgroup/{controller}/{name} /sys/fs/cgroup/{name}; do [ -f $f ] && echo {name} $(cat $f) && break; done"
        )
    return "; ".join(reads)


def cases(tmp):
    """(options, command) of each case; the image goes between the two."""
    yield from [
        ([], "id; pwd; env | sort; hostname | wc -c"),
        ([], STATUS),
        ([], MOUNTS),
        ([], LIMITS),
        ([], "ls /dev | sort"),
        ([], "ls -ld /proc/kcore /proc/keys /sys/firmware 2>&1 | cut -c1-10,40-"),
        ([], "touch /sys/x /proc/sys/x 2>&1; echo done"),
        ([], "cat /etc/hosts | grep -v $(hostname)"),
        ([], "wc -l < /etc/resolv.conf"),
        ([], "exit 7"),
        ([], "kill -9 $$"),
        ([], "cat /proc/1/comm; ls /proc | grep -c '^[0-9]'"),
    ]
    for cap in ["NET_ADMIN", "cap_sys_time", "ALL", "SYS_ADMIN", "sys_ptrace", "BPF", "SYS_NICE"]:
        yield ["--cap-add", cap], STATUS
    for cap in ["MKNOD", "net_raw", "ALL", "CHOWN", "SETUID"]:
        yield ["--cap-drop", cap], STATUS
    yield ["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"], STATUS
    yield ["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"], STATUS
    yield ["--privileged"], STATUS
    yield ["--privileged"], MOUNTS
    yield ["--privileged"], "ls /dev | sort"
    yield ["--privileged", "--cap-drop", "NET_ADMIN"], STATUS
    for opt in ["no-new-privileges", "no-new-privileges:false", "seccomp=unconfined", "label=disable", "systempaths=unconfined",
                "apparmor=unconfined"]:
        yield ["--security-opt", opt], STATUS
    yield ["--security-opt", "systempaths=unconfined"], "ls -ld /proc/kcore | cut -c1-10"
    profile = os.path.join(tmp, "seccomp.json")
    with open(profile, "w") as file:
        file.write('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}')
    yield ["--security-opt", f"seccomp={profile}"], "mkdir /x 2>&1; echo $?"
    for user in ["1000", "1000:1000", "u1", "u1:wheel", "0:0", "root", "bin", "4242", "4242:77", ":10"]:
        yield ["--user", user], "id; echo $HOME; grep Groups /proc/self/status"
    yield ["--user", "nosuch"], "id"
    yield ["--user", "1000:nosuch"], "id"
    yield ["--user", "u1", "--group-add", "500", "--group-add", "bin"], "id; grep Groups /proc/self/status"
    yield ["--group-add", "77"], "grep Groups /proc/self/status"
    yield ["--group-add", "nosuch"], "id"
    for name, value in [("memory", "64m"), ("memory", "16m"), ("memory-reservation", "32m")]:
        yield [f"--{name}", value], cgroup("memory", "memory.limit_in_bytes", "memory.soft_limit_in_bytes",
                                           "memory.memsw.limit_in_bytes", "memory.max", "memory.low")
    yield ["-m", "64m", "--memory-swap", "128m"], cgroup("memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    yield ["-m", "64m", "--memory-swap", "-1"], cgroup("memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    yield ["-m", "64m", "--memory-swappiness", "10"], cgroup("memory", "memory.swappiness")
    yield ["-m", "64m", "--oom-kill-disable"], cgroup("memory", "memory.oom_control")
    yield ["-m", "16m"], "dd if=/dev/zero of=/dev/null bs=64m count=1 2>&1 | tail -1; tail /dev/zero; echo $?"
    for args in [["--cpus", "0.5"], ["--cpus", "1.5"], ["--cpu-shares", "512"], ["--cpu-period", "50000", "--cpu-quota", "25000"],
                 ["--cpu-quota", "20000"]]:
        yield args, cgroup("cpu", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.max", "cpu.weight")
    yield ["--cpuset-cpus", "0"], "grep Cpus_allowed_list /proc/self/status"
    yield ["--cpuset-mems", "0"], "grep Mems_allowed_list /proc/self/status"
    for limit in ["20", "100", "-1"]:
        yield ["--pids-limit", limit], cgroup("pids", "pids.max")
    yield ["--pids-limit", "5"], "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>/dev/null; wait; echo done"
    yield ["--blkio-weight", "300"], "echo ok"
    for limit in ["nofile=100", "nofile=100:200", "nproc=50", "core=0", "memlock=65536:65536", "stack=8192000", "fsize=1000000"]:
        yield ["--ulimit", limit], LIMITS
    yield ["--ulimit", "nofile=1024:2048", "--ulimit", "core=-1"], LIMITS
    for name, value in [("net.ipv4.ip_forward", "1"), ("net.core.somaxconn", "256"), ("kernel.msgmax", "4096"),
                        ("net.ipv4.ip_unprivileged_port_start", "1000"), ("fs.mqueue.msg_max", "5"), ("kernel.shm_rmid_forced", "1")]:
        yield ["--sysctl", f"{name}={value}"], f"cat /proc/sys/{name.replace('.', '/')}"
    yield [], "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    yield ["--shm-size", "8m"], "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"
    yield ["--shm-size", "1g"], "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"
    for mode in ["none", "private", "shareable", "host"]:
        yield ["--ipc", mode], "ls -d /dev/shm /dev/mqueue 2>&1; grep ' /dev/shm ' /proc/mounts | cut -d' ' -f2,3"
    yield ["--pid", "host"], "[ $(ls /proc | grep -c '^[0-9]') -gt 20 ] && echo many"
    yield ["--uts", "host"], "hostname"
    yield ["--cgroupns", "private"], "cut -d: -f3 /proc/self/cgroup | sort -u | head -3"
    yield ["--cgroupns", "host"], "grep -c docker /proc/self/cgroup"
    for net in ["none", "host"]:
        yield ["--network", net], "ls /sys/class/net | grep -v -E '^(veth|docker|br-)' | sort; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
    yield ["--network", "none"], "cat /etc/hosts | grep -v $(hostname); cat /etc/resolv.conf | wc -l"
    yield ["--network", "nosuch-network"], "true"
    yield ["--hostname", "h1"], "hostname; cat /etc/hostname; grep -c h1 /etc/hosts; echo $HOSTNAME"
    yield ["--hostname", "h1", "--domainname", "example.test"], "hostname; cat /proc/sys/kernel/domainname; grep h1 /etc/hosts | cut -f2"
    yield ["--add-host", "foo:192.0.2.1", "--add-host", "six:2001:db8::1"], "grep -E 'foo|six' /etc/hosts"
    yield ["--dns", "192.0.2.53", "--dns-search", "example.test", "--dns-option", "ndots:1"], "grep -v '^#' /etc/resolv.conf"
    yield ["--dns-search", "."], "grep -c search /etc/resolv.conf"
    yield ["-e", "A=1", "-e", "B=two words", "-e", "PATH=/bin:/x", "-e", "EMPTY="], "env | sort | grep -v HOSTNAME"
    yield ["-e", "PATH"], "env | sort | grep -v HOSTNAME | grep -v PATH"
    env_file = os.path.join(tmp, "env")
    with open(env_file, "w") as file:
        file.write("# comment\nFROMFILE=yes\nSP=a b\n")
    yield ["--env-file", env_file], "env | sort | grep -v HOSTNAME"
    for directory in ["/tmp", "/new/dir", "/"]:
        yield ["-w", directory], "pwd; ls -ld . | cut -c1-10"
    yield ["--entrypoint", "/bin/echo"], "from the entry point"
    yield ["--entrypoint", "nosuch"], "x"
    yield ["--read-only"], "touch /x 2>&1; touch /dev/shm/x && echo shm; touch /tmp/x 2>&1"
    yield ["--read-only"], MOUNTS
    yield ["--read-only", "--tmpfs", "/tmp"], "touch /tmp/x && echo ok; grep ' /tmp ' /proc/mounts | cut -d' ' -f2-4"
    for options in ["", ":size=1m", ":size=65536k,mode=700", ":exec", ":ro", ":uid=1000,gid=1000"]:
        yield ["--tmpfs", "/t" + options], "grep ' /t ' /proc/mounts | cut -d' ' -f2-4; ls -ldn /t | cut -c1-10,17-30"
    source = os.path.join(tmp, "src")
    os.makedirs(os.path.join(source, "sub"))
    with open(os.path.join(source, "file"), "w") as file:
        file.write("content\n")
    look = "cat /x/file; touch /x/new 2>&1 && rm -f /x/new; grep ' /x ' /proc/self/mountinfo | cut -d' ' -f5-7"
    for mode in ["", ":ro", ":rw", ":z", ":ro,rprivate", ":nocopy"]:
        yield ["-v", f"{source}:/x{mode}"], look
    yield ["-v", f"{source}/file:/etc/one:ro"], "cat /etc/one; echo x > /etc/one"
    yield ["-v", f"{source}/missing/dir:/x"], "ls -ld /x | cut -c1-10"
    yield ["--mount", f"type=bind,source={source},target=/x"], look
    yield ["--mount", f"type=bind,source={source},target=/x,readonly"], look
    yield ["--mount", f"type=bind,source={source},target=/x,bind-nonrecursive"], look
    yield ["--mount", f"type=bind,source={source},target=/x,bind-propagation=private"], look
    yield ["--mount", f"type=bind,source={source}/nosuch,target=/x"], "true"
    yield ["--mount", "type=tmpfs,target=/x,tmpfs-size=1m,tmpfs-mode=700"], "grep ' /x ' /proc/mounts | cut -d' ' -f2-4; ls -ld /x | cut -c1-10"
    yield ["--mount", "type=tmpfs,target=/"], "true"
    yield ["-v", "/anon"], "touch /anon/x && ls /anon; grep -c ' /anon ' /proc/mounts"
    yield ["-v", "run-options-vol:/vol"], "echo a >> /vol/f; tail -1 /vol/f"
    yield ["-v", "run-options-vol:/vol:ro"], "touch /vol/x 2>&1"
    yield ["-v", "run-options-copy:/etc"], "ls /etc | grep -E 'passwd|group' | sort"
    yield ["--mount", "type=volume,source=run-options-sub,target=/vol,volume-nocopy"], "ls /vol | wc -l"
    yield ["-v", "/tmp:x"], "true"
    yield ["-v", "/tmp:/x", "-v", "/var:/x"], "true"
    yield ["--device", "/dev/null:/dev/mynull"], "ls -l /dev/mynull | cut -c1-10; echo x > /dev/mynull && echo ok"
    yield ["--device", "/dev/zero:/dev/z:r"], "head -c 3 /dev/z | wc -c; echo x > /dev/z"
    yield ["--device", "/dev/nosuch"], "true"
    yield ["--device-cgroup-rule", "c 1:3 rwm"], "echo ok"
    yield [], "mknod /tmp/b b 8 0 && cat /tmp/b 2>&1 | head -1"
    yield ["--init"], "cat /proc/1/comm; ls -l /sbin/docker-init | cut -c1-10"
    yield ["--init"], "sleep 0.1 & exit 3"
    yield ["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"
    yield ["--stop-signal", "SIGUSR1"], "true"
    yield ["--cgroup-parent", "/run-options"], "grep -c run-options /proc/self/cgroup"
    yield ["--label", "a=b", "--annotation", "x=y"], "true"
    yield ["-t"], "tty; echo $TERM; test -t 1 && echo terminal"
    yield ["--no-healthcheck"], "true"
    yield ["--runtime", "nosuch"], "true"
    yield ["--memory", "1m"], "true"
    yield ["--cpus", "999"], "true"
    yield ["--restart", "on-failure:2"], "true"
    yield ["--userns", "host"], "cat /proc/self/uid_map | tr -s ' '"
    yield ["--log-driver", "none"], "echo hidden"
    yield ["--log-driver", "local", "--log-opt", "max-size=1m"], "echo shown"
    yield ["--log-driver", "json-file", "--log-opt", "bogus=1"], "true"
    yield ["--platform", "linux/amd64"], "uname -m"
    yield ["--mac-address", "02:42:ac:11:00:77"], "cat /sys/class/net/eth0/address"
    yield ["--ip", "172.17.0.77"], "true"
    yield ["--network-alias", "x"], "true"


MASKS = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "SHORT"),
    (re.compile(r"0x[0-9a-f]+"), "ADDR"),
    # What the file system says of itself differs by where the engine keeps things.
    (re.compile(r"^/ overlay .*$", re.M), "/ overlay"),
    (re.compile(r"[ \t]+$", re.M), ""),
]


def mask(text, tmp):
    text = text.replace("\r", "").replace(tmp, "TMP")
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return text


def outcome(docker, socket, image, options, command, tmp):
    """Exit status and output of one run."""
    args = [docker, "-H", socket, "run", "--rm", *options, image]
    args += command.split(" ", 3) if "--entrypoint" in options else ["sh", "-c", command]
    if "--restart" in options:
        args.remove("--rm")
        args.insert(4, "-d")
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    text = f"status {done.returncode}\n{done.stdout}"
    # Of a failure, what the engine says; not the client's advice how to get help.
    errors = [line for line in done.stderr.splitlines() if line and not line.startswith("Run 'docker")]
    return mask(text + "\n".join(errors), tmp)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--a", required=True, help="the reference engine's socket")
    parser.add_argument("--b", required=True, help="the other engine's socket")
    parser.add_argument("--image", default="busybox")
    parser.add_argument("--docker", default="docker", help="the client")
    parser.add_argument("--only", default="", help="cases whose text has this in it")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="run-options-") as tmp:
        todo = [(opts, cmd) for opts, cmd in cases(tmp) if options.only in " ".join(opts) + " | " + cmd]
        if options.list:
            for opts, cmd in todo:
                print(" ".join(opts), "|", cmd)
            print(len(todo), "cases")
            return 0

        def both(case):
            return [outcome(options.docker, socket, options.image, *case, tmp) for socket in (options.a, options.b)]

        different = 0
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for (opts, cmd), (a, b) in zip(todo, pool.map(both, todo)):
                if a == b:
                    continue
                different += 1
                print(f"--- {' '.join(opts)} | {cmd}")
                left, right = a.splitlines(), b.splitlines()
                for line in left:
                    if line not in right:
                        print(f"  a: {line}")
                for line in right:
                    if line not in left:
                        print(f"  b: {line}")
                sys.stdout.flush()
        print(f"{len(todo)} cases, {different} different")
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
