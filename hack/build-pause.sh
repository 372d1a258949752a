#!/bin/sh
# Builds the pause programs that pkg/images/pause embeds. The same compiler
# (Debian 12's) gives the same bytes; the package's tests compare.
#
#   hack/build-pause.sh [FOLDER] [amd64|arm64]...
#
# Needs gcc, and gcc-aarch64-linux-gnu for arm64 (the other way round there).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/pkg/images/pause/bin}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- amd64 arm64

compiler() {
	case $1 in
	amd64) want=x86_64-linux-gnu ;;
	arm64) want=aarch64-linux-gnu ;;
	*) echo "build-pause: no architecture $1; use amd64 or arm64" >&2; exit 2 ;;
	esac
	if command -v "$want-gcc" >/dev/null 2>&1; then
		echo "$want-gcc"
	elif [ "$(gcc -dumpmachine 2>/dev/null)" = "$want" ]; then
		echo gcc
	else
		echo "build-pause: no compiler for $1; apt-get install gcc-$(echo "$want" | tr _ -)" >&2
		exit 3
	fi
}

mkdir -p "$out"
for arch in "$@"; do
	cc=$(compiler "$arch")
	flags=
	[ "$arch" = amd64 ] && flags="-fcf-protection=none -mno-sse"
	# No build id, no compiler's name, no path: nothing that differs from one
	# build to the next. max-page-size 64K is for arm64 kernels with such pages.
	# shellcheck disable=SC2086
	"$cc" -std=c11 -Wall -Wextra -Werror -Os $flags \
		-ffreestanding -nostdlib -static -fno-pie -no-pie -fno-ident \
		-fno-stack-protector -fno-asynchronous-unwind-tables \
		-Wl,--build-id=none,-z,noexecstack,-z,noseparate-code,-z,norelro,-z,max-page-size=65536,-s \
		-o "$out/pause-linux-$arch" "$here/pkg/images/pause/src/pause.c"
done
