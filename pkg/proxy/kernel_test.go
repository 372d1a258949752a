package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/nftables"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// patience is for a condition on a busy machine.
const patience = time.Minute

// within is everything that a proxy asks the kernel, in a world's node.
type within[W proxy.Watcher] struct {
	w *services.World
	b interface {
		Apply(ctx context.Context, old, now ruleset.Ruleset) error
		Forget()
		Cleanup(ctx context.Context) error
		Watch() (W, error)
	}
}

func (x within[W]) in(f func() error) error { return x.w.In(services.Node, f) }

func (x within[W]) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	return x.in(func() error { return x.b.Apply(ctx, old, now) })
}
func (x within[W]) Forget()      { x.b.Forget() }
func (x within[W]) Close() error { return nil }
func (x within[W]) Cleanup(ctx context.Context) error {
	return x.in(func() error { return x.b.Cleanup(ctx) })
}
func (x within[W]) Watch() (out proxy.Watcher, err error) {
	return out, x.in(func() error {
		watch, err := x.b.Watch()
		out = runWithin{x.w, watch}
		return err
	})
}

type runWithin struct {
	w     *services.World
	watch proxy.Watcher
}

func (r runWithin) Run(ctx context.Context, changed func()) error {
	return r.w.In(services.Node, func() error { return r.watch.Run(ctx, changed) })
}

type kernelWithin struct{ w *services.World }

func (k kernelWithin) List() (out []netip.Addr, err error) {
	err = k.w.In(services.Node, func() error { out, err = proxy.KernelAddresses{}.List(); return err })
	return out, err
}

func (k kernelWithin) Watch(ctx context.Context, changed func()) error {
	return k.w.In(services.Node, func() error { return proxy.KernelAddresses{}.Watch(ctx, changed) })
}

func (k kernelWithin) ConntrackDeleteFilters(t netlink.ConntrackTableType, f netlink.InetFamily, filters ...netlink.CustomConntrackFilter) (n uint, err error) {
	err = k.w.In(services.Node, func() error { n, err = netlink.ConntrackDeleteFilters(t, f, filters...); return err })
	return n, err
}

func kernelOptions(t *testing.T, w *services.World) proxy.Options {
	testbed.Require(t, "nft", "nsenter", "iptables")
	possible := func(context.Context) error { return nil }
	return proxy.Options{
		Modes: []proxy.Mode{
			{Name: "nftables", Kernel: true, Detect: possible, New: func() proxy.Backend {
				return within[*nftables.Watch]{w, nftables.New(nftables.Options{Nft: w.Command("nft")})}
			}},
			{Name: "iptables", Kernel: true, Detect: possible, New: func() proxy.Backend {
				return within[*iptables.Watch]{w, iptables.New(iptables.Options{LockWait: 5 * time.Minute})}
			}},
		},
		StateFile: filepath.Join(t.TempDir(), "modes"), Inputs: []string{"test"},
		Node:      plan.Node{Name: "here", LocalPods: ruleset.LocalPods{Prefixes: services.PodCIDRs}},
		Addresses: kernelWithin{w}, Flows: kernelWithin{w}, Sysctl: func(string) error { return nil },
	}
}

// running is one agent's proxy with the test's Services in it; stop is its end,
// which the kernel does not notice.
func running(t *testing.T, o proxy.Options, mode string, objects ...any) (p *proxy.Proxy, stop func()) {
	o.Mode = mode
	p = proxy.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	for _, object := range objects {
		p.Upsert(object)
	}
	p.Synced("test")
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	eventually(t, "it serves in mode "+mode, func() error {
		if st := p.Status(); st.Reason != "" || st.Services != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	return p, stop
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// echoAt serves one connection after the other on the pod, giving back what comes.
func echoAt(t *testing.T, w *services.World, pod string, port int) {
	var l net.Listener
	err := w.In(pod, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(services.Addr(pod, false), uint16(port)).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }() // until the client goes
		}
	}()
}

func exchange(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// An agent that is exchanged for another one, and a mode that is, cuts no
// connection and refuses no new one.
func TestNobodyNoticesRestartsAndModeChanges(t *testing.T) {
	w := services.New(t)
	o := kernelOptions(t, w)
	echoAt(t, w, services.PodA, 7000)
	cluster := services.Addr("cluster", false)
	long, short := service("long", cluster.String(), corev1.ProtocolTCP), service("short", services.Addr("cluster2", false).String(), corev1.ProtocolTCP)
	longSlice, shortSlice := slice("long", services.Addr(services.PodA, false).String()), slice("short", services.Addr(services.PodB, false).String())
	*longSlice.Ports[0].Port, *shortSlice.Ports[0].Port = 7000, services.PortA
	objects := []any{long, short, longSlice, shortSlice}

	_, stop := running(t, o, "nftables", objects...)
	var conns []net.Conn
	for _, from := range []string{services.Client, services.PodB, services.Node} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		c, err := w.Dial(ctx, from, ruleset.TCP, netip.AddrPortFrom(cluster, 80))
		cancel()
		if err != nil {
			t.Fatalf("from %s: %v", from, err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked, refused := 0, []error{}
	var load sync.WaitGroup
	load.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			got, err := w.Ask(services.Client, ruleset.TCP, netip.AddrPortFrom(services.Addr("cluster2", false), 80), false)
			if err != nil || got.Verdict != ruleset.Forward {
				refused = append(refused, fmt.Errorf("connection %d: %s, %w", asked, got.Verdict, err))
			}
		}
	})
	for i, mode := range []string{"nftables", "iptables", "iptables", "nftables"} {
		stop()
		_, stop = running(t, o, mode, objects...)
		for _, c := range conns {
			if err := exchange(c); err != nil {
				t.Errorf("step %d (%s): %s: %v", i, mode, c.LocalAddr(), err)
			}
		}
	}
	cancel()
	load.Wait()
	if asked == 0 || len(refused) > 0 {
		t.Errorf("of %d new connections these failed: %v", asked, errors.Join(refused...))
	}
}

// Whatever is flushed comes back, and a Service that comes then, too.
func TestFlushHeals(t *testing.T) {
	w := services.New(t)
	o := kernelOptions(t, w)
	a, b := service("a", services.Addr("cluster", false).String(), corev1.ProtocolTCP), service("b", services.Addr("cluster2", false).String(), corev1.ProtocolTCP)
	objects := []any{a, b, slice("a", services.Addr(services.PodA, false).String()), slice("b", services.Addr(services.PodB, false).String())}
	for mode, flush := range map[string][]string{
		"nftables": {"flush", "ruleset"},
		"iptables": {"-t", "nat", "-F"},
	} {
		p, stop := running(t, o, mode, objects...)
		program := map[string]string{"nftables": "nft", "iptables": "iptables"}[mode]
		argv := append(w.Command(program), flush...)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
		eventually(t, mode+": a Service answers after the flush", func() error {
			got, err := w.Ask(services.Client, ruleset.TCP, netip.AddrPortFrom(services.Addr("cluster", false), 80), true)
			if err == nil && got.Verdict != ruleset.Forward {
				err = fmt.Errorf("%s", got.Verdict)
			}
			return err
		})
		eventually(t, mode+": all is well", p.Ready)
		stop()
	}
}
