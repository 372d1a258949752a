#!/bin/sh
# The checks that need no test to run: formatting, vet, staticcheck, the rules
# of the house, known vulnerabilities. Stops at the first that fails.
set -eu

cd "$(dirname "$0")/.."
tools=${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/tools

echo "verify: gofmt"
bad=$(find . -name "*.go" -not -path "./.git/*" -exec gofmt -l {} +)
if [ -n "$bad" ]; then
	echo "verify: run gofmt -w on:" >&2
	echo "$bad" >&2
	exit 1
fi

echo "verify: go vet"
go vet ./...
go vet -tags killpoints ./pkg/agent ./test/node
go vet -tags bench ./bench

echo "verify: imports and sizes"
go run ./hack/checkimports

echo "verify: docs/development.md names every target"
for t in $(sed -n 's/^\([a-z0-9-]*\):.*## .*/\1/p' Makefile); do
	[ "$t" = help ] || grep -q "\`make $t\`" docs/development.md || {
		echo "verify: make $t is not in docs/development.md" >&2
		exit 1
	}
done

hack/build-tools.sh staticcheck govulncheck
echo "verify: staticcheck"
"$tools/staticcheck" ./...

echo "verify: shell scripts parse"
for f in hack/*.sh hack/deb/[pv]* hack/run-demo hack/test-container .ci/run; do sh -n "$f"; done

echo "verify: known vulnerabilities"
# Only the database's absence is forgiven: a machine without a way to it.
if out=$("$tools/govulncheck" ./... 2>&1); then
	echo "verify: none that this code calls"
elif echo "$out" | grep -qE 'dial tcp|no such host|403 Forbidden|proxyconnect|connection refused|i/o timeout|fetching vulnerabilities'; then
	echo "verify: skipped: the database at vuln.go.dev cannot be reached from this machine"
else
	echo "$out" >&2
	exit 1
fi
echo "verify: ok"
