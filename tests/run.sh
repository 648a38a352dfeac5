#!/usr/bin/env bash
# The whole-stack tests against the programs in BUILD/bin, between two looks of the leak checker.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:?build folder}
export E2E_BIN=$build/bin E2E_PEER=$build/peer
[ "$(id -u)" = 0 ] || { echo "the whole-stack tests need root" >&2; exit 1; }
leakcheck=target/debug/leakcheck
before=$(mktemp -p "$build")
$leakcheck snap "$before" || exit 1
cargo test -p e2e-tests --locked --no-fail-fast -- --test-threads=2
status=$?
$leakcheck diff "$before" || status=1
rm -f "$before"
exit $status
