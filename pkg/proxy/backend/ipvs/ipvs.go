// Package ipvs puts a ruleset into the kernel's IPVS: a virtual service for each
// frontend, a destination for each endpoint. What IPVS has no words for is one
// nftables table of our own in each IP family, whose number of chains and rules
// does not grow with Services: it refuses and drops, holds the source ranges,
// says who is masqueraded, and marks what arrives at a port of the node or is
// served differently inside the cluster. Addresses cost nothing: the range of
// Services is one local route (see routes.go).
//
// An endpoint that goes keeps its connections at weight 0 until they end. IPVS
// itself remembers that, so an agent that was restarted goes on with it.
//
// Packets in conntrack state INVALID are let through, as by kube-proxy's IPVS
// mode.
package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"

	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Table is the name of the nftables tables.
const Table = "nodeagent-ipvs"

// Options say how the kernel is reached.
type Options struct {
	// Scheduler is the kernel's name of one; "" is rr.
	Scheduler string
	// StrictARP keeps the node from answering ARP for addresses that are on no
	// interface of its own, as external ones.
	StrictARP bool
	// DrainLimit is how long an endpoint that went keeps connections that do
	// not end; 0 is a day.
	DrainLimit time.Duration
	// Nft is the program and its first arguments; nil is nft.
	Nft nft.Command
	// In runs f in the network namespace that is programmed; nil is the
	// caller's. Nft has to be run there, too.
	In    func(f func() error) error
	Clock func() time.Time // nil: time.Now
	Log   *slog.Logger
}

// Backend owns the virtual services of the addresses that it has routed to the
// node and of its marks, these routes, and the tables. Others' virtual services
// stay as they are. It is safe for concurrent use.
type Backend struct {
	opts Options

	mu     sync.Mutex
	table  table
	net    *network
	socket nft.Socket
	loaded bool // the kernel holds what Apply was last told
	// changes counts what we did to virtual services.
	changes uint64

	have    state
	marks   *marks
	places  places
	routes  map[netip.Prefix]bool
	sources sources // in the routes
	monitor *nfmonitor.Monitor
	route   *nl.NetlinkSocket // tells of routes, addresses and links, if not nil
	buf     []byte            // of what it tells
	news    news
	// draining is when each destination was first seen at weight 0.
	draining map[drain]time.Time
}

type drain struct {
	of key
	to netip.AddrPort
}

// New touches nothing yet.
func New(opts Options) *Backend {
	if opts.Scheduler == "" {
		opts.Scheduler = "rr"
	}
	if opts.DrainLimit == 0 {
		opts.DrainLimit = 24 * time.Hour
	}
	if opts.In == nil {
		opts.In = func(f func() error) error { return f() }
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Backend{opts: opts, draining: map[drain]time.Time{}}
}

// Apply makes the kernel hold now, with the messages that the difference needs.
// old is what the last successful Apply was given. When that is not what the
// kernel holds (the first time, after an error, after Forget or with another
// Node) the kernel is read and the tables are replaced. IPVS has no
// transactions: what is new is first refused, dropped and masqueraded, then
// routed, then served; what goes, goes the other way.
func (b *Backend) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return err
	}
	full := !b.loaded || !old.Node.Equal(now.Node)
	if full {
		if err := b.prepare(); err != nil {
			return err
		}
		if err := b.load(now); err != nil {
			return err
		}
		old = ruleset.Ruleset{}
	}
	b.loaded = false
	own, ways, err := b.around()
	if err != nil {
		return err
	}
	changes := ruleset.Diff(old, now)
	moves := b.places.change(old, now, changes, own)
	services, elements, err := b.plan(full, old, now, changes, moves)
	if err != nil {
		return err
	}
	if err := b.program(ctx, full, now.Node, elements); err != nil {
		return fmt.Errorf("program %d Service frontends: %w", len(changes), err)
	}
	add, remove := b.routing(full, now.Node.ServiceCIDRs, moves, ways)
	if err := b.addRoutes(add, ways); err != nil {
		return err
	}
	for _, s := range services {
		if err := b.do(s.steps(b.have[s.key], now.Node.ServiceCIDRs)); err != nil {
			return err
		}
	}
	if err := b.removeRoutes(remove); err != nil {
		return err
	}
	b.loaded = true
	return nil
}

// target is what a virtual service is to be: nil is gone.
type target struct {
	key  key
	want *service
}

// steps end the connections of an external address at once: it may be another
// node's from now on. Nobody else can have a mark or an address of the range.
func (t target) steps(have *service, cidrs []netip.Prefix) []step {
	if have == nil && t.want == nil {
		return nil
	}
	return difference(have, t.want, t.key.mark != 0 || inside(cidrs, t.key.addr))
}

// plan decides: virtual services in their order, and each family's elements.
// With full everything is a change, and what else the kernel holds of ours has
// to go.
func (b *Backend) plan(full bool, old, now ruleset.Ruleset, changes []ruleset.Change, moves moves) ([]target, []*nft.Elements, error) {
	targets := map[key]*service{}
	if full {
		for k := range b.have {
			targets[k] = nil
		}
	}
	var before, after [][]nft.Element
	for _, c := range changes {
		var gone, added []service
		var b4, af []nft.Element
		var err error
		if c.Old != nil {
			if gone, err = b.marks.virtual(c.Old, b.opts.Scheduler); err != nil {
				return nil, nil, err
			}
			b4 = b.marks.elements(c.Old)
		}
		if c.New != nil {
			if added, err = b.marks.virtual(c.New, b.opts.Scheduler); err != nil {
				return nil, nil, err
			}
			af = b.marks.elements(c.New)
		}
		for _, s := range gone {
			targets[s.key] = nil
		}
		for _, s := range added {
			targets[s.key] = &s
		}
		if c.New == nil {
			b.marks.release(marked{c.Old.Key, false})
			b.marks.release(marked{c.Old.Key, true})
		}
		before, after = append(before, b4), append(after, af)
	}
	var elements []*nft.Elements
	alone, looped := ruleset.DiffAddrs(old.Hairpin, now.Hairpin)
	for _, f := range families {
		t := nft.NewElements(f.has)
		for i, c := range changes {
			if c.New != nil && f.has(c.New.Key.Addr) || c.Old != nil && f.has(c.Old.Key.Addr) {
				t.Difference(before[i], after[i])
			}
		}
		t.Moves("virtual", moves.real, moves.virtual, func(a netip.Addr) string { return a.String() + " : return" })
		t.Moves("hairpin", alone, looped, func(a netip.Addr) string { return a.String() + " . " + a.String() })
		elements = append(elements, t)
	}
	out := make([]target, 0, len(targets))
	for k, s := range targets {
		out = append(out, target{k, s})
	}
	slices.SortFunc(out, func(a, b target) int { return a.key.compare(b.key) })
	return out, elements, nil
}

// do tells the kernel and remembers.
func (b *Backend) do(steps []step) error {
	for _, s := range steps {
		if err := b.tell(s); err != nil {
			return err
		}
		b.have.apply(s)
		b.remember(s)
		b.changes++
	}
	return nil
}

func (b *Backend) tell(s step) error {
	if err := b.table.do(s); err != nil {
		return fmt.Errorf("IPVS: %s: %w", s, err)
	}
	return nil
}

// remember knows who is on its way out.
func (b *Backend) remember(s step) {
	at := drain{s.of.key, s.dest.addr}
	switch {
	case s.what == putDest && s.dest.weight == 0:
		b.draining[at] = b.opts.Clock()
	case s.what == putDest || s.what == deleteDest:
		delete(b.draining, at)
	case s.what == deleteService:
		for _, d := range s.of.dests {
			delete(b.draining, drain{s.of.key, d.addr})
		}
	}
}

// load reads what the kernel holds of ours and forgets everything else.
func (b *Backend) load(now ruleset.Ruleset) error {
	routes, err := b.net.list()
	if err != nil {
		return err
	}
	b.routes = map[netip.Prefix]bool{}
	for _, p := range routes {
		b.routes[p] = true
	}
	all, err := b.table.list(func(k key) bool {
		wanted := k.mark == 0 && now.Find(ruleset.Key{Addr: k.addr, Proto: k.proto, Port: k.port}) != nil
		return wanted || b.have[k] != nil || owns(k, b.routes)
	})
	if err != nil {
		return err
	}
	b.have, b.marks, b.places = state{}, newMarks(), places{}
	b.changes++
	clear(b.draining)
	for _, s := range all {
		b.have[s.key] = &s
		for _, d := range s.dests {
			if d.weight == 0 {
				b.draining[drain{s.key, d.addr}] = b.opts.Clock()
			}
		}
	}
	return nil
}

// owns tells our virtual services after a restart: by the mark, or by the route
// to their address.
func owns(k key, routes map[netip.Prefix]bool) bool {
	if k.mark != 0 {
		return k.mark.ours()
	}
	if routes[netip.PrefixFrom(k.addr, k.addr.BitLen())] {
		return true
	}
	for p := range routes {
		if !p.IsSingleIP() && p.Contains(k.addr) {
			return true
		}
	}
	return false
}

// Forget makes the next Apply read the kernel and put right what differs.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
}

// Cleanup removes our virtual services, with their connections, the tables and
// the routes; without any it succeeds.
func (b *Backend) Cleanup(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
	var errs []error
	if b.table == nil {
		// Where IPVS is not there it is not loaded for this.
		none := false
		if err := b.opts.In(func() error { none = absent(); return nil }); err != nil {
			return err
		}
		if none {
			errs = append(errs, b.openNetwork())
		} else if err := b.open(ctx); err != nil {
			return err
		}
	}
	if b.table != nil {
		if err := b.load(ruleset.Ruleset{}); err != nil {
			return err
		}
		for _, s := range b.have {
			errs = append(errs, b.do([]step{{what: deleteService, of: *s}}))
		}
	}
	var text bytes.Buffer
	for _, f := range families {
		fmt.Fprintf(&text, "add table %s %s\ndelete table %s %s\n", f.name, Table, f.name, Table)
	}
	if err := b.nft(ctx, &text); err != nil {
		errs = append(errs, fmt.Errorf("remove the tables %s: %w", Table, err))
	}
	if b.net != nil {
		routes, err := b.net.list()
		errs = append(errs, err)
		b.routes = map[netip.Prefix]bool{}
		for _, p := range routes {
			errs = append(errs, b.net.remove(p))
		}
		b.sources = sources{}
	}
	return errors.Join(errs...)
}

// Close closes the sockets; Apply opens them again.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table != nil {
		b.table.close()
	}
	if b.net != nil {
		b.net.close()
	}
	b.table, b.net, b.loaded = nil, nil, false
	return b.socket.Close()
}
