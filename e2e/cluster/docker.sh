# shellcheck shell=bash
# Sourced: which Docker daemon the cluster lives in. A daemon the user has is used as it is and never stopped;
# where none answers, one of our own runs on a socket and a data folder of its own.

own_docker=unix://$STATE/docker.sock

# Points DOCKER_HOST at the daemon in use; fails when none answers.
find_docker() {
  if [ -S "$STATE/docker.sock" ] && DOCKER_HOST=$own_docker docker info >/dev/null 2>&1; then
    export DOCKER_HOST=$own_docker
  else
    docker info >/dev/null 2>&1
  fi
}

docker_is_ours() { [ "${DOCKER_HOST:-}" = "$own_docker" ]; }
