#!/bin/bash
# Everything slow that a cluster needs before it can be made: binaries, Docker, the node image.
. "$(dirname "$0")/../../scripts/env.sh"
one_at_a_time prepare
cd "$ROOT/e2e/cluster"
step "Kubernetes binaries" ./binaries.sh kind kubectl
step "Docker" ./dockerd-up.sh
step "node image" ./node-image.sh
