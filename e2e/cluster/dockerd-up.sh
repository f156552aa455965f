#!/bin/bash
# Starts a Docker daemon of our own unless one answers already.
. "$(dirname "$0")/../../scripts/env.sh"
. "$ROOT/e2e/cluster/docker.sh"
one_at_a_time dockerd
if find_docker; then exit; fi
[ "$(id -u)" = 0 ] || die "no Docker daemon answers, and only root can start one: start Docker, or run this as root"

mkdir -p "$STATE"
# One that is about to end, containers first, still holds the data folder.
for _ in $(seq 150); do
  if ! kill -0 "$(cat "$STATE/dockerd.pid" 2>/dev/null)" 2>/dev/null; then break; fi
  sleep 0.2
done

# What the daemon changes on the machine and does not restore; dockerd-down.sh does. The first start counts.
if [ ! -e "$STATE/forward-policy" ]; then
  cat /proc/sys/net/ipv4/ip_forward >"$STATE/ip-forward"
  iptables -w -S FORWARD | head -n 1 >"$STATE/forward-policy"
fi

options=()
# `docker run --privileged` asks for every capability; runc dies when the machine itself lacks one.
if ! (($((16#$(sed -n 's/^CapEff:\s*//p' /proc/self/status))) >> 24 & 1)); then
  install -m 755 "$ROOT/e2e/cluster/runc-without-sys-resource" "$STATE/" # the checkout may go before the daemon does
  options=(--add-runtime "lesscaps=$STATE/runc-without-sys-resource" --default-runtime lesscaps)
fi
start() {
  # Among the files open here are the locks of the scripts above.
  for file in /proc/self/fd/*; do
    file=${file##*/}
    ((file <= 2)) || eval "exec $file>&-"
  done
  exec setsid dockerd --host "$own_docker" --data-root "$STATE/docker" --exec-root "$STATE/docker-exec" \
    --pidfile "$STATE/dockerd.pid" "${options[@]}" </dev/null >"$LOGS/dockerd.log" 2>&1
}
start &
for _ in $(seq 150); do
  if find_docker; then exit; fi
  sleep 0.2
done
tail -n 20 "$LOGS/dockerd.log"
die "dockerd did not answer within 30 s; its log: $LOGS/dockerd.log"
