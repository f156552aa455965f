#!/bin/bash
# Removes what up.sh put into the user's own cluster: the quickstart, the operator, and the CRDs unless other
# objects of theirs need them. Volumes stay, as deletionPolicy Retain says.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
cd "$ROOT"
say "context: $(kubectl config current-context)"

if kubectl get crd kafkaclusters.millrace.dev >/dev/null 2>&1; then
  kubectl delete --ignore-not-found --timeout=60s -f examples/quickstart.yaml
  others=$(kubectl get kafkaclusters,topics --all-namespaces --output name)
fi
if [ -n "${others:-}" ]; then
  say "the operator and the CRDs stay, these objects need them: $others"
  exit
fi
[ ! -s "$STATE/chart.yaml" ] || kubectl delete --ignore-not-found --namespace "$OPERATOR_NAMESPACE" -f "$STATE/chart.yaml"
kubectl delete --ignore-not-found namespace "$OPERATOR_NAMESPACE"
kubectl delete --ignore-not-found -f crds/generated
volumes=$(kubectl get persistentvolumeclaims --output name | grep data-demo-broker) || true
[ -z "$volumes" ] || say "volumes that stay (kubectl delete them to lose the data): $volumes"
