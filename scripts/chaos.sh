#!/bin/bash
# chaos.sh run|short|failover|bugs: the fault laboratory, with brokers built as for debugging (their assertions are on) but
# for failover, which measures. SEED, MINUTES and CHAOS_ARGUMENTS are for run; SEED, ROUNDS and BUGS for bugs; see
# chaos/README.md.
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

# find_bug NAME KINDS: rounds with brokers that make this mistake, until one finds something.
find_bug() {
  "$chaos" run --work-dir "$CACHE/chaos" --broker "$broker" --historical-bug "$1" --only "$2" --until-found \
    --rounds "${ROUNDS:-30}" --seed "${SEED:-1}" --seconds 30 "${arguments[@]}"
}

# find_bugs: every mistake of the past has to be found; with each the faults that bring it out.
find_bugs() {
  local bug missed=()
  local -A kinds=(
    [truncate-to-high-watermark]='kill,kill-all,restart-loop,terminate,pause,cut'
    [acknowledge-before-durable]='kill,kill-all,power-loss'
    [reuse-raft-id]='wipe,kill'
  )
  for bug in ${BUGS:-truncate-to-high-watermark acknowledge-before-durable reuse-raft-id}; do
    say "looking for $bug"
    find_bug "$bug" "${kinds[$bug]}" || missed+=("$bug")
  done
  ((${#missed[@]} == 0)) || die "not found, or the laboratory failed: ${missed[*]}"
}

case $part in
  run) exec "$chaos" run --work-dir "$CACHE/chaos" --seed "${SEED:-$RANDOM}" ${MINUTES:+--minutes "$MINUTES"} "${arguments[@]}" ;;
  short) exec "$chaos" run --work-dir "$CACHE/chaos" --seed 4 --rounds 2 --seconds 25 ;;
  bugs)
    # Of a target folder of their own, so that nobody takes these brokers for any others.
    broker=$CACHE/historical-bugs-target
    CARGO_TARGET_DIR=$broker cargo build --quiet --locked -p millrace-broker --bin millrace-broker --features historical-bugs
    broker=$broker/debug/millrace-broker
    find_bugs
    ;;
  failover) exec "$chaos" failover --work-dir "$CACHE/chaos" "${arguments[@]}" ;;
esac
