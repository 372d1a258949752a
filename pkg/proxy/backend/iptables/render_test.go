package iptables

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	programs "github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

var update = flag.Bool("update", false, "write the golden files")

// table is a table of the kernel that refuses what the kernel refuses.
type model map[string][]string

// run runs one transaction as iptables-restore does.
func (m model) run(text []byte) error {
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		command, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch {
		case strings.HasPrefix(line, ":"):
			m[strings.TrimPrefix(command, ":")] = nil
		case command == "-A":
			if _, ok := m[name]; !ok {
				return fmt.Errorf("%s: no such chain", line)
			}
			if to := rule[strings.LastIndex(rule, "-j ")+3:]; strings.HasPrefix(to, Prefix) {
				if _, ok := m[to]; !ok {
					return fmt.Errorf("%s: leads nowhere", line)
				}
			}
			m[name] = append(m[name], rule)
		case command == "-X":
			for from, rules := range m {
				if slices.ContainsFunc(rules, func(r string) bool { return strings.HasSuffix(r, "-j "+name) }) {
					return fmt.Errorf("%s: %s leads there", line, from)
				}
			}
			delete(m, name)
		}
	}
	return nil
}

// load is a fresh start.
func load(t testing.TB, f family, r ruleset.Ruleset) model {
	t.Helper()
	m := model{}
	for _, table := range tables(f, r) {
		if table.name != "nat" {
			continue
		}
		if err := m.run(table.replacement(programs.Table{})); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// The rules as people read them; what they do is tried with packets.
func TestRules(t *testing.T) {
	for _, f := range []family{ipv4, ipv6} {
		var got bytes.Buffer
		for _, table := range tables(f, example()) {
			got.Write(table.replacement(programs.Table{}))
		}
		name := "testdata/" + f.String() + ".rules"
		if *update {
			if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s has other rules (write them with -update):\n%s", f, got.String())
		}
	}
}

func addrs(all ...string) (out []netip.AddrPort) {
	for _, a := range all {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// example has a frontend of each kind.
func example() ruleset.Ruleset {
	ip := netip.MustParseAddr
	key := func(a string, port uint16) ruleset.Key {
		return ruleset.Key{Addr: ip(a), Proto: ruleset.TCP, Port: port}
	}
	return ruleset.Ruleset{
		Node: ruleset.Node{
			LocalPods:         ruleset.LocalPods{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}},
			NodePortAddresses: []netip.Addr{ip("0.0.0.0"), ip("::")},
			LoopbackNodePorts: true,
			ServiceCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		},
		Frontends: []*ruleset.Frontend{
			{Key: key("0.0.0.0", 30080), Service: "a/b:c", Endpoints: addrs("10.244.1.10:8080"), Masquerade: ruleset.MasqueradeAll},
			{Key: key("10.96.0.10", 80), Service: "a/b:c", Endpoints: addrs("10.244.1.10:8080", "10.244.2.10:8080"), Masquerade: ruleset.MasqueradeRemote},
			{Key: key("10.96.0.11", 80), Service: "a/none:c", Empty: ruleset.Reject},
			{Key: key("10.96.0.12", 80), Service: "a/sticky:c", Endpoints: addrs("10.244.1.10:8080", "10.244.2.10:8080"), Affinity: 60},
			{
				Key: key("203.0.113.5", 80), Service: "a/local:c", Endpoints: addrs("10.244.1.10:8080"), Inside: addrs("10.244.1.10:8080", "10.244.2.10:8080"),
				SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			},
			{Key: key("203.0.113.6", 80), Service: "a/away:c", Empty: ruleset.Drop},
			{Key: key("::", 30080), Service: "a/b:c", Endpoints: addrs("[fd00:1::10]:8080")},
			{Key: key("fd00:96::10", 80), Service: "a/b:c", Endpoints: addrs("[fd00:1::10]:8080", "[fd00:2::10]:8080"), Masquerade: ruleset.MasqueradeRemote},
		},
		ClusterIPs: []netip.Addr{ip("10.96.0.10"), ip("10.96.0.11"), ip("10.96.0.12"), ip("fd00:96::10")},
	}
}

// Any change leads to what a fresh start makes, by transactions that the kernel
// takes; no packet meets many rules.
func TestDifferences(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		f := []family{ipv4, ipv6}[seed%2]
		old := randomRuleset(r, f, 400)
		kernel := load(t, f, old)
		for range 30 {
			now := changed(r, f, old)
			s := difference(f, old, now, ruleset.Diff(old, now))
			if text := s.text("nat"); text != nil {
				if err := kernel.run(text); err != nil {
					t.Fatalf("seed %d: %v\n%s", seed, err, text)
				}
			}
			fresh := load(t, f, now)
			if !maps.EqualFunc(kernel, fresh, slices.Equal[[]string]) {
				t.Fatalf("seed %d: the changed tree is not that of a fresh start:\n%v\n%v", seed, kernel, fresh)
			}
			// The tree of addresses, up to three chains of the frontend and the tree
			// of its endpoints. The kernel takes 16 below each other.
			if depth := kernel.depth(addresses); depth > level(2*len(now.Frontends))+1+3+level(500)+1 || depth > 14 {
				t.Fatalf("seed %d: %d chains below each other for %d frontends", seed, depth, len(now.Frontends))
			}
			old = now
		}
	}
}

// depth is how many chains a packet may meet one below the other in the tree.
func (m model) depth(name string) int {
	most := 0
	for _, rule := range m[name] {
		to := rule[strings.LastIndex(rule, " ")+1:]
		if _, ok := m[to]; ok && to != refuse && to != reject && to != drop {
			most = max(most, m.depth(to))
		}
	}
	return most + 1
}

// One Service more among many touches the chain that holds it, and seldom
// another.
func TestOneMoreTouchesALeaf(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	old := randomRuleset(r, ipv4, 5000)
	sum := 0
	for range 100 {
		now := old
		f := randomFrontend(r, ipv4)
		now.Frontends = sortedFrontends(append(slices.Clone(old.Frontends), f))
		s := difference(ipv4, old, now, ruleset.Diff(old, now))
		sum += bytes.Count(s.text("nat"), []byte("\n"))
		old = now
	}
	if sum > 100*80 {
		t.Errorf("a change has %d lines in the mean", sum/100)
	}
}

func sortedFrontends(in []*ruleset.Frontend) []*ruleset.Frontend {
	slices.SortStableFunc(in, func(a, b *ruleset.Frontend) int { return a.Key.Compare(b.Key) })
	return slices.CompactFunc(in, func(a, b *ruleset.Frontend) bool { return a.Key == b.Key })
}

func randomAddr(r *rand.Rand, f family) netip.Addr {
	n := r.Uint32N(1 << 12)
	if r.IntN(4) == 0 {
		n = r.Uint32() // somebody's external address
	}
	if !f.v6 {
		return netip.AddrFrom4([4]byte{byte(n>>24) | 10, byte(n >> 16), byte(n >> 8), byte(n)})
	}
	a := netip.MustParseAddr("fd00:96::").As16()
	a[12], a[13], a[14], a[15] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	if r.IntN(8) == 0 {
		a[2+r.IntN(8)] ^= byte(n)
	}
	return netip.AddrFrom16(a)
}

func randomFrontend(r *rand.Rand, f family) *ruleset.Frontend {
	out := &ruleset.Frontend{Service: fmt.Sprint("s", r.IntN(1000)), Masquerade: ruleset.Masquerade(r.IntN(3)), Empty: ruleset.Reject}
	out.Key = ruleset.Key{Addr: randomAddr(r, f), Proto: protos[r.IntN(3)], Port: uint16(1 + r.IntN(65535))}
	if r.IntN(5) == 0 {
		out.Key.Addr = ruleset.AnyAddr(out.Key.Addr)
	}
	if r.IntN(10) == 0 { // one address with very many ports
		out.Key.Addr = netip.MustParseAddr(map[bool]string{false: "10.0.0.1", true: "fd00:96::1"}[f.v6])
	}
	n := r.IntN(4)
	if r.IntN(50) == 0 {
		n = r.IntN(500)
	}
	for range n {
		out.Endpoints = append(out.Endpoints, netip.AddrPortFrom(randomAddr(r, f), 8080))
	}
	slices.SortFunc(out.Endpoints, netip.AddrPort.Compare)
	out.Endpoints = slices.Compact(out.Endpoints)
	if r.IntN(10) == 0 {
		out.Affinity = 60
	}
	if r.IntN(10) == 0 {
		out.Inside = out.Endpoints
	}
	return out
}

func randomRuleset(r *rand.Rand, f family, n int) ruleset.Ruleset {
	var out ruleset.Ruleset
	for range n {
		one := randomFrontend(r, f)
		out.Frontends = append(out.Frontends, one)
		if !one.Key.NodePort() {
			out.ClusterIPs = append(out.ClusterIPs, one.Key.Addr)
		}
	}
	out.Frontends = sortedFrontends(out.Frontends)
	slices.SortFunc(out.ClusterIPs, netip.Addr.Compare)
	out.ClusterIPs = slices.Compact(out.ClusterIPs)
	return out
}

// changed removes, adds and changes a few, sometimes many.
func changed(r *rand.Rand, f family, old ruleset.Ruleset) ruleset.Ruleset {
	few := 1 + r.IntN(3)
	if r.IntN(5) == 0 {
		few = 300
	}
	more := randomRuleset(r, f, r.IntN(few+1))
	now := ruleset.Ruleset{Node: old.Node}
	now.Frontends = slices.DeleteFunc(slices.Clone(old.Frontends), func(*ruleset.Frontend) bool { return r.IntN(len(old.Frontends)+1) < few })
	for i := range now.Frontends {
		if r.IntN(len(now.Frontends)) == 0 {
			other := *now.Frontends[i] // the old ruleset keeps its own
			other.Endpoints = randomFrontend(r, f).Endpoints
			now.Frontends[i] = &other
		}
	}
	now.Frontends = sortedFrontends(append(now.Frontends, more.Frontends...))
	now.ClusterIPs = slices.DeleteFunc(slices.Clone(old.ClusterIPs), func(netip.Addr) bool { return r.IntN(len(old.ClusterIPs)+1) < few })
	now.ClusterIPs = append(now.ClusterIPs, more.ClusterIPs...)
	slices.SortFunc(now.ClusterIPs, netip.Addr.Compare)
	now.ClusterIPs = slices.Compact(now.ClusterIPs)
	return now
}

// Jumps are put first, once, and left alone where they are so.
func TestJumps(t *testing.T) {
	nat := tables(ipv4, ruleset.Ruleset{})[2]
	good := programs.Table{First: map[string]string{}}
	for _, j := range nat.jumps {
		good.First[j.from], good.Jumps = j.String(), append(good.Jumps, j.String())
	}
	if got := nat.jumpChanges(good); len(got) > 0 {
		t.Errorf("all in place: %q", got)
	}
	moved := programs.Table{First: map[string]string{"PREROUTING": "-A PREROUTING -j OTHERS"}, Jumps: []string{
		"-A PREROUTING -j " + services, "-A PREROUTING -j " + services, "-A OTHERS -j " + drop,
	}}
	want := []string{
		"-D PREROUTING -j " + services, "-D PREROUTING -j " + services, "-D OTHERS -j " + drop,
		"-I PREROUTING 1 -j " + services, "-I OUTPUT 1 -j " + services, "-I POSTROUTING 1 -j " + postrouting,
	}
	if got := nat.jumpChanges(moved); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkRender10000(b *testing.B) {
	var r ruleset.Ruleset
	for i := range 10_001 {
		ip := func(a, b byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, byte(i >> 8), byte(i)}) }
		r.Frontends = append(r.Frontends, &ruleset.Frontend{
			Key: ruleset.Key{Addr: ip(10, 96), Proto: ruleset.TCP, Port: 80}, Masquerade: ruleset.MasqueradeRemote,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(ip(10, 1), 8080), netip.AddrPortFrom(ip(10, 2), 8080)},
		})
		r.ClusterIPs = append(r.ClusterIPs, ip(10, 96))
	}
	less := r
	less.Frontends, less.ClusterIPs = r.Frontends[:10_000], r.ClusterIPs[:10_000]
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, table := range tables(ipv4, r) {
				table.replacement(programs.Table{})
			}
		}
	})
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s := difference(ipv4, less, r, ruleset.Diff(less, r))
			s.text("nat")
		}
	})
}
