package ipvs

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

func (f *fakeTable) get(k key) (*service, error) {
	f.asked++
	return f.now()[k], nil
}

func (f *fakeTable) list(func(key) bool) ([]service, error) { return nil, nil }
func (f *fakeTable) close()                                 {}

// text writes as the kernel does; it leaves out what is hidden.
func (f *fakeTable) text(buf []byte) ([]byte, error) {
	b := []byte("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n")
	now := f.now()
	for _, k := range slices.SortedFunc(maps.Keys(now), key.compare) {
		s := now[k]
		if f.hidden == k {
			continue
		}
		line := fmt.Sprintf("FWM  %08X %s ", uint32(k.mark), s.scheduler)
		if k.mark == 0 {
			line = fmt.Sprintf("%s  %s %s ", strings.ToUpper(k.proto.String()), shown(netip.AddrPortFrom(k.addr, k.port)), s.scheduler)
		}
		if s.timeout > 0 {
			line += fmt.Sprintf("persistent %d FFFFFFFF", s.timeout)
		}
		b = fmt.Appendln(b, line)
		for _, d := range s.dests {
			b = fmt.Appendf(b, "  -> %s      %-7s %-6d %-10d %-10d\n", shown(d.addr), "Masq", d.weight, f.conns[d.addr], 0)
		}
	}
	return append(buf[:0], b...), nil
}

func shown(a netip.AddrPort) string {
	raw := a.Addr().AsSlice()
	if len(raw) == 4 {
		return fmt.Sprintf("%08X:%04X", raw, a.Port())
	}
	var words []string
	for i := 0; i < 16; i += 2 {
		words = append(words, fmt.Sprintf("%02x%02x", raw[i], raw[i+1]))
	}
	return fmt.Sprintf("[%s]:%04X", strings.Join(words, ":"), a.Port())
}

// looker is a watch of virtual services that were applied.
func looker(t *testing.T) (*Watch, *fakeTable, []key) {
	t.Helper()
	fake := newFake()
	b := New(Options{Log: slog.New(slog.DiscardHandler)})
	b.table, b.have, b.marks, b.loaded = fake, state{}, newMarks(), true
	b.routes = map[netip.Prefix]bool{netip.MustParsePrefix("10.96.0.0/16"): true}
	var keys []key
	for i := range 200 {
		keys = append(keys, key{addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), proto: ruleset.TCP, port: 80})
	}
	keys = append(keys, key{addr: netip.MustParseAddr("fd00:96::1"), proto: ruleset.UDP, port: 53}, key{mark: markOurs | markV6 | 7})
	for i, k := range keys {
		to := []netip.AddrPort{netip.MustParseAddrPort("10.1.0.2:8080"), netip.MustParseAddrPort("10.1.0.1:8080")}
		if !k.is4() {
			to = []netip.AddrPort{netip.MustParseAddrPort("[fd00:1::1]:8080")}
		}
		s := newService(k, "rr", uint32(i%2*10800), to)
		if err := b.do(difference(nil, &s, true)); err != nil {
			t.Fatal(err)
		}
	}
	return &Watch{b: b}, fake, keys
}

// unlike says what differs.
func unlike(got, want state) (out string) {
	for k := range want {
		if !reflect.DeepEqual(got[k], want[k]) {
			out += fmt.Sprintf("%+v, want %+v; ", got[k], want[k])
		}
	}
	return fmt.Sprintf("%s%d virtual services of %d", out, len(got), len(want))
}

// looked looks once, but for the routes.
func (w *Watch) looked(t *testing.T) (changed int) {
	t.Helper()
	changes := w.b.changes
	var err error
	if w.text, err = w.b.table.text(w.text); err != nil {
		t.Fatal(err)
	}
	if changed, err = w.mend(w.suspects(changes)); err != nil {
		t.Fatal(err)
	}
	return changed
}

// One look finds a single change among many, and asks for few by name.
func TestLookPutsRight(t *testing.T) {
	w, fake, keys := looker(t)
	want := fake.now()
	server := netip.MustParseAddrPort("10.1.0.1:8080")
	foreign := key{addr: netip.MustParseAddr("10.96.9.9"), proto: ruleset.TCP, port: 80}
	of := func(k key) service { return *fake.now()[k] }
	for name, change := range map[string]step{
		"nothing":              {what: putService, exists: true, of: of(keys[0])},
		"a service deleted":    {what: deleteService, of: of(keys[1])},
		"a mark deleted":       {what: deleteService, of: of(keys[len(keys)-1])},
		"IPv6":                 {what: deleteService, of: of(keys[len(keys)-2])},
		"a server deleted":     {what: deleteDest, of: of(keys[2]), dest: destination{addr: server}},
		"a weight":             {what: putDest, exists: true, of: of(keys[3]), dest: destination{addr: server, weight: 0}},
		"another's server":     {what: putDest, of: of(keys[4]), dest: destination{addr: netip.MustParseAddrPort("10.9.9.9:1"), weight: 1}},
		"another scheduler":    {what: putService, exists: true, of: service{key: keys[5], scheduler: "lc", timeout: 10800}},
		"another's service":    {what: putService, of: service{key: foreign, scheduler: "rr"}},
		"the affinity's time":  {what: putService, exists: true, of: service{key: keys[7], scheduler: "mh", flags: flagFallback, timeout: 5}},
		"nobody's in the text": {what: putService, exists: true, of: of(keys[6])},
	} {
		for _, known := range []bool{false, true} { // that all was well before
			fake.hidden = key{}
			w.clean = 0
			if known && (w.looked(t) != 0 || w.clean == 0) {
				t.Fatalf("%s: there is something to put right before", name)
			}
			if name == "nobody's in the text" {
				fake.hidden = keys[6]
			}
			if err := fake.do(change); err != nil {
				t.Fatal(err)
			}
			fake.asked = 0
			changed := w.looked(t)
			if got := fake.now(); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: not put right: %s", name, unlike(got, want))
			}
			if noChange := strings.HasPrefix(name, "no"); noChange != (changed == 0) || changed > 1 || fake.asked > inTurn+1 {
				t.Errorf("%s: %d changes found, %d asked for by name", name, changed, fake.asked)
			}
		}
	}
}

// Of a text that was well before and is as long, only what differs is compared:
// a connection more, a virtual service in the place of another one.
func TestLookComparesWhatDiffers(t *testing.T) {
	w, fake, keys := looker(t)
	w.looked(t)
	fake.conns[netip.MustParseAddrPort("[fd00:1::1]:8080")] = 3 // of two virtual services
	sizes := func() (bytes int, whole bool) {
		changes := w.b.changes
		w.text, _ = fake.text(w.text)
		parts, whole := w.different(changes)
		for _, p := range parts {
			bytes += p.to - p.from
		}
		return bytes, whole
	}
	if n, whole := sizes(); whole || n == 0 || n > 3*4096 {
		t.Errorf("a connection more: %d bytes of %d, all: %t", n, len(w.text), whole)
	}
	w.looked(t)
	if n, whole := sizes(); whole || n != 0 {
		t.Errorf("nothing: %d bytes of %d, all: %t", n, len(w.text), whole)
	}
	want := fake.now()
	other := *want[keys[3]]
	other.key.port++
	for _, s := range append([]step{{what: deleteService, of: *want[keys[3]]}}, difference(nil, &other, true)...) {
		if err := fake.do(s); err != nil {
			t.Fatal(err)
		}
	}
	if n, whole := sizes(); whole || n == 0 {
		t.Errorf("another in its place: %d bytes of %d, all: %t", n, len(w.text), whole)
	}
	if changed := w.looked(t); changed != 2 {
		t.Errorf("%d changes found", changed)
	}
	if got := fake.now(); !reflect.DeepEqual(got, want) {
		t.Errorf("not put right: %s", unlike(got, want))
	}
}

// What the text does not show is found in turn.
func TestLookInTurn(t *testing.T) {
	w, fake, keys := looker(t)
	want := fake.now()
	s := *want[keys[9]]
	s.flags = flagPort
	if err := fake.do(step{what: putService, exists: true, of: s}); err != nil {
		t.Fatal(err)
	}
	for range len(keys)/inTurn + 1 {
		w.looked(t)
	}
	if got := fake.now(); !reflect.DeepEqual(got, want) {
		t.Errorf("not put right: %s", unlike(got, want))
	}
}

// A server on its way out stays while it has connections, or until the limit;
// one of UDP also goes when it serves no more.
func TestLookReaps(t *testing.T) {
	w, fake, keys := looker(t)
	now := time.Now()
	w.b.opts.Clock = func() time.Time { return now }
	tcp, udp := keys[0], keys[len(keys)-2]
	busy, idle, flow := netip.MustParseAddrPort("10.1.0.1:8080"), netip.MustParseAddrPort("10.1.0.2:8080"), netip.MustParseAddrPort("[fd00:1::1]:8080")
	fake.conns[busy], fake.conns[flow] = 1, 1
	drained := func(k key) {
		t.Helper()
		if err := w.b.do(difference(w.b.have[k], nil, true)); err != nil {
			t.Fatal(err)
		}
	}
	drained(tcp)
	drained(udp)
	left := func(k key) (out []netip.AddrPort) {
		if s := fake.now()[k]; s != nil {
			for _, d := range s.dests {
				out = append(out, d.addr)
			}
		}
		return out
	}
	check := func(when string, k key, want ...netip.AddrPort) {
		t.Helper()
		if got := left(k); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: servers of %s: %v, want %v", when, k, got, want)
		}
	}
	check("at first", tcp, busy, idle)
	w.looked(t)
	check("after a look", tcp, busy)
	check("after a look", udp, flow)
	var asked netip.AddrPort
	for _, serves := range []bool{true, false} {
		if err := w.b.EndFlows(func(at, to netip.AddrPort) bool { asked = at; return serves || to != flow }); err != nil {
			t.Fatal(err)
		}
		if serves {
			check("while it serves", udp, flow)
		}
	}
	check("when it serves no more", udp)
	if asked != netip.MustParseAddrPort("[fd00:96::1]:53") {
		t.Errorf("asked for %s", asked)
	}
	check("which is UDP's only", tcp, busy)
	now = now.Add(25 * time.Hour)
	w.looked(t)
	check("after the limit", tcp)
	if len(w.b.draining) > 0 {
		t.Errorf("still on their way out: %v", w.b.draining)
	}
}
