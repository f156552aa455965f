#!/bin/bash
# Brings the local kind cluster up, or back up: Docker, the node image, four nodes, all Ready.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
one_at_a_time cluster
cd "$ROOT/e2e/cluster"
kubeconfig=$STATE/kubeconfig
mkdir -p "$STATE"

./binaries.sh kind kubectl
./dockerd-up.sh
find_docker
exists() { kind get clusters 2>/dev/null | grep -qx millrace; }

# Says `making` or `made`: without it a cluster of that name is somebody else's.
marker=$STATE/cluster
if exists && [ ! -e "$marker" ]; then
  die "a kind cluster called millrace exists that was not made here; \`kind delete cluster --name millrace\` would remove it"
fi
if exists && [ "$(cat "$marker")" = making ]; then
  echo "removing a cluster whose making was interrupted"
  kind delete cluster --name millrace --kubeconfig "$kubeconfig"
fi

if exists; then
  # Nodes that stand still after the daemon or the machine was restarted.
  docker ps --all --quiet --filter label=io.x-k8s.kind.cluster=millrace --filter status=exited | xargs -r docker start
  [ -s "$kubeconfig" ] || kind export kubeconfig --name millrace --kubeconfig "$kubeconfig"
else
  ./node-image.sh 2>&1 | tee "$STATE/node-image"
  # `kind delete` leaves the network; down.sh removes it if it was not here before.
  docker network inspect kind >/dev/null 2>&1 || touch "$STATE/made-network"
  rm -f "$STATE"/loaded-*
  echo making >"$marker"
  kind create cluster --name millrace --image "$(tail -n 1 "$STATE/node-image")" --config "$ROOT/kind-config.yaml" \
    --kubeconfig "$kubeconfig" --wait 120s
  echo made >"$marker"
fi

# Nodes that were started again answer nothing at first, and then for a moment refuse everything.
until kubectl --kubeconfig "$kubeconfig" wait --for=condition=Ready nodes --all --timeout=30s; do
  ((SECONDS < 240)) || die "the nodes do not become Ready"
  sleep 1
done
