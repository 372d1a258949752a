package nftables

import (
	"context"

	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
)

// Watch tells when somebody else changes our tables: iptables and firewalld
// flush, people edit.
type Watch struct {
	b       *Backend
	monitor *nfmonitor.Monitor
}

// Watch listens from now on, in the network namespace of the calling thread.
func (b *Backend) Watch() (*Watch, error) {
	m, err := nfmonitor.Listen()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.monitor = m
	return &Watch{b, m}, nil
}

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply. It also does after messages were lost.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	return w.monitor.Run(ctx, nfmonitor.Watcher{
		Touches: func(p nfmonitor.Part) bool { return p.Table == Table },
		Changed: func(_ map[nfmonitor.Part]bool, program string) {
			w.b.opts.Log.Warn("somebody else changed our nftables tables: they are programmed anew", "table", Table, "program", program)
			changed()
		},
		Lost: func() {
			w.b.opts.Log.Warn("lost track of changes of nftables: everything is programmed anew")
			changed()
		},
	})
}
