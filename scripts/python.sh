#!/bin/bash
# python.sh NAME REQUIREMENTS…: prints the path of a Python that has these packages, in a cached environment.
# `python.sh path NAME REQUIREMENTS…` only prints the path.
. "$(dirname "$0")/env.sh"
only_path=
if [ "$1" = path ]; then
  only_path=1
  shift
fi
name=$1
environment=$CACHE/python-$name-$(echo "$@" | key)
if [ -z "$only_path" ] && [ ! -e "$environment/complete" ]; then
  one_at_a_time "python-$name"
fi
if [ -z "$only_path" ] && [ ! -e "$environment/complete" ]; then
  shift
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  touch "$environment/complete"
fi
echo "$environment/bin/python"
