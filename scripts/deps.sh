#!/bin/bash
# Installs by apt what the machine lacks; without root (or apt) says exactly what is missing.
. "$(dirname "$0")/env.sh"

# COMMAND:PACKAGE
needs=(
  curl:curl g++:g++ git:git jq:jq make:make pkg-config:pkg-config python3:python3 flock:util-linux
  kcat:kcat mvn:maven java:default-jdk-headless shellcheck:shellcheck
  docker:docker.io dockerd:docker.io containerd:containerd runc:runc iptables:iptables
  debootstrap:debootstrap busybox:busybox-static ip:iproute2
  mkfs.ext4:e2fsprogs unshare:util-linux setpriv:util-linux nsenter:util-linux fsfreeze:util-linux
)

packages=()
for need in "${needs[@]}"; do
  command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
done
# bindgen (RocksDB's bindings) loads libclang, and cannot do with libclang-cpp; the venv module is a package of its own on Debian.
ldconfig -p | grep -qE 'libclang(-[0-9]+)?\.so' || ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 || packages+=(libclang-dev)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)

# A Docker daemon of somebody else's may answer without dockerd or containerd installed here. Root cuts links in tests, by iptables.
if docker info >/dev/null 2>&1; then
  mapfile -t packages < <(printf '%s\n' ${packages[@]+"${packages[@]}"} | grep -vxE "docker.io|containerd|runc|$([ "$(id -u)" = 0 ] || echo iptables)|debootstrap|busybox-static|")
fi

mapfile -t packages < <(printf '%s\n' ${packages[@]+"${packages[@]}"} | sort -u | sed '/^$/d')

# at_least HAVE WANT: compares versions
at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
missing=()
rust=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || true
at_least "${rust:-0}" "$RUST_MINIMUM" || missing+=("Rust $RUST_MINIMUM or newer with cargo, clippy and rustfmt (found: ${rust:-none}); with rustup: rustup toolchain install $RUST_MINIMUM")
go=$(go version 2>/dev/null | sed 's/.*go\([0-9.]*\) .*/\1/') || true
at_least "${go:-0}" "$GO_MINIMUM" || missing+=("Go $GO_MINIMUM or newer (found: ${go:-none}); it builds Kubernetes and kind from their modules")
if ((${#packages[@]})) && { [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; }; then
  missing+=("packages, by Debian's names, which root could install here: ${packages[*]}")
fi
((!${#missing[@]})) || {
  printf 'missing: %s\n' "${missing[@]}" >&2
  exit 1
}

install() {
  export DEBIAN_FRONTEND=noninteractive
  # Never start a system-wide daemon: the cluster's own is started when it is needed, and stopped again.
  printf '#!/bin/sh\nexit 101\n' >"$CACHE/policy-rc.d" && chmod +x "$CACHE/policy-rc.d"
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    ln -s "$CACHE/policy-rc.d" /usr/sbin/policy-rc.d
  fi
  apt-get update -q && apt-get install -q -y --no-install-recommends "$@"
}
if ((${#packages[@]})); then
  say "missing packages: ${packages[*]}"
  step "apt install" install "${packages[@]}"
fi
