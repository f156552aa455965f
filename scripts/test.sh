#!/bin/bash
# Every test, in parts, each with its start and its time; stops at the first part that fails. The cluster is made
# for it and removed at the end, also after a failure.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
[ "${CLUSTER:-kind}" = kind ] || die "make test makes a cluster of its own; on yours: make up CLUSTER=current, then make test-e2e"
started=$SECONDS parts=0 current=none
declare -A background=() # by the name of their logs
rm -f "$LOGS"/test-*.log

part() {
  current=$1
  scripts/part.sh "$@"
  parts=$((parts + 1))
}

# beside LOG NICENESS COMMAND…: does what takes long in the time that the parts after it leave over. Either a later part does
# it again, and tells what fails in it, or `rest_of` waits for it.
beside() {
  set -m # a process group of its own, so that it can be ended
  nice -n "$2" "${@:3}" </dev/null >"$LOGS/$1.log" 2>&1 &
  background[$1]=$!
  set +m
}

# rest_of LOG: shows what a part that was begun beside the others has to say, to its end, and fails if it has.
rest_of() {
  current=$1
  renice -n 0 -g "${background[$1]}" >/dev/null 2>&1 || true # it may have ended
  tail --pid="${background[$1]}" -n +1 -f "$LOGS/$1.log"
  wait "${background[$1]}"
  parts=$((parts + 1))
}

# tests_that passed|failed: how many the parts so far report
tests_that() {
  find "$LOGS" -name 'test-*.log' -exec sed -n "s/^test result: .* \([0-9]*\) $1.*/\1/p" {} + | awk '{ sum += $1 } END { print sum + 0 }'
}

close() {
  local status=$?
  trap - EXIT
  local group
  for group in "${background[@]}"; do
    kill -- "-$group" 2>/dev/null || true # mostly it has ended
  done
  if ((status)) && [ "$current" != up ] && [ -s "$STATE/kubeconfig" ]; then # `make up` has told already
    # Whatever comes of it, the cluster must go.
    scripts/part.sh "what the cluster says" e2e/cluster/diagnose.sh || true
  fi
  scripts/part.sh "remove the cluster" make down || status=1
  local passed failed
  passed=$(tests_that passed) failed=$(tests_that failed)
  echo
  if ((status)); then
    echo "tests: FAILED in part \"$current\" after $((SECONDS - started)) s; $passed tests passed, $failed failed"
  else
    echo "tests: all $parts parts passed in $((SECONDS - started)) s; $passed tests passed, $failed failed"
  fi
  exit "$status"
}
trap close EXIT
trap 'exit 130' INT TERM

part "dependencies" make deps
# The longest preparations on a fresh machine, RocksDB and Kubernetes, are not needed by each other.
beside prepare 10 e2e/cluster/prepare.sh
part "RocksDB" make rocksdb
part "format" make fmt
part "shell scripts" make scripts
part "lints" make lint
part "documentation" make docs
part "licences and sources" make deny
part "generated files" make generated
part "chart" make chart
# Tests of the store wait for the disk, and those of brokers for time to pass.
beside images 10 scripts/images.sh
part "compile the tests" make test-compile
# Its time is simulated, so it does not matter when it gets the processors.
beside simulation 19 scripts/part.sh "simulation" make test-simulation
part "unit tests" make test-unit
part "clients" make clients
part "client tests" make test-clients
part "faults" scripts/chaos.sh short
part "Kubernetes and node image" e2e/cluster/prepare.sh # waits for the one in the background; tells what failed there
part "up" make up
part "tests on the cluster" make test-e2e
rest_of simulation
