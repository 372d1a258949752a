package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Holder is what collecting images needs of the container runtime.
type Holder interface {
	Images(ctx context.Context) ([]runtime.Image, error)
	// RemoveImage removes an image with all its names; one that is gone is no error.
	RemoveImage(ctx context.Context, ref string) error
	// UsedImages are those of all containers, by any name or id.
	UsedImages(ctx context.Context) (map[string]bool, error)
	// SandboxImage is what sandboxes are made of; "" when that is not known.
	SandboxImage(ctx context.Context) (string, error)
}

// CollectorOptions are a collector's parts and settings; all are required.
type CollectorOptions struct {
	Runtime Holder
	// Wanted are the pods that may still need their images.
	Wanted func() []*v1.Pod
	// Disk is what the images' file system has, in bytes.
	Disk func(ctx context.Context) (available, capacity int64, err error)
	// From High percent of use on, images are removed until it is down to Low;
	// a High of 100 never.
	High, Low int
	// MinAge protects what has only just come. MaxAge ends what nobody has used
	// for so long; 0: nothing is too old.
	MinAge, MaxAge time.Duration
	// File remembers when images were used, over restarts.
	File string
	// Event records an event about the node; Removed counts, by "space" or "age".
	Event   func(eventType, reason, message string)
	Removed func(reason string)
	Clock   func() time.Time
	After   func(time.Duration) <-chan time.Time
	Log     *slog.Logger
}

// Collector removes images that nobody needs: no container uses them, no pod of
// any source wants them, and the runtime does not hold on to them. Those that were
// used least lately go first.
type Collector struct {
	o CollectorOptions

	mu      sync.Mutex // one collection at a time
	known   map[string]life
	written time.Time
	said    string // the last failure
}

// life is when an image came, and when it was seen in use last.
type life struct {
	Came time.Time `json:"came"`
	Used time.Time `json:"used,omitzero"`
}

// idle is since when nobody uses it.
func (l life) idle() time.Time {
	if l.Used.After(l.Came) {
		return l.Used
	}
	return l.Came
}

// spare is an image that may go.
type spare struct {
	life
	image *runtime.Image
}

const (
	// collectEvery is how often images are looked at; kubelet does so every five
	// minutes.
	collectEvery = time.Minute
	// writeEvery is how exactly it is remembered when an image was used.
	writeEvery = 10 * time.Minute
)

// NewCollector makes a collector that knows what the one before it knew.
func NewCollector(o CollectorOptions) *Collector {
	c := &Collector{o: o, known: map[string]life{}}
	b, err := os.ReadFile(o.File)
	if err == nil {
		err = json.Unmarshal(b, &c.known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Warn("when images were used is not known any more; all count as new", "file", o.File, "err", err)
		c.known = map[string]life{}
	}
	return c
}

// Run collects now and then until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	every := collectEvery
	if c.o.MaxAge > 0 {
		every = min(every, max(c.o.MaxAge/2, time.Second))
	}
	for failures := 0; ; {
		err := c.Collect(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			failures, c.said = 0, ""
		default:
			// As with kubelet, one failure may be that the node is not ready yet.
			if failures++; failures > 1 && err.Error() != c.said {
				c.said = err.Error()
				c.o.Event(v1.EventTypeWarning, "ImageGCFailed", c.said)
			}
			c.o.Log.Warn("cannot collect images as wanted; will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.o.After(every):
		}
	}
}

// Collect removes images that are too old, and others while the disk is too full.
func (c *Collector) Collect(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	spares, err := c.look(ctx)
	if err != nil {
		return err
	}
	now := c.o.Clock()
	var failed []error
	if c.o.MaxAge > 0 {
		spares = slices.DeleteFunc(spares, func(s spare) bool {
			if now.Sub(s.idle()) <= c.o.MaxAge || named(s.image, c.wanted()) {
				return false
			}
			err := c.remove(ctx, s, "age")
			failed = append(failed, err)
			return err == nil
		})
	}
	if err := errors.Join(failed...); err != nil || c.o.High >= 100 {
		return err
	}
	available, capacity, err := c.o.Disk(ctx)
	if err != nil {
		return err
	}
	if capacity <= 0 {
		c.o.Event(v1.EventTypeWarning, "InvalidDiskCapacity", "invalid capacity 0 on image filesystem")
		return errors.New("invalid capacity 0 on image filesystem")
	}
	used := 100 - int(min(available, capacity)*100/capacity)
	if used < c.o.High {
		return nil
	}
	want := capacity*int64(100-c.o.Low)/100 - available
	freed, err := c.free(ctx, spares, want)
	if err != nil {
		return err
	}
	if freed < want {
		message := fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). "+
			"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.", used, readable(capacity), freed)
		if message != c.said {
			c.o.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		}
		return errors.New(message)
	}
	return nil
}

// RemoveUnused removes all images that may go, whatever room there is.
func (c *Collector) RemoveUnused(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	spares, err := c.look(ctx)
	if err == nil {
		_, err = c.free(ctx, spares, math.MaxInt64)
	}
	return err
}

// look finds out what is used, and returns what may go, the image first that
// nobody has used for longest.
func (c *Collector) look(ctx context.Context) ([]spare, error) {
	// What is wanted comes last: a pod that comes meanwhile is in it.
	all, err := c.o.Runtime.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := c.o.Runtime.UsedImages(ctx)
	if err != nil {
		return nil, err
	}
	sandbox, err := c.o.Runtime.SandboxImage(ctx)
	if err != nil {
		return nil, err
	}
	wanted := c.wanted()
	now, known := c.o.Clock(), map[string]life{}
	var spares []spare
	for i := range all {
		img := &all[i]
		l, ok := c.known[img.ID]
		if !ok {
			l.Came = now
		}
		switch {
		case named(img, used) || named(img, wanted):
			l.Used = now
		case !img.Pinned && !named(img, map[string]bool{sandbox: sandbox != ""}):
			spares = append(spares, spare{l, img})
		}
		known[img.ID] = l
	}
	c.remember(known, now)
	slices.SortFunc(spares, func(a, b spare) int {
		return cmp.Or(a.Used.Compare(b.Used), a.Came.Compare(b.Came), cmp.Compare(a.image.ID, b.image.ID))
	})
	return spares, nil
}

// named says that one of an image's names is in a set.
func named(img *runtime.Image, set map[string]bool) bool {
	has := func(name string) bool { return set[name] }
	return set[img.ID] || slices.ContainsFunc(img.RepoTags, has) || slices.ContainsFunc(img.RepoDigests, has)
}

// wanted are the images of the pods that may still need them, also of those that
// wait or back off.
func (c *Collector) wanted() map[string]bool {
	refs := map[string]bool{}
	add := func(ref string) {
		refs[ref] = true
		if n, err := Normalize(ref); err == nil {
			refs[n] = true
		}
	}
	for _, p := range c.o.Wanted() {
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				add(list[i].Image)
			}
		}
		for i := range p.Spec.EphemeralContainers {
			add(p.Spec.EphemeralContainers[i].Image)
		}
		for i := range p.Spec.Volumes {
			if v := p.Spec.Volumes[i].Image; v != nil {
				add(v.Reference)
			}
		}
	}
	return refs
}

// free removes images until there is so much more room, and returns how much came
// of it: what the disk says, or the images' sizes while the runtime is still at it.
func (c *Collector) free(ctx context.Context, spares []spare, want int64) (freed int64, err error) {
	before, _, err := c.o.Disk(ctx)
	if err != nil {
		return 0, err
	}
	var failed []error
	sizes := int64(0)
	for _, s := range spares {
		if freed >= want || ctx.Err() != nil {
			break
		}
		// A pod may have come since it was looked.
		if c.o.Clock().Sub(s.Came) < c.o.MinAge || named(s.image, c.wanted()) {
			continue
		}
		if err := c.remove(ctx, s, "space"); err != nil {
			failed = append(failed, err)
			continue
		}
		sizes += int64(s.image.Size)
		now, _, err := c.o.Disk(ctx)
		if err != nil {
			return freed, err
		}
		freed = max(freed, sizes, now-before)
	}
	return freed, errors.Join(failed...)
}

func (c *Collector) remove(ctx context.Context, s spare, reason string) error {
	c.o.Log.Info("removing an image that nobody uses", "image", s.image.ID, "names", s.image.RepoTags, "size", s.image.Size, "for", reason, "since", s.idle())
	if err := c.o.Runtime.RemoveImage(ctx, s.image.ID); err != nil {
		return fmt.Errorf("cannot remove the unused image %s: %w", s.image.ID, err)
	}
	c.o.Removed(reason)
	return nil
}

// remember keeps for the next agent what it would not find out itself.
func (c *Collector) remember(known map[string]life, now time.Time) {
	same := maps.EqualFunc(known, c.known, func(a, b life) bool { return a.Came.Equal(b.Came) && a.Used.IsZero() == b.Used.IsZero() })
	c.known = known
	if same && now.Sub(c.written) < writeEvery {
		return
	}
	b, err := json.Marshal(known)
	if err == nil {
		err = store.WriteFile(c.o.File, b)
	}
	if err != nil {
		c.o.Log.Warn("cannot note down when images were used; a restarted agent takes them for new", "err", err)
		return
	}
	c.written = now
}

// readable is a size as kubelet writes it in events.
func readable(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	size, i := float64(n), 0
	for ; size >= 1024 && i < len(units)-1; i++ {
		size /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[i])
}
