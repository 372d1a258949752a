package ipvs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/ipvs"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// The kernel's side runs where there is IPVS: in the guest of test/vm.
func requireIPVS(t testing.TB) {
	t.Helper()
	testbed.Require(t, "nft", "nsenter")
	if err := ipvs.Supported(context.Background()); err != nil {
		t.Skip(err)
	}
}

func backend(t testing.TB, w *services.World, change ...func(*ipvs.Options)) *ipvs.Backend {
	t.Helper()
	o := ipvs.Options{Nft: w.Command("nft"), In: func(f func() error) error { return w.In(services.Node, f) }}
	for _, c := range change {
		c(&o)
	}
	b := ipvs.New(o)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func apply(t testing.TB, b *ipvs.Backend, old, now ruleset.Ruleset) {
	t.Helper()
	if err := b.Apply(context.Background(), old, now); err != nil {
		t.Fatal(err)
	}
}

// handle is another program's way to IPVS.
func handle(t testing.TB, w *services.World) *mobyipvs.Handle {
	t.Helper()
	var h *mobyipvs.Handle
	if err := w.In(services.Node, func() (err error) { h, err = mobyipvs.New(""); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// kernel is all that is there: IPVS but for what is on its way out, routes, nftables.
func kernel(t testing.TB, w *services.World) string {
	t.Helper()
	h := handle(t, w)
	all, err := h.GetServices()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, s := range all {
		dests, err := h.GetDestinations(s)
		if err != nil {
			t.Fatal(err)
		}
		var to []string
		for _, d := range dests {
			if d.Weight > 0 {
				to = append(to, fmt.Sprintf("%s:%d", d.Address, d.Port))
			}
		}
		slices.Sort(to)
		if len(to) > 0 {
			lines = append(lines, fmt.Sprintf("%s:%d/%d mark=%#x %s flags=%#x timeout=%d %s", s.Address, s.Port, s.Protocol, s.FWMark, s.SchedName, s.Flags, s.Timeout, to))
		}
	}
	err = w.In(services.Node, func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: 78}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				lines = append(lines, "route "+r.Dst.String()+" from "+r.Src.String())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	args := append(w.Command("nft"), "-s", "list", "ruleset")
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	// One element on each line, whatever the line nft put it on. Rules are no
	// part of a difference, so their order is of no importance here.
	text := strings.NewReplacer("elements = {", "\n", ", ", "\n", ",\n", "\n", " }", "\n").Replace(string(out))
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && l != "}" {
			lines = append(lines, l)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// lacks are what IPVS cannot have by nature.
var lacks = services.Lacks["ipvs"]

func TestConformance(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	services.Run(t, w, backend(t, w), lacks...)
}

func TestUDPFlows(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	services.RunFlows(t, w, backend(t, w), lacks...)
}

func TestInvalid(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	services.RunInvalid(t, w, backend(t, w), ruleset.Forward)
}

func TestKernelDoesWhatTheTracerSays(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	services.RunRandom(t, w, backend(t, w), 1, scaled(12, 100))
}

func TestLasting(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	services.Lasting{
		World: w, New: func() services.Restartable { return backend(t, w) }, State: func() string { return kernel(t, w) },
		Lacks: lacks, Changes: scaled(30, 1000), Endpoints: scaled(200, 5000),
	}.Run(t)
}

func TestKilled(t *testing.T) {
	requireIPVS(t)
	services.RunKilled(t, scaled(100, 2000), scaled(3, 12),
		func(w *services.World) services.Restartable { return backend(t, w) }, func(w *services.World) string { return kernel(t, w) })
}

// scaled is little, for the guest is slow, or all in a soak.
func scaled(little, all int) int {
	if os.Getenv("SOAK") != "" {
		return all
	}
	return little
}

// Whoever flushes or edits what is ours is noticed; what we and others do
// elsewhere is not.
func TestWatch(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	b := backend(t, w)
	watch, err := b.Watch()
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func() { changed <- struct{}{} }) }()

	now := many(10)
	apply(t, b, ruleset.Ruleset{}, now)
	want := kernel(t, w)
	h := handle(t, w)
	ours := &mobyipvs.Service{Address: net.IPv4(10, 96, 0, 1).To4(), Port: 80, Protocol: unix.IPPROTO_TCP, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff}
	theirs := *ours
	theirs.Address = net.IPv4(192, 0, 2, 1).To4()
	dest := &mobyipvs.Destination{Address: net.IPv4(10, 1, 0, 1).To4(), Port: 8080, Weight: 5}
	server := *dest
	server.Address = net.IPv4(10, 9, 9, 9).To4()
	for name, foreign := range map[string]func() error{
		"ipvsadm -C":         h.Flush,
		"a service deleted":  func() error { return h.DelService(ours) },
		"a server deleted":   func() error { return h.DelDestination(ours, dest) },
		"a weight":           func() error { return h.UpdateDestination(ours, dest) },
		"a server of others": func() error { return h.NewDestination(ours, &server) },
		"another scheduler":  func() error { s := *ours; s.SchedName = "wlc"; return h.UpdateService(&s) },
		"a rule":             func() error { return nft(w, "flush chain ip nodeagent-ipvs dispatch") },
		"an element":         func() error { return nft(w, "delete element ip nodeagent-ipvs services { 10.96.0.1 . tcp . 80 }") },
		"nft flush ruleset":  func() error { return nft(w, "flush ruleset") },
		"the route":          func() error { return ip(w, "route del local 10.96.0.0/16 table local proto 78") },
		"the address it leaves": func() error {
			return errors.Join(ip(w, "addr del 192.0.2.1/24 dev eth0"), ip(w, "addr add 192.0.2.1/24 dev eth0"), ip(w, "route add default via 192.0.2.10"))
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if err := errors.Join(nft(w, "add table ip other; delete table ip other"), h.NewService(&theirs), h.DelService(&theirs)); err != nil {
				t.Fatal(err)
			}
			if err := foreign(); err != nil {
				t.Fatal(err)
			}
			deadline := time.After(time.Minute)
			for kernel(t, w) != want { // it may be noticed in several parts
				select {
				case <-changed:
					b.Forget()
					apply(t, b, now, now)
				case <-time.After(200 * time.Millisecond): // put right by the watch itself
				case <-deadline:
					t.Fatalf("not noticed; now\n%s\nwant\n%s", kernel(t, w), want)
				}
			}
		})
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func nft(w *services.World, command string) error {
	args := append(w.Command("nft"), command)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("nft %s: %w: %s", command, err, out)
	}
	return nil
}

func ip(w *services.World, command string) error {
	args := append(w.Command("ip"), strings.Fields(command)...)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", command, err, out)
	}
	return nil
}

// weights are those of the servers of 10.96.0.10:80/tcp.
func weights(t *testing.T, w *services.World) map[string]int {
	t.Helper()
	dests, err := handle(t, w).GetDestinations(&mobyipvs.Service{
		Address: services.Addr("cluster", false).AsSlice(), Port: 80, Protocol: unix.IPPROTO_TCP, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff,
	})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, d := range dests {
		out[d.Address.String()] = d.Weight
	}
	return out
}

func toHost(host string) ruleset.Ruleset {
	r := many(1)
	r.Frontends = r.Frontends[1:] // no node port
	r.Frontends[0].Key.Addr = services.Addr("cluster", false)
	r.Frontends[0].Endpoints = []netip.AddrPort{netip.AddrPortFrom(services.Addr(host, false), services.PortEcho)}
	r.ClusterIPs = []netip.Addr{services.Addr("cluster", false)}
	return r
}

// watched is an agent's life.
func watched(t *testing.T, w *services.World, clock func() time.Time, f func(b *ipvs.Backend)) {
	t.Helper()
	b := backend(t, w, func(o *ipvs.Options) { o.Clock = clock })
	watch, err := b.Watch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func() { t.Error("it is all ours") }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	f(b)
}

func dial(t *testing.T, w *services.World) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := w.Dial(ctx, services.Client, ruleset.TCP, netip.AddrPortFrom(services.Addr("cluster", false), 80))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func echo(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

func waitGone(t *testing.T, w *services.World, server string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		if _, there := weights(t, w)[server]; !there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there: %v", server, weights(t, w))
		}
	}
}

// An endpoint that goes keeps its connections, also when another agent goes on,
// until they end or the limit is reached.
func TestDrain(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	var late atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	a, pb := services.Addr(services.PodA, false).String(), services.Addr(services.PodB, false).String()
	var first, second *net.TCPConn
	watched(t, w, clock, func(b *ipvs.Backend) {
		apply(t, b, ruleset.Ruleset{}, toHost(services.PodA))
		first = dial(t, w)
		apply(t, b, toHost(services.PodA), toHost(services.PodB))
		if got := weights(t, w); got[a] != 0 || got[pb] != 1 || len(got) != 2 {
			t.Errorf("weights %v", got)
		}
		if err := echo(first); err != nil {
			t.Errorf("the connection to an endpoint that went: %v", err)
		}
	})
	watched(t, w, clock, func(b *ipvs.Backend) {
		apply(t, b, ruleset.Ruleset{}, toHost(services.PodB))
		if err := echo(first); err != nil {
			t.Errorf("… after a restart: %v", err)
		}
		// A reset ends it at once for IPVS, too (10 s).
		if err := first.SetLinger(0); err != nil {
			t.Error(err)
		}
		first.Close()
		waitGone(t, w, a)
		second = dial(t, w)
		none := toHost(services.PodB)
		none.Frontends[0].Endpoints, none.Frontends[0].Empty = nil, ruleset.Reject
		apply(t, b, toHost(services.PodB), none)
		if err := echo(second); err != nil {
			t.Errorf("the connection to the last endpoint: %v", err)
		}
		late.Store(int64(25 * time.Hour))
		waitGone(t, w, pb)
	})
	if err := echo(second); err == nil {
		t.Error("the limit cuts nothing")
	}
}

// Other programs' virtual services are none of our business; all that is ours goes.
func TestCleanup(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	h := handle(t, w)
	for _, theirs := range []*mobyipvs.Service{
		{Address: net.IPv4(192, 0, 2, 1).To4(), Port: 30080, Protocol: unix.IPPROTO_TCP, AddressFamily: unix.AF_INET, SchedName: "wlc", Netmask: 0xffffffff},
		{FWMark: 7, AddressFamily: unix.AF_INET6, SchedName: "rr", Netmask: 128},
	} {
		if err := h.NewService(theirs); err != nil {
			t.Fatal(err)
		}
		if err := h.NewDestination(theirs, &mobyipvs.Destination{Address: map[bool]net.IP{true: net.IPv4(10, 9, 9, 9).To4(), false: net.ParseIP("fd00:9::9")}[theirs.AddressFamily == unix.AF_INET], Port: 1, Weight: 1}); err != nil {
			t.Fatal(err)
		}
	}
	before := kernel(t, w)
	apply(t, backend(t, w), ruleset.Ruleset{}, many(3))
	if kernel(t, w) == before {
		t.Error("nothing was applied")
	}
	for range 2 { // the second time there is nothing
		if err := backend(t, w).Cleanup(context.Background()); err != nil { // of an agent that has just started
			t.Fatal(err)
		}
		if got := kernel(t, w); got != before {
			t.Errorf("now:\n%s\nbefore:\n%s", got, before)
		}
	}
}

// Each scheduler serves, or the error says that the kernel has none.
func TestSchedulers(t *testing.T) {
	requireIPVS(t)
	w := services.New(t)
	for _, name := range []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "fo", "ovf", "mh"} {
		b := backend(t, w, func(o *ipvs.Options) { o.Scheduler = name })
		apply(t, b, ruleset.Ruleset{}, toHost(services.PodA))
		apply(t, b, toHost(services.PodA), toHost(services.PodB))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		c, err := w.Dial(ctx, services.Client, ruleset.TCP, netip.AddrPortFrom(services.Addr("cluster", false), 80))
		cancel()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c.Close()
	}
	b := backend(t, w, func(o *ipvs.Options) { o.Scheduler = "none-such" })
	if err := b.Apply(context.Background(), ruleset.Ruleset{}, many(1)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a scheduler that there is not: %v", err)
	}
}

// many is that many Services of two endpoints, the first with a node port.
func many(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{
		NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		LocalPods:         ruleset.LocalPods{Prefixes: services.PodCIDRs},
		ServiceCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}}
	addr := func(kind byte, i int) netip.Addr { return netip.AddrFrom4([4]byte{10, kind, byte(i >> 8), byte(i)}) }
	for i := range n {
		f := &ruleset.Frontend{
			Key:     ruleset.Key{Addr: addr(96, i+1), Proto: ruleset.TCP, Port: 80},
			Service: fmt.Sprintf("default/s-%d", i), Masquerade: ruleset.MasqueradeRemote,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(addr(1, i+1), 8080), netip.AddrPortFrom(addr(2, i+1), 8080)},
		}
		if i == 0 {
			port := *f
			port.Key.Addr, port.Key.Port, port.Masquerade = netip.IPv4Unspecified(), 30080, ruleset.MasqueradeAll
			r.Frontends = append(r.Frontends, &port)
		}
		r.Frontends = append(r.Frontends, f)
		r.ClusterIPs = append(r.ClusterIPs, f.Key.Addr)
		r.Hairpin = append(r.Hairpin, addr(1, i+1))
	}
	return r
}
