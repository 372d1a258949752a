#!/bin/sh
# Installs what nodeagent needs from Debian's own archive, and says what.
#
#   hack/install-deps.sh run     what a node needs: containerd, runc, CNI plugins, iptables, nftables
#   hack/install-deps.sh test    that, and what the tests need
#
# A program that is there already, from whatever package, is left alone:
# installing Debian's containerd over Docker's would remove Docker.
set -eu

profile=${1:-run}

# program or file : package
run_deps='
containerd:containerd
runc:runc
/usr/lib/cni/bridge|/opt/cni/bin/bridge:containernetworking-plugins
iptables:iptables
nft:nftables
ip:iproute2
nsenter:util-linux
mount:mount
busybox-static:busybox-static
nginx:nginx-light
curl:curl
'
test_deps='
conntrack:conntrack
ipset:ipset
gcc:gcc
aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
qemu-aarch64-static:qemu-user-static
/usr/include/stdlib.h:libc6-dev
/usr/include/seccomp.h:libseccomp-dev
pkg-config:pkg-config
etcd:etcd-server
mmdebstrap:mmdebstrap
qemu-system-x86_64:qemu-system-x86
qemu-img:qemu-utils
lz4:lz4
mkfs.ext4:e2fsprogs
socat:socat
systemd-analyze:systemd
dbus-daemon:dbus-daemon
kill:procps
'
case $profile in
run) deps=$run_deps ;;
test) deps=$run_deps$test_deps ;;
*) echo "install-deps: unknown profile $profile: use run or test" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin

have() {
	old_ifs=$IFS; IFS='|'
	for alt in $1; do
		IFS=$old_ifs
		case $alt in
		busybox-static) busybox_is_static && return 0 ;;
		/*) [ -e "$alt" ] && return 0 ;;
		*) command -v "$alt" >/dev/null 2>&1 && return 0 ;;
		esac
	done
	IFS=$old_ifs
	return 1
}

# The plain busybox package is dynamic and useless as an image.
busybox_is_static() {
	[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1
}

missing=
for d in $deps; do
	have "${d%:*}" || missing="$missing ${d##*:}"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "install-deps: missing:$missing; this is not a Debian machine: install them and run again" >&2
	exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "install-deps: missing:$missing; run as root: apt-get install$missing" >&2
		exit 1
	fi
	as_root=sudo
fi

echo "install-deps: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_install() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
		install -y --no-install-recommends $missing >"$log" 2>&1
}
# The lists may be absent or stale: try with them, refresh them, try again.
if ! apt_install; then
	$as_root apt-get -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1 || true
	if ! apt_install; then
		tail -n 20 "$log" >&2
		echo "install-deps: apt-get could not install$missing: look above; with no network, install them from a mirror and run again" >&2
		exit 1
	fi
fi

# Debian starts what it installs. A web server and an etcd are wanted here as
# programs, not as services of the host.
if [ -d /run/systemd/system ]; then
	for p in $missing; do
		case $p in
		nginx-light) unit=nginx ;;
		etcd-server) unit=etcd ;;
		*) continue ;;
		esac
		echo "install-deps: turning the host's new $unit service off"
		$as_root systemctl disable --now "$unit" >/dev/null 2>&1 || true
	done
fi

for d in $deps; do
	have "${d%:*}" || { echo "install-deps: ${d##*:} is installed, but ${d%:*} is still not found" >&2; exit 1; }
done
