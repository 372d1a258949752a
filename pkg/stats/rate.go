package stats

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// sampleEvery is how often CPU time is noted down, so that how much is used
	// now can be told at once.
	sampleEvery = 15 * time.Second
	// minWindow is the shortest time that a rate is taken over: the kernel adds up
	// CPU time in ticks.
	minWindow = 3 * time.Second
)

// samples are the CPU time of a cgroup when it was last looked at, and before.
type samples struct{ last, before sample }

type sample struct {
	at    time.Time
	usage time.Duration
}

// Run notes down the CPU time of everything, and measures disks for those who
// ask, until ctx ends.
func (r *Reader) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.measureDisks(ctx) })
	g.Go(func() error { return r.takeSamples(ctx) })
	return g.Wait()
}

func (r *Reader) takeSamples(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		r.sample()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (r *Reader) sample() {
	now := map[string]sample{}
	add := func(c *Cgroup) { now[c.Path] = sample{c.Time, c.CPU.Usage} }
	if n, err := r.Node(cpuOnly); err == nil {
		add(&n.Cgroup)
	}
	for _, p := range r.Pods(cpuOnly) {
		add(&p.Cgroup)
		for i := range p.Containers {
			add(&p.Containers[i].Cgroup)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[string]samples, len(now))
	for path, s := range now {
		next[path] = samples{last: s, before: r.samples[path].last}
	}
	r.samples = next
}

// rate sets how much CPU the cgroup uses: since the last sample that is old
// enough, else since it began, where that is known.
func (r *Reader) rate(c *Cgroup, began time.Time) {
	r.mu.Lock()
	s := r.samples[c.Path]
	r.mu.Unlock()
	base := s.last
	if base.at.IsZero() || c.Time.Sub(base.at) < minWindow {
		base = s.before
	}
	if base.at.IsZero() {
		base = sample{at: began}
	}
	if base.at.IsZero() || c.CPU.Usage < base.usage {
		return
	}
	if c.Window = c.Time.Sub(base.at); c.Window <= 0 {
		c.Window = 0
		return
	}
	c.Rate = uint64(float64(c.CPU.Usage-base.usage) / c.Window.Seconds())
}
