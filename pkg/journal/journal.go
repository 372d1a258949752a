// Package journal is a bounded history of changes that readers follow.
//
// Several journals may share one counter, so that a revision is unique on the
// node. A reader is never waited for: one that falls behind the history is cut
// off and has to list again, as with kube-apiserver's watch.
package journal

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// batch is how many entries a reader takes under the lock at a time.
const batch = 64

// Counter hands out revisions. The zero value starts at 1.
type Counter struct{ n atomic.Uint64 }

// NewCounter starts at a time in microseconds since 1970: revisions of a
// restarted process are then greater than those that clients remember from the
// one before, without a word on disk.
func NewCounter(start time.Time) *Counter {
	c := &Counter{}
	c.n.Store(uint64(max(0, start.UnixMicro())))
	return c
}

// Next is the next revision.
func (c *Counter) Next() uint64 { return c.n.Add(1) }

// Current is the last revision that was handed out.
func (c *Counter) Current() uint64 { return c.n.Load() }

type item[T any] struct {
	revision uint64
	value    T
}

// Journal is a history of at most a given number of entries. It is safe for
// concurrent use; the writer keeps revisions growing.
type Journal[T any] struct {
	counter *Counter
	limit   int

	mu    sync.Mutex
	ring  []item[T] // ring[(first+i)%limit], i < len(ring)
	first int
	floor uint64        // the history has every change after this revision
	wake  chan struct{} // closed by the next Append; nil while nobody waits
}

// New makes an empty journal. Changes before now count as forgotten.
func New[T any](c *Counter, limit int) *Journal[T] {
	return &Journal[T]{counter: c, limit: max(1, limit), floor: c.Current()}
}

// Append adds an entry and wakes readers. Revisions must grow.
func (j *Journal[T]) Append(revision uint64, value T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	it := item[T]{revision, value}
	if len(j.ring) < j.limit {
		j.ring = append(j.ring, it)
	} else {
		j.floor = j.ring[j.first].revision
		j.ring[j.first] = it
		j.first = (j.first + 1) % j.limit
	}
	if j.wake != nil {
		close(j.wake)
		j.wake = nil
	}
}

// Follow delivers initial, then every entry after revision since, in order,
// until ctx ends or the reader falls behind the history; then the channel is
// closed. A since before the history is errdefs.ErrExpired, and so is one of
// the future: it belongs to a process whose clock ran ahead of ours.
func (j *Journal[T]) Follow(ctx context.Context, since uint64, initial []T) (<-chan T, error) {
	j.mu.Lock()
	floor := j.floor
	j.mu.Unlock()
	if now := j.counter.Current(); since > now {
		return nil, fmt.Errorf("revision %d is not known here, the last one is %d: %w", since, now, errdefs.ErrExpired)
	}
	if since < floor {
		return nil, fmt.Errorf("revision %d is too old, changes are kept from %d on: %w", since, floor, errdefs.ErrExpired)
	}
	out := make(chan T)
	// The goroutine belongs to ctx; the closed channel tells that it is over.
	go func() {
		defer close(out)
		j.pump(ctx, since, initial, out)
	}()
	return out, nil
}

func (j *Journal[T]) pump(ctx context.Context, since uint64, initial []T, out chan<- T) {
	send := func(v T) bool {
		select {
		case out <- v:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for _, v := range initial {
		if !send(v) {
			return
		}
	}
	for ctx.Err() == nil {
		items, wake, ok := j.after(since)
		if !ok {
			return
		}
		for _, it := range items {
			if !send(it.value) {
				return
			}
			since = it.revision
		}
		if wake == nil {
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// after returns the next entries after a revision, or a channel that is closed
// when there are some; ok is false when some of them are forgotten.
func (j *Journal[T]) after(revision uint64) (items []item[T], wake <-chan struct{}, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if revision < j.floor {
		return nil, nil, false
	}
	// Readers are near the end: look from there.
	n := len(j.ring)
	from := n
	for from > 0 && j.at(from-1).revision > revision {
		from--
	}
	for i := from; i < n && len(items) < batch; i++ {
		items = append(items, *j.at(i))
	}
	if len(items) > 0 {
		return items, nil, true
	}
	if j.wake == nil {
		j.wake = make(chan struct{})
	}
	return nil, j.wake, true
}

func (j *Journal[T]) at(i int) *item[T] { return &j.ring[(j.first+i)%len(j.ring)] }
