#!/bin/sh
# Builds containerd 2, its shim and ctr, runc and the CNI plugins from the Go
# modules that test/containerd2 pins, into the folder given or
# $NODEAGENT_BUILD_DIR/containerd2. Does nothing when they are up to date.
# About 8 minutes of one core, cold.
set -eu

cd "$(dirname "$0")/.."
out=${1:-${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/containerd2}
mkdir -p "$out"
sum=$(cat test/containerd2/go.mod test/containerd2/go.sum hack/build-containerd2.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/.sum" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
echo "build-containerd2: building into $out"
build() { # name, package, flags…
	name=$1 pkg=$2
	shift 2
	GOFLAGS=-buildvcs=false nice go build -C test/containerd2 -mod=mod -trimpath -ldflags '-s -w' "$@" -o "$out/$name.new" "$pkg"
	mv -f "$out/$name.new" "$out/$name"
}
c=github.com/containerd/containerd/v2/cmd
p=github.com/containernetworking/plugins/plugins
export CGO_ENABLED=0
build containerd $c/containerd -tags no_btrfs
build containerd-shim-runc-v2 $c/containerd-shim-runc-v2
build ctr $c/ctr
build bridge $p/main/bridge
build loopback $p/main/loopback
build host-local $p/ipam/host-local
build portmap $p/meta/portmap
build firewall $p/meta/firewall
# runc needs cgo: its nsenter part is C.
export CGO_ENABLED=1
build runc github.com/opencontainers/runc -tags seccomp
echo "$sum" >"$out/.sum"
