package ruleset_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func frontend(ip string, port uint16, to ...string) *ruleset.Frontend {
	f := &ruleset.Frontend{Key: ruleset.Key{Addr: addr(ip), Proto: ruleset.TCP, Port: port}, Service: "ns/s"}
	for _, e := range to {
		f.Endpoints = append(f.Endpoints, netip.MustParseAddrPort(e))
	}
	return f
}

func TestDiff(t *testing.T) {
	old := ruleset.Ruleset{Frontends: []*ruleset.Frontend{
		frontend("10.96.0.1", 80, "10.0.0.1:80"), frontend("10.96.0.2", 80), frontend("10.96.0.3", 80, "10.0.0.3:80"),
	}}
	now := ruleset.Ruleset{Frontends: []*ruleset.Frontend{
		frontend("10.96.0.1", 80, "10.0.0.1:80"), frontend("10.96.0.3", 80, "10.0.0.4:80"), frontend("10.96.0.4", 80),
	}}
	var got []string
	for _, c := range ruleset.Diff(old, now) {
		switch {
		case c.Old == nil:
			got = append(got, "+"+c.New.Key.String())
		case c.New == nil:
			got = append(got, "-"+c.Old.Key.String())
		default:
			got = append(got, "~"+c.New.Key.String())
		}
	}
	if want := []string{"-10.96.0.2:80/tcp", "~10.96.0.3:80/tcp", "+10.96.0.4:80/tcp"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if d := ruleset.Diff(now, now); len(d) != 0 {
		t.Errorf("a ruleset differs from itself: %v", d)
	}
}

func TestDiffAddrs(t *testing.T) {
	gone, added := ruleset.DiffAddrs(
		[]netip.Addr{addr("10.0.0.1"), addr("10.0.0.2"), addr("fd00::1")},
		[]netip.Addr{addr("10.0.0.2"), addr("10.0.0.3"), addr("fd00::1"), addr("fd00::2")})
	if !slices.Equal(gone, []netip.Addr{addr("10.0.0.1")}) || !slices.Equal(added, []netip.Addr{addr("10.0.0.3"), addr("fd00::2")}) {
		t.Errorf("gone %v, added %v", gone, added)
	}
}

func TestTrace(t *testing.T) {
	local := frontend("0.0.0.0", 30080, "10.0.0.1:80")
	local.Inside = []netip.AddrPort{netip.MustParseAddrPort("10.0.1.1:80"), netip.MustParseAddrPort("10.0.0.1:80")}
	ranged := frontend("203.0.113.5", 80, "10.0.0.1:80")
	ranged.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	ranged.Masquerade = ruleset.MasqueradeAll
	cluster := frontend("10.96.0.1", 80, "10.0.0.1:80")
	cluster.Masquerade = ruleset.MasqueradeRemote
	none := frontend("10.96.0.2", 80)
	none.Empty = ruleset.Drop
	r := ruleset.Ruleset{
		Node: ruleset.Node{
			LocalPods:         ruleset.LocalPods{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
			NodePortAddresses: []netip.Addr{netip.IPv4Unspecified()},
			ServiceCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		},
		Frontends:  []*ruleset.Frontend{local, cluster, none, ranged},
		ClusterIPs: []netip.Addr{addr("10.96.0.1"), addr("10.96.0.2")},
		Hairpin:    []netip.Addr{addr("10.0.0.1")},
	}
	for _, c := range []struct {
		name, src, dst string
		port           uint16
		fromNode       bool
		toNode         bool
		want           ruleset.Verdict
		endpoints      int
		masquerade     bool
	}{
		{"client to a cluster IP", "192.0.2.9", "10.96.0.1", 80, false, false, ruleset.Forward, 1, true},
		{"pod to a cluster IP", "10.0.0.2", "10.96.0.1", 80, false, false, ruleset.Forward, 1, false},
		{"pod to itself", "10.0.0.1", "10.96.0.1", 80, false, false, ruleset.Forward, 1, true},
		{"another port", "10.0.0.2", "10.96.0.1", 81, false, false, ruleset.Reject, 0, false},
		{"no endpoint here", "10.0.0.2", "10.96.0.2", 80, false, false, ruleset.Drop, 0, false},
		{"no such Service", "10.0.0.2", "10.96.7.7", 80, false, false, ruleset.Drop, 0, false},
		{"elsewhere", "10.0.0.2", "198.51.100.1", 80, false, false, ruleset.Pass, 0, false},
		{"in range", "192.0.2.9", "203.0.113.5", 80, false, false, ruleset.Forward, 1, true},
		{"out of range", "192.0.3.9", "203.0.113.5", 80, false, false, ruleset.Drop, 0, false},
		{"client to a Local node port", "192.0.2.9", "192.0.2.1", 30080, false, true, ruleset.Forward, 1, false},
		{"pod to a Local node port", "10.0.0.2", "192.0.2.1", 30080, false, true, ruleset.Forward, 2, false},
		{"node to a Local node port", "192.0.2.1", "192.0.2.1", 30080, true, true, ruleset.Forward, 2, true},
		{"node to loopback", "127.0.0.1", "127.0.0.1", 30080, true, true, ruleset.Pass, 0, false},
		{"a node port of another node", "192.0.2.9", "192.0.2.7", 30080, false, false, ruleset.Pass, 0, false},
	} {
		got := r.Trace(ruleset.Packet{Src: addr(c.src), Dst: addr(c.dst), Proto: ruleset.TCP, Port: c.port,
			FromNode: c.fromNode, ToNode: c.toNode})
		if got.Verdict != c.want || len(got.Endpoints) != c.endpoints {
			t.Errorf("%s: got %+v", c.name, got)
		}
		if m := got.MasqueradedTo(addr("10.0.0.1"), addr(c.src)); c.endpoints > 0 && m != c.masquerade {
			t.Errorf("%s: masqueraded = %t", c.name, m)
		}
	}
}
