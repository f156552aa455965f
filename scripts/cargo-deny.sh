#!/bin/bash
# Runs cargo-deny, which it builds once into the cache.
. "$(dirname "$0")/env.sh"
tools=$CACHE/cargo-deny-$CARGO_DENY_VERSION
install() { env -u CARGO_TARGET_DIR cargo install --locked "cargo-deny@$CARGO_DENY_VERSION" --root "$tools"; }
if [ ! -x "$tools/bin/cargo-deny" ]; then
  one_at_a_time cargo-deny
  step "build cargo-deny" install
fi
cd "$ROOT"
exec "$tools/bin/cargo-deny" "$@"
