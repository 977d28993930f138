#!/bin/sh
# Everything that reads the code without running it; prints what it finds and fails then. Needs the native build
# (build/compile_commands.json). clang-tidy is slow: a file that it found clean is left out until it, or any header, changes.
set -u
cd "$(dirname "$0")/.."
sources=$(find src-native -name '*.cc' | sort)
headers=$(find src-native -name '*.h' | sort)
clean=node_modules/.cache/linux-tproxy-tidy
mkdir -p $clean

common=$(cat .clang-tidy CMakeLists.txt scripts/lint.sh $headers | sha256sum)
tidy() {
  for file in $sources; do
    stamp=$clean/$( (echo "$common $file"; cat "$file") | sha256sum | cut -c1-40)
    [ -e "$stamp" ] || printf '%s %s\n' "$stamp" "$file"
  done | xargs -r -P2 -L1 sh -c 'clang-tidy --quiet -p build "$1" 2>/dev/null && : >"$0"'
}
tidy &
failed=0
node_modules/.bin/biome check --error-on-warnings . || failed=1
node_modules/.bin/tsc -p tsconfig.json || failed=1
# shellcheck disable=SC2086 # lists of words
clang-format --dry-run --Werror $sources $headers || failed=1
wait $! || failed=1
# Stamps of files as they were long ago.
find $clean -type f -mtime +30 -delete
exit $failed
