#!/bin/bash
# Builds RocksDB once as a static library, from the sources in its crate, so that debug and release builds
# and every checkout link it in seconds. `rocksdb.sh path` prints the folder of the library, without building.
. "$(dirname "$0")/env.sh"
cd "$ROOT"

# The library depends on the crate's version, its features and the CPU flags: they make the key.
requirement=$(grep -E '^rocksdb = ' Cargo.toml)
version=$(sed -n '/^name = "rocksdb"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
hash=$({ echo "$requirement"; uname -m; cat .cargo/config.toml; } | key)
target=$CACHE/rocksdb-$version-$hash/lib

if [ "${1:-}" = path ]; then
  echo "$target"
  exit
fi
[ ! -s "$target/librocksdb.a" ] || exit 0
one_at_a_time rocksdb
[ ! -s "$target/librocksdb.a" ] || exit 0

build=$CACHE/rocksdb-build-$version-$hash
mkdir -p "$build/src" "$build/.cargo"
: >"$build/src/lib.rs"
cp .cargo/config.toml "$build/.cargo/"
cp Cargo.lock "$build/" # the same librocksdb-sys as the workspace; cargo drops the lines it does not need
cat >"$build/Cargo.toml" <<T
[package]
name = "rocksdb-build"
version = "0.0.0"
edition = "2024"
[dependencies]
$requirement
[workspace]
[profile.release]
debug = false
T

compile() (
  cd "$build"
  env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$build/target" nice cargo build --release -p librocksdb-sys &
  pid=$!
  trap 'kill $pid' TERM
  # cargo is silent while the C++ compiler runs; the object files tell how far it is.
  while kill -0 $pid 2>/dev/null; do
    sleep 5
    # On a fresh machine cargo is fetching them first.
    total=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/librocksdb-sys-*/rocksdb_lib_sources.txt 2>/dev/null | tail -n 1 | xargs cat 2>/dev/null | grep -c '\.cc') || true
    done=$(find target/release/build/librocksdb-sys-*/out -name '*.o' 2>/dev/null | wc -l)
    echo "$done of $total files compiled"
  done
  wait $pid
)
step "RocksDB $version" compile
library=$(find "$build/target/release/build" -path '*/out/librocksdb.a' -size +1M | head -n 1)
mkdir -p "$target"
cp "$library" "$target/librocksdb.a.tmp"
mv "$target/librocksdb.a.tmp" "$target/librocksdb.a"
rm -rf "$build"
