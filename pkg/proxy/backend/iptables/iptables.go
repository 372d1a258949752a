// Package iptables puts a ruleset into the kernel's iptables, over nf_tables or
// the older way: a tree of chains in the table nat leads a new connection to
// its frontend in a few steps, and a mark carries what nat cannot do itself,
// refuse and drop, to the table filter, whose few rules never change. So every
// change is one transaction of one table.
//
// Why the chains are as they are, and what was measured, is in docs/services.md.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Options say how the kernel is reached.
type Options struct {
	// Variant is iptables.NFT or iptables.Legacy; Default is the host's choice.
	Variant iptables.Variant
	// LockWait is how long others may hold the lock of iptables; 0 is 30 s.
	LockWait time.Duration
	Log      *slog.Logger
}

// Backend owns the chains that begin with Prefix, in the network namespace of
// the calling thread. It is safe for concurrent use.
type Backend struct {
	opts Options

	mu     sync.Mutex
	loaded bool // the kernel holds what Apply was last told
	// families are those that the host has; known once something was loaded.
	families []family
	looked   bool // they are from Watch, just now
	node     ruleset.Node
	mode     iptables.Variant   // likewise
	alone    bool               // the other variant has nothing of ours
	monitor  *nfmonitor.Monitor // is told which transactions are ours; may be nil
	legacy   *legacyWatch       // likewise
}

// New touches nothing yet.
func New(opts Options) *Backend {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Backend{opts: opts}
}

func (b *Backend) tool(f family) iptables.Tool {
	return iptables.Tool{Variant: b.opts.Variant, Mode: b.mode, V6: f.v6, LockWait: b.opts.LockWait, Around: b.around}
}

// Apply makes the kernel hold now. old is what the last successful Apply was
// given; only the difference is sent, in one transaction for each IP family.
// When old is not what the kernel holds (the first time, after an error, after
// Forget or with another Node) all our chains are replaced, whatever they hold,
// in one transaction for each family and table.
func (b *Backend) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := !b.loaded || !old.Node.Equal(now.Node)
	if full {
		if err := b.know(); err != nil {
			return err
		}
		b.looked, b.node = false, now.Node
	}
	b.loaded = false
	changes := ruleset.Diff(old, now)
	for _, f := range b.families {
		var err error
		if full {
			err = b.replace(ctx, f, now)
		} else {
			err = b.update(ctx, f, old, now, changes)
		}
		if err != nil {
			return fmt.Errorf("program %d Services' frontends (%s): %w", len(now.Frontends), f, err)
		}
	}
	if now.Node.LoopbackNodePorts { // not before the rules that keep others out
		if err := routeLocalnet(true); err != nil {
			return fmt.Errorf("node ports on 127.0.0.1 need net.ipv4.conf.all.route_localnet=1: %w", err)
		}
	}
	if full {
		b.removeOther(ctx)
	}
	b.loaded = true
	return nil
}

// around makes a transaction known as ours.
func (b *Backend) around(transaction func() error) error {
	err := b.monitor.Counted(transaction)
	if b.legacy != nil {
		b.legacy.ours()
	}
	return err
}

// know finds out what programs the host has, which may be others than last time.
func (b *Backend) know() error {
	if b.looked {
		return nil
	}
	info, err := b.tool(ipv4).Info()
	if err == nil {
		b.mode, b.families = info.Variant, b.present()
	}
	return err
}

// present are the families that the host has; IPv4 is one of them.
func (b *Backend) present() []family {
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); err != nil {
		b.opts.Log.Info("this kernel has no IPv6: Services are programmed for IPv4 only")
		return []family{ipv4}
	}
	if _, err := b.tool(ipv6).Info(); err != nil {
		b.opts.Log.Warn("Services are programmed for IPv4 only", "error", err)
		return []family{ipv4}
	}
	return []family{ipv4, ipv6}
}

// update sends the difference.
func (b *Backend) update(ctx context.Context, f family, old, now ruleset.Ruleset, changes []ruleset.Change) error {
	s := difference(f, old, now, changes)
	text := s.text("nat")
	if text == nil {
		return nil
	}
	if err := b.tool(f).Restore(ctx, text); err != nil {
		return err
	}
	b.legacy.made(tableID{f.v6, "nat"}, s, false)
	return nil
}

// difference is the change from one ruleset to another.
func difference(f family, old, now ruleset.Ruleset, changes []ruleset.Change) (s script) {
	changes = slices.DeleteFunc(slices.Clone(changes), func(c ruleset.Change) bool { return !f.has(changedKey(c).Addr) })
	atAddresses, atPorts := changedPlaces(f, changes, old, now)
	if len(atAddresses)+len(atPorts) == 0 {
		return s
	}
	r := newRenderer(f, now.Node)
	before, after := r.forests(&old), r.forests(&now)
	s.frontends(r, changes)
	s.trees(before[0], after[0], atAddresses)
	s.trees(before[1], after[1], atPorts)
	return s
}

// tables are all that a family holds.
func tables(f family, now ruleset.Ruleset) []table {
	all, r := baseTables(f, now.Node), newRenderer(f, now.Node)
	nat := &all[len(all)-1]
	for _, tree := range r.forests(&now) {
		nat.chains = append(nat.chains, tree.whole()...)
	}
	for _, front := range now.Frontends {
		if f.has(front.Key.Addr) {
			nat.chains = append(nat.chains, r.chains(front)...)
		}
	}
	return all
}

// replace makes all our chains and removes those that are not needed.
func (b *Backend) replace(ctx context.Context, f family, now ruleset.Ruleset) error {
	liberal, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
	for _, t := range tables(f, now) {
		if err == nil && strings.TrimSpace(string(liberal)) != "0" {
			// What is out of the window is not INVALID then; kube-proxy leaves the rest alone, too.
			for i := range t.chains {
				t.chains[i].rules = slices.DeleteFunc(t.chains[i].rules, func(rule string) bool { return rule == dropInvalid })
			}
		}
		if err := b.replaceTable(ctx, b.tool(f), &t); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	return nil
}

// replaceTable looks again afterwards: the last transaction of an agent that
// was killed may come to its end in the kernel between our look and our change.
// A Watch finds that, too, without a reading of all that was just made.
func (b *Backend) replaceTable(ctx context.Context, tool iptables.Tool, t *table) error {
	have, err := tool.Read(ctx, t.name, own)
	if err != nil {
		return err
	}
	if t.name == "raw" && !tool.V6 {
		if err := t.closeLoopback(have); err != nil {
			return err
		}
	}
	for range 3 {
		text := t.replacement(have)
		if text == nil {
			return nil
		}
		if b.monitor != nil { // then nobody reads the rules again, and they are as large as the text
			for i := range t.chains {
				t.chains[i].rules = nil
			}
		}
		if err := tool.Restore(ctx, text); err != nil {
			return err
		}
		b.legacy.made(tableID{tool.V6, t.name}, script{set: t.chains}, true)
		if b.monitor != nil || b.legacy != nil {
			return nil
		}
		if have, err = tool.Read(ctx, t.name, own); err != nil {
			return err
		}
		if len(have.Chains) == len(t.chains) {
			return nil
		}
	}
	return errdefs.Errorf(errdefs.ErrTransient, "it has %d chains %s* where %d were made: is another agent at work?", len(have.Chains), Prefix, len(t.chains))
}

// replacement is the transaction from what is there; nil is none.
func (t *table) replacement(have iptables.Table) []byte {
	if len(t.chains)+len(have.Chains) == 0 {
		return nil
	}
	s := script{set: t.chains}
	needed := make(map[string]bool, len(t.chains))
	for _, c := range t.chains {
		needed[c.name] = true
	}
	for _, name := range have.Chains {
		if !needed[name] {
			s.gone = append(s.gone, name)
		}
	}
	var text bytes.Buffer
	s.write(&text, t.name, t.jumpChanges(have))
	return text.Bytes()
}

// jumpChanges puts each jump first, once; one that is so is left alone.
func (t *table) jumpChanges(have iptables.Table) []string {
	in := func(chain string) func(string) bool {
		return func(rule string) bool { return strings.HasPrefix(rule, "-A "+chain+" ") }
	}
	stale := slices.Clone(have.Jumps)
	var add []string
	for _, j := range t.jumps {
		i := slices.IndexFunc(stale, in(j.from))
		if have.First[j.from] == j.String() && i >= 0 && slices.IndexFunc(stale[i+1:], in(j.from)) < 0 {
			stale = slices.Delete(stale, i, i+1)
			continue
		}
		add = append(add, fmt.Sprintf("-I %s 1 %s", j.from, j.rule))
	}
	for i, rule := range stale {
		stale[i] = "-D" + strings.TrimPrefix(rule, "-A")
	}
	return append(stale, add...)
}

// removeOther removes what we left in the other variant before the host went
// over to this one, once.
func (b *Backend) removeOther(ctx context.Context) {
	if b.alone {
		return
	}
	b.alone = true
	for _, t := range b.all() {
		if t.Mode == b.mode {
			continue
		}
		removed, err := t.Remove(ctx, own)
		if err != nil {
			b.alone = false
			b.opts.Log.Warn("chains of ours may be left in the other variant of iptables", "program", t.Program(""), "error", err)
		}
		if len(removed) > 0 {
			b.opts.Log.Info("removed our chains from the other variant of iptables", "program", t.Program(""), "chains", len(removed))
		}
	}
}

func (b *Backend) all() []iptables.Tool {
	all := iptables.All()
	for i := range all {
		all[i].LockWait, all[i].Around = b.opts.LockWait, b.around
	}
	return all
}

// Forget makes the next Apply replace everything.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
}

// Cleanup removes our chains and the jumps to them, of both variants; without
// any it succeeds.
func (b *Backend) Cleanup(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = false
	var errs []error
	for _, t := range b.all() {
		if !t.V6 {
			have, err := t.Read(ctx, "raw", own)
			if err == nil {
				err = new(table).closeLoopback(have)
			}
			errs = append(errs, err)
		}
		if _, err := t.Remove(ctx, func(chain string) bool { return own(chain) || chain == probeChain }); err != nil {
			errs = append(errs, fmt.Errorf("remove the chains %s*: %w", Prefix, err))
		}
	}
	return errors.Join(errs...)
}
