package node

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// The Kubernetes whose API this one agrees with.
const (
	Major = "1"
	Minor = "37"
)

// Version is an agent's version in the form of Kubernetes', which clients parse.
func Version(agent string) string {
	return "v" + Major + "." + Minor + ".0+nodeagent-" + strings.TrimPrefix(agent, "v")
}

// System is what the host says of itself, below the folder root; what it does not
// say is left empty.
func System(root, agentVersion string) v1.NodeSystemInfo {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	info := v1.NodeSystemInfo{
		MachineID: read("etc/machine-id"), SystemUUID: read("sys/class/dmi/id/product_uuid"), BootID: read("proc/sys/kernel/random/boot_id"),
		KubeletVersion: Version(agentVersion), OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	for line := range strings.Lines(read("etc/os-release")) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); found {
			info.OSImage = strings.Trim(name, `"'`)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		info.KernelVersion = unix.ByteSliceToString(u.Release[:])
	}
	return info
}
