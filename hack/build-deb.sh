#!/bin/sh
# Packs bin/nodeagent as dist/nodeagent_VERSION_ARCH.deb.
set -eu

cd "$(dirname "$0")/.."
hack/build-tools.sh nfpm
# A Debian version begins with a digit; a bare commit becomes 0~git.COMMIT, which
# sorts before every release.
v=${1#v}
case $v in [0-9]*.*) ;; *) v="0~git.$v" ;; esac
VERSION=$(echo "$v" | tr - '~')
ARCH=$(go env GOARCH)
ROOT=$PWD
export VERSION ARCH ROOT
mkdir -p dist
# nfpm expands variables in some fields only, so all are filled in here.
conf=$(mktemp)
trap 'rm -f "$conf"' EXIT
sed -e "s|\${VERSION}|$VERSION|; s|\${ARCH}|$ARCH|; s|\${ROOT}|$ROOT|" hack/nfpm.yaml >"$conf"
"${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/tools/nfpm" package --config "$conf" --packager deb --target dist/
