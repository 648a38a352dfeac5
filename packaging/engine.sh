#!/usr/bin/env bash
# A private engine under BUILD/engine: `engine.sh start|stop|hint BUILD`. Its roots, socket and bridge are its own, so it can
# run beside an installed engine.
set -euo pipefail
what=${1:?start, stop or hint}
mkdir -p "${2:?build folder}"
build=$(cd "$2" && pwd)
dir=$build/engine
socket=$dir/docker.sock

alive() { curl -sf --max-time 2 --unix-socket "$socket" http://d/_ping > /dev/null 2>&1 || "$build/bin/docker-rs" -H "unix://$socket" version > /dev/null 2>&1; }

case $what in
start)
    if alive; then echo "the engine is up already"; exit 0; fi
    mkdir -p "$dir/data" "$dir/exec"
    setsid "$build/bin/dockerd-rs" --config-file /dev/null --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
        -H "unix://$socket" --bridge dockerrs0 >> "$dir/log" 2>&1 < /dev/null &
    for _ in $(seq 200); do alive && exit 0; sleep 0.05; done
    echo "the engine does not answer; its log ends:" >&2; tail -20 "$dir/log" >&2; exit 1
    ;;
stop)
    pid=$(cat "$dir/pid" 2> /dev/null) || { echo "no engine runs here"; exit 0; }
    if [ "$(readlink -f "/proc/$pid/exe" 2> /dev/null)" = "$(readlink -f "$build/bin/dockerd-rs")" ]; then
        ids=$("$build/bin/docker-rs" -H "unix://$socket" ps -aq 2> /dev/null || true)
        [ -z "$ids" ] || "$build/bin/docker-rs" -H "unix://$socket" rm -f $ids > /dev/null
        kill "$pid"
        for _ in $(seq 300); do [ -d "/proc/$pid" ] || break; sleep 0.05; done
        echo "stopped; its data stays in $dir/data"
    fi
    ;;
hint)
    cat <<TEXT

The engine is up. Point any Docker client at it:
    export DOCKER_HOST=unix://$socket
Stop it, and its containers, with:
    sudo make stop
TEXT
    ;;
esac
