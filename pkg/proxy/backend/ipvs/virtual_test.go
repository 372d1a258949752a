package ipvs

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// fakeTable keeps state and refuses what the kernel refuses.
type fakeTable struct {
	services map[key]map[netip.AddrPort]int
	spec     map[key]service
	conns    map[netip.AddrPort]int
	hidden   key // from the text
	asked    int
}

func newFake() *fakeTable {
	return &fakeTable{services: map[key]map[netip.AddrPort]int{}, spec: map[key]service{}, conns: map[netip.AddrPort]int{}}
}

func (f *fakeTable) do(s step) error {
	k := s.of.key
	dests, there := f.services[k]
	_, known := dests[s.dest.addr]
	switch {
	case s.what == putService && s.exists != there:
		return fmt.Errorf("%s: the service is there: %t", s, there)
	case s.what != putService && !there:
		return fmt.Errorf("%s: no such service", s)
	case s.what == putDest && s.exists != known, s.what == deleteDest && !known:
		return fmt.Errorf("%s: the server is there: %t", s, known)
	}
	switch s.what {
	case putService:
		if !there {
			f.services[k] = map[netip.AddrPort]int{}
		}
		spec := s.of
		spec.dests, spec.seen = nil, 0
		f.spec[k] = spec
	case deleteService:
		delete(f.services, k)
		delete(f.spec, k)
	case putDest:
		dests[s.dest.addr] = s.dest.weight
	case deleteDest:
		delete(dests, s.dest.addr)
	}
	return nil
}

// now is what the fake holds, as a state.
func (f *fakeTable) now() state {
	out := state{}
	for k, s := range f.spec {
		for a, weight := range f.services[k] {
			s.dests = append(s.dests, destination{addr: a, weight: weight, conns: f.conns[a]})
		}
		slices.SortFunc(s.dests, func(a, b destination) int { return a.addr.Compare(b.addr) })
		out[k] = &s
	}
	return out
}

// serving leaves out what is on its way out.
func serving(s state) map[key]service {
	out := map[key]service{}
	for k, v := range s {
		one := *v
		one.dests = slices.DeleteFunc(slices.Clone(one.dests), func(d destination) bool { return d.weight == 0 })
		if len(one.dests) > 0 {
			out[k] = one
		}
	}
	return out
}

// chooses says that a new connection finds a server.
func chooses(s *service) bool {
	return s != nil && slices.ContainsFunc(s.dests, func(d destination) bool { return d.weight > 0 })
}

// Random changes: the kernel accepts each message, we remember what it holds,
// and it serves what a fresh start would.
func TestChanges(t *testing.T) {
	for _, scheduler := range []string{"rr", "dh", "mh"} {
		r := rand.New(rand.NewPCG(1, 2))
		b, fake := New(Options{Scheduler: scheduler}), newFake()
		b.have, b.marks = state{}, newMarks()
		var old ruleset.Ruleset
		for i := range 500 {
			now := services.RandomRuleset(t, r)
			targets, _, err := b.plan(false, old, now, ruleset.Diff(old, now), moves{})
			if err != nil {
				t.Fatal(err)
			}
			for _, target := range targets {
				steps := target.steps(b.have[target.key], nil)
				before := chooses(b.have[target.key])
				var during []bool
				for _, s := range steps {
					if err := fake.do(s); err != nil {
						t.Fatalf("change %d: %v", i, err)
					}
					b.have.apply(s)
					during = append(during, chooses(b.have[target.key]))
				}
				if before && chooses(b.have[target.key]) && slices.Contains(during, false) {
					t.Fatalf("change %d: nobody can be chosen in the middle of %v", i, steps)
				}
			}
			old = now
			if i%50 != 0 {
				continue
			}
			if got := fake.now(); !reflect.DeepEqual(serving(got), serving(b.have)) || len(got) != len(b.have) {
				t.Fatalf("change %d: the kernel holds\n%v\nwe remember\n%v", i, got, b.have)
			}
			fresh := newFake()
			other := New(Options{Scheduler: scheduler})
			other.marks = newMarks()
			targets, _, err = other.plan(true, ruleset.Ruleset{}, now, ruleset.Diff(ruleset.Ruleset{}, now), moves{})
			if err != nil {
				t.Fatal(err)
			}
			for _, target := range targets {
				for _, s := range target.steps(nil, nil) {
					if err := fresh.do(s); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got, want := serving(fake.now()), serving(fresh.now()); !reflect.DeepEqual(got, want) {
				t.Fatalf("change %d (%s): it serves\n%v\na fresh start\n%v", i, scheduler, got, want)
			}
		}
	}
}

// What happens to servers that go, by protocol, scheduler and address.
func TestGone(t *testing.T) {
	at := netip.MustParseAddrPort("10.1.0.1:80")
	of := func(k key, scheduler string, to ...netip.AddrPort) *service {
		s := newService(k, scheduler, 0, to)
		return &s
	}
	tcp := key{addr: netip.MustParseAddr("10.96.0.1"), proto: ruleset.TCP, port: 80}
	udp := tcp
	udp.proto = ruleset.UDP
	outside := tcp
	outside.addr = netip.MustParseAddr("203.0.113.1")
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	for name, c := range map[string]struct {
		have, want *service
		steps      string
	}{
		"the last server":         {of(tcp, "rr", at), of(tcp, "rr"), "[change server 10.1.0.1:80 of 10.96.0.1:80/tcp]"},
		"over UDP":                {of(udp, "rr", at), of(udp, "rr"), "[change server 10.1.0.1:80 of 10.96.0.1:80/udp]"},
		"with dh":                 {of(tcp, "dh", at), of(tcp, "dh"), "[delete server 10.1.0.1:80 of 10.96.0.1:80/tcp]"},
		"the Service":             {of(tcp, "rr", at), nil, "[change server 10.1.0.1:80 of 10.96.0.1:80/tcp]"},
		"the Service over UDP":    {of(udp, "rr", at), nil, "[change server 10.1.0.1:80 of 10.96.0.1:80/udp]"},
		"an external address":     {of(outside, "rr", at), nil, "[delete virtual service 203.0.113.1:80/tcp (scheduler rr)]"},
		"a mark":                  {of(key{mark: markOurs | 5}, "rr", at), nil, "[change server 10.1.0.1:80 of mark 0x4e000005]"},
		"with the scheduler":      {of(tcp, "rr", at), of(tcp, "lc"), "[change virtual service 10.96.0.1:80/tcp (scheduler lc) delete server 10.1.0.1:80 of 10.96.0.1:80/tcp]"},
		"nothing where there was": {nil, nil, "[]"},
	} {
		k := tcp
		for _, s := range []*service{c.have, c.want} {
			if s != nil {
				k = s.key
			}
		}
		if got := fmt.Sprint(target{k, c.want}.steps(c.have, cidrs)); got != c.steps {
			t.Errorf("%s: %s, want %s", name, got, c.steps)
		}
	}
}

// A frontend has the same mark after a restart, and no two have one.
func TestMarks(t *testing.T) {
	all, again := newMarks(), newMarks()
	seen := map[mark]marked{}
	for port := range uint16(20000) {
		for _, proto := range []ruleset.Proto{ruleset.TCP, ruleset.UDP, ruleset.SCTP} {
			for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
				of := marked{ruleset.Key{Addr: any, Proto: proto, Port: port}, port%2 == 0}
				m, err := all.get(of)
				if err != nil {
					t.Fatal(err)
				}
				if other, taken := seen[m]; taken {
					t.Fatalf("%v and %v have mark %#x", of, other, m)
				}
				seen[m] = of
				if !m.ours() || m.is4() != any.Is4() || m.protocol() != proto {
					t.Fatalf("%v has mark %#x", of, m)
				}
				if port < 3 {
					if second, err := again.get(of); err != nil || second != m {
						t.Errorf("%v has mark %#x, after a restart %#x", of, m, second)
					}
				}
			}
		}
	}
	of := seen[slices.Max(slices.Collect(func(yield func(mark) bool) {
		for m := range seen {
			if !yield(m) {
				return
			}
		}
	}))]
	before := all.of[of]
	all.release(of)
	if again, err := all.get(of); err != nil || again != before {
		t.Errorf("released and asked for again: %#x, before %#x", again, before)
	}
}

// Only what Services brought is routed; the range covers its own.
func TestPlaces(t *testing.T) {
	a := netip.MustParseAddr
	of := func(ips ...string) (r ruleset.Ruleset) {
		r.ClusterIPs = []netip.Addr{a("10.96.0.1"), a("10.97.0.1")}
		for _, ip := range ips {
			at, port, _ := strings.Cut(ip, "/")
			r.Frontends = append(r.Frontends, &ruleset.Frontend{Key: ruleset.Key{Addr: a(at), Port: uint16(len(port))}})
		}
		return r
	}
	b := New(Options{})
	b.routes = map[netip.Prefix]bool{netip.MustParsePrefix("10.9.0.0/16"): true, netip.MustParsePrefix("192.0.2.1/32"): true}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	var old ruleset.Ruleset
	for i, step := range []struct {
		own  string
		now  ruleset.Ruleset
		ways sources
		want string
	}{
		{"192.0.2.1", of("0.0.0.0", "10.96.0.1", "192.0.2.1", "203.0.113.1", "203.0.113.1/2", "2001:db8::1"), sources{},
			"real [] virtual [10.96.0.1 10.97.0.1 203.0.113.1 2001:db8::1] add [10.96.0.0/16 10.97.0.1/32 192.0.2.1/32 203.0.113.1/32 2001:db8::1/128] remove [10.9.0.0/16]"},
		{"192.0.2.1", of("0.0.0.0", "10.96.0.1", "10.96.0.2", "203.0.113.1"), sources{},
			"real [2001:db8::1] virtual [10.96.0.2] add [] remove [192.0.2.1/32 2001:db8::1/128]"},
		{"203.0.113.1", of("0.0.0.0", "10.96.0.1", "192.0.2.1", "203.0.113.1"), sources{},
			"real [10.96.0.2 203.0.113.1] virtual [192.0.2.1] add [192.0.2.1/32] remove []"},
		{"192.0.2.9", of("0.0.0.0", "10.96.0.1", "192.0.2.1"), sources{a("192.0.2.9")},
			"real [] virtual [] add [10.96.0.0/16 10.97.0.1/32 192.0.2.1/32] remove [203.0.113.1/32]"},
	} {
		m := b.places.change(old, step.now, ruleset.Diff(old, step.now), []netip.Addr{a(step.own)})
		add, remove := b.routing(i == 0, ranges, m, step.ways)
		if got := fmt.Sprintf("real %v virtual %v add %v remove %v", m.real, m.virtual, add, remove); got != step.want {
			t.Errorf("step %d:\n%s, want\n%s", i, got, step.want)
		}
		for _, p := range add {
			b.routes[p] = true
		}
		for _, p := range remove {
			delete(b.routes, p)
		}
		b.sources, old = step.ways, step.now
	}
	if len(b.places.needed) != 3 {
		t.Errorf("needed are %v", b.places.needed)
	}
}

// nft takes every rule, whatever the node is like.
func TestRules(t *testing.T) {
	testbed.Require(t, "nft", "unshare")
	prefixes := func(all ...string) (out []netip.Prefix) {
		for _, p := range all {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for name, node := range map[string]ruleset.Node{
		"bare": {},
		"by prefix": {
			LocalPods:         ruleset.LocalPods{Prefixes: prefixes("10.244.1.0/24", "fd00:1::/64")},
			ServiceCIDRs:      prefixes("10.96.0.0/16", "fd00:96::/112"),
			Served:            []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")},
			NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		},
		"by interface": {LocalPods: ruleset.LocalPods{Interface: "cn*"}, NodePortAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	} {
		b := New(Options{Nft: []string{"unshare", "--net", "nft"}})
		b.marks = newMarks()
		r := rand.New(rand.NewPCG(1, 2))
		for range 10 {
			now := services.RandomRuleset(t, r)
			now.Node = node
			_, elements, err := b.plan(true, ruleset.Ruleset{}, now, ruleset.Diff(ruleset.Ruleset{}, now), moves{virtual: now.ClusterIPs})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.program(context.Background(), true, node, elements); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if _, err := New(Options{Nft: []string{"/no/such/nft"}}).opts.Nft.Run(context.Background(), nil); err == nil {
		t.Error("no nft is no error")
	}
}

// What we change ourselves is not taken for others' doing.
func TestOwnChangesAreNotForeign(t *testing.T) {
	testbed.Require(t, "nft", "nsenter")
	if err := Supported(context.Background()); err != nil {
		t.Skip(err)
	}
	w := services.New(t)
	b := New(Options{Nft: w.Command("nft"), In: func(f func() error) error { return w.In(services.Node, f) }})
	defer b.Close()
	watch, err := b.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer watch.route.Close()
	found := make(chan string, 100)
	b.opts.Log = slog.New(warnings(found))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- watch.nft.Run(ctx, nfmonitor.Watcher{
			Touches: func(p nfmonitor.Part) bool { return p.Table == Table },
			Changed: func(map[nfmonitor.Part]bool, string) { found <- "nftables" },
			Lost:    func() { found <- "lost" },
		})
	}()
	r := rand.New(rand.NewPCG(5, 6))
	var old ruleset.Ruleset
	for i := range 10 {
		now := services.RandomRuleset(t, r)
		if i%4 == 3 {
			b.Forget()
		}
		if err := b.Apply(context.Background(), old, now); err != nil {
			t.Fatal(err)
		}
		old = now
		if foreign, err := watch.once(); err != nil || foreign != "" {
			t.Fatalf("change %d: %q, %v", i, foreign, err)
		}
	}
	cancel()
	if err := <-ended; err != nil || len(found) > 0 {
		t.Errorf("%d changes by others, %v", len(found), err)
	}
}

// warnings hands over the log's.
type warnings chan<- string

func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w warnings) WithGroup(string) slog.Handler                { return w }
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	w <- text
	return nil
}

// The tables hold the same after changes without nft as when nft loads them.
func TestElementsWithoutProgram(t *testing.T) {
	testbed.Require(t, "nft", "nsenter")
	w := services.New(t)
	list := func() string {
		out, err := nft.Command(w.Command("nft")).Run(t.Context(), nil, "-s", "list", "ruleset")
		if err != nil {
			t.Fatal(err)
		}
		// One element on each line, in whatever order.
		lines := strings.FieldsFunc(strings.ReplaceAll(string(out), "elements = {", "\n"), func(r rune) bool { return r == '\n' || r == ',' || r == '}' })
		for i := range lines {
			lines[i] = strings.TrimSpace(lines[i])
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	load := func(b *Backend, full bool, old, now ruleset.Ruleset) {
		t.Helper()
		changes := ruleset.Diff(old, now)
		_, elements, err := b.plan(full, old, now, changes, b.places.change(old, now, changes, nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.program(t.Context(), full, ruleset.Node{}, elements); err != nil {
			t.Fatal(err)
		}
	}
	backend := func() *Backend {
		b := New(Options{Nft: w.Command("nft"), In: func(f func() error) error { return w.In(services.Node, f) }})
		b.marks = newMarks()
		return b
	}
	r := rand.New(rand.NewPCG(7, 8))
	old := services.RandomRuleset(t, r)
	b := backend()
	load(b, true, ruleset.Ruleset{}, old)
	for i := range 10 {
		now := services.RandomRuleset(t, r)
		load(b, false, old, now)
		got := list()
		load(backend(), true, ruleset.Ruleset{}, now)
		if want := list(); got != want {
			t.Fatalf("change %d:\n%s\nnft loads\n%s", i, got, want)
		}
		old = now
	}
}
