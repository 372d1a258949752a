package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// reopenTimeout is for a runtime that takes the call and does not answer.
const reopenTimeout = 30 * time.Second

// RotateOptions of a Rotator; all are required but Hook.
type RotateOptions struct {
	Root string // the pod log folder
	// MaxSize is how large a log becomes before it is rotated, in bytes; MaxFiles
	// is how many files of a container's log there are, the newest one included.
	MaxSize  int64
	MaxFiles int
	// Interval is how often a log is looked at when nothing says that it grows.
	Interval time.Duration
	// Reopen has the runtime open the log of a running container by its name
	// again. Repeating it does nothing.
	Reopen func(ctx context.Context, id string) error
	Clock  func() time.Time
	Log    *slog.Logger
	// Hook is called at every point where a crash must do no harm.
	Hook func(point string)
}

// Container is one that runs; its log is <Root>/<PodFolder>/<Name>/<Attempt>.log.
type Container struct {
	ID, PodFolder, Name string
	Attempt             uint32
}

// Rotator keeps the logs of running containers small. It owns the rotated files;
// they go with the log, by Remove.
type Rotator struct {
	o       RotateOptions
	watch   *watch
	packing *semaphore.Weighted // one at a time, as it costs a core

	mu   sync.Mutex
	ctx  context.Context // set by Run
	wg   sync.WaitGroup
	pods map[types.UID]map[string]*keeper // by container ID
}

// NewRotator starts nothing.
func NewRotator(o RotateOptions) *Rotator {
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	return &Rotator{o: o, packing: semaphore.NewWeighted(1), pods: map[types.UID]map[string]*keeper{}}
}

// Run looks after logs until ctx ends.
func (r *Rotator) Run(ctx context.Context) error {
	if r.o.MaxSize < 0 {
		return nil // as the user wishes
	}
	watch, err := newWatch()
	if err != nil {
		r.o.Log.Warn("cannot watch containers' logs; they are looked at every second", "err", err)
	}
	r.mu.Lock()
	r.ctx, r.watch = ctx, watch
	for _, keepers := range r.pods {
		for _, k := range keepers {
			r.start(k)
		}
	}
	r.mu.Unlock()
	watch.run(ctx)
	<-ctx.Done()
	r.wg.Wait()
	return nil
}

// Follow says which containers of a pod run; it takes the place of what was said
// before, and never waits.
func (r *Rotator) Follow(uid types.UID, running []Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.pods[uid]
	if len(running) == 0 {
		delete(r.pods, uid)
	} else {
		r.pods[uid] = make(map[string]*keeper, len(running))
	}
	for _, c := range running {
		k := old[c.ID]
		if k == nil {
			k = &keeper{Rotator: r, c: c, name: strconv.Itoa(int(c.Attempt)) + ".log", wake: make(chan struct{}, 1)}
			r.start(k)
		}
		r.pods[uid][c.ID] = k
		delete(old, c.ID)
	}
	for _, k := range old {
		if k.cancel != nil {
			k.cancel()
		}
	}
}

// start runs a keeper once Run has begun; r.mu is held.
func (r *Rotator) start(k *keeper) {
	if r.ctx == nil || r.ctx.Err() != nil {
		return
	}
	var ctx context.Context
	ctx, k.cancel = context.WithCancel(r.ctx)
	r.wg.Go(func() { k.run(ctx) })
}

// keeper looks after one log.
type keeper struct {
	*Rotator
	c      Container
	name   string
	wake   chan struct{}
	cancel context.CancelFunc
	failed string // the last error, so that it is said once
	packer sync.Mutex
}

// How soon a log is looked at again that grows: by the time that it needs to
// reach its size, were it written at its own rate or at least at this one.
const (
	fastRate  = 40 << 20 // bytes a second
	soonest   = 10 * time.Millisecond
	latest    = 250 * time.Millisecond
	unwatched = time.Second
)

// run looks at the log when something was written to it, and at intervals.
func (k *keeper) run(ctx context.Context) {
	last, at := int64(-1), k.o.Clock()
	for {
		size, err := k.look(ctx)
		if ctx.Err() != nil {
			return
		}
		k.tell(err)
		took := k.o.Clock().Sub(at)
		at = at.Add(took)
		wait := k.o.Interval
		switch {
		case err != nil:
		case size != last:
			wait = soon(k.o.MaxSize-size, size-last, took)
		default:
			// It is quiet: the next write tells. One that came before the watch shows.
			if err := k.watch.once(k, last); err != nil {
				wait = min(wait, unwatched)
			}
		}
		last = size
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			k.watch.forget(k)
			return
		case <-k.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// soon is when to look again at a log that has grown.
func soon(left, grown int64, took time.Duration) time.Duration {
	rate := float64(fastRate)
	if took > 0 {
		rate = max(rate, float64(grown)/took.Seconds())
	}
	return min(latest, max(soonest, time.Duration(float64(left)/rate*float64(time.Second))))
}

// tell logs what keeps a log from being rotated, once.
func (k *keeper) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != k.failed {
		k.o.Log.Warn("cannot rotate a container's log; will try again", "container", k.c.Name, "pod", k.c.PodFolder, "err", err)
	}
	k.failed = text
}

// look rotates the log when it is due and returns its size.
func (k *keeper) look(ctx context.Context) (int64, error) {
	dir, err := OpenDir(k.o.Root, k.c.PodFolder, k.c.Name)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	st, err := dir.stat(k.name)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		// A rotation was cut short, or somebody else moved it away.
		return 0, k.reopen(ctx)
	case err != nil:
		return 0, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, fmt.Errorf("log %s is not a regular file and is left alone: %w", filepath.Join(dir.name, k.name), errdefs.ErrInvalid)
	case st.Size >= k.o.MaxSize:
		return 0, k.rotate(ctx, dir)
	}
	k.packLater(ctx, dir)
	return st.Size, nil
}

func (k *keeper) reopen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reopenTimeout)
	defer cancel()
	return k.o.Reopen(ctx, k.c.ID)
}

// rotate gives the log another name and has the runtime begin a new one. Until
// it has, it writes to the old one: nothing is lost, whenever it stops in between.
func (k *keeper) rotate(ctx context.Context, dir *Dir) error {
	old, err := dir.rotatedOf(k.name)
	if err != nil {
		return err
	}
	for len(old) > max(0, k.o.MaxFiles-2) {
		if err := dir.removeRotated(k.name, old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	k.o.Hook("before a log is renamed")
	to := k.name + "." + nextStamp(old, k.o.Clock())
	fd := int(dir.f.Fd())
	if err := unix.Renameat(fd, k.name, fd, to); err != nil {
		return fmt.Errorf("renaming log %s to %s: %w", filepath.Join(dir.name, k.name), to, err)
	}
	k.o.Hook("between a log's rename and its reopening")
	if err := k.reopen(ctx); err != nil {
		// It may have been done all the same; then the name is there.
		if back := unix.Renameat2(fd, to, fd, k.name, unix.RENAME_NOREPLACE); back != nil && !errors.Is(back, unix.EEXIST) {
			return errors.Join(err, fmt.Errorf("giving log %s its name back: %w", to, back))
		}
		return err
	}
	k.packLater(ctx, dir)
	return nil
}

// nextStamp is behind those of all other parts, whatever the clock says.
func nextStamp(old []rotated, now time.Time) string {
	stamp := now.UTC().Format(stampLayout)
	if len(old) == 0 || old[len(old)-1].stamp < stamp {
		return stamp
	}
	last, n := old[len(old)-1].stamp, 0
	if base, number, ok := strings.Cut(last[len("20060102-"):], "-"); ok {
		last = last[:len("20060102-")] + base
		n, _ = strconv.Atoi(number) // the pattern says that it is one
	}
	return fmt.Sprintf("%s-%06d", last, n+1)
}

// removeRotated removes an older part under all of its names.
func (d *Dir) removeRotated(name string, r rotated) error {
	for _, suffix := range []string{"", packedSuffix, halfSuffix} {
		if err := d.unlink(name + "." + r.stamp + suffix); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) unlink(name string) error {
	err := unix.Unlinkat(int(d.f.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing log %s: %w", filepath.Join(d.name, name), err)
	}
	return nil
}

// Remove removes the log of one attempt with all that was rotated out of it.
func Remove(root, pod, container string, attempt uint32) error {
	dir, err := OpenDir(root, pod, container)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.names()
	if err != nil {
		return err
	}
	log := strconv.Itoa(int(attempt)) + ".log"
	for _, name := range slices.DeleteFunc(names, func(n string) bool { return n != log && !strings.HasPrefix(n, log+".") }) {
		err = errors.Join(err, dir.unlink(name))
	}
	return err
}
