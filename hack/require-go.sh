#!/bin/sh
# Ends with a clear message unless a Go that can build this module is in PATH.
# Go 1.21 and newer fetch the toolchain that go.mod names by themselves;
# Debian 12's own Go 1.19 cannot.
set -eu

want=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")

fail() {
	cat >&2 <<EOF
nodeagent needs Go $want (or Go 1.21 or newer with GOTOOLCHAIN=auto, which then fetches it).
$1
Install it with one of:
  apt-get install -t bookworm-backports golang-go    # Debian 12 with backports enabled
  https://go.dev/dl/                                  # then put /usr/local/go/bin into PATH
EOF
	exit 1
}

try_backports() {
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
	apt-cache policy 2>/dev/null | grep -q 'n=bookworm-backports' || return 1
	echo "require-go: installing golang-go from bookworm-backports"
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -t bookworm-backports golang-go >/dev/null 2>&1
}

if ! command -v go >/dev/null 2>&1; then
	for d in /usr/local/go/bin /usr/lib/go/bin; do
		[ -x "$d/go" ] && fail "go is in $d, which is not in PATH."
	done
	try_backports && command -v go >/dev/null 2>&1 || fail "No go is in PATH."
fi
# `go version` fetches the toolchain already; a Go too old to do so fails here
# or on the "go X.Y.Z" line of go.mod.
cd "$(dirname "$0")/.."
version=$(go env GOVERSION 2>&1) || fail "go says: $version"
case $version in
go1.[0-9] | go1.[0-9].* | go1.1[0-9]* | go1.20*) try_backports || fail "go in PATH is $version." ;;
esac
