#!/bin/sh
# Fuzzes the netlink core under sanitizers: fuzz.sh [MESSAGES [TRANSACTIONS [SEED]]]. See test/fuzz.
set -eu
cd "$(dirname "$0")/.."
cmake -S . -B build/sanitize -G Ninja -DSANITIZE=ON -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-O1 >/dev/null
cmake --build build/sanitize >build/sanitize/log.txt || { cat build/sanitize/log.txt >&2; exit 1; }
build/sanitize/fuzz_decode "${1:-5000000}" test/golden/fixtures/*.txt
# shellcheck disable=SC2086 # may be absent
build/sanitize/fuzz_connection "${2:-1000000}" ${3:-}
