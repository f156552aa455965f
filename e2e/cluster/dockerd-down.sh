#!/bin/bash
# Stops the Docker daemon that dockerd-up.sh started and removes every trace of it.
. "$(dirname "$0")/../../scripts/env.sh"
[ -e "$STATE/dockerd.pid" ] || exit 0
pid=$(cat "$STATE/dockerd.pid")

# The number may belong to another process after a restart of the machine.
if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$STATE/docker.sock"; then
  kill "$pid"
  for _ in $(seq 150); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  kill -0 "$pid" 2>/dev/null && die "dockerd (process $pid) does not stop; its log: $LOGS/dockerd.log"
fi

# Another daemon on the machine shares the chains and the bridge: then they are not ours to remove.
if ! pgrep -x dockerd >/dev/null; then
  ip link delete docker0 2>/dev/null || true
  for command in iptables ip6tables; do
    for table in filter nat raw; do
      rules=$($command -w -t $table -S 2>/dev/null) || continue
      grep -E '^-A .*(DOCKER|docker0|172\.17\.0\.0/16)' <<<"$rules" | grep -v '^-A DOCKER' | sed 's/^-A/-D/' |
        xargs -r -L 1 $command -w -t $table || true
      chains=$(sed -n 's/^-N \(DOCKER.*\)/\1/p' <<<"$rules")
      for chain in $chains; do $command -w -t $table -F "$chain"; done
      for chain in $chains; do $command -w -t $table -X "$chain"; done
    done
  done
  read -r _ _ policy <"$STATE/forward-policy" && iptables -w -P FORWARD "$policy"
  cat "$STATE/ip-forward" >/proc/sys/net/ipv4/ip_forward
  find /sys/fs/cgroup -depth -type d \( -name docker -o -path '*/docker/*' \) -exec rmdir {} + 2>/dev/null || true
fi

awk -v under="$STATE/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
rm -rf "$STATE/docker" "$STATE/docker-exec" "$STATE"/{docker.sock,dockerd.pid,ip-forward,forward-policy,runc-without-sys-resource}
