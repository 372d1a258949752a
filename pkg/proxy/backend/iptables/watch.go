package iptables

import (
	"context"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
)

// Watch tells when somebody else changes our chains or what leads to them:
// iptables and firewalld flush, people edit. Over nf_tables the kernel tells;
// of the older variant see legacyWatch.
type Watch struct {
	b       *Backend
	monitor *nfmonitor.Monitor
	legacy  *legacyWatch
}

// Watch listens from now on, in the network namespace of the calling thread;
// Run has to be called in the same.
func (b *Backend) Watch() (*Watch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.know()
	if err != nil {
		return nil, err
	}
	b.looked = true
	w := &Watch{b: b}
	if b.mode == iptables.Legacy {
		w.legacy, err = newLegacyWatch()
	} else {
		w.monitor, err = nfmonitor.Listen()
	}
	if err != nil {
		return nil, err
	}
	b.monitor, b.legacy = w.monitor, w.legacy
	return w, nil
}

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply. It also does after messages were lost.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	if w.legacy != nil {
		return w.runLegacy(ctx, changed)
	}
	return w.monitor.Run(ctx, nfmonitor.Watcher{
		Touches: touches,
		Changed: func(parts map[nfmonitor.Part]bool, program string) {
			if w.b.broken(ctx, parts) {
				w.b.opts.Log.Warn("somebody else changed our iptables chains: they are programmed anew", "program", program)
				changed()
			}
		},
		Lost: func() {
			w.b.opts.Log.Warn("lost track of changes of iptables: everything is programmed anew")
			changed()
		},
	})
}

// called are the chains that the kernel calls itself.
var called = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// touches says that a part of a transaction may be about us. What is in no
// chain is the table itself.
func touches(p nfmonitor.Part) bool {
	return slices.Contains(iptables.Tables, p.Table) && (own(p.Chain) || p.Chain == "" || slices.Contains(called, p.Chain))
}

// broken says that such a change of somebody else needs repair. Others have
// rules in the chains that we have a jump in: there it only has to be first.
func (b *Backend) broken(ctx context.Context, parts map[nfmonitor.Part]bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.loaded {
		return false // everything is replaced anyway
	}
	for p := range parts {
		if own(p.Chain) {
			return true
		}
	}
	for _, f := range b.families {
		for _, t := range baseTables(f, b.node) {
			for _, j := range t.jumps {
				part := nfmonitor.Part{V6: f.v6, Table: t.name}
				whole := parts[part]
				part.Chain = j.from
				if !whole && !parts[part] {
					continue
				}
				first, err := b.tool(f).First(ctx, t.name, j.from)
				if err != nil {
					b.opts.Log.Warn("iptables cannot be read: our chains are programmed anew", "error", err)
				}
				if first != j.String() {
					return true
				}
			}
		}
	}
	return false
}
