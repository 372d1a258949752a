package pod

import (
	"regexp"
	"slices"
	"strings"
)

// maxSysctl is how many bytes a sysctl's name may have.
const maxSysctl = 253

// sysctlName matches the names that Kubernetes takes, in either spelling.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

// IsSysctl says that a text can be a sysctl's name.
func IsSysctl(name string) bool { return len(name) <= maxSysctl && sysctlName.MatchString(name) }

// NormalSysctl spells a sysctl with dots; in one that begins with slashes
// (net/ipv4/conf/eth0.100/…) the dots are part of names, and swap.
func NormalSysctl(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// Namespaces that sysctls belong to.
const (
	SysctlIPC  = "IPC"
	SysctlNet  = "Net"
	SysctlUTS  = "UTS"
	SysctlUser = "User"
)

// SysctlNamespace is the namespace that a sysctl, or a pattern's part before its
// star, belongs to; empty for one that is the whole host's.
func SysctlNamespace(name string) string {
	name = NormalSysctl(name)
	switch {
	case name == "kernel.domainname":
		return SysctlUTS
	case slices.Contains([]string{"kernel.sem", "kernel.shm", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
		"kernel.msg", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni"}, name), strings.HasPrefix(name, "fs.mqueue."):
		return SysctlIPC
	case strings.HasPrefix(name, "net."):
		return SysctlNet
	case strings.HasPrefix(name, "user."):
		return SysctlUser
	}
	return ""
}

// SafeSysctls are what any pod may set: they are a namespace's own, and do no
// harm to other pods. All of them are since Linux 4.15.
func SafeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
		"net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat",
	}
}
