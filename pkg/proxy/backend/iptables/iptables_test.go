package iptables_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	programs "github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// inside is a backend within a world's node.
type inside struct {
	*iptables.Backend
	w *services.World
}

func (b inside) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	return b.w.In(services.Node, func() error { return b.Backend.Apply(ctx, old, now) })
}

func (b inside) Cleanup(ctx context.Context) error {
	return b.w.In(services.Node, func() error { return b.Backend.Cleanup(ctx) })
}

func backend(t testing.TB, w *services.World, v programs.Variant) inside {
	testbed.Require(t, programs.Tool{Variant: v}.Program("restore"), programs.Tool{Variant: v, V6: true}.Program("restore"))
	return inside{iptables.New(iptables.Options{
		Variant:  v,
		LockWait: 5 * time.Minute, // other tests of the machine have it, too
	}), w}
}

func apply(t testing.TB, b inside, old, now ruleset.Ruleset) {
	t.Helper()
	if err := b.Apply(context.Background(), old, now); err != nil {
		t.Fatal(err)
	}
}

// each runs a test for each variant, side by side: most of the time they wait
// for the kernel.
func each(t *testing.T, test func(t *testing.T, v programs.Variant)) {
	for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

// kernel is all rules and chains of ours of a variant, by chain.
func kernel(t testing.TB, w *services.World, v programs.Variant) string {
	t.Helper()
	var out []string
	for _, v6 := range []bool{false, true} {
		tool := programs.Tool{Variant: v, V6: v6}
		for _, table := range []string{"raw", "filter", "nat"} {
			text := run(t, w, "", tool.Program("save"), "-t", table)
			var lines []string
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, ":"+iptables.Prefix) {
					line, _, _ = strings.Cut(line, " ")
				} else if !strings.HasPrefix(line, "-A ") {
					continue
				}
				lines = append(lines, strings.TrimSpace(line))
			}
			name := func(line string) string { return strings.Fields(strings.TrimPrefix(line, "-A "))[0] }
			slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(name(a), name(b)) })
			if len(lines) > 0 {
				out = append(out, tool.Program("")+" "+table, strings.Join(lines, "\n"))
			}
		}
	}
	return strings.Join(out, "\n")
}

func run(t testing.TB, w *services.World, in, program string, args ...string) string {
	t.Helper()
	var out []byte
	err := w.In(services.Node, func() (err error) {
		cmd := exec.Command(program, args...)
		cmd.Stdin = strings.NewReader(in)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		services.Run(t, w, backend(t, w, v))
	})
}

func TestUDPFlows(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		services.RunFlows(t, w, backend(t, w, v))
	})
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		services.RunInvalid(t, w, backend(t, w, v), ruleset.Drop)
	})
}

func TestKernelDoesWhatTheTracerSays(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		for seed := range uint64(3) {
			services.RunRandom(t, w, backend(t, w, v), seed, 12)
		}
	})
}

func TestLasting(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		services.Lasting{
			World: w,
			New:   func() services.Restartable { return backend(t, w, v) },
			State: func() string { return kernel(t, w, v) },
		}.Run(t)
	})
}

func TestKilledNFT(t *testing.T) {
	t.Parallel()
	killed(t, programs.NFT)
}

func TestKilledLegacy(t *testing.T) {
	t.Parallel()
	killed(t, programs.Legacy)
}

func killed(t *testing.T, v programs.Variant) {
	services.RunKilled(t, 2000, 12, func(w *services.World) services.Restartable { return backend(t, w, v) },
		func(w *services.World) string { return kernel(t, w, v) })
}

// Cleanup removes what any variant has of ours, and nothing of others; so does
// the first load with the other variant.
func TestCleanup(t *testing.T) {
	w := services.New(t)
	mine := many(30)
	mine.Node.LoopbackNodePorts = true
	foreign := map[programs.Variant]string{}
	for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
		program := programs.Tool{Variant: v}.Program("")
		backend(t, w, v)
		run(t, w, "", program, "-t", "nat", "-N", "OTHERS")
		run(t, w, "", program, "-t", "nat", "-A", "PREROUTING", "-m", "comment", "--comment", "not -j "+iptables.Prefix+"SERVICES", "-j", "OTHERS")
		foreign[v] = kernel(t, w, v)
	}
	for range 2 { // the second time there is nothing
		for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
			if err := backend(t, w, v).Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			for other, want := range foreign {
				if got := kernel(t, w, other); got != want {
					t.Errorf("%s: left:\n%s\nwant:\n%s", other, got, want)
				}
			}
		}
	}
	apply(t, backend(t, w, programs.Legacy), ruleset.Ruleset{}, mine)
	apply(t, backend(t, w, programs.NFT), ruleset.Ruleset{}, mine)
	if got := kernel(t, w, programs.Legacy); got != foreign[programs.Legacy] {
		t.Errorf("left in the other variant:\n%s", got)
	}
	apply(t, backend(t, w, programs.Legacy), ruleset.Ruleset{}, mine)
	if got := kernel(t, w, programs.NFT); got != foreign[programs.NFT] {
		t.Errorf("left in the other variant:\n%s", got)
	}
	if err := backend(t, w, programs.NFT).Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := kernel(t, w, programs.Legacy); got != foreign[programs.Legacy] {
		t.Errorf("left:\n%s", got)
	}
}

// Whoever flushes or edits our chains or takes their place is noticed; what we
// and others do elsewhere is not.
func TestWatch(t *testing.T) {
	each(t, watch)
}

func watch(t *testing.T, v programs.Variant) {
	w := services.New(t)
	b := backend(t, w, v)
	changed := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- w.In(services.Node, func() error {
			watch, err := b.Watch()
			close(ready)
			if err != nil {
				return err
			}
			return watch.Run(ctx, func() { changed <- struct{}{} })
		})
	}()
	<-ready
	now := many(40)
	apply(t, b, ruleset.Ruleset{}, now)
	want := kernel(t, w, v)
	tool, tool6 := programs.Tool{Variant: v}, programs.Tool{Variant: v, V6: true}
	ipt, ipt6 := tool.Program(""), tool6.Program("")
	for _, foreign := range []string{
		"flush", // not the last: of its transactions some may be noticed after the repair
		ipt + " -t nat -F",
		ipt + " -F",
		ipt6 + " -t nat -F",
		ipt + " -t nat -D NODEAGENT-S-POSTROUTING 1",
		ipt + " -t nat -R NODEAGENT-S-REFUSE 1 -j MARK --set-xmark 0x4000/0xc000", // as long as before
		ipt + " -t nat -I PREROUTING -d 192.0.2.77 -j ACCEPT",
		ipt + " -D INPUT 1",
		ipt + " -t nat -D OUTPUT -j NODEAGENT-S-SERVICES",
	} {
		if foreign == "flush" { // as firewalld does when it is restarted
			for _, tool := range []programs.Tool{tool, tool6} {
				run(t, w, "*nat\nCOMMIT\n*filter\nCOMMIT\n", tool.Program("restore"))
			}
		} else {
			words := strings.Fields(foreign)
			run(t, w, "", words[0], words[1:]...)
		}
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s: not noticed", foreign)
		}
		b.Forget()
		apply(t, b, now, now)
		got := kernel(t, w, v)
		if foreign == ipt+" -t nat -I PREROUTING -d 192.0.2.77 -j ACCEPT" {
			run(t, w, "", ipt, "-t", "nat", "-D", "PREROUTING", "-d", "192.0.2.77", "-j", "ACCEPT")
			got = kernel(t, w, v)
		}
		if got != want {
			t.Fatalf("%s: repaired to\n%s\nwant\n%s", foreign, got, want)
		}
		for len(changed) > 0 { // two transactions of one foreign change
			<-changed
		}
	}
	for _, elsewhere := range []string{"-N OTHERS", "-A PREROUTING -j OTHERS", "-A OTHERS -d 192.0.2.77 -j ACCEPT", "-D PREROUTING -j OTHERS"} {
		run(t, w, "", ipt, append([]string{"-t", "nat"}, strings.Fields(elsewhere)...)...)
	}
	apply(t, b, now, many(41))
	apply(t, b, many(41), now)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(changed); n > 0 {
		t.Errorf("%d changes too many noticed", n)
	}
}

// route_localnet is on no longer than the rules that keep neighbours out, unless
// somebody else turned it on.
func TestLoopbackIsClosedAgain(t *testing.T) {
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		const file = "net/ipv4/conf/all/route_localnet"
		off, on := many(1), many(1)
		on.Node.LoopbackNodePorts = true
		for _, before := range []string{"0", "1"} {
			if err := w.Sysctl(file, before); err != nil {
				t.Fatal(err)
			}
			is := func(want string) {
				t.Helper()
				if got := strings.TrimSpace(run(t, w, "", "cat", "/proc/sys/"+file)); got != want {
					t.Errorf("route_localnet, %s before, is %s, want %s", before, got, want)
				}
			}
			b := backend(t, w, v)
			apply(t, b, ruleset.Ruleset{}, on)
			is("1")
			apply(t, b, on, off)
			is(before)
			apply(t, b, off, on)
			b = backend(t, w, v) // a restart does not forget whose it was
			apply(t, b, ruleset.Ruleset{}, on)
			if err := b.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			is(before)
		}
	})
}

// Where the kernel takes what is out of the window, nothing INVALID is dropped.
func TestLiberalConntrack(t *testing.T) {
	w := services.New(t)
	for value, want := range map[string]int{"0": 2, "1": 0} { // once in each family
		if err := w.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", value); err != nil {
			t.Fatal(err)
		}
		apply(t, backend(t, w, programs.NFT), ruleset.Ruleset{}, many(1))
		if got := strings.Count(kernel(t, w, programs.NFT), "INVALID -j DROP"); got != want {
			t.Errorf("nf_conntrack_tcp_be_liberal %s: %d rules drop what is INVALID, want %d", value, got, want)
		}
	}
}

// The error of a lock that others hold says so.
func TestLocked(t *testing.T) {
	w := services.New(t)
	lock := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	f, err := os.Create(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	backend(t, w, programs.Legacy)
	b := inside{iptables.New(iptables.Options{Variant: programs.Legacy, LockWait: time.Second}), w}
	err = b.Apply(t.Context(), ruleset.Ruleset{}, many(1))
	if !errors.Is(err, errdefs.ErrTransient) || !strings.Contains(err.Error(), lock) {
		t.Errorf("with a lock that others hold: %v", err)
	}
	f.Close()
	apply(t, b, ruleset.Ruleset{}, many(1))
}

// What the host can do is tried, and leaves nothing.
func TestDetect(t *testing.T) {
	each(t, func(t *testing.T, v programs.Variant) {
		w := services.New(t)
		b := backend(t, w, v)
		var info programs.Info
		err := w.In(services.Node, func() (err error) { info, err = b.Detect(t.Context()); return err })
		if err != nil || info.Variant != v || info.Version == "" {
			t.Errorf("%+v, %v", info, err)
		}
		for _, table := range []string{"nat", "filter"} {
			if text := run(t, w, "", programs.Tool{Variant: v}.Program("save"), "-t", table); strings.Contains(text, "NODEAGENT") {
				t.Errorf("left:\n%s", text)
			}
		}
	})
}

// Without the programs for IPv6 there is still IPv4; without those for IPv4 it
// is said what is missing.
func TestMissingPrograms(t *testing.T) {
	w := services.New(t)
	backend(t, w, programs.NFT)
	dir := t.TempDir()
	for _, suffix := range []string{"", "save", "restore"} {
		name := programs.Tool{Variant: programs.NFT}.Program(suffix)
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	now := many(3)
	b := inside{iptables.New(iptables.Options{Variant: programs.NFT}), w}
	apply(t, b, ruleset.Ruleset{}, now)
	apply(t, b, now, many(4))
	none := inside{iptables.New(iptables.Options{Variant: programs.Legacy}), w}
	if err := none.Apply(t.Context(), ruleset.Ruleset{}, now); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("without programs: %v", err)
	}
	if _, err := none.Detect(t.Context()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("detected without programs: %v", err)
	}
}

// route_localnet, which node ports on 127.0.0.1 need, lets a neighbour reach
// what listens on loopback only, were it not for us (CVE-2020-8558).
func TestLoopbackStaysClosedToNeighbours(t *testing.T) {
	each(t, loopbackStaysClosed)
}

func loopbackStaysClosed(t *testing.T, v programs.Variant) {
	w := services.New(t)
	b := backend(t, w, v)
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
