#!/bin/sh
# Builds prebuilds/ for this machine's architecture and C library, and prints the oldest glibc that the result runs on.
# The build has a directory of its own, so build/Release, which prebuildify empties, stays the developer's.
set -eu
cd "$(dirname "$0")/.."
copy=build/prebuild
mkdir -p $copy
rm -rf $copy/src-native prebuilds/linux-*
cp -a src-native CMakeLists.txt package.json $copy
ln -sfn ../../node_modules $copy/node_modules
node_modules/.bin/prebuildify --napi --strip --tag-libc --node-gyp "$PWD/scripts/node-gyp.sh" --cwd $copy --out .
for addon in prebuilds/*/*.node; do
  # The guard has the addon's name, whatever tags that has.
  guard=${addon%.node}.guard
  cp $copy/build/Release/linux_tproxy.guard "$guard"
  "${PREBUILD_STRIP_BIN:-strip}" "$guard"
  for file in "$addon" "$guard"; do
    floor=$(objdump -T "$file" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    echo "$file: $(stat -c %s "$file") bytes, needs ${floor:-no glibc}"
  done
done
