#!/bin/sh
# Packs bin/nodeagent as dist/nodeagent_VERSION_ARCH.deb.
set -eu

cd "$(dirname "$0")/.."
hack/build-tools.sh nfpm
VERSION=$(hack/deb/version "$1" "$(git rev-list --count HEAD 2>/dev/null || echo 0)")
ARCH=$(go env GOARCH)
ROOT=$PWD
export VERSION ARCH ROOT
mkdir -p dist
rm -f dist/nodeagent_*_"$ARCH".deb # dist/*.deb is one package
# nfpm expands variables in some fields only, so all are filled in here.
conf=$(mktemp)
trap 'rm -f "$conf"' EXIT
sed -e "s|\${VERSION}|$VERSION|; s|\${ARCH}|$ARCH|; s|\${ROOT}|$ROOT|" hack/nfpm.yaml >"$conf"
"${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/tools/nfpm" package --config "$conf" --packager deb --target dist/
