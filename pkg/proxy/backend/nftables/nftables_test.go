package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/nftables"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

func backend(t testing.TB, w *services.World) *nftables.Backend {
	testbed.Require(t, "nft", "nsenter")
	return closed(t, nftables.New(options(w)))
}

func closed(t testing.TB, b *nftables.Backend) *nftables.Backend {
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func options(w *services.World) nftables.Options {
	return nftables.Options{
		Nft: w.Command("nft"), In: in(w),
		Localnet: nftables.Localnet{
			Get: func() (on bool, err error) { value, err := localnet(w); return value != "0", err },
			Set: func(on bool) error { return w.Sysctl(localnetSysctl, map[bool]string{true: "1", false: "0"}[on]) },
		},
	}
}

func in(w *services.World) func(func() error) error {
	return func(f func() error) error { return w.In(services.Node, f) }
}

const localnetSysctl = "net/ipv4/conf/all/route_localnet"

func localnet(w *services.World) (string, error) {
	args := append(w.Command("cat"), "/proc/sys/"+localnetSysctl)
	out, err := exec.Command(args[0], args[1:]...).Output()
	return strings.TrimSpace(string(out)), err
}

// route_localnet is on no longer than the guard that keeps neighbours out, unless
// somebody else turned it on.
func TestLoopbackIsClosedAgain(t *testing.T) {
	w := services.New(t)
	off, on := many(1), many(1)
	on.Node.LoopbackNodePorts = true
	for _, before := range []string{"0", "1"} {
		if err := w.Sysctl(localnetSysctl, before); err != nil {
			t.Fatal(err)
		}
		is := func(want string) {
			t.Helper()
			if got, err := localnet(w); err != nil || got != want {
				t.Errorf("route_localnet, %s before, is %s (%v), want %s", before, got, err, want)
			}
		}
		b := backend(t, w)
		apply(t, b, ruleset.Ruleset{}, on)
		is("1")
		apply(t, b, on, off)
		is(before)
		apply(t, b, off, on)
		if err := nftables.Detect(t.Context(), options(w)); err != nil {
			t.Error(err)
		}
		is("1")           // what a restart begins with changes nothing
		b = backend(t, w) // nor does it forget whose it was
		apply(t, b, ruleset.Ruleset{}, on)
		if err := b.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(before)
	}
}

func apply(t testing.TB, b *nftables.Backend, old, now ruleset.Ruleset) {
	t.Helper()
	if err := b.Apply(context.Background(), old, now); err != nil {
		t.Fatal(err)
	}
}

// priority is another one with each full replacement.
var priority = regexp.MustCompile(` priority [^;]*;`)

// kernel is what nft lists but that, in an order that depends on nothing.
func kernel(t testing.TB, w *services.World) string {
	t.Helper()
	args := append(w.Command("nft"), "-s", "list", "ruleset")
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	// One element on each line, whatever the line nft put it on.
	text := strings.NewReplacer("elements = {", "\n", ", ", "\n", ",\n", "\n", " }", "\n").Replace(string(out))
	var blocks []string
	for _, block := range strings.Split(text, "\n\n") { // chains, sets and maps
		lines := strings.Split(block, "\n")
		for i := range lines {
			lines[i] = priority.ReplaceAllString(strings.TrimSpace(lines[i]), "")
		}
		if !strings.Contains(block, "chain ") { // rules have an order
			slices.Sort(lines)
		}
		blocks = append(blocks, strings.Trim(strings.Join(lines, "\n"), "\n}{ "))
	}
	slices.Sort(blocks)
	return strings.Join(blocks, "\n\n")
}

func TestConformance(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.Run(t, w, backend(t, w))
}

func TestUDPFlows(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.RunFlows(t, w, backend(t, w))
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.RunInvalid(t, w, backend(t, w), ruleset.Forward)
}

func TestKernelDoesWhatTheTracerSays(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	for seed := range uint64(3) {
		services.RunRandom(t, w, backend(t, w), seed, 12)
	}
}

func TestLasting(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.Lasting{
		World: w, New: func() services.Restartable { return backend(t, w) }, State: func() string { return kernel(t, w) },
	}.Run(t)
}

func TestKilled(t *testing.T) {
	t.Parallel()
	services.RunKilled(t, 2000, 12, func(w *services.World) services.Restartable { return backend(t, w) },
		func(w *services.World) string { return kernel(t, w) })
}

func TestCleanup(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	for range 2 { // the second time there is nothing
		if err := b.Cleanup(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := kernel(t, w); got != "" {
			t.Errorf("left: %s", got)
		}
		apply(t, b, ruleset.Ruleset{}, many(3))
	}
}

// A change of elements alone runs no program, and ends where nft would have got;
// one that the kernel refuses is followed by a full replacement.
func TestElementsWithoutNft(t *testing.T) {
	w := services.New(t)
	testbed.Require(t, "nft", "nsenter")
	runs := filepath.Join(t.TempDir(), "runs")
	o := options(w)
	o.Nft = append([]string{"sh", "-c", `echo run >>"$0"; exec "$@"`, runs}, o.Nft...)
	b := closed(t, nftables.New(o))
	count := func() int {
		text, err := os.ReadFile(runs)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "run")
	}
	apply(t, b, ruleset.Ruleset{}, services.ManyRuleset(70))
	before := count()
	old, now := services.ManyRuleset(70), services.ManyRuleset(69)
	for range 3 {
		apply(t, b, old, now)
		old, now = now, old
	}
	if n := count(); n != before {
		t.Errorf("nft was run %d times for elements alone", n-before)
	}
	got := kernel(t, w)
	fresh := backend(t, w)
	apply(t, fresh, ruleset.Ruleset{}, old)
	if want := kernel(t, w); got != want {
		t.Fatalf("the kernel holds\n%s\nwhere nft puts\n%s", got, want)
	}
	nft(t, w, "flush set ip nodeagent cluster-ips")
	none := old
	none.ClusterIPs = nil
	if err := b.Apply(t.Context(), old, none); !errors.Is(err, unix.ENOENT) {
		t.Errorf("what is not there was removed: %v", err)
	}
	apply(t, b, old, none)
	if n := count(); n != 2*before {
		t.Errorf("nft was run %d times to replace everything, %d at first", n-before, before)
	}
}

// Whoever flushes or edits our tables is noticed; what we and others do
// elsewhere is not.
func TestWatch(t *testing.T) {
	w := services.New(t)
	testbed.Require(t, "nft", "nsenter", "unshare")
	// In a container the kernel's process ids are not ours.
	b := nftables.New(nftables.Options{Nft: append([]string{"unshare", "--pid", "--fork", "--kill-child"}, w.Command("nft")...), In: in(w)})
	var watch *nftables.Watch
	if err := w.In(services.Node, func() (err error) { watch, err = b.Watch(); return err }); err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func() { changed <- struct{}{} }) }()

	now := many(10)
	apply(t, b, ruleset.Ruleset{}, now)
	want := kernel(t, w)
	for _, foreign := range []string{
		"flush ruleset",
		"delete element ip nodeagent services { 10.96.0.1 . tcp . 80 }",
		"flush chain ip nodeagent dispatch",
		"add element ip nodeagent cluster-ips { 10.96.77.77 }",
		"add chain ip6 nodeagent mine",
	} {
		nft(t, w, "add table ip other; delete table ip other")
		nft(t, w, foreign)
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s: not noticed", foreign)
		}
		b.Forget()
		apply(t, b, now, now)
		if got := kernel(t, w); got != want {
			t.Fatalf("%s: repaired to\n%s\nwant\n%s", foreign, got, want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(changed); n > 0 {
		t.Errorf("%d changes too many noticed", n)
	}
}

// route_localnet, which node ports on 127.0.0.1 need, lets a neighbour reach
// what listens on loopback only, were it not for us (CVE-2020-8558).
func TestLoopbackStaysClosedToNeighbours(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	var l net.Listener
	if err := w.In(services.Node, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:7777"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// A client that sends packets for 127.0.0.1 to the node.
	err := w.In(services.Client, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0o644); err != nil {
			return err
		}
		for _, args := range []string{"addr del 127.0.0.1/8 dev lo", "route add 127.0.0.0/8 via 192.0.2.1 src 192.0.2.10"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Sysctl("net/ipv4/conf/all/route_localnet", "1"); err != nil {
		t.Fatal(err)
	}
	knock := func(patience time.Duration) error {
		return w.In(services.Client, func() error {
			c, err := net.DialTimeout("tcp", "127.0.0.1:7777", patience)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err := knock(10 * time.Second); err != nil {
		t.Fatalf("the hole that is to be closed is not there: %v", err)
	}
	open := many(1)
	open.Node.LoopbackNodePorts = true
	apply(t, b, ruleset.Ruleset{}, open)
	if err := knock(time.Second); err == nil {
		t.Error("a neighbour reaches what listens on 127.0.0.1")
	}
}

func nft(t testing.TB, w *services.World, command string) {
	t.Helper()
	args := append(w.Command("nft"), command)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("nft %s: %v: %s", command, err, out)
	}
}

// many is that many Services of two endpoints.
func many(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{
		NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		LocalPods:         ruleset.LocalPods{Prefixes: services.PodCIDRs},
	}}
	for i := range n {
		ip := func(a, b byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, byte(i >> 8), byte(i)}) }
		r.Frontends = append(r.Frontends, &ruleset.Frontend{
			Key:     ruleset.Key{Addr: ip(10, 96), Proto: ruleset.TCP, Port: 80},
			Service: fmt.Sprintf("default/s-%d", i), Masquerade: ruleset.MasqueradeRemote,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(ip(10, 1), 8080), netip.AddrPortFrom(ip(10, 2), 8080)},
		})
		r.ClusterIPs = append(r.ClusterIPs, ip(10, 96))
		r.Hairpin = append(r.Hairpin, ip(10, 1))
	}
	return r
}

func BenchmarkLoad10000(b *testing.B) {
	w := services.New(b)
	r := many(10_000)
	for b.Loop() {
		apply(b, backend(b, w), ruleset.Ruleset{}, r)
	}
}

func BenchmarkOneMoreThan10000(b *testing.B) {
	w := services.New(b)
	be := backend(b, w)
	all := many(10_001)
	less := all
	less.Frontends, less.ClusterIPs, less.Hairpin = all.Frontends[:10_000], all.ClusterIPs[:10_000], all.Hairpin[:10_000]
	apply(b, be, ruleset.Ruleset{}, less)
	old, now := less, all
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		apply(b, be, old, now)
		took = append(took, time.Since(start))
		old, now = now, old
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}

// One Service of 5,000 endpoints: load it, and take one endpoint out or in.
func BenchmarkFiveThousandEndpoints(b *testing.B) {
	w := services.New(b)
	be := backend(b, w)
	old, now := services.ManyRuleset(5000), services.ManyRuleset(4999)
	start := time.Now()
	apply(b, be, ruleset.Ruleset{}, old)
	load := time.Since(start)
	for b.Loop() {
		apply(b, be, old, now)
		old, now = now, old
	}
	b.ReportMetric(float64(load.Milliseconds()), "load-ms")
}
