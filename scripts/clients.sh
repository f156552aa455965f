#!/bin/bash
# Installs the Kafka clients that the protocol tests run against the broker: kcat comes by deps.sh, Python's
# three and Apache Kafka's own go into the cache. `clients.sh env` prints where they are, as shell variables.
. "$(dirname "$0")/env.sh"
here=$ROOT/scripts/clients

mapfile -t requirements < <(grep -v '^#' "$here/requirements.txt")
version=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' "$here/pom.xml")
libs=$CACHE/kafka-$version-$(key <"$here/pom.xml")/libs

if [ "${1:-}" = env ]; then
  echo "MILLRACE_CLIENTS_PYTHON=$("$ROOT/scripts/python.sh" path clients "${requirements[@]}")"
  echo "MILLRACE_KAFKA_LIBS=$libs"
  exit
fi

one_at_a_time clients
step "Python clients (${requirements[*]})" "$ROOT/scripts/python.sh" clients "${requirements[@]}"
if [ ! -d "$libs" ]; then
  copy() { mvn --batch-mode -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs.tmp" -DincludeScope=runtime; }
  step "Apache Kafka $version's clients and tools" copy
  mv "$libs.tmp" "$libs"
fi
