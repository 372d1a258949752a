package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// bridgeSysctls is what the module br_netfilter brings.
const bridgeSysctls = "net/bridge/"

// forward turns on what packets to Services need between the interfaces of this
// node. That something cannot be turned on is said and no more: who has
// switched it off may know why.
func (p *Proxy) forward(ctx context.Context) {
	names := []string{"net/ipv4/ip_forward", bridgeSysctls + "bridge-nf-call-iptables"}
	if slices.Contains(Families(p.o.Node.IPs), corev1.IPv6Protocol) {
		names = append(names, "net/ipv6/conf/all/forwarding", bridgeSysctls+"bridge-nf-call-ip6tables")
	}
	for _, name := range names {
		err := p.o.Sysctl(name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, bridgeSysctls) {
			// A kernel may have it built in or not have it: then this fails, and says nothing new.
			_ = exec.CommandContext(ctx, "modprobe", "br_netfilter").Run()
			err = p.o.Sysctl(name)
		}
		if err == nil {
			continue
		}
		why := "packets are not forwarded to endpoints"
		if strings.HasPrefix(name, bridgeSysctls) {
			why = "a pod does not reach a Service whose endpoint is on its own bridge; load the module br_netfilter"
		}
		message := fmt.Sprintf("%s is not on: %s: %v", strings.ReplaceAll(name, "/", "."), why, err)
		p.o.Log.Warn(message)
		p.nodeEvent(corev1.EventTypeWarning, "ServicesNotForwarded", message)
	}
}

// sysctl writes only where there is a 0: /proc/sys is read-only in many containers.
func sysctl(path string) error {
	path = "/proc/sys/" + path
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSpace(old), []byte("0")) {
		return nil
	}
	return os.WriteFile(path, []byte("1\n"), 0o644)
}
