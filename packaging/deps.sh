#!/usr/bin/env bash
# Installs what the system lacks: `deps.sh build` to build and run, `deps.sh test` also what the tests drive, `deps.sh compat` also the
# clients of compat-tests, `deps.sh engine` also a Docker Engine to compare with.
# Programs that would start a service of their own when installed are unpacked into build/peer instead.
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:?build, test, compat or engine}

need() { # PROGRAM PACKAGE
    command -v "$1" > /dev/null 2>&1 || PATH=$PATH:/usr/sbin:/sbin command -v "$1" > /dev/null 2>&1 || missing+=("$2")
}
missing=()
need cc gcc
need runc runc
need ip iproute2
if [ "$want" != build ]; then
    need nft nftables
    need iptables iptables
    need python3 python3
    need skopeo skopeo
    need openssl openssl
    need htpasswd apache2-utils
    need curl curl
    need crun crun
    [ -x /bin/busybox ] && /bin/busybox --list > /dev/null || missing+=(busybox-static)
    dpkg-query -W busybox-static > /dev/null 2>&1 || missing+=(busybox-static)
fi
if [ "$want" = compat ] || [ "$want" = engine ]; then
    python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
fi
apt_updated=
apt_update() { [ -n "$apt_updated" ] || { apt-get update -qq; apt_updated=1; }; }
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "missing: ${missing[*]} (run as root to install them)" >&2; exit 1; }
    apt_update
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
[ "$want" != build ] || exit 0

# The stock clients, dockerd, shim and a registry, beside the system: nothing is started, nothing of the system's is replaced. They come
# from Debian's newest suite, because the system's may be older than what people use; the system's own ctr is in `old`, the shim in `shim`.
peer=build/peer
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
newest() { # PACKAGE...: unpacks packages of the newest suite into $work/root
    apt_update
    local site
    site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' 2> /dev/null | grep -v security | sort -u | head -1)
    local from=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
        -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    if [ ! -d "$work/lists" ]; then
        mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site sid main" > "$work/sources.list"
        # The update complains of parts it does not need; what counts is whether the packages come.
        apt-get "${from[@]}" -qq update > /dev/null 2>&1 || true
    fi
    mkdir -p "$work/debs"
    (cd "$work/debs" && apt-get "${from[@]}" -qq download "$@" > /dev/null)
    unpack
}
unpack() {
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done
    rm -f "$work"/debs/*.deb
}
place() { # FOLDER PROGRAM...: from $work/root
    mkdir -p "$1"
    local program found
    for program in "${@:2}"; do
        found=$(find "$work/root/usr" -type f -name "$program" -perm -u+x | head -1)
        [ -n "$found" ] || { echo "no $program in the packages" >&2; exit 1; }
        install -m 0755 "$found" "$1/$program"
    done
}
have() { for program in "$@"; do [ -x $peer/$program ] || return 1; done; }
if ! have docker dockerd ctr docker-registry old/ctr shim/containerd-shim-runc-v2; then
    newest docker-cli docker.io containerd
    place $peer docker dockerd ctr
    place $peer/shim containerd-shim-runc-v2
    rm -rf "$work/root"
    (cd "$work/debs" && apt-get -o APT::Sandbox::User=root -qq download docker-registry containerd > /dev/null)
    unpack
    place $peer docker-registry
    place $peer/old ctr
    rm -rf "$work/root"
fi
[ "$want" != test ] || exit 0

# What compat-tests drive: the CLI's plugins, Python's and Node's clients, and servers for images.
if [ ! -x $peer/cli-plugins/docker-compose ] || [ ! -x $peer/cli-plugins/docker-buildx ]; then
    newest docker-compose docker-buildx
    place $peer/cli-plugins docker-compose docker-buildx
fi
compat=build/compat
same() { [ -f "$2" ] && cmp -s "$1" "$2"; }
if ! same compat-tests/python/requirements.txt $compat/venv/installed; then
    rm -rf $compat/venv
    python3 -m venv $compat/venv
    $compat/venv/bin/pip install -q --disable-pip-version-check -r compat-tests/python/requirements.txt
    cp compat-tests/python/requirements.txt $compat/venv/installed
fi
if ! same compat-tests/node/package-lock.json $compat/node/installed; then
    rm -rf $compat/node
    mkdir -p $compat/node
    cp compat-tests/node/package.json compat-tests/node/package-lock.json compat-tests/node/.npmrc $compat/node/
    (cd $compat/node && PATH=$PWD/../venv/bin:$PATH && npm ci --loglevel=error --no-progress > /dev/null)
    cp compat-tests/node/package-lock.json $compat/node/installed
fi
if [ ! -e $compat/servers/done ]; then
    # Servers with all they link to, whatever the system has of it; what only their set-up scripts use is left out.
    rm -rf $compat/servers "$work/root"
    mkdir -p "$work/debs"
    : > "$work/status"
    apt_update
    postgres=$(apt-cache depends postgresql | sed -n 's/^  Depends: \(postgresql-[0-9]*\)$/\1/p' | head -1)
    names=$(apt-get -o "Dir::State::status=$work/status" -s --no-install-recommends install redis-server "$postgres" 2> /dev/null \
        | sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -E '^(lib|redis|zlib|tzdata|postgresql-(client-)?[0-9])' | grep -vE '^lib(llvm|perl|z3|.*-perl$)')
    (cd "$work/debs" && apt-get -o APT::Sandbox::User=root -qq download $names > /dev/null)
    unpack
    mkdir -p $compat
    mv "$work/root" $compat/servers
    touch $compat/servers/done
fi
[ "$want" = engine ] || exit 0

# The engine that every test is first proven on. Only unpacked; compat-tests start it in a network namespace of its own.
if [ ! -x $peer/engine/dockerd ]; then
    newest docker.io containerd
    # The init of `--init` runs in any image, so it is the static one, which later suites no longer have.
    (cd "$work/debs" && apt-get -o APT::Sandbox::User=root -qq download tini > /dev/null)
    unpack
    place $peer/engine dockerd docker-proxy containerd containerd-shim-runc-v2 ctr tini-static
    mv $peer/engine/tini-static $peer/engine/docker-init
fi
