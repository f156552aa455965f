# shellcheck shell=bash disable=SC2034 # the names are for the scripts that source this
# Sourced by every script: pinned versions, where things are cached, how progress is shown.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Nothing that is built or downloaded lands in the checkout, so that a fresh clone starts warm.
CACHE=${MILLRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace}
STATE=$CACHE/run-state # what lives only as long as the cluster: sockets, pid, kubeconfig
LOGS=$CACHE/log
LOCKS=$CACHE/lock
mkdir -p "$CACHE" "$LOGS" "$LOCKS"

export KUBERNETES_VERSION=1.34.4 KIND_VERSION=0.30.0 ETCD_VERSION=3.6.5 COREDNS_VERSION=1.12.4 PROVISIONER_VERSION=0.0.30
export CARGO_DENY_VERSION=0.20.2 RUST_MINIMUM=1.95 GO_MINIMUM=1.26

KUBERNETES_DIR=$CACHE/kubernetes-$KUBERNETES_VERSION
PATH=$KUBERNETES_DIR/bin:$CACHE/kind-$KIND_VERSION/bin:$PATH:/usr/sbin:/sbin # the last two: a user's PATH may lack where runc and iptables are

# The token pool of `make -j` is not for cargo: it would build with one job.
unset MAKEFLAGS MFLAGS MAKELEVEL

export MILLRACE_STARTED=${MILLRACE_STARTED:-$(date +%s)}

# Prints a line with the seconds since the command the user typed began.
say() { printf '[%4d s] %s\n' "$(($(date +%s) - MILLRACE_STARTED))" "$*"; }

die() {
  echo "error: $*" >&2
  exit 1
}

# Short hash over standard input: the key of whatever is cached by content.
key() { sha256sum | cut -c 1-12; }

# Holds a lock of this name until the calling script ends, so that two runs on a machine do not build the same
# thing at once. What a script leaves running must close its files, or it would hold the lock on.
one_at_a_time() {
  local lock
  exec {lock}>"$LOCKS/$1"
  flock --nonblock "$lock" || {
    say "waiting for another run of $1" >&2
    flock "$lock"
  }
}

# Progress bars as lines: what they overwrite and their colours taken out.
plain() { tr '\r' '\n' | sed 's/\x1b\[[0-9;]*[A-Za-z]//g'; }

# step NAME COMMAND…: runs the command with its output in a log, says every 15 s how far it is, and on
# failure shows the end of that log. VERBOSE=1 shows all of it as it comes.
step() {
  local name=$1 log=$LOGS/${1// /-}.log started=$SECONDS beat=$SECONDS pid status=0
  shift
  say "$name"
  if [ -n "${VERBOSE:-}" ]; then
    "$@"
    return
  fi
  set -m # a process group of its own, so that an interrupt can end all of it
  "$@" </dev/null >"$log" 2>&1 &
  pid=$!
  set +m
  # shellcheck disable=SC2064 # this pid, not that of the next step
  trap "kill -- -$pid 2>/dev/null; exit 130" INT TERM HUP PIPE
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - beat >= 15)); then
      beat=$SECONDS
      say "$name: $((SECONDS - started)) s so far: $(tail -c 500 "$log" | plain | grep . | tail -n 1 | cut -c 1-100)"
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM HUP PIPE
  if ((status)); then
    say "$name: FAILED, the end of $log:"
    tail -n 40 "$log" | plain | sed 's/^/    /'
    return "$status"
  fi
  say "$name: done in $((SECONDS - started)) s"
}
