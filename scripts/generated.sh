#!/bin/bash
# Fails when files that are generated from the sources are not what the sources give now.
. "$(dirname "$0")/env.sh"
cd "$ROOT"
fresh=$(mktemp -d)
trap 'rm -r "$fresh"' EXIT
cargo run --quiet --locked -p millrace-operator -- crds --output-dir "$fresh"
diff --recursive --unified crds/generated "$fresh" || die "crds/generated is stale: run make crds"
