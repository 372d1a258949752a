#!/bin/sh
# Builds the named programs of Kubernetes that tests and benchmarks compare and
# work with, from the module that test/kubernetes pins, into
# $NODEAGENT_BUILD_DIR/kubernetes. Does nothing for those that are up to date.
#
#   hack/build-kubernetes.sh kube-apiserver kube-proxy
#   KUBERNETES_MINOR=1.36 hack/build-kubernetes.sh kube-apiserver
#
# With KUBERNETES_MINOR the newest patch release of that minor is built, from a
# module made in the cache, into a folder of that name below. About 10 minutes
# on two cores, cold; two runs at once wait for each other.
set -eu

cd "$(dirname "$0")/.."
out=${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/kubernetes
module=$PWD/test/kubernetes
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false

for name in "$@"; do
	case $name in
	kube-apiserver | kube-controller-manager | kube-scheduler | kube-proxy | kubectl | kubelet) ;;
	*) echo "build-kubernetes: unknown program $name" >&2; exit 2 ;;
	esac
done

# An older minor has other requirements and is no part of our own module graph.
# A dependency's replace directives do not count, so they are said once more.
older_module() {
	module=$out/module
	[ -f "$module/go.sum" ] && return 0
	rm -rf "$module"
	mkdir -p "$module"
	printf 'module older\n\ngo 1.24.0\n' >"$module/go.mod"
	printf 'package older\n' >"$module/older.go"
	version=$(go list -C "$module" -m -f '{{.Version}}' "k8s.io/kubernetes@v$KUBERNETES_MINOR")
	staging=v0.${version#v1.}
	source=$(go mod download -C "$module" -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"GoMod": "\(.*\)",*$/\1/p')
	{
		printf 'module older\n\n'
		grep '^go ' "$source"
		printf 'require k8s.io/kubernetes %s\nreplace (\n' "$version"
		sed -n 's|^\(replace\)*[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging/.*|\2|p' "$source" | while read -r m; do
			printf '\t%s => %s %s\n' "$m" "$m" "$staging"
		done
		printf ')\n'
	} >"$module/go.mod"
	{
		printf '//go:build tools\n\npackage older\n\nimport (\n'
		for name in kube-apiserver kube-proxy; do printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' "$name"; done
		printf ')\n'
	} >"$module/older.go"
	go mod tidy -C "$module"
}

up_to_date() {
	[ -x "$out/$1" ] && [ "$(cat "$out/.$1.version" 2>/dev/null)" = "$version" ]
}

pinned() {
	version=$(go list -C "$module" -m -f '{{.Version}}' k8s.io/kubernetes)
	stale=
	for name in "$@"; do up_to_date "$name" || stale="$stale $name"; done
}

if [ -n "${KUBERNETES_MINOR:-}" ]; then
	out=$out/v$KUBERNETES_MINOR
fi
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9
[ -z "${KUBERNETES_MINOR:-}" ] || older_module
pinned "$@"
# Kubernetes' own build stamps its version; the programs read the number from it.
minor=${version#v1.}
ld="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
for name in $stale; do
	echo "build-kubernetes: building $name $version into $out"
	nice go build -C "$module" -trimpath -ldflags "$ld" -o "$out/$name.new" "k8s.io/kubernetes/cmd/$name"
	mv -f "$out/$name.new" "$out/$name"
	echo "$version" >"$out/.$name.version"
done
