#!/bin/bash
# debian.sh DIR: puts a minimal Debian with systemd and containerd into an empty folder; kept as a tar once made.
. "$(dirname "$0")/../../../scripts/env.sh"
rootfs=$1

# No dbus (kind's image has none either): its machine id would make all nodes the same machine.
packages=systemd,systemd-sysv,containerd,containernetworking-plugins,conntrack,iptables,nftables,iproute2,ethtool
packages+=,util-linux,mount,kmod,libseccomp2,pigz,socat,jq,procps,ca-certificates,hostname,curl,busybox-static
suite=bookworm
tar=$CACHE/debian-$suite-$(uname -m)-$(echo "$packages" | key).tar

if [ -s "$tar" ]; then
  tar -C "$rootfs" -xf "$tar"
  exit
fi
# The mirror this machine uses itself; on another distribution debootstrap's own default.
mirror=$(awk '/^URIs:.*debian$/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null) || true
debootstrap --variant=minbase --include="$packages" "$suite" "$rootfs" ${mirror:+"$mirror"}
rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/* "$rootfs"/usr/share/{locale,doc,man}/* "$rootfs"/var/log/*.log
tar -C "$rootfs" -cf "$tar.tmp" .
mv "$tar.tmp" "$tar"
