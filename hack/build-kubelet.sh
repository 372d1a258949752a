#!/bin/sh
# Builds the kubelet that `make bench` compares with, from the module that
# test/kubernetes pins, into $NODEAGENT_BUILD_DIR/kubernetes. Does nothing when
# it is up to date. About 10 minutes on two cores, cold.
set -eu

cd "$(dirname "$0")/.."
out=${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/kubernetes
mkdir -p "$out"
version=$(go list -C test/kubernetes -m -f '{{.Version}}' k8s.io/kubernetes)
if [ -x "$out/kubelet" ] && [ "$(cat "$out/.version" 2>/dev/null)" = "$version" ]; then
	exit 0
fi
echo "build-kubelet: building kubelet $version into $out"
# Kubernetes' own build stamps its version; the kubelet reads the number from it.
ld="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(echo "$version" | cut -d. -f2)"
CGO_ENABLED=0 GOFLAGS=-buildvcs=false nice go build -C test/kubernetes -trimpath -ldflags "$ld" -o "$out/kubelet.new" k8s.io/kubernetes/cmd/kubelet
mv -f "$out/kubelet.new" "$out/kubelet"
echo "$version" >"$out/.version"
