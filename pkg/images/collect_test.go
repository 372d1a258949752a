package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// shelf is a runtime with images on a disk of 1,000 bytes.
type shelf struct {
	images []runtime.Image
	used   map[string]bool
	pods   []*v1.Pod
	other  int64 // bytes of something else on the disk
	stuck  error
	said   []string
	// arrives is called before an image is removed.
	arrives func()
}

func (s *shelf) Images(context.Context) ([]runtime.Image, error) { return slices.Clone(s.images), nil }
func (s *shelf) UsedImages(context.Context) (map[string]bool, error) {
	return s.used, nil
}
func (s *shelf) SandboxImage(context.Context) (string, error) {
	return "registry.k8s.io/pause:3.10", nil
}
func (s *shelf) RemoveImage(_ context.Context, id string) error {
	if s.stuck != nil {
		return s.stuck
	}
	s.images = slices.DeleteFunc(s.images, func(i runtime.Image) bool { return i.ID == id })
	s.say("removed %s", id)
	if s.arrives != nil {
		s.arrives()
	}
	return nil
}

func (s *shelf) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

// add is an image of a size with its names; a star pins it.
func (s *shelf) add(id string, size uint64, names ...string) {
	id, pinned := strings.CutSuffix(id, "*")
	s.images = append(s.images, runtime.Image{ID: id, RepoTags: names, Size: size, Pinned: pinned})
}

func (s *shelf) left() []string {
	var ids []string
	for _, i := range s.images {
		ids = append(ids, i.ID)
	}
	return ids
}

func (s *shelf) collector(dir string, set func(*CollectorOptions)) *Collector {
	o := CollectorOptions{
		Runtime: s, Wanted: func() []*v1.Pod { return s.pods },
		Disk: func(context.Context) (int64, int64, error) {
			free := 1000 - s.other
			for _, i := range s.images {
				free -= int64(i.Size)
			}
			return free, 1000, nil
		},
		High: 80, Low: 50, MinAge: 2 * time.Minute, File: filepath.Join(dir, "images.json"),
		Event:   func(_, reason, message string) { s.say("%s: %s", reason, message) },
		Removed: func(reason string) { s.say("for %s", reason) },
		Clock:   time.Now, After: time.After, Log: slog.New(slog.DiscardHandler),
	}
	if set != nil {
		set(&o)
	}
	return NewCollector(o)
}

func imagePod(name string, images ...string) *v1.Pod {
	p := &v1.Pod{}
	p.Name = name
	for _, i := range images {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Image: i})
	}
	return p
}

// TestCollectsWhatNobodyNeeds: in order of last use, down to the low mark, and
// nothing that somebody may need.
func TestCollectsWhatNobodyNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{used: map[string]bool{"running": true, "old": true, "older": true}}
		for _, id := range []string{"running", "old", "older", "never"} {
			s.add(id, 100)
		}
		s.add("pinned*", 100)
		s.add("pause", 100, "registry.k8s.io/pause:3.10")
		s.add("waited-for", 50, "docker.io/library/web:1")
		s.add("mounted", 50, "docker.io/library/data:latest")
		s.add("debugged", 50, "docker.io/library/shell:latest")
		s.add("first", 50, "example.com/init:2")
		waiting := imagePod("p", "web:1")
		waiting.Spec.InitContainers = []v1.Container{{Image: "example.com/init:2"}}
		waiting.Spec.Volumes = []v1.Volume{{VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "data"}}}}
		waiting.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Image: "shell"}}}
		s.pods = []*v1.Pod{waiting}
		dir := t.TempDir()
		c := s.collector(dir, func(o *CollectorOptions) { o.Low = 60 })
		s.other = -50
		step := func(after time.Duration, want ...string) {
			t.Helper()
			time.Sleep(after)
			if err := c.Collect(t.Context()); err != nil {
				t.Error(err)
			}
			if !slices.Equal(s.said, want) {
				t.Errorf("got %q, want %q", s.said, want)
			}
			s.said = nil
		}
		step(0) // below the high mark
		delete(s.used, "older")
		s.other = 0
		step(time.Hour, "removed never", "for space", "removed older", "for space") // 60 % used, and no more may go
	})
}

// TestCollectionSays what it could not do, in kubelet's words.
func TestCollectionSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{other: 850}
		s.add("small", 10)
		c := s.collector(t.TempDir(), nil)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute+time.Second)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(s.said, "\n")
		for _, want := range []string{
			"FreeDiskSpaceFailed: Insufficient free disk space on the node's image filesystem (86% of 1000 B used). Failed to free sufficient space by deleting unused images (freed 0 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
			"ImageGCFailed: Insufficient free disk space", "removed small",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%q does not hold %q", got, want)
			}
		}
		s.stuck = errors.New("read-only")
		s.add("other", 10)
		time.Sleep(time.Hour)
		_ = c.Collect(t.Context()) // it has come
		time.Sleep(time.Hour)
		if err := c.Collect(t.Context()); !errors.Is(err, s.stuck) {
			t.Errorf("%v", err)
		}
	})
}

// TestAge: what nobody has used for long goes although there is room; agents come
// and go meanwhile.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{used: map[string]bool{"a": true}}
		s.add("a", 1)
		s.add("b", 1)
		s.add("c", 1, "docker.io/library/c:latest")
		s.pods = []*v1.Pod{imagePod("p", "c")}
		dir := t.TempDir()
		collect := func(after time.Duration, want ...string) {
			t.Helper()
			time.Sleep(after)
			c := s.collector(dir, func(o *CollectorOptions) { o.MaxAge, o.High = 24*time.Hour, 100 })
			if err := c.Collect(t.Context()); err != nil || !slices.Equal(s.left(), want) {
				t.Errorf("%v, left %q, want %q", err, s.left(), want)
			}
		}
		collect(0, "a", "b", "c")
		collect(24*time.Hour, "a", "b", "c")
		delete(s.used, "a")
		collect(time.Second, "a", "c") // in use a moment ago
		collect(24*time.Hour, "c")
	})
}

// TestPodThatComesMeanwhile: an image that a pod begins to want during a
// collection stays.
func TestPodThatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		s.add("a", 450, "docker.io/library/a:latest")
		s.add("b", 450, "docker.io/library/b:latest")
		s.arrives = func() { s.pods = []*v1.Pod{imagePod("p", "b")} }
		c := s.collector(t.TempDir(), func(o *CollectorOptions) { o.Low = 10 })
		_ = c.Collect(t.Context()) // they have come
		time.Sleep(time.Hour)
		if err := c.RemoveUnused(t.Context()); err != nil || !slices.Equal(s.left(), []string{"b"}) {
			t.Errorf("%v, left %q", err, s.left())
		}
	})
}

func TestReadable(t *testing.T) {
	for n, want := range map[int64]string{1000: "1000 B", 1536: "1.5 KiB", 252 << 30: "252.0 GiB", 3 << 50: "3072.0 TiB"} {
		if got := readable(n); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
