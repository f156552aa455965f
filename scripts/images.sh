#!/bin/bash
# Builds the images of broker and operator as archives, without Docker and without pulling a base image, and
# leaves them under $STATE/images. Binaries of the same sources are taken from the cache, whatever the checkout.
. "$(dirname "$0")/env.sh"
one_at_a_time images
cd "$ROOT"
inputs=(Cargo.toml Cargo.lock .cargo broker operator crds management protocol scripts/images scripts/images.sh)

sources() {
  git ls-files --cached --others --exclude-standard -z -- "${inputs[@]}" 2>/dev/null ||
    find "${inputs[@]}" -name target -prune -o -type f -print0 # sources without their history
}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# The last commit that changed what is inside, so that a commit beside it leaves the image alone.
revision=$(git log -1 --format=%H -- "${inputs[@]}" 2>/dev/null) || true
[ -z "$(git status --porcelain -- "${inputs[@]}" 2>/dev/null)" ] || revision=${revision:-none}-changed
hash=$({ rustc --verbose --version; sources | LC_ALL=C sort -z | xargs -0 sha256sum 2>/dev/null || true; } | key)
binaries=$CACHE/binaries/$hash

compile() {
  local libraries
  libraries=$(scripts/rocksdb.sh path)
  CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 CARGO_TARGET_DIR=$CACHE/target \
    ROCKSDB_LIB_DIR=$libraries ROCKSDB_STATIC=1 \
    cargo build --locked --release -p millrace-broker -p millrace-operator
  rm -rf "$binaries.tmp"
  mkdir -p "$binaries.tmp"
  cp "$CACHE"/target/release/millrace-{broker,operator} "$binaries.tmp/"
  mv "$binaries.tmp" "$binaries"
}

archive() { # NAME DESCRIPTION
  local root
  root=$(mktemp -d "$CACHE/image-root.XXXXXX")
  scripts/images/rootfs.py "$binaries/$1" "$root"
  scripts/images/archive.py --name "$1:dev" --entrypoint "/usr/local/bin/$1" --user 65532:65532 \
    --label "org.opencontainers.image.title=$1" --label "org.opencontainers.image.description=$2" \
    --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.revision=${revision:-unknown}" \
    --label org.opencontainers.image.licenses=Apache-2.0 "$root" "$STATE/images/$1.tar"
  rm -r "$root"
}

if [ ! -d "$binaries" ]; then
  scripts/rocksdb.sh
  step "build broker and operator" compile
  # Only the latest few are worth their space.
  find "$CACHE/binaries" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | tail -n +4 | cut -d ' ' -f 2- | xargs -r rm -r
fi
mkdir -p "$STATE/images"
archive millrace-broker "The Kafka-compatible broker"
archive millrace-operator "Reconciles KafkaCluster and Topic"
say "images: $(cd "$STATE/images" && du -h -- *.tar | awk '{ print $2 " (" $1 ")" }' | paste -sd ' ')"
