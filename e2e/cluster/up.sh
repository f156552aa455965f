#!/bin/bash
# From nothing to a Ready Kafka cluster: the main command, `make up`. Run again it brings up to date.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
one_at_a_time up
cd "$ROOT"
mkdir -p "$STATE"

scripts/deps.sh
if [ "$CLUSTER" = current ]; then
  step "kubectl" e2e/cluster/binaries.sh kind kubectl
  context=$(kubectl config current-context) || die "CLUSTER=current needs a current context in your kubeconfig"
  say "using your current context: $context"
  scripts/images.sh
else
  # The compiler and the cluster have little to do with each other: side by side.
  scripts/images.sh &
  images=$!
  trap 'kill $images 2>/dev/null || true' EXIT
  step "Kubernetes binaries" e2e/cluster/binaries.sh kind kubectl
  step "Kubernetes cluster" e2e/cluster/create.sh
  wait $images
  trap - EXIT
fi
step "load images" e2e/cluster/load-images.sh
explain() {
  say "FAILED; what the cluster says:"
  e2e/cluster/diagnose.sh
  exit 1
}
step "install the operator" e2e/cluster/install.sh || explain
say "apply examples/quickstart.yaml"
e2e/cluster/quickstart.sh || explain
