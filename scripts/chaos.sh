#!/bin/bash
# chaos.sh run|short|failover: the fault laboratory, with brokers built as for debugging (their assertions are on) but
# for failover, which measures. SEED, MINUTES and CHAOS_ARGUMENTS are for run; see chaos/README.md.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
part=$1

if [ "$(id -u)" != 0 ]; then
  [ "$part" = short ] || die "the fault laboratory makes namespaces and mounts, which needs root"
  say "left out: the fault laboratory makes namespaces and mounts, which needs root"
  exit 0
fi
one_at_a_time chaos

profile=debug options=()
[ "$part" != failover ] || profile=release options=(--release)
# Always --workspace: with fewer packages some dependencies would have fewer features and compile again.
cargo build --quiet --workspace --locked "${options[@]}" --bin millrace-broker --bin millrace-chaos
chaos=${CARGO_TARGET_DIR:-target}/$profile/millrace-chaos
read -ra arguments <<<"${CHAOS_ARGUMENTS:-}"

case $part in
  run) exec "$chaos" run --work-dir "$CACHE/chaos" --seed "${SEED:-$RANDOM}" ${MINUTES:+--minutes "$MINUTES"} "${arguments[@]}" ;;
  short) exec "$chaos" run --work-dir "$CACHE/chaos" --seed 4 --rounds 2 --seconds 25 ;;
  failover) exec "$chaos" failover --work-dir "$CACHE/chaos" "${arguments[@]}" ;;
esac
