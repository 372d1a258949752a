// Package file is the source that reads Pods from a folder of manifests, or
// from one file.
//
// The kernel's events only say that it is time to look; what is published
// always comes from looking at the whole folder. A pod is taken for removed
// only when the folder was quiet while it was looked at and the pod had been
// gone for a moment: editors, rename, ConfigMap-like switches of a symlink and
// `rm; cp` all pass through states in which a file is not there.
package file

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	defaultPoll = 20 * time.Second
	// maxFile is what one file may have, in bytes. One document has a limit of
	// its own.
	maxFile = 10 << 20
	// removalHold is how long nothing must have happened after a pod was gone
	// before that is believed, and longHold how long it must be gone while things
	// keep happening, or when the folder as a whole was just replaced and may
	// still be filling.
	removalHold = 30 * time.Millisecond
	longHold    = time.Second
	// settle is how long a file must stay as it is where the kernel cannot tell
	// whether somebody is writing it.
	settle = 25 * time.Millisecond
	// rewatch is how often a file is looked at that somebody has open for
	// writing. Usually the event of its closing comes first.
	rewatch = 250 * time.Millisecond
	// patience is how long a file may be written before that is reported.
	patience = 5 * time.Second
	// churnPause lies between looks at a folder that changes during every look.
	churnPause = 5 * time.Millisecond
	// attempts is how often a look is repeated at once when the folder changed
	// meanwhile.
	attempts = 5
)

// Options are what a source needs; Path, Decode and Log are required.
type Options struct {
	// Path is a folder, whose sub-folders are not read, or one file. It may be a
	// symlink, and need not exist yet.
	Path string
	// Poll is how often the path is looked at when no event says so; 0: 20 s.
	Poll time.Duration
	// NodeName is handed to Decode.
	NodeName string
	// Decode is manifest.Decode.
	Decode func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error)
	// Clock is the wall clock that files are compared with; nil: time.Now.
	Clock func() time.Time
	Log   *slog.Logger
}

// Source reads one folder or file.
type Source struct {
	o Options
	// What tests put something else in place of.
	newWatch func(*slog.Logger) (*watch, error)
	writers  func(fd int) writerState
}

// New makes a source; Run starts it.
func New(o Options) *Source {
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if abs, err := filepath.Abs(o.Path); err == nil {
		o.Path = abs
	}
	return &Source{o: o, newWatch: newWatch, writers: writers}
}

// Run delivers to the sink until ctx ends, and then returns nil. The first look
// is taken at once.
func (s *Source) Run(ctx context.Context, sink store.Sink) error {
	f := newFollower(s.o, s.writers, sink)
	w, err := s.newWatch(s.o.Log)
	if err != nil {
		s.o.Log.Warn("no file events: changes of manifests are seen by polling only; raise fs.inotify.max_user_instances",
			"path", s.o.Path, "poll", s.o.Poll, "err", err)
	} else {
		f.watch = w
		release := w.stopWith(ctx)
		defer w.close()
		defer release()
	}
	for ctx.Err() == nil {
		started := time.Now()
		again := f.look(ctx)
		ended := time.Now()
		happened := f.wait(ctx, again)
		// Of a folder so large that a look takes long, half of a core is the most
		// that a stream of events may cost.
		if took := ended.Sub(started); happened && took > churnPause {
			pause(ctx, took-time.Since(ended))
		}
	}
	return nil
}

// Once looks at the path without following it and returns what Run would
// deliver. A file that somebody is writing is waited for, for a few seconds.
func (s *Source) Once(ctx context.Context) (store.Snapshot, error) {
	f := newFollower(s.o, s.writers, nil)
	for ctx.Err() == nil {
		seen, err := f.scan(ctx)
		if err != nil {
			return store.Snapshot{}, err
		}
		if !slices.Contains(slices.Collect(maps.Values(seen.results)), nil) {
			return snapshotOf(seen.results), nil
		}
		pause(ctx, f.again)
	}
	return store.Snapshot{}, ctx.Err()
}

// wait returns after d, or true as soon as something relevant happens.
func (f *follower) wait(ctx context.Context, d time.Duration) bool {
	if f.watch == nil {
		pause(ctx, d)
		return false
	}
	happened, err := f.watch.wait(ctx, d)
	if err != nil && ctx.Err() == nil {
		f.o.Log.Error("reading file events failed: changes of manifests are seen by polling only", "path", f.o.Path, "err", err)
		f.watch.close()
		f.watch = nil
	}
	if happened {
		f.event = f.o.Clock()
	}
	return happened
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
