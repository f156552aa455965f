# shellcheck shell=bash
# Sourced: reads constants out of kind's Go source, so that no image name is written down twice.

kind_source() {
  GOFLAGS=-mod=mod go mod download -json "sigs.k8s.io/kind@v$KIND_VERSION" | jq -r .Dir
}

# kind_constant NAME: the value of a one-line string constant
kind_constant() {
  sed -n "s/^const $1 = \"\(.*\)\"/\1/p" "$(kind_source)"/pkg/{build/nodeimage/const_storage,apis/config/defaults/image}.go
}

# kind_manifest CONST [NAME…]: a manifest held in a raw string, with these constants filled in
kind_manifest() {
  local text name
  text=$(sed -n "/^const $1 = \`/,/^\`/p" "$(kind_source)/pkg/build/nodeimage/const_storage.go" | sed '1s/.*`//; $d')
  shift
  for name in "$@"; do text=${text//"\` + $name + \`"/$(kind_constant "$name")}; done
  echo "$text"
}
