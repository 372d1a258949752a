#!/bin/sh
# Builds the named tools, pinned by hack/tools/go.mod, into
# $NODEAGENT_BUILD_DIR/tools. Does nothing for those that are up to date.
set -eu

cd "$(dirname "$0")/.."
out=${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/tools
mkdir -p "$out"
sum=$(cat hack/tools/go.mod hack/tools/go.sum | sha256sum | cut -d' ' -f1)-$(go env GOVERSION)
for t in "$@"; do
	[ -x "$out/$t" ] && [ "$(cat "$out/.$t.sum" 2>/dev/null)" = "$sum" ] && continue
	case $t in
	staticcheck) pkg=honnef.co/go/tools/cmd/staticcheck ;;
	govulncheck) pkg=golang.org/x/vuln/cmd/govulncheck ;;
	nfpm) pkg=github.com/goreleaser/nfpm/v2/cmd/nfpm ;;
	*) echo "build-tools: unknown tool $t" >&2; exit 2 ;;
	esac
	echo "build-tools: building $t"
	CGO_ENABLED=0 go build -C hack/tools -trimpath -o "$out/$t" "$pkg"
	echo "$sum" >"$out/.$t.sum"
done
