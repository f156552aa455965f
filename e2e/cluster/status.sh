#!/bin/bash
# Shows the fleet: nodes, Kafka clusters and topics, their pods, the latest events.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
kubectl get --raw /livez >/dev/null 2>&1 || die "no cluster answers: make up starts one"
section() {
  echo "== $1"
  shift
  kubectl "$@" || true
  echo
}
section nodes get nodes --label-columns topology.kubernetes.io/zone
section "Kafka clusters" get kafkaclusters --all-namespaces --output wide
section topics get topics --all-namespaces --output wide
section operator get pods --namespace "$OPERATOR_NAMESPACE" --output wide
section brokers get pods --all-namespaces --selector app.kubernetes.io/managed-by=millrace-operator --output wide
echo "== latest events"
kubectl get events --all-namespaces --sort-by .metadata.creationTimestamp --no-headers | tail -n 15
