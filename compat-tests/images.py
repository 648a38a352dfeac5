"""The images that the suites run, made here: a busybox, Redis and PostgreSQL out of Debian's packages, and a reaper.

An image is a tar as `docker save` writes it. It is made once a content and kept under build/compat/images.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile

BUSYBOX = "/bin/busybox"

# The entry point of the PostgreSQL image: a fresh data folder with the user, the password and the database that the environment names.
POSTGRES_START = """#!/bin/sh
set -e
user=${POSTGRES_USER:-postgres}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "${POSTGRES_PASSWORD:?a password is needed}" > /tmp/password
    initdb --username="$user" --pwfile=/tmp/password --auth-host=scram-sha-256 --no-sync --no-locale --encoding=UTF8 -D "$PGDATA" > /dev/null
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -w -o "-c listen_addresses='' -k /tmp" start
    if [ "${POSTGRES_DB:-$user}" != postgres ]; then
        psql -h /tmp -U "$user" -d postgres -qc "create database \\"${POSTGRES_DB:-$user}\\""
    fi
    pg_ctl -D "$PGDATA" -w -m fast stop
fi
exec "$@"
"""


def entry(tar, name, data=b"", kind=tarfile.REGTYPE, mode=0o755, link="", owner=0):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.uid, info.gid = kind, mode, link, owner, owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data) if data else None)


def busybox_into(tar):
    """The file system that every image here begins with."""
    for folder in ("bin", "usr", "usr/bin", "etc", "root", "var"):
        entry(tar, folder, kind=tarfile.DIRTYPE)
    entry(tar, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
    with open(BUSYBOX, "rb") as file:
        entry(tar, "bin/busybox", file.read())
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            entry(tar, f"bin/{applet}", kind=tarfile.LNKTYPE, link="bin/busybox")
    entry(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n"
                             b"nobody:x:65534:65534:nobody:/:/bin/false\n", mode=0o644)
    entry(tar, "etc/group", b"root:x:0:\npostgres:x:70:\nnogroup:x:65534:\n", mode=0o644)


def libraries(root, program):
    """What the loader maps for a program of `root`, as paths in it."""
    loader = "/lib64/ld-linux-x86-64.so.2"
    listed = subprocess.run(["chroot", root, loader, "--list", program], capture_output=True, text=True, check=True).stdout
    found = {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
    return found | {loader}


def add(tar, root, paths):
    """Files and trees of `root`, symbolic links with what they lead to."""
    done = set()

    def one(path):
        if path in done:
            return
        done.add(path)
        full = root + path
        if os.path.islink(full):
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(full)))
            entry(tar, path.lstrip("/"), kind=tarfile.SYMTYPE, link=os.readlink(full))
            if os.path.lexists(root + target):
                one(target)
        elif os.path.isdir(full):
            for name in sorted(os.listdir(full)):
                one(os.path.join(path, name))
        else:
            with open(full, "rb") as file:
                entry(tar, path.lstrip("/"), file.read(), mode=os.stat(full).st_mode & 0o7777)

    for path in sorted(paths):
        one(path)


def save(path, name, layer, config):
    """Writes the image `name` of one layer, a tar, as `docker save` would."""
    config = {
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "compat-tests"}],
    }
    encoded = json.dumps(config).encode()
    config_name = hashlib.sha256(encoded).hexdigest() + ".json"
    with tarfile.open(path + ".new", "w") as tar:
        entry(tar, config_name, encoded, mode=0o644)
        entry(tar, "layer.tar", layer, mode=0o644)
        entry(tar, "manifest.json", json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode(), mode=0o644)
    os.rename(path + ".new", path)


PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


def make_busybox():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        busybox_into(tar)
    return out.getvalue(), {"Env": [PATH], "Cmd": ["sh"]}


def make_redis(servers):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        busybox_into(tar)
        entry(tar, "data", kind=tarfile.DIRTYPE)
        # Debian's refuses strangers unless it is told; in an image that is what it is for.
        for folder in ("usr/local", "usr/local/bin"):
            entry(tar, folder, kind=tarfile.DIRTYPE)
        entry(tar, "usr/local/bin/redis-server", b'#!/bin/sh\nexec /usr/bin/redis-server "$@" --bind 0.0.0.0 --protected-mode no\n')
        # The server is one program of two names; the client is its own.
        programs = {"/usr/bin/redis-server", "/usr/bin/redis-cli"}
        real = {os.path.join("/usr/bin", os.path.basename(os.path.realpath(servers + program))) for program in programs}
        needed = set().union(*(libraries(servers, program) for program in real))
        add(tar, servers, programs | needed)
    config = {"Env": [PATH], "Cmd": ["redis-server"], "WorkingDir": "/data",
              "ExposedPorts": {"6379/tcp": {}}, "Volumes": {"/data": {}}}
    return out.getvalue(), config


def make_postgres(servers):
    version = os.listdir(servers + "/usr/lib/postgresql")[0]
    lib, share = f"/usr/lib/postgresql/{version}", f"/usr/share/postgresql/{version}"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        busybox_into(tar)
        programs = {f"{lib}/bin/{name}" for name in ("initdb", "pg_ctl", "postgres", "psql", "pg_isready")}
        modules = {f"{lib}/lib/{name}" for name in ("plpgsql.so", "dict_snowball.so", "libpqwalreceiver.so")}
        needed = set().union(*(libraries(servers, program) for program in programs | modules))
        shared = {f"{share}/{name}" for name in os.listdir(servers + share) if name not in ("man", "contrib")}
        zones = {"/usr/share/zoneinfo/" + name for name in ("UTC", "Etc/UTC", "GMT") if os.path.exists(servers + "/usr/share/zoneinfo/" + name)}
        # The extensions' scripts beside plpgsql are of modules that are not here.
        shared -= {f"{share}/extension"}
        shared |= {f"{share}/extension/{name}" for name in os.listdir(f"{servers}{share}/extension") if name.startswith("plpgsql")}
        add(tar, servers, programs | modules | needed | shared | zones)
        # `libpq` asks for the user's name through these.
        entry(tar, "var/lib", kind=tarfile.DIRTYPE)
        for folder in ("var/lib/postgresql", "var/run", "var/run/postgresql"):
            entry(tar, folder, kind=tarfile.DIRTYPE, owner=70)
        entry(tar, "usr/local", kind=tarfile.DIRTYPE)
        entry(tar, "usr/local/bin", kind=tarfile.DIRTYPE)
        entry(tar, "usr/local/bin/start", POSTGRES_START.encode())
    config = {"User": "postgres", "Env": [f"PATH={lib}/bin:/usr/local/bin:/usr/bin:/bin", "PGDATA=/var/lib/postgresql/data"],
              "Entrypoint": ["/usr/local/bin/start"], "Cmd": ["postgres", "-c", "listen_addresses=*", "-c", "fsync=off"],
              "ExposedPorts": {"5432/tcp": {}}, "StopSignal": "SIGINT"}
    return out.getvalue(), config


def make_reaper(program):
    root = os.path.dirname(program) + "/reaper-root"
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    out = io.BytesIO()
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    with tarfile.open(fileobj=out, mode="w") as tar:
        busybox_into(tar)
        entry(tar, "bin/reaper", open(program, "rb").read())
        for path in sorted({word for line in listed.splitlines() for word in line.split() if word.startswith("/")}):
            entry(tar, path.lstrip("/"), open(os.path.realpath(path), "rb").read())
    return out.getvalue(), {"Env": [PATH], "Cmd": ["/bin/reaper"], "ExposedPorts": {"8080/tcp": {}}}


def build(compat, reaper=None):
    """Makes what is not there yet; the files, in the order to load them."""
    folder = os.path.join(compat, "images")
    os.makedirs(folder, exist_ok=True)
    servers = os.path.abspath(os.path.join(compat, "servers"))
    for name in ("lib", "lib64"):
        if os.path.isdir(servers) and not os.path.lexists(f"{servers}/{name}"):
            os.symlink(f"usr/{name}", f"{servers}/{name}")
    # Packages come with /lib beside /usr/lib or with the latter alone, as the suite's age is.
    makers = [("busybox", make_busybox, [BUSYBOX])]
    if os.path.isdir(servers):
        makers += [("redis", lambda: make_redis(servers), [servers + "/done"]), ("postgres", lambda: make_postgres(servers), [servers + "/done"])]
    if reaper:
        makers.append(("reaper", lambda: make_reaper(reaper), [reaper]))
    files = []
    for name, make, sources in makers:
        path = os.path.join(folder, name + ".tar")
        newest = max(os.path.getmtime(source) for source in [*sources, os.path.abspath(__file__)])
        if not os.path.exists(path) or os.path.getmtime(path) < newest:
            save(path, f"compat-{name}:1", *make())
        files.append(path)
    return files


if __name__ == "__main__":
    import sys
    for path in build(*sys.argv[1:]):
        print(path, os.path.getsize(path) >> 20, "MiB")
