#!/bin/bash
# parts.sh NAME:TARGET...: makes targets one after another as parts, up to the first that fails.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
for part in "$@"; do
  scripts/part.sh "${part%%:*}" make "${part#*:}"
done
