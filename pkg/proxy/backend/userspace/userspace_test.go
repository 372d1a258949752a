package userspace_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/userspace"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// lacks are what this mode cannot have by nature.
var lacks = services.Lacks["userspace"]

func backend(t testing.TB, w *services.World) *userspace.Backend {
	b := userspace.New(userspace.Options{In: func(f func() error) error { return w.In(services.Node, f) }})
	t.Cleanup(func() {
		if err := b.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func apply(t testing.TB, b *userspace.Backend, old, now ruleset.Ruleset) {
	t.Helper()
	if err := b.Apply(context.Background(), old, now); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.Run(t, w, backend(t, w), lacks...)
}

func TestUDPFlows(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.RunFlows(t, w, backend(t, w), lacks...)
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	services.RunInvalid(t, w, backend(t, w), ruleset.Forward)
}

func TestPacketsGoWhereTheTracerSays(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	b := backend(t, w)
	for seed := range uint64(3) {
		services.RunRandom(t, w, b, seed, 12, lacks...)
		apply(t, b, ruleset.Ruleset{}, ruleset.Ruleset{})
	}
}

func TestLasting(t *testing.T) {
	t.Parallel()
	w := services.New(t)
	var last *userspace.Backend
	services.Lasting{
		World: w, Lacks: lacks, State: func() string { return state(t, w) },
		New: func() services.Restartable {
			// A new agent starts when the old one is gone.
			if last != nil {
				if err := last.Close(); err != nil {
					t.Fatal(err)
				}
			}
			last = backend(t, w)
			return last
		},
	}.Run(t)
}

// state is all sockets and routes of the node.
func state(t testing.TB, w *services.World) string {
	t.Helper()
	var lines []string
	for _, command := range []string{"ip -4 route show table all proto 110", "ip -6 route show table all proto 110", "ss -Hltun"} {
		lines = append(lines, strings.Split(strings.TrimSpace(output(t, w, command)), "\n")...)
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" })
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// serve is a Service at the node's port 30080 over TCP and UDP, and at a
// cluster IP.
func serve(host string, port uint16) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}}}
	for _, proto := range []ruleset.Proto{ruleset.TCP, ruleset.UDP} {
		f := &ruleset.Frontend{
			Key:       ruleset.Key{Addr: netip.IPv4Unspecified(), Proto: proto, Port: 30080},
			Service:   "default/s",
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(services.Addr(host, false), port)},
		}
		r.Frontends = append(r.Frontends, f)
	}
	for i := range 2 {
		f := *r.Frontends[i]
		f.Key.Addr, f.Key.Port = services.Addr("cluster", false), 80
		r.Frontends = append(r.Frontends, &f)
	}
	r.ClusterIPs = []netip.Addr{services.Addr("cluster", false)}
	return r
}

func at(name string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(services.Addr(name, false), port)
}

func dial(t *testing.T, w *services.World, proto ruleset.Proto, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := w.Dial(ctx, services.Client, proto, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// An end of one direction is passed on as one, and the other direction goes on.
func TestHalfClose(t *testing.T) {
	w := services.New(t)
	apply(t, backend(t, w), ruleset.Ruleset{}, serve(services.PodA, services.PortEcho))
	c := dial(t, w, ruleset.TCP, at("cluster", 80)).(*net.TCPConn)
	sent := bytes.Repeat([]byte("0123456789"), 1<<18)
	go func() {
		_, _ = c.Write(sent) // the reader tells
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent), err)
	}
}

// A client that resets takes the endpoint's side with it, and nothing stays.
func TestNothingStays(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	before := files(t)
	now := serve(services.PodA, services.PortEcho)
	apply(t, b, ruleset.Ruleset{}, now)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			c := dial(t, w, ruleset.TCP, at("node", 30080)).(*net.TCPConn)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				_ = c.SetLinger(0)
			}
			c.Close()
		})
	}
	wg.Wait()
	if err := b.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w); strings.Contains(got, "30080") || strings.Contains(got, "10.96.0.10") {
		t.Errorf("left:\n%s", got)
	}
	// io.Copy keeps pipes for the next one, until they are collected.
	eventually(t, "all files closed", func() bool {
		runtime.GC()
		return files(t) <= before+20
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not yet: %s", what)
		}
	}
}

func files(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A UDP flow stays with its endpoint while that is one, and leaves it at once
// when it is none. After it was idle it is forgotten.
func TestFlows(t *testing.T) {
	w := services.New(t)
	var mu sync.Mutex
	ahead := time.Duration(0)
	b := userspace.New(userspace.Options{
		In:  func(f func() error) error { return w.In(services.Node, f) },
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(ahead) },
	})
	t.Cleanup(func() { _ = b.Cleanup(context.Background()) })
	one, two := serve(services.PodA, services.PortA), serve(services.PodB, services.PortA)
	apply(t, b, ruleset.Ruleset{}, one)
	c := dial(t, w, ruleset.UDP, at("cluster", 80))
	ask := func() string {
		t.Helper()
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	first := ask()
	if second := ask(); !strings.HasPrefix(first, services.PodA) || second != first {
		t.Errorf("%q, then %q", first, second)
	}
	apply(t, b, one, two)
	if got := ask(); !strings.HasPrefix(got, services.PodB) {
		t.Errorf("after its endpoint went: %q", got)
	}
	flow := func() bool {
		return strings.Contains(output(t, w, "ss -Hnua"), at(services.PodB, services.PortA).String())
	}
	if !flow() {
		t.Error("there is no socket for the flow")
	}
	mu.Lock()
	ahead = time.Hour
	mu.Unlock()
	eventually(t, "the end of an idle flow", func() bool { return !flow() })
}

// A port that another program has is served when that is gone; all others are
// at once.
func TestPortInUse(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	var other net.Listener
	err := w.In(services.Node, func() (err error) { other, err = net.Listen("tcp", at("node", 30080).String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	apply(t, b, ruleset.Ruleset{}, serve(services.PodA, services.PortA))
	got, err := w.Ask(services.Client, ruleset.TCP, at("node2", 30080), false)
	if err != nil || got.Verdict != ruleset.Forward {
		t.Errorf("another address: %v, %v", got, err)
	}
	other.Close()
	eventually(t, "the port served", func() bool {
		got, err := w.Ask(services.Client, ruleset.TCP, at("node", 30080), false)
		return err == nil && got.Verdict == ruleset.Forward
	})
}

// An endpoint that refuses is passed over.
func TestNextEndpoint(t *testing.T) {
	w := services.New(t)
	now := serve(services.PodA, services.PortA)
	for i := range now.Frontends {
		now.Frontends[i].Endpoints = []netip.AddrPort{at(services.PodB, 1), at(services.PodA, services.PortA)}
	}
	apply(t, backend(t, w), ruleset.Ruleset{}, now)
	for range 4 {
		if got, err := w.Ask(services.Client, ruleset.TCP, at("cluster", 80), false); err != nil || got.Verdict != ruleset.Forward {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// Whoever removes our routes is noticed; what we do ourselves, and others do
// elsewhere, is not.
func TestWatch(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	var watch *userspace.Watch
	if err := w.In(services.Node, func() (err error) { watch, err = b.Watch(); return err }); err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func() { changed <- struct{}{} }) }()
	now := serve(services.PodA, services.PortA)
	now.Node.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	apply(t, b, ruleset.Ruleset{}, now)
	want := state(t, w)
	for _, foreign := range []string{
		"ip route del local 10.96.0.10 dev lo table local",
		"ip route del blackhole 10.96.0.0/16",
		"ip route flush table local proto 110",
		"ip route add local 10.96.77.77 dev lo proto 110",
	} {
		output(t, w, "ip route add 198.18.0.0/16 via 192.0.2.10")
		output(t, w, "ip route del 198.18.0.0/16 via 192.0.2.10")
		output(t, w, foreign)
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s: not noticed", foreign)
		}
		b.Forget()
		apply(t, b, now, now)
		if got := state(t, w); got != want {
			t.Fatalf("%s: repaired to\n%s\nwant\n%s", foreign, got, want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// output runs a program on the node.
func output(t testing.TB, w *services.World, command string) string {
	t.Helper()
	words := strings.Fields(command)
	args := append(w.Command(words[0]), words[1:]...)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// Without privileges there are node ports, those from 1024.
// What Apply does makes no Watch list all routes: with thousands of Services
// nothing else would get its turn.
func TestWatchIsNotSurprisedByApply(t *testing.T) {
	w := services.New(t)
	b := backend(t, w)
	var socket *nl.NetlinkSocket
	if err := w.In(services.Node, func() (err error) {
		socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	// told is how many messages of routes there are, and how many surprise.
	told := func() (all, surprising int) {
		if err := socket.SetReceiveTimeout(&unix.Timeval{Usec: 100_000}); err != nil {
			t.Fatal(err)
		}
		for {
			messages, _, err := socket.Receive()
			if errors.Is(err, unix.EAGAIN) {
				return all, surprising
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
					continue
				}
				all++
				if userspace.Surprising(b, m.Header.Type == unix.RTM_NEWROUTE, m.Data) {
					surprising++
				}
			}
		}
	}
	now := many(50)
	now.Frontends[7].Key.Addr = services.Addr("cluster", true)
	now.ClusterIPs[7] = now.Frontends[7].Key.Addr
	fewer := now
	fewer.Frontends, fewer.ClusterIPs = now.Frontends[10:], now.ClusterIPs[10:]
	for _, r := range []ruleset.Ruleset{now, fewer} {
		apply(t, b, ruleset.Ruleset{}, r)
		if all, surprising := told(); all == 0 || surprising > 0 {
			t.Errorf("%d of %d messages are surprising after an Apply", surprising, all)
		}
	}
	output(t, w, "ip route del local 10.96.0.20 dev lo table local")
	if _, surprising := told(); surprising != 1 {
		t.Error("nobody is surprised that a route went")
	}
}

func TestUnprivileged(t *testing.T) {
	w := services.New(t)
	var log bytes.Buffer
	b := userspace.New(userspace.Options{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		In: func(f func() error) error {
			return w.In(services.Node, func() error {
				h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
				var none [2]unix.CapUserData
				if err := unix.Capset(&h, &none[0]); err != nil { // of this thread
					return err
				}
				return f()
			})
		},
	})
	now := serve(services.PodA, services.PortA)
	low := *now.Frontends[0]
	low.Key.Port = 80
	now.Frontends = append([]*ruleset.Frontend{&low}, now.Frontends...)
	apply(t, b, ruleset.Ruleset{}, now)
	for _, proto := range []ruleset.Proto{ruleset.TCP, ruleset.UDP} {
		if got, err := w.Ask(services.Client, proto, at("node", 30080), false); err != nil || got.Verdict != ruleset.Forward {
			t.Errorf("%s: %v, %v", proto, got, err)
		}
	}
	if err := b.Cleanup(context.Background()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"node ports only", "CAP_NET_BIND_SERVICE"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not said:\n%s", want, &log)
		}
	}
}

// With too few files some Services are not served, which is said, and those
// that are have files left to work with.
func TestTooFewFiles(t *testing.T) {
	w := services.New(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 600, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	b := userspace.New(userspace.Options{
		In:  func(f func() error) error { return w.In(services.Node, f) },
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	now := many(1000)
	apply(t, b, ruleset.Ruleset{}, now)
	served := 0
	for i := range now.Frontends {
		got, err := w.Ask(services.Client, ruleset.TCP, netip.AddrPortFrom(now.Frontends[i].Key.Addr, 80), false)
		if err != nil {
			t.Fatal(err)
		}
		if got.Verdict == ruleset.Forward {
			served++
		}
	}
	if err := b.Cleanup(context.Background()); err != nil {
		t.Error(err)
	}
	if served != 360 || !strings.Contains(log.String(), "LimitNOFILE") || !strings.Contains(log.String(), "ports=640") {
		t.Errorf("%d are served; said was\n%s", served, &log)
	}
}

// Clients that come faster than endpoints can be reached wait, and none is
// thrown out.
func TestBurst(t *testing.T) {
	w := services.New(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// A backend that thinks it has few files, in a process that has enough for both sides.
	few := unix.Rlimit{Cur: 1200, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	b := backend(t, w)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	apply(t, b, ruleset.Ruleset{}, serve(services.PodA, services.PortA))
	to := netip.AddrPortFrom(services.Addr("cluster", false), 80)
	for range 1000 {
		c, err := w.Dial(t.Context(), services.Node, ruleset.TCP, to)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	if got, err := w.Ask(services.Node, ruleset.TCP, to, false); err != nil || got.Verdict != ruleset.Forward {
		t.Errorf("after the burst: %+v, %v", got, err)
	}
}

// What an agent left that was killed is gone with the first Apply of the next,
// or with Cleanup by one that served nothing.
func TestLeftovers(t *testing.T) {
	w := services.New(t)
	now := serve(services.PodA, services.PortA)
	b := backend(t, w)
	apply(t, b, ruleset.Ruleset{}, now)
	want := state(t, w)
	if err := b.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	none := state(t, w)
	leave := func() {
		output(t, w, "ip route add local 10.96.77.77 dev lo proto 110")
		output(t, w, "ip route add local fd00:96::77 dev lo table local proto 110")
		output(t, w, "ip route add blackhole 10.97.0.0/16 proto 110")
	}
	leave()
	apply(t, b, ruleset.Ruleset{}, now)
	if got := state(t, w); got != want {
		t.Errorf("after an Apply:\n%s\nwant\n%s", got, want)
	}
	if err := b.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := backend(t, w).Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w); got != none {
		t.Errorf("after Cleanup:\n%s\nwant\n%s", got, none)
	}
}
