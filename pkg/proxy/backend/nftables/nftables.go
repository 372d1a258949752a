// Package nftables puts a ruleset into the kernel's nf_tables: one table of
// our own in each IP family, whose number of chains and rules does not grow
// with Services. A map leads from address, protocol and port to the chain of
// an endpoint count, a second one from these and a random slot to the
// endpoint; so a change is a handful of map elements. Session affinity has
// chains of its own, since a client's endpoint must be remembered.
//
// Packets in conntrack state INVALID are let through, as by kube-proxy's
// nftables mode: an out-of-window packet of an address-translated connection
// is not dropped here, and iptables mode's reason to do so is iptables' own.
//
// The kernel is spoken to through `nft -f -`, but for changes of a few elements,
// which go there without its help: see docs/services.md for what was measured.
package nftables

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Table is the name of the tables.
const Table = "nodeagent"

// Options say how the kernel is reached.
type Options struct {
	Nft nft.Command // a test enters its namespace here
	// In runs what speaks to the kernel itself; nil does so where it is.
	In func(func() error) error
	// Localnet is the switch of the node's namespace; the zero value is that of
	// the process.
	Localnet Localnet
	Log      *slog.Logger
}

// Backend owns the tables. It is safe for concurrent use.
type Backend struct {
	opts Options

	mu     sync.Mutex
	socket nft.Socket
	loaded bool // the kernel holds what Apply was last told
	// used counts the frontends that need an object, by family and name.
	used map[string]map[string]int
	// idle are objects in the kernel that nobody needs. A chain can be deleted
	// only some time after the last map element that led to it (kernels before
	// 6.2), so the next Apply does it.
	idle    map[string]map[string]object
	monitor *nfmonitor.Monitor // is told which transactions are ours; may be nil
}

// New touches nothing yet.
func New(opts Options) *Backend {
	if opts.Localnet.Set == nil {
		opts.Localnet = ownLocalnet()
	}
	if opts.In == nil {
		opts.In = func(f func() error) error { return f() }
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Backend{opts: opts}
}

// Apply makes the kernel hold now, in one transaction. old is what the last
// successful Apply was given. When that is not what the kernel holds (the first
// time, after an error, after Forget or with another Node) everything is
// replaced instead, still in one transaction.
func (b *Backend) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := !b.loaded || !old.Node.Equal(now.Node)
	var base bytes.Buffer
	var known clients
	var before standing
	var parts []*transaction
	if full {
		var err error
		if before, err = b.standing(ctx); err != nil {
			return err
		}
		known = b.clients(ctx, now)
		b.used, b.idle = map[string]map[string]int{}, map[string]map[string]object{}
		old = ruleset.Ruleset{}
	} else {
		b.collect(ctx)
	}
	changes := ruleset.Diff(old, now)
	for _, f := range []family{ipv4, ipv6} {
		if full {
			// Deleting what may not be there is an error, unless it was added first.
			fmt.Fprintf(&base, "add table %s %s\ndelete table %s %s\n%s", f.name, Table, f.name, Table, baseTable(f, now.Node, before.next))
			b.used[f.name], b.idle[f.name] = map[string]int{}, map[string]object{}
		}
		t := b.transaction(f, now.Node, changes)
		t.keep(known[f.name])
		t.Addrs(clusterIPs, old.ClusterIPs, now.ClusterIPs, netip.Addr.String)
		t.Addrs(hairpin, old.Hairpin, now.Hairpin, func(a netip.Addr) string { return a.String() + " . " + a.String() })
		parts = append(parts, t)
	}
	b.loaded = false
	if full {
		if err := b.openLoopback(before.opened, now.Node, &base); err != nil {
			return err
		}
	}
	if err := b.send(ctx, &base, parts); err != nil {
		return fmt.Errorf("program %d Service frontends: %w", len(changes), err)
	}
	if now.Node.LoopbackNodePorts {
		if err := b.opts.Localnet.Set(true); err != nil {
			return fmt.Errorf("node ports on 127.0.0.1 need net.ipv4.conf.all.route_localnet=1: %w", err)
		}
	}
	b.loaded = true
	return nil
}

// Close closes the socket; Apply opens it again.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.socket.Close()
}

// Forget makes the next Apply replace everything.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
}

// Cleanup removes the tables; without any it succeeds.
func (b *Backend) Cleanup(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
	before, err := b.standing(ctx)
	if err == nil {
		err = b.closeLoopback(before.opened)
	}
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, f := range []family{ipv4, ipv6} {
		fmt.Fprintf(&text, "add table %s %s\ndelete table %s %s\n", f.name, Table, f.name, Table)
	}
	if err := b.nft(ctx, &text); err != nil {
		return fmt.Errorf("remove the tables %s: %w", Table, err)
	}
	return nil
}

// collect deletes idle objects. Where the kernel still sees a user it says so,
// and they stay for the next time.
func (b *Backend) collect(ctx context.Context) {
	var text, last bytes.Buffer
	for _, f := range []family{ipv4, ipv6} {
		idle := b.idle[f.name]
		for _, chains := range []bool{true, false} { // these use sets and maps
			for _, name := range slices.Sorted(maps.Keys(idle)) {
				kind := idle[name].kind
				if kind == "chain" != chains {
					continue
				}
				if chains {
					fmt.Fprintf(&text, "flush chain %s %s %s\n", f.name, Table, name)
				}
				fmt.Fprintf(&last, "delete %s %s %s %s\n", kind, f.name, Table, name)
			}
		}
	}
	if text.Len()+last.Len() == 0 {
		return
	}
	text.Write(last.Bytes())
	if err := b.nft(ctx, &text); err != nil {
		b.opts.Log.Debug("unused chains stay until the next change", "error", err)
		return
	}
	for _, idle := range b.idle {
		clear(idle)
	}
}

// send makes one transaction of everything.
func (b *Backend) send(ctx context.Context, base *bytes.Buffer, parts []*transaction) error {
	batch, small := nft.NewBatch(), base.Len() == 0
	for _, t := range parts {
		small = small && len(t.objects) == 0 && batch.Elements(t.Elements, t.family.any.Is6(), Table)
	}
	switch {
	case small && batch.Empty():
		return nil
	case small:
		return b.monitor.Counted(func() error {
			return b.opts.In(func() error { return b.socket.Send(batch) })
		})
	}
	for _, t := range parts {
		t.write(base)
	}
	return b.nft(ctx, base)
}

// nft runs one transaction; the caller holds the lock.
func (b *Backend) nft(ctx context.Context, text *bytes.Buffer) error {
	return b.monitor.Counted(func() error { return b.opts.Nft.Apply(ctx, text) })
}
