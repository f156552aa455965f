#!/bin/bash
# kind-files.sh DIR: makes a Debian root what kind expects of a node: its entrypoint, units and containerd
# settings come from kind's Go module, the Kubernetes binaries from ours.
. "$(dirname "$0")/../../../scripts/env.sh"
. "$ROOT/e2e/cluster/node/kind-source.sh"
rootfs=$1 files=$(kind_source)/images/base/files here=$ROOT/e2e/cluster/node

install -m 755 "$files/usr/local/bin/entrypoint" "$rootfs/usr/local/bin/"
install -d "$rootfs"/kind/{bin,manifests} "$rootfs/etc/kubernetes/manifests" "$rootfs/opt/cni/bin" "$rootfs/etc/containerd"
install -m 755 "$files"/kind/bin/* "$here/pod-network.sh" "$rootfs/kind/bin/"
(cd "$files/etc" && find . -type f -exec install -D -m 644 {} "$rootfs/etc/{}" \;)
# kind's unit looks for them there, Debian has them elsewhere.
ln -sf /usr/bin/containerd /usr/bin/ctr "$rootfs/usr/local/bin/"
for plugin in host-local loopback ptp portmap; do mv "$rootfs/usr/lib/cni/$plugin" "$rootfs/opt/cni/bin/"; done
rm -rf "$rootfs/usr/lib/cni"

# In a container most of systemd's start-up has nothing to do, or does harm.
units=$rootfs/lib/systemd/system
rm -f "$units"/sysinit.target.wants/systemd-tmpfiles-setup.service "$units"/{multi-user,local-fs,basic}.target.wants/* \
  "$rootfs"/etc/systemd/system/*.wants/* "$units"/sockets.target.wants/*{udev,initctl}*
echo ReadKMsg=no >>"$rootfs/etc/systemd/journald.conf"
chroot "$rootfs" systemctl --quiet enable kubelet containerd undo-mount-hacks
chroot "$rootfs" systemctl --quiet mask systemd-binfmt
rm -f "$rootfs"/etc/{machine-id,resolv.conf,hostname} "$rootfs/var/lib/dbus/machine-id"

install -m 755 "$KUBERNETES_DIR"/bin/{kubeadm,kubelet,kubectl} "$rootfs/usr/bin/"
echo -n "v$KUBERNETES_VERSION" >"$rootfs/kind/version"
chroot "$rootfs" ctr oci spec |
  jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' >"$rootfs/etc/containerd/cri-base.json"

# Image names are what kubeadm and kind will ask for, so that neither needs a patch.
pause=$(kubeadm config images list --kubernetes-version "v$KUBERNETES_VERSION" | grep /pause:)
# Without CAP_SYS_RESOURCE a score cannot be lowered; kind sets the second line only in a user namespace.
sed -i "s#sandbox_image = .*#sandbox_image = \"$pause\"#
  s/restrict_oom_score_adj = false/restrict_oom_score_adj = true/" "$rootfs/etc/containerd/config.toml"
sed "s#HELPER_IMAGE#$(kind_constant storageHelperImage)#" "$here/pod-network.yaml" >"$rootfs/kind/manifests/default-cni.yaml"
kind_manifest defaultStorageManifest storageProvisionerImage storageHelperImage >"$rootfs/kind/manifests/default-storage.yaml"
