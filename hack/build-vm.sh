#!/bin/sh
# Makes the guest of internal/testbed/vm from Debian's packages alone, and
# prints the folder that holds it:
#
#   vmlinux     Debian's cloud kernel, uncompressed, which qemu starts directly
#   root.img    an ext4 file system to lay an overlay on
#
# It is kept below $NODEAGENT_BUILD_DIR/vm, one folder for each version of this
# script; what was not used for two weeks goes. About 2 minutes of one core
# when there is none yet. Runs at the same time wait for each other.
set -eu

packages=apparmor,bridge-utils,ca-certificates,conntrack,containerd,containernetworking-plugins,crun,curl,dbus
packages=$packages,iproute2,ipset,iptables,ipvsadm,kmod,nfs-common,nfs-kernel-server,nftables,procps,runc,systemd-sysv,udev,util-linux
kernel=linux-image-cloud-amd64

cache=${NODEAGENT_BUILD_DIR:-/var/tmp/nodeagent-build}/vm
self=$(readlink -f "$0")
out=$cache/$(sha256sum <"$self" | cut -c1-16)
PATH=$PATH:/usr/sbin:/sbin

# A mount namespace of its own: whatever of mmdebstrap's mounts a kill leaves
# behind is gone before anybody removes the folder below it.
if [ "${1:-}" != inside ]; then
	[ "$(id -u)" = 0 ] || { echo "build-vm: needs root: it makes a root file system" >&2; exit 1; }
	mkdir -p "$cache"
	exec 9>"$cache/.lock"
	flock 9
	if [ ! -d "$out" ]; then
		rm -rf "$cache"/new.*
		echo "build-vm: making a Debian guest in $out" >&2
		unshare --mount --propagation private -- /bin/sh "$self" inside >&2
	fi
	touch "$out"
	find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +14 -exec rm -rf {} +
	echo "$out"
	exit
fi

new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM
root=$new/root

# The kernel's package is unpacked instead of installed: it would bring and run
# what makes an initial RAM disk, and the guest needs none.
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook='chroot "$1" sh -c "cd /root && apt-get -qq -o APT::Sandbox::User=root download \$(apt-cache depends '$kernel' | sed -n s/.*Depends:.//p)"' \
	bookworm "$root"
dpkg-deb -x "$root"/root/linux-image-*.deb "$new/kernel"
rm -rf "$root"/root/*.deb "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*
version=$(ls "$new/kernel/lib/modules")
mkdir -p "$root/lib/modules"
mv "$new/kernel/lib/modules/$version" "$root/lib/modules/"
chroot "$root" depmod "$version"

# What is inside vmlinuz is an LZ4 frame; qemu boots the ELF file in it (PVH).
# (lz4 complains about the bytes after the frame.)
vmlinuz=$new/kernel/boot/vmlinuz-$version
at=$(LC_ALL=C grep -abo "$(printf '\002\041\114\030')" "$vmlinuz" | head -n 1 | cut -d: -f1)
tail -c "+$((at + 1))" "$vmlinuz" | lz4 -dc >"$new/vmlinux" 2>/dev/null || true
if [ "$(head -c 4 "$new/vmlinux" | tail -c 3)" != ELF ]; then
	echo "build-vm: no LZ4 frame with an ELF file in $version: look how Debian packs that kernel" >&2
	exit 1
fi

unit() { # name; the text comes from stdin
	cat >"$root/etc/systemd/system/$1"
}
on() { # target, unit…
	wants=$root/etc/systemd/system/$1.wants
	shift
	mkdir -p "$wants"
	for u; do ln -sf "/etc/systemd/system/$u" "$wants/$u"; done
}

# A machine that was booted before: no presets, no generated keys.
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
echo vm >"$root/etc/hostname"
printf '127.0.0.1 localhost vm\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/fstab"
printf 'br_netfilter\noverlay\n' >"$root/etc/modules-load.d/vm.conf"
# A power cut must find the journal on the disk, and the disk is a file of the host.
mkdir -p "$root/var/log/journal" "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n' >"$root/etc/systemd/journald.conf.d/vm.conf"

# What costs seconds of an emulated boot and serves nobody here.
for u in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer getty@.service serial-getty@.service getty.target ldconfig.service systemd-hwdb-update.service \
	systemd-journal-catalog-update.service systemd-update-done.service systemd-networkd-wait-online.service \
	systemd-pstore.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-update-utmp.service \
	systemd-update-utmp-runlevel.service ipvsadm.service ipset.service nfs-server.service nfs-client.target rpcbind.service \
	rpcbind.socket nfs-blkmap.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$u"
done

# qemu's user-mode network.
unit vm-network.service <<'END'
[Unit]
DefaultDependencies=no
Requires=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
Before=network.target network-online.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip link set lo up
ExecStart=/sbin/ip link set eth0 up
ExecStart=/sbin/ip addr add 10.0.2.15/24 dev eth0
ExecStart=/sbin/ip route add default via 10.0.2.2
END

# The host's way in: each connection is a shell that reads commands from it.
unit vm-shell.socket <<'END'
[Socket]
ListenStream=7000
Accept=yes
MaxConnections=1000
TriggerLimitIntervalSec=0
END
unit vm-shell@.service <<'END'
[Unit]
CollectMode=inactive-or-failed
[Service]
ExecStart=/bin/bash
WorkingDirectory=/root
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
StandardInput=socket
StandardOutput=socket
StandardError=socket
Delegate=yes
KillMode=process
LimitNOFILE=1048576
TasksMax=infinity
END
unit vm-ready.service <<'END'
[Unit]
Requires=vm-shell.socket vm-network.service containerd.service dbus.socket
After=vm-shell.socket vm-network.service containerd.service dbus.socket
[Service]
Type=oneshot
# Three times: the kernel may write to the console in the middle of a line.
ExecStart=/bin/sh -c 'read id </proc/sys/kernel/random/boot_id; for i in 1 2 3; do echo "vm-ready $id"; done >/dev/ttyS0'
END
on multi-user.target vm-network.service vm-ready.service
on sockets.target vm-shell.socket

# The sandbox image is testbed.PauseImage.
mkdir -p "$root/etc/containerd"
cat >"$root/etc/containerd/config.toml" <<'END'
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
  BinaryName = "crun"
  SystemdCgroup = true
END

mkdir "$new/out"
truncate -s 6G "$new/out/root.img"
mkfs.ext4 -q -F -L root -m 0 -O ^metadata_csum -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$new/out/root.img"
mv "$new/vmlinux" "$new/out/"
chroot "$root" dpkg-query -W >"$new/out/packages"
mv "$new/out" "$out"
