package kubeproxy_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/kubeproxy"
)

// leftovers are commands that make what kube-proxy makes, in small. The machine
// may have neither dummy devices nor IPVS.
const leftovers = `
iptables-nft -t mangle -N KUBE-PROXY-CANARY
iptables-nft -t mangle -N KUBE-KUBELET-CANARY
iptables-nft -t nat -N KUBE-SERVICES
iptables-nft -t nat -N KUBE-SVC-1234
iptables-nft -t nat -A KUBE-SERVICES -d 10.96.0.1 -j KUBE-SVC-1234
iptables-nft -t nat -A PREROUTING -m comment --comment service_portals -j KUBE-SERVICES
iptables-nft -t nat -A PREROUTING -d 192.0.2.77 -j ACCEPT
ip6tables-nft -t filter -N KUBE-FORWARD
ip6tables-nft -t filter -A FORWARD -j KUBE-FORWARD
iptables-legacy -t nat -N KUBE-POSTROUTING
iptables-legacy -t nat -A POSTROUTING -j KUBE-POSTROUTING
ipset create KUBE-CLUSTER-IP hash:ip,port
ipset add KUBE-CLUSTER-IP 10.96.0.1,tcp:80
ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
ipset add KUBE-NODE-PORT-TCP 30080
ipset create OTHERS hash:ip
iptables-nft -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
nft add table ip kube-proxy
nft add table ip6 kube-proxy
nft add table ip others
ip link add kube-ipvs0 type bridge
ip addr add 10.96.0.1/32 dev kube-ipvs0
`

func TestLeftovers(t *testing.T) {
	testbed.Require(t, "iptables-nft", "ip6tables-nft", "iptables-legacy", "ipset", "nft", "ip")
	w := services.New(t)
	in := func(f func() error) {
		t.Helper()
		if err := w.In(services.Node, f); err != nil {
			t.Fatal(err)
		}
	}
	run := func(line string) (text string) {
		t.Helper()
		words := strings.Fields(line)
		in(func() error {
			out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
			if err != nil {
				t.Logf("%s: %s", line, out)
			}
			text = string(out)
			return err
		})
		return text
	}
	none := func() {
		t.Helper()
		in(func() error {
			found, err := kubeproxy.Find(t.Context())
			if len(found) > 0 {
				t.Errorf("found %q where there is nothing", found)
			}
			removed, err2 := kubeproxy.Remove(t.Context())
			if err2 != nil || len(removed) > 0 {
				t.Errorf("removed %q, %v where there is nothing", removed, err2)
			}
			return err
		})
	}
	none()
	for line := range strings.Lines(strings.TrimSpace(leftovers)) {
		run(line)
	}
	var found, removed []string
	in(func() (err error) { found, err = kubeproxy.Find(t.Context()); return err })
	want := []string{
		"chain nat/KUBE-SERVICES of iptables-nft", "chain nat/KUBE-SVC-1234 of iptables-nft", "chain mangle/KUBE-PROXY-CANARY of iptables-nft",
		"chain nat/KUBE-POSTROUTING of iptables-legacy", "chain filter/KUBE-FORWARD of ip6tables-nft", "device kube-ipvs0",
		"ipset KUBE-CLUSTER-IP", "ipset KUBE-NODE-PORT-TCP", "table ip kube-proxy", "table ip6 kube-proxy",
	}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
	in(func() (err error) { removed, err = kubeproxy.Remove(t.Context()); return err })
	if len(removed) != len(want) {
		t.Errorf("removed %q, want %q", removed, want)
	}
	none()
	for command, stays := range map[string]string{
		"iptables-nft -t nat -S":    "-A PREROUTING -d 192.0.2.77/32 -j ACCEPT",
		"iptables-nft -t mangle -S": "KUBE-KUBELET-CANARY",
		"ipset list -n":             "OTHERS",
		"nft list tables":           "table ip others",
	} {
		if out := run(command); !strings.Contains(out, stays) || strings.Contains(out, "KUBE-SERVICES") {
			t.Errorf("%s: %s", command, out)
		}
	}
}
