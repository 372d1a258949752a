// Package userspace serves Services in the agent itself, for hosts where
// netfilter cannot be used: it accepts connections and passes on what comes.
// It needs no rule in the kernel. The addresses of Services are made the node's
// own by one route each (`local ADDRESS dev lo`), which is cheaper than an
// address on a device, shows nowhere as one, and carries a mark that says whose
// it is; the rest of the service range is a blackhole. Each address and port
// has a socket of its own, bound with IP_FREEBIND: what nobody serves is refused
// by the kernel, and another program may have the same port elsewhere. A
// transparent socket for the whole range would accept first and refuse later,
// and needs rules to get its packets.
//
// Who may not connect is dropped by a socket filter (see filter.go), so nobody
// is let in to be thrown out.
//
// By nature endpoints see the node's address and not the client's, there is no
// SCTP, and connections end with the agent. An unprivileged agent serves node
// ports alone, those from 1024.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Options say where the backend works.
type Options struct {
	// In runs f in the network namespace to serve, on one thread; nil is the
	// caller's. Sockets stay where they are made.
	In  func(f func() error) error
	Now func() time.Time
	Log *slog.Logger
}

// Backend owns sockets and routes. It is safe for concurrent use.
type Backend struct {
	opts Options
	// files is the limit of open files, which Go raises to the hard one when a
	// program starts. Listeners may take six tenths, connections and UDP flows a
	// part each: the agent has other things to do.
	files int
	wg    sync.WaitGroup // the poller and all connections

	mu      sync.Mutex
	now     ruleset.Ruleset // what is served
	running *poller         // nil before the first Apply and after Cleanup
	routes  routes
	node    host
	conns   map[*conn]bool
	flows   int // of UDP, of all listeners
	// listeners and failing are by the address they are or would be bound to.
	listeners map[ruleset.Key]*listener
	failing   map[ruleset.Key]bool // reported, tried again
	clients   map[affinityKey]*client
	told      map[string]time.Time // when something was last logged
}

// New opens nothing yet.
func New(o Options) *Backend {
	if o.In == nil {
		o.In = func(f func() error) error { return f() }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	limit := unix.Rlimit{Cur: 1024}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		o.Log.Warn("the limit of open files is not known", "error", err)
	}
	return &Backend{
		opts: o, files: int(min(limit.Cur, 1<<24)), conns: map[*conn]bool{}, listeners: map[ruleset.Key]*listener{}, failing: map[ruleset.Key]bool{},
		clients: map[affinityKey]*client{}, told: map[string]time.Time{},
	}
}

// Apply serves now. What it does depends on what is there, and not on old: a
// listener that stays the same is not touched. An address that cannot be had,
// or a port that another program has, is reported and tried again, and keeps
// nothing else from being served.
func (b *Backend) Apply(_ context.Context, _, now ruleset.Ruleset) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opts.In(func() error {
		if b.running == nil {
			p, err := newPoller()
			if err != nil {
				return err
			}
			b.running = p
			b.wg.Go(func() {
				if err := b.opts.In(func() error { return b.poll(p) }); err != nil {
					b.opts.Log.Error("Services are not served any more: restart the agent", "error", err)
				}
			})
		}
		b.now = now
		return b.serve()
	})
}

// Forget makes the next Apply look at the routes anew.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routes.known = false
}

// Cleanup removes the routes of this and of earlier agents, and ends all that
// this one serves.
func (b *Backend) Cleanup(context.Context) error {
	b.mu.Lock()
	b.routes.known = false
	err := b.opts.In(func() error { return b.routes.set(nil, nil) })
	b.routes.known = false // whoever comes next looks
	b.mu.Unlock()
	if errors.Is(err, unix.EPERM) { // who may make none has none
		err = nil
	}
	return errors.Join(err, b.Close())
}

// Close ends all that is served. The routes stay, so that a new agent finds the
// addresses where they were: meanwhile connections are refused.
func (b *Backend) Close() error {
	b.mu.Lock()
	for _, l := range b.listeners {
		b.close(l)
	}
	clear(b.failing)
	for c := range b.conns {
		c.abort()
	}
	clear(b.conns)
	if b.running != nil {
		b.running.stop()
		b.running = nil
	}
	b.routes.close()
	b.mu.Unlock()
	b.wg.Wait()
	return nil
}

// serve makes sockets and routes what the ruleset says. The caller holds the
// lock and is in the namespace.
func (b *Backend) serve() error {
	var err error
	if b.node, err = b.routes.host(b.now.Node.LocalPods.Interface); err != nil {
		return err
	}
	privileged := b.routes.privileged()
	want := b.wanted(privileged)
	for key, l := range b.listeners {
		if want[key] == nil {
			b.close(l)
		}
	}
	for key := range b.failing {
		if want[key] == nil {
			delete(b.failing, key)
		}
	}
	b.open(want)
	b.forgetClients()
	if !privileged {
		b.tell("privilege", "Services are served on node ports only: their addresses need CAP_NET_ADMIN")
		return nil
	}
	// Last: nothing is refused because its socket is yet to come.
	return b.routes.set(b.addresses(), b.now.Node.ServiceCIDRs)
}

// wanted are the frontends by the addresses to listen on. Where everybody is
// refused nobody listens.
func (b *Backend) wanted(privileged bool) map[ruleset.Key]*ruleset.Frontend {
	want := make(map[ruleset.Key]*ruleset.Frontend, len(b.now.Frontends))
	nodePortAddrs := b.now.Node.ServeNodePorts(b.node.addrs)
	for _, nodePorts := range []bool{false, true} { // one address goes before all of them
		for _, f := range b.now.Frontends {
			if f.Key.NodePort() != nodePorts || len(f.Endpoints)+len(f.Inside) == 0 && f.Empty == ruleset.Reject {
				continue
			}
			if f.Key.Proto == ruleset.SCTP {
				b.tell("sctp", "SCTP Services are not served in this proxy mode")
				continue
			}
			if !nodePorts {
				if privileged {
					want[f.Key] = f
				}
				continue
			}
			for _, a := range nodePortAddrs {
				key := ruleset.Key{Addr: a, Proto: f.Key.Proto, Port: f.Key.Port}
				if a.Is4() == f.Key.Addr.Is4() && want[key] == nil {
					want[key] = f
				}
			}
		}
	}
	return want
}

// addresses are those to be made the node's.
func (b *Backend) addresses() map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(b.now.ClusterIPs))
	for _, a := range b.now.ClusterIPs {
		out[a] = true
	}
	for _, f := range b.now.Frontends {
		if !f.Key.NodePort() {
			out[f.Key.Addr] = true
		}
	}
	return out
}

// open opens what is missing, and gives every listener what it serves now.
func (b *Backend) open(want map[ruleset.Key]*ruleset.Frontend) {
	failed := 0
	var first error
	for key, f := range want {
		if l := b.listeners[key]; l != nil {
			b.give(l, f)
			continue
		}
		err := error(unix.EMFILE)
		if len(b.listeners) < b.files*6/10 {
			err = b.listen(key, f)
		}
		switch {
		case err == nil:
			delete(b.failing, key)
		case !b.failing[key]:
			failed, first = failed+1, err
			b.failing[key] = true
		}
	}
	if failed == 0 {
		return
	}
	if errors.Is(first, unix.EMFILE) || errors.Is(first, unix.ENFILE) {
		first = fmt.Errorf("%w: each address and port of a Service takes one file, and six tenths of the agent's limit of %d are for them: raise LimitNOFILE, or choose another --proxy-mode", first, b.files)
	}
	b.opts.Log.Error("some Services are not served: it is tried again", "ports", failed, "of", len(want), "error", first)
}

// tell logs something once an hour.
func (b *Backend) tell(what, message string, args ...any) {
	now := b.opts.Now()
	if last, told := b.told[what]; told && now.Sub(last) < time.Hour {
		return
	}
	b.told[what] = now
	b.opts.Log.Warn(message, args...)
}

// host is what the node itself has.
type host struct {
	addrs []netip.Addr
	pods  []int // the interfaces that local pods come in through
}

// matches is the interface match of ruleset.LocalPods.
func matches(pattern, name string) bool {
	if prefix, found := strings.CutSuffix(pattern, "*"); found {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// inside says that a source is a pod of this node or the node itself.
func (b *Backend) inside(src netip.Addr) bool {
	local := b.now.Node.LocalPods
	if local.Interface == "" && contains(local.Prefixes, src) {
		return true
	}
	found, err := b.routes.netlink.RouteGet(src.AsSlice())
	if err != nil || len(found) == 0 {
		return false
	}
	if found[0].Type == unix.RTN_LOCAL {
		return true
	}
	l, err := b.routes.netlink.LinkByIndex(found[0].LinkIndex)
	return err == nil && local.Interface != "" && matches(local.Interface, l.Attrs().Name)
}
