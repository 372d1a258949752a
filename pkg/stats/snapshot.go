package stats

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// diskEvery is how old a measuring of disks may get while somebody asks for
	// it: containerd measures no more often either.
	diskEvery = 10 * time.Second
	// diskShare bounds the share of time that measuring takes: after a walk of a
	// second there is none for twenty.
	diskShare = 20
	// diskPatience is for volumes with very many files, and disks that hang.
	diskPatience = 30 * time.Second
)

// Snapshot is what was last measured of all disks.
type Snapshot struct {
	At    time.Time // zero: not yet
	Pods  map[types.UID]Disk
	Node  Filesystem
	Image ImageFS
}

// Filesystems are those of the node, each once.
func (s Snapshot) Filesystems() []Filesystem {
	var out []Filesystem
	for _, f := range []Filesystem{s.Node, s.Image.Images, s.Image.Containers} {
		if f.Capacity > 0 && !slices.ContainsFunc(out, func(o Filesystem) bool { return o.Device == f.Device }) {
			out = append(out, f)
		}
	}
	return out
}

// disks measures when somebody asks.
type disks struct {
	wanted chan struct{}

	mu   sync.Mutex
	last Snapshot
	rest time.Duration // until there is another one

	measuring sync.Mutex
}

// LastDisks is what was measured last, without waiting; what is old is measured
// anew in the background, for the next who asks.
func (r *Reader) LastDisks() Snapshot {
	r.disks.mu.Lock()
	defer r.disks.mu.Unlock()
	if r.o.Clock().Sub(r.disks.last.At) >= r.disks.rest {
		select {
		case r.disks.wanted <- struct{}{}:
		default:
		}
	}
	return r.disks.last
}

// SomeDisks is LastDisks, but measures at once if nobody has.
func (r *Reader) SomeDisks(ctx context.Context) (Snapshot, error) {
	if s := r.LastDisks(); !s.At.IsZero() {
		return s, nil
	}
	return r.measure(ctx)
}

// measureDisks measures for those who ask until ctx ends.
func (r *Reader) measureDisks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.disks.wanted:
			if _, err := r.measure(ctx); err != nil && ctx.Err() == nil {
				r.o.Log.Warn("cannot measure the disks; metrics show what they were", "err", err)
			}
		}
	}
}

// measure takes a snapshot. A pod that cannot be measured in time keeps what it
// had.
func (r *Reader) measure(ctx context.Context) (Snapshot, error) {
	r.disks.measuring.Lock()
	defer r.disks.measuring.Unlock()
	begin := r.o.Clock()
	r.disks.mu.Lock()
	old, rest := r.disks.last, r.disks.rest
	r.disks.mu.Unlock()
	if !old.At.IsZero() && begin.Sub(old.At) < rest {
		return old, nil // somebody else has, meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, diskPatience)
	defer cancel()
	next := Snapshot{At: begin, Pods: map[types.UID]Disk{}}
	var errs [3]error
	next.Node, errs[0] = r.NodeFS()
	next.Image, errs[1] = r.ImageFS(ctx)
	layers, err := r.layers(ctx)
	errs[2] = err
	for _, p := range r.o.Pods() {
		d, err := r.disk(ctx, p)
		if err != nil {
			d = old.Pods[p.UID]
		}
		d.RootFS = layers[p.UID]
		next.Pods[p.UID] = d
	}
	r.disks.mu.Lock()
	defer r.disks.mu.Unlock()
	r.disks.last = next
	r.disks.rest = max(diskEvery, diskShare*r.o.Clock().Sub(begin))
	return next, errors.Join(errs[:]...)
}
