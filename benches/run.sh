#!/usr/bin/env bash
# Compares the engine in BUILD/bin with a Docker Engine: `benches/run.sh BUILD [docker-socket]`. Without a second socket it prints our
# figures alone. Times are medians; the ratio is ours over theirs.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?build folder}
packaging/engine.sh start "$build"
exec python3 benches/cycle.py "$build/engine/docker.sock" ${2:+"$2"}
