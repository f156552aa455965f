#!/bin/bash
# Installs the CRDs and the operator's chart into the cluster, and waits until the operator runs.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
cd "$ROOT"

kubectl apply --server-side --force-conflicts -f crds/generated
kubectl wait --for=condition=Established --timeout=60s -f crds/generated

kubectl create namespace "$OPERATOR_NAMESPACE" --dry-run=client --output yaml | kubectl apply --server-side -f -
# shellcheck disable=SC2046 # the settings are words
e2e/cluster/chart.sh render $(e2e/cluster/chart.sh settings) >"$STATE/chart.yaml"
kubectl apply --server-side --force-conflicts --namespace "$OPERATOR_NAMESPACE" -f "$STATE/chart.yaml"
kubectl rollout status --namespace "$OPERATOR_NAMESPACE" --timeout=120s deployment
