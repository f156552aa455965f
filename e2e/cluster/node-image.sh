#!/bin/bash
# Provides the image of the cluster's nodes in Docker and prints its name last: the official one of this kind
# version where Docker can pull it, else one made here from Debian packages and Go modules.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
one_at_a_time node-image
. "$ROOT/e2e/cluster/node/kind-source.sh"
cd "$ROOT/e2e/cluster"

versions=$KIND_VERSION,$ETCD_VERSION,$COREDNS_VERSION,$PROVISIONER_VERSION
hash=$({ echo "$versions"; cat node/* node-image.sh ../../scripts/images/archive.py; } | key)
made=millrace-node:v$KUBERNETES_VERSION-$hash
tar=$KUBERNETES_DIR/node-$hash.tar

find_docker || die "no Docker daemon answers"
have() { docker image inspect "$1" >/dev/null 2>&1; }

# Named by digest in kind's own source. Not asked for again in a later run on a machine where it cannot be
# pulled: the timeout would be paid each time.
official=$(kind_constant Image)
if ! have "$official" && [ ! -s "$tar" ]; then
  echo "pulling $official"
  if ! timeout 20 docker manifest inspect "$official" >/dev/null 2>&1 || ! docker pull "$official"; then
    echo "it cannot be pulled here: the node image is made from Debian packages and Go modules"
  fi
fi
if have "$official"; then
  echo "$official"
  exit
fi

if ! [ -s "$tar" ]; then
  [ "$(id -u)" = 0 ] || die "the official node image cannot be pulled, and only root can make one (debootstrap, chroot)"
  for need in debootstrap:debootstrap containerd:containerd busybox:busybox-static; do
    command -v "${need%:*}" >/dev/null || die "to make a node image the package ${need#*:} is missing"
  done
  ./binaries.sh
  rootfs=$(mktemp -d "$CACHE/node-root.XXXXXX")
  trap 'rm -rf "$rootfs"' EXIT
  chmod 755 "$rootfs"
  echo "node image: Debian"
  node/debian.sh "$rootfs"
  echo "node image: kind's files"
  node/kind-files.sh "$rootfs"
  echo "node image: images of Kubernetes"
  node/preload.sh "$rootfs"
  echo "node image: packing"
  tar -C "$rootfs" --numeric-owner -cf "$tar.tmp" .
  rm -f "$KUBERNETES_DIR"/node-*.tar # of earlier states of these scripts
  mv "$tar.tmp" "$tar"
fi
if ! have "$made"; then
  echo "node image: import into Docker"
  docker import --change 'ENV container=docker' --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' "$tar" "$made" >/dev/null
fi
echo "$made"
