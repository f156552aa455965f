#!/bin/bash
# chart.sh lint|render|check|settings: the operator's chart through Helm's own engine, without the helm command.
# `check` holds what is rendered against the schemas of Kubernetes; `settings` prints what `make up` sets.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/kube.sh"
cd "$ROOT"
python() { "$("$ROOT/scripts/python.sh" chart helm-python-sdk==0.2.2 kubernetes-validate==1.37.0)" "$@"; }

action=$1
shift
case $action in
  lint) python e2e/cluster/render-chart.py --lint charts/millrace ;;
  render) python e2e/cluster/render-chart.py --namespace "$OPERATOR_NAMESPACE" "${@/#/--set=}" charts/millrace ;;
  check)
    manifests=$(mktemp)
    trap 'rm "$manifests"' EXIT
    "$0" render >"$manifests"
    python -m kubernetes_validate --kubernetes-version "${KUBERNETES_VERSION%.*}" --strict "$manifests"
    ;;
  settings)
    prefix=${IMAGE_REGISTRY:+$IMAGE_REGISTRY/}
    echo crds.install=false "image.operator.repository=${prefix}millrace-operator" image.operator.tag=dev \
      "image.broker.repository=${prefix}millrace-broker" image.broker.tag=dev
    ;;
esac
