#!/bin/bash
# Applies examples/quickstart.yaml, waits until the cluster is Ready, and says how to connect.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
manifest=$ROOT/examples/quickstart.yaml

seconds_since() { awk -v from="$1" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }'; }
# The namespace of an own cluster is not the user's to lose: there it is `default`, elsewhere that of the context.
applied=$(date +%s.%N)
if ! output=$(kubectl apply --server-side -f "$manifest" 2>&1); then
  grep -q conflict <<<"$output" || die "$output"
  say "demo has been changed since it was made (kubectl scale, edit): it is left as it is"
fi
kubectl wait --for=condition=Ready --timeout="${READY_TIMEOUT:-180s}" kafkacluster/demo >/dev/null ||
  die "kafkacluster/demo is not Ready: $(kubectl get kafkacluster demo --output jsonpath='{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}; {end}')"
say "kafkacluster/demo: Ready $(seconds_since "$applied") s after apply"
kubectl wait --for=condition=Ready --timeout=60s topic/orders >/dev/null ||
  die "topic/orders is not Ready: $(kubectl get topic orders --output jsonpath='{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}; {end}')"
say "topic/orders: Ready $(seconds_since "$applied") s after apply"

kubectl get kafkacluster,topic,pods
namespace=$(kubectl get kafkacluster demo --output jsonpath='{.metadata.namespace}')
[ "$CLUSTER" = current ] || echo "
Kafka answers on localhost:30092:
  kcat -b localhost:30092 -L
  echo hello | kcat -b localhost:30092 -t orders -P
  kcat -b localhost:30092 -t orders -C -e"
echo "
Inside of the cluster: demo-bootstrap.$namespace.svc:9092"
[ "$CLUSTER" = current ] || echo "
kubectl:
  export KUBECONFIG=$KUBECONFIG
  $(command -v kubectl) get kafka --all-namespaces"
