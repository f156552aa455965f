# shellcheck shell=bash disable=SC2034 # the names are for the scripts that source this
# Sourced: which Kubernetes is meant. Ours, unless CLUSTER=current asks for the user's current context; a
# KUBECONFIG the user has set is not looked at without that.
CLUSTER=${CLUSTER:-kind}
case $CLUSTER in
  kind) export KUBECONFIG=$STATE/kubeconfig ;;
  current) ;;
  *) die "CLUSTER is kind or current, not $CLUSTER" ;;
esac
OPERATOR_NAMESPACE=millrace-system
