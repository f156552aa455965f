#!/bin/bash
# Every test, in parts, each with its start and its time; stops at the first part that fails. The cluster is made
# for it and removed at the end, also after a failure.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
[ "${CLUSTER:-kind}" = kind ] || die "make test makes a cluster of its own; on yours: make up CLUSTER=current, then make test-e2e"
started=$SECONDS parts=0 current=none background=
rm -f "$LOGS"/test-*.log

part() {
  current=$1
  scripts/part.sh "$@"
  parts=$((parts + 1))
}

# tests_that passed|failed: how many the parts so far report
tests_that() {
  find "$LOGS" -name 'test-*.log' -exec sed -n "s/^test result: .* \([0-9]*\) $1.*/\1/p" {} + | awk '{ sum += $1 } END { print sum + 0 }'
}

close() {
  local status=$?
  trap - EXIT
  [ -z "$background" ] || kill -- "-$background" 2>/dev/null || true
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
set -m
nice e2e/cluster/prepare.sh </dev/null >"$LOGS/prepare.log" 2>&1 &
background=$!
set +m
part "RocksDB" make rocksdb
part "format" make fmt
part "shell scripts" make scripts
part "lints" make lint
part "documentation" make docs
part "licences and sources" make deny
part "generated files" make generated
part "chart" make chart
part "unit tests" make test-unit
part "simulation" make test-simulation
part "clients" make clients
part "client tests" make test-clients
part "faults" scripts/chaos.sh short
part "Kubernetes and node image" e2e/cluster/prepare.sh # waits for the one in the background; tells what failed there
part "up" make up
part "tests on the cluster" make test-e2e
