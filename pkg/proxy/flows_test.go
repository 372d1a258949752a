package proxy_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// The kernel's flows are looked at once, and then when UDP Services change.
func TestFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Synced("local")
		const families = 2
		for _, step := range []struct {
			do    func()
			looks int
		}{
			{func() {}, 0},
			{func() { w.p.Upsert(service("tcp", "10.96.0.1", corev1.ProtocolTCP)) }, 0},
			{func() { w.p.Upsert(service("udp", "10.96.0.2", corev1.ProtocolUDP)) }, families},
			{func() { w.p.Upsert(slice("tcp", "10.244.0.1")) }, 0},
			{func() { w.p.Delete(service("tcp", "", corev1.ProtocolTCP)) }, 0},
			{func() { w.p.Delete(service("udp", "", corev1.ProtocolUDP)) }, families},
		} {
			w.settle(time.Second)
			before := w.looks()
			step.do()
			w.settle(time.Second)
			if n := w.looks() - before; n != step.looks {
				t.Errorf("%d looks, want %d", n, step.looks)
			}
		}
	})
}

// A flow to a node port's number is one of the Service only at an address that
// serves node ports.
func TestFlowsOfNodePorts(t *testing.T) {
	for _, c := range []struct {
		at    []string // nodePortAddresses
		stale string
	}{
		{nil, "192.0.2.1 198.51.100.1"},
		{[]string{"192.0.2.0/24"}, "192.0.2.1"},
		{[]string{"0.0.0.0/0", "127.0.0.0/8"}, "192.0.2.1 198.51.100.1 127.0.0.1"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.addrs = append(w.addrs, netip.MustParseAddr("198.51.100.1"))
			for _, p := range c.at {
				w.o.Node.NodePortAddresses = append(w.o.Node.NodePortAddresses, netip.MustParsePrefix(p))
			}
			w.start()
			defer w.stop()
			s := service("udp", "10.96.0.2", corev1.ProtocolUDP)
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30000
			w.p.Upsert(s)
			w.p.Synced("local")
			w.settle(time.Second)
			for _, dst := range []string{"192.0.2.1", "198.51.100.1", "127.0.0.1", "203.0.113.1"} {
				ip := net.ParseIP(dst)
				flow := &netlink.ConntrackFlow{
					Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, DstIP: ip, DstPort: 30000},
					Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: ip, SrcPort: 30000},
				}
				if want := slices.Contains(strings.Fields(c.stale), dst); w.stale.MatchConntrackFlow(flow) != want {
					t.Errorf("node ports at %v: a flow to %s is removed: %t", c.at, dst, !want)
				}
			}
		})
	}
}
