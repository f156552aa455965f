#!/bin/bash
# cargo-test.sh unit|simulation|clients|e2e: the tests that need nothing, those of simulated fleets, those of the broker
# with real Kafka clients and of its comparison with Kafka, those on the cluster. A new file under tests/ is found by its
# package; none has to be named.
. "$(dirname "$0")/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
cd "$ROOT"
part=$1

# tests_of JQ-CONDITION: the test targets of these packages, as options
tests_of() {
  cargo metadata --no-deps --format-version 1 |
    jq -r ".packages[] | select(.name | $1) | .targets[] | select(.kind == [\"test\"]) | \"--test=\" + .name"
}
# Always --workspace: with fewer packages some dependencies would have fewer features and compile again.
run() { cargo test --workspace --locked --no-fail-fast "$@" 2>&1 | tee -a "$LOGS/test-$part.log"; }

rm -f "$LOGS/test-$part.log"
case $part in
  unit)
    mapfile -t targets < <(tests_of '. | IN("millrace-broker", "millrace-bench", "millrace-e2e") | not')
    run --lib --bins "${targets[@]}"
    run --doc
    ;;
  simulation)
    # One after another: each takes all processors by itself.
    MILLRACE_SIMULATION_SEEDS=${SEEDS:-200} MILLRACE_SIMULATION_FIRST=${FIRST:-1} \
      run --lib -- --ignored --nocapture --test-threads=1 --skip a_single_run simulation::
    ;;
  clients)
    mapfile -t targets < <(tests_of '. | IN("millrace-broker", "millrace-bench")')
    ((${#targets[@]})) || die "no test found"
    run "${targets[@]}"
    ;;
  e2e)
    mapfile -t targets < <(tests_of '. == "millrace-e2e"')
    ((${#targets[@]})) || die "no test found"
    [ -s "$MILLRACE_KUBECONFIG" ] || die "no cluster: make up starts one"
    find_docker || true # tests that stop a node speak to Docker
    RUST_TEST_THREADS=${RUST_TEST_THREADS:-2} run "${targets[@]}"
    ;;
esac
