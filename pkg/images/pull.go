package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

const (
	// progressPoll is how often a running pull is looked at.
	progressPoll = 500 * time.Millisecond
	// quietFactor × ProgressDeadline is what a pull may take in phases of which
	// nothing is seen from outside: unpacking, or a runtime without progress.
	quietFactor = 6
	// errImagePullShown is how long ErrImagePull shows before ImagePullBackOff,
	// at most half of the back-off.
	errImagePullShown = 5 * time.Second
)

// pullKey is what may be shared: the same image with the same credentials.
type pullKey struct{ ref, credentials string }

// waiter is one container, or one caller of Pull, that waits for a pull.
type waiter struct {
	pod              *v1.Pod // nil for a caller of Pull
	container, image string
	key              containerKey
	news             chan struct{} // Pull only: capacity 1, progress changed
	done             chan error    // Pull only: capacity 1
}

// pull is one fetch of one image; Manager.mu guards it.
type pull struct {
	key     pullKey
	auths   []runtime.Auth
	waiters []*waiter
	owner   types.UID // who asked first; for fairness
	queued  time.Time
	started time.Time // zero while it waits for a place
	cancel  context.CancelCauseFunc
	done    int64
	total   int64
}

func (pl *pull) progress() Progress {
	return Progress{Ref: pl.key.ref, Done: pl.done, Total: pl.total, Started: pl.started}
}

// state is what a container that waits for this pull shows; mu is held.
func (pl *pull) state(image string) State {
	s := State{Reason: ReasonPulling, Progress: pl.progress()}
	switch {
	case pl.started.IsZero():
		s.Message = fmt.Sprintf("Pulling image %q: waiting for other pulls to end", image)
	case pl.total > 0:
		s.Message = fmt.Sprintf("Pulling image %q: %d%% (%d of %d bytes)", image, min(100, pl.done*100/pl.total), pl.done, pl.total)
	case pl.done > 0:
		s.Message = fmt.Sprintf("Pulling image %q: %d bytes", image, pl.done)
	default:
		s.Message = fmt.Sprintf("Pulling image %q", image)
	}
	return s
}

// join adds w to the pull of ref, starting one when there is none; mu is held.
func (m *Manager) join(ref string, auths []runtime.Auth, w *waiter) *pull {
	key := pullKey{ref, fingerprint(auths)}
	pl := m.pulls[key]
	if pl == nil {
		pl = &pull{key: key, auths: auths, owner: w.key.uid, queued: m.opts.Clock.Now()}
		m.pulls[key] = pl
		m.queue = append(m.queue, pl)
	}
	pl.waiters = append(pl.waiters, w)
	m.poke()
	return pl
}

// leave takes waiters out of a pull; one that nobody waits for is ended, so
// that it does not keep the place of one that somebody needs. mu is held.
func (m *Manager) leave(pl *pull, is func(*waiter) bool) {
	pl.waiters = slices.DeleteFunc(pl.waiters, is)
	if len(pl.waiters) > 0 {
		return
	}
	if m.pulls[pl.key] == pl {
		delete(m.pulls, pl.key)
	}
	m.queue = slices.DeleteFunc(m.queue, func(q *pull) bool { return q == pl })
	if pl.cancel != nil {
		pl.cancel(errAbandoned)
	}
}

var errAbandoned = errors.New("nobody waits for the image any more")

func (m *Manager) poke() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Forget drops all that is known of a pod; a pull that only this pod waited
// for is ended.
func (m *Manager) Forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, cs := range m.containers {
		if k.uid != uid {
			continue
		}
		if cs.pull != nil {
			m.leave(cs.pull, func(w *waiter) bool { return w.key == k })
		}
		delete(m.containers, k)
	}
	for k := range m.backoffs {
		if k.uid == uid {
			delete(m.backoffs, k)
		}
	}
	m.poke()
}

// Pulls are the pulls under way, oldest first; Started is zero for one that
// waits for a place.
func (m *Manager) Pulls() []Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*pull, 0, len(m.pulls))
	for _, pl := range m.pulls {
		all = append(all, pl)
	}
	slices.SortFunc(all, func(a, b *pull) int {
		if c := a.queued.Compare(b.queued); c != 0 {
			return c
		}
		return compareKeys(a.key, b.key)
	})
	out := make([]Progress, len(all))
	for i, pl := range all {
		out[i] = pl.progress()
	}
	return out
}

// Run dispatches pulls and announces the ends of back-offs until ctx ends; it
// returns when the last pull has been given up.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		m.abandonQueue(context.Cause(ctx))
	}()
	for {
		for _, pl := range m.dispatch() {
			wg.Go(func() { m.run(ctx, pl) })
		}
		uids, next := m.due()
		for _, uid := range uids {
			m.opts.Wake(uid)
		}
		var alarm <-chan time.Time
		stop := func() bool { return true }
		if !next.IsZero() {
			t := m.opts.Clock.NewTimer(next.Sub(m.opts.Clock.Now()))
			alarm, stop = t.C(), t.Stop
		}
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-m.kick:
		case <-alarm:
		}
		stop()
	}
}

// abandonQueue answers those who wait for a pull that will not start.
func (m *Manager) abandonQueue(cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pl := range m.queue {
		for _, w := range pl.waiters {
			if w.done != nil {
				w.done <- fmt.Errorf("pull of %s was not started: %w", pl.key.ref, cause)
			}
		}
		pl.waiters = slices.DeleteFunc(pl.waiters, func(w *waiter) bool { return w.done != nil })
	}
}

// dispatch takes pulls off the queue while there is room. Of those that wait,
// the pod with the fewest running pulls goes first, then the oldest: a pod
// with twenty images does not hold up a pod with one.
func (m *Manager) dispatch() []*pull {
	m.mu.Lock()
	var start []*pull
	wake := map[types.UID]bool{}
	for m.running < m.opts.MaxParallel && len(m.queue) > 0 {
		running := map[types.UID]int{}
		for _, pl := range m.pulls {
			if !pl.started.IsZero() {
				running[pl.owner]++
			}
		}
		best := 0
		for i, pl := range m.queue {
			if running[pl.owner] < running[m.queue[best].owner] {
				best = i
			}
		}
		pl := m.queue[best]
		m.queue = slices.Delete(m.queue, best, best+1)
		m.running++
		pl.started = m.opts.Clock.Now()
		start = append(start, pl)
		for _, w := range pl.waiters {
			wake[w.key.uid] = true
		}
	}
	m.mu.Unlock()
	m.wakeAll(wake)
	return start
}

// due returns the pods whose answer changes by the passing of time, and when
// the next one does (zero: none).
func (m *Manager) due() (uids []types.UID, next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.opts.Clock.Now()
	set := map[types.UID]bool{}
	at := func(t time.Time, done *bool, uid types.UID) {
		switch {
		case *done:
		case !now.Before(t):
			*done = true
			set[uid] = true
		case next.IsZero() || t.Before(next):
			next = t
		}
	}
	for k, b := range m.backoffs {
		at(b.flip, &b.flipped, k.uid)
		at(b.retryAt, &b.retried, k.uid)
	}
	return sortedUIDs(set), next
}

// run is one pull from start to end.
func (m *Manager) run(runCtx context.Context, pl *pull) {
	ctx, cancel := context.WithCancelCause(runCtx)
	defer cancel(nil)
	m.mu.Lock()
	pl.cancel = cancel
	if len(pl.waiters) == 0 { // left between dispatch and here
		cancel(errAbandoned)
	}
	m.mu.Unlock()

	id, err := m.fetch(ctx, pl, cancel)
	var size uint64
	if err == nil {
		img, serr := m.opts.Runtime.ImageStatus(ctx, id)
		if serr != nil {
			err = fmt.Errorf("image %s was pulled but cannot be inspected: %w", pl.key.ref, serr)
		} else {
			id, size = img.ID, img.Size
		}
	}
	m.finish(pl, id, size, err, err != nil && runCtx.Err() != nil)
}

// fetch tries the credentials in turn, as kubelet does; without any it pulls
// anonymously.
func (m *Manager) fetch(ctx context.Context, pl *pull, cancel context.CancelCauseFunc) (string, error) {
	watchCtx, stopWatch := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { m.watch(watchCtx, pl, cancel) })
	defer wg.Wait()
	defer stopWatch()

	auths := make([]*runtime.Auth, 0, max(1, len(pl.auths)))
	for i := range pl.auths {
		auths = append(auths, &pl.auths[i])
	}
	if len(auths) == 0 {
		auths = append(auths, nil)
	}
	var errs []error
	for _, a := range auths {
		id, err := m.opts.Runtime.PullImage(ctx, pl.key.ref, a)
		if err == nil {
			return id, nil
		}
		if ctx.Err() != nil {
			// Who cancelled it knows why; the runtime only knows that it was.
			return "", context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// watch keeps the pull's progress and ends the pull when it stalls.
func (m *Manager) watch(ctx context.Context, pl *pull, cancel context.CancelCauseFunc) {
	begin := m.opts.Clock.Now()
	changed := begin
	var done, total int64
	seen := false
	for {
		// A wait that never outlasts the deadline, so that a short one is kept too.
		t := m.opts.Clock.NewTimer(min(progressPoll, max(m.opts.ProgressDeadline/4, time.Millisecond)))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C():
		}
		d, n, err := m.opts.Runtime.PullProgress(ctx, pl.key.ref)
		now := m.opts.Clock.Now()
		if err == nil && (d != done || n != total) {
			done, total, changed, seen = d, n, now, true
			m.setProgress(pl, d, n)
		}
		limit := m.opts.ProgressDeadline
		switch {
		case err != nil && !errors.Is(err, errdefs.ErrNotFound), // this runtime shows no progress
			err != nil && seen,                // nothing is fetched any more: it unpacks
			err == nil && total > 0 && d >= n: // all is here: it unpacks
			limit *= quietFactor
		}
		if quiet := now.Sub(changed); quiet >= limit {
			cancel(stalled(pl.key.ref, quiet, done, total, seen))
			return
		}
	}
}

// stalled says what a pull without progress was doing.
func stalled(ref string, quiet time.Duration, done, total int64, seen bool) error {
	host := registryOf(ref)
	switch {
	case !seen:
		return fmt.Errorf("pull of %s was given up: registry %s sent nothing for %v; check that it can be reached from this node: %w",
			ref, host, quiet.Round(time.Millisecond), errdefs.ErrTransient)
	case total > 0 && done >= total:
		return fmt.Errorf("pull of %s was given up: all %d bytes arrived but it was not unpacked within %v; look at the runtime's log: %w",
			ref, total, quiet.Round(time.Millisecond), errdefs.ErrTransient)
	case total > 0:
		return fmt.Errorf("pull of %s was given up: registry %s stalled at %d of %d bytes for %v: %w",
			ref, host, done, total, quiet.Round(time.Millisecond), errdefs.ErrTransient)
	}
	return fmt.Errorf("pull of %s was given up: registry %s stalled after %d bytes for %v: %w",
		ref, host, done, quiet.Round(time.Millisecond), errdefs.ErrTransient)
}

func (m *Manager) setProgress(pl *pull, done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pl.done, pl.total = done, total
	for _, w := range pl.waiters {
		if w.news != nil {
			select {
			case w.news <- struct{}{}:
			default:
			}
		}
	}
}
