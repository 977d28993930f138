#!/bin/sh
# Everything that reads the code without running it; prints what it finds and fails then. Needs the native build.
# `lint.sh deep` has clang's analyzer follow every path of the core besides, for minutes.
set -u
cd "$(dirname "$0")/.."
sources=$(find src-native -name '*.cc' | sort)
headers=$(find src-native -name '*.h' | sort)

deep=
[ "${1:-}" != deep ] || deep='--checks=clang-analyzer-*'

# clang-tidy is slow: a file that it found clean is left out until it changes, or a header that it includes.
clean=node_modules/.cache/linux-tproxy-tidy
mkdir -p $clean
dependencies=$(ninja -C build -t deps)
fingerprint() {
  includes=$(echo "$dependencies" | awk -v object="/$1.o:" 'index($0, object) { on = 1 } /^$/ { on = 0 } on && /src-native.*\.h$/')
  # shellcheck disable=SC2086 # a list of words
  { echo "$deep"; cat .clang-tidy CMakeLists.txt "$1" ${includes:-$headers}; } | sha256sum | cut -c1-40
}
tidy() {
  for file in $sources; do
    case "$deep $file" in --*src-native/bindings/*) continue ;; esac # through node-addon-api's headers, and finds nothing
    stamp=$clean/$(fingerprint "$file")
    [ -e "$stamp" ] || echo "$stamp $file"
  done | xargs -r -P2 -L1 sh -c 'clang-tidy --quiet -p build '"$deep"' "$1" 2>/dev/null && : >"$0"'
}

tidy &
failed=0
node_modules/.bin/biome check --error-on-warnings . || failed=1
node_modules/.bin/tsc -p tsconfig.json || failed=1
# shellcheck disable=SC2086 # lists of words
clang-format --dry-run --Werror $sources $headers || failed=1
wait $! || failed=1
find $clean -type f -mtime +30 -delete
exit $failed
