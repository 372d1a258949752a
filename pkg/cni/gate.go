package cni

import (
	"context"
	"fmt"
	"sync"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// gate keeps collection and the creation of sandboxes apart. Any number of
// creations may be under way; a collection needs none, and while it runs new
// ones wait. A waiting collection does not hold up creations, as one that
// hangs for minutes would then stop every other pod: the collection gives up.
type gate struct {
	mu       sync.Mutex
	creating int
	closed   bool
	changed  chan struct{} // closed and replaced at each change
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

// announce wakes all who wait; mu is held.
func (g *gate) announce() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits while a collection runs and counts one creation.
func (g *gate) enter() (leave func()) {
	g.mu.Lock()
	for g.closed {
		ch := g.changed
		g.mu.Unlock()
		<-ch
		g.mu.Lock()
	}
	g.creating++
	g.mu.Unlock()
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.creating--
		g.announce()
	})
}

// close waits until no creation is under way, then keeps new ones out.
func (g *gate) close(ctx context.Context) (open func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.closed || g.creating > 0 {
		ch, n := g.changed, g.creating
		g.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			g.mu.Lock()
			return nil, fmt.Errorf("network collection put off: %d sandboxes are being created: %w: %w",
				n, context.Cause(ctx), errdefs.ErrTransient)
		}
		g.mu.Lock()
	}
	g.closed = true
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.closed = false
		g.announce()
	}), nil
}
