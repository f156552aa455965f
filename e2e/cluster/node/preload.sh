#!/bin/bash
# preload.sh DIR: makes the images Kubernetes and kind run (API server, DNS, volumes, …) out of our binaries
# and puts them into the containerd store of a node root, so that a node pulls nothing.
. "$(dirname "$0")/../../../scripts/env.sh"
. "$ROOT/e2e/cluster/node/kind-source.sh"
rootfs=$1 here=$ROOT/e2e/cluster/node
work=$(mktemp -d "$CACHE/preload.XXXXXX")
containerd_pid=
trap '[ -z "$containerd_pid" ] || kill "$containerd_pid"; rm -rf "$work"' EXIT

names=$(kubeadm config images list --kubernetes-version "v$KUBERNETES_VERSION")
name_of() { grep "/$1:" <<<"$names"; }
archive() { # DIR NAME ENTRYPOINT
  python3 "$ROOT/scripts/images/archive.py" --name "$2" --entrypoint "$3" "$work/$1" "$work/$1.tar"
}
binary() { "$ROOT/e2e/cluster/binaries.sh" path "$1"; }
libraries() {
  local file
  for file in "$@"; do chroot "$rootfs" ldd "$file" | grep -o '/[^ ]*'; done | sort -u
}

# kube-proxy drives iptables, in the flavour its node uses. The libraries of the extensions count too: without
# libm the statistic match fails, and then no rule is written once a Service has two endpoints.
iptables_into() {
  local root=$1 family suffix file
  install -D "$rootfs/bin/busybox" "$root/bin/busybox"
  ln -s busybox "$root/bin/sh"
  mkdir "$root/tmp"
  local programs=(/usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /usr/sbin/conntrack /usr/sbin/nft)
  local extensions
  mapfile -t extensions < <(cd "$rootfs" && printf '/%s\n' usr/lib/*-linux-gnu/xtables/*.so)
  for file in "${programs[@]}" "${extensions[@]}" $(libraries "${programs[@]}" "${extensions[@]}"); do
    install -D -m 755 "$rootfs$file" "$root$file"
  done
  install -m 755 "$here/iptables-flavour" "$root/usr/sbin/"
  for family in ip ip6; do
    for suffix in '' -save -restore; do ln -s iptables-flavour "$root/usr/sbin/${family}tables$suffix"; done
  done
}

for component in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd; do
  install -D "$(binary $component)" "$work/$component/usr/local/bin/$component"
  if [ $component = kube-proxy ]; then iptables_into "$work/$component"; fi
  archive $component "$(name_of $component)" /usr/local/bin/$component
done
install -D "$(binary coredns)" "$work/coredns/coredns"
archive coredns "$(name_of coredns)" /coredns
install -D "$(binary pause)" "$work/pause/pause"
archive pause "$(name_of pause)" /pause
install -D "$(binary local-path-provisioner)" "$work/provisioner/usr/local/bin/local-path-provisioner"
archive provisioner "$(kind_constant storageProvisionerImage)" local-path-provisioner
install -D "$rootfs/bin/busybox" "$work/helper/bin/busybox"
mkdir "$work/helper/tmp"
for applet in $(chroot "$rootfs" /bin/busybox --list); do
  [ "$applet" = busybox ] || ln -s busybox "$work/helper/bin/$applet"
done
archive helper "$(kind_constant storageHelperImage)" /bin/sh

# A containerd that runs here, with its store inside of the node's root.
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$work/containerd.toml"
containerd --config "$work/containerd.toml" --root "$rootfs/var/lib/containerd" --state "$work/state" \
  --address "$work/containerd.sock" >"$LOGS/preload-containerd.log" 2>&1 &
containerd_pid=$!
for _ in $(seq 50); do
  ctr --address "$work/containerd.sock" version >/dev/null 2>&1 && break
  sleep 0.2
done
for image in "$work"/*.tar; do
  ctr --address "$work/containerd.sock" --namespace k8s.io images import --no-unpack --digests "$image"
done
kill "$containerd_pid"
wait "$containerd_pid" || true
containerd_pid=
