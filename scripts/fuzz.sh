#!/bin/bash
# fuzz.sh [SECONDS]: builds every fuzz target and runs each for a while on what earlier runs have
# found, which stays in the cache. A crash leaves its input there and fails the script. Needs a nightly compiler.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
seconds=${1:-300}
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$CACHE/fuzz-target
# What cargo-fuzz sets, without the sanitizers: there is no unsafe code to watch. --target keeps build scripts out of it.
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"

for folder in protocol/fuzz broker/fuzz; do
  cargo +nightly build --quiet --release --target "$host" --manifest-path "$folder/Cargo.toml"
  for source in "$folder"/fuzz_targets/*.rs; do
    target=$(basename "$source" .rs)
    found=$CACHE/fuzz/$folder/$target
    mkdir -p "$found/corpus"
    say "fuzz target $target, $seconds s"
    "$CARGO_TARGET_DIR/$host/release/$target" "$found/corpus" -artifact_prefix="$found/" -max_total_time="$seconds" \
      -rss_limit_mb=1024 -malloc_limit_mb=512 -print_final_stats=1 >"$LOGS/fuzz-$target.log" 2>&1 || {
      tail -n 30 "$LOGS/fuzz-$target.log"
      die "fuzz target $target: $LOGS/fuzz-$target.log; its input is in $found"
    }
    sed -n 's/^stat::number_of_executed_units: */  executions: /p; s/^stat::peak_rss_mb: */  memory, MB: /p' "$LOGS/fuzz-$target.log"
  done
done
