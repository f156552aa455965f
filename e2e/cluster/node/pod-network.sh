#!/bin/bash
# The pod network of a node, run inside of it by the DaemonSet in pod-network.yaml: a CNI configuration for the
# node's own pod range, a route to the range of every other node, and masquerading of what leaves the cluster.
# No NetworkPolicy: those are tested as objects, not by traffic.
set -euo pipefail
credentials=/run/pod-network

fields='{.metadata.name} {.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}'
nodes() {
  kubectl --kubeconfig /dev/null --server "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT" \
    --certificate-authority $credentials/ca.crt --token "$(cat $credentials/token)" \
    get nodes --output jsonpath="{range .items[*]}$fields{'\n'}{end}"
}

masquerade=(POSTROUTING -s "$POD_SUBNET" ! -d "$POD_SUBNET" -j MASQUERADE)
iptables -w -t nat -C "${masquerade[@]}" 2>/dev/null || iptables -w -t nat -A "${masquerade[@]}"

nodes | while read -r name range address; do
  [ -n "$address" ] || continue # a node without a pod range yet has only two fields
  if [ "$name" != "$NODE_NAME" ]; then
    ip route replace "$range" via "$address"
    continue
  fi
  configuration=/etc/cni/net.d/10-pod-network.conflist
  [ ! -s $configuration ] || continue
  mkdir -p /etc/cni/net.d
  cat >$configuration.tmp <<J
{"cniVersion": "0.3.1", "name": "pod-network", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": $(cat /sys/class/net/eth0/mtu), "ipam": {
    "type": "host-local", "dataDir": "/run/cni-ipam-state",
    "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$range"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
  mv $configuration.tmp $configuration
  echo "wrote $configuration for $range"
done
