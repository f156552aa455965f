#!/bin/bash
# Removes the local cluster and every trace of it; caches stay. With CLUSTER=current: what up.sh put into the
# user's cluster.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
cd "$ROOT/e2e/cluster"

if [ "${CLUSTER:-}" = current ]; then
  exec ./uninstall.sh
fi
one_at_a_time cluster

remove_cluster() {
  kind delete cluster --name millrace --kubeconfig "$STATE/kubeconfig"
  # Fails while somebody else's kind cluster is on it: then it is theirs now.
  [ ! -e "$STATE/made-network" ] || docker network rm kind >/dev/null 2>&1 || true
  # A made node image would stay in the user's Docker; ours goes as a whole.
  docker_is_ours || docker images --quiet millrace-node | sort -u | xargs -r docker image rm --force >/dev/null
}

if [ -e "$STATE/cluster" ]; then # written when the cluster is made; without it one of that name is somebody else's
  # A daemon of ours that died left containers running; it takes a daemon to end them.
  if [ -d "$STATE/docker" ]; then ./dockerd-up.sh; fi
  find_docker || die "no Docker daemon answers: the cluster in it cannot be removed"
  step "remove the cluster" remove_cluster
fi
./dockerd-down.sh
rm -rf "$STATE"
say "down: no cluster left; caches stay in $CACHE"
