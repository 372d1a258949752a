package conntrack_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/pkg/proxy/conntrack"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// flow is one from a client to dst that src answers.
func flow(proto ruleset.Proto, dst, src string) *netlink.ConntrackFlow {
	to, from := ap(dst), ap(src)
	return &netlink.ConntrackFlow{
		Forward: netlink.IPTuple{Protocol: uint8(proto), DstIP: net.IP(to.Addr().AsSlice()), DstPort: to.Port()},
		Reverse: netlink.IPTuple{Protocol: uint8(proto), SrcIP: net.IP(from.Addr().AsSlice()), SrcPort: from.Port()},
	}
}

// fake removes what matches.
type fake struct {
	flow    *netlink.ConntrackFlow
	removed bool
}

func (f *fake) ConntrackDeleteFilters(_ netlink.ConntrackTableType, _ netlink.InetFamily, filters ...netlink.CustomConntrackFilter) (uint, error) {
	f.removed = f.removed || filters[0].MatchConntrackFlow(f.flow)
	return 0, nil
}

func TestClean(t *testing.T) {
	s := conntrack.Serving{
		Frontends: map[netip.AddrPort][]netip.AddrPort{
			ap("10.96.0.1:53"):    {ap("10.0.0.1:5353"), ap("10.0.0.2:5353")},
			ap("10.96.0.2:53"):    nil,
			ap("0.0.0.0:30053"):   {ap("10.0.0.1:5353")},
			ap("[fd00:96::1]:53"): {ap("[fd00::1]:5353")},
		},
		NodeAddrs: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true},
	}
	old := conntrack.Serving{Frontends: map[netip.AddrPort][]netip.AddrPort{ap("10.96.0.9:53"): {ap("10.0.0.1:5353")}}}
	for _, c := range []struct {
		name    string
		flow    *netlink.ConntrackFlow
		removed bool
	}{
		{"to an endpoint that serves", flow(ruleset.UDP, "10.96.0.1:53", "10.0.0.2:5353"), false},
		{"to an endpoint that is gone", flow(ruleset.UDP, "10.96.0.1:53", "10.0.0.3:5353"), true},
		{"to another port of one that serves", flow(ruleset.UDP, "10.96.0.1:53", "10.0.0.1:53"), true},
		{"from before any endpoint", flow(ruleset.UDP, "10.96.0.1:53", "10.96.0.1:53"), true},
		{"of a Service without endpoints", flow(ruleset.UDP, "10.96.0.2:53", "10.0.0.1:5353"), true},
		{"TCP ends by itself", flow(ruleset.TCP, "10.96.0.1:53", "10.0.0.3:5353"), false},
		{"of a Service that is gone", flow(ruleset.UDP, "10.96.0.9:53", "10.0.0.1:5353"), true},
		{"of no Service", flow(ruleset.UDP, "10.96.0.1:54", "10.0.0.3:5353"), false},
		{"to a node port's endpoint", flow(ruleset.UDP, "192.0.2.1:30053", "10.0.0.1:5353"), false},
		{"to a node port's former endpoint", flow(ruleset.UDP, "192.0.2.1:30053", "10.0.0.2:5353"), true},
		{"to the node port's number elsewhere", flow(ruleset.UDP, "192.0.2.9:30053", "192.0.2.9:30053"), false},
		{"IPv6 to one that serves", flow(ruleset.UDP, "[fd00:96::1]:53", "[fd00::1]:5353"), false},
		{"IPv6 to one that is gone", flow(ruleset.UDP, "[fd00:96::1]:53", "[fd00::2]:5353"), true},
	} {
		f := &fake{flow: c.flow}
		if _, err := conntrack.Clean(f, old, s); err != nil {
			t.Fatal(err)
		}
		if f.removed != c.removed {
			t.Errorf("%s: removed = %t", c.name, f.removed)
		}
	}
}
