package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

type snapshot = store.Snapshot

// counting decodes and counts how often it did, by origin.
func counting(times map[string]int) func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error) {
	return func(data []byte, o manifest.Options) ([]manifest.Object, []*manifest.Error) {
		times[o.Origin]++
		return manifest.Decode(data, o)
	}
}

// report is one call of the sink.
type report struct {
	snap store.Snapshot
	err  error
}

// sink remembers what it was told. check, when set, judges every snapshot.
type sink struct {
	mu      sync.Mutex
	changed *sync.Cond
	reports []report
	check   func(store.Snapshot) error
	broken  error
}

func newSink() *sink {
	s := &sink{}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *sink) add(name string, r report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != store.SourceFile {
		s.broken = fmt.Errorf("source %q", name)
	}
	if s.check != nil && r.err == nil && s.broken == nil {
		s.broken = s.check(r.snap)
	}
	s.reports = append(s.reports, r)
	s.changed.Broadcast()
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

func (s *sink) Apply(name string, snap store.Snapshot) { s.add(name, report{snap: snap}) }
func (s *sink) Fail(name string, err error)            { s.add(name, report{err: err}) }

// bench is a folder, and a source that follows a path.
type bench struct {
	*testing.T
	dir  string
	real string // what dir leads to, when a test makes it a symlink
	sink *sink
	log  *strings.Builder // to be read after stop
	stop func()

	fences int
}

// newBench makes the folder; run starts the source.
func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: filepath.Join(t.TempDir(), "manifests"), sink: newSink(), log: &strings.Builder{}}
	b.must(os.Mkdir(b.dir, 0o755))
	return b
}

// run starts it with a poll that never comes: what a test waits for has to come
// from an event.
func (b *bench) run(change ...func(*Source)) {
	b.Helper()
	s := New(Options{Path: b.dir, Poll: time.Hour, NodeName: "n1", Decode: manifest.Decode, Log: slog.New(slog.NewTextHandler(b.log, nil))})
	for _, c := range change {
		c(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, b.sink) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("Run: %v", err)
		}
		b.sink.mu.Lock()
		defer b.sink.mu.Unlock()
		if b.sink.broken != nil {
			b.Error(b.sink.broken)
		}
	})
	b.Cleanup(b.stop)
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// wait waits until the last report is as it should be.
func (b *bench) wait(what string, ok func(report) bool) report {
	b.Helper()
	s := b.sink
	late := time.AfterFunc(20*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.broken = fmt.Errorf("timed out")
		s.changed.Broadcast()
	})
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if n := len(s.reports); n > 0 && ok(s.reports[n-1]) {
			return s.reports[n-1]
		}
		if s.broken != nil {
			last := report{}
			if n := len(s.reports); n > 0 {
				last = s.reports[n-1]
			}
			b.Fatalf("%s: %v; the last of %d reports is %s", what, s.broken, len(s.reports), last)
		}
		s.changed.Wait()
	}
}

func (r report) String() string {
	if r.err != nil {
		return "failure: " + r.err.Error()
	}
	var parts []string
	for _, o := range r.snap.Objects {
		parts = append(parts, filepath.Base(o.Origin)+":"+o.Pod.Name+"="+o.Pod.Spec.Containers[0].Image)
	}
	return strings.Join(parts, " ") + " | " + r.problems()
}

func (r report) problems() string {
	var parts []string
	for _, p := range r.snap.Problems {
		parts = append(parts, fmt.Sprintf("%s: %s: %v (keep %v)", filepath.Base(p.Origin), p.Object, p.Err, p.Keep))
	}
	return strings.Join(parts, "\n")
}

// objects is "file:pod=image …" of a report.
func objects(r report) string {
	if r.err != nil {
		return r.String()
	}
	o, _, _ := strings.Cut(r.String(), " | ")
	return o
}

func (b *bench) waitFor(want string) report {
	b.Helper()
	return b.wait("want "+want, func(r report) bool { return objects(r) == want })
}

func (b *bench) waitFailure(want string) report {
	b.Helper()
	return b.wait("want a failure with "+want, func(r report) bool { return r.err != nil && strings.Contains(r.err.Error(), want) })
}

// waitProblem waits for a problem that holds on to what the file said.
func (b *bench) waitProblem(file string, want ...string) report {
	b.Helper()
	return b.wait(fmt.Sprintf("want a problem of %s with %q", file, want), func(r report) bool {
		for _, p := range r.snap.Problems {
			if filepath.Base(p.Origin) == file && p.Keep && containsAll(p.Err.Error(), want) {
				return true
			}
		}
		return false
	})
}

func containsAll(s string, want []string) bool {
	for _, w := range want {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// fence makes the source look once more and waits until it has.
func (b *bench) fence() report {
	b.Helper()
	b.fences++
	image := fmt.Sprintf("f:%d", b.fences)
	b.put("zz-fence.yaml", manifestOf("fence", image))
	return b.wait("the folder is read again", func(r report) bool { return strings.Contains(objects(r), "zz-fence.yaml:fence="+image) })
}

func manifestOf(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\nspec:\n  containers:\n  - name: c\n    image: %s\n", name, image)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// put replaces a file by rename, as careful programs do.
func (b *bench) put(name, content string) {
	b.Helper()
	tmp := filepath.Join(filepath.Dir(b.dir), "tmp-"+filepath.Base(name))
	b.must(os.WriteFile(tmp, []byte(content), 0o644))
	b.must(os.Rename(tmp, b.path(name)))
}

// write rewrites a file in place.
func (b *bench) write(name, content string) {
	b.Helper()
	b.must(os.WriteFile(b.path(name), []byte(content), 0o644))
}
