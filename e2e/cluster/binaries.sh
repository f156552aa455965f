#!/bin/bash
# Builds Kubernetes, kind and what belongs into a node image from their Go modules, once per version.
# binaries.sh [NAME…]: only these; kind and kubectl are enough where the official node image can be pulled.
. "$(dirname "$0")/../../scripts/env.sh"

kubernetes=(kubectl kubeadm kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy)
(($#)) || set -- kind etcd coredns local-path-provisioner pause "${kubernetes[@]}"

path_of() {
  case $1 in
    kind) echo "$CACHE/kind-$KIND_VERSION/bin/kind" ;;
    etcd) echo "$CACHE/etcd-$ETCD_VERSION/bin/etcd" ;;
    coredns) echo "$CACHE/coredns-$COREDNS_VERSION/bin/coredns" ;;
    local-path-provisioner) echo "$CACHE/local-path-provisioner-$PROVISIONER_VERSION/bin/local-path-provisioner" ;;
    *) echo "$KUBERNETES_DIR/bin/$1" ;;
  esac
}
if [ "$1" = path ]; then
  path_of "$2"
  exit
fi

all_built() {
  local name
  for name in "$@"; do [ -x "$(path_of "$name")" ] || return 1; done
}
if all_built "$@"; then exit; fi
one_at_a_time binaries

export CGO_ENABLED=0 GOFLAGS="-mod=mod -buildvcs=false" GOWORK=off GO111MODULE=on

# module DIR IMPORT…: enters a throwaway module that imports these packages, because `go install` refuses
# modules with replace lines, which most of these have.
module() {
  mkdir -p "$CACHE/go-modules/$1"
  cd "$CACHE/go-modules/$1"
  [ -f go.mod ] || go mod init "local/$1"
  shift
  { printf '//go:build tools\npackage tools\nimport (\n' && printf '_ "%s"\n' "$@" && echo ')'; } >tools.go
}

# compile NAME PACKAGE [LDFLAGS]
compile() {
  local out
  out=$(path_of "$1")
  mkdir -p "$(dirname "$out")"
  echo "building $1"
  go build -trimpath -ldflags "-s -w ${3:-}" -o "$out.tmp" "$2"
  mv "$out.tmp" "$out"
}

# from_module NAME MODULE VERSION PACKAGE
from_module() {
  module "$1-$3" "$4"
  go get "$2@v$3"
  compile "$1" "$4"
}

from_kubernetes() {
  module "kubernetes-$KUBERNETES_VERSION" "${kubernetes[@]/#/k8s.io/kubernetes/cmd/}"
  if ! grep -q 'k8s.io/kubernetes ' go.mod; then
    local staged
    # Kubernetes finds its own libraries beside its sources; here they are the published modules.
    for staged in $(go mod edit -json "$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES_VERSION" | jq -r .GoMod)" |
      jq -r '.Replace[] | select(.New.Path | startswith("./staging/")) | .Old.Path'); do
      go mod edit -replace "$staged=$staged@v0.${KUBERNETES_VERSION#1.}"
    done
    go mod edit -require "k8s.io/kubernetes@v$KUBERNETES_VERSION"
  fi
  local minor=${KUBERNETES_VERSION#1.}
  compile "$1" "k8s.io/kubernetes/cmd/$1" "-X k8s.io/component-base/version.gitVersion=v$KUBERNETES_VERSION
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%.*}"
}

# What every container of a pod shares its namespaces with: it only has to exist.
from_c() {
  echo "building pause"
  echo 'int pause(void); int main(void) { for (;;) pause(); }' | cc -x c -O2 -static -s -o "$KUBERNETES_DIR/bin/pause.tmp" -
  mv "$KUBERNETES_DIR/bin/pause.tmp" "$KUBERNETES_DIR/bin/pause"
}

mkdir -p "$KUBERNETES_DIR/bin"
for name in "$@"; do
  [ ! -x "$(path_of "$name")" ] || continue
  case $name in
    kind) from_module kind sigs.k8s.io/kind "$KIND_VERSION" sigs.k8s.io/kind ;;
    etcd) from_module etcd go.etcd.io/etcd/server/v3 "$ETCD_VERSION" go.etcd.io/etcd/server/v3 ;;
    coredns) from_module coredns github.com/coredns/coredns "$COREDNS_VERSION" github.com/coredns/coredns ;;
    local-path-provisioner) from_module "$name" github.com/rancher/local-path-provisioner "$PROVISIONER_VERSION" github.com/rancher/local-path-provisioner ;;
    pause) from_c ;;
    *) from_kubernetes "$name" ;;
  esac
done
