#!/bin/sh
# Makes a fresh clone ready: programs of the distribution, node_modules, the native build. Does nothing, fast, where all is there.
# `setup.sh` prepares for everything, `setup.sh build` for building and `setup.sh demo` for the demo only.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

# What must be on PATH, and the Debian package that brings it.
build='cmake:cmake ninja:ninja-build g++:g++ strip:binutils'
demo='ip:iproute2 nft:nftables iptables-nft-save:iptables unshare:util-linux sysctl:procps curl:curl'
test='git:git clang-format:clang-format clang-tidy:clang-tidy strace:strace python3:python3
      nginx:nginx-light squid:squid haproxy:haproxy iperf3:iperf3 sockperf:sockperf zsh:zsh fish:fish
      systemd-analyze:systemd openssl:openssl lftp:lftp tnftp:tnftp proftpd:proftpd-core swaks:swaks'
case "${1:-all}" in
  build) wanted=$build ;;
  demo) wanted="$build $demo" ;;
  all) wanted="$build $demo $test" ;;
  *) echo "usage: setup.sh [build | demo]" >&2; exit 2 ;;
esac

missing=
for pair in $wanted; do
  command -v "${pair%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /usr/include/linux/netfilter/nf_tables.h ] || missing="$missing linux-libc-dev"
[ "${1:-all}" != all ] || [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$missing libnginx-mod-stream"
if [ "${1:-all}" = all ]; then
  for module in aiosmtpd websockets; do
    [ -e /usr/lib/python3/dist-packages/$module ] || missing="$missing python3-$module"
  done
  ls /usr/lib/*/libwrap.so.0 >/dev/null 2>&1 || missing="$missing libwrap0" # for vsftpd
fi

# Daemons that come with a package must neither start now (policy-rc.d) nor at the next boot (disable).
install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
  fi
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of words
  apt-get install -qq -y --no-install-recommends --no-remove $missing >/dev/null
  for daemon in nginx squid haproxy iperf3 proftpd; do
    case "$missing " in *" $daemon "* | *" $daemon-light "* | *" $daemon-core "*)
      ! command -v systemctl >/dev/null || systemctl disable --quiet "$daemon" 2>/dev/null || true ;;
    esac
  done
}

if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing$missing"
    install_packages
  else
    echo "setup: missing, please install them first. On Debian or Ubuntu:" >&2
    echo "  sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
fi

# No machine can have two FTP servers as packages: this one's program is taken out of its package.
vsftpd=build/peers/usr/sbin/vsftpd
if [ "${1:-all}" = all ] && [ ! -e $vsftpd ]; then
  mkdir -p build/peers/usr/sbin
  if command -v vsftpd >/dev/null; then
    ln -s "$(command -v vsftpd)" $vsftpd
  else
    echo 'setup: downloading vsftpd'
    (cd build/peers && apt-get -o APT::Sandbox::User=root download -qq vsftpd && dpkg-deb -x vsftpd_*.deb . && rm vsftpd_*.deb)
  fi
fi

# A node_modules that is a link belongs to another checkout. The time of the lock file changes with every checkout of it,
# so its text decides.
installed=node_modules/.cache/linux-tproxy-lock.json
if [ ! -L node_modules ] && { [ ! -e node_modules/.package-lock.json ] ||
  { [ package-lock.json -nt node_modules/.package-lock.json ] && ! cmp -s package-lock.json $installed; }; }; then
  echo 'setup: npm ci'
  npm ci --no-audit --no-fund --loglevel=error
  mkdir -p node_modules/.cache
  cp package-lock.json $installed
fi

# A directory is newer than the addon when a file in it came or went.
addon=build/Release/linux_tproxy.node
if [ ! -e $addon ] || [ -n "$(find src-native CMakeLists.txt package-lock.json -newer $addon -print -quit)" ]; then
  echo 'setup: building the addon'
  # In CI a compiler warning is an error.
  set -- ${CI:+--CDCMAKE_COMPILE_WARNING_AS_ERROR=ON}
  # Not in build/: cmake-js empties it when a compilation fails.
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  node_modules/.bin/cmake-js compile "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  ! grep -A6 'warning:' "$log"
  touch $addon
fi
