#!/bin/bash
# Brings the images built by scripts/images.sh to the cluster's nodes, unless they have them already.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
. "$ROOT/e2e/cluster/kube.sh"

# What still runs an earlier build under the same name does not notice a new one.
restart_pods_of() {
  kubectl get pods --all-namespaces --output json |
    jq -r --arg image "$1" '.items[] | select(any(.spec.containers[]; .image == $image)) | "\(.metadata.namespace) \(.metadata.name)"' |
    while read -r namespace name; do kubectl delete pod --namespace "$namespace" "$name" --wait=false; done
}

into_kind() { # CLUSTER NAME: the archive NAME into the workers, on which everything of ours runs
  local digest nodes loaded=$STATE/loaded-$1-$2
  digest=$(sha256sum "$STATE/images/$2.tar")
  [ "$digest" != "$(cat "$loaded" 2>/dev/null)" ] || return 0
  nodes=$(kubectl get nodes --selector '!node-role.kubernetes.io/control-plane' --output jsonpath='{.items[*].metadata.name}')
  kind load image-archive "$STATE/images/$2.tar" --name "$1" ${nodes:+--nodes "${nodes// /,}"}
  restart_pods_of "$2:dev"
  echo "$digest" >"$loaded"
}

into_registry() { # NAME
  docker load --quiet --input "$STATE/images/$1.tar"
  docker tag "$1:dev" "$IMAGE_REGISTRY/$1:dev"
  docker push "$IMAGE_REGISTRY/$1:dev"
}

find_docker || die "no Docker daemon answers"
context=$(kubectl config current-context)
for name in millrace-broker millrace-operator; do
  if [ "$CLUSTER" = kind ]; then
    into_kind millrace $name
  elif [ -n "${IMAGE_REGISTRY:-}" ]; then
    into_registry $name
  elif [[ $context = kind-* ]]; then
    into_kind "${context#kind-}" $name
  else
    die "the nodes of context $context must be able to pull the images: name a registry with IMAGE_REGISTRY=…"
  fi
done
