#!/bin/bash
# Prints what explains a failure: objects with their status, pods, events, logs of the operator and the brokers.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
kubectl get --raw /livez >/dev/null 2>&1 || die "no cluster answers: nothing to look at"
section() {
  echo "---- $*"
  kubectl "$@" 2>&1 || true
}
section get nodes --output wide
section get kafkaclusters,topics --all-namespaces --output yaml --show-managed-fields=false
section get pods,services,persistentvolumeclaims --all-namespaces --output wide
section get events --all-namespaces --sort-by .metadata.creationTimestamp | tail -n 60
section logs --namespace "$OPERATOR_NAMESPACE" --selector app.kubernetes.io/name=millrace-operator --tail 100 --prefix
kubectl get pods --all-namespaces --output json |
  jq -r '.items[] | select(any(.spec.containers[]; .image | test("millrace-broker"))) | "\(.metadata.namespace) \(.metadata.name)"' |
  while read -r namespace name; do
    section logs --namespace "$namespace" "$name" --all-containers --tail 60
    kubectl logs --namespace "$namespace" "$name" --previous --tail 30 2>/dev/null | sed 's/^/(before its restart) /'
  done
