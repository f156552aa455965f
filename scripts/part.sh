#!/bin/bash
# part.sh NAME COMMAND…: runs one part of the tests and prints when it began and how long it took.
name=$1 started=$SECONDS
shift
echo "== $name: start $(date +%T)"
"$@"
status=$?
if ((status)); then result="FAILED (exit code $status)"; else result="done"; fi
echo "== $name: $result in $((SECONDS - started)) s"
exit "$status"
