package pod

import (
	"strings"
	"testing"
)

func TestSysctls(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.tcp_syncookies": SysctlNet, "net/ipv4/conf/eth0.100/x": SysctlNet, "network.x": "", "net": "",
		"kernel.msgmax": SysctlIPC, "kernel/shmall": SysctlIPC, "kernel.shm": SysctlIPC, "kernel.shmx": "", "fs.mqueue.msg_max": SysctlIPC, "fs.file-max": "",
		"kernel.domainname": SysctlUTS, "user.max_user_namespaces": SysctlUser, "vm.swappiness": "", "": "",
	} {
		if got := SysctlNamespace(name); got != want {
			t.Errorf("%s is of namespace %q, want %q", name, got, want)
		}
	}
	if got := NormalSysctl("net/ipv4/conf/eth0.100/x"); got != "net.ipv4.conf.eth0/100.x" {
		t.Error(got)
	}
	for name, want := range map[string]bool{"a": true, "a.b/c-d_e": true, "": false, "A": false, "a..b": false, ".a": false, "a.": false, "a-": false,
		"a b": false, "a\n": false, "../x": false, strings.Repeat("a", 253): true, strings.Repeat("a", 254): false} {
		if IsSysctl(name) != want {
			t.Errorf("%q is a sysctl: %v", name, !want)
		}
	}
	for _, s := range SafeSysctls() {
		if ns := SysctlNamespace(s); ns != SysctlNet && ns != SysctlIPC || !IsSysctl(s) {
			t.Errorf("%s is no pod's own", s)
		}
	}
}
