package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/proxy/conntrack"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

const (
	// A first change is applied at once, and what comes meanwhile together.
	gather = 2 * time.Millisecond
	// After work of that many seconds without a rest, passes take this share of
	// one CPU's time; but none waits longer than longestPause for a long one
	// before it.
	workAtOnce, workShare = 0.75, 0.1
	longestPause          = time.Second
	// Somebody who keeps flushing our rules finds them back that often at once,
	// and then once a second.
	repairsAtOnce, repairsPerSecond = 5, 1
	// A failed pass is tried again after these.
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// patience is for one change of the kernel's state, with whatever locks others hold.
	patience = time.Minute
)

// state belongs to Run.
type state struct {
	mode      Mode
	backend   Backend
	leftovers []string // modes to clean up
	noted     bool     // the mode is in the state file

	planner  plan.Planner
	applied  ruleset.Ruleset
	full     bool // the next Apply replaces everything
	snapshot servicemap.Snapshot
	serving  conntrack.Serving
	// flows says that the kernel's UDP flows are to be looked at.
	flows bool

	ended         time.Time // of the last pass
	work, repairs bucket
	retry         time.Duration
}

// Run serves until ctx ends; what is in the kernel stays. It fails when the
// mode is not possible.
func (p *Proxy) Run(ctx context.Context) error {
	if p.o.Mode == ModeNone {
		return p.runNone(ctx)
	}
	mode, err := p.choose(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	p.run = state{
		mode: mode, backend: mode.New(), full: true, flows: true, retry: firstRetry,
		work: newBucket(workAtOnce, workShare*longestPause.Seconds(), workShare), repairs: newBucket(repairsAtOnce, 0, repairsPerSecond),
	}
	p.mu.Lock()
	p.status.Mode = mode.Name
	p.mu.Unlock()
	if mode.Kernel {
		p.forward(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	watch, err := p.run.backend.Watch()
	if watch != nil || err != nil {
		g.Go(func() error { p.follow(ctx, watch, err); return nil })
	}
	g.Go(func() error { p.followAddresses(ctx); return nil })
	g.Go(func() error { p.loop(ctx); return nil })
	return errors.Join(g.Wait(), p.run.backend.Close())
}

// loop makes a pass after each wake and after each failure.
func (p *Proxy) loop(ctx context.Context) {
	var retry <-chan time.Time
	// While the inputs collect what they have; what fails is tried again by the
	// first pass, which says so.
	_ = p.note(ctx)
	p.queue()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-retry:
		}
		if wait := p.pause(); wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
		select { // what came while it waited is in this pass
		case <-p.wake:
		default:
		}
		if ctx.Err() != nil || !p.begin() {
			continue
		}
		retry = nil
		if err := p.pass(ctx); err != nil {
			p.failed(err)
			retry = time.After(p.run.retry)
			p.run.retry = min(2*p.run.retry, lastRetry)
		} else {
			p.setReason("")
			p.run.retry = firstRetry
		}
	}
}

// begin says whether everything is known that a pass needs.
func (p *Proxy) begin() bool {
	p.mu.Lock()
	waiting := slices.Sorted(maps.Keys(p.waiting))
	p.mu.Unlock()
	if len(waiting) > 0 {
		p.setReason("not begun: waiting for " + strings.Join(waiting, ", "))
	}
	return len(waiting) == 0
}

// pause is how long the next pass has to wait.
func (p *Proxy) pause() time.Duration {
	now := p.o.Clock()
	p.mu.Lock()
	foreign := p.pending.foreign > 0
	p.mu.Unlock()
	wait := max(p.run.work.wait(now, 0), p.run.ended.Add(gather).Sub(now))
	if foreign {
		wait = max(wait, p.run.repairs.wait(now, 1))
	}
	return wait
}

func (p *Proxy) failed(err error) {
	p.o.Log.Error("Services are not up to date; the rules that are there stay, and it is tried again", "mode", p.run.mode.Name, "err", err)
	p.nodeEvent(corev1.EventTypeWarning, "ServicesNotProgrammed", err.Error())
	p.setReason(err.Error())
	if p.o.Health != nil { // what came within the pass before was taken for done with it
		p.o.Health.Queued()
	}
}

func (p *Proxy) setReason(reason string) {
	now := p.o.Clock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.Reason != reason || p.status.Since.IsZero() {
		p.status.Reason, p.status.Since = reason, now
	}
}

func (p *Proxy) nodeEvent(eventType, reason, message string) {
	p.o.Event(events.ObjectRef{Kind: "Node", Name: p.o.Node.Name}, eventType, reason, message)
}

// follow listens for others' changes of our state in the kernel.
func (p *Proxy) follow(ctx context.Context, watch Watcher, err error) {
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		if err == nil {
			if m, ok := watch.(Mender); ok {
				m.Mended(p.rulesChanged)
			}
			err = watch.Run(ctx, p.foreign)
		}
		if ctx.Err() != nil {
			return
		}
		message := fmt.Sprintf("changes of the %s rules by others are not noticed; it is tried again: %v", p.run.mode.Name, err)
		p.o.Log.Warn(message)
		p.nodeEvent(corev1.EventTypeWarning, "ProxyWatchFailed", message)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		if watch, err = p.run.backend.Watch(); err == nil {
			p.foreign() // for what was missed
		}
	}
}

func (p *Proxy) foreign() {
	p.mu.Lock()
	p.pending.foreign++
	p.mu.Unlock()
	p.queue()
}

func (p *Proxy) followAddresses(ctx context.Context) {
	changed := func() {
		now, err := p.o.Addresses.List()
		if err != nil {
			p.o.Log.Warn("the node's addresses are not known", "err", err)
			return
		}
		p.mu.Lock()
		news := p.addresses != nil && !slices.Equal(p.addresses, now)
		p.mu.Unlock()
		if news {
			p.queue()
		}
	}
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := p.o.Addresses.Watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		p.o.Log.Warn("changes of the node's addresses are not noticed; it is tried again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}
